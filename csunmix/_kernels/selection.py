r"""Which atom a pursuit takes next: of all, the one that lowers the energy most.

An atom is ``a_y,i a_x,j``, in row i and column j of the map. Its product with the weighted residual
is ``a_x,j . t_i``, where ``t_i`` (q,) sums up the residual along y, so that no atom of a row gains
more than

.. math:: \frac{\|t_i\|^2}{2 (\min_j e_{ij} / \|a_{x,j}\|^2 - \sum_m \|u_{m,i}\|^2)},

``e`` being the atoms' energies and ``u_m`` what ``t`` is of the orthonormal vectors that the chosen
atoms span, if these are refitted with an atom; there is no bound where that leaves nothing of the
energy. Most rows of a scene gain too little and are never looked at; where nothing but noise is
left, all are. A dense dictionary's atoms are a row each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.atoms import Box, Chosen, View, extremes, multiply, sum_rows
from csunmix._kernels.jit import leaf, part
from csunmix._kernels.linalg import add, copy, first_largest, largest
from csunmix._validation import FloatArray, IntArray

_UNSEEN = 1e-12  # energy of an atom not worth taking, relative to the largest
_ROUNDED = 1.0 + 1e-9  # for a bound that a gain reaches but for rounding


class Rules(NamedTuple):
    """What a pursuit may do. Distances are in cells."""

    low: float  # box of the coefficients
    high: float
    width: int  # cells of the map along x
    exclusion: float  # smallest distance between two atoms
    reach: float  # how far an atom may move at once; 0 for no local optimisation
    refitted: bool  # count what the other atoms gain by refitting when an atom is taken


class Rows(NamedTuple):
    """What is known of the map's rows; ``along y`` is summed up with the factor of each row.

    That of atoms is there for the rows that were looked at.
    """

    weighted: FloatArray  # (p, q), scratch
    r: FloatArray  # (p q,), scratch
    image: FloatArray  # (q, k), the weighted image along y
    left: FloatArray  # (q, k), the weighted residual
    dark: FloatArray  # (q, k), zeros
    least: FloatArray  # (k,), least energy of a row's atoms over their squared norm along x
    hidden: FloatArray  # (k,), what the spanned vectors take of that
    bound: FloatArray  # (k,), gain that no atom of the row exceeds
    spans: FloatArray  # (n, q, k), orthonormal vectors that the chosen atoms span
    shares: FloatArray  # (n, n), of the chosen atoms in each of these
    parts: FloatArray  # (n,), the image's products with these
    spanned: IntArray  # (n,), the atoms that these came with; -1 for none
    without: IntArray  # (k,), how many of these `free` and `g` lack; -1 where there are neither
    seen: IntArray  # (k,), 1 where `of_image` is there
    of_image: FloatArray  # (k, l), products of the atoms with the weighted image
    g: FloatArray  # (k, l), with the weighted residual
    free: FloatArray  # (k, l), energies without what the vectors span, 0 for next to nothing
    inverse: FloatArray  # (k, l), of these; 0 for none
    products: FloatArray  # (l,), of a row's atoms with a vector, scratch
    gain: FloatArray  # (l,), of a row's atoms
    per_norm: FloatArray  # (l,), one over the squared norm of each factor along x, 0 for none
    floor: FloatArray  # (1,), energy of an atom not worth taking
    known: IntArray  # (n,), the chosen atoms that the next three are of
    across: FloatArray  # (n, q), factors along x
    rays_y: FloatArray  # (n, k), products of the factors along y with those of all rows
    rays_x: FloatArray  # (n, l), and of those along x with those of all columns


@part()
def new_rows(view: View, most: int) -> Rows:
    """Room for `most` chosen atoms."""
    n_p, n_q = view.root.shape
    height, width = view.a_y.shape[1], view.a_x.shape[1]
    per_norm = filled(width, 0.0)
    for j in range(width):
        for q in range(n_q):
            per_norm[j] += view.a_x[q, j] ** 2
        per_norm[j] = 1.0 / per_norm[j] if per_norm[j] > 0.0 else 0.0
    return Rows(
        weighted=np.empty((n_p, n_q)),
        r=np.empty(n_p * n_q),
        image=np.empty((n_q, height)),
        left=np.empty((n_q, height)),
        dark=filled((n_q, height), 0.0),
        least=np.empty(height),
        hidden=np.empty(height),
        bound=np.empty(height),
        spans=np.empty((most, n_q, height)),
        shares=np.empty((most, most)),
        parts=np.empty(most),
        spanned=integers(most, -1),
        without=np.empty(height, np.int64),
        seen=integers(height, 0),
        of_image=np.empty((height, width)),
        g=np.empty((height, width)),
        free=np.empty((height, width)),
        inverse=np.empty((height, width)),
        products=np.empty(width),
        gain=np.empty(width),
        per_norm=per_norm,
        floor=np.empty(1),
        known=integers(most, -1),
        across=np.empty((most, n_q)),
        rays_y=np.empty((most, height)),
        rays_x=np.empty((most, width)),
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
def begin(view: View, rows: Rows) -> None:
    """Begin with the image that is in the view."""
    see(view, view.target, rows, rows.image)
    for i in range(rows.seen.size):
        rows.seen[i] = 0


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
    _know(view, chosen, rows)
    _write_sums(-view.even[0], chosen.x[:k], rows, rows.image, rows.left)


@leaf()
def _know(view: View, chosen: Chosen, rows: Rows) -> None:
    """What an atom makes of all others where weights are the same: products of two factors."""
    width, height = view.a_x.shape[1], view.a_y.shape[1]
    for m in range(chosen.number[0]):
        atom = chosen.atoms[m]
        if rows.known[m] != atom:
            rows.known[m], i, j = atom, atom // width, atom % width
            sum_rows(view.a_y, view.a_y, Box(i, i + 1, 0, height), rows.rays_y[m])
            sum_rows(view.a_x, view.a_x, Box(j, j + 1, 0, width), rows.rays_x[m])
            for q in range(np.uint64(view.a_x.shape[0])):
                rows.across[m, q] = view.a_x[q, np.uint64(j)]


@leaf(fastmath={"contract"})
def _write_sums(
    weight: float, factors: FloatArray, rows: Rows, start: FloatArray, out: FloatArray
) -> None:
    """``start`` and `weight` times the sum of known atoms times `factors`, along y."""
    first, second, last = rows.across, rows.rays_y, factors.size - 1
    n_q, height = np.uint64(out.shape[0]), np.uint64(out.shape[1])
    if factors.size == 0:
        copy(start.reshape(start.size), out.reshape(out.size))
    for term in range(0, factors.size, 4):  # four at a time, to load and store less
        a, b = np.uint64(term), np.uint64(min(term + 1, last))
        c, d = np.uint64(min(term + 2, last)), np.uint64(min(term + 3, last))
        # Beyond the last there are zeros of it.
        f, g = weight * factors[a], weight * factors[b] if term < last else 0.0
        h = weight * factors[c] if term + 1 < last else 0.0
        e = weight * factors[d] if term + 2 < last else 0.0
        for q in range(n_q):
            u, v = f * first[a, q], g * first[b, q]
            w, z = h * first[c, q], e * first[d, q]
            if term == 0:
                for i in range(height):
                    out[q, i] = start[q, i] + (
                        (u * second[a, i] + v * second[b, i])
                        + (w * second[c, i] + z * second[d, i])
                    )
            else:
                for i in range(height):
                    out[q, i] += (u * second[a, i] + v * second[b, i]) + (
                        w * second[c, i] + z * second[d, i]
                    )


@leaf(fastmath={"contract"})
def _add_sum(weight: float, factors: FloatArray, rows: Rows, i: int, out: FloatArray) -> None:
    """Add products of a row's atoms with the sum of known ones times `factors`, and `weight`."""
    first, second, last = rows.rays_y, rows.rays_x, factors.size - 1
    row, width = np.uint64(i), np.uint64(out.size)
    for term in range(0, factors.size, 4):
        a, b = np.uint64(term), np.uint64(min(term + 1, last))
        c, d = np.uint64(min(term + 2, last)), np.uint64(min(term + 3, last))
        u = weight * factors[a] * first[a, row]
        v = weight * factors[b] * first[b, row] if term < last else 0.0
        w = weight * factors[c] * first[c, row] if term + 1 < last else 0.0
        z = weight * factors[d] * first[d, row] if term + 2 < last else 0.0
        for j in range(width):
            out[j] += (u * second[a, j] + v * second[b, j]) + (w * second[c, j] + z * second[d, j])


