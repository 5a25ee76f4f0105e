"""Cells that shine in a stack of maps, and the agglomerative merging of point masses."""

from __future__ import annotations

import numpy as np

from csunmix._kernels.jit import kernel, leaf
from csunmix._validation import FloatArray, IntArray

_TIE = 1e-9  # squared distances this close, relatively, count as equal


@kernel(_nrt=False)
def count_cells(maps: FloatArray, least: float, count: IntArray) -> bool:
    """Cells of at least `least` in each of the maps (n, cells); False if any is not finite."""
    finite = True
    for b in range(len(maps)):
        n, bad = 0, 0
        for cell in range(np.uint64(maps.shape[1])):
            value = maps[np.uint64(b), cell]
            n += value >= least
            bad += not abs(value) < np.inf
        count[b] = n
        finite &= bad == 0
    return finite


@kernel(_nrt=False)
def list_cells(maps: FloatArray, least: float, count: IntArray, cells: IntArray) -> None:
    """Write the cells of at least `least`, ``count[b]`` of map b."""
    k, end = 0, 0
    for b in range(len(maps)):
        cell, end = 0, end + count[b]
        while k < end:
            if maps[b, cell] >= least:
                cells[k] = cell
                k += 1
            cell += 1


@kernel()
def merge_closest(mass: FloatArray, starts: IntArray, radius: float) -> None:
    """Merge the closest pair of each group until none is within `radius`.

    Rows of `mass` are ``(y, x, flux)``; group ``g`` holds the rows from ``starts[g]`` to
    ``starts[g + 1]``. On a grid many pairs are equally close: of these the one merges first whose
    brighter mass moves least, whatever the order of the rows. A row that was merged into another
    is left with flux 0.
    """
    reach2 = radius * radius * (1.0 + _TIE)
    partner = np.empty(len(mass), np.int64)  # row that each merges with soonest; -1: none in reach
    gap2 = np.empty(len(mass))  # squared distance to it
    for g in range(len(starts) - 1):
        first, last = starts[g], starts[g + 1]
        for m in range(first, last):
            partner[m], gap2[m] = _find_partner(mass, m, first, last, reach2)
        while first < last:
            a = _soonest(mass, partner, gap2, first, last)
            if partner[a] < 0:
                break
            a, b = min(a, partner[a]), max(a, partner[a])
            total = mass[a, 2] + mass[b, 2]
            for axis in range(2):
                mass[a, axis] = (mass[a, 2] * mass[a, axis] + mass[b, 2] * mass[b, axis]) / total
            mass[a, 2], mass[b, 2] = total, 0.0
            for m in range(first, last):
                if m in (a, b) or partner[m] in (a, b):
                    partner[m], gap2[m] = _find_partner(mass, m, first, last, reach2)
                elif mass[m, 2] > 0.0:
                    new2 = _distance2(mass, m, a)
                    if new2 <= reach2 and _sooner(mass, m, a, new2, partner[m], gap2[m]):
                        partner[m], gap2[m] = a, new2


@leaf()
def _find_partner(
    mass: FloatArray, m: int, first: int, last: int, reach2: float
) -> tuple[int, float]:
    """Row that row m merges with soonest, and its squared distance; -1 if none is in reach."""
    partner, gap2 = -1, np.inf
    if mass[m, 2] > 0.0:
        for n in range(first, last):
            if n != m and mass[n, 2] > 0.0:
                new2 = _distance2(mass, m, n)
                if new2 <= reach2 and _sooner(mass, m, n, new2, partner, gap2):
                    partner, gap2 = n, new2
    return partner, gap2


@leaf()
def _sooner(mass: FloatArray, m: int, n: int, new2: float, partner: int, gap2: float) -> bool:
    """Whether row m merges with row n before its partner."""
    if partner < 0 or abs(new2 - gap2) > _TIE * max(new2, gap2):
        return new2 < gap2
    new, old = _share(mass, m, n), _share(mass, m, partner)
    return new < old or (new == old and n < partner)


@leaf()
def _soonest(mass: FloatArray, partner: IntArray, gap2: FloatArray, first: int, last: int) -> int:
    """Row that merges with its partner before all others do."""
    limit, soonest, least = np.inf, first, np.inf
    for m in range(first, last):
        limit = min(limit, gap2[m] * (1.0 + _TIE))
    for m in range(first, last):
        if gap2[m] <= limit and partner[m] >= 0:
            share = _share(mass, m, partner[m])
            if share < least:
                soonest, least = m, share
    return soonest


@leaf()
def _distance2(mass: FloatArray, a: int, b: int) -> float:
    return float((mass[a, 0] - mass[b, 0]) ** 2 + (mass[a, 1] - mass[b, 1]) ** 2)


@leaf()
def _share(mass: FloatArray, a: int, b: int) -> float:
    """Share of the fainter of two."""
    return float(min(mass[a, 2], mass[b, 2]) / (mass[a, 2] + mass[b, 2]))
