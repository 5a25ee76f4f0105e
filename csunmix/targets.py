"""The target table: one row a target, the one form in which every method answers.

A target table is a `pandas.DataFrame` with the columns of `COLUMNS`. What belongs to the whole
run stands in ``df.attrs``: ``n_frames`` (frames without targets count too), ``frame_flags``
(a dict from frame to `Flag` value, flagged frames only) and how the table was made.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csunmix._validation import (
    BoolArray,
    FloatArray,
    IntArray,
    as_finite,
    as_integer,
    as_number,
    as_real,
    as_shape,
)
from csunmix.grid import SubpixelGrid

if TYPE_CHECKING:
    import pandas as pd

    from csunmix.peaks import PeakRule

COLUMNS = ("frame", "y", "x", "flux", "y_err", "x_err", "flux_err", "score", "flags")
REQUIRED = COLUMNS[:4]
_WHOLE = ("frame", "flags")


class Flag(enum.IntFlag):
    """What a user should know of a target or a frame; the values are bits and add up.

    ``(table["flags"] & Flag.SATURATED) != 0`` tells the targets that have a flag.

    Attributes
    ----------
    SATURATED : 1
        The image has saturated pixels.
    BORDER : 2
        The target lies in the outermost ring of pixels.
    COUNT_AMBIGUOUS : 4
        Another number of targets explains the image about as well.
    NOT_CONVERGED : 8
        The solver stopped early, the grid's target was kept, or draws are apart or too few.
    NOT_FINITE : 16
        The image has NaN or infinite pixels, or absurdly large ones, and was not unmixed.
    NO_TARGET : 32
        No target was found in the image.
    BAD_PIXELS : 64
        The image has pixels that the sensor declares bad.
    AT_BOUND : 128
        A place, flux or distance leans on a bound of the prior: its error is no normal one.
    FLAT : 256
        The image hardly tells a coordinate or the flux: what is said of it is the prior's.
    MISFIT : 512
        The targets leave more of the image than noise does: PSF, sensor or prior may be wrong.
    """

    __iter__ = None  # type: ignore[assignment]  # pandas takes what iterates for a list

    SATURATED = 1
    BORDER = 2
    COUNT_AMBIGUOUS = 4
    NOT_CONVERGED = 8
    NOT_FINITE = 16
    NO_TARGET = 32
    BAD_PIXELS = 64
    AT_BOUND = 128
    FLAT = 256
    MISFIT = 512


def make_table(
    frame: npt.ArrayLike,
    y: npt.ArrayLike,
    x: npt.ArrayLike,
    flux: npt.ArrayLike,
    *,
    n_frames: int | None = None,
    frame_flags: Mapping[int, int] | None = None,
    attrs: Mapping[str, Any] | None = None,
    **columns: npt.ArrayLike,
) -> pd.DataFrame:
    """Build a target table.

    Parameters
    ----------
    frame : array_like of int, shape (n,)
        Index of the image that each target is in. Here and below a single number stands for all
        rows.
    y, x : array_like, shape (n,)
        Position: row and column, px, integers at pixel centres.
    flux : array_like, shape (n,)
        Total energy of each target, DN.
    n_frames : int, optional
        Number of images, those without targets included; by default ``max(frame) + 1``.
    frame_flags : mapping, optional
        Flags of whole frames, `Flag` values by frame.
    attrs : mapping, optional
        How the table was made.
    **columns : array_like, shape (n,)
        ``y_err``, ``x_err``, ``flux_err``, ``score`` (NaN where absent) and ``flags`` (0).

    Returns
    -------
    pandas.DataFrame
        The target table, with the columns of `COLUMNS` in that order.

    Raises
    ------
    TypeError
        If an unknown column is given, or a column that does not hold real numbers.
    ValueError
        If the columns differ in length, a frame or a flag is not a whole number from 0, a
        position or flux is not finite, or `n_frames` does not reach the last frame.

    Examples
    --------
    >>> import csunmix as cu
    >>> table = cu.targets.make_table(frame=0, y=[4.8, 5.2], x=[5.0, 5.1], flux=[231.0, 244.0])
    >>> table[["frame", "y", "x", "flux"]]
       frame    y    x   flux
    0      0  4.8  5.0  231.0
    1      0  5.2  5.1  244.0
    """
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise TypeError(f"unknown column(s) {sorted(unknown)}; the table has {list(COLUMNS)}")
    given = {"frame": frame, "y": y, "x": x, "flux": flux, **columns}
    made: dict[Any, Any] = dict(attrs or {})
    table = _assemble(given, made.get("n_frames") if n_frames is None else n_frames)
    table.attrs = {**made, **table.attrs}
    table.attrs["frame_flags"] = {int(k): int(v) for k, v in (frame_flags or {}).items()}
    return table


def _assemble(given: Mapping[str, npt.ArrayLike], n_frames: int | None) -> pd.DataFrame:
    """Make a target table of the columns given, the absent ones filled up."""
    import pandas as pd

    arrays = {name: as_real(values, name) for name, values in given.items()}
    shape = next((array.shape for array in arrays.values() if array.ndim), (1,))
    data: dict[str, FloatArray | IntArray] = {}
    for name in COLUMNS:
        default = 0.0 if name == "flags" else np.nan
        column = arrays.get(name, np.array(default))
        if column.shape not in ((), shape) or len(shape) != 1:
            raise ValueError(f"{name} must have shape ({shape[0]},), got {column.shape}")
        values = np.broadcast_to(column, shape).astype(np.float64)
        wanted, good = _rule(name, values)
        if not good.all():
            k = int(np.argmin(good))
            raise ValueError(
                f"table: column {name!r} must be {wanted}, row {k} has {float(values[k])}"
            )
        data[name] = values.astype(np.int64) if name in _WHOLE else values
    table = pd.DataFrame(data, copy=False)  # the columns are its own, and stay apart
    last = int(table["frame"].max()) if len(table) else -1
    n_frames = last + 1 if n_frames is None else as_integer(n_frames, "n_frames", minimum=0)
    if n_frames <= last:
        raise ValueError(f"n_frames must be above the last frame, {last}, got {n_frames}")
    table.attrs = {"n_frames": n_frames, "frame_flags": {}}
    return table


def check_table(table: pd.DataFrame, name: str = "targets") -> pd.DataFrame:
    """Return `table` after checking what every user of a target table relies on.

    Positions and fluxes are finite, frames and flags are whole numbers from 0; ``flags`` and the
    other columns may be absent.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If ``frame``, ``y``, ``x`` or ``flux`` is missing, one of `COLUMNS` is there twice or not
        numeric, or a value is not what it must be; the message names the column and the row (by its
        index label).
    """
    checked_columns(table, name)
    return table


def checked_columns(
    table: pd.DataFrame, name: str, wanted: Collection[str] = COLUMNS
) -> dict[str, npt.NDArray[Any]]:
    """The `wanted` columns that `table` has, as they are, after the checks of `check_table`."""
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a pandas.DataFrame, got {type(table).__name__}")
    there = table.columns.to_flat_index()  # names of several levels become tuples
    missing = [column for column in REQUIRED if column not in there]
    if missing:
        raise ValueError(f"{name} lacks the column(s) {missing}; it has {list(there)}")
    if not there.is_unique:
        for column in (*REQUIRED, *wanted):
            if list(there).count(column) > 1:
                raise ValueError(f"{name} has the column {column!r} more than once")
    bare = table if _has_few_attributes(table) else pd.DataFrame(table)  # without any
    return {
        column: _check_column(bare[column], f"{name}: column {column!r}")
        for column in wanted
        if column in there
    }


def _has_few_attributes(table: pd.DataFrame) -> bool:
    """Whether pandas may copy them with each column: of all images, that takes long."""
    flags = table.attrs.get("frame_flags", {})
    few = table.attrs.keys() <= {"n_frames", "frame_flags"}
    return few and isinstance(flags, dict) and not flags


def _check_column(column: pd.Series[Any], name: str) -> npt.NDArray[Any]:
    import pandas as pd

    plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf"
    values: npt.NDArray[Any] = (
        column.to_numpy()
        if plain
        else np.asarray(
            pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        )
    )
    wanted, good = _rule(str(column.name), values)
    if not plain:  # what is no number became NaN
        good = good & (~np.isnan(values) | column.isna().to_numpy())
    if not good.all():
        k = int(np.argmin(good))
        where = f"{column.index.name or 'row'} {column.index[k]}"
        raise ValueError(f"{name} must be {wanted}, {where} has {column.iloc[k]}")
    if not plain and len(column) and not pd.api.types.is_numeric_dtype(column):
        raise ValueError(f"{name} must be {wanted}, got dtype {column.dtype}")
    return values


def _rule(column: str, values: npt.NDArray[Any]) -> tuple[str, BoolArray]:
    """What the values of a column must be, and which of them (n,) are."""
    if column in _WHOLE:
        good = (values >= 0) & (values < 2**53)  # beyond, not all of them are
        if values.dtype.kind not in "iu":
            good &= np.isfinite(values) & (values == np.floor(values))
        return "whole numbers from 0", good
    if column in REQUIRED:
        return "finite numbers", np.isfinite(values)
    return "numbers or NaN", np.ones(values.shape, np.bool_)


def n_frames(table: pd.DataFrame) -> int:
    """Number of images that `table` speaks of, those without targets included where known."""
    return n_frames_of(table, np.asarray(table["frame"]))


def n_frames_of(table: pd.DataFrame, frame: npt.NDArray[Any]) -> int:
    """`n_frames` of a table with this column of frames."""
    return max(int(table.attrs.get("n_frames", 0)), int(frame.max(initial=-1)) + 1)


def read_csv(path: str | os.PathLike[str], *, n_frames: int | None = None) -> pd.DataFrame:
    """Read a target table that `write_csv` or the command line wrote.

    Columns beyond `COLUMNS` (such as ``image``) are kept; ``y_err, x_err, flux_err, score,
    flags`` may be absent. A CSV file does not hold ``df.attrs``, and so not the number of images
    either: give `n_frames` where the last ones may have no targets.

    Parameters
    ----------
    path : path-like
        The CSV file.
    n_frames : int, optional
        Number of images, those without targets included; by default ``max(frame) + 1``.

    Returns
    -------
    pandas.DataFrame
        The target table.

    Raises
    ------
    OSError
        If the file cannot be opened.
    TypeError
        If `n_frames` is not an integer.
    ValueError
        If the file is not a CSV table, lacks ``frame, y, x, flux``, or holds a value that
        `make_table` would refuse (the message names the file, the column and the line), or
        `n_frames` does not reach the last frame.
    """
    import pandas as pd

    file = os.fspath(path)
    try:
        raw = pd.read_csv(
            path,
            dtype=dict.fromkeys((*COLUMNS, "image"), str),
            keep_default_na=False,  # an image may be called "NA"
            na_values=["", "nan", "NaN"],
            skip_blank_lines=False,  # so that rows count lines
            low_memory=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a CSV table: {str(error).strip()}") from None
    if not isinstance(raw.index, pd.RangeIndex):
        raise ValueError(f"{file}: not a CSV table: rows have more fields than the header")
    raw.index = pd.RangeIndex(2, len(raw) + 2, name="line")
    raw = raw.dropna(how="all")
    known = [name for name in COLUMNS if name in raw.columns]
    for name in known:
        with suppress(ValueError):  # the check below names what is not a number
            # Python's own conversion is exact; that of pandas is not in every version.
            raw[name] = raw[name].to_numpy(dtype=object).astype(np.float64)
    check_table(raw, file)
    table = _assemble({name: raw[name].to_numpy(dtype=np.float64) for name in known}, n_frames)
    for name in raw.columns.difference(list(COLUMNS), sort=False):
        table[name] = raw[name].to_numpy()
    return table


def write_csv(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a target table as CSV, whole or not at all; numbers keep every digit.

    Raises
    ------
    TypeError, ValueError
        If `table` is no target table, see `check_table`.
    """
    from csunmix.io import atomic_write

    check_table(table, "table")
    with atomic_write(path) as file:
        table.to_csv(file, index=False)


