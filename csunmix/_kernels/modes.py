"""Normal approximations around the optima of a posterior, cut off by the bounds of the prior."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.fit import EXACT, explains, slope
from csunmix._kernels.jit import glue, kernel, leaf, part
from csunmix._kernels.labels import nearest
from csunmix._kernels.linalg import cholesky, copy, inner, invert, invert_lower, to_shares
from csunmix._kernels.measure import log_measure
from csunmix._kernels.model import Model, within
from csunmix._kernels.prior import Box, densities, extremes, limits, sure_box, sure_cell
from csunmix._kernels.scene import Pixels, Room, differentiate, illuminate, new_room, varying
from csunmix._kernels.truncated import expectation_propagation
from csunmix._validation import FloatArray

_MOST = 12
_SHARP = 0.1  # of an interval, noise below which it is a bound
_COLLAPSED = 0.01  # of a spread, below which bounds leave none
_IDLE = 0.02  # of an interval, spread below which it does not matter
NEGLIGIBLE = 8.0
"""Objective above the best from where a fit weighs nothing."""

_LEAST_ROOM = 0.01  # of the extent
_RIDGE = 1e-10  # of the diagonal of a precision, against rounding
_SAME = 0.5  # standard deviations, within which two fits are one
_SINGULAR = 1e-10  # smallest pivot of a correlation matrix


class Modes(NamedTuple):
    """Normal approximations around optima, their targets in the same order, or other scenes."""

    theta: FloatArray  # (m, d), the optima or scenes
    mean: FloatArray  # (m, d)
    factor: FloatArray  # (m, d, d), Cholesky factors of the covariances, lower triangles
    inverse: FloatArray  # (m, d, d), inverses of these factors


class Mixture(NamedTuple):
    """Normal approximations around all optima as one distribution."""

    modes: Modes
    share: FloatArray  # (m,), of each
    mass: float  # log of that of all, but for a constant
    mean: FloatArray  # (d,)
    covariance: FloatArray  # (d, d)


class Judgement(NamedTuple):
    """What is said of a number of targets by its fit alone."""

    log_measure: float  # see `csunmix._kernels.measure.log_measure`
    log_evidence: float  # by Laplace's method, but for a constant
    explains: bool  # see `csunmix._kernels.fit.explains`


@glue()
def approximate(
    model: Model, thetas: FloatArray, values: FloatArray, chance: FloatArray
) -> Mixture:
    """The mixture of modes of the optima `thetas` (n, d), the best first.

    Where the prior has boxes and cells, an optimum has a mode in each: what is cut off by the walls
    of a cell is no approximation of what is not. Each weighs as its likelihood and prior at its
    mean times the volume of its covariance; the mass is that of all, but for a constant.
    Where pixels are `sharp`, means and covariances are those of `sharpen`.

    With numbers between 0 and 1 in `chance` (n,), `thetas` are any scenes, and all have a mode, as
    scenes in a cell or in a box, as likely as they are either. All weigh the same then, and where
    pixels are `sharp` what is there before `sharpen` is told by the curvature alone.
    """
    n, d = thetas.shape
    any_scenes = chance.size > 0
    kinds = 2 if model.box.cell_density > 0.0 and not any_scenes else 1
    most = n if any_scenes else kinds * min(n, _MOST)
    theta, mean = np.empty((most, d)), np.empty((most, d))
    factor, inverse = filled((most, d, d), 0.0), filled((most, d, d), 0.0)
    logs = np.empty(most)
    box = model.box
    in_cell = within(model, sure_cell(box))
    in_box = within(model, sure_box(box))
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    at, m, bounded = np.empty(d), 0, sharp(model.pixels)
    for s in range(n):
        if m + kinds > most or (not any_scenes and values[s] > values[0] + NEGLIGIBLE):
            break
        order = nearest(thetas[s], thetas[s if any_scenes else 0], model.n_targets)
        copy(thetas[s], at)
        for k in range(model.n_targets):
            for c in range(3):
                at[3 * k + c] = thetas[s, 3 * order[k] + c]
        gradient, hessian = curvature(model, at, room)
        if not any_scenes and not _apart(model, theta[:m], at, hessian):
            continue
        for kind in range(kinds):
            cell = kind == 1
            if any_scenes:
                as_box, as_cell = densities(box, at, model.n_targets)
                cell = chance[s] * (as_box + as_cell) < as_cell
            part = in_cell if cell else in_box
            copy(at, theta[m])
            middle, covariance = moments(part, at, gradient, hessian, any_scenes and bounded)
            if bounded:
                sharpen(part, at, room, middle, covariance)
            copy(middle, mean[m])
            if cholesky(covariance, d, factor[m]) < d:
                continue
            invert_lower(factor[m], inverse[m])
            if any_scenes:
                logs[m] = 0.0
                m += 1
                continue
            logs[m] = log_density(part.box, mean[m], model.n_targets) - values[s]
            for a in range(d):
                pull = gradient[a]
                for b in range(d):
                    pull -= 0.5 * hessian[a, b] * (mean[m, b] - at[b])
                logs[m] += math.log(factor[m, a, a]) + pull * (mean[m, a] - at[a])
            if kind == 1:
                logs[m] += math.log(model.box.cell_density)
            m += 1
    if m == 0:  # lost by rounding
        copy(thetas[0], theta[0])
        copy(thetas[0], mean[0])
        logs[0], m = 0.0 if any_scenes else -values[0], 1
        for a in range(d):
            factor[0, a, a] = 1.0 / math.sqrt(model.precision[a])
            inverse[0, a, a] = 1.0 / factor[0, a, a]
    share = np.empty(m)
    mass = to_shares(logs[:m], share)
    middle, covariance = _moments(mean[:m], factor[:m], share)
    modes = Modes(theta[:m], mean[:m], factor[:m], inverse[:m])
    return Mixture(modes, share, mass, middle, covariance)


@glue()
def _moments(
    mean: FloatArray, factor: FloatArray, share: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and covariance of a mixture of normal distributions."""
    n, d = mean.shape
    middle, covariance = filled(d, 0.0), filled((d, d), 0.0)
    for m in range(n):
        for a in range(d):
            middle[a] += share[m] * mean[m, a]
    for m in range(n):
        for a in range(d):
            away = share[m] * (mean[m, a] - middle[a])
            for b in range(a + 1):
                within = 0.0
                for c in range(b + 1):
                    within += factor[m, a, c] * factor[m, b, c]
                covariance[a, b] += share[m] * within + away * (mean[m, b] - middle[b])
    for a in range(d):
        for b in range(a):
            covariance[b, a] = covariance[a, b]
    return middle, covariance


