"""Which target of a scene is which: orders that keep each target near to its mean."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.jit import kernel, leaf, part
from csunmix._kernels.linalg import add_up, copy
from csunmix._validation import FloatArray, IntArray

_ROUNDS = 10


@kernel()
def settle(scenes: FloatArray, weight: FloatArray, mean: FloatArray) -> float:
    """Put the targets of all scenes (n, K, 3) into the order nearest to their mean, in place.

    Starts from places `mean` (K, 2), which become the weighted means; returns the weighted sum of
    squared distances to them.
    """
    n, count = scenes.shape[:2]
    order, scene = np.empty(count, np.int64), np.empty((count, 3))
    cost = np.empty((count, count))
    spread = 0.0
    for turn in range(_ROUNDS):
        changed, spread = False, 0.0
        for s in range(n):
            spread += weight[s] * assign(scenes[s], mean, cost, order)
            for k in range(count):
                changed = changed or order[k] != k
                copy(scenes[s, order[k]], scene[k])
            for k in range(count):
                copy(scene[k], scenes[s, k])
        if turn > 0 and not changed:
            break
        whole = add_up(weight)
        for k in range(count):
            for axis in range(2):
                mean[k, axis] = 0.0
                for s in range(n):
                    mean[k, axis] += weight[s] * scenes[s, k, axis]
                mean[k, axis] /= whole
    return spread


@kernel()
def describe(scenes: FloatArray, weight: FloatArray, radius: float) -> FloatArray:
    """Mean and variance of ``y, x, flux`` of every target of weighted scenes (n, K, 3), (K, 7).

    The last column is the weight of the scenes in which it is within `radius` px of its mean.
    """
    n, count = scenes.shape[:2]
    out, whole = filled((count, 7), 0.0), add_up(weight)
    for s in range(n):
        for k in range(count):
            for c in range(3):
                out[k, c] += weight[s] * scenes[s, k, c] / whole
    for s in range(n):
        for k in range(count):
            distance2 = 0.0
            for c in range(3):
                away2 = (scenes[s, k, c] - out[k, c]) ** 2
                out[k, 3 + c] += weight[s] * away2 / whole
                distance2 += away2 if c < 2 else 0.0
            if distance2 <= radius * radius:
                out[k, 6] += weight[s] / whole
    return out


@part()
def assign(scene: FloatArray, mean: FloatArray, cost: FloatArray, order: IntArray) -> float:
    """Target ``order[k]`` of a scene (K, 3) for every place (K, 2), and the squared distance."""
    count = mean.shape[0]
    distance2, simple = 0.0, True
    for k in range(count):
        best, order[k] = np.inf, k
        for m in range(count):
            cost[k, m] = (scene[m, 0] - mean[k, 0]) ** 2 + (scene[m, 1] - mean[k, 1]) ** 2
            if cost[k, m] < best:
                best, order[k] = cost[k, m], m
        distance2 += best
        for m in range(k):
            simple = simple and order[m] != order[k]
    if not simple:
        hungarian(cost, order)
        distance2 = 0.0
        for k in range(count):
            distance2 += cost[k, order[k]]
    return distance2


@part()
def hungarian(cost: FloatArray, order: IntArray) -> None:
    """Column ``order[k]`` of every row of a square matrix, the sum of these being least.

    By shortest augmenting paths (Jonker & Volgenant 1987, Computing 38, 325).
    """
    n = cost.shape[0]
    of_row, of_column = filled(n, 0.0), filled(n, 0.0)  # dual variables
    row = integers(n + 1, -1)  # of each column; the last is where paths begin
    back = np.empty(n, np.int64)
    for start in range(n):
        row[n], at = start, n
        reach, seen = filled(n, np.inf), integers(n + 1, 0)
        while row[at] >= 0:
            seen[at] = 1
            i, step, after = row[at], np.inf, -1
            for j in range(n):
                if not seen[j]:
                    slack = cost[i, j] - of_row[i] - of_column[j]
                    if slack < reach[j]:
                        reach[j], back[j] = slack, at
                    if reach[j] < step:
                        step, after = reach[j], j
            if after < 0:
                raise ValueError("costs must be finite")
            for j in range(n):
                if seen[j]:
                    of_row[row[j]] += step
                    of_column[j] -= step
                else:
                    reach[j] -= step
            of_row[start] += step
            at = after
        while at != n:
            row[at] = row[back[at]]
            at = back[at]
    for j in range(n):
        order[row[j]] = j


class Pairs(NamedTuple):
    """Targets of one scene and those of another that they lie next to."""

    order: IntArray  # (K,), target of the first for every one of the other
    apart: FloatArray  # (K, K), squared distances
    least: FloatArray  # (K,), of those that remain


@part()
def new_pairs(count: int) -> Pairs:
    """Space for scenes of so many targets."""
    return Pairs(integers(count, 0), np.empty((count, count)), np.empty(count))


@part()
def nearest(theta: FloatArray, like: FloatArray, count: int) -> IntArray:
    """Targets of `theta` that lie next to those of `like`, the closest pairs first."""
    pairs = new_pairs(count)
    pair(theta, like, pairs)
    return pairs.order


@leaf()
def pair(theta: FloatArray, like: FloatArray, pairs: Pairs) -> bool:
    """Find the order of `nearest`; whether it is that of `theta`."""
    order, apart, least = pairs
    count = order.size
    for k in range(count):
        for m in range(count):
            dy, dx = like[3 * k] - theta[3 * m], like[3 * k + 1] - theta[3 * m + 1]
            apart[k, m] = dy * dy + dx * dx
        least[k], order[k] = _least(apart[k])
    same = True
    for _ in range(count):
        _, at = _least(least)
        least[at] = np.inf
        same = same and order[at] == at
        for k in range(count):
            if least[k] < np.inf:
                apart[k, order[at]] = np.inf
                if order[k] == order[at]:
                    least[k], order[k] = _least(apart[k])
    return same


@leaf()
def _least(values: FloatArray) -> tuple[float, int]:
    """The least of values and where it is, the first of equal ones."""
    best, at = np.inf, 0
    for k in range(values.size):
        if values[k] < best:
            best, at = values[k], k
    return best, at
