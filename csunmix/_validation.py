"""Checks of what users pass in: messages name the argument, what it was and what it must be."""

from __future__ import annotations

import numbers
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_T = TypeVar("_T")

_COLOURS = (3, 4)  # RGB and RGBA
LARGEST = 1e40  # of a pixel, beyond what single precision holds


def as_real(value: npt.ArrayLike, name: str, *, kinds: str = "biuf") -> FloatArray:
    """Return `value` as a real floating array in native byte order: float32, or else float64.

    `kinds` are the kinds of dtype that count as real numbers.
    """
    if np.ma.isMaskedArray(value) and np.ma.getmaskarray(value).any():
        raise TypeError(
            f"{name} is a masked array with masked entries; "
            "declare bad pixels with Sensor(bad_pixels=...) instead"
        )
    if hasattr(value, "toarray"):
        raise TypeError(f"{name} is a sparse array; give {name}.toarray()")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} cannot be made into an array: {error}") from None
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    single = array.dtype.newbyteorder("=") == np.float32
    with np.errstate(over="ignore"):  # a long double beyond float64 becomes infinite
        return array.astype(np.float32 if single else np.float64, copy=False)


def as_finite(value: npt.ArrayLike, name: str) -> FloatArray:
    """Return `value` as a real floating array (see `as_real`) without NaN and infinite values."""
    array = as_real(value, name)
    _require_finite(array, name)
    return array


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
        If the values are not real numbers. Bools are none: an image of them is a mask that was
        handed in by mistake.
    ValueError
        If there are fewer than two axes, an axis of an image is empty, the shape differs from
        `shape`, or a value is not finite.
    """
    array = as_real(value, name, kinds="iuf")
    _require_images(array.shape, name, shape)
    if finite:
        _require_finite(array, name)
    return array


def as_sparse_images(value: Any, name: str, *, shape: tuple[int, int]) -> Any:
    """Return a `scipy.sparse.coo_array` of images as real ones after the checks of `as_images`.

    Whether they are finite is not among these.
    """
    data = as_real(value.data, name, kinds="iuf")
    _require_images(value.shape, name, shape)
    return value if data is value.data else type(value)((data, value.coords), shape=value.shape)


def usable(images: FloatArray) -> BoolArray:
    """Whether all pixels of images (..., n_y, n_x) are numbers that can be squared and summed."""
    largest = np.abs(images).max(axis=(-2, -1))
    return np.asarray(largest.astype(np.float64) < LARGEST)


def refuse_colours(shape: tuple[int, ...], name: str = "images") -> None:
    """Raise ValueError where an array ``(..., n, y, x)`` of images is by its shape a coloured one.

    Three or four columns beside more rows and more images are red, green, blue and opacity.
    """
    if len(shape) > 2 and shape[-1] in _COLOURS and min(shape[-3:-1]) > max(_COLOURS):
        raise ValueError(
            f"{name} must end in (n_y, n_x), got shape {shape}: are these colours? give one of "
            "them; images so narrow have the shape (n, 1, n_y, n_x)"
        )


def as_number(
    value: Any,
    name: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
) -> float:
    """Return `value` as a finite float, at least `minimum` or strictly above `above`."""
    value = _unwrapped(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum:g}, got {value!r}")
    if above is not None and number <= above:
        raise ValueError(f"{name} must be above {above:g}, got {value!r}")
    return number


def as_integer(value: Any, name: str, *, minimum: int | None = None) -> int:
    """Return `value` as an int, at least `minimum`."""
    value = _unwrapped(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return int(value)


def as_bool(value: Any, name: str) -> bool:
    """Return `value` as a bool; nothing else passes for one."""
    value = _unwrapped(value)
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def as_rng(value: np.random.Generator | int, name: str = "rng") -> np.random.Generator:
    """Return `value`, or a new generator with `value` for its seed."""
    if isinstance(value, np.random.Generator):
        return value
    try:
        return np.random.default_rng(as_integer(value, name, minimum=0))
    except TypeError:
        wanted = "a numpy.random.Generator or an integer"
        raise TypeError(f"{name} must be {wanted}, got {value!r}") from None


def as_weights(
    value: npt.ArrayLike | None, shape: tuple[int, ...], name: str = "weights"
) -> FloatArray:
    """Return `value` as finite weights, at least 0, broadcast to `shape`; None is 1."""
    weights = as_finite(1.0 if value is None else value, name)
    if (weights < 0).any():
        raise ValueError(f"{name} must not be negative, got {weights.min():g}")
    return _broadcast(weights, shape, name)


def as_mask(value: npt.ArrayLike | None, shape: tuple[int, ...], name: str) -> BoolArray:
    """Return `value` as an array of bool, broadcast to `shape`; None is False."""
    mask = np.asarray(False if value is None else value)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must be an array of bool, got dtype {mask.dtype}")
    return _broadcast(mask, shape, name)


def as_instance(value: _T, kind: type, name: str) -> _T:
    """Return `value` after checking that it is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value


def as_shape(value: Any, name: str = "shape") -> tuple[int, int]:
    """Return `value` as an image shape ``(n_y, n_x)`` of two positive integers."""
    sizes = _as_pair(value, name, "(n_y, n_x)")
    n_y, n_x = (as_integer(size, f"{name}[{k}]", minimum=1) for k, size in enumerate(sizes))
    return n_y, n_x


def as_range(value: Any, name: str, *, minimum: float) -> tuple[float, float]:
    """Return `value` as an interval ``(low, high)`` with ``minimum <= low <= high``."""
    ends = _as_pair(value, name, "(low, high)")
    low, high = (as_number(end, f"{name}[{k}]", minimum=minimum) for k, end in enumerate(ends))
    if high < low:
        raise ValueError(f"{name} must be ordered (low, high), got {value!r}")
    return low, high


def _require_images(found: tuple[int, ...], name: str, shape: tuple[int, int] | None) -> None:
    """Refuse a shape that is none of images, or of others than `shape`."""
    if len(found) < 2:
        raise ValueError(
            f"{name} must have at least two axes (..., y, x), got an array of shape {found}"
        )
    if 0 in found:
        raise ValueError(f"{name} must not be empty, got shape {found}")
    if shape is not None and found[-2:] != tuple(shape):
        raise ValueError(f"{name} must end in the image shape {tuple(shape)}, got shape {found}")


def _require_finite(array: FloatArray, name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.argwhere(~finite)
        where = f", the first at index {tuple(bad[0].tolist())}" if array.ndim else ""
        raise ValueError(f"{name} must be finite, got {len(bad)} NaN or infinite value(s){where}")


def _broadcast(array: Array, shape: tuple[int, ...], name: str) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} does not fit {shape}") from None


def _unwrapped(value: Any) -> Any:
    """The number in an array without axes, as `numpy.load` returns one; all else as it is."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _as_pair(value: Any, name: str, form: str) -> tuple[Any, Any]:
    try:
        pair = tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a pair {form}, got {value!r}") from None
    if len(pair) != 2:
        raise ValueError(f"{name} must be a pair {form}, got {value!r}")
    return pair
