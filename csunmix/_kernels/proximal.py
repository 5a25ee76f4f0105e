"""Proximal gradient steps, one image at a time."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._validation import BoolArray, FloatArray

_DECREASE = 0.01  # of the objective, as a share of what the step length promises
_ALTERNATE = 0.5  # ratio of the two step lengths below which the short one is taken
_LONGEST = 1e8  # step, in units of 1/L


@numba.njit(cache=True, nogil=True)
def proximal_steps(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    lam: FloatArray,
    lipschitz: FloatArray,
    positive: bool,
    accelerate: bool,
    restart: bool,
    n_steps: int,
    x: FloatArray,
    z: FloatArray,
    t: FloatArray,
) -> None:
    """Run `n_steps` steps of length ``1/L`` on each image.

    `x`, the extrapolated `z` and `t` change in place.
    """
    n_rows, n_cols = x.shape[1], x.shape[2]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for b in range(x.shape[0]):
        step, threshold = one / lipschitz[b], lam[b] / lipschitz[b]
        for _ in range(n_steps):
            _, g = _data_term(a_y, a_x, y[b], weights[b], censored[b], z[b])
            uphill = zero
            for i in range(n_rows):
                for j in range(n_cols):
                    new = _shrink(z[b, i, j] + step * g[i, j], threshold, positive)
                    uphill += (z[b, i, j] - new) * (new - x[b, i, j])
                    g[i, j] = new
            momentum = zero
            if accelerate:
                if restart and uphill > 0:
                    t[b] = one
                t_next = (one + np.sqrt(one + 4 * t[b] * t[b])) / 2
                momentum = (t[b] - one) / t_next
                t[b] = t_next
            for i in range(n_rows):
                for j in range(n_cols):
                    new = g[i, j]
                    z[b, i, j] = new + momentum * (new - x[b, i, j])
                    x[b, i, j] = new


@numba.njit(cache=True, nogil=True)
def spectral_steps(
    a_y: FloatArray,
    a_x: FloatArray,
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
    new = np.empty_like(x[0])
    for b in range(x.shape[0]):
        shortest, step = 1.0 / lipschitz[b], lengths[b, 0]
        energy, g = _data_term(a_y, a_x, y[b], weights[b], censored[b], x[b])
        value = energy + lam[b] * _l1(x[b])
        for _ in range(n_steps):
            moved = 0.0  # ||s||^2, s the step
            for i in range(n_rows):
                for j in range(n_cols):
                    new[i, j] = _shrink(x[b, i, j] + step * g[i, j], step * lam[b], positive)
                    moved += (new[i, j] - x[b, i, j]) ** 2
            energy, g_new = _data_term(a_y, a_x, y[b], weights[b], censored[b], new)
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
            g, value = g_new, value_new
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
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    x: FloatArray,
) -> tuple[float, FloatArray]:
    """``1/2 sum w r^2`` and ``A^T (w r)``, the direction of its descent."""
    r, energy = np.dot(a_y, np.dot(x, a_x.T)), 0.0
    for p in range(r.shape[0]):
        for q in range(r.shape[1]):
            d = y[p, q] - r[p, q]
            if censored[p, q]:
                d = max(d, x.dtype.type(0))
            r[p, q] = weights[p, q] * d
            energy += 0.5 * r[p, q] * d
    return energy, np.dot(np.dot(a_y.T, r), a_x)


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
