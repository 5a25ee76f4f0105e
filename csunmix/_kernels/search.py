"""Where the joint fit starts: targets one by one, targets moved, and at random."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.fit import EXACT, HASTY, NEAR, ROUGH, Strictness, descend, objective
from csunmix._kernels.jit import glue, kernel, leaf, part
from csunmix._kernels.labels import nearest
from csunmix._kernels.linalg import copy
from csunmix._kernels.model import Model, within
from csunmix._kernels.modes import NEGLIGIBLE
from csunmix._kernels.prior import Box, crowded, densities, draw_scene, limits, sure_cell
from csunmix._kernels.scene import Pixels, Room, axis_factor, glow, new_room, noise_variance
from csunmix._validation import FloatArray, IntArray

_SAME = 0.02  # px, between targets of fits that are the same
_NEAR = 6.0  # objective above the best of an optimum that matters
_MOVES = 4  # for every target
_STEP = 0.5  # px, between places where one is put
_BETTER = 0.01  # change of the objective from where a move was not in vain
_SHAKEN, _TRIES = 0.2, 20  # share of the room and of a flux, and scenes tried
_DARK = 1e-300  # of what is divided by
_POOL = 3  # scenes that a start is the best of
_MOVED = 1e-6  # px or DN, by a cell's walls
_FEW = 3  # one in so many of the starts that end a search, where all is above a limit
_HOPELESS = 50.0  # objective of a rough fit above the best from where it is dropped


class Effort(NamedTuple):
    """How far starts are followed: all of them at first, then those that end apart."""

    rough: Strictness
    rough_iter: int
    end: Strictness
    max_iter: int


THOROUGH = Effort(ROUGH, 40, EXACT, 100)
QUICK = Effort(HASTY, 40, NEAR, 100)


class Optima(NamedTuple):
    """Where fits have ended so far."""

    thetas: FloatArray  # (most, d)
    values: FloatArray  # (most), inf of those not there yet
    n: IntArray  # (2), how many there are, and which is the best


@kernel()
def search(
    model: Model,
    n_starts: int,
    enough: int,
    limit: float,
    effort: Effort,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Optima (n, d) that many starts end in, the best first, and their objectives.

    The first start has its targets one by one where each explains most of what those before it
    leave; then single targets of the best fit so far are moved to where they would explain more.
    Random starts follow, `n_starts` of them, or as many as it takes until `enough` in a row have
    led to nothing new that is near the best. After one that led nowhere comes one near the best fit
    so far, one of the `n_starts` but none of those in a row. The fit of a start is rough, and
    goes on where it is not on the way to an optimum that others led to, nor far above the best. A
    third of `enough` random starts will do where all optima are above the objective `limit`. The
    objective is inf where there was no start.
    """
    np.random.seed(seed)
    d, moves = model.precision.size, _MOVES * model.n_targets
    most = 1 + moves + n_starts
    known = Optima(filled((most, d), 0.0), filled(most, np.inf), integers(2, 0))
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    theta, in_vain = filled(d, 0.0), 0
    if _grow(model, theta, room):
        _follow(model, theta, limit, effort, known, room)
    for _ in range(moves if model.n_targets > 1 and known.n[0] > 0 else 0):
        copy(known.thetas[known.n[1]], theta)
        before, in_vain = known.values[known.n[1]], in_vain + 1
        if _move(model, in_vain - 1, theta, room):
            _follow(model, theta, limit, effort, known, room)
            if known.values[known.n[1]] < before - _BETTER:
                in_vain = 0
        if in_vain == model.n_targets:
            break
    in_a_row, hopeless = 0, False
    for n in range(n_starts):
        if n >= enough // _FEW and limit < known.values[known.n[1]] < np.inf:
            break
        shaken = hopeless and _shake(model, known.thetas[known.n[1]], theta)
        if shaken or _draw(model, theta, room):
            new, value = _follow(model, theta, limit, effort, known, room)
            hopeless = value > known.values[known.n[1]] + _HOPELESS and not shaken
            in_a_row = 0 if new else in_a_row + (0 if shaken else 1)
        if in_a_row >= enough:
            break
    in_cells = model.box.cell_density > 0.0
    return _sorted(_with_cells(model, known, effort, room) if in_cells else known)


