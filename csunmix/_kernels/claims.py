"""Detections by rank, the truth nearest to each, who claims it first, and precision."""

from __future__ import annotations

import numpy as np

from csunmix._kernels.jit import kernel
from csunmix._validation import BoolArray, FloatArray, IntArray

_SIGN = np.int64(-(2**63))
BITS = 13  # a digit of `sort_rows`: four are the mantissa
_DIGIT = 2**BITS - 1


@kernel(_nrt=False)
def sort_rows(keys: IntArray, rows: IntArray, other: IntArray, counts: IntArray) -> bool:
    """Order `rows` by their key, those of equal keys as they are: a radix sort.

    `keys` are the bits of doubles, none of them -0 or NaN, and come to be others whose order as
    unsigned integers is that of the doubles. `other`, as large as `rows`, and `counts`, one entry
    for each value of a digit, are scratch. The answer stands in `rows`, or in `other` where what
    is returned is true.
    """
    for i in range(keys.size):
        keys[i] ^= (keys[i] >> 63) | _SIGN
    swapped = False
    for low in range(0, 64, BITS):
        counts[:] = 0
        for i in range(keys.size):
            counts[(keys[i] >> low) & _DIGIT] += 1
        before, most = 0, 0
        for k in range(counts.size):
            most = max(most, counts[k])
            counts[k], before = before, before + counts[k]
        if most == keys.size:
            continue
        for i in range(rows.size):
            digit = (keys[rows[i]] >> low) & _DIGIT
            other[counts[digit]] = rows[i]
            counts[digit] += 1
        rows, other, swapped = other, rows, not swapped
    return swapped


@kernel(_nrt=False)
def find_nearest(
    frame: IntArray,
    y: FloatArray,
    x: FloatArray,
    first: IntArray,
    true_y: FloatArray,
    true_x: FloatArray,
    nearest: IntArray,
    distance: FloatArray,
) -> None:
    """Nearest truth in the frame of each detection, the first of equals, and its distance.

    The truths of frame f are those from ``first[f]`` to ``first[f + 1]``; where there are none,
    `nearest` becomes -1 and `distance` infinite. Distances are computed in the precision of the
    positions.
    """
    for i in range(frame.size):
        best, least = -1, distance.dtype.type(np.inf)
        for j in range(first[frame[i]], first[frame[i] + 1]):
            dx, dy = x[i] - true_x[j], y[i] - true_y[j]
            d = np.sqrt(dx * dx + dy * dy)
            closer = d < least
            best, least = j if closer else best, d if closer else least
        nearest[i], distance[i] = best, least


@kernel(_nrt=False)
def claim(
    order: IntArray,
    nearest: IntArray,
    distance: FloatArray,
    limits: FloatArray,
    closest: FloatArray,
    hit: BoolArray,
) -> None:
    """For each limit, and in `order`: a detection hits its truth if near and the first to.

    `hit` is (limits, detections); `closest`, one entry for each truth and one more, is scratch: the
    least distance to a truth of the detections before. Without a truth, `nearest` is -1 (which is
    the last entry) and `distance` infinite.
    """
    closest[:] = np.inf
    for rank in range(order.size):
        j, d = nearest[order[rank]], distance[order[rank]]
        before = closest[j]
        for k in range(limits.size):
            hit[k, rank] = (d <= limits[k]) & (before > limits[k])
        closest[j] = d if d < before else before


@kernel(_nrt=False)
def envelope(hit: BoolArray, largest: FloatArray) -> int:
    """Largest precision from each hit on; how many hits there are.

    The first hit's is ``largest[0]``; `largest` has one entry more than there are detections.
    """
    n = 0
    for rank in range(hit.size):
        largest[n] = rank + 1  # of a miss, until that of the next hit is known
        n += hit[rank]
    best = 0.0
    for k in range(n - 1, -1, -1):
        precision = (k + 1) / largest[k]
        best = precision if precision > best else best
        largest[k] = best
    return n
