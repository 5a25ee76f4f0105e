"""The truth behind ``evaluate`` and ``compare``, and whether a table speaks of its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csunmix._validation import Array, as_integer
from csunmix.datasets import read_csist, read_seq_csist
from csunmix.io import read_targets
from csunmix.targets import n_frames

if TYPE_CHECKING:
    import pandas as pd

_READERS = {"cso_img": read_csist, "image": read_seq_csist}  # by their folder of images


@dataclass(frozen=True, eq=False)
class Truth:
    """True targets.

    Attributes
    ----------
    table : pandas.DataFrame
        Target table.
    frame_of : dict
        Frame by file name, as far as names are known and stand for one frame.
    is_complete : bool
        Whether `frame_of` knows every image, those without targets too.
    images : ndarray, shape (n, n_y, n_x), optional
        The images, DN, of a data set.
    """

    table: pd.DataFrame
    frame_of: dict[str, int]
    is_complete: bool
    images: Array | None = None


def read_truth(text: str, *, progress: bool = False) -> Truth:
    """Truth of a table, CSV or Parquet, a data set's folder, or a folder that has one such."""
    path = Path(text)
    if not path.is_dir():
        table = read_targets(path)
        return Truth(table, _frame_by_name(table), is_complete=False)
    folder, name = _data_set(path)
    data = _READERS[name](folder, progress=progress)
    frame_of = {name: i for i, name in enumerate(data.names)}
    return Truth(data.truth, frame_of, is_complete=True, images=data.images)


def check_images(targets: pd.DataFrame, truth: Truth, name: str) -> None:
    """Refuse targets whose frames are other images than those of the truth.

    Images of a stack share its name, which says nothing of their order.
    """
    if "image" not in targets:
        return
    pairs = targets[["frame", "image"]].drop_duplicates()
    for frame, image in zip(pairs["frame"], pairs["image"].astype(str), strict=True):
        there = truth.frame_of.get(image)
        if there is None and truth.is_complete and image.lower().endswith(".png"):
            raise ValueError(f"{name}: the truth has no {image} (frame {frame})")
        if there is not None and there != frame:
            raise ValueError(
                f"{name}: frame {frame} is {image}, which is frame {there} of the truth; "
                "unmix the same images in the same order"
            )


def count_images(targets: pd.DataFrame, truth: Truth, given: int | None, name: str) -> int:
    """Number of images: of the data set, or that which is given, or up to the last target."""
    known, last = n_frames(truth.table), n_frames(targets)
    if not truth.is_complete:
        least = max(known, last)
        return least if given is None else as_integer(given, "--n-images", minimum=least)
    if given is not None:
        raise ValueError(f"--n-images is for a CSV truth; the data set has {known} images")
    if last > known:
        raise ValueError(f"{name}: has frame {last - 1}, the truth has {known} images from 0")
    return known


def _frame_by_name(table: pd.DataFrame) -> dict[str, int]:
    if "image" not in table:
        return {}
    pairs = table[["frame", "image"]].drop_duplicates()
    alone = pairs[~pairs["image"].duplicated(keep=False)]
    return dict(zip(alone["image"].astype(str), alone["frame"].astype(int), strict=True))


def _data_set(path: Path) -> tuple[Path, str]:
    """The one data set at or directly below `path`: its folder and that of its images."""
    children = sorted(child for child in path.iterdir() if child.is_dir())
    for folders in ([path], children):
        found = [
            (folder, name) for folder in folders for name in _READERS if (folder / name).is_dir()
        ]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(str(folder / name) for folder, name in found)
            raise ValueError(f"{path}: has several data sets ({several}), give one of them")
    raise ValueError(f"{path}: is no data set, it has no folder {' or '.join(_READERS)}")
