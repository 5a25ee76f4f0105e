"""Greedy pursuits, one image at a time.

Coefficients are kept in the box ``[low, high]``, infinite where there is no limit. Of all atoms the
one is taken that lowers the energy ``1/2 ||r||^2`` most with its coefficient in the box.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from csunmix._kernels.atoms import (
    Chosen,
    View,
    append,
    correlate,
    drop,
    extremes,
    forward,
    new_chosen,
    new_view,
    residual,
    sum_rows,
    update_equations,
    write_atom,
    write_coefficients,
)
from csunmix._kernels.linalg import add, cholesky, cholesky_solve, inner
from csunmix._validation import FloatArray, IntArray

_MAX_SWEEPS = 50  # of local optimisation over all chosen atoms
_MAX_ROUNDS = 500  # of coordinate descent in the box
_UNSEEN = 1e-12  # energy of an atom not worth taking, relative to the largest
_BETTER = 1.0 + 1e-9  # a move must gain more than rounding


class Rules(NamedTuple):
    """What a pursuit may do. Distances are in cells."""

    low: float  # box of the coefficients
    high: float
    width: int  # cells of the map along x
    exclusion: float  # smallest distance between two atoms
    reach: float  # how far an atom may move at once; 0 for no local optimisation
    refitted: bool  # count what the other atoms gain by refitting when an atom is taken


@numba.njit(cache=True, nogil=True)
def orthogonal_matching_pursuit(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    energies: FloatArray,
    n_nonzero: int,
    residual_tol: float,
    rules: Rules,
    x: FloatArray,
    n_iter: IntArray,
) -> None:
    """Pursue each image; `x` (b, k l) holds the start and then the answer.

    `energies` (b or 1, k l) are the squared norms of the weighted atoms.
    """
    n_pixels, n_atoms = y[0].size, x.shape[1]
    most = min(n_nonzero, n_pixels, n_atoms)
    chosen = new_chosen(most + 1, n_pixels)
    number = chosen.number
    r, g, free = np.empty(n_pixels), np.empty(n_atoms), np.empty(n_atoms)
    spanned, share = np.empty(most, np.int64), np.empty(most)
    for b in range(len(y)):
        view = new_view(a_y, a_x, y[b], weights[b])
        number[0], spanned[:] = 0, -1
        free[:] = energies[min(b, len(energies) - 1)]
        for atom in range(n_atoms):
            if x[b, atom] != 0.0 and number[0] < most:
                append(view, chosen, atom, x[b, atom], 0.0)
        before, least = -1, np.inf
        while True:
            _fit(rules, chosen)
            if rules.reach > 0.0:
                _improve(view, rules, chosen)
            residual(view, chosen, r)
            energy = inner(r, r)
            if energy < least:
                least = energy
                x[b] = 0.0
                write_coefficients(chosen, x[b])
            # An atom that found no place ends the pursuit too.
            if number[0] == most or number[0] <= before or energy <= residual_tol * residual_tol:
                break
            before = number[0]
            if rules.refitted and not _project_out(view, chosen, spanned, share, r, g, free):
                free[:] = energies[min(b, len(energies) - 1)]
                _project_out(view, chosen, spanned, share, r, g, free)
            if rules.refitted:  # which was scratch
                residual(view, chosen, r)
            correlate(view, r, g)
            best, value = _select(rules, g, free, chosen)
            if best < 0:
                break
            append(view, chosen, best, value, 0.0)
            n_iter[b] += 1


@numba.njit(cache=True, nogil=True)
def matching_pursuit(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    energies: FloatArray,
    n_nonzero: int,
    residual_tol: float,
    max_iter: int,
    rules: Rules,
    x: FloatArray,
    n_iter: IntArray,
) -> None:
    """Pursue each image; `x` (b, k l) holds the start and then the answer.

    `energies` (b or 1, k l) are the squared norms of the weighted atoms.
    """
    n_pixels, n_atoms = y[0].size, x.shape[1]
    fitted = np.empty(y.shape[1:])
    column, g = np.empty(n_pixels), np.empty(n_atoms)
    none_chosen = new_chosen(0, 0)
    for b in range(len(y)):
        forward(a_y, a_x, x[b], fitted)
        view = new_view(a_y, a_x, y[b] - fitted, weights[b])
        r = view.target
        for _ in range(max_iter):
            if inner(r, r) <= residual_tol * residual_tol:
                break
            correlate(view, r, g)
            n_used = 0
            for atom in range(n_atoms):
                n_used += x[b, atom] != 0.0
            for atom in range(n_atoms):
                if n_used >= n_nonzero and x[b, atom] == 0.0:
                    g[atom] = 0.0
            best, value = _select(rules, g, energies[min(b, len(energies) - 1)], none_chosen)
            if best < 0:
                break
            write_atom(view, best, column)
            add(-value, column, r)
            x[b, best] += value
            n_iter[b] += 1


@numba.njit(cache=True, nogil=True)
def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@numba.njit(cache=True, nogil=True)
def _best_value(rules: Rules, g: float, energy: float) -> tuple[float, float]:
    """Coefficient in the box that gains most, and its gain ``v g - v^2 energy / 2``."""
    if energy <= 0.0:  # an atom that no pixel sees
        return 0.0, 0.0
    v = _clip(g / energy, rules.low, rules.high)
    return v, v * g - 0.5 * v * v * energy


@numba.njit(cache=True, nogil=True)
def _project_out(
    view: View,
    chosen: Chosen,
    spanned: IntArray,
    share: FloatArray,
    q: FloatArray,
    g: FloatArray,
    free: FloatArray,
) -> bool:
    """Take from the energies `free` of all atoms what the chosen ones span.

    `free` is without the atoms `spanned` already. False if an atom of those has gone: `free` must
    start anew, and nothing is spanned any more. The factor `chosen.lower` must be theirs.
    """
    k, lower = chosen.number[0], chosen.lower
    for m in range(spanned.size):
        if spanned[m] >= 0 and (m >= k or chosen.atoms[m] != spanned[m]):
            spanned[:] = -1
            return False
    for m in range(k):
        if spanned[m] >= 0:
            continue
        # Row m of the factor's inverse: the orthonormal vector that atom m adds to those before.
        for n in range(m, -1, -1):
            s = 1.0 if n == m else 0.0
            for i in range(n + 1, m + 1):
                s -= share[i] * lower[i, n]
            share[n] = s / lower[n, n]
        sum_rows(share[: m + 1], chosen.columns, 0, q)
        spanned[m] = chosen.atoms[m]
        correlate(view, q, g)
        for atom in range(free.size):
            free[atom] -= g[atom] * g[atom]
    return True


@numba.njit(cache=True, nogil=True)
def _select(rules: Rules, g: FloatArray, energies: FloatArray, chosen: Chosen) -> tuple[int, float]:
    """Atom that gains most outside the bands of those chosen, and its coefficient; -1 if none."""
    k, gain = chosen.number[0], np.empty(g.size)
    _gains(rules.low, rules.high, g, energies, gain)
    while True:
        most = extremes(gain)[1]
        if most == -np.inf:
            return -1, 0.0
        best = 0
        while gain[best] < most:
            best += 1
        if not _near(rules, best, chosen, k, k):
            return best, _clip(g[best] / energies[best], rules.low, rules.high)
        gain[best] = -np.inf


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gains(low: float, high: float, g: FloatArray, energies: FloatArray, out: FloatArray) -> None:
    """Gain of each atom as by `_best_value`, without branches; -inf where there is none."""
    floor = max(0.0, _UNSEEN * extremes(energies)[1])
    for atom in range(g.size):
        seen = energies[atom] > floor
        v = g[atom] / (energies[atom] if seen else 1.0)
        v = low if v < low else v
        v = high if v > high else v
        gain = v * g[atom] - 0.5 * v * v * energies[atom]
        out[atom] = gain if seen and v != 0.0 else -np.inf


@numba.njit(cache=True, nogil=True)
def _near(rules: Rules, atom: int, chosen: Chosen, skip: int, skip_too: int) -> bool:
    """Whether the atom is one of those chosen, or too close to one; two positions are left out."""
    for m in range(chosen.number[0]):
        if m != skip and m != skip_too and _clash(rules, atom, chosen.atoms[m]):
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _clash(rules: Rules, first: int, second: int) -> bool:
    """Whether two atoms are the same or too close to each other."""
    distance2 = _distance2(rules, first, second)
    return distance2 == 0 or distance2 < rules.exclusion * rules.exclusion


@numba.njit(cache=True, nogil=True)
def _distance2(rules: Rules, first: int, second: int) -> int:
    di = first // rules.width - second // rules.width
    dj = first % rules.width - second % rules.width
    return di * di + dj * dj


@numba.njit(cache=True, nogil=True)
def _fit(rules: Rules, chosen: Chosen) -> None:
    """Least squares on the chosen atoms, in the box.

    Dependent atoms are dropped, and with ``low = 0`` those that the fit turns negative.
    """
    x = chosen.x
    while chosen.number[0] > 0:
        k = chosen.number[0]
        sound = cholesky(chosen.gram, k, chosen.lower)
        if sound < k:
            drop(chosen, sound)
            continue
        if rules.low > 0.0 or rules.high < np.inf:
            _descend(rules, chosen)
            return
        cholesky_solve(chosen.lower, k, chosen.rhs, x)
        worst = k - 1
        for m in range(k):
            if x[m] < x[worst]:
                worst = m
        if x[worst] > rules.low:
            return
        drop(chosen, worst)


@numba.njit(cache=True, nogil=True)
def _descend(rules: Rules, chosen: Chosen) -> None:
    """Least squares in the box by coordinate descent."""
    k, x, gram = chosen.number[0], chosen.x, chosen.gram
    for _ in range(_MAX_ROUNDS):
        change, largest = 0.0, 0.0
        for m in range(k):
            s = chosen.rhs[m]
            for n in range(k):
                s -= gram[m, n] * x[n]
            new = _clip(x[m] + s / gram[m, m], rules.low, rules.high)
            change = max(change, abs(new - x[m]))
            largest = max(largest, abs(new))
            x[m] = new
        if change <= 1e-9 * largest:
            return


@numba.njit(cache=True, nogil=True)
def _improve(view: View, rules: Rules, chosen: Chosen) -> None:
    """Move atoms to better cells, one by one and then in pairs, until all stay."""
    r, scratch = np.empty(view.target.size), np.empty((18, view.target.size))
    for _ in range(_MAX_SWEEPS):
        residual(view, chosen, r)
        moved = False
        for m in range(chosen.number[0]):
            moved |= _move_one(view, rules, chosen, m, r, scratch[0])
        if not moved:
            for m in range(chosen.number[0]):
                for n in range(m):
                    moved |= _move_two(view, rules, chosen, m, n, r, scratch)
        if not moved:
            break
        for m in range(chosen.number[0]):
            update_equations(view, chosen, m)
        _fit(rules, chosen)


@numba.njit(cache=True, nogil=True)
def _move_one(
    view: View, rules: Rules, chosen: Chosen, m: int, r: FloatArray, column: FloatArray
) -> bool:
    """Move one atom to the cell within reach that gains most, the others as they are."""
    x, here, own = chosen.x, chosen.atoms[m], chosen.columns[m]
    add(x[m], own, r)
    most = _worth_moving(x[m] * inner(own, r) - 0.5 * x[m] ** 2 * inner(own, own))
    best = here
    span = int(rules.reach)
    height = view.a_y.shape[1] * view.a_x.shape[1] // rules.width
    i0, j0 = here // rules.width, here % rules.width
    for i in range(max(0, i0 - span), min(height, i0 + span + 1)):
        for j in range(max(0, j0 - span), min(rules.width, j0 + span + 1)):
            atom = i * rules.width + j
            if atom == here or _distance2(rules, atom, here) > rules.reach * rules.reach:
                continue
            if _near(rules, atom, chosen, m, m):
                continue
            write_atom(view, atom, column)
            v, gain = _best_value(rules, inner(column, r), inner(column, column))
            if gain > most and v != 0.0:
                best, most, x[m] = atom, gain, v
    chosen.atoms[m] = best
    write_atom(view, best, own)
    add(-x[m], own, r)
    return bool(best != here)


@numba.njit(cache=True, nogil=True)
def _move_two(
    view: View,
    rules: Rules,
    chosen: Chosen,
    m: int,
    n: int,
    r: FloatArray,
    columns: FloatArray,
) -> bool:
    """Move two atoms to the neighbouring cells that gain most together.

    Entries 0 to 8 of the arrays are the cells around atom m, 9 to 17 those around atom n; the
    middle ones, 4 and 13, are the atoms themselves.
    """
    x, atoms = chosen.x, chosen.atoms
    add(x[m], chosen.columns[m], r)
    add(x[n], chosen.columns[n], r)
    cells, g, energy = np.empty(18, np.int64), np.zeros(18), np.zeros(18)
    for c in range(18):
        cells[c] = _neighbour(view, rules, atoms[m] if c < 9 else atoms[n], c % 9)
        if c % 9 != 4 and _near(rules, cells[c], chosen, m, n):
            cells[c] = -1
        if cells[c] >= 0:
            write_atom(view, cells[c], columns[c])
            g[c], energy[c] = inner(columns[c], r), inner(columns[c], columns[c])
    cross = inner(columns[4], columns[13])
    most = _worth_moving(
        x[m] * g[4]
        + x[n] * g[13]
        - 0.5 * (x[m] ** 2 * energy[4] + x[n] ** 2 * energy[13])
        - x[m] * x[n] * cross
    )
    best_c, best_d, x_m, x_n = 4, 13, x[m], x[n]
    for c in range(9):
        for d in range(9, 18):
            if energy[c] <= 0.0 or energy[d] <= 0.0 or (c == 4 and d == 13):
                continue
            if _clash(rules, cells[c], cells[d]):
                continue
            # Atoms that change places are the same two atoms: do not let them cross.
            straight = _distance2(rules, cells[c], atoms[m]) + _distance2(rules, cells[d], atoms[n])
            crossed = _distance2(rules, cells[c], atoms[n]) + _distance2(rules, cells[d], atoms[m])
            if crossed < straight:
                continue
            cross = inner(columns[c], columns[d])
            v, w, gain = _best_pair(rules, g[c], g[d], energy[c], energy[d], cross)
            if gain > most and v != 0.0 and w != 0.0:
                best_c, best_d, most, x_m, x_n = c, d, gain, v, w
    atoms[m], atoms[n], x[m], x[n] = cells[best_c], cells[best_d], x_m, x_n
    write_atom(view, atoms[m], chosen.columns[m])
    write_atom(view, atoms[n], chosen.columns[n])
    add(-x[m], chosen.columns[m], r)
    add(-x[n], chosen.columns[n], r)
    return best_c != 4 or best_d != 13


@numba.njit(cache=True, nogil=True)
def _worth_moving(gain: float) -> float:
    """Gain that a move must exceed, given the gain without it."""
    return max(gain * _BETTER, gain / _BETTER)


@numba.njit(cache=True, nogil=True)
def _neighbour(view: View, rules: Rules, atom: int, which: int) -> int:
    """One of the 3 x 3 cells around an atom; -1 outside the map."""
    i, j = atom // rules.width + which // 3 - 1, atom % rules.width + which % 3 - 1
    height = view.a_y.shape[1] * view.a_x.shape[1] // rules.width
    if i < 0 or j < 0 or i >= height or j >= rules.width:
        return -1
    return i * rules.width + j


@numba.njit(cache=True, nogil=True)
def _best_pair(
    rules: Rules, g: float, h: float, energy_g: float, energy_h: float, cross: float
) -> tuple[float, float, float]:
    """Two coefficients in the box that gain most together, and their gain."""
    low, high = rules.low, rules.high
    determinant = energy_g * energy_h - cross * cross
    if determinant > 1e-12 * energy_g * energy_h:
        v = (g * energy_h - h * cross) / determinant
        w = (h * energy_g - g * cross) / determinant
        if low <= v <= high and low <= w <= high:
            return v, w, 0.5 * (v * g + w * h)
    # The optimum lies on an edge of the box.
    best_v, best_w, most = 0.0, 0.0, -np.inf
    for edge in (low, high):
        if not np.isfinite(edge):
            continue
        w = _clip((h - cross * edge) / energy_h, low, high)
        v = _clip((g - cross * edge) / energy_g, low, high)
        gain_v = edge * g + w * h - 0.5 * (edge**2 * energy_g + w**2 * energy_h) - edge * w * cross
        gain_w = v * g + edge * h - 0.5 * (v**2 * energy_g + edge**2 * energy_h) - v * edge * cross
        if gain_v > most:
            best_v, best_w, most = edge, w, gain_v
        if gain_w > most:
            best_v, best_w, most = v, edge, gain_w
    return best_v, best_w, most