@glue()
def curvature(model: Model, theta: FloatArray, room: Room) -> tuple[FloatArray, FloatArray]:
    """Gradient (d,) and minus second derivatives (d, d) of the log likelihood of a scene."""
    box = model.box
    free = Box(box.area, box.flux, 0.0, np.inf, box.cell, box.cell_density, box.background)
    gradient, hessian = np.empty(theta.size), filled((theta.size, theta.size), 0.0)
    illuminate(model.optics, theta, room)
    slope(within(model, free), theta, EXACT.stiffness, room, gradient, hessian)
    for a in range(theta.size):
        for b in range(a):
            hessian[b, a] = hessian[a, b]
    return gradient, hessian


@part()
def moments(
    model: Model, theta: FloatArray, gradient: FloatArray, hessian: FloatArray, rough: bool
) -> tuple[FloatArray, FloatArray]:
    """Mean (d,) and covariance (d, d) of the posterior around an optimum.

    The likelihood is taken as normal (Laplace), cut off by the bounds of the prior: fluxes, area or
    cell, and, along the line that joins two targets, their separation. Where bounds lie too far
    from the likelihood for that, and where it may be `rough`, it is the optimum and its curvature,
    the prior's counted.
    """
    d = theta.size
    mean: FloatArray = np.empty(d)
    covariance: FloatArray = np.empty((d, d))
    if not rough:
        rows, low, high, width = bounds(model, theta)
        shift = np.empty(d)
        for a in range(d):
            shift[a] = gradient[a]
            for b in range(d):
                shift[a] += hessian[a, b] * theta[b]
        mean, covariance = expectation_propagation(hessian, shift, rows, low, high, width)
        if _regular(mean, covariance):
            return mean, covariance
    copy(theta, mean)
    invert(with_prior(model, hessian), covariance)
    return mean, covariance


