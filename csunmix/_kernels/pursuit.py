"""Greedy pursuits, one image at a time.

Coefficients are kept in the box ``[low, high]``, infinite where there is no limit. Of all atoms the
one is taken that lowers the energy ``1/2 ||r||^2`` most with its coefficient in the box.
"""

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
from csunmix._validation import FloatArray, IntArray

_MAX_SWEEPS = 50  # of local optimisation over all chosen atoms
_MAX_ROUNDS = 500  # of coordinate descent in the box
_BETTER = 1.0 + 1e-9  # a move must gain more than rounding


@numba.njit(cache=True, nogil=True)
def orthogonal_matching_pursuit(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    width: int,
    n_nonzero: int,
    residual_tol: float,
    low: float,
    high: float,
    exclusion: float,
    reach: float,
    x_map: FloatArray,
    n_iter: IntArray,
) -> None:
    """Pursue each image; `x_map` holds the start and then the answer. Distances are in cells."""
    n_pixels, n_atoms = y[0].size, x_map[0].size
    capacity = n_nonzero + 1
    atoms, kept_atoms = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    columns = np.empty((capacity, n_pixels))
    gram, lower = np.empty((capacity, capacity)), np.empty((capacity, capacity))
    rhs, x, kept_x = np.empty(capacity), np.empty(capacity), np.empty(capacity)
    r = np.empty(n_pixels)
    a_y_t = np.ascontiguousarray(a_y.T)
    for b in range(len(y)):
        root = np.sqrt(weights[b])
        target = (y[b] * root).ravel()
        energies = _energies(a_y, a_x, root)
        flat = x_map[b].ravel()
        k = 0
        for atom in range(n_atoms):
            if flat[atom] != 0.0 and k < n_nonzero:
                k = _append(
                    a_y, a_x, root, atom, flat[atom], target, k, atoms, columns, gram, rhs, x
                )
        k = _fit(k, low, high, atoms, x, columns, gram, rhs, lower)
        kept, kept_energy, before = 0, np.inf, -1
        while True:
            residual(target, columns, x, k, r)
            energy = np.sum(r * r)
            if energy < kept_energy:
                kept, kept_energy = k, energy
                kept_atoms[:k], kept_x[:k] = atoms[:k], x[:k]
            if k <= before:
                break  # the last atom found no place
            before = k
            if k == n_nonzero or energy <= residual_tol * residual_tol:
                break
            g = np.dot(np.dot(a_y_t, r.reshape(y[b].shape) * root), a_x).ravel()
            best, value = _select(g, energies, low, high, atoms, k, width, exclusion)
            if best < 0:
                break
            k = _append(a_y, a_x, root, best, value, target, k, atoms, columns, gram, rhs, x)
            k = _fit(k, low, high, atoms, x, columns, gram, rhs, lower)
            n_iter[b] += 1
            if reach > 0.0:
                k = _improve(
                    a_y,
                    a_x,
                    root,
                    target,
                    low,
                    high,
                    width,
                    exclusion,
                    reach,
                    k,
                    atoms,
                    x,
                    columns,
                    gram,
                    rhs,
                    lower,
                )
        flat[:] = 0.0
        for m in range(kept):
            flat[kept_atoms[m]] = kept_x[m]
        x_map[b] = flat.reshape(x_map[b].shape)


@numba.njit(cache=True, nogil=True)
def matching_pursuit(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    n_nonzero: int,
    residual_tol: float,
    max_iter: int,
    low: float,
    x_map: FloatArray,
    n_iter: IntArray,
) -> None:
    """Pursue each image; `x_map` holds the start and then the answer."""
    a_y_t, a_x_t = np.ascontiguousarray(a_y.T), np.ascontiguousarray(a_x.T)
    column = np.empty(y[0].size)
    nothing_chosen = np.empty(0, np.int64)
    for b in range(len(y)):
        root = np.sqrt(weights[b])
        energies = _energies(a_y, a_x, root)
        x = x_map[b].ravel()
        r = ((y[b] - np.dot(np.dot(a_y, x_map[b]), a_x_t)) * root).ravel()
        for _ in range(max_iter):
            if np.sum(r * r) <= residual_tol * residual_tol:
                break
            g = np.dot(np.dot(a_y_t, r.reshape(y[b].shape) * root), a_x).ravel()
            if np.count_nonzero(x) >= n_nonzero:
                g[x == 0.0] = 0.0
            best, value = _select(g, energies, low, np.inf, nothing_chosen, 0, 1, 0.0)
            if best < 0:
                break
            write_atom(a_y, a_x, root, best, column)
            x[best] += value
            r -= value * column
            n_iter[b] += 1
        x_map[b] = x.reshape(x_map[b].shape)


@numba.njit(cache=True, nogil=True)
def _energies(a_y: FloatArray, a_x: FloatArray, root: FloatArray) -> FloatArray:
    """Squared norm of every weighted atom, flat."""
    return np.dot(np.dot((a_y * a_y).T.copy(), root * root), a_x * a_x).ravel()


