"""Proximal gradient steps, one image at a time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from csunmix._kernels.banded import REORDER, adjoint_one, all_cells, forward_one, gather, inner
from csunmix._validation import BoolArray, FloatArray, IntArray
from csunmix.band import Band

_DECREASE = 0.01  # of the objective, as a share of what the step length promises
_ALTERNATE = 0.5  # ratio of the two step lengths below which the short one is taken
_LONGEST = 1e8  # step, in units of 1/L
_SHORTER = 0.96  # share of a step length that is kept where steps grow
_QUIET = 0.5  # share of lam below which the gradient at a cell that is 0 is not watched


@numba.njit(cache=True, nogil=True)
def proximal_steps(
    band_y: Band,
    band_x: Band,
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
    n_rows, n_cols = x.shape[1], x.shape[2]
    one = x.dtype.type(1)
    r, before, new = np.empty_like(y[0]), np.empty_like(y[0]), np.empty_like(x[0])
    row = np.empty(band_x.n, x.dtype)
    for b in range(x.shape[0]):
        start, stop = all_cells(n_rows, n_cols)
        reach = (1 - _QUIET) * lam[b] / largest_norm
        before[:] = np.inf
        for _ in range(n_steps):
            forward_one(band_y, band_x, z[b], start, stop, row, r)
            _weigh(y[b], weights[b], censored[b], r)
            quiet = -np.inf
            if not _distance2(r, before) < reach * reach:
                before[:], start[:], stop[:] = r, 0, n_cols
                quiet = _QUIET * lam[b]
            step = memory[b, 0]
            how = (step, step * lam[b], positive, quiet)
            uphill, moved = _gradient_step(
                band_y, band_x, r, *how, x[b], z[b], start, stop, row, new
            )
            momentum = x.dtype.type(0)
            if accelerate and restart:
                momentum = one if uphill <= 0 else momentum
                if memory[b, 1] == np.inf:
                    memory[b, 1] = moved
                elif moved >= memory[b, 1]:
                    memory[b, 0] = max(x.dtype.type(_SHORTER) * step, one / lipschitz[b])
            elif accelerate:
                t = memory[b, 1]
                memory[b, 1] = (one + np.sqrt(one + 4 * t * t)) / 2
                momentum = (t - one) / memory[b, 1]
            for i in range(n_rows):
                for j in range(start[i], stop[i]):
                    value = new[i, j]
                    z[b, i, j] = value + momentum * (value - x[b, i, j])
                    x[b, i, j] = value


@numba.njit(cache=True, nogil=True)
def _gradient_step(
    band_y: Band,
    band_x: Band,
    r: FloatArray,
    step: float,
    threshold: float,
    positive: bool,
    quiet: float,
    x: FloatArray,
    z: FloatArray,
    start: IntArray,
    stop: IntArray,
    row: FloatArray,
    new: FloatArray,
) -> tuple[np.floating[Any], np.floating[Any]]:
    """One step from ``z``; ``<z - new, new - x>`` and ``||new - x||^2``.

    It is taken in cells ``start[i]`` to ``stop[i]`` of row i, the others being 0. These bounds
    shrink to the cells that are not 0, or whose gradient is above `quiet`.
    """
    uphill, moved = x.dtype.type(0), x.dtype.type(0)
    for i in range(x.shape[0]):
        if start[i] >= stop[i]:
            continue
        gather(band_y, r, i, row)
        first, last = stop[i], start[i]
        for j in range(start[i], stop[i]):
            g = inner(band_x, row, j)
            value = _shrink(z[i, j] + step * g, threshold, positive)
            uphill += (z[i, j] - value) * (value - x[i, j])
            moved += (value - x[i, j]) ** 2
            new[i, j] = value
            steep = g if positive else abs(g)
            if value != 0 or z[i, j] != 0 or x[i, j] != 0 or steep > quiet:
                first, last = min(first, j), j + 1
        start[i], stop[i] = first, last
    return uphill, moved


@numba.njit(cache=True, nogil=True)
def spectral_steps(
    band_y: Band,
    band_x: Band,
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
        energy = _data_term(band_y, band_x, y[b], weights[b], censored[b], x[b], row, r, g)
        value = energy + lam[b] * _l1(x[b])
        for _ in range(n_steps):
            moved = 0.0  # ||s||^2, s the step
            for i in range(n_rows):
                for j in range(n_cols):
                    new[i, j] = _shrink(x[b, i, j] + step * g[i, j], step * lam[b], positive)
                    moved += (new[i, j] - x[b, i, j]) ** 2
            energy = _data_term(band_y, band_x, y[b], weights[b], censored[b], new, row, r, g_new)
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


@numba.njit(cache=True, nogil=True)
def _spectral_length(long: float, short: float, lengths: FloatArray) -> float:
    """The long step, or the shortest of the last short ones where the two differ much."""
    lengths[1], lengths[2], lengths[3] = lengths[2], lengths[3], short
    return min(lengths[1], lengths[2], lengths[3]) if short < _ALTERNATE * long else long


@numba.njit(cache=True, nogil=True)
def _data_term(
    band_y: Band,
    band_x: Band,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    x: FloatArray,
    row: FloatArray,
    r: FloatArray,
    g: FloatArray,
) -> float:
    """``1/2 sum w r^2``; writes ``A^T (w r)``, the direction of its descent, into `g`."""
    forward_one(band_y, band_x, x, *all_cells(*x.shape), row, r)
    energy = _weigh(y, weights, censored, r)
    adjoint_one(band_y, band_x, r, row, g)
    return energy


@numba.njit(cache=True, nogil=True, fastmath=REORDER)
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


@numba.njit(cache=True, nogil=True, fastmath=REORDER)
def _distance2(a: FloatArray, b: FloatArray) -> float:
    """``||a - b||^2``."""
    s = 0.0
    for p in range(a.shape[0]):
        for q in range(a.shape[1]):
            s += (a[p, q] - b[p, q]) ** 2
    return s


@numba.njit(cache=True, nogil=True)
def _shrink(v: float, threshold: float, positive: bool) -> float:
    """Proximal map of ``threshold |x|``, over ``x >= 0`` where `positive`."""
    if v > threshold:
        return v - threshold
    return 0.0 if positive else min(v + threshold, 0.0)


@numba.njit(cache=True, nogil=True)
def _l1(x: FloatArray) -> float:
    """``||x||_1``."""
    s = 0.0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            s += abs(x[i, j])
    return s