@kernel(no_cfunc_wrapper=False)
def explore(
    model: Model, starts: FloatArray, effort: Effort, enough: int, fresh: float, in_cells: bool
) -> tuple[FloatArray, FloatArray]:
    """The same of given starts (n, d) alone, which may lead to fewer optima than there are.

    A start whose targets all lie within `fresh` px, along each axis, of those of a known optimum is
    not followed, and none after `enough` in a row that led to nothing new near the best.
    """
    n, d = starts.shape
    known = Optima(filled((n, d), 0.0), filled(n, np.inf), integers(2, 0))
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    theta, in_a_row = np.empty(d), 0
    for s in range(n):
        copy(starts[s], theta)
        if _known(model.n_targets, known.thetas[: known.n[0]], theta, fresh) < 0:
            new, _ = _follow(model, theta, np.inf, effort, known, room)
            in_a_row = 0 if new else in_a_row + 1
        if in_a_row >= enough:
            break
    return _sorted(_with_cells(model, known, effort, room) if in_cells else known)


@glue()
def _with_cells(model: Model, known: Optima, effort: Effort, room: Room) -> Optima:
    """Optima, and what good ones become that have to lie in a pixel's cell.

    Where that is likely, the best scenes in a cell may weigh more than better ones beside it, and
    lie far from these along a valley.
    """
    n, d = known.n[0], known.thetas.shape[1]
    found = Optima(filled((2 * n, d), 0.0), filled(2 * n, np.inf), known.n.copy())
    sure, good = within(model, sure_cell(model.box)), known.values[known.n[1]] + NEGLIGIBLE
    lower, upper = np.empty(d), np.empty(d)
    for s in range(n):
        copy(known.thetas[s], found.thetas[s])
        found.values[s] = known.values[s]
    for s in range(n if good < np.inf else 0):
        if known.values[s] > good:
            continue
        inside, moved = found.thetas[found.n[0]], 0.0
        copy(known.thetas[s], inside)
        if _lies_in(sure, inside, lower, upper):
            continue
        value = descend(sure, inside, effort.max_iter, effort.end, room)
        for a in range(d):
            moved = max(moved, abs(inside[a] - known.thetas[s, a]))
        if moved > _MOVED and value <= good:
            found.values[found.n[0]] = value
            found.n[0] += 1
    return found


@leaf()
def _lies_in(sure: Model, theta: FloatArray, lower: FloatArray, upper: FloatArray) -> bool:
    """Whether all targets lie in the cell that they would have to lie in."""
    limits(sure.box, theta, sure.n_targets, True, lower, upper)
    inside = True
    for a in range(theta.size):
        inside = inside and lower[a] <= theta[a] <= upper[a]
    return inside


@part()
def _follow(
    model: Model, theta: FloatArray, limit: float, effort: Effort, known: Optima, room: Room
) -> tuple[bool, float]:
    """Fit from `theta` and keep where it ends; whether that is new and near, and its objective.

    That of a known optimum where the fit is on the way to it. What is above `limit` stays rough.
    """
    count, values, n = model.n_targets, known.values, known.n
    value = descend(model, theta, effort.rough_iter, effort.rough, room)
    at = _known(count, known.thetas[: n[0]], theta, _SAME)
    if at >= 0:
        return False, values[at]
    if value < min(values[n[1]] + _HOPELESS, limit):
        value = descend(model, theta, effort.max_iter, effort.end, room)
        at = _known(count, known.thetas[: n[0]], theta, _SAME)
    new = at < 0 and value < values[n[1]] + _NEAR
    if at < 0:
        at = n[0]
        n[0] += 1
    if value < values[at]:
        copy(theta, known.thetas[at])
        values[at] = value
    if values[at] < values[n[1]]:
        n[1] = at
    return new, value


