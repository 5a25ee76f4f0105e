"""Background and noise of images, estimated from the images themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csunmix._validation import FloatArray, as_images

_MAD_TO_SIGMA = 1.4826


def border_level(images: npt.ArrayLike) -> FloatArray:
    """Constant background of each image: the median of its outermost ring of pixels, DN.

    Parameters
    ----------
    images : array_like, shape (..., n_y, n_x)
        Images with the targets away from the border.

    Returns
    -------
    ndarray, shape (...)
    """
    images = as_images(images)
    ring = np.ones(images.shape[-2:], dtype=bool)
    ring[1:-1, 1:-1] = False
    return np.asarray(np.median(images[..., ring], axis=-1))


def noise_level(images: npt.ArrayLike) -> FloatArray:
    """Standard deviation of the noise of each image, DN.

    ``1.4826 median |d|`` of the diagonal details ``d`` of a Haar wavelet transform (Donoho &
    Johnstone 1994, Biometrika 81, 425), but at least ``1/sqrt(12)`` DN where all values are
    integers, the error of their rounding.

    Parameters
    ----------
    images : array_like, shape (..., n_y, n_x)
        Images, at least 2 x 2 pixels; the last row or column of an odd number is left out.

    Returns
    -------
    ndarray, shape (...)

    Raises
    ------
    ValueError
        If the images have less than 2 x 2 pixels.
    """
    import pywt

    images = as_images(images)
    n_y, n_x = images.shape[-2:]
    if min(n_y, n_x) < 2:
        raise ValueError(f"images must have at least 2 x 2 pixels, got shape {images.shape}")
    # Filling an odd number up would repeat pixels, whose details are zero without any noise.
    even = images[..., : n_y - n_y % 2, : n_x - n_x % 2]
    detail = pywt.dwt2(even, "haar", axes=(-2, -1))[1][2]
    sigma = _MAD_TO_SIGMA * np.median(np.abs(detail), axis=(-2, -1))
    rounded = (images == np.rint(images)).all(axis=(-2, -1))
    return np.asarray(np.maximum(sigma, np.where(rounded, np.sqrt(1.0 / 12.0), 0.0)))
