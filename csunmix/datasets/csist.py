"""CSIST-100K on disk: single 8-bit images with annotated targets (DISTA-Net, ICCV 2025)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy.typing as npt

from csunmix.datasets._layout import Dataset, Layout

if TYPE_CHECKING:
    import pandas as pd

_LAYOUT = Layout(images="cso_img", annotations="Annotations")


def read_csist(
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    one_based: bool = False,
    progress: bool = False,
) -> Dataset:
    """Read a data set in the layout of CSIST-100K.

    Images are ``<folder>[/<split>]/cso_img/image_K.png``, annotations ``Annotations/CSOK.xml``
    or ``COSK.xml`` beside them; other files are ignored. Images without annotations are read by
    `csunmix.io.read_images`.

    Parameters
    ----------
    folder : path-like
        Folder of the data set.
    split : str, optional
        Its subfolder, such as ``"test"``.
    one_based : bool
        Whether the annotations count pixels from 1 (made in MATLAB).
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    Dataset
        Images in the order of their numbers, and the truth.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If there are no images, an image lacks its annotation or an annotation its image, two
        files have one number, images differ in shape or are not 8-bit grey, or a file cannot be
        read; the message names the file.
    """
    return _LAYOUT.read(folder, split=split, one_based=one_based, progress=progress)


def write_csist(
    folder: str | os.PathLike[str],
    images: npt.ArrayLike,
    truth: pd.DataFrame,
    *,
    split: str | None = None,
    prefix: str = "CSO",
    sigma: float | None = None,
    start: int = 0,
    one_based: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Write a data set in the layout of CSIST-100K.

    All arguments are checked before the first file is written, and each file is written whole.

    Parameters
    ----------
    folder : path-like
        Folder of the data set; made where it does not exist.
    images : array_like, shape (n, n_y, n_x)
        Integers within 0..255, DN.
    truth : pandas.DataFrame
        Target table; ``frame`` is the index in `images`. Frames may have no target.
    split : str, optional
        Subfolder to write to, such as ``"test"``.
    prefix : {"CSO", "COS"}
        What stands before the number in the names of annotations.
    sigma : float, optional
        Width of the PSF, px, noted in the annotations.
    start : int
        Number of the first image.
    one_based : bool
        Whether the annotations count pixels from 1.
    overwrite : bool
        Whether to replace a data set that is there: its images and annotations are overwritten
        or removed.
    progress : bool
        Whether to show a progress bar.

    Raises
    ------
    TypeError
        If `images` does not hold real numbers or `truth` is not a DataFrame.
    ValueError
        If an image value is not an integer within 0..255, `truth` names a frame that is not
        there, an argument is out of range, or the folder has a data set already.
    """
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
