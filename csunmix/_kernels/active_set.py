"""Exact non-negative l1 by an active-set method, one image at a time."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._kernels.atoms import (
    Chosen,
    View,
    append,
    contains,
    correlate,
    drop,
    forward,
    new_chosen,
    new_view,
    residual,
    write_coefficients,
)
from csunmix._kernels.linalg import cholesky_append, cholesky_drop, cholesky_solve, inner
from csunmix._validation import BoolArray, FloatArray, IntArray

_ROUNDING = 1e-12  # of correlations and residuals, relative to the largest
_OPTIMAL = 1e-9  # what a correlation may have above lam at the end, likewise
_STAGE = 1e-2  # of the price, from one stage to the next
_LAST_STAGE = 1e-11  # least price before lam, relative to the largest correlation
_EPS = 1e-15  # what rounding leaves of a sum, relative to its largest term


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
    price: FloatArray,
    x: FloatArray,
    n_iter: IntArray,
    optimal: BoolArray,
) -> None:
    """Solve each image; `x` (b, k l) holds the start and then the answer; counts `n_iter` up.

    `price` is the weight of the l1 norm that each image is at, at least `lam`. It falls to `lam`
    in stages, each starting from the answer of the one before.
    """
    excess, before = np.empty(y[0].size), np.empty(x.shape[1])
    correlation = np.empty(x.shape[1])
    for b in range(len(y)):
        view = new_view(a_y, a_x, y[b], weights[b])
        last, done = _LAST_STAGE * abs(correlate(view, view.target, correlation)), 0
        while True:
            before[:] = x[b]
            highest = _objective(view, y[b], censored[b], price[b], before, excess)
            highest += _ROUNDING * inner(view.target, view.target)
            steps, optimal[b] = _lasso(view, excess, price[b], max_iter - done, tol, x[b])
            done += steps
            reached = _objective(view, y[b], censored[b], price[b], x[b], excess)
            # Only rounding goes up. What it does in one step the next ones may mend.
            if max_iter > 1 and not reached <= highest:
                x[b], optimal[b] = before, False
                break
            if not optimal[b] or price[b] <= lam[b]:
                break
            price[b] *= _STAGE
            if price[b] < max(lam[b], last):
                price[b] = lam[b]
        n_iter[b] += done


@numba.njit(cache=True, nogil=True)
def _objective(
    view: View, y: FloatArray, censored: BoolArray, lam: float, x: FloatArray, excess: FloatArray
) -> float:
    """Objective of an image; writes what the fit has over each bound, -1 where there is none."""
    fitted = np.empty(y.shape)
    forward(view.a_y, view.a_x, x, fitted)
    value = float(lam * x.sum())
    for p in range(excess.size):
        row, col = p // y.shape[1], p % y.shape[1]
        r = y[row, col] - fitted[row, col]
        excess[p] = max(-r, 0.0) if censored[row, col] else -1.0
        if excess[p] <= 0.0:
            value += 0.5 * (view.root[row, col] * r) ** 2
    return value


@numba.njit(cache=True, nogil=True)
def _lasso(
    view: View, excess: FloatArray, lam: float, max_iter: int, tol: float, x: FloatArray
) -> tuple[int, bool]:
    """Add the atom that pulls most, refit, drop what turns negative; until none pulls."""
    n_pixels, n_atoms = view.target.size, x.size
    n_start = _n_positive(x) + _n_positive(excess)
    most = min(n_pixels, n_start + max_iter)
    chosen = new_chosen(most + 1, n_pixels)
    number, r, g = chosen.number, np.empty(n_pixels), np.empty(n_atoms)
    blocked = np.zeros(n_atoms + n_pixels, np.bool_)
    scale = abs(correlate(view, view.target, g))
    norm = np.sqrt(inner(view.target, view.target))
    for pixel in range(n_pixels):
        if excess[pixel] > 0.0 and number[0] < most:
            append(view, chosen, n_atoms + pixel, excess[pixel], 0.0)
    for atom in range(n_atoms):
        if x[atom] > 0.0 and number[0] < most:
            append(view, chosen, atom, x[atom], lam)
    _refit(chosen, 0)

    steps, optimal = 0, False
    while True:
        residual(view, chosen, r)
        rounding = max(_ROUNDING, _EPS * _largest_part(chosen) / norm) if norm > 0.0 else _ROUNDING
        best = _most_exceeded(r, excess, -rounding * norm, chosen, blocked, n_atoms)
        price = 0.0
        if best < 0:
            largest = correlate(view, r, g)
            if _gap(view, r, largest, lam, chosen, n_atoms) <= tol:
                optimal = True
                break
            best, price = _strongest(g, chosen, blocked), lam
            if best < 0 or g[best] <= lam + rounding * scale:
                optimal = largest <= lam + max(_OPTIMAL, rounding) * scale
                break
        if steps == max_iter:
            break
        steps += 1
        before = number[0]
        append(view, chosen, best, 0.0, price)
        _refit(chosen, before)
        # Rounding may throw the new atom out again at once: leave it until something else moves.
        if number[0] == before and not contains(chosen, best):
            blocked[best] = True
        else:
            for atom in range(blocked.size):
                blocked[atom] = False

    write_coefficients(chosen, x)
    return steps, optimal


@numba.njit(cache=True, nogil=True)
def _n_positive(a: FloatArray) -> int:
    n = 0
    for k in range(a.size):
        n += a[k] > 0.0
    return n


@numba.njit(cache=True, nogil=True)
def _largest_part(chosen: Chosen) -> float:
    """Norm of the largest term in the sum of the chosen atoms."""
    largest = 0.0
    for m in range(chosen.number[0]):
        largest = max(largest, chosen.x[m] * np.sqrt(chosen.gram[m, m]))
    return largest


@numba.njit(cache=True, nogil=True)
def _most_exceeded(
    r: FloatArray,
    excess: FloatArray,
    floor: float,
    chosen: Chosen,
    blocked: BoolArray,
    n_atoms: int,
) -> int:
    """Atom of the pixel whose bound the fit exceeds most without being let off; -1 if none."""
    best, most = -1, floor
    for p in range(r.size):
        atom = n_atoms + p
        if excess[p] < 0.0 or r[p] >= most or blocked[atom]:
            continue
        if not contains(chosen, atom):
            best, most = atom, r[p]
    return best


@numba.njit(cache=True, nogil=True)
def _strongest(g: FloatArray, chosen: Chosen, blocked: BoolArray) -> int:
    """Atom of the largest correlation that is neither chosen nor blocked; -1 if there is none."""
    for m in range(chosen.number[0]):
        if chosen.atoms[m] < g.size:
            g[chosen.atoms[m]] = -np.inf
    best, most = -1, -np.inf
    for atom in range(g.size):
        if g[atom] > most and not blocked[atom]:
            best, most = atom, g[atom]
    return best


@numba.njit(cache=True, nogil=True)
def _refit(chosen: Chosen, sound: int) -> None:
    """Minimise over the chosen atoms, dropping each that reaches 0 on the way.

    The first `sound` atoms are in the Cholesky factor already; afterwards all are.
    """
    x, fit = chosen.x, np.empty(chosen.x.size)
    while chosen.number[0] > 0:
        k = chosen.number[0]
        # No more atoms than pixels are independent, whatever rounding says.
        most = min(k, chosen.columns.shape[1])
        while sound < most and cholesky_append(chosen.gram, sound, chosen.lower):
            sound += 1
        if sound < k:
            sound = _drop(chosen, _exchange(chosen, sound, fit), sound)
            continue
        cholesky_solve(chosen.lower, k, chosen.rhs, fit)
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
        sound = _drop(chosen, first, sound)


@numba.njit(cache=True, nogil=True)
def _drop(chosen: Chosen, position: int, sound: int) -> int:
    """Drop an atom, from the factor too if it is there; returns how many are there."""
    if position < sound:
        cholesky_drop(chosen.lower, sound, position)
        sound -= 1
    drop(chosen, position)
    return sound


@numba.njit(cache=True, nogil=True)
def _exchange(chosen: Chosen, k: int, share: FloatArray) -> int:
    """Slide to where one of atoms 0 to k, of which the last is a sum of the others, is 0.

    The fit stays as it is and the price falls. Returns the position of that atom.
    """
    x = chosen.x
    cholesky_solve(chosen.lower, k, chosen.gram[k], share)
    gain = chosen.rhs[k] - inner(share[:k], chosen.rhs[:k])
    sign = 1.0 if gain >= 0.0 else -1.0
    length, first = np.inf if gain >= 0.0 else x[k], k
    for m in range(k):
        if sign * share[m] > 0.0 and x[m] < length * sign * share[m]:
            length, first = x[m] / (sign * share[m]), m
    if np.isfinite(length):
        x[k] += sign * length
        for m in range(k):
            x[m] -= sign * length * share[m]
    return first


@numba.njit(cache=True, nogil=True)
def _gap(
    view: View, r: FloatArray, largest: float, lam: float, chosen: Chosen, n_atoms: int
) -> float:
    """Relative duality gap; see `csunmix.solvers.base.Problem.evaluate`."""
    energy, product = inner(r, r), inner(r, view.target)
    primal = 0.5 * energy
    for m in range(chosen.number[0]):
        if chosen.atoms[m] < n_atoms:
            primal += lam * chosen.x[m]
    if primal <= 0.0:
        return 0.0
    s = product / energy if energy > 0.0 else 0.0
    if largest > 0.0:
        s = min(s, lam / largest)
    s = max(s, 0.0)
    return (primal - s * product + 0.5 * s * s * energy) / primal