def from_grid(
    maps: npt.ArrayLike,
    *,
    factor: int,
    threshold: float | None = None,
    peaks: PeakRule | None = None,
    shape: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """Read the sub-pixel maps of a network: every cell at or above `threshold` is a target.

    This is the published protocol of CSIST-100K (threshold 50) and SeqCSIST (70). Cell ``(i, j)``
    lies at row ``(i - (c - 1)/2)/c`` and column ``(j - (c - 1)/2)/c``, ``c = factor``; its
    value is the flux.

    Parameters
    ----------
    maps : array_like, shape (n, m_y * m_x), (n, m_y, m_x), (n, 1, m_y, m_x) or (m_y, m_x)
        Network output, row-major, ``m = factor * n_pixels`` along each axis.
    factor : int
        Cells per pixel along each axis.
    threshold : float, optional
        Smallest value that counts as a target, DN. Either this or `peaks` must be given.
    peaks : PeakRule, optional
        Another rule that turns maps into targets.
    shape : tuple of int, optional
        Image shape ``(n_y, n_x)``. Without it, two axes are taken for flat maps of square images
        where the last one has such a length, else for one map.

    Returns
    -------
    pandas.DataFrame
        Target table, ordered by frame and then by cell.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or not one of `threshold` and `peaks` is given.
    ValueError
        If the maps do not fit `factor` and `shape`, can be read in two ways, are empty, or hold
        NaN or infinite values.

    Examples
    --------
    >>> import csunmix as cu
    >>> import numpy as np
    >>> maps = np.zeros((1, 33 * 33))  # what a network returns for one image at factor 3
    >>> maps[0, 33 * 16 + 18] = 231.0  # cell (16, 18)
    >>> cu.targets.from_grid(maps, factor=3, threshold=50)[["frame", "y", "x", "flux"]].round(3)
       frame    y      x   flux
    0      0  5.0  5.667  231.0
    """
    factor = as_integer(factor, "factor", minimum=1)
    if (threshold is None) == (peaks is None):
        raise TypeError("either threshold or peaks must be given, and not both")
    array = as_finite(maps, "maps")
    grid = _grid_of(array.shape, factor, None if shape is None else as_shape(shape))
    stack = array.reshape(-1, *grid.map_shape)
    if peaks is not None:
        return make_table(*peaks.find(stack, grid), n_frames=len(stack))
    frame, i, j = np.nonzero(stack >= as_number(threshold, "threshold"))
    y, x = grid.position(i, j)
    return make_table(frame, y, x, stack[frame, i, j], n_frames=len(stack))


def _grid_of(layout: tuple[int, ...], factor: int, shape: tuple[int, int] | None) -> SubpixelGrid:
    """Find the grid of maps in an array of shape `layout`, for images of `shape` where given."""
    given = layout
    if len(layout) == 4 and layout[1] == 1:  # one channel
        layout = (layout[0], *layout[2:])
    if len(layout) in (2, 3) and 0 not in layout:
        n_y, n_x = shape or (size // factor for size in _map_sizes(layout, factor))
        m_y, m_x = n_y * factor, n_x * factor
        flat = len(layout) == 2 and layout[1] == m_y * m_x
        if (flat or layout[-2:] == (m_y, m_x)) and m_y * m_x > 0:
            return SubpixelGrid((n_y, n_x), factor)
    images = "" if shape is None else f" and image shape {shape}"
    raise ValueError(
        f"maps of shape {given} do not fit factor {factor}{images}: expected "
        "(n, m_y * m_x), (n, m_y, m_x), (n, 1, m_y, m_x) or (m_y, m_x) with m = factor * pixels"
    )


def _map_sizes(layout: tuple[int, ...], factor: int) -> tuple[int, int]:
    """Cells along y and x, by the array's shape alone."""
    n, m = layout[-2:]
    side = math.isqrt(m)
    if len(layout) == 3 or side * side != m or side % factor:
        return n, m
    if n == m > 1:
        raise ValueError(
            f"maps of shape {layout} may be {n} flat maps of {side} x {side} cells or one map of "
            f"{n} x {m}; give shape, the image shape (n_y, n_x)"
        )
    return side, side
