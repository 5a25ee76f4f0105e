"""Greedy pursuits, one image at a time.

Coefficients are kept in the box ``[low, high]``, infinite where there is no limit. Of all atoms the
one is taken that lowers the energy ``1/2 ||r||^2`` most with its coefficient in the box.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.atoms import (
    Box,
    Chosen,
    View,
    append,
    correlate,
    drop,
    extremes,
    long_inner,
    look,
    multiply,
    new_chosen,
    new_view,
    residual,
    sum_rows,
    update_equations,
    write_atom,
    write_rays,
)
from csunmix._kernels.jit import kernel, leaf, part
from csunmix._kernels.linalg import add, cholesky_append, cholesky_solve, inner
from csunmix._validation import FloatArray, IntArray

_MAX_SWEEPS = 50  # of local optimisation over all chosen atoms
_MAX_ROUNDS = 500  # of coordinate descent in the box
_UNSEEN = 1e-12  # energy of an atom not worth taking, relative to the largest
_BLOCK = 64  # atoms, so that the largest gain is found without branches
_BETTER = 1.0 + 1e-9  # a move must gain more than rounding


class Rules(NamedTuple):
    """What a pursuit may do. Distances are in cells."""

    low: float  # box of the coefficients
    high: float
    width: int  # cells of the map along x
    exclusion: float  # smallest distance between two atoms
    reach: float  # how far an atom may move at once; 0 for no local optimisation
    refitted: bool  # count what the other atoms gain by refitting when an atom is taken


class _Room(NamedTuple):
    """Scratch that serves one image after the other; maps are flat."""

    image: FloatArray  # inner products of all atoms with the image
    fit: FloatArray  # with what the chosen atoms explain of it
    products: FloatArray  # with what one more of them explains
    free: FloatArray  # energies of the atoms, without what the chosen ones span
    inverse: FloatArray  # of these; 0 for an atom that is not worth taking
    gain: FloatArray  # in whole blocks, -inf behind the last atom
    largest: FloatArray  # of the gains in each block of `_BLOCK` atoms
    rays: FloatArray  # of each chosen atom, see `write_rays`
    along_y: FloatArray  # rays along y times factors
    ray_of: IntArray  # the atom of each ray
    spanned: IntArray  # atoms that `free` is without
    share: FloatArray
    r: FloatArray


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
    number, room = chosen.number, _new_room(a_y, a_x, most, n_pixels)
    for b in range(len(y)):
        view = look(view, y[b], weights[b])
        own = energies[min(b, len(energies) - 1)]
        if b == 0 or rules.refitted or len(energies) > 1:
            _renew(own, room)
        correlate(view, view.target, room.image)
        number[0] = 0
        for m in range(min(picks.number[b], most)):
            append(view, chosen, picks.atoms[b, m], picks.x[b, m], 0.0)
        before, energy[b] = -1, np.inf
        while True:
            _fit(rules, chosen, max(before, 0))
            if rules.reach > 0.0:
                _improve(view, rules, chosen)
            residual(view, chosen, room.r)
            left, k = long_inner(room.r, room.r), number[0]
            if left < energy[b]:
                energy[b] = left
                _keep(chosen, picks, b)
            # An atom that found no place ends the pursuit too.
            if k == most or k <= before or left <= residual_tol * residual_tol:
                break
            before = k
            if rules.refitted and not _project_out(view, chosen, room):
                _renew(own, room)
                _project_out(view, chosen, room)
            if not rules.refitted or _bounded(rules):
                _write_products(view, chosen, chosen.x[:k], room, room.fit)
            best, value = _select(rules, room, chosen)
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
    view, room = new_view(a_y, a_x, y[0], weights[0]), _new_room(a_y, a_x, 0, n_pixels)
    r, column, none = room.r, np.empty(n_pixels), new_chosen(0, 0)
    for b in range(len(y)):
        view = look(view, y[b], weights[b])
        if b == 0 or len(energies) > 1:
            _renew(energies[b], room)
        atoms, x = picks.atoms[b], picks.x[b]
        r[:], number = view.target, picks.number[b]
        for m in range(number):
            write_atom(view, atoms[m], column)
            add(-x[m], column, r)
        for step in range(max_iter + 1):
            energy[b] = long_inner(r, r)
            if step == max_iter or energy[b] <= residual_tol * residual_tol:
                break
            correlate(view, r, room.image)
            if number < min(n_nonzero, atoms.size):
                best, value = _select(rules, room, none)
            else:
                best, value = _select_again(rules, room, atoms)
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


@part()
def _new_room(a_y: FloatArray, a_x: FloatArray, most: int, n_pixels: int) -> _Room:
    """Room for `most` chosen atoms."""
    height, width = a_y.shape[1], a_x.shape[1]
    if width == 1:  # a dense dictionary's map is one row
        height, width = 1, height
    maps, n_blocks = np.zeros((5, height * width)), height * width // _BLOCK + 1
    return _Room(
        maps[0],
        maps[1],
        maps[2],
        maps[3],
        maps[4],
        np.full(n_blocks * _BLOCK, -np.inf),
        np.empty(n_blocks),
        np.empty((most, height + width)),
        np.empty((most, height)),
        np.full(most, -1),
        np.full(most, -1),
        np.empty(most),
        np.empty(n_pixels),
    )


@leaf()
def _keep(chosen: Chosen, picks: Picks, b: int) -> None:
    """Write down what is chosen for an image."""
    picks.number[b] = chosen.number[0]
    for m in range(chosen.number[0]):
        picks.atoms[b, m], picks.x[b, m] = chosen.atoms[m], chosen.x[m]


@leaf()
def _renew(energies: FloatArray, room: _Room) -> None:
    """Begin with the energies of all atoms, none spanned."""
    room.spanned[:], room.fit[:] = -1, 0.0
    _invert(energies, _UNSEEN * extremes(energies)[1], room.free, room.inverse)


@leaf()
def _invert(energies: FloatArray, floor: float, copy: FloatArray, inverse: FloatArray) -> None:
    """Copy energies, and invert those above `floor`; 0 for others."""
    for atom in range(energies.size):
        seen = energies[atom] > floor
        new = 1.0 / (energies[atom] if seen else 1.0)
        copy[atom], inverse[atom] = energies[atom], new if seen else 0.0


@leaf()
def _write_products(
    view: View, chosen: Chosen, factors: FloatArray, room: _Room, out: FloatArray
) -> None:
    """Inner products of all atoms with the sum of the first chosen ones, times `factors`."""
    k, even = factors.size, view.even
    if np.isnan(even):
        sum_rows(factors.reshape(k, 1), chosen.columns[:k], Box(0, 1, 0, room.r.size), room.r)
        correlate(view, room.r, out)
        return
    rays, along_y, ray_of, atoms = room.rays, room.along_y, room.ray_of, chosen.atoms
    height = along_y.shape[1]
    for m in range(k):
        if ray_of[m] != atoms[m]:
            ray_of[m] = atoms[m]
            write_rays(view, atoms[m], rays[m])
        for i in range(height):
            along_y[m, i] = even * factors[m] * rays[m, i]
    box = Box(0, height, height, rays.shape[1])
    multiply(along_y[:k], rays[:k], box, out.reshape(height, out.size // height))


@leaf()
def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@leaf()
def _best_value(rules: Rules, g: float, energy: float) -> tuple[float, float]:
    """Coefficient in the box that gains most, and its gain ``v g - v^2 energy / 2``."""
    if energy <= 0.0:  # an atom that no pixel sees
        return 0.0, 0.0
    v = _clip(g / energy, rules.low, rules.high)
    return v, v * g - 0.5 * v * v * energy


@leaf()
def _project_out(view: View, chosen: Chosen, room: _Room) -> bool:
    """Take from the energies of all atoms what the chosen ones span, and write what these explain.

    For the atoms in `room.spanned` it was done before; False if one of them has gone: all must
    start anew. The factor `chosen.lower` must be the chosen atoms'. What they explain, `room.fit`,
    is that of their least squares, to be written over where coefficients are bounded.
    """
    k, lower, spanned, share = chosen.number[0], chosen.lower, room.spanned, room.share
    for m in range(spanned.size):
        if spanned[m] >= 0 and (m >= k or chosen.atoms[m] != spanned[m]):
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
        spanned[m], value = chosen.atoms[m], 0.0
        for n in range(m + 1):
            value += share[n] * chosen.rhs[n]
        _write_products(view, chosen, share[: m + 1], room, room.products)
        _take_in(room.products, value, room.fit, room.free, room.inverse)
    return True


@leaf(fastmath={"contract"})
def _take_in(
    products: FloatArray, value: float, fit: FloatArray, free: FloatArray, inverse: FloatArray
) -> None:
    """Add an orthonormal vector, of which all atoms have these products, to the fit.

    Energies lessen by the squares; an atom of which nothing is left is done with.
    """
    for atom in range(free.size):
        fit[atom] += value * products[atom]
        left = free[atom] - products[atom] * products[atom]
        seen = (left > _UNSEEN * free[atom]) & (inverse[atom] > 0.0)
        new = 1.0 / (left if seen else 1.0)
        free[atom], inverse[atom] = left, new if seen else 0.0


@leaf()
def _select(rules: Rules, room: _Room, chosen: Chosen) -> tuple[int, float]:
    """Atom that gains most outside the bands of those chosen, and its coefficient; -1 if none."""
    k, gain, largest = chosen.number[0], room.gain, room.largest
    image, fit, inverse = room.image, room.fit, room.inverse
    if _bounded(rules):
        _write_bounded_gains(rules.low, rules.high, image, fit, room.free, inverse, gain)
    else:
        _write_gains(rules.low, image, fit, inverse, gain)
    for block in range(largest.size):
        largest[block] = _largest_in(gain, block)
    while True:
        block = 0
        for other in range(largest.size):
            block = other if largest[other] > largest[block] else block
        if not largest[block] > (-np.inf if _bounded(rules) else 0.0):
            return -1, 0.0
        atom = block * _BLOCK
        while gain[atom] < largest[block]:
            atom += 1
        if not _near(rules, atom, chosen, k, k):
            value = (image[atom] - fit[atom]) * inverse[atom]
            return atom, _clip(value, rules.low, rules.high)
        gain[atom] = -np.inf
        largest[block] = _largest_in(gain, block)


@leaf()
def _largest_in(gain: FloatArray, block: int) -> float:
    """Largest gain of a block, by four at a time; indices that may be negative are slower."""
    a, b, c, d, one = -np.inf, -np.inf, -np.inf, -np.inf, np.uint64(1)
    first = np.uint64(block * _BLOCK)
    for n in range(first, first + np.uint64(_BLOCK), np.uint64(4)):
        a, b = max(a, gain[n]), max(b, gain[n + one])
        c, d = max(c, gain[n + one + one]), max(d, gain[n + one + one + one])
    return max(max(a, b), max(c, d))


@leaf()
def _bounded(rules: Rules) -> bool:
    """Whether the box is more than a sign."""
    return rules.low > 0.0 or rules.high < np.inf


@leaf(fastmath={"contract"})
def _write_gains(
    low: float, image: FloatArray, fit: FloatArray, inverse: FloatArray, out: FloatArray
) -> None:
    """Gain of each atom with a coefficient of at least `low`, 0 or -inf."""
    for atom in range(image.size):
        g = image[atom] - fit[atom]
        g = low if g < low else g
        out[atom] = 0.5 * g * g * inverse[atom]


@leaf(fastmath={"contract"})
def _write_bounded_gains(
    low: float,
    high: float,
    image: FloatArray,
    fit: FloatArray,
    free: FloatArray,
    inverse: FloatArray,
    out: FloatArray,
) -> None:
    """Gain of each atom as by `_best_value`, without branches; -inf where there is none."""
    for atom in range(image.size):
        g = image[atom] - fit[atom]
        v = g * inverse[atom]
        v = low if v < low else v
        v = high if v > high else v
        gain = v * (g - 0.5 * v * free[atom])
        out[atom] = gain if (inverse[atom] > 0.0) & (v != 0.0) else -np.inf


@leaf()
def _select_again(rules: Rules, room: _Room, atoms: IntArray) -> tuple[int, float]:
    """Of these atoms the one that gains most, and its coefficient; -1 if none."""
    best, value, most = -1, 0.0, 0.0
    g, free = room.image, room.free
    for atom in atoms:
        v, gain = _best_value(rules, g[atom], free[atom])
        if gain > most and v != 0.0:
            best, value, most = atom, v, gain
    return best, value


@leaf()
def _near(rules: Rules, atom: int, chosen: Chosen, skip: int, skip_too: int) -> bool:
    """Whether the atom is one of those chosen, or too close to one; two positions are left out."""
    for m in range(chosen.number[0]):
        if m != skip and m != skip_too and _clash(rules, atom, chosen.atoms[m]):
            return True
    return False


@leaf()
def _clash(rules: Rules, first: int, second: int) -> bool:
    """Whether two atoms are the same or too close to each other."""
    distance2 = _distance2(rules, first, second)
    return distance2 == 0 or distance2 < rules.exclusion * rules.exclusion


@leaf()
def _distance2(rules: Rules, first: int, second: int) -> int:
    di = first // rules.width - second // rules.width
    dj = first % rules.width - second % rules.width
    return di * di + dj * dj


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
        if _bounded(rules):
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
            new = _clip(x[m] + s / gram[m, m], rules.low, rules.high)
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
        _fit(rules, chosen, min(0, chosen.number[0]))  # a literal would compile it once more


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
        w = _clip((h - cross * edge) / energy_h, low, high)
        v = _clip((g - cross * edge) / energy_g, low, high)
        gain_v = edge * g + w * h - 0.5 * (edge**2 * energy_g + w**2 * energy_h) - edge * w * cross
        gain_w = v * g + edge * h - 0.5 * (v**2 * energy_g + edge**2 * energy_h) - v * edge * cross
        if gain_v > most:
            best_v, best_w, most = edge, w, gain_v
        if gain_w > most:
            best_v, best_w, most = v, edge, gain_w
    return best_v, best_w, most
