"""Exact non-negative l1 by an active-set method, one image at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.atoms import (
    Box,
    Chosen,
    View,
    append,
    contains,
    correlate_atom,
    correlate_box,
    correlate_rows,
    drop,
    extremes,
    forward,
    largest_box,
    long_inner,
    look,
    new_chosen,
    new_view,
    residual,
    sum_rows,
    whole,
    widen,
    write_atom,
    write_coefficients,
)
from csunmix._kernels.jit import kernel, leaf, part
from csunmix._kernels.linalg import add_up, cholesky_append, cholesky_drop, cholesky_solve, inner
from csunmix._validation import BoolArray, FloatArray, IntArray

_ROUNDING = 1e-12  # of correlations and residuals, relative to the largest
_OPTIMAL = 1e-9  # what a correlation may have above lam at the end, likewise
_STAGE = 1e-2  # of the price, from one stage to the next
_LAST_STAGE = 1e-11  # least price before lam, relative to the largest correlation
_EPS = 1e-15  # what rounding leaves of a sum, relative to its largest term


class _Room(NamedTuple):
    """Scratch that serves one image after the other."""

    r: FloatArray
    fit: FloatArray
    excess: FloatArray  # what the fit has over the bound of each pixel; -1 where there is none
    blocked: BoolArray
    bounds: FloatArray  # of rows of the map
    cells: FloatArray  # of one row


class _Near(NamedTuple):
    """A box of cells, and the inner products of its atoms with the image and with atoms in use."""

    image: FloatArray
    pull: FloatArray
    products: FloatArray  # flat, one row of the box's cells for each atom known
    row: IntArray  # of each atom; -1 where it is not known
    known: IntArray
    n_known: IntArray  # (1,)


class Coefficients(NamedTuple):
    """Coefficients of a stack, 0 where nothing is said: image b's begin at ``first[b]``."""

    first: IntArray  # (b + 1,)
    atoms: IntArray
    x: FloatArray


@kernel()
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
    start: Coefficients,
    n_iter: IntArray,
    optimal: BoolArray,
    objective: FloatArray,
    gap: FloatArray,
    residual_norm: FloatArray,
) -> Coefficients:
    """Solve each image from its `start` to the answer that is returned; counts `n_iter` up.

    `price` is the weight of the l1 norm that each image is at, at least `lam`. It falls to `lam`
    in stages, each starting from the answer of the one before. `objective`, relative `gap` and
    `residual_norm` are written where `optimal`.
    """
    n_pixels, n_atoms = y[0].size, a_y.shape[1] * a_x.shape[1]
    room = _Room(
        np.empty(n_pixels),
        np.empty(n_pixels + 1),
        np.empty(n_pixels),
        np.zeros(n_atoms + n_pixels, np.bool_),
        np.empty(a_y.shape[1]),
        np.empty(a_x.shape[1]),
    )
    most = min(n_pixels, 16)  # to begin with
    chosen, near = new_chosen(most, n_pixels), _new_near(a_y, a_x, most)
    view = new_view(a_y, a_x, y[0], weights[0])
    answer = _new_coefficients(integers(len(y) + 1, 0), 16 * len(y))
    x = filled(n_atoms, 0.0)  # of one image
    for b in range(len(y)):
        look(view, y[b], weights[b])
        fresh = start.first[b] == start.first[b + 1]
        for m in range(start.first[b], start.first[b + 1]):
            x[start.atoms[m]] = start.x[m]
        chosen.number[0], done = 0, 0
        first, highest = _strongest(view, view.target, whole(view), 0.0, chosen, room)
        while True:
            n_start = 0 if fresh and done == 0 else _n_positive(x)
            before = _objective(view, y[b], censored[b], price[b], x, n_start, room.excess)
            before += _ROUNDING * long_inner(view.target, view.target)
            n_start += _n_positive(room.excess)
            most = min(n_pixels, n_start + max_iter - done)
            if most >= chosen.x.size:
                chosen = new_chosen(most + 1, n_pixels)
                near = _new_near(a_y, a_x, most + 1)
            _load(view, chosen, room, x, price[b], n_start, most)
            steps, optimal[b], gap[b] = _lasso(
                view, chosen, room, near, price[b], max_iter - done, tol, first, highest
            )
            done += steps
            objective[b] = _primal(chosen, room.r, price[b], n_atoms)
            residual_norm[b] = np.sqrt(long_inner(room.r, room.r))
            # Only rounding goes up. What it does in one step the next ones may mend.
            if max_iter > 1 and not objective[b] <= before:
                optimal[b] = False
                break
            if n_start > 0:
                x[:] = 0.0
            write_coefficients(chosen, x)
            if not optimal[b] or price[b] <= lam[b]:
                break
            price[b] *= _STAGE
            if price[b] < max(lam[b], _LAST_STAGE * abs(highest)):
                price[b] = lam[b]
        n_iter[b] += done
        answer = _append(answer, b, x)
        x[:] = 0.0
    return answer


