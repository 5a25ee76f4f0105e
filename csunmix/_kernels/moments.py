"""Fits begun at the moments of the light: a few starts in place of many.

The light's sum tells how many targets there are, where their fluxes lie in a range; its middle and
spread tell where they are, but for the shape within. Shapes are regular figures of that spread, of
which those are fitted whose light is nearest to the image's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.fit import (
    Pull,
    Strictness,
    add_pull,
    clip,
    descend_pulled,
    explains,
    objective,
    slope,
)
from csunmix._kernels.jit import glue, kernel, leaf, part
from csunmix._kernels.labels import nearest
from csunmix._kernels.linalg import (
    add_up,
    cholesky,
    copy,
    inner,
    inner_gram,
    invert_lower,
    to_shares,
)
from csunmix._kernels.model import Model, Views, within
from csunmix._kernels.prior import Box, limits
from csunmix._kernels.refine import (
    Answers,
    Rules,
    Spread,
    Task,
    model_for,
    place_at_corners,
    principal_axes,
    put,
    view,
    write_targets,
)
from csunmix._kernels.scene import Pixels, Room, glow, illuminate, new_room
from csunmix._validation import FloatArray

_MAX_ITER = 40  # steps of a fit
_SOFT = Strictness(1.0 / 0.02**2, 1e-1)  # how closely it keeps to limits, and goes to its end
_TURNS = 3  # ways that a figure is turned, from one corner to the next
_SIGMAS = 3.0  # standard deviations of a flux, within which it is fitted
_SURE = 0.03  # of the light, by which it may be mistaken
_HIDDEN = 0.3  # and of what a bound hides
_LIT = 3.0  # times the noise
_CUT = 4.0  # times the share of it that the image's edge cuts off
_SHOWN = 0.2  # of a target's light in the window, at least
_LEAST = 0.05**2  # px^2, variance of several targets along an axis
_SAME = 1.0  # standard deviations, within which two fits are one


class Light(NamedTuple):
    """What is to be seen of all targets at once."""

    total: float  # DN
    least: float  # DN, between which and `most` it may be
    most: float
    spread: Spread  # of the targets, the PSF's own taken off


class Guess(NamedTuple):
    """What a number of targets comes to."""

    mean: FloatArray  # (d,)
    covariance: FloatArray  # (d, d)
    evidence: float  # log of it, but for a constant
    explains: bool


@kernel()
def fit_moments(
    rules: Rules, views: Views, core: FloatArray, n_starts: int, most: int, radius: float
) -> Answers:
    """Targets of n images, by `n_starts` fits of each number of targets that the light allows.

    `core` (6,) has the middle of the PSF, along y and x (px), its variances and its covariance
    (px^2), and what is in reach of it. For the answers, and what a score is, see
    `csunmix._kernels.refine`.
    """
    n = views.variance.size
    answers = Answers(filled((n, most, 7), np.nan), integers(n, 0), filled(n, 0.0), filled(n, 0.0))
    none = np.empty((0, 3))
    for i in range(n):
        if views.stop[i, 0] > views.start[i, 0]:
            task = view(rules, views, i, none, None)
            best, probability = _best(task, _look(task, core), n_starts)
            if best.mean.size > 0:
                answers.n_targets[i], answers.probability[i] = best.mean.size // 3, probability
                answers.explains[i] = 1.0 if best.explains else 0.0
                out, origin = answers.targets[i], views.start[i]
                write_targets(best.mean, best.covariance, origin, probability, radius, out)
    return answers


@glue()
def _best(task: Task, light: Light, n_starts: int) -> tuple[Guess, float]:
    """The likeliest number of targets, one that explains the image if any does; its probability."""
    (least, most), (low, high) = task.box.flux, task.counts
    usual = math.floor(min(max(light.total / (0.5 * (least + most)), low), high) + 0.5)
    best, logs = _nothing(), filled(high - low + 1, -np.inf)
    for count in range(low, high + 1):
        if count != usual and not (count * least <= light.most and count * most >= light.least):
            continue
        guess = _guess(task, light, count, n_starts)
        logs[count - low] = guess.evidence
        better = guess.evidence > best.evidence
        if best.mean.size == 0 or (better if guess.explains == best.explains else guess.explains):
            best = guess
    share = np.empty(logs.size)
    to_shares(logs, share)
    count = best.mean.size // 3
    return best, share[count - low]


@glue()
def _nothing() -> Guess:
    return Guess(np.empty(0), np.empty((0, 0)), -np.inf, False)


# --- what the light says ------------------------------------------------------------------------


@part()
def _look(task: Task, core: FloatArray) -> Light:
    """Moments of the light in a window."""
    pixels = task.pixels
    n_y, n_x = pixels.low.shape
    light, brightest = np.empty((n_y, n_x)), 0.0
    hidden, blind = _fill(pixels, light)
    total = lit = y = x = 0.0
    for i in range(n_y):
        for j in range(n_x):
            total += light[i, j]
            brightest = max(brightest, light[i, j])
    noise = math.sqrt(pixels.variance)
    floor = min(_LIT * noise, 0.5 * brightest)  # the noise may be that of a PSF that is not sure
    for i in range(n_y):
        for j in range(n_x):
            light[i, j] = light[i, j] if light[i, j] > floor else 0.0
            lit += light[i, j]
            y += light[i, j] * i
            x += light[i, j] * j
    y, x = (y / lit, x / lit) if lit > 0.0 else (0.5 * (n_y - 1.0), 0.5 * (n_x - 1.0))
    of_y = of_x = both = 0.0
    for i in range(n_y):
        for j in range(n_x):
            share = light[i, j] / lit if lit > 0.0 else 0.0
            of_y += share * (i - y) ** 2
            of_x += share * (j - x) ** 2
            both += share * (i - y) * (j - x)
    y, x = y - core[0], x - core[1]
    # What the window does not show of it, as of one target in the middle.
    share = max(_share(task, y, x), _SHOWN)
    total /= share
    noise2 = n_y * n_x * pixels.variance + pixels.per_light * max(total, 0.0)
    unsure = (_SURE + _CUT * max(core[5] - share, 0.0)) * total
    unsure += _HIDDEN * hidden + _LIT * math.sqrt(noise2)
    most = np.inf if blind else total + unsure
    spread = principal_axes(y, x, of_y - core[2], of_x - core[3], both - core[4], _LEAST)
    return Light(total, total - unsure, most, spread)


@part()
def _share(task: Task, y: float, x: float) -> float:
    """Share of a target's light that falls into the window."""
    theta, total = np.empty(3), 0.0
    theta[0], theta[1], theta[2] = y, x, 1.0
    room = new_room(task.optics, 1, 3, *task.pixels.low.shape)
    glow(task.optics, theta, room)
    for i in range(room.light.shape[0]):
        total += add_up(room.light[i])
    return total


