"""Exact non-negative l1 by an active-set method, one image at a time."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._kernels.atoms import (
    Chosen,
    View,
    append,
    correlate,
    drop,
    forward,
    new_chosen,
    new_view,
    residual,
    write_coefficients,
)
from csunmix._kernels.linalg import cholesky, cholesky_solve, inner
from csunmix._validation import BoolArray, FloatArray, IntArray

_MAX_ROUNDS = 50  # of deciding which censored pixels pull
_ROUNDING = 1e-12  # of a correlation, relative to the largest


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
    """Solve each image; `x` (b, k l) holds the start and then the answer, `n_iter` is counted up.

    A censored pixel pulls only while the fit is below its bound: which ones do is found by turns
    with the fit.
    """
    pulling, before = np.empty(y.shape[1:]), np.empty(y.shape[1:])
    for b in range(len(y)):
        used = 0
        for turn in range(_MAX_ROUNDS + 1):
            before, pulling = pulling, before
            _choose_pixels(a_y, a_x, y[b], weights[b], censored[b], x[b], pulling)
            if turn > 0 and _same(before, pulling):
                break
            if turn == _MAX_ROUNDS or (turn > 0 and (used >= max_iter or not optimal[b])):
                optimal[b] = False
                break
            view = new_view(a_y, a_x, y[b], pulling)
            steps, optimal[b] = _lasso(view, lam[b], max_iter - used, tol, x[b])
            used += steps
        n_iter[b] += used


@numba.njit(cache=True, nogil=True)
def _choose_pixels(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    x: FloatArray,
    out: FloatArray,
) -> None:
    """Weights, 0 for the censored pixels whose bound the fit keeps."""
    forward(a_y, a_x, x, out)
    for p in range(y.shape[0]):
        for q in range(y.shape[1]):
            kept = censored[p, q] and out[p, q] >= y[p, q]
            out[p, q] = 0.0 if kept else weights[p, q]


@numba.njit(cache=True, nogil=True)
def _same(a: FloatArray, b: FloatArray) -> bool:
    for p in range(a.shape[0]):
        for q in range(a.shape[1]):
            if a[p, q] != b[p, q]:
                return False
    return True


@numba.njit(cache=True, nogil=True)
def _lasso(view: View, lam: float, max_iter: int, tol: float, x: FloatArray) -> tuple[int, bool]:
    """Add the atom that correlates most, refit, drop what turns negative; until none pulls."""
    n_pixels, n_atoms = view.target.size, x.size
    most = min(n_pixels, n_atoms, int(np.count_nonzero(x)) + max_iter)
    chosen = new_chosen(most + 1, n_pixels)
    number, r, g = chosen.number, np.empty(n_pixels), np.empty(n_atoms)
    blocked = np.zeros(n_atoms, np.bool_)
    limit = lam + _ROUNDING * abs(correlate(view, view.target, g))
    for atom in range(n_atoms):
        if x[atom] > 0.0 and number[0] < most:
            append(view, chosen, atom, x[atom])
    _refit(chosen, lam)

    steps, optimal, rounding = 0, False, False
    while True:
        residual(view, chosen, r)
        largest = correlate(view, r, g)
        if _gap(view, r, largest, lam, chosen) <= tol:
            optimal = True
            break
        best = _strongest(g, chosen, blocked)
        if best < 0 or g[best] <= limit:
            optimal = not rounding
            break
        if number[0] == most or steps == max_iter:
            break
        steps += 1
        before = number[0]
        append(view, chosen, best, 0.0)
        _refit(chosen, lam)
        # Rounding may throw the new atom out again at once: leave it until something else moves.
        rounding = number[0] == before and not np.any(chosen.atoms[:before] == best)
        if rounding:
            blocked[best] = True
        else:
            blocked[:] = False

    write_coefficients(chosen, x)
    return steps, optimal


@numba.njit(cache=True, nogil=True)
def _strongest(g: FloatArray, chosen: Chosen, blocked: BoolArray) -> int:
    """Atom of the largest correlation that is neither chosen nor blocked; -1 if there is none."""
    for m in range(chosen.number[0]):
        g[chosen.atoms[m]] = -np.inf
    best, most = -1, -np.inf
    for atom in range(g.size):
        if g[atom] > most and not blocked[atom]:
            best, most = atom, g[atom]
    return best


@numba.njit(cache=True, nogil=True)
def _refit(chosen: Chosen, lam: float) -> None:
    """Minimise over the chosen atoms, dropping each that reaches 0 on the way."""
    x, fit = chosen.x, np.empty(chosen.x.size)
    while chosen.number[0] > 0:
        k = chosen.number[0]
        sound = cholesky(chosen.gram, k, chosen.lower)
        if sound < k:
            drop(chosen, sound)
            continue
        cholesky_solve(chosen.lower, k, chosen.rhs, lam, fit)
        step, first = 1.0, k
        for m in range(k):
            if fit[m] <= 0.0:
                ratio = x[m] / (x[m] - fit[m]) if x[m] > 0.0 else 0.0
                if first == k or ratio < step:
                    step, first = ratio, m
        for m in range(k):
            x[m] += step * (fit[m] - x[m])
        if first == k:
            return
        drop(chosen, first)


@numba.njit(cache=True, nogil=True)
def _gap(view: View, r: FloatArray, largest: float, lam: float, chosen: Chosen) -> float:
    """Relative duality gap; see `csunmix.solvers.base.Problem.evaluate`."""
    energy, product = inner(r, r), inner(r, view.target)
    primal = 0.5 * energy
    for m in range(chosen.number[0]):
        primal += lam * chosen.x[m]
    if primal <= 0.0:
        return 0.0
    s = product / energy if energy > 0.0 else 0.0
    if largest > 0.0:
        s = min(s, lam / largest)
    s = max(s, 0.0)
    return (primal - s * product + 0.5 * s * s * energy) / primal
