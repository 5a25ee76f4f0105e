"""Separable products of banded matrices, row by row: O(cells times band), no room but for a row.

Indices are unsigned: a negative one would mean "from the end", and to ask for that at each number
costs more than the product itself.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from csunmix._validation import FloatArray, IntArray
from csunmix.band import Band

# Sums may be reordered, so that they are vectorised: the same on every call, with any threads.
REORDER = {"reassoc", "contract", "nsz"}


@numba.njit(cache=True, nogil=True)
def forward(band_y: Band, band_x: Band, maps: FloatArray, images: FloatArray) -> None:
    """``A_y X A_x^T`` of maps (b, k, l), written into images (b, p, q)."""
    row = np.empty(band_x.n, maps.dtype)
    start, stop = all_cells(maps.shape[1], maps.shape[2])
    for b in range(maps.shape[0]):
        forward_one(band_y, band_x, maps[b], start, stop, row, images[b])


@numba.njit(cache=True, nogil=True)
def adjoint(band_y: Band, band_x: Band, images: FloatArray, maps: FloatArray) -> None:
    """``A_y^T R A_x`` of images (b, p, q), written into maps (b, k, l)."""
    row = np.empty(band_x.n, images.dtype)
    for b in range(images.shape[0]):
        adjoint_one(band_y, band_x, images[b], row, maps[b])


@numba.njit(cache=True, nogil=True)
def all_cells(n_rows: int, n_cols: int) -> tuple[IntArray, IntArray]:
    """First cell of each row of a map, and the one behind the last: all of them."""
    return np.zeros(n_rows, np.int64), np.full(n_rows, n_cols)


@numba.njit(cache=True, nogil=True, fastmath=REORDER)
def forward_one(
    band_y: Band,
    band_x: Band,
    cells: FloatArray,
    start: IntArray,
    stop: IntArray,
    row: FloatArray,
    image: FloatArray,
) -> None:
    """``A_y X A_x^T`` of a map that is 0 but in cells ``start[i]`` to ``stop[i]`` of row i."""
    image[:] = 0
    for i in range(cells.shape[0]):
        empty = True
        for j in range(start[i], stop[i]):
            if cells[i, j] != 0:
                if empty:
                    row[:] = 0
                    empty = False
                q = np.uint64(band_x.first[j])
                for k in range(band_x.values.shape[1]):
                    row[q + np.uint64(k)] += cells[i, j] * band_x.values[j, k]
        if not empty:
            p = np.uint64(band_y.first[i])
            for k in range(band_y.values.shape[1]):
                for c in range(row.size):
                    image[p + np.uint64(k), c] += band_y.values[i, k] * row[c]


@numba.njit(cache=True, nogil=True)
def adjoint_one(
    band_y: Band, band_x: Band, image: FloatArray, row: FloatArray, cells: FloatArray
) -> None:
    """``A_y^T R A_x`` of one image, written into a map."""
    for i in range(cells.shape[0]):
        gather(band_y, image, i, row)
        for j in range(cells.shape[1]):
            cells[i, j] = inner(band_x, row, j)


@numba.njit(cache=True, nogil=True, fastmath=REORDER)
def gather(band_y: Band, image: FloatArray, i: int, row: FloatArray) -> None:
    """Row i of ``A_y^T R``."""
    p = np.uint64(band_y.first[i])
    row[:] = 0
    for k in range(band_y.values.shape[1]):
        for q in range(row.size):
            row[q] += band_y.values[i, k] * image[p + np.uint64(k), q]


@numba.njit(cache=True, nogil=True, fastmath=REORDER)
def inner(band_x: Band, row: FloatArray, j: int) -> np.floating[Any]:
    """Entry j of ``row A_x``."""
    q, s = np.uint64(band_x.first[j]), row.dtype.type(0)
    for k in range(band_x.values.shape[1]):
        s += band_x.values[j, k] * row[q + np.uint64(k)]
    return s