@leaf()
def _fill(pixels: Pixels, light: FloatArray) -> tuple[float, bool]:
    """Light of all pixels, of those that are not known as `_behind` has it.

    How much that is more than their bounds, and whether there is one beside light, or a bound, of
    which nothing tells it.
    """
    hidden, blind = 0.0, False
    for i in range(light.shape[0]):
        for j in range(light.shape[1]):
            low, high = pixels.low[i, j], pixels.high[i, j]
            light[i, j] = _shown(low, high)
            if not high - low < np.inf:
                behind = _behind(pixels, i, j)
                untold = low > -np.inf or (high == np.inf and _beside_light(pixels, i, j))
                blind = blind or (behind == 0.0 and untold)
                behind = min(max(behind, light[i, j]), high)
                hidden += behind - light[i, j]
                light[i, j] = behind
    return hidden, blind


@leaf()
def _beside_light(pixels: Pixels, i: int, j: int) -> bool:
    """Whether one of the pixels around is lit."""
    n_y, n_x = pixels.low.shape
    lit = False
    for at_i in range(max(i - 1, 0), min(i + 2, n_y)):
        for at_j in range(max(j - 1, 0), min(j + 2, n_x)):
            lit = lit or _known(pixels, at_i, at_j) > 0.0 or pixels.low[at_i, at_j] > 0.0
    return lit


@leaf()
def _shown(low: float, high: float) -> float:
    """Light of a pixel, or the bound that there is of it."""
    if low == -np.inf:
        return float(high if high < np.inf else 0.0)
    return float(low if high == np.inf else 0.5 * (low + high))


