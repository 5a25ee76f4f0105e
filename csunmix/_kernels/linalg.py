"""Small dense linear algebra inside compiled loops."""

from __future__ import annotations

import math

import numpy as np

from csunmix._kernels.jit import leaf, part
from csunmix._validation import FloatArray

DEPENDENT = 1e-13
"""A pivot below this share of its diagonal counts as linear dependence."""


@leaf()
def add_up(a: FloatArray) -> float:
    """``sum a`` of a vector, in order.

    numba's own ``a.sum()`` may take `fastmath` from whichever caller is compiled first.
    """
    s = 0.0
    for p in range(a.size):
        s += a[p]
    return s


@leaf()
def inner(a: FloatArray, b: FloatArray) -> float:
    """``sum a b`` of two vectors."""
    s = 0.0
    for p in range(a.size):
        s += a[p] * b[p]
    return s


@leaf()
def copy(a: FloatArray, out: FloatArray) -> None:
    """``out = a``."""
    for p in range(a.size):
        out[p] = a[p]


@leaf()
def add(factor: float, a: FloatArray, out: FloatArray) -> None:
    """``out += factor a``."""
    for p in range(a.size):
        out[p] += factor * a[p]


@leaf()
def largest(a: FloatArray) -> float:
    """Largest entry of a vector, by four at a time."""
    n, one = np.uint64(a.size), np.uint64(1)
    s, t, u, v = a[n - one], -np.inf, -np.inf, -np.inf
    for p in range(np.uint64(0), n - n % np.uint64(4), np.uint64(4)):
        s, t = max(s, a[p]), max(t, a[p + one])
        u, v = max(u, a[p + one + one]), max(v, a[p + one + one + one])
    for p in range(n - n % np.uint64(4), n):
        s = max(s, a[p])
    return float(max(max(s, t), max(u, v)))


@leaf()
def first_largest(a: FloatArray) -> int:
    """Where the largest entry of a vector is, the first of them."""
    most, p = largest(a), 0
    while p < a.size - 1 and not a[p] >= most:
        p += 1
    return p


@leaf()
def to_shares(logs: FloatArray, share: FloatArray) -> float:
    """``exp(logs)`` over their sum, into `share`; returns the log of the sum."""
    top, total = -np.inf, 0.0
    for n in range(logs.size):
        top = max(top, logs[n])
    for n in range(logs.size):
        share[n] = math.exp(logs[n] - top)
        total += share[n]
    for n in range(logs.size):
        share[n] /= total
    return top + math.log(total)


@leaf()
def effective(logs: FloatArray) -> float:
    """How many draws of these log weights count, ``(sum w)^2 / sum w^2``; 0 of none."""
    if logs.size == 0:
        return 0.0
    top, total, squares = -np.inf, 0.0, 0.0
    for n in range(logs.size):
        top = max(top, logs[n])
    for n in range(logs.size):
        w = math.exp(logs[n] - top)
        total += w
        squares += w * w
    return total * total / squares


@leaf()
def cholesky(gram: FloatArray, k: int, lower: FloatArray) -> int:
    """Factor the leading k x k block; returns k, or the index of the first dependent row."""
    for i in range(k):
        if not cholesky_append(gram, i, lower):
            return i
    return k


@leaf()
def invert_lower(lower: FloatArray, out: FloatArray) -> None:
    """Inverse of a lower triangle, into that of `out`."""
    d = lower.shape[0]
    for b in range(d):
        out[b, b] = 1.0 / lower[b, b]
        for a in range(b + 1, d):
            s = 0.0
            for c in range(b, a):
                s += lower[a, c] * out[c, b]
            out[a, b] = -s / lower[a, a]


@leaf()
def inner_gram(lower: FloatArray, out: FloatArray) -> None:
    """``L^T L`` of a lower triangle."""
    d = lower.shape[0]
    for a in range(d):
        for b in range(a + 1):
            s = 0.0
            for c in range(a, d):
                s += lower[c, a] * lower[c, b]
            out[a, b] = out[b, a] = s


@part()
def invert(gram: FloatArray, out: FloatArray) -> bool:
    """Inverse of a positive definite matrix, or of its diagonal, and False, where it is none."""
    d = gram.shape[0]
    lower, inverse = np.empty((d, d)), np.empty((d, d))
    if cholesky(gram, d, lower) < d:
        for a in range(d):
            for b in range(d):
                out[a, b] = 1.0 / gram[a, a] if a == b else 0.0
        return False
    invert_lower(lower, inverse)
    inner_gram(inverse, out)
    return True


@leaf()
def cholesky_append(gram: FloatArray, i: int, lower: FloatArray) -> bool:
    """Row i of the factor, rows 0 to i - 1 being there; False if it depends on them."""
    pivot = gram[i, i]
    for j in range(i):
        s = 0.0  # not by `inner`: slices count references, which costs more than short sums
        for n in range(j):
            s += lower[i, n] * lower[j, n]
        lower[i, j] = (gram[i, j] - s) / lower[j, j]
        pivot -= lower[i, j] * lower[i, j]
    if not pivot > DEPENDENT * gram[i, i]:  # or it is NaN
        return False
    lower[i, i] = np.sqrt(pivot)
    return True


@leaf()
def cholesky_drop(lower: FloatArray, k: int, position: int) -> None:
    """The factor of k rows without the row and column at `position`, by Givens rotations."""
    for i in range(position, k - 1):
        for j in range(i + 2):
            lower[i, j] = lower[i + 1, j]
    for j in range(position, k - 1):
        length = np.sqrt(lower[j, j] ** 2 + lower[j, j + 1] ** 2)
        c, s = lower[j, j] / length, lower[j, j + 1] / length
        lower[j, j] = length
        for i in range(j + 1, k - 1):
            u, v = lower[i, j], lower[i, j + 1]
            lower[i, j], lower[i, j + 1] = c * u + s * v, c * v - s * u


@leaf()
def cholesky_solve(lower: FloatArray, k: int, rhs: FloatArray, out: FloatArray) -> None:
    """Solve ``L L^T out = rhs`` for the leading k unknowns."""
    for i in range(k):
        s = rhs[i]
        for n in range(i):
            s -= lower[i, n] * out[n]
        out[i] = s / lower[i, i]
    for i in range(k - 1, -1, -1):
        out[i] /= lower[i, i]
        for n in range(i):
            out[n] -= out[i] * lower[i, n]
