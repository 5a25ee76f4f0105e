r"""Which atom a pursuit takes next: of all, the one that lowers the energy most.

An atom is ``a_y,i a_x,j``, in row i and column j of the map. Its product with the weighted residual
is ``a_x,j . t_i``, where ``t_i`` (q,) sums up the residual along y, so that no atom of a row gains
more than

.. math:: \frac{\|t_i\|^2}{2 (\min_j e_{ij} / \|a_{x,j}\|^2 - \sum_m \|u_{m,i}\|^2)},

``e`` being the atoms' energies and ``u_m`` what ``t`` is of the orthonormal vectors that the chosen
atoms span, if these are refitted with an atom. Most rows gain too little and are never looked at.
A dense dictionary's atoms are a row each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.atoms import Box, Chosen, View, extremes, multiply, sum_rows
from csunmix._kernels.jit import leaf, part
from csunmix._kernels.linalg import copy, first_largest, largest
from csunmix._validation import FloatArray, IntArray

_UNSEEN = 1e-12  # energy of an atom not worth taking, relative to the largest
_ROUNDED = 1.0 + 1e-9  # bounds must hold in spite of rounding


class Rules(NamedTuple):
    """What a pursuit may do. Distances are in cells."""

    low: float  # box of the coefficients
    high: float
    width: int  # cells of the map along x
    exclusion: float  # smallest distance between two atoms
    reach: float  # how far an atom may move at once; 0 for no local optimisation
    refitted: bool  # count what the other atoms gain by refitting when an atom is taken


class Rows(NamedTuple):
    """What is known of the map's rows; ``along`` means summed up along y with a row's factor."""

    weighted: FloatArray  # (p, q), scratch
    image: FloatArray  # (q, k), the weighted image along y
    left: FloatArray  # the weighted residual
    dark: FloatArray  # zeros
    spans: FloatArray  # (n, q, k), orthonormal vectors that the chosen atoms span
    spanned: IntArray  # (n,), the atoms that each of these came with; -1 for none
    parts: FloatArray  # (n,), the image's products with these
    least: FloatArray  # (k,), least energy of a row's atoms over their squared norm along x
    hidden: FloatArray  # what the spanned vectors take of that
    bound: FloatArray  # gain that no atom of the row exceeds
    without: IntArray  # how many vectors `free` is without; -1 where it is of another image
    free: FloatArray  # (k, l), energies of the atoms, without what those vectors span, 0 for none
    inverse: FloatArray  # of these; 0 for none
    g: FloatArray  # (k, l), products of the atoms with the weighted residual
    products: FloatArray  # (l,), of a row's atoms with a vector, scratch
    gain: FloatArray  # (l,), of a row's atoms
    per_norm: FloatArray  # one over the squared norm of each factor along x, 0 for none
    floor: FloatArray  # (1,), energy of an atom not worth taking
    rays: FloatArray  # (n, k), products of each chosen atom's factor along y with those of all rows
    across: FloatArray  # (n, q), its factor along x
    ray_of: IntArray  # (n,), the atom of each of these
    r: FloatArray  # (p q,), scratch


@part()
def new_rows(view: View, most: int) -> Rows:
    """Room for `most` chosen atoms."""
    n_p, n_q = view.root.shape
    height, width = view.a_y.shape[1], view.a_x.shape[1]
    maps, rows = np.zeros((3, n_q, height)), np.empty((3, height))
    cells, row = np.empty((3, height, width)), np.empty((3, width))
    for j in range(width):
        norm2 = 0.0
        for q in range(n_q):
            norm2 += view.a_x[q, j] ** 2
        row[2, j] = 1.0 / norm2 if norm2 > 0.0 else 0.0
    return Rows(
        np.empty((n_p, n_q)),
        maps[0],
        maps[1],
        maps[2],
        np.empty((most, n_q, height)),
        np.full(most, -1),
        np.empty(most),
        rows[0],
        rows[1],
        rows[2],
        np.empty(height, np.int64),
        cells[0],
        cells[1],
        cells[2],
        row[0],
        row[1],
        row[2],
        np.empty(1),
        np.empty((most, height)),
        np.empty((most, n_q)),
        np.full(most, -1),
        np.empty(n_p * n_q),
    )


@leaf()
def weigh(energies: FloatArray, rows: Rows) -> None:
    """Begin with other energies of the atoms (k l,)."""
    width = rows.per_norm.size
    rows.floor[0] = _UNSEEN * extremes(energies)[1]
    for i in range(rows.least.size):
        least = np.inf
        for j in range(width):
            energy = energies[i * width + j]
            over = energy * rows.per_norm[j]
            least = over if (energy > rows.floor[0]) & (over < least) else least
        rows.least[i] = least
    forget(rows)


@leaf()
def forget(rows: Rows) -> None:
    """Begin with no atom chosen."""
    for m in range(rows.spanned.size):
        rows.spanned[m] = -1
    for i in range(rows.hidden.size):
        rows.hidden[i], rows.without[i] = 0.0, -1


@leaf()
def see(view: View, r: FloatArray, rows: Rows, out: FloatArray) -> None:
    """Weighted image or residual along y, (q, k)."""
    n_p, n_q = view.root.shape
    for p in range(n_p):
        for q in range(n_q):
            rows.weighted[p, q] = view.root[p, q] * r[p * n_q + q]
    multiply(rows.weighted, view.a_y, Box(0, n_q, 0, view.a_y.shape[1]), out)


@leaf()
def see_left(view: View, chosen: Chosen, r: FloatArray, rows: Rows) -> None:
    """The residual `r` that the chosen atoms leave of the image, along y, into `rows.left`."""
    if np.isnan(view.even[0]):
        see(view, r, rows, rows.left)
        return
    k = chosen.number[0]
    _see_atoms(view, chosen, k, rows)
    _write_sum(-view.even[0], chosen.x[:k], rows, rows.image, rows.left)


@leaf()
def _see_atoms(view: View, chosen: Chosen, k: int, rows: Rows) -> None:
    """The first chosen atoms along y where all weights are the same: products of two factors."""
    width, height = view.a_x.shape[1], view.a_y.shape[1]
    for m in range(k):
        atom = chosen.atoms[m]
        if rows.ray_of[m] != atom:
            rows.ray_of[m], i, j = atom, atom // width, np.uint64(atom % width)
            sum_rows(view.a_y, view.a_y, Box(i, i + 1, 0, height), rows.rays[m])
            for q in range(np.uint64(view.a_x.shape[0])):
                rows.across[m, q] = view.a_x[q, j]


@leaf(fastmath={"contract"})
def _write_sum(
    weight: float, factors: FloatArray, rows: Rows, start: FloatArray, out: FloatArray
) -> None:
    """``start`` and `weight` times the sum of seen atoms times `factors`, four at a time."""
    across, rays, last = rows.across, rows.rays, factors.size - 1
    n_q, height = np.uint64(out.shape[0]), np.uint64(out.shape[1])
    if factors.size == 0:
        copy(start.reshape(start.size), out.reshape(out.size))
    for first in range(0, factors.size, 4):
        m0, m1 = np.uint64(first), np.uint64(min(first + 1, last))
        m2, m3 = np.uint64(min(first + 2, last)), np.uint64(min(first + 3, last))
        # Beyond the last atom there are zeros of it.
        f0, f1 = weight * factors[m0], weight * factors[m1] if first < last else 0.0
        f2 = weight * factors[m2] if first + 1 < last else 0.0
        f3 = weight * factors[m3] if first + 2 < last else 0.0
        for q in range(n_q):
            u0, u1 = f0 * across[m0, q], f1 * across[m1, q]
            u2, u3 = f2 * across[m2, q], f3 * across[m3, q]
            if first == 0:
                for i in range(height):
                    out[q, i] = start[q, i] + (
                        (u0 * rays[m0, i] + u1 * rays[m1, i])
                        + (u2 * rays[m2, i] + u3 * rays[m3, i])
                    )
            else:
                for i in range(height):
                    out[q, i] += (u0 * rays[m0, i] + u1 * rays[m1, i]) + (
                        u2 * rays[m2, i] + u3 * rays[m3, i]
                    )


@leaf()
def span(view: View, chosen: Chosen, rows: Rows, share: FloatArray) -> bool:
    """Take what the chosen atoms span from what others can gain.

    For the atoms in `rows.spanned` it was done before; False if one of them has gone: all must
    start anew. The factor `chosen.lower` must be the chosen atoms'.
    """
    k, lower, spanned = chosen.number[0], chosen.lower, rows.spanned
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
        spanned[m], rows.parts[m] = chosen.atoms[m], 0.0
        for n in range(m + 1):
            rows.parts[m] += share[n] * chosen.rhs[n]
        _see_sum(view, chosen, share[: m + 1], rows, rows.spans[m])
        _add_squares(rows.spans[m], rows.hidden)
    return True


@leaf()
def _see_sum(view: View, chosen: Chosen, factors: FloatArray, rows: Rows, out: FloatArray) -> None:
    """The sum of the first chosen atoms times `factors`, along y."""
    k = factors.size
    if np.isnan(view.even[0]):
        sum_rows(factors.reshape(k, 1), chosen.columns[:k], Box(0, 1, 0, rows.r.size), rows.r)
        see(view, rows.r, rows, out)
    else:
        _see_atoms(view, chosen, k, rows)
        _write_sum(view.even[0], factors, rows, rows.dark, out)


@leaf()
def select(
    view: View, rules: Rules, energies: FloatArray, rows: Rows, chosen: Chosen
) -> tuple[int, float]:
    """Atom that gains most outside the bands of those chosen, and its coefficient; -1 if none.

    `rows.left` must be the residual's; `energies` (k l,) are all atoms'.
    """
    best, value, most, width = -1, 0.0, -np.inf if bounded(rules) else 0.0, view.a_x.shape[1]
    kept = rules.refitted and not bounded(rules)  # what atoms explain is then what they span
    _bound(rows)
    while True:
        i = first_largest(rows.bound)
        if not rows.bound[i] > most:
            return best, value
        rows.bound[i] = -np.inf
        _update_row(view, energies, i, kept, rows)
        if not kept:
            sum_rows(rows.left, view.a_x, Box(i, i + 1, 0, width), rows.g[i])
        j = _best_in_row(rules, i, most, rows, chosen)
        if j >= 0:
            best, most = i * width + j, rows.gain[j]
            value = clip(rows.g[i, j] * rows.inverse[i, j], rules.low, rules.high)


@leaf()
def _bound(rows: Rows) -> None:
    """Gain that no atom of a row exceeds."""
    for i in range(rows.bound.size):
        rows.bound[i] = 0.0
    _add_squares(rows.left, rows.bound)
    for i in range(rows.bound.size):
        left = rows.least[i] - rows.hidden[i]
        rows.bound[i] = 0.5 * _ROUNDED * rows.bound[i] / left if left > 0.0 else np.inf


@leaf(fastmath={"contract"})
def _add_squares(a: FloatArray, out: FloatArray) -> None:
    """``out += sum_q a^2`` of ``a`` (q, k)."""
    for q in range(np.uint64(a.shape[0])):
        for i in range(np.uint64(a.shape[1])):
            out[i] += a[q, i] * a[q, i]


@leaf()
def _update_row(view: View, energies: FloatArray, i: int, kept: bool, rows: Rows) -> None:
    """Energies of a row's atoms without what the chosen ones span, and products, if `kept`."""
    width, n_spanned = rows.gain.size, 0
    while n_spanned < rows.spanned.size and rows.spanned[n_spanned] >= 0:
        n_spanned += 1
    if rows.without[i] == n_spanned:
        return
    free, inverse = rows.free[i], rows.inverse[i]
    if rows.without[i] < 0:
        rows.without[i] = 0
        for j in range(width):
            energy = energies[i * width + j]
            free[j] = energy if energy > rows.floor[0] else 0.0
        if kept:
            sum_rows(rows.image, view.a_x, Box(i, i + 1, 0, width), rows.g[i])
    for m in range(rows.without[i], n_spanned):
        sum_rows(rows.spans[m], view.a_x, Box(i, i + 1, 0, width), rows.products)
        _take_out(rows.products, rows.parts[m], rows.g[i], free)
    for j in range(width):
        new = 1.0 / (free[j] if free[j] > 0.0 else 1.0)
        inverse[j] = new if free[j] > 0.0 else 0.0
    rows.without[i] = n_spanned