@leaf()
def _behind(pixels: Pixels, i: int, j: int) -> float:
    """Light of a pixel as its neighbours would have it, were the light a product of two factors.

    The geometric mean of ``a b/c`` at its four corners, a and b being the pixels beside it and c
    the one across; 0 where none is known.
    """
    n_y, n_x = pixels.low.shape
    total, n = 0.0, 0
    for corner in range(4):
        at_i, at_j = i + 2 * (corner // 2) - 1, j + 2 * (corner % 2) - 1
        if 0 <= at_i < n_y and 0 <= at_j < n_x:
            a, b, c = _known(pixels, at_i, j), _known(pixels, i, at_j), _known(pixels, at_i, at_j)
            if a > 0.0 and b > 0.0 and c > 0.0:
                total, n = total + math.log(a * b / c), n + 1
    return math.exp(total / n) if n > 0 else 0.0


@leaf()
def _known(pixels: Pixels, i: int, j: int) -> float:
    """Light of a pixel that is known and lit, else 0."""
    low, high = pixels.low[i, j], pixels.high[i, j]
    light = 0.5 * (low + high)
    lit = high - low < np.inf and light > _LIT * math.sqrt(pixels.variance)
    return light if lit else 0.0


# --- fits of a number of targets ----------------------------------------------------------------


@glue()
def _guess(task: Task, light: Light, count: int, per_pair: int) -> Guess:
    """The normal distributions around what the best starts lead to, as one."""
    model, pull = _model(task, light, count)
    d = 3 * count
    room = new_room(model.optics, count, d, *model.pixels.low.shape)
    scenes = _figures(light.spread, count, pull.mean[2])
    n, left = scenes.shape[0], np.empty(scenes.shape[0])
    n_starts = min(n, (count + 1) // 2 * per_pair)
    gradient, hessian = np.empty(d), filled((d, d), 0.0)
    for s in range(n):
        left[s] = float(s)
        if n > n_starts:
            left[s] = objective(model, scenes[s].ravel(), _SOFT.stiffness, room)
    mean, covariance = np.empty((n_starts, d)), np.empty((n_starts, d, d))
    logs, m, best, least = np.empty(n_starts), 0, 0, np.inf
    for _ in range(n_starts):
        start = _first_least(left)
        left[start] = np.inf
        theta = scenes[start].ravel()
        value, there = descend_pulled(model, theta, pull, _MAX_ITER, _SOFT, room, gradient, hessian)
        if not there:
            _slope_at(model, theta, pull, room, gradient, hessian)
        copy(theta, mean[m])
        logs[m] = _moments(model, pull, gradient, hessian, mean[m], covariance[m]) - value
        if not _is_new(mean[:m], covariance, mean[m], count):
            continue
        if value < least:
            best, least = m, value
        m += 1
    good = explains(model, mean[best], least)
    middle, around, mass = _mixture(mean[:m], covariance[:m], logs[:m], best, count)
    for a in range(d):
        mass += 0.5 * math.log(pull.precision[a])
    return Guess(middle, around, mass, good)


@part()
def _slope_at(
    model: Model,
    theta: FloatArray,
    pull: Pull,
    room: Room,
    gradient: FloatArray,
    hessian: FloatArray,
) -> None:
    """What `descend_pulled` has of the scene that a step begins with."""
    illuminate(model.optics, theta, room)
    slope(model, theta, _SOFT.stiffness, room, gradient, hessian)
    add_pull(pull, theta, gradient, hessian)


@part()
def _is_new(known: FloatArray, covariance: FloatArray, mean: FloatArray, count: int) -> bool:
    """Whether a fit is none of those known, but for the order of targets."""
    for m in range(known.shape[0]):
        order, distance2 = nearest(mean, known[m], count), 0.0
        for a in range(mean.size):
            away = mean[3 * order[a // 3] + a % 3] - known[m, a]
            distance2 += away * away / covariance[m, a, a]
        if distance2 <= _SAME**2 * mean.size:
            return False
    return True


@leaf()
def _first_least(values: FloatArray) -> int:
    """Where the least value is, the first of them."""
    best = 0
    for s in range(values.size):
        best = s if values[s] < values[best] else best
    return best


@glue()
def _model(task: Task, light: Light, count: int) -> tuple[Model, Pull]:
    """The posterior of so many targets, and the normal prior that stands for its bounds.

    Fluxes and places have the prior's means and variances, places around the middle of the light.
    """
    (least, most), box, model = task.box.flux, task.box, model_for(task, count, 0.0)
    middle, sigma = 0.5 * (least + most), (most - least) / math.sqrt(12.0)
    flux = max(middle - _SIGMAS * sigma, 0.0), middle + _SIGMAS * sigma
    mean = np.empty(3 * count)
    for k in range(count):
        mean[3 * k], mean[3 * k + 1], mean[3 * k + 2] = light.spread.y, light.spread.x, middle
    soft = Box(box.area, flux, box.separation, box.extent, box.cell, 0.0, box.background)
    return within(model, soft), Pull(mean, model.precision)


@part()
def _figures(spread: Spread, count: int, flux: float) -> FloatArray:
    """Scenes (n, K, 3): regular figures of this spread, of all targets or around one of them."""
    kinds = 2 if count > 3 else 1
    scenes = np.empty((kinds * _TURNS if count > 2 else 1, count, 3))
    for s in range(scenes.shape[0]):
        for k in range(count):
            scenes[s, k, 2] = flux
        if count > 2:
            turn = (s // kinds) / _TURNS
            place_at_corners(scenes[s], spread, count - s % kinds, turn, scenes[s])
        else:
            for k in range(count):
                put(spread, (count - 1.0) * (1.0 - 2.0 * k), 0.0, scenes[s, k])
    return scenes


@part()
def _moments(
    model: Model,
    pull: Pull,
    gradient: FloatArray,
    hessian: FloatArray,
    mean: FloatArray,
    covariance: FloatArray,
) -> float:
    """Mean and covariance of the normal distribution around a `mean` to begin with; log volume."""
    d = mean.size
    lower, inverse, volume = np.empty((d, d)), np.empty((d, d)), 0.0
    if cholesky(hessian, d, lower) < d:
        for a in range(d):
            for b in range(d):
                covariance[a, b] = 1.0 / pull.precision[a] if a == b else 0.0
            volume -= 0.5 * math.log(pull.precision[a])
        return volume
    invert_lower(lower, inverse)
    inner_gram(inverse, covariance)
    for a in range(d):
        mean[a] += inner(covariance[a], gradient)
        volume -= math.log(lower[a, a])
    lowest, highest = np.empty(d), np.empty(d)
    limits(model.box, mean, model.n_targets, model.box.cell == 1.0, lowest, highest)
    clip(mean, lowest, highest)
    if model.box.separation > 0.0:  # which keeps all orders of the targets apart
        return volume + math.lgamma(model.n_targets + 1.0)
    return volume + _log_orders(hessian, mean, model.n_targets)


@leaf()
def _log_orders(precision: FloatArray, mean: FloatArray, count: int) -> float:
    """Log number of orders of the targets that are apart from each other.

    ``prod_k (1 + sum_{m<k} (1 - o_km))``, ``o`` the overlap of a normal distribution and of the one
    with two targets exchanged (Bhattacharyya's coefficient): from 1, all the same, to ``K!``.
    """
    log = 0.0
    for k in range(count):
        orders = 1.0
        for m in range(k):
            distance2 = 0.0
            for c in range(3):
                for e in range(3):
                    a, b, p, q = 3 * k + c, 3 * m + c, 3 * k + e, 3 * m + e
                    bend = precision[max(a, p), min(a, p)] + precision[max(b, q), min(b, q)]
                    bend -= precision[max(a, q), min(a, q)] + precision[max(b, p), min(b, p)]
                    distance2 += bend * (mean[a] - mean[b]) * (mean[p] - mean[q])
            orders += 1.0 - math.exp(-0.125 * max(distance2, 0.0))
        log += math.log(orders)
    return log


@glue()
def _mixture(
    mean: FloatArray, covariance: FloatArray, logs: FloatArray, best: int, count: int
) -> tuple[FloatArray, FloatArray, float]:
    """Mean and covariance of normal distributions of these log weights, and the log of their sum.

    Their targets are brought into the order of the best.
    """
    n, d = mean.shape
    share = np.empty(n)
    mass = to_shares(logs, share)
    middle, around, at = filled(d, 0.0), filled((d, d), 0.0), np.empty((n, d), np.int64)
    for m in range(n):
        order = nearest(mean[m], mean[best], count)
        for a in range(d):
            at[m, a] = 3 * order[a // 3] + a % 3
            middle[a] += share[m] * mean[m, at[m, a]]
    for m in range(n):
        for a in range(d):
            away = mean[m, at[m, a]] - middle[a]
            for b in range(d):
                apart = away * (mean[m, at[m, b]] - middle[b])
                around[a, b] += share[m] * (covariance[m, at[m, a], at[m, b]] + apart)
    return middle, around, mass
