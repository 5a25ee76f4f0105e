"""From targets on a grid to targets off it: the joint fit, begun where the grid has them.

Numbers of targets are those of the prior, of the light, and of the evidence, see `fit_from`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.fit import explains, misfit
from csunmix._kernels.jit import glue, kernel, leaf, pointer
from csunmix._kernels.linalg import copy, to_shares
from csunmix._kernels.measure import cell_density, log_measure, log_room
from csunmix._kernels.model import Model, Views
from csunmix._kernels.modes import approximate
from csunmix._kernels.prior import Box, extremes
from csunmix._kernels.scene import Optics, Pixels
from csunmix._kernels.search import QUICK, explore
from csunmix._validation import FloatArray, IntArray

FEW = 12
"""Targets of a likely cell, of a regular figure, and that light may be split into, at most."""

_MOST = 30  # targets from where none are merged or left out: a descent takes as long as their cube
_STARTS = 4  # scenes of one target more or fewer that are fitted
_GAIN = 2.0  # of the objective by one target more, below which two that are close are one
_SLACK = 0.02  # px, of distances that the prior bounds
_UNSURE = (0.97, 1.03)  # of the light that the grid has, less and more
_LEAST = float(np.finfo(float).tiny)  # weight, of targets without flux
_LINES = 4  # along which a target is split
_GOLDEN = math.pi * (math.sqrt(5.0) - 1.0)  # angle from one turn to the next: none comes twice
_SHIFTS = 3  # ways that a regular figure is turned, from one corner to the next
_SHAPES = 3 + 2 * _SHIFTS  # a cluster as it is, turned twice, and two kinds of figures
_FRESH = 0.23  # of the reach, around known optima: shapes there lead to these
_THIN = 0.1  # variance of a cluster across, of that along it, at least


class Rules(NamedTuple):
    """What holds for all images."""

    optics: Optics
    box: Box  # but for areas, fluxes and backgrounds
    reach: float  # px, within which two targets may be one, and all are one cluster
    apart: float  # px, between the halves of a target that is split
    fluxes: bool  # whether the prior has any
    counts: tuple[int, int]  # least and most targets; 0, 0 where the prior does not say


class Task(NamedTuple):
    """An image whose targets are to be found."""

    optics: Optics
    pixels: Pixels
    box: Box
    reach: float  # see `Rules`
    apart: float
    fluxes: bool
    counts: tuple[int, int]
    explore: Any  # see `refine`
    size: FloatArray  # (2,), of the area that a target may be in given one other, px
    rooms: FloatArray  # (2 n, 3), see `refine`


class Fit(NamedTuple):
    """Optima of a number of targets, the best first; none where its objective is infinite."""

    thetas: FloatArray  # (n, d)
    values: FloatArray  # (n,)
    cell_density: float  # see `Box`


class Answers(NamedTuple):
    """What is said of n images."""

    targets: FloatArray  # (n, most, 7): y, x, flux, their standard deviations, and the score
    n_targets: IntArray  # (n,), 0 where there is no fit
    probability: FloatArray  # (n,), of the number
    explains: FloatArray  # (n,), 1 where the fit explains the image, else 0


class _Path(NamedTuple):
    """Fits of other numbers of targets that were tried one after the other."""

    theta: FloatArray  # (n, .)
    n_targets: IntArray  # (n,)
    value: FloatArray  # (n,)
    evidence: FloatArray  # (n,)
    kept: FloatArray  # (n,), 1, or 0 where a fit is left out


class Spread(NamedTuple):
    """Middle and principal axes of the light of targets."""

    y: float
    x: float
    sine: float  # of the angle of the long axis to x
    cosine: float
    far: float  # standard deviation along it, px
    near: float  # and across


def _explorer() -> Any:
    """`explore`, as it is given to `refine`."""
    table, square, row, pair = np.empty((0, 0, 0, 0)), np.empty((0, 0)), np.empty(0), (0.0, 0.0)
    pixels, box = Pixels(square, square, 0.0, 0.0), Box(square, pair, 0.0, 0.0, 0.0, 0.0, pair)
    model = Model(Optics(table, table), pixels, box, row, 1)
    return pointer(explore, (model, square, QUICK, 1, 0.0, False), (square, row))


EXPLORE = _explorer()
"""What `refine` looks for optima with. Each is compiled by itself, which goes side by side."""


@kernel()
def refine(
    rules: Rules,
    views: Views,
    starts: FloatArray,
    rows: IntArray,
    most: int,
    radius: float,
    rooms: FloatArray,
    explore: Any,
) -> Answers:
    """Targets of n images, from those of `starts` (., 3) in ``rows[n]`` to ``rows[n + 1]``.

    At most `most` of an image. A score is the probability that the number is right, and that a
    target lies within `radius` of its mean. What is known of `rooms` is used, and what becomes
    known kept: ``rooms[2 K]`` has the sizes of the last box that K targets were looked for in, and
    its `log_room`, ``rooms[2 K + 1]`` the same of a pixel's cell. For `explore` see `EXPLORE`.
    """
    n = views.variance.size
    answers = Answers(filled((n, most, 7), np.nan), integers(n, 0), filled(n, 0.0), filled(n, 0.0))
    for i in range(n):
        if views.stop[i, 0] > views.start[i, 0]:
            task = view(rules, views, i, rooms, explore)
            start = starts[rows[i] : rows[i + 1]].copy()
            for k in range(start.shape[0]):
                for axis in range(2):
                    start[k, axis] -= views.start[i, axis]
            fit, probability = fit_from(task, start)
            if fit.values[0] < np.inf:
                count = fit.thetas.shape[1] // 3
                model = model_for(task, count, 0.0)
                answers.n_targets[i], answers.probability[i] = count, probability
                if explains(model, fit.thetas[0], fit.values[0]):
                    answers.explains[i] = 1.0
                _write(task, fit, probability, views.start[i], radius, answers.targets[i])
    return answers


@leaf()
def _both(of: Any, i: int) -> tuple[Any, Any]:
    """The two numbers (n, 2) of a window."""
    return of[i, 0], of[i, 1]


@glue()
def view(rules: Rules, views: Views, i: int, rooms: FloatArray, explore: Any) -> Task:
    """The window of an image, in place of rounding a normal error of the same variance."""
    (top, left), (bottom, right) = _both(views.start, i), _both(views.stop, i)
    low = views.low[i, top:bottom, left:right].copy()
    high = views.high[i, top:bottom, left:right].copy()
    rounding = 0.0
    for y in range(low.shape[0]):
        for x in range(low.shape[1]):
            if high[y, x] - low[y, x] < np.inf:
                rounding = max(rounding, high[y, x] - low[y, x])
                low[y, x] = high[y, x] = 0.5 * (low[y, x] + high[y, x])
    variance = views.variance[i] + rounding**2 / 12.0
    area, size = views.area[i].copy(), np.empty(2)
    for axis in range(2):
        for end in range(2):
            area[axis, end] -= views.start[i, axis]
        most = 1.0 if rules.box.cell == 1.0 else rules.box.extent
        size[axis] = min(area[axis, 1] - area[axis, 0], most)
    of, flux, background = rules.box, _both(views.flux, i), _both(views.background, i)
    box = Box(area, flux, of.separation, of.extent, of.cell, 0.0, background)
    pixels = Pixels(low, high, variance, views.per_light)
    told = rules.reach, rules.apart, rules.fluxes, rules.counts, explore
    return Task(rules.optics, pixels, box, *told, size, rooms)


@glue()
def _write(
    task: Task, fit: Fit, probability: float, origin: IntArray, radius: float, answer: FloatArray
) -> None:
    """Put targets of an image, and what is claimed of them, into `answer` (K, 7)."""
    model = model_for(task, fit.thetas.shape[1] // 3, fit.cell_density)
    mixture = approximate(model, fit.thetas, fit.values, np.empty(0))
    write_targets(mixture.mean, mixture.covariance, origin, probability, radius, answer)


@leaf()
def write_targets(
    mean: FloatArray,
    covariance: FloatArray,
    origin: IntArray,
    probability: float,
    radius: float,
    answer: FloatArray,
) -> None:
    """Put targets of this mean (3 K,) and covariance into `answer`, see `Answers`."""
    for k in range(mean.size // 3):
        spread2 = 0.0
        for c in range(3):
            a = 3 * k + c
            answer[k, c] = mean[a] + (origin[c] if c < 2 else 0.0)
            answer[k, 3 + c] = math.sqrt(covariance[a, a])
            spread2 += 0.5 * answer[k, 3 + c] ** 2 if c < 2 else 0.0
        answer[k, 6] = probability * (1.0 - math.exp(-0.5 * radius**2 / spread2))


@glue()
def fit_from(task: Task, start: FloatArray) -> tuple[Fit, float]:
    """The best fit that descents from `start` (K, 3) end in, rows ``y, x, flux``.

    Targets that are noise are left out, see `_without_noise`. Where their light is too much for so
    many within the prior's bounds, the brightest become two. Where a fit does not explain the
    image, so many may be too many: then the closest two of 30 at most become one, again and again,
    until it does, or none stand close. Where the prior has a count, the likeliest of one target
    more or fewer at a time follows, see `_likeliest`; its probability is the second value. It goes
    down again from other shapes, and in a cell that is likely; the fit has what they end in as its
    other optima. It is none where a target lies outside of the window, there are more unknowns than
    pixels, no scene within the bounds is found that explains the image or leaves less of it than
    the targets as they are, or none has a count of the prior.
    """
    best, probability = _none(), 0.0
    n_y, n_x = task.pixels.low.shape
    start = _without_noise(task, start)
    if start.size <= n_y * n_x and _inside(start, n_y, n_x):
        best = _explained(task, start)
    if best.values[0] < np.inf:
        theta, probability = _likeliest(task, best)
        best = _with_others(task, theta) if probability > 0.0 else _none()
    return best, probability


@glue()
def _explained(task: Task, start: FloatArray) -> Fit:
    """The best fit of as many targets as the light needs, or explain the image."""
    best, explained = _none(), False
    least = misfit(model_for(task, start.shape[0], 0.0), start.ravel())
    most = task.box.flux[1] if task.fluxes else np.inf
    surely, perhaps = _lights(start, most, _UNSURE[0]), _lights(start, most, _UNSURE[1])
    for number in (surely, perhaps if perhaps != surely else 0, start.shape[0]):
        if number > 0 and not explained:
            scenes = _split(start, number, task.apart)
            best, explained = _better(task, scenes, best, least)
    targets, more = _merged(start, task.reach)
    while more and not explained:
        best, explained = _better(task, targets.copy().reshape(1, -1, 3), best, least)
        targets, more = _merged(targets, task.reach)
    return best


@glue()
def _without_noise(task: Task, targets: FloatArray) -> FloatArray:
    """Targets without the faintest, while some lie where none can and it is too faint to be one.

    That is outside of the window, or further apart than the extent and what is one target.
    """
    n_y, n_x = task.pixels.low.shape
    kept, extent = targets, task.box.extent + task.reach
    while kept.shape[0] > 1 and not (_inside(kept, n_y, n_x) and _span(kept) <= extent):
        faintest = 0
        for k in range(kept.shape[0]):
            faintest = k if kept[k, 2] < kept[faintest, 2] else faintest
        if not kept[faintest, 2] < task.box.flux[0]:
            break
        rest = np.empty((kept.shape[0] - 1, 3))
        _leave_out(kept, faintest, rest)
        kept = rest
    return kept


@glue()
def _span(targets: FloatArray) -> float:
    """How far targets spread along either axis, at most."""
    span, theta = 0.0, targets.ravel()
    for axis in range(2):
        first, last = extremes(theta, axis, targets.shape[0])
        span = max(span, theta[last] - theta[first])
    return span


@leaf()
def _inside(targets: FloatArray, n_y: int, n_x: int) -> bool:
    """Whether targets lie in the window, and have a flux."""
    inside = True
    for k in range(targets.shape[0]):
        inside = inside and -0.5 <= targets[k, 0] <= n_y - 0.5
        inside = inside and -0.5 <= targets[k, 1] <= n_x - 0.5
        inside = inside and math.isfinite(targets[k, 2])
    return inside


@glue()
def _none() -> Fit:
    """No fit."""
    values = np.empty(1)
    values[0] = np.inf
    return Fit(np.empty((1, 0)), values, 0.0)


@glue()
def _better(task: Task, scenes: FloatArray, best: Fit, least: float) -> tuple[Fit, bool]:
    """The best of a fit and of those from scenes (n, K, 3), up to one that explains the image.

    One that does not has to leave less of the image than `least`. The second value tells whether
    the last one explains it. Other optima of so many targets are not looked for here.
    """
    model = model_for(task, scenes.shape[1], 0.0)
    for s in range(scenes.shape[0]):
        fit = _fit(task, scenes[s : s + 1], 1, 0.0, False)
        if fit.values[0] < best.values[0]:
            explained = explains(model, fit.thetas[0], fit.values[0])
            if explained or misfit(model, fit.thetas[0]) < least:
                best = fit
            if explained:
                return best, True
    return best, False


@glue()
def _fit(task: Task, scenes: FloatArray, enough: int, fresh: float, in_cells: bool) -> Fit:
    """What scenes (n, K, 3) lead to, and that in cells; see `csunmix._kernels.search.explore`."""
    n, count = scenes.shape[:2]
    model = model_for(task, count, 0.0)
    starts = scenes.reshape(n, 3 * count)
    thetas, values = task.explore(model, starts, QUICK, enough, fresh, in_cells)
    if values.size == 0:  # an error there is printed, not raised
        raise MemoryError("no memory to look for optima in")
    return Fit(thetas, values, 0.0)


@glue()
def model_for(task: Task, count: int, cell_density: float) -> Model:
    """The posterior of so many targets; a fit can do without what a likely cell weighs."""
    precision, of, flux = np.empty(3 * count), task.box, task.box.flux
    for k in range(count):
        for axis in range(2):
            precision[3 * k + axis] = 12.0 / task.size[axis] ** 2
        precision[3 * k + 2] = 12.0 / (flux[1] - flux[0]) ** 2
    box = Box(of.area, flux, of.separation, of.extent, of.cell, cell_density, of.background)
    return Model(task.optics, task.pixels, box, precision, count)


@glue()
def _likeliest(task: Task, first: Fit) -> tuple[FloatArray, float]:
    """The likeliest of a fit and of some of more or fewer targets, and its probability among these.

    The number is taken as it is where the prior has no count. Else it first becomes one of these,
    and goes on by one at a time as long as that is likelier; the likeliest that explains the image
    is taken, if one does. The probability is 0 where it can not become one of these, or explains
    the image no more.
    """
    fit, (low, high) = first, task.counts
    if high == 0:
        return fit.thetas[0], 1.0
    given = count = fit.thetas.shape[1] // 3
    while not (low <= count <= high and _has_room(task.rooms, task.size, task.box, count)):
        step = 1 if count < low else -1
        if step > 0 or count <= _MOST:
            fit = _neighbour(task, fit.thetas[0], step)
        if fit.thetas.shape[1] != 3 * (count + step):
            return fit.thetas[0], 0.0
        count += step
    path, n = _climb(task, fit)
    best, n_likely, logs = 0, 0, filled(n, -np.inf)
    for p in range(n):
        theta = path.theta[p, : 3 * path.n_targets[p]]
        model = model_for(task, path.n_targets[p], 0.0)
        good = path.kept[p] > 0.0 and explains(model, theta, path.value[p])
        if good and _keeps_distance(task.box.separation, task.box.extent, theta):
            logs[p] = path.evidence[p]
            best = p if n_likely == 0 or logs[p] > logs[best] else best
            n_likely += 1
    if n_likely == 0:
        return fit.thetas[0], 1.0 if count == given else 0.0
    theta = path.theta[best, : 3 * path.n_targets[best]].copy()
    if n_likely == 1:
        return theta, 1.0
    share = np.empty(n)
    to_shares(logs, share)
    return theta, share[best]


@glue()
def _climb(task: Task, fit: Fit) -> tuple[_Path, int]:
    """A fit, then those of more targets, or of fewer, up to the first that is less likely.

    A fit that owes next to nothing to one of its targets, which lies on another, is left out: the
    volume that these have says nothing. The second value is how many there are.
    """
    first, low = fit.thetas.shape[1] // 3, task.counts[0]
    high = min(task.counts[1], task.pixels.low.size // 3)  # no more unknowns than pixels
    most = high - low + 1
    path = _Path(
        filled((most, 3 * high), 0.0),
        integers(most, 0),
        filled(most, 0.0),
        filled(most, np.nan),
        filled(most, 1.0),
    )
    _add(path, 0, fit)
    best, n = 0, 1
    for step in (1, -1):
        while step * (path.n_targets[best] - first) >= 0:
            theta = path.theta[best, : 3 * path.n_targets[best]]
            if not allowed(task.box, task.fluxes, task.counts, theta, path.n_targets[best] + step):
                break
            other = _neighbour(task, theta, step)
            if other.values[0] == np.inf:
                break
            if n == 1:  # else there is no other, and what it would be is never asked for
                path.evidence[0] = _evidence(task, fit)
            gain = step * (path.value[best] - other.values[0])
            more = other.thetas[0] if step > 0 else theta
            idle = gain < _GAIN and _closest(more)[0] < task.apart - _SLACK
            if idle and step > 0:
                break
            _add(path, n, other)
            path.evidence[n] = _evidence(task, other)
            if idle:
                path.kept[best] = 0.0
            elif path.evidence[n] < path.evidence[best]:
                n += 1
                break
            best, n = n, n + 1
    return path, n


@leaf()
def _add(path: _Path, n: int, fit: Fit) -> None:
    path.n_targets[n], path.value[n] = fit.thetas.shape[1] // 3, fit.values[0]
    for a in range(fit.thetas.shape[1]):
        path.theta[n, a] = fit.thetas[0, a]


@glue()
def _evidence(task: Task, fit: Fit) -> float:
    """Log evidence by the volumes that the prior's bounds leave of all modes, but for a constant.

    Rough where a posterior is flat or bent (``benchmarks/accuracy/sampler.md``).
    """
    d = fit.thetas.shape[1]
    model = model_for(task, d // 3, 0.0)
    room = _room(task.rooms, task.size[0], task.size[1], task.box.separation, 2 * model.n_targets)
    mass = approximate(model, fit.thetas, fit.values, np.empty(0)).mass
    return mass + log_measure(model, d, task.size, room)


@leaf()
def allowed(box: Box, fluxes: bool, counts: tuple[int, int], theta: FloatArray, count: int) -> bool:
    """Whether the prior allows so many, and by its fluxes the light of a scene that is there.

    Without fluxes, not where a target has all that the window shows, and may have more.
    """
    light, brightest, least, most = 0.0, -np.inf, box.flux[0], box.flux[1]
    for a in range(2, theta.size, 3):
        light += theta[a]
        brightest = max(brightest, theta[a])
    if not fluxes and brightest >= most:
        return False
    lit = count * most >= _UNSURE[0] * light and count * least <= _UNSURE[1] * light
    return lit and counts[0] <= count <= counts[1]


@glue()
def _neighbour(task: Task, theta: FloatArray, step: int) -> Fit:
    """The fit of one target more (`step` 1) or fewer (-1); none where so many find no room.

    Of all scenes with one of the targets in two, or one left out, or two as one, those are starts
    that leave least of the image.
    """
    targets, count = theta.copy().reshape(-1, 3), theta.size // 3 + step
    has_room = _has_room(task.rooms, task.size, task.box, count)
    if not (0 < 3 * count <= task.pixels.low.size and has_room):
        return _none()
    scenes = _more(targets, task.apart) if step > 0 else _fewer(targets, task.reach)
    model, n = model_for(task, count, 0.0), scenes.shape[0]
    left = np.empty(n)
    for s in range(n):
        left[s] = misfit(model, scenes[s].ravel())
    starts = np.empty((min(n, _STARTS), count, 3))
    for s in range(starts.shape[0]):
        least = 0
        for other in range(n):
            least = other if left[other] < left[least] else least
        for k in range(count):
            copy(scenes[least, k], starts[s, k])
        left[least] = np.inf
    return _fit(task, starts, starts.shape[0], 0.0, False)


@glue()
def _has_room(rooms: FloatArray, size: FloatArray, box: Box, count: int) -> bool:
    """Whether so many targets can keep the prior's distances."""
    if (count - 1) * math.pi * box.separation**2 < size[0] * size[1]:  # too few to fill it
        return True
    return _room(rooms, size[0], size[1], box.separation, 2 * count) > -np.inf


