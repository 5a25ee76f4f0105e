"""From coefficient maps to targets: which cells are one target, where it is, how bright."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from csunmix._validation import FloatArray, as_images, as_integer, as_number, as_sparse_images
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
    """Anything that reads targets from flux maps; no inheritance needed.

    A rule whose attribute `accepts_sparse` is true takes maps as a `scipy.sparse.coo_array`, too,
    and is given them so by `GridUnmixer` where the solver's answer is sparse. A subclass inherits
    it: one whose `find` takes arrays alone sets it to False.
    """

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
    min_share : float
        Smallest flux as a share of the image's brightest target; 0 for no such limit.
    """

    threshold: float = 50.0
    min_share: float = 0.0
    accepts_sparse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_limits(self.threshold, self.min_share)

    def find(self, maps: npt.ArrayLike | coo_array, grid: SubpixelGrid) -> Candidates:
        """Read the targets of flux maps (n, m_y, m_x) or (m_y, m_x), dense or sparse."""
        cells = _cells_above(maps, self.threshold, grid)[0]
        return _bright(cells, self.threshold, self.min_share)


@dataclass(frozen=True, kw_only=True)
class LocalMaxima:
    """Cells that no neighbour exceeds are targets, with the flux of that cell alone.

    Such cells in each other's neighbourhood are equal; directly or through others they are one
    target, at the first of them in row-major order.

    Parameters
    ----------
    threshold : float
        Smallest flux of a cell, DN.
    size : int
        Neighbourhood, odd number of cells along each axis.
    min_share : float
        Smallest flux as a share of the image's brightest target; 0 for no such limit.
    """

    threshold: float = 50.0
    size: int = 3
    min_share: float = 0.0

    def __post_init__(self) -> None:
        _check_limits(self.threshold, self.min_share)
        as_integer(self.size, "size", minimum=1)
        if self.size % 2 == 0:
            raise ValueError(f"size must be odd, got {self.size}")

    def find(self, maps: npt.ArrayLike, grid: SubpixelGrid) -> Candidates:
        """Read the targets of flux maps (n, m_y, m_x) or (m_y, m_x)."""
        stack = _stack(maps, grid)
        largest = ndimage.maximum_filter(
            stack, size=(1, self.size, self.size), mode="constant", cval=-np.inf
        )
        maxima = (stack == largest) & (stack >= self.threshold)
        maxima[maxima] = _first_of_plateaus(np.argwhere(maxima), self.size // 2)
        return _bright(_at_cells(stack, maxima, grid), self.threshold, self.min_share)


@dataclass(frozen=True, kw_only=True)
class MassMerging:
    r"""Neighbouring cells merge into one target at their flux-weighted centroid.

    An l1 solution puts a target that lies between cells on several of them. Starting from the
    non-zero cells, the closest pair is merged,

    .. math:: f = f_a + f_b, \qquad p = (f_a p_a + f_b p_b)/f,

    until all are further apart than `radius`; the result is off the grid. Of equally close pairs,
    which a grid has many of, the one merges first whose brighter cell moves least.

    Parameters
    ----------
    radius : float
        Largest distance of two that merge, px.
    threshold : float
        Smallest flux of a merged target, DN.
    min_share : float
        Smallest flux as a share of the image's brightest target; 0 for no such limit.
    """

    radius: float = 0.25
    threshold: float = 50.0
    min_share: float = 0.0
    accepts_sparse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        as_number(self.radius, "radius", above=0.0)
        _check_limits(self.threshold, self.min_share)

    def find(self, maps: npt.ArrayLike | coo_array, grid: SubpixelGrid) -> Candidates:
        """Read the targets of flux maps (n, m_y, m_x) or (m_y, m_x), dense or sparse."""
        from csunmix._kernels.merging import merge_closest

        cells, starts = _cells_above(maps, np.finfo(np.float64).tiny, grid)
        mass = np.column_stack([cells.y, cells.x, cells.flux])
        merge_closest(mass, starts, self.radius)
        y, x, flux = mass.T
        return _bright(Candidates(cells.frame, y, x, flux), self.threshold, self.min_share)


def _check_limits(threshold: float, min_share: float) -> None:
    as_number(threshold, "threshold", above=0.0)
    if as_number(min_share, "min_share", minimum=0.0) > 1:
        raise ValueError(f"min_share must be at most 1, got {min_share!r}")


def _bright(found: Candidates, threshold: float, min_share: float) -> Candidates:
    """Those that reach the threshold and their share of the brightest of their frame."""
    brightest = np.zeros(found.frame.max(initial=-1) + 1)
    np.maximum.at(brightest, found.frame, found.flux)
    keep = (found.flux >= threshold) & (found.flux >= min_share * brightest[found.frame])
    return Candidates(found.frame[keep], found.y[keep], found.x[keep], found.flux[keep])


class _Listed(NamedTuple):
    """Cells of a stack of maps, in row-major order."""

    number: npt.NDArray[np.int64]  # in each map
    cells: npt.NDArray[np.int64]  # which, from 0 in each map
    flux: FloatArray


def _stack(maps: npt.ArrayLike, grid: SubpixelGrid) -> FloatArray:
    stack = as_images(maps, "maps", shape=grid.map_shape)
    return stack.reshape(-1, *grid.map_shape)


def _first_of_plateaus(cells: npt.NDArray[np.int64], reach: int) -> npt.NDArray[np.bool_]:
    """Whether a cell (frame, i, j) is the first of those tied by steps of at most `reach`."""
    apart = cells * (reach + 1, 1, 1)  # frames are out of each other's reach
    pairs = KDTree(apart).query_pairs(reach, p=np.inf, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(len(cells), len(cells)))
    first = np.zeros(len(cells), bool)
    first[np.unique(connected_components(graph)[1], return_index=True)[1]] = True
    return first


def _cells_above(
    maps: npt.ArrayLike | coo_array, least: float, grid: SubpixelGrid
) -> tuple[Candidates, npt.NDArray[np.int64]]:
    """Every cell of at least `least` (DN), and where the cells of each map start among them."""
    if isinstance(maps, coo_array):
        number, cells, flux = _listed_sparse(maps, least, grid)
    else:
        number, cells, flux = _listed(maps, least, grid)
    frame = np.repeat(np.arange(len(number)), number)
    y, x = grid.position(*np.divmod(cells, grid.map_shape[1]))
    starts = np.concatenate([[0], np.cumsum(number)])
    return Candidates(frame, y, x, flux.astype(np.float64)), starts


def _listed(maps: npt.ArrayLike, least: float, grid: SubpixelGrid) -> _Listed:
    from csunmix._kernels.merging import count_cells, list_cells

    maps = as_images(maps, "maps", shape=grid.map_shape, finite=False)
    stack = np.require(maps.reshape(-1, math.prod(grid.map_shape)), None, ["C", "W"])
    number = np.empty(len(stack), np.int64)
    if not count_cells(stack, least, number):
        as_images(maps, "maps")  # says where it is not finite
    cells = np.empty(number.sum(), np.int64)
    list_cells(stack, least, number, cells)
    return _Listed(number, cells, stack[np.repeat(np.arange(len(stack)), number), cells])


def _listed_sparse(maps: coo_array, least: float, grid: SubpixelGrid) -> _Listed:
    flux = as_sparse_images(maps, "maps", shape=grid.map_shape).data
    place = np.ravel_multi_index(maps.coords, maps.shape)
    if (place[1:] <= place[:-1]).any():
        place, same = np.unique(place, return_inverse=True)
        flux = np.bincount(same, flux, len(place)).astype(flux.dtype)
    if not np.isfinite(flux).all():
        index = np.unravel_index(place[~np.isfinite(flux)][0], maps.shape)
        first = tuple(int(i) for i in index)
        raise ValueError(f"maps must be finite, the first that is not is at index {first}")
    bright = flux >= least
    frame, cells = np.divmod(place[bright], math.prod(grid.map_shape))
    number = np.bincount(frame, minlength=math.prod(maps.shape[:-2]))
    return _Listed(number, cells, flux[bright])


def _at_cells(stack: FloatArray, chosen: npt.NDArray[np.bool_], grid: SubpixelGrid) -> Candidates:
    frame, i, j = np.nonzero(chosen)
    y, x = grid.position(i, j)
    return Candidates(frame, y, x, stack[frame, i, j].astype(np.float64))