@leaf()
def span(view: View, chosen: Chosen, rows: Rows) -> bool:
    """Take what the chosen atoms span from what others can gain, and from the image: `rows.left`.

    For the atoms in `rows.spanned` it was done before; False if one of them has gone: all must
    start anew (`forget`). The factor `chosen.lower` must be the chosen atoms'.
    """
    k, lower, spanned = chosen.number[0], chosen.lower, rows.spanned
    for m in range(spanned.size):
        if spanned[m] >= 0 and (m >= k or chosen.atoms[m] != spanned[m]):
            return False
    left = rows.left.reshape(rows.left.size)
    if k == 0 or spanned[0] < 0:
        copy(rows.image.reshape(left.size), left)
    for m in range(k):
        if spanned[m] >= 0:
            continue
        # Row m of the factor's inverse: the orthonormal vector that atom m adds to those before.
        share = rows.shares[m]
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
        add(-rows.parts[m], rows.spans[m].reshape(left.size), left)
    return True


@leaf()
def _see_sum(view: View, chosen: Chosen, factors: FloatArray, rows: Rows, out: FloatArray) -> None:
    """The sum of the first chosen atoms times `factors`, along y."""
    k = factors.size
    if np.isnan(view.even[0]):
        sum_rows(factors.reshape(k, 1), chosen.columns[:k], Box(0, 1, 0, rows.r.size), rows.r)
        see(view, rows.r, rows, out)
    else:
        _know(view, chosen, rows)
        _write_sums(view.even[0], factors, rows, rows.dark, out)


