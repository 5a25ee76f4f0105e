"""Exact non-negative l1 by an active-set method, one image at a time."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._kernels.linalg import (
    cholesky,
    cholesky_solve,
    drop,
    extend_gram,
    residual,
    write_atom,
)
from csunmix._validation import BoolArray, FloatArray, IntArray

_MAX_ROUNDS = 50  # of deciding which censored pixels pull


@numba.njit(cache=True, nogil=True)
def active_set(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    lam: FloatArray,
    max_iter: int,
    tol: float,
    x: FloatArray,
    n_iter: IntArray,
    optimal: BoolArray,
) -> None:
    """Solve each image; `x` holds the start and then the answer, `n_iter` is counted up."""
    a_y_t = np.ascontiguousarray(a_y.T)
    root = np.empty(y.shape[1:])
    for b in range(len(y)):
        used = 0
        for _ in range(_MAX_ROUNDS):
            changed = _choose_pixels(a_y, a_x, y[b], weights[b], censored[b], x[b], root, used == 0)
            if not changed:
                break
            steps, optimal[b] = _lasso(
                a_y, a_y_t, a_x, y[b], root, lam[b], max_iter - used, tol, x[b]
            )
            used += steps
            if used >= max_iter or not optimal[b]:
                break
        else:
            optimal[b] = False
        n_iter[b] += used


@numba.njit(cache=True, nogil=True)
def _choose_pixels(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    x: FloatArray,
    root: FloatArray,
    first: bool,
) -> bool:
    """Root weights: those of censored pixels whose bound is kept are 0. True if any changed."""
    fitted = np.dot(np.dot(a_y, x), np.ascontiguousarray(a_x.T))
    changed = first
    for p in range(y.shape[0]):
        for q in range(y.shape[1]):
            kept = censored[p, q] and fitted[p, q] >= y[p, q]
            new = 0.0 if kept else np.sqrt(weights[p, q])
            if not first and new != root[p, q]:
                changed = True
            root[p, q] = new
    return changed


@numba.njit(cache=True, nogil=True)
def _lasso(
    a_y: FloatArray,
    a_y_t: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    root: FloatArray,
    lam: float,
    max_iter: int,
    tol: float,
    x_map: FloatArray,
) -> tuple[int, bool]:
    """Add the atom that correlates most, refit, drop what turns negative; until the gap closes."""
    n_pixels, n_atoms = y.size, x_map.size
    capacity = min(n_pixels, n_atoms) + 1
    atoms = np.empty(capacity, np.int64)
    columns = np.empty((capacity, n_pixels))
    gram, lower = np.empty((capacity, capacity)), np.empty((capacity, capacity))
    rhs, x, fit = np.empty(capacity), np.empty(capacity), np.empty(capacity)
    target = (y * root).ravel()
    r = np.empty(n_pixels)
    flat = x_map.ravel()
    blocked = np.zeros(n_atoms, np.bool_)

    k = 0
    for atom in range(n_atoms):
        if flat[atom] > 0 and k < capacity - 1:
            k = _append(
                a_y, a_x, root, atom, flat[atom], target, lam, k, atoms, columns, gram, rhs, x
            )
    k = _refit(k, atoms, x, fit, columns, gram, rhs, lower)

    steps, optimal = 0, False
    while True:
        residual(target, columns, x, k, r)
        g = np.dot(np.dot(a_y_t, r.reshape(y.shape) * root), a_x).ravel()
        if _gap(r, target, g.max(), lam, x, k) <= tol:
            optimal = True
            break
        for m in range(k):
            g[atoms[m]] = -np.inf
        for atom in range(n_atoms):
            if blocked[atom]:
                g[atom] = -np.inf
        best = np.argmax(g)
        if g[best] <= lam or k == capacity - 1:
            optimal = k < capacity - 1 and not blocked.any()
            break
        if steps >= max_iter:
            break
        steps += 1
        before = k
        k = _append(a_y, a_x, root, best, 0.0, target, lam, k, atoms, columns, gram, rhs, x)
        k = _refit(k, atoms, x, fit, columns, gram, rhs, lower)
        if k == before and not np.any(atoms[:k] == best):
            blocked[best] = True  # rounding: it cannot enter now
        else:
            blocked[:] = False

    flat[:] = 0.0
    for m in range(k):
        flat[atoms[m]] = x[m]
    x_map[:] = flat.reshape(x_map.shape)
    return steps, optimal


@numba.njit(cache=True, nogil=True)
def _append(
    a_y: FloatArray,
    a_x: FloatArray,
    root: FloatArray,
    atom: int,
    value: float,
    target: FloatArray,
    lam: float,
    k: int,
    atoms: IntArray,
    columns: FloatArray,
    gram: FloatArray,
    rhs: FloatArray,
    x: FloatArray,
) -> int:
    atoms[k], x[k] = atom, value
    write_atom(a_y, a_x, root, atom, columns[k])
    extend_gram(columns, target, k, gram, rhs)
    rhs[k] -= lam
    return k + 1


@numba.njit(cache=True, nogil=True)
def _refit(
    k: int,
    atoms: IntArray,
    x: FloatArray,
    fit: FloatArray,
    columns: FloatArray,
    gram: FloatArray,
    rhs: FloatArray,
    lower: FloatArray,
) -> int:
    """Minimise over the chosen atoms, dropping each that reaches 0 on the way; returns k."""
    while k > 0:
        sound = cholesky(gram, k, lower)
        if sound < k:
            k = drop(sound, k, atoms, x, columns, gram, rhs)
            continue
        cholesky_solve(lower, k, rhs, fit)
        step, first = 1.0, -1
        for m in range(k):
            if fit[m] <= 0.0:
                ratio = x[m] / (x[m] - fit[m]) if x[m] > 0.0 else 0.0
                if first < 0 or ratio < step:
                    step, first = ratio, m
        for m in range(k):
            x[m] += step * (fit[m] - x[m])
        if first < 0:
            return k
        k = drop(first, k, atoms, x, columns, gram, rhs)
    return k


@numba.njit(cache=True, nogil=True)
def _gap(
    r: FloatArray, target: FloatArray, largest: float, lam: float, x: FloatArray, k: int
) -> float:
    """Relative duality gap; see `csunmix.solvers.base.Problem.evaluate`."""
    energy, inner = 0.0, 0.0
    for p in range(r.size):
        energy += r[p] * r[p]
        inner += r[p] * target[p]
    primal = 0.5 * energy
    for m in range(k):
        primal += lam * x[m]
    if primal <= 0.0:
        return 0.0
    s = inner / energy if energy > 0.0 else 0.0
    if largest > 0.0:
        s = min(s, lam / largest)
    s = max(s, 0.0)
    return (primal - s * inner + 0.5 * s * s * energy) / primal