@numba.njit(cache=True, nogil=True)
def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@numba.njit(cache=True, nogil=True)
def _best_value(g: float, energy: float, low: float, high: float) -> tuple[float, float]:
    """Coefficient in the box that gains most, and its gain ``v g - v^2 energy / 2``."""
    v = _clip(g / energy, low, high)
    return v, v * g - 0.5 * v * v * energy


@numba.njit(cache=True, nogil=True)
def _select(
    g: FloatArray,
    energies: FloatArray,
    low: float,
    high: float,
    atoms: IntArray,
    k: int,
    width: int,
    exclusion: float,
) -> tuple[int, float]:
    """Atom that gains most outside the bands of those chosen, and its coefficient; -1 if none."""
    floor = 1e-12 * energies.max()
    best, value, most = -1, 0.0, -np.inf
    for atom in range(g.size):
        if energies[atom] <= floor:
            continue
        v, gain = _best_value(g[atom], energies[atom], low, high)
        if gain > most and v != 0.0 and not _near(atom, atoms, k, -1, -1, width, exclusion):
            best, value, most = atom, v, gain
    return best, value


@numba.njit(cache=True, nogil=True)
def _near(
    atom: int, atoms: IntArray, k: int, skip: int, skip_too: int, width: int, exclusion: float
) -> bool:
    """Whether the atom is one of those chosen, or closer to one than `exclusion` cells."""
    for m in range(k):
        if m in (skip, skip_too):
            continue
        if atom == atoms[m] or _distance2(atom, atoms[m], width) < exclusion * exclusion:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _distance2(first: int, second: int, width: int) -> int:
    di = first // width - second // width
    dj = first % width - second % width
    return di * di + dj * dj