@glue()
def sharp(pixels: Pixels) -> bool:
    """Whether pixels are intervals with hardly any noise: bounds of their light, and no more.

    Some of them may have one bound only, or none.
    """
    widest = 0.0
    for i in range(pixels.low.shape[0]):
        for j in range(pixels.low.shape[1]):
            width = pixels.high[i, j] - pixels.low[i, j]
            if width * _SHARP < math.sqrt(pixels.variance):
                return False
            if width < np.inf:
                widest = max(widest, width)
    return widest > 0.0 and not varying(pixels)


@glue()
def sharpen(
    model: Model, theta: FloatArray, room: Room, mean: FloatArray, covariance: FloatArray
) -> None:
    """Replace moments by those of the scenes whose light, taken as linear, keeps to all intervals.

    They stay as they are where there are no such scenes, as where the PSF is wrong.
    """
    d = theta.size
    precision, shift = filled((d, d), 0.0), filled(d, 0.0)
    for a in range(3 * model.n_targets, d):
        precision[a, a] = 1.0 / model.box.background[1] ** 2
        shift[a] = precision[a, a] * model.box.background[0]
    rows, low, high, width = intervals(model, theta, room, covariance)
    middle, around = expectation_propagation(precision, shift, rows, low, high, width)
    sound = _regular(middle, around)
    for a in range(d):
        sound = sound and around[a, a] > _COLLAPSED**2 * covariance[a, a]
    if sound:
        copy(middle, mean)
        for a in range(d):
            copy(around[a], covariance[a])


