"""Separable products of banded matrices, row by row: O(cells times band), no room but for a row.

Indices are unsigned: a negative one would mean "from the end", and to ask for that at each number
costs more than the product itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from csunmix._kernels.jit import kernel, leaf
from csunmix._validation import FloatArray, IntArray
from csunmix.band import Band

# Sums may be reordered, so that they are vectorised: the same on every call, with any threads.
REORDER = {"reassoc", "contract", "nsz"}
_SPARSE = 4  # cells of a row for each that is not 0, from where it pays to skip those that are


@kernel(unrolled=True)
def forward(band_y: Band, band_x: Band, across: Band, maps: FloatArray, images: FloatArray) -> None:
    """``A_y X A_x^T`` of maps (b, k, l), written into images (b, p, q); `across` is ``A_x^T``."""
    row = np.empty(band_x.n, maps.dtype)
    for b in range(maps.shape[0]):
        forward_one(band_y, band_x, across, maps[b], row, images[b])


@kernel(unrolled=True)
def adjoint(band_y: Band, band_x: Band, images: FloatArray, maps: FloatArray) -> None:
    """``A_y^T R A_x`` of images (b, p, q), written into maps (b, k, l)."""
    row = np.empty(band_x.n, images.dtype)
    for b in range(images.shape[0]):
        adjoint_one(band_y, band_x, images[b], row, maps[b])


@leaf(fastmath=REORDER)
def forward_one(
    band_y: Band,
    band_x: Band,
    across: Band,
    cells: FloatArray,
    row: FloatArray,
    image: FloatArray,
) -> None:
    """``A_y X A_x^T`` of one map; `across` is ``A_x^T``, `row` scratch.

    A row of cells that are mostly 0 is summed cell by cell, others pixel by pixel.
    """
    image[:] = 0
    for i in range(cells.shape[0]):
        n = 0
        for j in range(cells.shape[1]):
            n += cells[i, j] != 0
        if n == 0:
            continue
        if _SPARSE * n < cells.shape[1]:
            row[:] = 0
            for j in range(cells.shape[1]):
                if cells[i, j] != 0:
                    spread(band_x, cells[i, j], j, row)
        else:
            for q in range(row.size):
                row[q] = inner(across, cells[i], q)
        _scatter(band_y, row, i, image)


@leaf()
def forward_cells(
    band_y: Band,
    band_x: Band,
    rows: IntArray,
    cols: IntArray,
    values: FloatArray,
    row: FloatArray,
    image: FloatArray,
) -> None:
    """``A_y X A_x^T`` of a map that is 0 but in some cells, in the order of their rows."""
    image[:] = 0
    row[:] = 0
    for k in range(rows.size):
        spread(band_x, values[k], cols[k], row)
        if k + 1 == rows.size or rows[k + 1] != rows[k]:
            _scatter(band_y, row, rows[k], image)
            row[:] = 0


@leaf(fastmath=REORDER)
def spread(band_x: Band, value: np.floating[Any], j: int, row: FloatArray) -> None:
    """Add `value` times column j of ``A_x`` to a row."""
    q = np.uint64(band_x.first[j])
    for k in range(np.uint64(band_x.values.shape[1])):
        row[q + k] += value * band_x.values[j, k]


@leaf(fastmath=REORDER)
def _scatter(band_y: Band, row: FloatArray, i: int, image: FloatArray) -> None:
    """Add column i of ``A_y`` times `row`."""
    p = np.uint64(band_y.first[i])
    for k in range(np.uint64(band_y.values.shape[1])):
        for c in range(np.uint64(row.size)):
            image[p + k, c] += band_y.values[i, k] * row[c]


@leaf()
def adjoint_one(
    band_y: Band, band_x: Band, image: FloatArray, row: FloatArray, cells: FloatArray
) -> None:
    """``A_y^T R A_x`` of one image, written into a map; `row` is scratch."""
    for i in range(cells.shape[0]):
        gather(band_y, image, i, row)
        for j in range(cells.shape[1]):
            cells[i, j] = inner(band_x, row, j)


@leaf()
def adjoint_cells(
    band_y: Band,
    band_x: Band,
    image: FloatArray,
    rows: IntArray,
    cols: IntArray,
    row: FloatArray,
    out: FloatArray,
) -> None:
    """``A_y^T R A_x`` of one image in some cells, in the order of their rows."""
    for k in range(rows.size):
        if k == 0 or rows[k] != rows[k - 1]:
            gather(band_y, image, rows[k], row)
        out[k] = inner(band_x, row, cols[k])


@leaf(fastmath=REORDER)
def gather(band_y: Band, image: FloatArray, i: int, row: FloatArray) -> None:
    """Row i of ``A_y^T R``."""
    p = np.uint64(band_y.first[i])
    row[:] = 0
    for k in range(np.uint64(band_y.values.shape[1])):
        for q in range(np.uint64(row.size)):
            row[q] += band_y.values[i, k] * image[p + k, q]


@leaf(fastmath=REORDER)
def inner(band_x: Band, row: FloatArray, j: int) -> np.floating[Any]:
    """Entry j of ``row A_x``."""
    q, s = np.uint64(band_x.first[j]), row.dtype.type(0)
    for k in range(np.uint64(band_x.values.shape[1])):
        s += band_x.values[j, k] * row[q + k]
    return s