@leaf(fastmath={"contract"})
def _take_out(products: FloatArray, part: float, g: FloatArray, free: FloatArray) -> None:
    """Take from atoms an orthonormal vector, of which they have these products and an image `part`.

    Energies lessen by the squares, to 0 where next to nothing is left.
    """
    for j in range(free.size):
        g[j] -= part * products[j]
        left = free[j] - products[j] * products[j]
        free[j] = left if left > _UNSEEN * free[j] else 0.0


@leaf()
def _best_in_row(rules: Rules, i: int, most: float, rows: Rows, chosen: Chosen) -> int:
    """Column of the row's atom that gains most, and more than `most`; -1 if none."""
    gain, k = rows.gain, chosen.number[0]
    _write_gains(rules, rows.g[i], rows.free[i], rows.inverse[i], gain)
    while True:
        if not largest(gain) > most:
            return -1
        best = first_largest(gain)
        if not near(rules, i * gain.size + best, chosen, k, k):
            return best
        gain[best] = -np.inf


@leaf()
def _write_gains(
    rules: Rules, g: FloatArray, free: FloatArray, inverse: FloatArray, out: FloatArray
) -> None:
    """Gain of each atom with its best coefficient in the box, without branches.

    As by `best_value`, but -inf where there is none.
    """
    low, high = rules.low, rules.high
    if bounded(rules):
        for j in range(g.size):
            v = g[j] * inverse[j]
            v = low if v < low else v
            v = high if v > high else v
            gain = v * (g[j] - 0.5 * v * free[j])
            out[j] = gain if (inverse[j] > 0.0) & (v != 0.0) else -np.inf
    else:
        for j in range(g.size):
            h = low if g[j] < low else g[j]
            out[j] = 0.5 * h * h * inverse[j]


