"""What the data sets share on disk: numbered images in one folder, annotations in another."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from csunmix._validation import FloatArray, as_integer, as_number
from csunmix.datasets.annotation import read_objects, write_objects
from csunmix.io import as_uint8, stack_files, write_png
from csunmix.targets import check_table, make_table

if TYPE_CHECKING:
    import pandas as pd

PREFIXES = ("CSO", "COS")
"""Both occur in front of the number of an annotation."""

_IMAGE = re.compile(r"image_([0-9]+)\.png")
_ANNOTATION = re.compile(rf"(?:{'|'.join(PREFIXES)})([0-9]+)\.xml")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and the targets in them.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, n_y, n_x)
        The images, DN, in the order of their numbers.
    truth : pandas.DataFrame
        Target table; ``frame`` is the index in `images`.
    names : tuple of str
        File name of each image.
    """

    images: npt.NDArray[np.uint8]
    truth: pd.DataFrame
    names: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The names of a data set's two folders."""

    images: str
    annotations: str

    def read(
        self,
        folder: str | os.PathLike[str],
        *,
        split: str | None,
        one_based: bool,
        progress: bool,
    ) -> Dataset:
        """Read every image and its annotation, in the order of their numbers."""
        root = _root(folder, split)
        if not root.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
        images, annotations = self._pairs(root)
        stack = stack_files(images, progress=progress)
        if stack.images.dtype != np.uint8:
            odd = next(file for file in images if stack_files([file]).images.dtype != np.uint8)
            raise ValueError(f"{odd}: must be an 8-bit image")
        bar = tqdm(annotations, desc="annotations", unit="file", disable=not progress)
        objects = [read_objects(file, one_based=one_based) for file in bar]
        frame = np.repeat(np.arange(len(objects)), [len(rows) for rows in objects])
        y, x, flux = np.concatenate(objects).T
        attrs = {"source": str(root)}
        truth = make_table(frame, y, x, flux, n_frames=len(objects), attrs=attrs)
        return Dataset(stack.images, truth, stack.names)

    def write(
        self,
        folder: str | os.PathLike[str],
        images: npt.ArrayLike,
        truth: pd.DataFrame,
        *,
        split: str | None,
        prefix: str,
        sigma: float | None,
        start: int,
        one_based: bool,
        overwrite: bool,
        progress: bool,
    ) -> None:
        """Write images and annotations numbered from `start`; checks come before the first file."""
        levels = as_uint8(images)
        if levels.ndim != 3:
            raise ValueError(f"images must have three axes (n, y, x), got shape {levels.shape}")
        objects = _by_frame(truth, len(levels))
        if prefix not in PREFIXES:
            raise ValueError(f"prefix must be one of {PREFIXES}, got {prefix!r}")
        start = as_integer(start, "start", minimum=0)
        sigma = None if sigma is None else as_number(sigma, "sigma", above=0.0)
        root = _root(folder, split)
        image_folder, annotation_folder = root / self.images, root / self.annotations
        before = {
            *_numbered(image_folder, _IMAGE),
            *_numbered(annotation_folder, _ANNOTATION),
        }
        if before and not overwrite:
            raise ValueError(
                f"{root}: has images or annotations already; "
                "choose another folder or give overwrite=True"
            )
        image_folder.mkdir(parents=True, exist_ok=True)
        annotation_folder.mkdir(exist_ok=True)
        bar = tqdm(levels, desc="images", unit="image", disable=not progress)
        for k, (image, rows) in enumerate(zip(bar, objects, strict=True), start=start):
            picture = image_folder / f"image_{k}.png"
            annotation = annotation_folder / f"{prefix}{k}.xml"
            write_png(picture, image)
            write_objects(
                annotation,
                rows,
                shape=image.shape,
                filename=picture.name,
                sigma=sigma,
                one_based=one_based,
            )
            before -= {picture, annotation}
        for left_over in before:  # would pass for a part of the new data set
            left_over.unlink()

    def _pairs(self, root: Path) -> tuple[list[Path], list[Path]]:
        """Images and their annotations, in the order of their numbers."""
        image_folder, annotation_folder = root / self.images, root / self.annotations
        images = _by_number(_numbered(image_folder, _IMAGE))
        annotations = _by_number(_numbered(annotation_folder, _ANNOTATION))
        if not images:
            raise ValueError(f"{image_folder}: has no images image_K.png (is the split right?)")
        for k, file in images.items():
            if k not in annotations:
                wanted = " or ".join(f"{prefix}{k}.xml" for prefix in PREFIXES)
                raise ValueError(f"{file}: has no annotation {wanted} in {annotation_folder}")
        for k, file in annotations.items():
            if k not in images:
                raise ValueError(f"{file}: has no image image_{k}.png in {image_folder}")
        order = sorted(images)
        return [images[k] for k in order], [annotations[k] for k in order]


def image_number(name: str) -> int:
    """The number ``K`` of ``image_K.png``."""
    match = _IMAGE.fullmatch(name)
    assert match is not None  # names come from `Layout.read`
    return int(match[1])


def _root(folder: str | os.PathLike[str], split: str | None) -> Path:
    return Path(folder) if split is None else Path(folder) / split


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[Path, int]:
    """Files of a folder by `pattern`, with their numbers; other files are not ours."""
    if not folder.is_dir():
        return {}
    matches = ((name, pattern.fullmatch(name)) for name in os.listdir(folder))
    return {folder / name: int(match[1]) for name, match in matches if match}


def _by_number(files: dict[Path, int]) -> dict[int, Path]:
    """Turn `files` round after checking that every number occurs once."""
    numbered: dict[int, Path] = {}
    for file in sorted(files):
        other = numbered.setdefault(files[file], file)
        if other != file:
            raise ValueError(f"{file}: has the same number as {other.name}, keep one of them")
    return numbered


def _by_frame(truth: pd.DataFrame, n: int) -> list[FloatArray]:
    """Targets ``(y, x, flux)`` of each of `n` frames, in the order of the table."""
    check_table(truth, "truth")
    frame = truth["frame"].to_numpy(dtype=np.int64)
    if frame.max(initial=-1) >= n:
        raise ValueError(f"truth: column 'frame' must be within 0..{n - 1}, got {frame.max()}")
    order = np.argsort(frame, kind="stable")
    rows = truth[["y", "x", "flux"]].to_numpy(dtype=np.float64)[order]
    return np.split(rows, np.searchsorted(frame[order], np.arange(1, n)))
