"""Small dense linear algebra inside compiled loops."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._validation import FloatArray, IntArray

_DEPENDENT = 1e-13  # a pivot below this share of its diagonal counts as linear dependence


@numba.njit(cache=True, nogil=True)
def cholesky(gram: FloatArray, k: int, lower: FloatArray) -> int:
    """Factor the leading k x k block; returns k, or the index of the first dependent row."""
    for i in range(k):
        for j in range(i + 1):
            s = gram[i, j]
            for m in range(j):
                s -= lower[i, m] * lower[j, m]
            if j < i:
                lower[i, j] = s / lower[j, j]
            elif s <= _DEPENDENT * gram[i, i]:
                return i
            else:
                lower[i, i] = np.sqrt(s)
    return k


@numba.njit(cache=True, nogil=True)
def cholesky_solve(lower: FloatArray, k: int, rhs: FloatArray, out: FloatArray) -> None:
    """Solve ``L L^T out = rhs`` for the leading k unknowns."""
    for i in range(k):
        s = rhs[i]
        for m in range(i):
            s -= lower[i, m] * out[m]
        out[i] = s / lower[i, i]
    for i in range(k - 1, -1, -1):
        s = out[i]
        for m in range(i + 1, k):
            s -= lower[m, i] * out[m]
        out[i] = s / lower[i, i]


@numba.njit(cache=True, nogil=True)
def write_atom(
    a_y: FloatArray, a_x: FloatArray, root: FloatArray, atom: int, out: FloatArray
) -> None:
    """Column of one atom, weighted by `root`, as a flat vector."""
    i, j = atom // a_x.shape[1], atom % a_x.shape[1]
    n_q = a_x.shape[0]
    for p in range(a_y.shape[0]):
        for q in range(n_q):
            out[p * n_q + q] = a_y[p, i] * a_x[q, j] * root[p, q]


@numba.njit(cache=True, nogil=True)
def residual(
    target: FloatArray, columns: FloatArray, x: FloatArray, k: int, out: FloatArray
) -> None:
    """``out = target - sum_m x_m columns_m``."""
    out[:] = target
    for m in range(k):
        for p in range(out.size):
            out[p] -= x[m] * columns[m, p]


@numba.njit(cache=True, nogil=True)
def extend_gram(
    columns: FloatArray, target: FloatArray, k: int, gram: FloatArray, rhs: FloatArray
) -> None:
    """Fill row and column `k` of the Gram matrix and entry `k` of the right-hand side."""
    for m in range(k + 1):
        s = 0.0
        for p in range(target.size):
            s += columns[k, p] * columns[m, p]
        gram[k, m] = gram[m, k] = s
    s = 0.0
    for p in range(target.size):
        s += columns[k, p] * target[p]
    rhs[k] = s


@numba.njit(cache=True, nogil=True)
def drop(
    position: int,
    k: int,
    atoms: IntArray,
    x: FloatArray,
    columns: FloatArray,
    gram: FloatArray,
    rhs: FloatArray,
) -> int:
    """Remove one of the k chosen atoms everywhere; returns k - 1."""
    for m in range(position, k - 1):
        atoms[m], x[m], rhs[m] = atoms[m + 1], x[m + 1], rhs[m + 1]
        columns[m] = columns[m + 1]
        for n in range(k):
            gram[m, n] = gram[m + 1, n]
    for m in range(position, k - 1):
        for n in range(k - 1):
            gram[n, m] = gram[n, m + 1]
    return k - 1
