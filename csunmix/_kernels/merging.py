"""Agglomerative merging of point masses."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._validation import FloatArray, IntArray

_TIE = 1e-9  # squared distances this close, relatively, count as equal


@numba.njit(cache=True, nogil=True)
def merge_closest(mass: FloatArray, starts: IntArray, radius: float) -> None:
    """Merge the closest pair of each group until none is within `radius`.

    Rows of `mass` are ``(y, x, flux)``; group ``g`` holds the rows from ``starts[g]`` to
    ``starts[g + 1]``. On a grid many pairs are equally close: of these the one merges first whose
    brighter mass moves least, whatever the order of the rows. A row that was merged into another
    is left with flux 0.
    """
    reach2 = radius * radius * (1.0 + _TIE)
    partner = np.empty(len(mass), np.int64)
    for g in range(len(starts) - 1):
        first, last = starts[g], starts[g + 1]
        for m in range(first, last):
            partner[m] = _find_partner(mass, m, first, last, reach2)
        while first < last:
            a = first
            for m in range(first, last):
                if _sooner(mass, m, partner[m], a, partner[a]):
                    a = m
            if partner[a] < 0:
                break
            a, b = min(a, partner[a]), max(a, partner[a])
            total = mass[a, 2] + mass[b, 2]
            for axis in range(2):
                mass[a, axis] = (mass[a, 2] * mass[a, axis] + mass[b, 2] * mass[b, axis]) / total
            mass[a, 2], mass[b, 2] = total, 0.0
            for m in range(first, last):
                touched = m in (a, b) or partner[m] in (a, b)
                if touched or _distance2(mass, m, a) <= reach2:
                    partner[m] = _find_partner(mass, m, first, last, reach2)


@numba.njit(cache=True, nogil=True)
def _find_partner(mass: FloatArray, m: int, first: int, last: int, reach2: float) -> int:
    """Row that row m merges with soonest; -1 if none is in reach."""
    partner = -1
    if mass[m, 2] > 0.0:
        for n in range(first, last):
            near = n != m and mass[n, 2] > 0.0 and _distance2(mass, m, n) <= reach2
            if near and _sooner(mass, m, n, m, partner):
                partner = n
    return partner


@numba.njit(cache=True, nogil=True)
def _sooner(mass: FloatArray, a: int, b: int, c: int, d: int) -> bool:
    """Whether the pair (a, b) merges before the pair (c, d); -1 stands for no partner."""
    if b < 0 or d < 0:
        return b >= 0 and d < 0
    first, second = _distance2(mass, a, b), _distance2(mass, c, d)
    if abs(first - second) > _TIE * max(first, second):
        return first < second
    return _share(mass, a, b) < _share(mass, c, d)


@numba.njit(cache=True, nogil=True)
def _distance2(mass: FloatArray, a: int, b: int) -> float:
    return float((mass[a, 0] - mass[b, 0]) ** 2 + (mass[a, 1] - mass[b, 1]) ** 2)


@numba.njit(cache=True, nogil=True)
def _share(mass: FloatArray, a: int, b: int) -> float:
    """Share of the fainter of two."""
    return float(min(mass[a, 2], mass[b, 2]) / (mass[a, 2] + mass[b, 2]))
