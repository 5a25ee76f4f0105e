"""From coefficient maps to targets: which cells are one target, where it is, how bright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from csunmix._validation import FloatArray, as_images, as_integer, as_number
from csunmix.grid import SubpixelGrid


class Candidates(NamedTuple):
    """Targets found in a stack of maps, ordered by frame.

    Attributes
    ----------
    frame : ndarray of int, shape (n,)
        Index of the map.
    y, x : ndarray, shape (n,)
        Position, px.
    flux : ndarray, shape (n,)
        Flux, DN.
    """

    frame: npt.NDArray[np.int64]
    y: FloatArray
    x: FloatArray
    flux: FloatArray


@runtime_checkable
class PeakRule(Protocol):
    """Anything that reads targets from flux maps; no inheritance needed."""

    def find(self, maps: npt.ArrayLike, grid: SubpixelGrid) -> Candidates:
        """Read the targets of flux maps (n, m_y, m_x) or (m_y, m_x)."""
        ...


@dataclass(frozen=True, kw_only=True)
class EveryCell:
    """Every cell at or above the threshold is a target: the published protocol.

    Parameters
    ----------
    threshold : float
        Smallest flux of a cell, DN (published: 50 for CSIST-100K, 70 for SeqCSIST).
    """

    threshold: float = 50.0

    def __post_init__(self) -> None:
        as_number(self.threshold, "threshold", above=0.0)

    def find(self, maps: npt.ArrayLike, grid: SubpixelGrid) -> Candidates:
        """Read the targets of flux maps (n, m_y, m_x) or (m_y, m_x)."""
        stack = _stack(maps, grid)
        return _at_cells(stack, stack >= self.threshold, grid)


@dataclass(frozen=True, kw_only=True)
class LocalMaxima:
    """Cells that no neighbour exceeds are targets, with the flux of that cell alone.

    On a plateau of equal cells the first in row-major order counts.

    Parameters
    ----------
    threshold : float
        Smallest flux of a cell, DN.
    size : int
        Neighbourhood, odd number of cells along each axis.
    """

    threshold: float = 50.0
    size: int = 3

    def __post_init__(self) -> None:
        as_number(self.threshold, "threshold", above=0.0)
        as_integer(self.size, "size", minimum=1)
        if self.size % 2 == 0:
            raise ValueError(f"size must be odd, got {self.size}")

    def find(self, maps: npt.ArrayLike, grid: SubpixelGrid) -> Candidates:
        """Read the targets of flux maps (n, m_y, m_x) or (m_y, m_x)."""
        stack = _stack(maps, grid)
        neighbours = np.ones((self.size, self.size), bool)
        earlier, later = neighbours.copy(), neighbours.copy()
        middle = self.size * self.size // 2
        earlier.ravel()[middle:] = False
        later.ravel()[: middle + 1] = False
        above_earlier = stack > _neighbour_max(stack, earlier)
        above_later = stack >= _neighbour_max(stack, later)
        return _at_cells(stack, above_earlier & above_later & (stack >= self.threshold), grid)


@dataclass(frozen=True, kw_only=True)
class MassMerging:
    r"""Neighbouring cells merge into one target at their flux-weighted centroid.

    An l1 solution puts a target that lies between cells on several of them. Starting from the
    non-zero cells, the closest pair is merged,

    .. math:: f = f_a + f_b, \qquad p = (f_a p_a + f_b p_b)/f,

    until all are further apart than `radius`; the result is off the grid.

    Parameters
    ----------
    radius : float
        Largest distance of two that merge, px.
    threshold : float
        Smallest flux of a merged target, DN.
    """

    radius: float = 0.25
    threshold: float = 50.0

    def __post_init__(self) -> None:
        as_number(self.radius, "radius", above=0.0)
        as_number(self.threshold, "threshold", above=0.0)

    def find(self, maps: npt.ArrayLike, grid: SubpixelGrid) -> Candidates:
        """Read the targets of flux maps (n, m_y, m_x) or (m_y, m_x)."""
        from csunmix._kernels.merging import merge_closest

        cells = _at_cells(*_positive(_stack(maps, grid)), grid)
        mass = np.column_stack([cells.y, cells.x, cells.flux])
        starts = np.flatnonzero(np.diff(cells.frame, prepend=-1, append=-1))
        if cells.frame.size:
            merge_closest(mass, starts, self.radius)
        keep = mass[:, 2] >= self.threshold
        y, x, flux = mass[keep].T
        return Candidates(cells.frame[keep], y, x, flux)


def _stack(maps: npt.ArrayLike, grid: SubpixelGrid) -> FloatArray:
    stack = as_images(maps, "maps", shape=grid.map_shape)
    return stack.reshape(-1, *grid.map_shape)


def _positive(stack: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    return stack, stack > 0


def _neighbour_max(stack: FloatArray, neighbours: npt.NDArray[np.bool_]) -> FloatArray:
    if not neighbours.any():
        return np.full_like(stack, -np.inf)
    return np.asarray(
        ndimage.maximum_filter(stack, footprint=neighbours[None], mode="constant", cval=-np.inf)
    )


def _at_cells(stack: FloatArray, chosen: npt.NDArray[np.bool_], grid: SubpixelGrid) -> Candidates:
    frame, i, j = np.nonzero(chosen)
    y, x = grid.position(i, j)
    return Candidates(frame, y, x, stack[frame, i, j].astype(np.float64))