@part()
def _new_coefficients(first: IntArray, room: int) -> Coefficients:
    return Coefficients(first, np.empty(room, np.int64), np.empty(room))


@part()
def _append(to: Coefficients, b: int, x: FloatArray) -> Coefficients:
    """Append the coefficients of image b, in longer arrays if need be."""
    n, n_more = to.first[b], _n_positive(x)
    if n + n_more > to.x.size:
        short, to = to, _new_coefficients(to.first, 2 * (n + n_more))
        for m in range(n):
            to.atoms[m], to.x[m] = short.atoms[m], short.x[m]
    for atom in range(x.size):
        if x[atom] > 0.0:
            to.atoms[n], to.x[n] = atom, x[atom]
            n += 1
    to.first[b + 1] = n
    return to


@part()
def _objective(
    view: View,
    y: FloatArray,
    censored: BoolArray,
    lam: float,
    x: FloatArray,
    n_positive: int,
    excess: FloatArray,
) -> float:
    """Objective of an image; writes what the fit has over each bound, -1 where there is none."""
    fitted = filled(y.shape, 0.0)
    if n_positive > 0:
        forward(view.a_y, view.a_x, x, fitted)
    value = lam * add_up(x) if n_positive > 0 else 0.0
    for p in range(excess.size):
        row, col = p // y.shape[1], p % y.shape[1]
        r = y[row, col] - fitted[row, col]
        excess[p] = max(-r, 0.0) if censored[row, col] else -1.0
        if excess[p] <= 0.0:
            value += 0.5 * (view.root[row, col] * r) ** 2
    return value


@leaf()
def _load(
    view: View,
    chosen: Chosen,
    room: _Room,
    x: FloatArray,
    lam: float,
    n_start: int,
    most: int,
) -> None:
    """Start from `x`, and from the pixels whose bound it exceeds, with at most `most` atoms."""
    number, n_atoms = chosen.number, x.size
    number[0] = 0
    if n_start == 0:
        return
    for pixel in range(room.excess.size):
        if room.excess[pixel] > 0.0 and number[0] < most:
            append(view, chosen, n_atoms + pixel, room.excess[pixel], 0.0)
    for atom in range(n_atoms):
        if x[atom] > 0.0 and number[0] < most:
            append(view, chosen, atom, x[atom], lam)
    _refit(chosen, 0, room.fit)


@leaf()
def _lasso(
    view: View,
    chosen: Chosen,
    room: _Room,
    near: _Near,
    lam: float,
    max_iter: int,
    tol: float,
    first: int,
    highest: float,
) -> tuple[int, bool, float]:
    """Add the atom that pulls most, refit, drop what turns negative; until none pulls.

    Atoms are looked for around those found before, and in the whole map where none pulls there;
    what ends the search is always the whole map. Of the image alone, `first` has the `highest`
    correlation. Returns the steps, whether the optimum was reached, and the relative gap; leaves
    the residual.
    """
    number, r, excess, blocked = chosen.number, room.r, room.excess, room.blocked
    n_atoms, scale = blocked.size - r.size, abs(highest)
    norm = np.sqrt(long_inner(view.target, view.target))
    bounded = extremes(excess)[1] >= 0.0
    # Where products of atoms are cheap and pixels need no look, columns can wait.
    lean = not bounded and not np.isnan(view.even[0]) and view.a_x.shape[1] > 1
    box, gap = Box(0, 0, 0, 0), np.inf
    steps, optimal, any_blocked = 0, False, False
    while True:
        rounding = max(_ROUNDING, _EPS * _largest_part(chosen) / norm) if norm > 0.0 else _ROUNDING
        floor = lam + rounding * scale
        best, price = -1, lam
        if bounded:
            residual(view, chosen, r)
            best, price = _most_exceeded(r, excess, -rounding * norm, chosen, blocked, n_atoms), 0.0
        if best < 0 and box.bottom > 0:
            best, price = _strongest_near(view, box, near, floor, chosen, room), lam
        if best < 0:
            price = lam
            _leave_residual(view, chosen, lean, r)
            best = first
            if steps > 0 or number[0] > 0:
                best, highest = _strongest(view, r, whole(view), floor, chosen, room)
            gap = _gap(view, r, highest, lam, chosen, n_atoms)
            if gap <= tol or best < 0 or highest <= floor:
                optimal = gap <= tol or highest <= lam + max(_OPTIMAL, rounding) * scale
                break
            box = widen(view, box, best)
            _look_around(view, box, near)
        if steps == max_iter:
            _leave_residual(view, chosen, lean, r)
            break
        steps += 1
        before = number[0]
        if lean:
            _take(view, box, near, chosen, best, price)
        else:
            append(view, chosen, best, 0.0, price)
        _refit(chosen, before, room.fit)
        # Rounding may throw the new atom out again at once: leave it until something else moves.
        if number[0] == before and not contains(chosen, best):
            blocked[best] = any_blocked = True
        elif any_blocked:
            blocked[:] = any_blocked = False
    if any_blocked:
        blocked[:] = False
    return steps, optimal, gap