@leaf()
def select_again(
    view: View, rules: Rules, energies: FloatArray, rows: Rows, atoms: IntArray
) -> tuple[int, float]:
    """Of these atoms the one that gains most, and its coefficient; -1 if none."""
    best, value, most, width = -1, 0.0, 0.0, view.a_x.shape[1]
    for atom in atoms:
        i, j, g = atom // width, atom % width, 0.0
        for q in range(view.a_x.shape[0]):
            g += rows.left[q, i] * view.a_x[q, j]
        v, gain = best_value(rules, g, energies[atom])
        if gain > most and v != 0.0:
            best, value, most = atom, v, gain
    return best, value


@leaf()
def bounded(rules: Rules) -> bool:
    """Whether the box is more than a sign."""
    return rules.low > 0.0 or rules.high < np.inf


@leaf()
def best_value(rules: Rules, g: float, energy: float) -> tuple[float, float]:
    """Coefficient in the box that gains most, and its gain ``v g - v^2 energy / 2``."""
    if energy <= 0.0:  # an atom that no pixel sees
        return 0.0, 0.0
    v = clip(g / energy, rules.low, rules.high)
    return v, v * g - 0.5 * v * v * energy


@leaf()
def clip(value: float, low: float, high: float) -> float:
    """The value in the box nearest to one."""
    return min(max(value, low), high)


@leaf()
def near(rules: Rules, atom: int, chosen: Chosen, skip: int, skip_too: int) -> bool:
    """Whether the atom is one of those chosen, or too close to one; two positions are left out."""
    for m in range(chosen.number[0]):
        if m != skip and m != skip_too and clash(rules, atom, chosen.atoms[m]):
            return True
    return False


@leaf()
def clash(rules: Rules, first: int, second: int) -> bool:
    """Whether two atoms are the same or too close to each other."""
    if not rules.exclusion > 0.0:
        return first == second
    apart = distance2(rules, first, second)
    return apart == 0 or apart < rules.exclusion * rules.exclusion


@leaf()
def distance2(rules: Rules, first: int, second: int) -> int:
    """Squared distance of two atoms, in cells."""
    di = first // rules.width - second // rules.width
    dj = first % rules.width - second % rules.width
    return di * di + dj * dj
