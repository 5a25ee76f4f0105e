"""Agglomerative merging of point masses."""

from __future__ import annotations

import numba

from csunmix._validation import FloatArray, IntArray


@numba.njit(cache=True, nogil=True)
def merge_closest(mass: FloatArray, starts: IntArray, radius: float) -> None:
    """Merge the closest pair of each group until none is within `radius`.

    Rows of `mass` are ``(y, x, flux)``; group ``g`` holds the rows from ``starts[g]`` to
    ``starts[g + 1]``. A row that was merged into another is left with flux 0.
    """
    for g in range(len(starts) - 1):
        first, last = starts[g], starts[g + 1]
        while True:
            a, b, closest = -1, -1, radius * radius
            for m in range(first, last):
                if mass[m, 2] <= 0.0:
                    continue
                for n in range(m + 1, last):
                    if mass[n, 2] <= 0.0:
                        continue
                    d = (mass[m, 0] - mass[n, 0]) ** 2 + (mass[m, 1] - mass[n, 1]) ** 2
                    if d < closest or (a < 0 and d == closest):
                        a, b, closest = m, n, d
            if a < 0:
                break
            total = mass[a, 2] + mass[b, 2]
            for axis in range(2):
                mass[a, axis] = (mass[a, 2] * mass[a, axis] + mass[b, 2] * mass[b, axis]) / total
            mass[a, 2], mass[b, 2] = total, 0.0