@numba.njit(cache=True, nogil=True)
def _append(
    a_y: FloatArray,
    a_x: FloatArray,
    root: FloatArray,
    atom: int,
    value: float,
    target: FloatArray,
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
    return k + 1


@numba.njit(cache=True, nogil=True)
def _fit(
    k: int,
    low: float,
    high: float,
    atoms: IntArray,
    x: FloatArray,
    columns: FloatArray,
    gram: FloatArray,
    rhs: FloatArray,
    lower: FloatArray,
) -> int:
    """Least squares on the chosen atoms, in the box; returns how many are left.

    Dependent atoms are dropped, and with ``low = 0`` those that the fit turns negative.
    """
    while k > 0:
        sound = cholesky(gram, k, lower)
        if sound < k:
            k = drop(sound, k, atoms, x, columns, gram, rhs)
            continue
        if low > 0.0 or high < np.inf:
            _descend(k, low, high, x, gram, rhs)
            return k
        cholesky_solve(lower, k, rhs, x)
        worst = np.argmin(x[:k])
        if x[worst] > low:
            return k
        k = drop(worst, k, atoms, x, columns, gram, rhs)
    return k


@numba.njit(cache=True, nogil=True)
def _descend(
    k: int, low: float, high: float, x: FloatArray, gram: FloatArray, rhs: FloatArray
) -> None:
    """Least squares in the box by coordinate descent."""
    for _ in range(_MAX_ROUNDS):
        change = 0.0
        for m in range(k):
            s = rhs[m]
            for n in range(k):
                s -= gram[m, n] * x[n]
            new = _clip(x[m] + s / gram[m, m], low, high)
            change = max(change, abs(new - x[m]))
            x[m] = new
        if change <= 1e-9 * np.abs(x[:k]).max():
            return


@numba.njit(cache=True, nogil=True)
def _improve(
    a_y: FloatArray,
    a_x: FloatArray,
    root: FloatArray,
    target: FloatArray,
    low: float,
    high: float,
    width: int,
    exclusion: float,
    reach: float,
    k: int,
    atoms: IntArray,
    x: FloatArray,
    columns: FloatArray,
    gram: FloatArray,
    rhs: FloatArray,
    lower: FloatArray,
) -> int:
    """Move atoms to better cells, one by one and then in pairs, until all stay; returns k."""
    r, scratch = np.empty(target.size), np.empty((18, target.size))
    for _ in range(_MAX_SWEEPS):
        residual(target, columns, x, k, r)
        moved = False
        for m in range(k):
            moved |= _move_one(
                a_y,
                a_x,
                root,
                low,
                high,
                width,
                exclusion,
                reach,
                m,
                k,
                atoms,
                x,
                columns,
                r,
                scratch,
            )
        if not moved:
            for m in range(k):
                for n in range(m):
                    moved |= _move_two(
                        a_y,
                        a_x,
                        root,
                        low,
                        high,
                        width,
                        exclusion,
                        m,
                        n,
                        k,
                        atoms,
                        x,
                        columns,
                        r,
                        scratch,
                    )
        if not moved:
            break
        for m in range(k):
            extend_gram(columns, target, m, gram, rhs)
        k = _fit(k, low, high, atoms, x, columns, gram, rhs, lower)
    return k


@numba.njit(cache=True, nogil=True)
def _move_one(
    a_y: FloatArray,
    a_x: FloatArray,
    root: FloatArray,
    low: float,
    high: float,
    width: int,
    exclusion: float,
    reach: float,
    m: int,
    k: int,
    atoms: IntArray,
    x: FloatArray,
    columns: FloatArray,
    r: FloatArray,
    scratch: FloatArray,
) -> bool:
    """Move one atom to the cell within `reach` that gains most, the others as they are."""
    r += x[m] * columns[m]
    here = atoms[m]
    best, most = here, x[m] * np.sum(columns[m] * r) - 0.5 * x[m] ** 2 * np.sum(columns[m] ** 2)
    most = max(most * _BETTER, most / _BETTER)
    column = scratch[0]
    span = int(reach)
    height = a_y.shape[1] * a_x.shape[1] // width
    i0, j0 = here // width, here % width
    for i in range(max(0, i0 - span), min(height, i0 + span + 1)):
        for j in range(max(0, j0 - span), min(width, j0 + span + 1)):
            atom = i * width + j
            if atom == here or _distance2(atom, here, width) > reach * reach:
                continue
            if _near(atom, atoms, k, m, -1, width, exclusion):
                continue
            write_atom(a_y, a_x, root, atom, column)
            v, gain = _best_value(np.sum(column * r), np.sum(column * column), low, high)
            if gain > most and v != 0.0:
                best, most, x[m] = atom, gain, v
    if best != here:
        atoms[m] = best
        write_atom(a_y, a_x, root, best, columns[m])
    r -= x[m] * columns[m]
    return best != here


@numba.njit(cache=True, nogil=True)
def _move_two(
    a_y: FloatArray,
    a_x: FloatArray,
    root: FloatArray,
    low: float,
    high: float,
    width: int,
    exclusion: float,
    m: int,
    n: int,
    k: int,
    atoms: IntArray,
    x: FloatArray,
    columns: FloatArray,
    r: FloatArray,
    scratch: FloatArray,
) -> bool:
    """Move two atoms to the neighbouring cells that gain most together."""
    r += x[m] * columns[m] + x[n] * columns[n]
    near = np.empty(18, np.int64)
    g, energy = np.empty(18), np.empty(18)
    for c in range(18):
        near[c] = _neighbour(a_y, a_x, width, atoms[m] if c < 9 else atoms[n], c % 9)
        if near[c] >= 0 and _near(near[c], atoms, k, m, n, width, exclusion):
            near[c] = -1
        if near[c] >= 0:
            write_atom(a_y, a_x, root, near[c], scratch[c])
            g[c], energy[c] = np.sum(scratch[c] * r), np.sum(scratch[c] ** 2)
    cross = np.sum(columns[m] * columns[n])
    most = (
        x[m] * np.sum(columns[m] * r)
        + x[n] * np.sum(columns[n] * r)
        - 0.5 * (x[m] ** 2 * np.sum(columns[m] ** 2) + x[n] ** 2 * np.sum(columns[n] ** 2))
        - x[m] * x[n] * cross
    )
    most = max(most * _BETTER, most / _BETTER)
    best_c, best_d, x_m, x_n = -1, -1, x[m], x[n]
    for c in range(9):
        for d in range(9, 18):
            if near[c] < 0 or near[d] < 0 or near[c] == near[d]:
                continue
            if _distance2(near[c], near[d], width) < exclusion * exclusion:
                continue
            if near[c] == atoms[m] and near[d] == atoms[n]:
                continue
            cross = np.sum(scratch[c] * scratch[d])
            v, w, gain = _best_pair(g[c], g[d], energy[c], energy[d], cross, low, high)
            if gain > most and v != 0.0 and w != 0.0:
                best_c, best_d, most, x_m, x_n = c, d, gain, v, w
    if best_c >= 0:
        atoms[m], atoms[n], x[m], x[n] = near[best_c], near[best_d], x_m, x_n
        columns[m], columns[n] = scratch[best_c], scratch[best_d]
    r -= x[m] * columns[m] + x[n] * columns[n]
    return best_c >= 0


@numba.njit(cache=True, nogil=True)
def _neighbour(a_y: FloatArray, a_x: FloatArray, width: int, atom: int, which: int) -> int:
    """One of the 3 x 3 cells around an atom; -1 outside the map."""
    i, j = atom // width + which // 3 - 1, atom % width + which % 3 - 1
    height = a_y.shape[1] * a_x.shape[1] // width
    if i < 0 or j < 0 or i >= height or j >= width:
        return -1
    return i * width + j


@numba.njit(cache=True, nogil=True)
def _best_pair(
    g: float, h: float, energy_g: float, energy_h: float, cross: float, low: float, high: float
) -> tuple[float, float, float]:
    """Two coefficients in the box that gain most together, and their gain."""
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
