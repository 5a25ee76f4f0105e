"""SeqCSIST on disk: tracks of consecutive 8-bit frames with annotated targets (TGRS 2025)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from csunmix._validation import as_integer
from csunmix.datasets._layout import Dataset, Layout, image_number

if TYPE_CHECKING:
    import pandas as pd

_LAYOUT = Layout(images="image", annotations="annotation")


@dataclass(frozen=True, eq=False)
class SequenceDataset(Dataset):
    """Frames of many tracks, one track after the other, and the targets in them.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, n_y, n_x)
        The frames, DN; ``images.reshape(-1, frames_per_track, n_y, n_x)`` are the tracks.
    truth : pandas.DataFrame
        Target table with a further column ``track = frame // frames_per_track``.
    names : tuple of str
        File name of each frame.
    frames_per_track : int
        Frames of a track.
    """

    frames_per_track: int


def read_seq_csist(
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    frames_per_track: int = 20,
    one_based: bool = False,
    progress: bool = False,
) -> SequenceDataset:
    """Read a data set in the layout of SeqCSIST.

    Frames are ``<folder>[/<split>]/image/image_K.png``, annotations ``annotation/COSK.xml`` or
    ``CSOK.xml`` beside them; other files are ignored. The frames of a track have consecutive
    numbers.

    Parameters
    ----------
    folder : path-like
        Folder of the data set.
    split : str, optional
        Its subfolder, such as ``"test"``.
    frames_per_track : int
        Frames of a track.
    one_based : bool
        Whether the annotations count pixels from 1 (made in MATLAB).
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    SequenceDataset
        Frames in the order of their numbers, and the truth.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        As `read_csist`; and if the number of frames is not a multiple of `frames_per_track`, or
        a frame is missing inside a track.
    """
    size = as_integer(frames_per_track, "frames_per_track", minimum=1)
    data = _LAYOUT.read(folder, split=split, one_based=one_based, progress=progress)
    source = data.truth.attrs["source"]
    _check_multiple(len(data.names), size, source)
    number = np.array([image_number(name) for name in data.names]).reshape(-1, size)
    gap = np.argwhere(np.diff(number, axis=1) != 1)
    if len(gap):
        track, i = (int(index) for index in gap[0])
        raise ValueError(
            f"{source}: image_{number[track, i] + 1}.png is missing in track {track}; "
            f"the {size} frames of a track must have consecutive numbers"
        )
    data.truth["track"] = data.truth["frame"] // size
    return SequenceDataset(data.images, data.truth, data.names, size)


def write_seq_csist(
    folder: str | os.PathLike[str],
    images: npt.ArrayLike,
    truth: pd.DataFrame,
    *,
    frames_per_track: int = 20,
    split: str | None = None,
    prefix: str = "COS",
    sigma: float | None = None,
    start: int = 0,
    one_based: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Write a data set in the layout of SeqCSIST.

    Parameters
    ----------
    folder : path-like
        Folder of the data set; made where it does not exist.
    images : array_like, shape (n_tracks * frames_per_track, n_y, n_x)
        Integers within 0..255, DN, one track after the other.
    truth : pandas.DataFrame
        Target table; ``frame`` is the index in `images`.
    frames_per_track : int
        Frames of a track.
    split, prefix, sigma, start, one_based, overwrite, progress
        As in `write_csist`.

    Raises
    ------
    TypeError, ValueError
        As `write_csist`; and if the number of images is not a multiple of `frames_per_track`.
    """
    size = as_integer(frames_per_track, "frames_per_track", minimum=1)
    images = np.asarray(images)
    _check_multiple(len(images) if images.ndim else 0, size, "images")
    _LAYOUT.write(
        folder,
        images,
        truth,
        split=split,
        prefix=prefix,
        sigma=sigma,
        start=start,
        one_based=one_based,
        overwrite=overwrite,
        progress=progress,
    )


def _check_multiple(n: int, frames_per_track: int, name: str) -> None:
    if n % frames_per_track:
        raise ValueError(
            f"{name}: the number of frames must be a multiple of "
            f"frames_per_track={frames_per_track}, got {n}"
        )
