"""How much room a prior leaves: what densities of scenes are normalised by."""

from __future__ import annotations

import math

import numpy as np

from csunmix._kernels.jit import glue, leaf
from csunmix._kernels.model import Model
from csunmix._kernels.prior import Box
from csunmix._kernels.scene import log_scales
from csunmix._validation import FloatArray

_RARELY = 0.3  # probability that the last of some points is too close to one of the others
_SETS, _NEW = 4000, 20  # sets of points that keep their distances, and points drawn for each


@glue()
def log_room(size_y: float, size_x: float, separation: float, count: int) -> float:
    """Log probability that `count` points uniform in a box keep their distances.

    Two points in a box of a by b are closer with a probability
    ``p = (pi s^2 a b - 4/3 s^3 (a + b) + s^4/2) / (a b)^2``. Where that is small, each further one
    finds room beside k others with ``1 - k p``: the log is too low by 0.04 for 5 points, by 5 % for
    30. Else points are drawn.
    """
    if separation < min(size_y, size_x):
        area, around = size_y * size_x, size_y + size_x
        pair = math.pi * separation**2 * area - 4.0 / 3.0 * separation**3 * around
        pair = (pair + 0.5 * separation**4) / area**2
        if (count - 1) * pair < _RARELY:
            total = 0.0
            for k in range(1, count):
                total += math.log1p(-k * pair)
            return total
    if separation == 0.0 or count < 2:
        return 0.0
    return _drawn_room(size_y, size_x, separation, count)


@glue()
def _drawn_room(size_y: float, size_x: float, separation: float, count: int) -> float:
    """Points are added one by one to sets that keep distances; what share does is multiplied up."""
    np.random.seed(0)
    sets, others = np.empty((_SETS, count, 2)), np.empty((_SETS, count, 2))
    new, which = np.empty((_SETS * _NEW, 2)), np.empty(_SETS * _NEW, np.int64)
    size = (size_y, size_x)
    for s in range(_SETS):
        for axis in range(2):
            sets[s, 0, axis] = size[axis] * np.random.random()
    total = 0.0
    for k in range(1, count):
        n = 0
        for draw in range(_SETS * _NEW):
            s = draw % _SETS
            for axis in range(2):
                new[n, axis] = size[axis] * np.random.random()
            which[n] = s
            n += 1 if _keeps_apart(sets, s, k, new[n, 0], new[n, 1], separation) else 0
        if n == 0:
            return -np.inf
        total += math.log(n / (_SETS * _NEW))
        for s in range(_SETS):
            kept = np.random.randint(0, n)
            for axis in range(2):
                for m in range(k):
                    others[s, m, axis] = sets[which[kept], m, axis]
                others[s, k, axis] = new[kept, axis]
        sets, others = others, sets
    return total


@leaf()
def _keeps_apart(sets: FloatArray, s: int, k: int, y: float, x: float, separation: float) -> bool:
    """Whether a point keeps its distance to the first k of a set."""
    for m in range(k):
        dy, dx = sets[s, m, 0] - y, sets[s, m, 1] - x
        if dy * dy + dx * dx < separation * separation:
            return False
    return True


@leaf()
def cell_density(
    box: Box, size: FloatArray, room_in_box: float, room_in_cell: float, count: int
) -> float:
    """Density of scenes in a likely cell, see `csunmix._kernels.prior.Box`; 0 without room there.

    Each kind of scene is normalised by itself, ``p`` being the probability of a cell whatever the
    number of targets: ``p / (1 - p) |box|^K Pr(apart in a box) / Pr(apart in a cell)``. What finds
    room are logarithms, see `log_room`.
    """
    if box.cell == 0.0 or box.cell == 1.0 or room_in_cell == -np.inf:
        return 0.0
    odds = box.cell / (1.0 - box.cell) * (size[0] * size[1]) ** count
    for axis in range(2):
        area = box.area[axis, 1] - box.area[axis, 0]
        odds /= area if box.extent >= area else 1.0
    return float(odds * math.exp(room_in_box - room_in_cell))


@glue()
def log_measure(model: Model, d: int, size: FloatArray, room: float) -> float:
    """Log of what makes a volume times a likelihood an evidence, but for a constant.

    The number of orders of the targets over the size of the prior, what noise adds whatever the
    light, and ``(2 pi)^(d/2)``; `room` is what `log_room` says of a box of `size` (2,).
    """
    box, count = model.box, model.n_targets
    total = log_scales(model.pixels, 0.0) + 0.5 * d * math.log(2.0 * math.pi)
    total += math.lgamma(count + 1.0) - count * math.log(box.flux[1] - box.flux[0])
    for axis in range(2):
        area = box.area[axis, 1] - box.area[axis, 0]
        total -= count * math.log(size[axis])
        total -= math.log(area - box.extent) if box.extent < area else 0.0
    total += math.log1p(-box.cell) if box.cell_density > 0.0 else 0.0
    return total - room