@glue()
def _sorted(known: Optima) -> tuple[FloatArray, FloatArray]:
    """What is known, the best first."""
    found = max(known.n[0], 1)
    optima, objectives = filled((found, known.thetas.shape[1]), 0.0), filled(found, np.inf)
    for n in range(known.n[0]):
        least = 0
        for s in range(known.n[0]):
            least = s if known.values[s] < known.values[least] else least
        if known.values[least] == np.inf:
            break
        copy(known.thetas[least], optima[n])
        objectives[n], known.values[least] = known.values[least], np.inf
    return optima, objectives


@part()
def _grow(model: Model, theta: FloatArray, room: Room) -> bool:
    """Place targets one by one; False if one finds no room."""
    count = model.n_targets
    for k in range(count):
        theta[3 * k], theta[3 * k + 1], theta[3 * k + 2] = 0.0, 0.0, 0.0
    if theta.size > 3 * count:
        theta[3 * count] = model.box.background[0]
    placed = True
    for k in range(count):
        placed = placed and _place_best(model, k, theta, room)
    return placed


@part()
def _move(model: Model, k: int, theta: FloatArray, room: Room) -> bool:
    """Take target k away and place it anew, as the last; False if it stays where it was."""
    last = model.n_targets - 1
    y, x = theta[3 * k], theta[3 * k + 1]
    for a in range(3):
        theta[3 * k + a] = theta[3 * last + a]
    theta[3 * last + 2] = 0.0
    if not _place_best(model, last, theta, room):
        return False
    return math.hypot(theta[3 * last] - y, theta[3 * last + 1] - x) > _STEP


@part()
def _place_best(model: Model, k: int, theta: FloatArray, room: Room) -> bool:
    """Put target k, the last, where it explains most of what those before it leave.

    Of places half a pixel apart, the one whose light, with the best flux that the prior allows,
    lowers ``sum r^2 / 2 v`` most; False if none keeps to the prior's distances.
    """
    area, flux, best, at = model.box.area, model.box.flux, -np.inf, (0.0, 0.0, 0.0)
    glow(model.optics, theta, room)
    _leave(model.pixels, room)
    n_y = math.ceil((area[0, 1] - area[0, 0]) / _STEP)
    n_x = math.ceil((area[1, 1] - area[1, 0]) / _STEP)
    for i in range(n_y + 1):
        theta[3 * k] = min(area[0, 0] + i * _STEP, area[0, 1])
        axis_factor(model.optics.y, theta[3 * k], k, room.y)
        for j in range(n_x + 1):
            theta[3 * k + 1] = min(area[1, 0] + j * _STEP, area[1, 1])
            if not _may_be(model.box, theta, k):
                continue
            axis_factor(model.optics.x, theta[3 * k + 1], k, room.x)
            slope, bend = _slope_of_flux(room, k)
            f = min(max(slope / max(bend, _DARK), flux[0]), flux[1])
            gain = f * (slope - 0.5 * f * bend)
            if gain > best:
                best, at = gain, (theta[3 * k], theta[3 * k + 1], f)
    theta[3 * k], theta[3 * k + 1], theta[3 * k + 2] = at
    return best > -np.inf


@leaf()
def _may_be(box: Box, theta: FloatArray, k: int) -> bool:
    """Whether target k may be where it is beside those before it, wherever these are."""
    if crowded(box, theta, k):
        return False
    for axis in range(2):
        middle = 0.0
        for m in range(k):
            middle += theta[3 * m + axis] / k
            if abs(theta[3 * k + axis] - theta[3 * m + axis]) > box.extent:
                return False
        in_cell = abs(theta[3 * k + axis] - math.floor(middle + 0.5)) <= 0.5
        if box.cell == 1.0 and k > 0 and not in_cell:
            return False
    return True


