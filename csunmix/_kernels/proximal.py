"""Proximal gradient steps, one image at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.banded import (
    REORDER,
    adjoint_cells,
    adjoint_one,
    forward_cells,
    forward_one,
    inner,
    spread,
)
from csunmix._kernels.jit import kernel, leaf, part
from csunmix._validation import BoolArray, FloatArray, IntArray
from csunmix.band import Band

_DECREASE = 0.01  # of the objective, as a share of what the step length promises
_ALTERNATE = 0.5  # ratio of the two step lengths below which the short one is taken
_LONGEST = 1e8  # step, in units of 1/L
_SHORTER = 0.96  # share of a step length that is kept where steps grow
_QUIET = 0.3  # share of lam below which the gradient at a cell that is 0 is not watched
_SLOW = 0.02  # share of reach^2 below which many steps stay within it
_FEW = 512  # watched cells, of which products of atoms are worth their room


class _Watched(NamedTuple):
    """Cells that may change in the next steps, row by row; of each array, one entry a cell."""

    row: IntArray
    col: IntArray
    x: FloatArray
    z: FloatArray
    before: FloatArray  # z, when the cells were chosen
    slope: FloatArray  # ``A^T (w r)``, likewise
    g: FloatArray  # and now
    products: FloatArray  # flat, of one atom with all, for each atom that is known
    place: IntArray  # of each atom there, of the first `_FEW`; -1 where it is not known


@kernel(unrolled=True)
def proximal_steps(
    band_y: Band,
    band_x: Band,
    across: Band,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    lam: FloatArray,
    lipschitz: FloatArray,
    largest_norm: float,
    positive: bool,
    accelerate: bool,
    restart: bool,
    n_steps: int,
    x: FloatArray,
    z: FloatArray,
    memory: FloatArray,
) -> None:
    """Run `n_steps` steps on each image.

    `x`, the extrapolated `z` and `memory` (b, 2) change in place: the next step's length, and ``t``
    or, where the momentum restarts, the square of the first change of ``x`` (infinite before).

    A cell whose ``x`` and ``z`` are 0 stays so while its gradient is below ``lam``. The gradient
    changes by no more than the norm of an atom times the change of ``w r``: until that could lift
    it from `_QUIET` ``lam`` to ``lam``, such cells are left out. What comes out is the same.
    """
    n_cells = x[0].size
    most = min(n_cells, _FEW)
    room = np.empty((5, n_cells), x.dtype)
    watched = _Watched(
        np.empty(n_cells, np.int64),
        np.empty(n_cells, np.int64),
        room[0],
        room[1],
        room[2],
        room[3],
        room[4],
        np.empty(most * most, x.dtype),
        np.empty(most, np.int64),
    )
    r, before = np.empty_like(y[0]), np.empty_like(y[0])
    column, row = np.empty(band_y.n, x.dtype), np.empty(band_x.n, x.dtype)
    for b in range(x.shape[0]):
        reach = (1 - _QUIET) * lam[b] / largest_norm
        plain = not censored[b].any() and (weights[b] == 1).all()
        left = n_steps
        while left > 0:
            forward_one(band_y, band_x, across, z[b], row, before)
            _weigh(y[b], weights[b], censored[b], before)
            quiet = _QUIET * lam[b]
            n = _watch(band_y, band_x, before, quiet, positive, x[b], z[b], row, watched)
            slow = False
            for step in range(left):
                if step == 0:
                    watched.g[:n] = watched.slope[:n]
                elif slow and plain and n <= _FEW:
                    d2 = _follow(band_y, band_x, n, column, row, watched)
                    if not d2 < reach * reach:
                        break
                else:
                    forward_cells(
                        band_y, band_x, watched.row[:n], watched.col[:n], watched.z, row, r
                    )
                    _weigh(y[b], weights[b], censored[b], r)
                    d2 = _distance2(r, before)
                    if not d2 < reach * reach:
                        break
                    slow = d2 < _SLOW * reach * reach
                    adjoint_cells(
                        band_y, band_x, r, watched.row[:n], watched.col[:n], row, watched.g
                    )
                _step(n, lam[b], lipschitz[b], positive, accelerate, restart, memory[b], watched)
                left -= 1
            for k in range(n):
                x[b, watched.row[k], watched.col[k]] = watched.x[k]
                z[b, watched.row[k], watched.col[k]] = watched.z[k]


@leaf()
def _watch(
    band_y: Band,
    band_x: Band,
    r: FloatArray,
    quiet: float,
    positive: bool,
    x: FloatArray,
    z: FloatArray,
    row: FloatArray,
    watched: _Watched,
) -> int:
    """Choose the cells that are not 0, or whose gradient is above `quiet`; returns their number.

    `row` is scratch.
    """
    g = watched.g.reshape(x.shape)
    adjoint_one(band_y, band_x, r, row, g)
    n = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            steep = g[i, j] if positive else abs(g[i, j])
            if steep > quiet or z[i, j] != 0 or x[i, j] != 0:
                watched.row[n], watched.col[n] = i, j
                watched.x[n], watched.slope[n] = x[i, j], g[i, j]
                watched.z[n] = watched.before[n] = z[i, j]
                n += 1
    watched.place[:] = -1
    return n


@leaf(fastmath=REORDER)
def _follow(
    band_y: Band,
    band_x: Band,
    n: int,
    column: FloatArray,
    row: FloatArray,
    watched: _Watched,
) -> float:
    """Gradients after a move ``d`` of ``z``, by products of atoms; returns ``|A d|^2``.

    For weights of 1 in all pixels, none of them censored.
    """
    g, products = watched.g, watched.products
    for m in range(n):
        g[m] = watched.slope[m]
    n_known = 0
    for k in range(n):
        n_known = max(n_known, watched.place[k] + 1)
    for k in range(n):
        d = watched.z[k] - watched.before[k]
        if d == 0:
            continue
        if watched.place[k] < 0:
            watched.place[k] = n_known
            out = products[n_known * n :]
            _write_products(band_y, band_x, k, n, column, row, watched, out)
            n_known += 1
        first = np.uint64(watched.place[k] * n)
        for m in range(np.uint64(n)):
            g[m] -= d * products[first + m]
    energy = 0.0
    for m in range(n):
        energy += (watched.z[m] - watched.before[m]) * (watched.slope[m] - g[m])
    return energy


@leaf()
def _write_products(
    band_y: Band,
    band_x: Band,
    k: int,
    n: int,
    column: FloatArray,
    row: FloatArray,
    watched: _Watched,
    out: FloatArray,
) -> None:
    """Products of the atom of cell k with all `n`, one along y times one along x.

    `column` and `row` are scratch.
    """
    column[:] = 0
    row[:] = 0
    one = out.dtype.type(1)  # of one precision, for which alone it is compiled already
    spread(band_y, one, watched.row[k], column)
    spread(band_x, one, watched.col[k], row)
    along_y = out.dtype.type(0)
    for m in range(n):
        if m == 0 or watched.row[m] != watched.row[m - 1]:
            along_y = inner(band_y, column, watched.row[m])
        out[m] = along_y * inner(band_x, row, watched.col[m])


@leaf(fastmath=REORDER)
def _step(
    n: int,
    lam: float,
    lipschitz: float,
    positive: bool,
    accelerate: bool,
    restart: bool,
    memory: FloatArray,
    watched: _Watched,
) -> None:
    """One step of the watched cells, from ``z`` along their gradients, which it writes over."""
    x, z, g = watched.x, watched.z, watched.g
    zero, one, length = x.dtype.type(0), x.dtype.type(1), memory[0]
    threshold, uphill, moved = length * lam, zero, zero
    for k in range(n):
        value = _shrink(z[k] + length * g[k], threshold, positive)
        uphill += (z[k] - value) * (value - x[k])
        moved += (value - x[k]) ** 2
        g[k] = value
    momentum = zero
    if accelerate and restart:
        momentum = one if uphill <= 0 else zero
        if memory[1] == np.inf:
            memory[1] = moved
        elif moved >= memory[1]:
            memory[0] = max(x.dtype.type(_SHORTER) * length, one / lipschitz)
    elif accelerate:
        t = memory[1]
        memory[1] = (one + np.sqrt(one + 4 * t * t)) / 2
        momentum = (t - one) / memory[1]
    for k in range(n):
        z[k] = g[k] + momentum * (g[k] - x[k])
        x[k] = g[k]


@kernel(unrolled=True)
def spectral_steps(
    band_y: Band,
    band_x: Band,
    across: Band,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    lam: FloatArray,
    lipschitz: FloatArray,
    positive: bool,
    n_steps: int,
    x: FloatArray,
    lengths: FloatArray,
) -> None:
    """Try `n_steps` steps of Barzilai-Borwein length on each image; `x` changes in place.

    `lengths` (b, 4) holds the next step length and the last three short ones, and changes too.
    A step that does not lower the objective enough is tried again at half the length.
    """
    n_rows, n_cols = x.shape[1], x.shape[2]
    new, g, g_new = np.empty_like(x[0]), np.empty_like(x[0]), np.empty_like(x[0])
    r, row = np.empty_like(y[0]), np.empty(band_x.n)
    for b in range(x.shape[0]):
        shortest, step = 1.0 / lipschitz[b], lengths[b, 0]
        energy = _data_term(band_y, band_x, across, y[b], weights[b], censored[b], x[b], row, r, g)
        value = energy + lam[b] * _l1(x[b])
        for _ in range(n_steps):
            moved = 0.0  # ||s||^2, s the step
            for i in range(n_rows):
                for j in range(n_cols):
                    new[i, j] = _shrink(x[b, i, j] + step * g[i, j], step * lam[b], positive)
                    moved += (new[i, j] - x[b, i, j]) ** 2
            energy = _data_term(
                band_y, band_x, across, y[b], weights[b], censored[b], new, row, r, g_new
            )
            value_new = energy + lam[b] * _l1(new)
            if value_new > value - 0.5 * _DECREASE * moved / step and step > shortest:
                step = max(0.5 * step, shortest)
                continue
            curvature, free = 0.0, 0.0  # <s, d> and ||d||^2 where x is free, d = A^T W A s
            for i in range(n_rows):
                for j in range(n_cols):
                    d = g[i, j] - g_new[i, j]
                    curvature += d * (new[i, j] - x[b, i, j])
                    if new[i, j] != 0:
                        free += d * d
                    x[b, i, j] = new[i, j]
            g, g_new, value = g_new, g, value_new
            if curvature > 0.0:
                short = curvature / free if free > 0.0 else np.inf
                step = _spectral_length(moved / curvature, short, lengths[b])
                step = min(max(step, shortest), _LONGEST * shortest)
        lengths[b, 0] = step


@leaf()
def _spectral_length(long: float, short: float, lengths: FloatArray) -> float:
    """The long step, or the shortest of the last short ones where the two differ much."""
    lengths[1], lengths[2], lengths[3] = lengths[2], lengths[3], short
    return min(lengths[1], lengths[2], lengths[3]) if short < _ALTERNATE * long else long


@leaf()
def _data_term(
    band_y: Band,
    band_x: Band,
    across: Band,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    x: FloatArray,
    row: FloatArray,
    r: FloatArray,
    g: FloatArray,
) -> float:
    """``1/2 sum w r^2``; writes ``A^T (w r)``, the direction of its descent, into `g`."""
    forward_one(band_y, band_x, across, x, row, r)
    energy = _weigh(y, weights, censored, r)
    adjoint_one(band_y, band_x, r, row, g)
    return energy


@leaf(fastmath=REORDER)
def _weigh(y: FloatArray, weights: FloatArray, censored: BoolArray, r: FloatArray) -> float:
    """Turn ``A x`` in `r` into ``w r``; ``1/2 sum w r^2``."""
    energy = 0.0
    for p in range(r.shape[0]):
        for q in range(r.shape[1]):
            d = y[p, q] - r[p, q]
            if censored[p, q]:
                d = max(d, r.dtype.type(0))
            r[p, q] = weights[p, q] * d
            energy += 0.5 * r[p, q] * d
    return energy


@part(fastmath=REORDER)
def _distance2(a: FloatArray, b: FloatArray) -> float:
    """``||a - b||^2``."""
    s = 0.0
    for p in range(a.shape[0]):
        for q in range(a.shape[1]):
            s += (a[p, q] - b[p, q]) ** 2
    return s


@leaf()
def _shrink(v: float, threshold: float, positive: bool) -> float:
    """Proximal map of ``threshold |x|``, over ``x >= 0`` where `positive`."""
    if v > threshold:
        return v - threshold
    return 0.0 if positive else min(v + threshold, 0.0)


@leaf()
def _l1(x: FloatArray) -> float:
    """``||x||_1``."""
    s = 0.0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            s += abs(x[i, j])
    return s