@glue()
def _room(rooms: FloatArray, size_y: float, size_x: float, separation: float, which: int) -> float:
    """Log probability that ``which // 2`` targets keep their distances in a box; kept."""
    if which >= rooms.shape[0]:
        return log_room(size_y, size_x, separation, which // 2)
    if not (rooms[which, 0] == size_y and rooms[which, 1] == size_x):
        rooms[which, 0], rooms[which, 1] = size_y, size_x
        rooms[which, 2] = log_room(size_y, size_x, separation, which // 2)
    return float(rooms[which, 2])


@leaf()
def _keeps_distance(separation: float, extent: float, theta: FloatArray) -> bool:
    """Whether targets lie as far apart and as close together as the prior says, or nearly."""
    for k in range(theta.size // 3):
        for m in range(k):
            dy, dx = theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1]
            if not math.hypot(dy, dx) > separation - _SLACK:
                return False
            if not max(abs(dy), abs(dx)) < extent + _SLACK:
                return False
    return True


@leaf()
def _closest(theta: FloatArray) -> tuple[float, int, int]:
    """The smallest distance between two targets, and which these are; inf of one alone."""
    least, first, second = np.inf, 0, 0
    for k in range(theta.size // 3):
        for m in range(k + 1, theta.size // 3):
            away = math.hypot(theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1])
            if away < least:
                least, first, second = away, k, m
    return least, first, second


# --- scenes to begin at -------------------------------------------------------------------------


@leaf()
def _lights(targets: FloatArray, most: float, share: float) -> int:
    """How many targets a share of their light needs at `most` DN each.

    0 where that is no more than there are, or more than `FEW` and twice as many.
    """
    count, light = targets.shape[0], 0.0
    for k in range(count):
        light += targets[k, 2]
    number = np.ceil(share * (light / most))
    return int(number) if count < number <= max(2 * count, FEW) else 0


@glue()
def _split(targets: FloatArray, number: int, apart: float) -> FloatArray:
    """Scenes (n, number, 3): the brightest of too few targets in two, along one line or another."""
    scenes = targets.copy().reshape(1, -1, 3)
    while scenes.shape[1] < number:
        brightest = 0
        for k in range(scenes.shape[1]):
            brightest = k if scenes[0, k, 2] > scenes[0, brightest, 2] else brightest
        scenes = _in_two(scenes, brightest, apart)
    return scenes


@glue()
def _in_two(scenes: FloatArray, k: int, apart: float) -> FloatArray:
    """Scenes (4, K + 1, 3) of as many, or of one, target k in two along one line each."""
    count = scenes.shape[1]
    out = np.empty((_LINES, count + 1, 3))
    for line in range(_LINES):
        _put_in_two(scenes[line % scenes.shape[0]], k, line, apart, out[line])
    return out


@leaf()
def _put_in_two(targets: FloatArray, k: int, line: int, apart: float, out: FloatArray) -> None:
    """The targets, k in two along a line."""
    count, angle = targets.shape[0], math.pi * line / _LINES
    for i in range(count):
        copy(targets[i], out[i])
    out[k, 2] *= 0.5
    copy(out[k], out[count])
    for axis, along in ((0, math.sin(angle)), (1, math.cos(angle))):
        out[count, axis] += 0.5 * apart * along
        out[k, axis] -= 0.5 * apart * along


@glue()
def _more(targets: FloatArray, apart: float) -> FloatArray:
    """Scenes (n, K + 1, 3), each of the targets (K, 3) in two."""
    count = targets.shape[0]
    out = np.empty((_LINES * count, count + 1, 3))
    for s in range(_LINES * count):
        _put_in_two(targets, s // _LINES, s % _LINES, apart, out[s])
    return out


@glue()
def _fewer(targets: FloatArray, reach: float) -> FloatArray:
    """Scenes (n, K - 1, 3), one of the targets left out, or two that stand close as one."""
    count, n = targets.shape[0], targets.shape[0]
    out = np.empty((count * (count + 1) // 2, count - 1, 3))
    for k in range(count):
        _leave_out(targets, k, out[k])
    for k in range(count):
        for m in range(k + 1, count):
            dy, dx = targets[k, 0] - targets[m, 0], targets[k, 1] - targets[m, 1]
            if math.hypot(dy, dx) <= reach:
                _as_one(targets, k, m, out[n])
                n += 1
    return out[:n]


@glue()
def _merged(targets: FloatArray, reach: float) -> tuple[FloatArray, bool]:
    """The targets with the closest two as one; False where none are in reach, or are merged."""
    count = targets.shape[0]
    if 1 < count <= _MOST:
        away, k, m = _closest(targets.ravel())
        if away <= reach:
            out = np.empty((count - 1, 3))
            _as_one(targets, k, m, out)
            return out, True
    return targets, False


@leaf()
def _leave_out(targets: FloatArray, k: int, out: FloatArray) -> None:
    """The targets without k."""
    for i in range(out.shape[0]):
        copy(targets[i + (1 if i >= k else 0)], out[i])


@leaf()
def _as_one(targets: FloatArray, k: int, m: int, out: FloatArray) -> None:
    """The targets with k and a later m as one between them, of all their light."""
    _leave_out(targets, m, out)
    one, other = max(targets[k, 2], _LEAST), max(targets[m, 2], _LEAST)
    for axis in range(2):
        out[k, axis] = (one * targets[k, axis] + other * targets[m, axis]) / (one + other)
    out[k, 2] = targets[k, 2] + targets[m, 2]


@glue()
def _with_others(task: Task, theta: FloatArray) -> Fit:
    """The best of a fit, of what it becomes reshaped, and of both in a cell; others beside it."""
    count, box, rooms, size = theta.size // 3, task.box, task.rooms, task.size
    in_cells, density = 0.0 < box.cell < 1.0 and count <= FEW, 0.0
    scenes = reshaped(theta.copy().reshape(-1, 3), task.reach)
    enough = max(count - 1, 1)  # the more targets, the more optima
    fit = _fit(task, scenes, enough, _FRESH * task.reach, in_cells)
    if in_cells:
        room = _room(rooms, size[0], size[1], box.separation, 2 * count)
        in_cell = _room(rooms, 1.0, 1.0, box.separation, 2 * count + 1)
        density = cell_density(box, size, room, in_cell, count)
    return Fit(fit.thetas, fit.values, density)


@glue()
def reshaped(targets: FloatArray, reach: float) -> FloatArray:
    """Scenes (n, K, 3): targets as they are, in other shapes, and in regular figures.

    The light of a cluster tells its middle and its spread along each axis best, and hardly the
    shape within: many an optimum is another shape of these. Shapes are those of the targets turned,
    figures those of all targets at equal angles, and of all but one, that in the middle; both as if
    the spread were the same all around, stretched to what it is (that of figures is for targets of
    the same flux). First come those that most often lead elsewhere. Targets that stand apart, and
    one alone, are left as they are.
    """
    count, spread = targets.shape[0], _spread(targets)
    scenes = np.empty((_SHAPES, count, 3))
    for k in range(count):
        copy(targets[k], scenes[0, k])
    if count == 1 or _farthest(targets) > reach:
        return scenes[:1]
    _turn(targets, spread, _GOLDEN, scenes[1])
    n = 2
    for shift in range(_SHIFTS):
        for corners in (count - 1, count):
            if 3 <= corners <= FEW:
                place_at_corners(targets, spread, corners, shift / _SHIFTS, scenes[n])
                n += 1
    _turn(targets, spread, 2.0 * _GOLDEN, scenes[n])
    return scenes[: n + 1]


@leaf()
def _spread(targets: FloatArray) -> Spread:
    """The spread of the light of targets (K, 3), never that of a line."""
    light, y, x, of_y, of_x, both = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(targets.shape[0]):
        flux = max(targets[k, 2], _LEAST)
        light += flux
        y += flux * targets[k, 0]
        x += flux * targets[k, 1]
    y, x = y / light, x / light
    for k in range(targets.shape[0]):
        share, dy, dx = max(targets[k, 2], _LEAST) / light, targets[k, 0] - y, targets[k, 1] - x
        of_y, of_x, both = of_y + share * dy * dy, of_x + share * dx * dx, both + share * dy * dx
    return principal_axes(y, x, of_y, of_x, both, _LEAST)


@leaf()
def principal_axes(
    y: float, x: float, of_y: float, of_x: float, both: float, least: float
) -> Spread:
    """Those of a covariance around y and x, of variances of at least so much, never of a line."""
    mean, more = 0.5 * (of_x + of_y), math.hypot(0.5 * (of_x - of_y), both)
    angle = 0.5 * math.atan2(2.0 * both, of_x - of_y)
    far, near = max(mean + more, least), max(mean - more, _THIN * (mean + more), least)
    return Spread(y, x, math.sin(angle), math.cos(angle), math.sqrt(far), math.sqrt(near))


@leaf()
def _farthest(targets: FloatArray) -> float:
    """The largest distance of a target to the middle of all, whatever their light."""
    count, y, x, away = targets.shape[0], 0.0, 0.0, 0.0
    for k in range(count):
        y, x = y + targets[k, 0] / count, x + targets[k, 1] / count
    for k in range(count):
        away = max(away, math.hypot(targets[k, 0] - y, targets[k, 1] - x))
    return away


@leaf()
def _turn(targets: FloatArray, spread: Spread, angle: float, out: FloatArray) -> None:
    """Targets turned where their spread is 1 all around."""
    sine, cosine = math.sin(angle), math.cos(angle)
    for k in range(targets.shape[0]):
        dy, dx = targets[k, 0] - spread.y, targets[k, 1] - spread.x
        along = (spread.cosine * dx + spread.sine * dy) / spread.far
        across = (spread.cosine * dy - spread.sine * dx) / spread.near
        put(spread, cosine * along - sine * across, sine * along + cosine * across, out[k])
        out[k, 2] = targets[k, 2]


@leaf()
def place_at_corners(
    targets: FloatArray, spread: Spread, corners: int, shift: float, out: FloatArray
) -> None:
    """Targets at the corners of a regular figure of their spread, others in its middle."""
    count = targets.shape[0]
    radius = math.sqrt(2.0 * count / corners)  # of a spread of 1
    for k in range(count):
        angle, away = 2.0 * math.pi * (k + shift) / corners, radius if k < corners else 0.0
        put(spread, away * math.cos(angle), away * math.sin(angle), out[k])
        out[k, 2] = targets[k, 2]


@leaf()
def put(spread: Spread, along: float, across: float, out: FloatArray) -> None:
    """A place along the axes of a spread, in units of it, as y and x."""
    far, near = spread.far * along, spread.near * across
    out[0] = spread.y + spread.sine * far + spread.cosine * near
    out[1] = spread.x + spread.cosine * far - spread.sine * near