@leaf()
def _leave_residual(view: View, chosen: Chosen, lean: bool, r: FloatArray) -> None:
    """Write the residual, and before it the columns if they are owing."""
    if lean:
        for m in range(chosen.number[0]):
            write_atom(view, chosen.atoms[m], chosen.columns[m])
    residual(view, chosen, r)


@leaf()
def _take(view: View, box: Box, near: _Near, chosen: Chosen, atom: int, price: float) -> None:
    """Append an atom of the box; its column stays owing."""
    k, row_length = chosen.number[0], view.a_x.shape[1]
    cell = (atom // row_length - box.top) * (box.right - box.left) + atom % row_length - box.left
    chosen.atoms[k], chosen.x[k], chosen.rhs[k] = atom, 0.0, near.image[cell] - price
    chosen.number[0], n_cells = k + 1, (box.bottom - box.top) * (box.right - box.left)
    for m in range(k + 1):
        if near.row[chosen.atoms[m]] < 0:
            _know(view, box, near, chosen.atoms[m], chosen.columns[m])
        product = near.products[near.row[chosen.atoms[m]] * n_cells + cell]
        chosen.gram[k, m] = product
        chosen.gram[m, k] = product


@leaf()
def _n_positive(a: FloatArray) -> int:
    n = 0
    for k in range(a.size):
        n += a[k] > 0.0
    return n


@leaf()
def _largest_part(chosen: Chosen) -> float:
    """Norm of the largest term in the sum of the chosen atoms."""
    largest = 0.0
    for m in range(chosen.number[0]):
        largest = max(largest, chosen.x[m] * np.sqrt(chosen.gram[m, m]))
    return largest


@leaf()
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


@part()
def _new_near(a_y: FloatArray, a_x: FloatArray, capacity: int) -> _Near:
    """Room for the products of `capacity` atoms with the largest box."""
    n_atoms = a_y.shape[1] * a_x.shape[1] + a_y.shape[0] * a_x.shape[0]
    n_cells = largest_box(a_y, a_x)
    return _Near(
        np.empty(n_cells),
        np.empty(n_cells),
        np.empty(n_cells * capacity),
        integers(n_atoms, -1),
        np.empty(capacity, np.int64),
        integers(1, 0),
    )


@leaf()
def _forget(near: _Near) -> None:
    """Know no atom."""
    for row in range(near.n_known[0]):
        near.row[near.known[row]] = -1
    near.n_known[0] = 0


@leaf()
def _look_around(view: View, box: Box, near: _Near) -> None:
    """Begin with a new box."""
    _forget(near)
    correlate_box(view, view.target, box, near.image)


@leaf()
def _know(view: View, box: Box, near: _Near, atom: int, column: FloatArray) -> None:
    """Write the products of an atom with the box's atoms."""
    n_cells = (box.bottom - box.top) * (box.right - box.left)
    if near.n_known[0] == near.known.size:
        _forget(near)
    row = near.n_known[0]
    near.row[atom], near.known[row], near.n_known[0] = row, atom, row + 1
    products = near.products[row * n_cells : (row + 1) * n_cells]
    correlate_atom(view, atom, column, box, products)


@leaf()
def _strongest_near(
    view: View, box: Box, near: _Near, floor: float, chosen: Chosen, room: _Room
) -> int:
    """Atom in the box with the largest correlation above `floor`, as in `_strongest`."""
    width = box.right - box.left
    n_cells = (box.bottom - box.top) * width
    pull = near.pull[:n_cells]
    for c in range(n_cells):
        pull[c] = near.image[c]
    for m in range(chosen.number[0]):
        if near.row[chosen.atoms[m]] < 0:
            _know(view, box, near, chosen.atoms[m], chosen.columns[m])
        value, first = chosen.x[m], near.row[chosen.atoms[m]] * n_cells
        products = near.products[first : first + n_cells]
        for c in range(n_cells):
            pull[c] -= value * products[c]
    best, most = -1, floor
    for c in range(n_cells):
        if pull[c] > most:
            atom = (box.top + c // width) * view.a_x.shape[1] + box.left + c % width
            if not room.blocked[atom] and not contains(chosen, atom):
                best, most = atom, pull[c]
    return best


@leaf()
def _strongest(
    view: View,
    r: FloatArray,
    box: Box,
    floor: float,
    chosen: Chosen,
    room: _Room,
) -> tuple[int, float]:
    """Atom in the box with the largest correlation with `r` above `floor`; -1 if there is none.

    Neither one that is chosen nor one that is blocked. Beside it an upper bound of all
    correlations, sharp where it is above `floor`. With ``C = r A_x``, row i of the map has
    ``sum_p a_pi C_pj <= sum_p a_pi max_j C_pj`` (the least for a negative ``a_pi``): the rows are
    looked at in the order of this bound, and those left out that can not have the largest.
    """
    n_p, width, n_x = len(view.root), view.a_x.shape[1], box.right - box.left
    along_x = view.along_x[: n_p * n_x].reshape(n_p, n_x)
    correlate_rows(view, r, box, along_x)
    best, most, highest = -1, floor, -np.inf
    if width == 1:  # a dense dictionary: all its atoms stand in a_y
        cells = room.bounds[: box.bottom - box.top]
        sum_rows(along_x, view.a_y, Box(0, 1, box.top, box.bottom), cells)
        best, most = _strongest_of(cells, box.top, most, chosen, room.blocked)
        return best, extremes(cells)[1]
    bounds, cells = room.bounds[: box.bottom - box.top], room.cells[: box.right - box.left]
    _row_bounds(view, along_x, box.top, bounds)
    while bounds.size > 0:
        row = 0
        for i in range(bounds.size):
            row = i if bounds[i] > bounds[row] else row
        if bounds[row] <= most:
            return best, max(highest, bounds[row])
        bounds[row] = -np.inf
        i = box.top + row
        sum_rows(view.a_y, along_x, Box(i, i + 1, 0, n_x), cells)
        here = extremes(cells)[1]
        highest = max(highest, here)
        if here > most:
            atom, value = _strongest_of(cells, i * width + box.left, most, chosen, room.blocked)
            if atom >= 0:
                best, most = atom, value
    return best, highest


@leaf(fastmath={"contract"})
def _row_bounds(view: View, along_x: FloatArray, top: int, bounds: FloatArray) -> None:
    """What no correlation in each row of cells from `top` on exceeds."""
    bounds[:] = 0.0
    for p in range(len(along_x)):
        least, most = extremes(along_x[p])
        middle, half = 0.5 * (most + least), 0.5 * (most - least)
        for i in range(bounds.size):
            a = view.a_y[p, top + i]
            bounds[i] += a * middle + abs(a) * half


@leaf()
def _strongest_of(
    cells: FloatArray, first: int, floor: float, chosen: Chosen, blocked: BoolArray
) -> tuple[int, float]:
    """Of the atoms from `first` on, the free one of the largest correlation above `floor`."""
    best, most = -1, floor
    for j in range(cells.size):
        if cells[j] > most and not blocked[first + j] and not contains(chosen, first + j):
            best, most = first + j, cells[j]
    return best, most


@leaf()
def _refit(chosen: Chosen, sound: int, fit: FloatArray) -> None:
    """Minimise over the chosen atoms, dropping each that reaches 0 on the way.

    The first `sound` atoms are in the Cholesky factor already; afterwards all are. `fit` is
    scratch.
    """
    x = chosen.x
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


@leaf()
def _drop(chosen: Chosen, position: int, sound: int) -> int:
    """Drop an atom, from the factor too if it is there; returns how many are there."""
    if position < sound:
        cholesky_drop(chosen.lower, sound, position)
        sound -= 1
    drop(chosen, position)
    return sound


@leaf()
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


@leaf()
def _primal(chosen: Chosen, r: FloatArray, lam: float, n_atoms: int) -> float:
    """Objective of the chosen atoms, whose residual is `r`."""
    value = 0.5 * long_inner(r, r)
    for m in range(chosen.number[0]):
        if chosen.atoms[m] < n_atoms:
            value += lam * chosen.x[m]
    return value


@leaf()
def _gap(
    view: View, r: FloatArray, largest: float, lam: float, chosen: Chosen, n_atoms: int
) -> float:
    """Relative duality gap; see `csunmix.solvers.base.Problem.evaluate`."""
    energy, product = long_inner(r, r), long_inner(r, view.target)
    primal = _primal(chosen, r, lam, n_atoms)
    if primal <= 0.0:
        return 0.0
    s = product / energy if energy > 0.0 else 0.0
    if largest > 0.0:
        s = min(s, lam / largest)
    s = max(s, 0.0)
    return max(primal - s * product + 0.5 * s * s * energy, 0.0) / primal
