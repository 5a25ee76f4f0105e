"""The target table: one row a target, the one form in which every method answers.

A target table is a `pandas.DataFrame` with the columns of `COLUMNS`. What belongs to the whole
run stands in ``df.attrs``: ``n_frames`` (frames without targets count too), ``frame_flags``
(a dict from frame to `Flag` value, flagged frames only) and how the table was made.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from csunmix._validation import as_integer, as_number, as_real
from csunmix.grid import SubpixelGrid

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("frame", "y", "x", "flux", "y_err", "x_err", "flux_err", "score", "flags")


class Flag(enum.IntFlag):
    """What a user should know of a target or a frame; the values are bits and add up."""

    SATURATED = 1
    """The image has saturated pixels."""
    BORDER = 2
    """The target lies in the outermost ring of pixels."""
    COUNT_AMBIGUOUS = 4
    """Another number of targets explains the image about as well."""
    NOT_CONVERGED = 8
    """The solver stopped before its tolerance was reached."""
    NOT_FINITE = 16
    """The image has NaN or infinite pixels and was not unmixed."""
    NO_TARGET = 32
    """No target was found in the image."""
    BAD_PIXELS = 64
    """The image has pixels that the sensor declares bad."""


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
        Index of the image that each target is in.
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
        If an unknown column is given.
    ValueError
        If the columns differ in length.
    """
    import pandas as pd

    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise TypeError(f"unknown column(s) {sorted(unknown)}; the table has {list(COLUMNS)}")
    frame = np.atleast_1d(np.asarray(frame)).astype(np.int64)
    given = {"y": y, "x": x, "flux": flux, **columns}
    data: dict[str, npt.NDArray[Any]] = {"frame": frame}
    for name in COLUMNS[1:-1]:
        values = np.atleast_1d(np.asarray(given.get(name, np.nan), dtype=np.float64))
        data[name] = values if name in given else np.broadcast_to(values, frame.shape).copy()
    flags = np.asarray(given.get("flags", 0), dtype=np.int64)
    data["flags"] = np.broadcast_to(flags, frame.shape).copy()
    for name, values in data.items():
        if values.shape != frame.shape:
            raise ValueError(f"{name} must have shape {frame.shape}, got {values.shape}")
    table = pd.DataFrame(data, columns=list(COLUMNS))
    table.attrs.update(attrs or {})
    if n_frames is None:
        n_frames = int(frame.max()) + 1 if frame.size else 0
    table.attrs["n_frames"] = n_frames
    table.attrs["frame_flags"] = {int(k): int(v) for k, v in (frame_flags or {}).items()}
    return table


def check_table(table: pd.DataFrame, name: str = "targets") -> pd.DataFrame:
    """Return `table` after checking that it has finite ``frame, y, x, flux``.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame.
    ValueError
        If a column is missing, not numeric, or not finite; the message names column and row.
    """
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a pandas.DataFrame, got {type(table).__name__}")
    missing = [column for column in ("frame", "y", "x", "flux") if column not in table.columns]
    if missing:
        raise ValueError(f"{name} lacks the column(s) {missing}; it has {list(table.columns)}")
    for column in ("frame", "y", "x", "flux"):
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            value = table[column].iloc[int(bad[0])]
            raise ValueError(
                f"{name}: column {column!r} must be finite numbers, row {int(bad[0])} has {value!r}"
            )
    return table


def n_frames(table: pd.DataFrame) -> int:
    """Number of images that `table` speaks of, those without targets included where known."""
    known = int(table.attrs.get("n_frames", 0))
    return max(known, int(table["frame"].max()) + 1 if len(table) else 0)


def read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a target table that `write_csv` or the command line wrote.

    Columns beyond `COLUMNS` (such as ``image``) are kept; ``y_err, x_err, flux_err, score,
    flags`` may be absent.

    Raises
    ------
    ValueError
        If the file is not a CSV table or lacks ``frame, y, x, flux``; the message names the file.
    """
    import pandas as pd

    try:
        raw = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)}: not a CSV table: {str(error).strip()}") from None
    check_table(raw, os.fspath(path))
    given = {name: raw[name].to_numpy() for name in COLUMNS if name in raw.columns}
    table = make_table(**given)
    for name in raw.columns:
        if name not in COLUMNS:
            table[name] = raw[name].to_numpy()
    return table


def write_csv(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a target table as CSV; positions and fluxes keep every digit."""
    check_table(table).to_csv(path, index=False)


def from_grid(
    maps: npt.ArrayLike,
    *,
    factor: int,
    threshold: float,
    shape: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """Read the sub-pixel maps of a network: every cell at or above `threshold` is a target.

    This is the published protocol of CSIST-100K (threshold 50) and SeqCSIST (70). Cell ``(i, j)``
    lies at row ``(i - (c - 1)/2)/c`` and column ``(j - (c - 1)/2)/c``, ``c = factor``; its
    value is the flux.

    Parameters
    ----------
    maps : array_like, shape (n, m_y * m_x), (n, m_y, m_x) or (m_y, m_x)
        Network output, row-major, ``m = factor * n_pixels`` along each axis.
    factor : int
        Cells per pixel along each axis.
    threshold : float
        Smallest value that counts as a target, DN.
    shape : tuple of int, optional
        Image shape ``(n_y, n_x)``; square images by default where the maps are flat.

    Returns
    -------
    pandas.DataFrame
        Target table, ordered by frame and then by cell.

    Raises
    ------
    ValueError
        If the maps do not fit `factor` and `shape`, or hold NaN or infinite values.
    """
    factor = as_integer(factor, "factor", minimum=1)
    threshold = as_number(threshold, "threshold")
    array = as_real(maps, "maps")
    if not np.isfinite(array).all():
        raise ValueError("maps must be finite, got NaN or infinite values")
    if shape is None:
        side = round(array.shape[-1] ** 0.5) if array.ndim and array.shape[-1] else 0
        flat_square = array.ndim == 2 and side**2 == array.shape[-1] and side % factor == 0
        sizes = (side, side) if flat_square else array.shape[-2:]
        shape = (sizes[0] // factor, sizes[1] // factor) if len(sizes) == 2 else (0, 0)
    m_y, m_x = shape[0] * factor, shape[1] * factor
    fits = array.ndim in (2, 3) and m_y * m_x > 0
    fits = fits and (array.shape[-2:] == (m_y, m_x) or array.shape[-1] == m_y * m_x)
    if not fits:
        raise ValueError(
            f"maps of shape {array.shape} do not fit factor {factor}: "
            "expected (n, m_y * m_x), (n, m_y, m_x) or (m_y, m_x) with m = factor * pixels"
        )
    stack = array.reshape(-1, m_y, m_x)
    frame, i, j = np.nonzero(stack >= threshold)
    y, x = SubpixelGrid(shape, factor).position(i, j)
    return make_table(frame, y, x, stack[frame, i, j], n_frames=len(stack))
