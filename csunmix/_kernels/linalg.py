"""Small dense linear algebra inside compiled loops."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._validation import FloatArray

_DEPENDENT = 1e-13  # a pivot below this share of its diagonal counts as linear dependence


@numba.njit(cache=True, nogil=True)
def inner(a: FloatArray, b: FloatArray) -> float:
    """``sum a b`` of two vectors."""
    s = 0.0
    for p in range(a.size):
        s += a[p] * b[p]
    return s


@numba.njit(cache=True, nogil=True)
def add(factor: float, a: FloatArray, out: FloatArray) -> None:
    """``out += factor a``."""
    for p in range(a.size):
        out[p] += factor * a[p]


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