@part()
def intervals(
    model: Model, theta: FloatArray, room: Room, covariance: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """The same as `bounds`, and those of the pixels' light after them.

    Without those that the light hardly varies between, as the covariance tells.
    """
    rows, low, high, width = bounds(model, theta)
    n, most = low.size, low.size + room.weight.size
    every, widths = filled((most, theta.size), 0.0), filled(most, np.inf)
    lowest, highest = np.empty(most), np.empty(most)
    for b in range(n):
        copy(rows[b], every[b])
        widths[b], lowest[b], highest[b] = width[b], low[b], high[b]
    illuminate(model.optics, theta, room)
    differentiate(theta, room)
    n_x, row = room.light.shape[1], room.column
    for p in range(room.weight.size):
        start, stop = model.pixels.low[p // n_x, p % n_x], model.pixels.high[p // n_x, p % n_x]
        copy(room.jacobian[:, p], row)
        least = _IDLE * (stop - start) if stop - start < np.inf else 0.0
        if (start == -np.inf and stop == np.inf) or _variance(covariance, row) < least * least:
            continue
        rest = room.light[p // n_x, p % n_x] - inner(row, theta)
        copy(row, every[n])
        lowest[n], highest[n] = start - rest, stop - rest
        widths[n] = (stop - start) / math.sqrt(12.0)
        n += 1
    return every[:n], lowest[:n], highest[:n], widths[:n]


@leaf()
def _variance(covariance: FloatArray, row: FloatArray) -> float:
    """Variance of ``row x``."""
    total = 0.0
    for a in range(row.size):
        for b in range(row.size):
            total += row[a] * covariance[a, b] * row[b]
    return total


@glue()
def with_prior(model: Model, hessian: FloatArray) -> FloatArray:
    """Precision of the posterior, the prior's own of the targets counted; never singular."""
    d = hessian.shape[0]
    total = np.empty((d, d))
    for a in range(d):
        copy(hessian[a], total[a])
        if a < 3 * model.n_targets:
            total[a, a] += model.precision[a]
        total[a, a] *= 1.0 + _RIDGE
    return total


@part()
def bounds(
    model: Model, theta: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Rows, lowest and highest values and widths of the bounds of the prior around a scene."""
    box, count, d = model.box, model.n_targets, theta.size
    n = 3 * count
    most = n + count * (count - 1) // 2 + 2
    rows, width = filled((most, d), 0.0), filled(most, np.inf)
    low, high = filled(most, -np.inf), filled(most, np.inf)
    lower, upper = np.empty(d), np.empty(d)
    limits(box, theta, count, box.cell == 1.0, lower, upper)
    for a in range(n):
        rows[a, a], low[a], high[a] = 1.0, lower[a], upper[a]
        width[a] = (upper[a] - lower[a]) / math.sqrt(12.0)
    for k in range(count):
        for m in range(k):
            dy, dx = theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1]
            distance = math.hypot(dy, dx)
            if distance > 0.0:  # no line joins targets that lie at the same place
                rows[n, 3 * k], rows[n, 3 * k + 1] = dy / distance, dx / distance
                rows[n, 3 * m], rows[n, 3 * m + 1] = -dy / distance, -dx / distance
                low[n] = box.separation
                n += 1
    if count > 1 and box.extent < np.inf:
        for axis in range(2):
            first, last = extremes(theta, axis, count)
            rows[n, last] += 1.0
            rows[n, first] -= 1.0
            high[n] = box.extent
            n += 1
    return rows[:n], low[:n], high[:n], width[:n]


@leaf()
def log_density(box: Box, theta: FloatArray, count: int) -> float:
    """Log prior density of the places of a scene, with some room for a box of the extent."""
    if box.cell == 1.0:
        return 0.0
    in_box = 1.0
    for axis in range(2):
        start, stop = box.area[axis, 0], box.area[axis, 1]
        if box.extent < stop - start:
            lowest, highest = extremes(theta, axis, count)
            first = max(theta[highest] - box.extent, start)
            last = min(theta[lowest], stop - box.extent)
            in_box *= max(last - first, _LEAST_ROOM * box.extent)
    return math.log(in_box + densities(box, theta, count)[1])


@kernel()
def judge(
    model: Model, theta: FloatArray, value: float, size: FloatArray, room: float
) -> Judgement:
    """What a fit (d,) of objective `value` says of its number of targets.

    For `size` and `room` see `log_measure`.
    """
    measure = log_measure(model, theta.size, size, room)
    evidence = _log_volume(model, theta) - value + measure
    return Judgement(measure, evidence, explains(model, theta, value))


@glue()
def _log_volume(model: Model, theta: FloatArray) -> float:
    """Log volume of the posterior around an optimum by Laplace's method, in ``(2 pi)^(d/2)``.

    The bounds of the prior cut nothing off; -inf where the curvature is singular or NaN.
    """
    d = theta.size
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    factor = filled((d, d), 0.0)
    if cholesky(with_prior(model, curvature(model, theta, room)[1]), d, factor) < d:
        return -np.inf
    total = log_density(model.box, theta, model.n_targets)
    for a in range(d):
        total -= math.log(factor[a, a])
    return total


@part()
def _regular(mean: FloatArray, covariance: FloatArray) -> bool:
    """Whether moments are finite and those of a distribution."""
    d = mean.size
    correlation, factor = np.empty((d, d)), filled((d, d), 0.0)
    for a in range(d):
        if not (math.isfinite(mean[a]) and 0.0 < covariance[a, a] < np.inf):
            return False
        for b in range(a + 1):
            correlation[a, b] = covariance[a, b] / math.sqrt(covariance[a, a] * covariance[b, b])
    if cholesky(correlation, d, factor) < d:
        return False
    smallest = np.inf
    for a in range(d):
        smallest = min(smallest, factor[a, a] ** 2)
    return bool(smallest > _SINGULAR)


@leaf()
def _apart(model: Model, known: FloatArray, theta: FloatArray, hessian: FloatArray) -> bool:
    """Whether a fit is none of those known but for how far they went: half a standard deviation.

    That is the root mean square along all axes of the precision, the prior's own counted, which is
    there before the moments are: these take longest.
    """
    d = theta.size
    for m in range(known.shape[0]):
        distance2 = 0.0
        for a in range(d):
            away = theta[a] - known[m, a]
            s = model.precision[a] * away if a < 3 * model.n_targets else 0.0
            for b in range(d):
                s += hessian[a, b] * (theta[b] - known[m, b])
            distance2 += s * away
        if distance2 <= _SAME**2 * d:
            return False
    return True
