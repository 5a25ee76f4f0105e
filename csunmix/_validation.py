"""Checks of what users pass in: messages name the argument, what it was and what it must be."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def as_real(value: npt.ArrayLike, name: str) -> FloatArray:
    """Return `value` as a real floating array; float32 stays float32, all else becomes float64."""
    if np.ma.isMaskedArray(value) and np.ma.getmaskarray(value).any():
        raise TypeError(
            f"{name} is a masked array with masked entries; "
            "declare bad pixels with Sensor(bad_pixels=...) instead"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} cannot be made into an array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.dtype == np.float32:
        return array
    return array.astype(np.float64, copy=False)


def as_images(
    value: npt.ArrayLike,
    name: str = "images",
    *,
    shape: tuple[int, int] | None = None,
    finite: bool = True,
) -> FloatArray:
    """Return `value` as real images ``(..., y, x)``, checked to be non-empty and finite.

    Parameters
    ----------
    value : array_like
        What the caller passed.
    name : str
        The name of the argument, for the message.
    shape : tuple of int, optional
        The image shape ``(n_y, n_x)`` that the last two axes must have.
    finite : bool
        Whether NaN and infinite values are refused.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If there are fewer than two axes, an axis of an image is empty, the shape differs from
        `shape`, or a value is not finite.
    """
    array = as_real(value, name)
    if array.ndim < 2:
        raise ValueError(
            f"{name} must have at least two axes (..., y, x), got an array of shape {array.shape}"
        )
    if 0 in array.shape:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if shape is not None and array.shape[-2:] != tuple(shape):
        raise ValueError(
            f"{name} must end in the image shape {tuple(shape)}, got shape {array.shape}"
        )
    if finite and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        where = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{name} must be finite, got {len(bad)} NaN or infinite value(s), "
            f"the first at index {where}"
        )
    return array


def as_number(
    value: Any,
    name: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
) -> float:
    """Return `value` as a finite float, at least `minimum` or strictly above `above`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, got {value!r}")
    if above is not None and number <= above:
        raise ValueError(f"{name} must be above {above:g}, got {value!r}")
    return number


def as_integer(value: Any, name: str, *, minimum: int | None = None) -> int:
    """Return `value` as an int, at least `minimum`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return int(value)


def as_shape(value: Any, name: str = "shape") -> tuple[int, int]:
    """Return `value` as an image shape ``(n_y, n_x)`` of two positive integers."""
    try:
        sizes = tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a pair (n_y, n_x), got {value!r}") from None
    if len(sizes) != 2:
        raise ValueError(f"{name} must be a pair (n_y, n_x), got {value!r}")
    return (
        as_integer(sizes[0], f"{name}[0]", minimum=1),
        as_integer(sizes[1], f"{name}[1]", minimum=1),
    )


def as_range(value: Any, name: str, *, minimum: float) -> tuple[float, float]:
    """Return `value` as an interval ``(low, high)`` with ``minimum <= low <= high``."""
    try:
        low, high = value
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (low, high), got {value!r}") from None
    low = as_number(low, f"{name}[0]", minimum=minimum)
    high = as_number(high, f"{name}[1]", minimum=minimum)
    if high < low:
        raise ValueError(f"{name} must be ordered (low, high), got {value!r}")
    return low, high
