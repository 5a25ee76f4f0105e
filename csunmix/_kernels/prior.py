"""The prior of a scene in compiled loops: its density, and draws from it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.jit import glue, leaf, part
from csunmix._validation import FloatArray

_TRIES = 50  # places tried for one target before the whole set is drawn anew
_SETS = 2000  # sets tried


class Box(NamedTuple):
    """What is known of a scene before the image is seen.

    Positions are uniform in a box of size `extent` that is uniform in `area`, or in one pixel's
    cell, no two targets closer than `separation`; fluxes uniform; the background normal.

    `cell_density` is that of scenes in a cell, where it is likely, in an image much larger than the
    box. Its unit is the density of scenes in a box for each px^2 that the box's corner may be in.
    """

    area: FloatArray  # (2, 2): lowest and highest y, lowest and highest x, px
    flux: tuple[float, float]  # lowest and highest, DN
    separation: float
    extent: float  # inf: all of the area
    cell: float  # probability of one
    cell_density: float  # 0 where it is sure
    background: tuple[float, float]  # mean and standard deviation, DN


@leaf()
def log_prior(box: Box, theta: FloatArray, count: int) -> float:
    """Log prior density of a scene but for a constant; -inf where it is 0."""
    in_box, in_cell = densities(box, theta, count)
    if in_box + in_cell <= 0.0:
        return -np.inf
    for k in range(count):
        if theta[3 * k + 2] < box.flux[0] or theta[3 * k + 2] > box.flux[1]:
            return -np.inf
        if crowded(box, theta, k):
            return -np.inf
    return math.log(in_box + in_cell) + log_level(box, theta, count)


@leaf()
def densities(box: Box, theta: FloatArray, count: int) -> tuple[float, float]:
    """Densities of the places of a scene as one in a box of the extent, and in a cell."""
    in_box, in_cell = (0.0, 1.0) if box.cell == 1.0 else (1.0, box.cell_density)
    for axis in range(2):
        lowest, highest = extremes(theta, axis, count)
        low, high = theta[lowest], theta[highest]
        start, stop = box.area[axis, 0], box.area[axis, 1]
        if low < start or high > stop:
            return 0.0, 0.0
        if low < math.ceil(high - 0.5) - 0.5:
            in_cell = 0.0
        if box.extent < stop - start:
            # Where the box may lie: all of it in the area, all targets in it.
            first, last = max(high - box.extent, start), min(low, stop - box.extent)
            in_box *= max(last - first, 0.0)
    return in_box, in_cell


@glue()
def sure_cell(box: Box) -> Box:
    """What is known of a scene of which it is also known that it lies in a cell."""
    return Box(box.area, box.flux, box.separation, np.inf, 1.0, 0.0, box.background)


@glue()
def sure_box(box: Box) -> Box:
    """The same of one that lies in no cell, unless all do."""
    cell = 1.0 if box.cell == 1.0 else 0.0
    return Box(box.area, box.flux, box.separation, box.extent, cell, 0.0, box.background)


@leaf()
def log_level(box: Box, theta: FloatArray, count: int) -> float:
    """Log prior density of the background but for a constant; 0 where it is not fitted."""
    if theta.size == 3 * count:
        return 0.0
    return float(-0.5 * ((theta[3 * count] - box.background[0]) / box.background[1]) ** 2)


@leaf()
def crowded(box: Box, theta: FloatArray, k: int) -> bool:
    """Whether target k is too close to one before it."""
    for m in range(k):
        d2 = (theta[3 * k] - theta[3 * m]) ** 2 + (theta[3 * k + 1] - theta[3 * m + 1]) ** 2
        if d2 < box.separation**2:
            return True
    return False


@leaf()
def limits(
    box: Box, theta: FloatArray, count: int, in_cell: bool, lower: FloatArray, upper: FloatArray
) -> None:
    """Lowest and highest value of every parameter; a cell is that of the targets' mean."""
    low_y, high_y, low_x, high_x = box.area[0, 0], box.area[0, 1], box.area[1, 0], box.area[1, 1]
    if in_cell:
        y = x = 0.0
        for k in range(count):
            y += theta[3 * k] / count
            x += theta[3 * k + 1] / count
        low_y, high_y = _side(y, low_y, high_y)
        low_x, high_x = _side(x, low_x, high_x)
    for k in range(count):  # all in one loop: each takes time to compile
        lower[3 * k], upper[3 * k] = low_y, high_y
        lower[3 * k + 1], upper[3 * k + 1] = low_x, high_x
        lower[3 * k + 2], upper[3 * k + 2] = box.flux[0], box.flux[1]
    if theta.size > 3 * count:
        lower[3 * count], upper[3 * count] = -np.inf, np.inf


@leaf()
def _side(middle: float, low: float, high: float) -> tuple[float, float]:
    """Ends of the cell around `middle`, as far as it lies between `low` and `high`."""
    middle = math.floor(min(max(middle, low), high) + 0.5)
    return max(low, middle - 0.5), min(high, middle + 0.5)


@leaf()
def extremes(theta: FloatArray, axis: int, count: int) -> tuple[int, int]:
    """Which parameters are the lowest and the highest place along an axis."""
    first = last = axis
    for k in range(1, count):
        first = 3 * k + axis if theta[3 * k + axis] < theta[first] else first
        last = 3 * k + axis if theta[3 * k + axis] > theta[last] else last
    return first, last


@part()
def draw_scene(box: Box, count: int, theta: FloatArray) -> bool:
    """Draw a scene target by target; False if they find no room.

    Each is uniform where those before it leave room: near the prior, which steps then make it.
    """
    corner, size = np.empty(2), np.empty(2)
    for _ in range(_SETS):
        _draw_frame(box, corner, size)
        if _draw_places(box, count, corner, size, theta):
            for k in range(count):
                u = np.random.random()
                theta[3 * k + 2] = box.flux[0] + (box.flux[1] - box.flux[0]) * u
            if theta.size > 3 * count:
                theta[3 * count] = box.background[0] + box.background[1] * np.random.normal()
            return True
    return False


@leaf()
def _draw_frame(box: Box, corner: FloatArray, size: FloatArray) -> None:
    """Draw the box that the targets lie in: a cell, one of the prior's extent, or the area."""
    in_cell = box.cell == 1.0 or (box.cell > 0.0 and np.random.random() < box.cell)
    for axis in range(2):
        low, high = box.area[axis, 0], box.area[axis, 1]
        if in_cell:
            first, last = math.floor(low + 0.5), math.ceil(high - 0.5)
            middle = first + np.random.randint(0, max(int(last - first), 0) + 1)
            corner[axis] = max(middle - 0.5, low)
            size[axis] = min(middle + 0.5, high) - corner[axis]
        elif box.extent < high - low:
            corner[axis] = low + (high - low - box.extent) * np.random.random()
            size[axis] = box.extent
        else:
            corner[axis], size[axis] = low, high - low


@leaf()
def _draw_places(
    box: Box, count: int, corner: FloatArray, size: FloatArray, theta: FloatArray
) -> bool:
    """Draw places that keep their distances; False if one target finds none."""
    for k in range(count):
        apart = False
        for _ in range(_TRIES):
            for axis in range(2):
                theta[3 * k + axis] = corner[axis] + size[axis] * np.random.random()
            apart = not crowded(box, theta, k)
            if apart:
                break
        if not apart:
            return False
    return True
