"""Which truth each detection lies nearest to, and which detections claim it first."""

from __future__ import annotations

import numpy as np

from csunmix._kernels.jit import leaf
from csunmix._validation import BoolArray, FloatArray, IntArray


@leaf()
def find_nearest(
    frame: IntArray,
    y: FloatArray,
    x: FloatArray,
    first: IntArray,
    by_frame: IntArray,
    true_y: FloatArray,
    true_x: FloatArray,
    nearest: IntArray,
    distance: FloatArray,
) -> None:
    """Nearest truth in the frame of each detection, the first of equals, and its distance.

    The truths of frame f are ``by_frame[first[f]:first[f + 1]]``;
    where there are none, `nearest` becomes -1 and `distance` infinite. Distances are computed in
    the precision of the positions.
    """
    for i in range(frame.size):
        best, least = -1, distance.dtype.type(np.inf)
        for k in range(first[frame[i]], first[frame[i] + 1]):
            j = by_frame[k]
            dx, dy = x[i] - true_x[j], y[i] - true_y[j]
            d = np.sqrt(dx * dx + dy * dy)
            closer = d < least
            best, least = j if closer else best, d if closer else least
        nearest[i], distance[i] = best, least


@leaf()
def claim(
    nearest: IntArray, distance: FloatArray, limits: FloatArray, closest: FloatArray, hit: BoolArray
) -> None:
    """For each limit, and in this order: a detection hits its truth if near and the first to.

    `hit` is (limits, detections); `closest`, one entry for each truth and one more, is scratch: the
    least distance to a truth of the detections before.
    """
    closest[:] = np.inf
    for rank in range(nearest.size):
        j, d = nearest[rank], distance[rank]  # -1, the last entry, and infinite without a truth
        before = closest[j]
        for k in range(limits.size):
            hit[k, rank] = (d <= limits[k]) & (before > limits[k])
        closest[j] = d if d < before else before