@leaf()
def _leave(pixels: Pixels, room: Room) -> None:
    """What the light in the room leaves of each pixel over its variance, and one over that.

    A bound that the light keeps to tells nothing. They are put into its `row` and `weight`.
    """
    n_x = pixels.low.shape[1]
    for p in range(room.weight.size):
        i, j = p // n_x, p % n_x
        low, high, light = pixels.low[i, j], pixels.high[i, j], room.light[i, j]
        seen = 0.5 * (low + high)
        if high == np.inf:
            seen = max(low, light)
        elif low == -np.inf:
            seen = min(high, light)
        tells = seen != light or (low > -np.inf and high < np.inf)
        room.weight[p] = 1.0 / noise_variance(pixels, max(seen, light)) if tells else 0.0
        room.row[p] = room.weight[p] * (seen - light)


@leaf()
def _lit(factors: FloatArray) -> tuple[int, int]:
    """Where factors (rank, n) along an axis begin and end to be other than 0."""
    start, stop = factors.shape[1], 0
    for j in range(factors.shape[1]):
        for r in range(factors.shape[0]):
            if factors[r, j] != 0.0:
                start, stop = min(start, j), j + 1
    return start, stop


@leaf()
def _slope_of_flux(room: Room, k: int) -> tuple[float, float]:
    """First and minus second derivative of ``-sum r^2 / 2 v`` by the flux of a further target."""
    n_x = room.light.shape[1]
    top, bottom = _lit(room.y[k])
    left, right = _lit(room.x[k])
    slope = bend = 0.0
    for i in range(top, bottom):
        for j in range(left, right):
            value = 0.0
            for r in range(room.y.shape[1]):
                value += room.y[k, r, i] * room.x[k, r, j]
            slope += value * room.row[i * n_x + j]
            bend += value * value * room.weight[i * n_x + j]
    return slope, bend


@leaf()
def _shake(model: Model, best: FloatArray, theta: FloatArray) -> bool:
    """Put a scene around `best` into `theta`; False if none that was tried is possible.

    Places move by about the PSF's width, or a share of the room that they have, fluxes by a share
    of themselves.
    """
    box, count = model.box, model.n_targets
    far = min(_width(model.optics.y[0, 0, 0]), _SHAKEN * box.extent)
    for axis in range(2):
        far = min(far, _SHAKEN * (box.area[axis, 1] - box.area[axis, 0]))
    for _ in range(_TRIES):
        copy(best, theta)
        apart = True
        for k in range(count):
            for axis in range(2):
                place = theta[3 * k + axis] + far * np.random.normal()
                theta[3 * k + axis] = min(max(place, box.area[axis, 0]), box.area[axis, 1])
            flux = theta[3 * k + 2] * (1.0 + _SHAKEN * np.random.normal())
            theta[3 * k + 2] = min(max(flux, box.flux[0]), box.flux[1])
            apart = apart and not crowded(box, theta, k)
        in_box, in_cell = densities(box, theta, count)
        if apart and in_box + in_cell > 0.0:
            return True
    return False


@leaf()
def _width(factor: FloatArray) -> float:
    """Width of a factor of a PSF along an axis: half its sum over its largest value, px."""
    total = largest = 0.0
    for j in range(factor.size):
        total += abs(factor[j])
        largest = max(largest, abs(factor[j]))
    return 0.5 * total / largest


@part()
def _draw(model: Model, theta: FloatArray, room: Room) -> bool:
    """Put the best of some random scenes into `theta`; False if none was drawn."""
    trial, best = np.empty_like(theta), np.inf
    for _ in range(_POOL):
        if not draw_scene(model.box, model.n_targets, trial):
            break
        value = objective(model, trial, EXACT.stiffness, room)
        if value < best:
            copy(trial, theta)
            best = value
    return best < np.inf


@part()
def _known(count: int, thetas: FloatArray, theta: FloatArray, tolerance: float) -> int:
    """Which of `thetas` has its targets where those of `theta` are, along each axis, or -1."""
    for s in range(thetas.shape[0]):
        order = nearest(theta, thetas[s], count)
        away = 0.0
        for k in range(count):
            for axis in range(2):
                apart = abs(theta[3 * order[k] + axis] - thetas[s, 3 * k + axis])
                away = max(away, apart)
        if away < tolerance:
            return s
    return -1
