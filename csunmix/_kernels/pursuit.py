"""Greedy pursuits, one image at a time."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from csunmix._kernels.linalg import cholesky, cholesky_solve, drop, extend_gram, residual, write_atom
from csunmix._validation import FloatArray

_MAX_SWEEPS = 20  # of local optimisation over all chosen atoms
_TINY = 1e-12


@numba.njit(cache=True, nogil=True)
def _norms(a_y: FloatArray, a_x: FloatArray, root: FloatArray) -> FloatArray:
    """Norm of every weighted atom, flat."""
    return np.sqrt(np.dot(np.dot((a_y * a_y).T.copy(), root * root), a_x * a_x)).ravel()


@numba.njit(cache=True, nogil=True)
def _select(
    g: FloatArray,
    norms: FloatArray,
    positive: bool,
    atoms: npt.NDArray[np.int64],
    k: int,
    width: int,
    exclusion: float,
) -> int:
    """Atom of largest normalised correlation outside the bands of those chosen; -1 if none."""
    floor = 1e-6 * norms.max()
    best, largest = -1, 0.0
    for atom in range(g.size):
        if norms[atom] <= floor:
            continue
        value = g[atom] / norms[atom]
        if not positive:
            value = abs(value)
        if value > largest and not _near(atom, atoms, k, -1, width, exclusion):
            best, largest = atom, value
    return best


@numba.njit(cache=True, nogil=True)
def _near(
    atom: int, atoms: npt.NDArray[np.int64], k: int, skip: int, width: int, exclusion: float
) -> bool:
    """Whether the atom is one of those chosen, or closer to one than `exclusion` cells."""
    for m in range(k):
        if m == skip:
            continue
        di = atom // width - atoms[m] // width
        dj = atom % width - atoms[m] % width
        if di * di + dj * dj < exclusion * exclusion or atom == atoms[m]:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _fit(
    k: int,
    positive: bool,
    atoms: npt.NDArray[np.int64],
    x: FloatArray,
    columns: FloatArray,
    gram: FloatArray,
    rhs: FloatArray,
    lower: FloatArray,
) -> int:
    """Least squares on the chosen atoms; dependent and (if asked) negative ones are dropped."""
    while k > 0:
        sound = cholesky(gram, k, lower)
        if sound < k:
            k = drop(sound, k, atoms, x, columns, gram, rhs)
            continue
        cholesky_solve(lower, k, rhs, x)
        worst = np.argmin(x[:k])
        if not positive or x[worst] > 0.0:
            return k
        k = drop(worst, k, atoms, x, columns, gram, rhs)
    return k


@numba.njit(cache=True, nogil=True)
def _others_basis(columns: FloatArray, k: int, skip: int, basis: FloatArray) -> int:
    """Orthonormal basis of the chosen columns but one (modified Gram-Schmidt); returns its size."""
    size = 0
    for m in range(k):
        if m == skip:
            continue
        v = basis[size]
        v[:] = columns[m]
        before = np.sum(v * v)
        for n in range(size):
            v -= np.sum(basis[n] * v) * basis[n]
        after = np.sum(v * v)
        if after > _TINY * before:
            v /= np.sqrt(after)
            size += 1
    return size


@numba.njit(cache=True, nogil=True)
def _improve(
    a_y: FloatArray,
    a_x: FloatArray,
    root: FloatArray,
    target: FloatArray,
    positive: bool,
    width: int,
    exclusion: float,
    reach: float,
    k: int,
    atoms: npt.NDArray[np.int64],
    columns: FloatArray,
    basis: FloatArray,
) -> None:
    """Move each atom to the cell within `reach` that leaves the least residual; until all stay."""
    n_atoms = a_y.shape[1] * a_x.shape[1]
    span = int(np.floor(reach))
    height = n_atoms // width
    r, column = np.empty(target.size), np.empty(target.size)
    for _ in range(_MAX_SWEEPS):
        moved = False
        for m in range(k):
            size = _others_basis(columns, k, m, basis)
            r[:] = target
            for n in range(size):
                r -= np.sum(basis[n] * r) * basis[n]
            i0, j0 = atoms[m] // width, atoms[m] % width
            best, most = atoms[m], -1.0
            for i in range(max(0, i0 - span), min(height, i0 + span + 1)):
                for j in range(max(0, j0 - span), min(width, j0 + span + 1)):
                    here = i == i0 and j == j0
                    atom = i * width + j
                    too_far = (i - i0) ** 2 + (j - j0) ** 2 > reach * reach
                    if not here and (too_far or _near(atom, atoms, k, m, width, exclusion)):
                        continue
                    write_atom(a_y, a_x, root, atom, column)
                    gain = _gain(r, column, basis, size, positive)
                    if gain > most * (1.0 + 1e-10) or (here and gain >= most):
                        best, most = atom, gain
            if best != atoms[m]:
                atoms[m] = best
                write_atom(a_y, a_x, root, best, columns[m])
                moved = True
        if not moved:
            return


@numba.njit(cache=True, nogil=True)
def _gain(r: FloatArray, column: FloatArray, basis: FloatArray, size: int, positive: bool) -> float:
    """Residual energy that a column explains on top of the basis."""
    along, energy = np.sum(column * r), np.sum(column * column)
    left = energy
    for n in range(size):
        left -= np.sum(column * basis[n]) ** 2
    if left <= 1e-9 * energy or (positive and along <= 0.0):
        return 0.0
    return along * along / left


@numba.njit(cache=True, nogil=True)
def orthogonal_matching_pursuit(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    width: int,
    n_nonzero: int,
    residual_tol: float,
    min_coefficient: float,
    positive: bool,
    exclusion: float,
    reach: float,
    x_map: FloatArray,
    n_iter: npt.NDArray[np.int64],
) -> None:
    """Pursue each image; `x_map` holds the start and then the answer. Distances are in cells."""
    n_pixels, n_atoms = y[0].size, x_map[0].size
    capacity = n_nonzero + 1
    atoms, kept_atoms = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    columns, basis = np.empty((capacity, n_pixels)), np.empty((capacity, n_pixels))
    gram, lower = np.empty((capacity, capacity)), np.empty((capacity, capacity))
    rhs, x, kept_x = np.empty(capacity), np.empty(capacity), np.empty(capacity)
    r = np.empty(n_pixels)
    a_y_t = np.ascontiguousarray(a_y.T)
    for b in range(len(y)):
        root = np.sqrt(weights[b])
        target = (y[b] * root).ravel()
        norms = _norms(a_y, a_x, root)
        flat = x_map[b].ravel()
        k = 0
        for atom in range(n_atoms):
            if flat[atom] != 0.0 and k < n_nonzero:
                atoms[k] = atom
                write_atom(a_y, a_x, root, atom, columns[k])
                extend_gram(columns, target, k, gram, rhs)
                k += 1
        k = _fit(k, positive, atoms, x, columns, gram, rhs, lower)
        while True:
            kept = k
            kept_atoms[:k], kept_x[:k] = atoms[:k], x[:k]
            residual(target, columns, x, k, r)
            if k == n_nonzero or np.sum(r * r) <= residual_tol * residual_tol:
                break
            g = np.dot(np.dot(a_y_t, r.reshape(y[b].shape) * root), a_x).ravel()
            best = _select(g, norms, positive, atoms, k, width, exclusion)
            if best < 0:
                break
            atoms[k] = best
            write_atom(a_y, a_x, root, best, columns[k])
            extend_gram(columns, target, k, gram, rhs)
            k += 1
            n_iter[b] += 1
            if reach > 0.0:
                _improve(
                    a_y, a_x, root, target, positive, width, exclusion, reach, k, atoms, columns, basis
                )
                for m in range(k):
                    extend_gram(columns, target, m, gram, rhs)
            k = _fit(k, positive, atoms, x, columns, gram, rhs, lower)
            if k <= kept or np.abs(x[:k]).min() < min_coefficient:
                break  # the atom found no place, or the answer has one too faint: keep the last
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
    positive: bool,
    x_map: FloatArray,
    n_iter: npt.NDArray[np.int64],
) -> None:
    """Pursue each image; `x_map` holds the start and then the answer."""
    a_y_t = np.ascontiguousarray(a_y.T)
    a_x_t = np.ascontiguousarray(a_x.T)
    column = np.empty(y[0].size)
    no_atoms = np.empty(0, np.int64)
    for b in range(len(y)):
        root = np.sqrt(weights[b])
        norms = _norms(a_y, a_x, root)
        x = x_map[b].ravel()
        r = ((y[b] - np.dot(np.dot(a_y, x_map[b]), a_x_t)) * root).ravel()
        for _ in range(max_iter):
            if np.sum(r * r) <= residual_tol * residual_tol:
                break
            g = np.dot(np.dot(a_y_t, r.reshape(y[b].shape) * root), a_x).ravel()
            if np.count_nonzero(x) >= n_nonzero:
                for atom in range(x.size):
                    if x[atom] == 0.0:
                        g[atom] = 0.0
            best = _select(g, norms, positive, no_atoms, 0, 1, 0.0)
            if best < 0:
                break
            step = g[best] / norms[best] ** 2
            write_atom(a_y, a_x, root, best, column)
            x[best] += step
            r -= step * column
            n_iter[b] += 1
        x_map[b] = x.reshape(x_map[b].shape)