@leaf()
def select(
    view: View, rules: Rules, energies: FloatArray, afresh: bool, rows: Rows, chosen: Chosen
) -> tuple[int, float]:
    """Atom that gains most outside the bands of those chosen, and its coefficient; -1 if none.

    `rows.left` must be the residual's (by `see`, `see_left` or `span`), and the rows those of these
    `energies` (k l,) (by `weigh`). Products with the residual are sums over its pixels if `afresh`,
    else what is left of those with the image of `begin`.
    """
    best, value, most = -1, 0.0, -np.inf if bounded(rules) else 0.0
    _bound(rows)
    first, width = first_largest(rows.bound), view.a_x.shape[1]
    for n in range(-1, rows.bound.size):
        i = n if n >= 0 else first
        if not rows.bound[i] > most or n == first:
            continue
        _look_at_row(view, rules, energies, i, afresh, rows, chosen)
        j = _best_in_row(rules, i, most, rows, chosen)
        if j >= 0:
            best, most = i * width + j, rows.gain[j]
            value = clip(rows.g[i, j] * rows.inverse[i, j], rules.low, rules.high)
    return best, value


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
def _look_at_row(
    view: View,
    rules: Rules,
    energies: FloatArray,
    i: int,
    afresh: bool,
    rows: Rows,
    chosen: Chosen,
) -> None:
    """Products of a row's atoms with the residual, and their energies."""
    row, width = Box(i, i + 1, 0, rows.gain.size), rows.gain.size
    kept = spanning(rules)
    if rows.seen[i] == 0 and (kept or not afresh):
        sum_rows(rows.image, view.a_x, row, rows.of_image[i])
        rows.seen[i] = 1
    n_spanned = chosen.number[0] if rules.refitted else 0
    if rows.without[i] != n_spanned:
        if rows.without[i] < 0:
            for j in range(width):
                energy = energies[i * width + j]
                rows.free[i, j] = energy if energy > rows.floor[0] else 0.0
                rows.g[i, j] = rows.of_image[i, j]  # written anew below, if not `kept`
            rows.without[i] = 0
        _take_spanned(view, i, n_spanned, rows)
    if afresh and not kept:
        sum_rows(rows.left, view.a_x, row, rows.g[i])
    elif not kept:
        copy(rows.of_image[i], rows.g[i])
        _add_sum(-view.even[0], chosen.x[: chosen.number[0]], rows, i, rows.g[i])


@leaf()
def _take_spanned(view: View, i: int, n_spanned: int, rows: Rows) -> None:
    """Take from a row's atoms the spanned vectors that they still have."""
    free, inverse, width = rows.free[i], rows.inverse[i], rows.gain.size
    for m in range(rows.without[i], n_spanned):
        if np.isnan(view.even[0]):
            sum_rows(rows.spans[m], view.a_x, Box(i, i + 1, 0, width), rows.products)
        else:
            rows.products[:] = 0.0
            _add_sum(view.even[0], rows.shares[m, : m + 1], rows, i, rows.products)
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
    """Gain of each atom with its best coefficient, as by `best_value` but without branches.

    Where there is no atom to take it is -inf, or 0 if the box is no more than a sign.
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
def spanning(rules: Rules) -> bool:
    """Whether chosen atoms explain what they span, and other atoms are judged without that."""
    return rules.refitted and not bounded(rules)


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
