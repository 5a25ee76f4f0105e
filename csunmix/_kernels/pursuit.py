"""Greedy pursuits, one image at a time.

Coefficients are kept in the box ``[low, high]``, infinite where there is no limit. Of all atoms the
one is taken that lowers the energy ``1/2 ||r||^2`` most with its coefficient in the box.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.atoms import (
    Chosen,
    View,
    append,
    drop,
    long_inner,
    look,
    new_chosen,
    new_view,
    residual,
    update_equations,
    write_atom,
)
from csunmix._kernels.jit import kernel, leaf, part
from csunmix._kernels.linalg import add, cholesky_append, cholesky_solve, inner
from csunmix._kernels.selection import (
    Rules,
    begin,
    best_value,
    bounded,
    clash,
    clip,
    distance2,
    forget,
    near,
    new_rows,
    see,
    see_left,
    select,
    select_again,
    span,
    spanning,
    weigh,
)
from csunmix._validation import FloatArray, IntArray

_MAX_SWEEPS = 50  # of local optimisation over all chosen atoms
_MAX_ROUNDS = 500  # of coordinate descent in the box
_BETTER = 1.0 + 1e-9  # a move must gain more than rounding


class Picks(NamedTuple):
    """Atoms and coefficients of each image, from 0 to before `number`."""

    number: IntArray  # (b,)
    atoms: IntArray  # (b, n)
    x: FloatArray


@kernel()
def orthogonal_matching_pursuit(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    energies: FloatArray,
    n_nonzero: int,
    residual_tol: float,
    rules: Rules,
    picks: Picks,
    n_iter: IntArray,
    energy: FloatArray,
) -> None:
    """Pursue each image; `picks` holds the start, has room for the answer, and becomes it.

    `energies` (b or 1, k l) are the squared norms of the weighted atoms; `energy` (b,) becomes
    the squared norm of the weighted residual.
    """
    n_pixels, most = y[0].size, min(n_nonzero, picks.atoms.shape[1], y[0].size)
    view, chosen = new_view(a_y, a_x, y[0], weights[0]), new_chosen(most + 1, n_pixels)
    number, rows, r = chosen.number, new_rows(view, most), np.empty(n_pixels)
    for b in range(len(y)):
        look(view, y[b], weights[b])
        own = energies[min(b, len(energies) - 1)]
        if b == 0 or len(energies) > 1:
            weigh(own, rows)
        elif rules.refitted:
            forget(rows)
        begin(view, rows)
        uneven, number[0] = np.isnan(view.even[0]), 0
        for m in range(min(picks.number[b], most)):
            append(view, chosen, picks.atoms[b, m], picks.x[b, m], 0.0)
        before, energy[b] = -1, np.inf
        while True:
            _fit(rules, chosen, max(before, 0))
            if rules.reach > 0.0:
                _improve(view, rules, chosen)
            residual(view, chosen, r)
            left, k = long_inner(r, r), number[0]
            if left < energy[b]:
                energy[b] = left
                _keep(chosen, picks, b)
            # An atom that found no place ends the pursuit too.
            if k == most or k <= before or left <= residual_tol * residual_tol:
                break
            before = k
            if rules.refitted and not span(view, chosen, rows):
                forget(rows)
                span(view, chosen, rows)
            if not spanning(rules):
                see_left(view, chosen, r, rows)
            best, value = select(view, rules, own, uneven, rows, chosen)
            if best < 0:
                break
            append(view, chosen, best, value, 0.0)
            n_iter[b] += 1


@kernel()
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
    picks: Picks,
    n_iter: IntArray,
    energy: FloatArray,
) -> None:
    """Pursue each image; `picks` holds the start, has room for the answer, and becomes it.

    `energies` (b or 1, k l) are the squared norms of the weighted atoms; `energy` (b,) becomes
    the squared norm of the weighted residual.
    """
    n_pixels = y[0].size
    view, none = new_view(a_y, a_x, y[0], weights[0]), new_chosen(0, 0)
    rows, r, column = new_rows(view, 0), np.empty(n_pixels), np.empty(n_pixels)
    afresh = True  # as no atoms are kept that the image is known to be without
    for b in range(len(y)):
        look(view, y[b], weights[b])
        own = energies[min(b, len(energies) - 1)]
        if b == 0 or len(energies) > 1:
            weigh(own, rows)
        atoms, x = picks.atoms[b], picks.x[b]
        r[:], number = view.target, picks.number[b]
        for m in range(number):
            write_atom(view, atoms[m], column)
            add(-x[m], column, r)
        for step in range(max_iter + 1):
            energy[b] = long_inner(r, r)
            if step == max_iter or energy[b] <= residual_tol * residual_tol:
                break
            see(view, r, rows, rows.left)
            if number < min(n_nonzero, atoms.size):
                best, value = select(view, rules, own, afresh, rows, none)
            else:
                best, value = select_again(view, rules, own, rows, atoms[:number])
            if best < 0:
                break
            write_atom(view, best, column)
            add(-value, column, r)
            m = 0
            while m < number and atoms[m] != best:
                m += 1
            if m == number:
                atoms[m], x[m], number = best, 0.0, number + 1
            x[m] += value
            n_iter[b] += 1
        picks.number[b] = number


@leaf()
def _keep(chosen: Chosen, picks: Picks, b: int) -> None:
    """Write down what is chosen for an image."""
    picks.number[b], image = chosen.number[0], np.uint64(b)
    for m in range(np.uint64(chosen.number[0])):
        picks.atoms[image, m], picks.x[image, m] = chosen.atoms[m], chosen.x[m]


@leaf()
def _fit(rules: Rules, chosen: Chosen, sound: int) -> None:
    """Least squares on the chosen atoms, in the box; the first `sound` are in the factor already.

    Dependent atoms are dropped, and with ``low = 0`` those that the fit turns negative.
    """
    x = chosen.x
    while chosen.number[0] > 0:
        k = chosen.number[0]
        while sound < k and cholesky_append(chosen.gram, sound, chosen.lower):
            sound += 1
        if sound < k:
            drop(chosen, sound)
            continue
        if bounded(rules):
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
        sound = worst


@leaf()
def _descend(rules: Rules, chosen: Chosen) -> None:
    """Least squares in the box by coordinate descent."""
    k, x, gram = chosen.number[0], chosen.x, chosen.gram
    for _ in range(_MAX_ROUNDS):
        change, largest = 0.0, 0.0
        for m in range(k):
            s = chosen.rhs[m]
            for n in range(k):
                s -= gram[m, n] * x[n]
            new = clip(x[m] + s / gram[m, m], rules.low, rules.high)
            change = max(change, abs(new - x[m]))
            largest = max(largest, abs(new))
            x[m] = new
        if change <= 1e-9 * largest:
            return


@part()
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
        _fit(rules, chosen, 0)


@leaf()
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
            if atom == here or distance2(rules, atom, here) > rules.reach * rules.reach:
                continue
            if near(rules, atom, chosen, m, m):
                continue
            write_atom(view, atom, column)
            v, gain = best_value(rules, inner(column, r), inner(column, column))
            if gain > most and v != 0.0:
                best, most, x[m] = atom, gain, v
    chosen.atoms[m] = best
    write_atom(view, best, own)
    add(-x[m], own, r)
    return bool(best != here)


@part()
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
    cells, g, energy = np.empty(18, np.int64), filled(18, 0.0), filled(18, 0.0)
    for c in range(18):
        cells[c] = _neighbour(view, rules, atoms[m] if c < 9 else atoms[n], c % 9)
        if c % 9 != 4 and near(rules, cells[c], chosen, m, n):
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
            if clash(rules, cells[c], cells[d]):
                continue
            # Atoms that change places are the same two atoms: do not let them cross.
            straight = distance2(rules, cells[c], atoms[m]) + distance2(rules, cells[d], atoms[n])
            crossed = distance2(rules, cells[c], atoms[n]) + distance2(rules, cells[d], atoms[m])
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


@leaf()
def _worth_moving(gain: float) -> float:
    """Gain that a move must exceed, given the gain without it."""
    return max(gain * _BETTER, gain / _BETTER)


@leaf()
def _neighbour(view: View, rules: Rules, atom: int, which: int) -> int:
    """One of the 3 x 3 cells around an atom; -1 outside the map."""
    i, j = atom // rules.width + which // 3 - 1, atom % rules.width + which % 3 - 1
    height = view.a_y.shape[1] * view.a_x.shape[1] // rules.width
    if i < 0 or j < 0 or i >= height or j >= rules.width:
        return -1
    return i * rules.width + j


@leaf()
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
        w = clip((h - cross * edge) / energy_h, low, high)
        v = clip((g - cross * edge) / energy_g, low, high)
        gain_v = edge * g + w * h - 0.5 * (edge**2 * energy_g + w**2 * energy_h) - edge * w * cross
        gain_w = v * g + edge * h - 0.5 * (v**2 * energy_g + edge**2 * energy_h) - v * edge * cross
        if gain_v > most:
            best_v, best_w, most = edge, w, gain_v
        if gain_w > most:
            best_v, best_w, most = v, edge, gain_w
    return best_v, best_w, most
