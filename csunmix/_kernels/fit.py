"""The joint fit of all targets of a scene: bounded Levenberg-Marquardt steps."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.billiards import force
from csunmix._kernels.jit import glue, leaf, part
from csunmix._kernels.linalg import DEPENDENT, copy, inner
from csunmix._kernels.model import Model
from csunmix._kernels.prior import extremes, limits
from csunmix._kernels.scene import (
    Room,
    fisher,
    illuminate,
    log_likelihood,
    log_tail,
    new_room,
    noise_variance,
    varying,
)
from csunmix._validation import FloatArray, IntArray

_DAMPING = (1e-9, 1e-3, 1e9)  # least, first and largest
_EASE, _BRAKE = 3.0, 6.0  # of the damping: factors after a step that leads down, and one that not
_LEAST = 1e-12  # precision of a parameter that nothing is known of
_UNUSUAL = 10.0  # standard deviations of what noise leaves of an image


class Strictness(NamedTuple):
    """How closely a descent keeps to what it should, and how far it goes."""

    stiffness: float  # 1/px^2, of the limits to how targets lie to one another
    flat: float  # decrease of the objective, in fact or by the gradient alone, that ends it


EXACT = Strictness(1.0 / 0.003**2, 1e-6)
ROUGH = Strictness(1.0 / 0.01**2, 1e-2)
"""To begin with: along limits that give way, targets take longer steps past each other."""

NEAR = Strictness(1.0 / 0.005**2, 1e-2)
HASTY = Strictness(1.0 / 0.02**2, 3e-2)
"""The same where normal distributions are put around what is found: their means go the rest of the
way, which along a flat valley, and along stiff limits, takes most of the steps."""


class Pull(NamedTuple):
    """A normal prior of each parameter, beside the bounds; none where there are no entries."""

    mean: FloatArray  # (d,) or (0,)
    precision: FloatArray  # one over its variances


class Space(NamedTuple):
    """Arrays that `bounded_step` works in."""

    damped: FloatArray  # (d, d)
    factor: FloatArray  # (d, d), Cholesky factor of that, below the diagonal
    scale: FloatArray  # (d), one over its diagonal
    reduced: FloatArray  # (d), the gradient, without what the steps of others take of it
    solution: FloatArray  # (d)
    free: IntArray  # (d), which parameters all this is of


@part()
def descend(
    model: Model, theta: FloatArray, max_iter: int, strictness: Strictness, room: Room
) -> float:
    """Fit from `theta`, in place; returns the objective, see `objective`."""
    d, none = theta.size, Pull(np.empty(0), np.empty(0))
    gradient, hessian = np.empty(d), filled((d, d), 0.0)
    return descend_pulled(model, theta, none, max_iter, strictness, room, gradient, hessian)[0]


@part()
def descend_pulled(
    model: Model,
    theta: FloatArray,
    pull: Pull,
    max_iter: int,
    strictness: Strictness,
    room: Room,
    gradient: FloatArray,
    hessian: FloatArray,
) -> tuple[float, bool]:
    """The same of the objective and ``sum precision (theta - mean)^2 / 2`` of a normal prior.

    The second value tells whether `gradient` and the lower triangle of `hessian` are those of where
    it ends, rather than of the step before.
    """
    stiffness, flat = strictness
    d = theta.size
    lower, upper = np.empty(d), np.empty(d)
    limits(model.box, theta, model.n_targets, model.box.cell == 1.0, lower, upper)
    clip(theta, lower, upper)
    step, trial = np.empty(d), np.empty(d)
    space = Space(
        np.empty((d, d)),
        filled((d, d), 0.0),
        np.empty(d),
        np.empty(d),
        np.empty(d),
        np.empty(d, np.int64),
    )
    value = objective(model, theta, stiffness, room) + _against(pull, theta)
    damping, there = _DAMPING[1], False
    for _ in range(max_iter):
        slope(model, theta, stiffness, room, gradient, hessian)
        add_pull(pull, theta, gradient, hessian)
        better, there = False, True
        while damping < _DAMPING[2]:
            if bounded_step(hessian, gradient, damping, theta, lower, upper, space, step):
                # Or there is no step; one that the damping cuts short ends the descent, too.
                if not abs(inner(gradient, step)) > flat:
                    break
                for a in range(d):
                    trial[a] = min(max(theta[a] + step[a], lower[a]), upper[a])
                new = objective(model, trial, stiffness, room) + _against(pull, trial)
                if new < value:
                    better, there = value - new > flat, False
                    copy(trial, theta)
                    value = new
                    damping = max(damping / _EASE, _DAMPING[0])
                    break
            damping *= _BRAKE
        if not better:
            break
    return value, there


@leaf()
def _against(pull: Pull, theta: FloatArray) -> float:
    """Minus the log of a normal prior, but for a constant."""
    value = 0.0
    for a in range(pull.mean.size):
        value += 0.5 * pull.precision[a] * (theta[a] - pull.mean[a]) ** 2
    return value


@leaf()
def add_pull(pull: Pull, theta: FloatArray, gradient: FloatArray, hessian: FloatArray) -> None:
    """Add what a normal prior makes of the downhill gradient and of the Hessian's diagonal."""
    for a in range(pull.mean.size):
        gradient[a] -= pull.precision[a] * (theta[a] - pull.mean[a])
        hessian[a, a] += pull.precision[a]


@leaf()
def bounded_step(
    hessian: FloatArray,
    gradient: FloatArray,
    damping: float,
    theta: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    space: Space,
    step: FloatArray,
) -> bool:
    """Damped Newton step, parameters that would leave their bounds put there; False if singular.

    What is left solves for the rest, again and again until nothing leaves.
    """
    n_free, sound = _hold(gradient, theta, lower, upper, space.free, step), 0
    for i in range(n_free):
        space.reduced[i] = gradient[space.free[i]]
        _write_row(hessian, damping, i, space)
    while n_free > 0:
        if not _factor(space, sound, n_free):
            return False
        _solve(space, n_free)
        sound = n_free
        for i in range(n_free):
            a = space.free[i]
            step[a] = space.solution[i]
            if step[a] < lower[a] - theta[a]:
                step[a] = lower[a] - theta[a]
            elif step[a] > upper[a] - theta[a]:
                step[a] = upper[a] - theta[a]
            if step[a] != space.solution[i]:
                sound = min(sound, i)
        if sound == n_free:
            return True
        n_free = _let_go(hessian, damping, step, sound, n_free, space)
    return True


@leaf()
def _hold(
    gradient: FloatArray,
    theta: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    free: IntArray,
    step: FloatArray,
) -> int:
    """Begin a step: number of parameters that do not lie at a bound and lean on it; and which.

    Fluxes come last: they leave their bounds most often, and what is before them is kept then.
    """
    n_free, count = 0, theta.size // 3
    for i in range(theta.size):
        a = i + i // 2 if i < 2 * count else i
        if 2 * count <= i < 3 * count:
            a = 3 * (i - 2 * count) + 2
        step[a] = 0.0
        held = theta[a] <= lower[a] and gradient[a] < 0.0
        held = held or (theta[a] >= upper[a] and gradient[a] > 0.0)
        if not held:
            free[n_free] = a
            n_free += 1
    return n_free


@leaf()
def _let_go(
    hessian: FloatArray, damping: float, step: FloatArray, sound: int, n_free: int, space: Space
) -> int:
    """Go on without the parameters that left, the first at `sound`; how many are left."""
    free, reduced, kept = space.free, space.reduced, sound
    for i in range(sound, n_free):
        a = free[i]
        if step[a] != space.solution[i]:
            for j in range(n_free):
                reduced[j] -= hessian[max(a, free[j]), min(a, free[j])] * step[a]
    for i in range(sound, n_free):
        if step[free[i]] == space.solution[i]:
            free[kept], reduced[kept] = free[i], reduced[i]
            _write_row(hessian, damping, kept, space)
            kept += 1
    return kept


@leaf()
def _write_row(hessian: FloatArray, damping: float, i: int, space: Space) -> None:
    """Row i of the damped Hessian of the free parameters."""
    a = space.free[i]
    for j in range(i):
        b = space.free[j]
        space.damped[i, j] = hessian[max(a, b), min(a, b)]
    space.damped[i, i] = hessian[a, a] * (1.0 + damping)


@leaf()
def _factor(space: Space, sound: int, n: int) -> bool:
    """Rows of the Cholesky factor from `sound` to `n`; False if one depends on those before it.

    Those before `sound` must be there. Column by column, two rows at a time: their sums do not wait
    for each other.
    """
    gram, lower, scale, last = space.damped, space.factor, space.scale, n - 1
    for column in range(n):
        j = np.uint64(column)  # indices that may be negative are slower
        if column >= sound:
            pivot = gram[j, j]
            for m in range(j):
                pivot -= lower[j, m] * lower[j, m]
            if not pivot > DEPENDENT * gram[j, j]:  # or it is NaN
                return False
            scale[j] = 1.0 / math.sqrt(pivot)
        for row in range(max(column + 1, sound), n, 2):
            i, k = np.uint64(row), np.uint64(min(row + 1, last))
            s, t = gram[i, j], gram[k, j]
            for m in range(j):
                s -= lower[i, m] * lower[j, m]
                t -= lower[k, m] * lower[j, m]
            lower[i, j], lower[k, j] = s * scale[j], t * scale[j]
    return True


@leaf()
def _solve(space: Space, n: int) -> None:
    """Solve for the first `n` free parameters."""
    lower, scale, out = space.factor, space.scale, space.solution
    for i in range(n):
        s = space.reduced[i]
        for m in range(i):
            s -= lower[i, m] * out[m]
        out[i] = s * scale[i]
    for i in range(n - 1, -1, -1):
        out[i] *= scale[i]
        for m in range(i):
            out[m] -= out[i] * lower[i, m]


@leaf()
def clip(theta: FloatArray, lower: FloatArray, upper: FloatArray) -> None:
    """Put every parameter between its limits."""
    for a in range(theta.size):
        theta[a] = min(max(theta[a], lower[a]), upper[a])


@leaf()
def objective(model: Model, theta: FloatArray, stiffness: float, room: Room) -> float:
    """Minus log likelihood, plus half the squares of what oversteps the prior's distances.

    Its gradient (`slope`) takes rounding as a normal error: pixels are to be points or bounds.
    """
    illuminate(model.optics, theta, room)
    value = -log_likelihood(model.pixels, room.light, 0.0, -np.inf)
    box, count = model.box, model.n_targets
    for k in range(count):
        for m in range(k):
            dy, dx = theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1]
            if dy * dy + dx * dx < box.separation * box.separation:
                gap = box.separation - math.sqrt(dy * dy + dx * dx)
                value += 0.5 * stiffness * gap * gap
    for axis in range(2):
        first, last = extremes(theta, axis, count)
        excess = theta[last] - theta[first] - box.extent
        if excess > 0.0:
            value += 0.5 * stiffness * excess * excess
    if theta.size > 3 * count:
        value += 0.5 * ((theta[3 * count] - box.background[0]) / box.background[1]) ** 2
    return value


@glue()
def explains(model: Model, theta: FloatArray, value: float) -> bool:
    """Whether noise may leave what a fit of this objective does: ``n + 10 sqrt(2 n)`` at most.

    That is 10 standard deviations of ``chi^2_n``, of n pixels, above its mean.
    """
    pixels, n = model.pixels, 0
    for i in range(pixels.low.shape[0]):
        for j in range(pixels.low.shape[1]):
            n += 1 if math.isfinite(pixels.low[i, j]) or math.isfinite(pixels.high[i, j]) else 0
    limit = n + _UNUSUAL * math.sqrt(2.0 * n)
    # Where noise is the same everywhere, the objective is half the misfit, and penalties.
    if not varying(pixels) and 2.0 * value <= limit:
        return True
    return misfit(model, theta) <= limit


@part()
def misfit(model: Model, theta: FloatArray) -> float:
    """``sum r^2/v - 2 log Pr(what bounds say)`` of a scene: what it leaves of the image.

    Where pixels are points or bounds and their noise is the same, twice minus the log likelihood.
    """
    pixels, total = model.pixels, 0.0
    room = new_room(model.optics, model.n_targets, theta.size, *pixels.low.shape)
    illuminate(model.optics, theta, room)
    for i in range(pixels.low.shape[0]):
        for j in range(pixels.low.shape[1]):
            low, high, light = pixels.low[i, j], pixels.high[i, j], room.light[i, j]
            variance = noise_variance(pixels, light)
            if math.isfinite(low) and math.isfinite(high):
                total += (0.5 * (low + high) - light) ** 2 / variance
            elif low > -np.inf or high < np.inf:
                beyond = low - light if low > -np.inf else light - high
                total -= 2.0 * log_tail(beyond / math.sqrt(variance))
    return total


@leaf()
def slope(
    model: Model,
    theta: FloatArray,
    stiffness: float,
    room: Room,
    gradient: FloatArray,
    hessian: FloatArray,
) -> None:
    """Downhill gradient and Gauss-Newton Hessian (lower triangle) of `objective`."""
    fisher(model.pixels, 0.0, theta, room, hessian)
    force(model, 0.0, theta, room, gradient)
    for a in range(theta.size):
        hessian[a, a] += _LEAST
    box, count = model.box, model.n_targets
    for k in range(count):
        for m in range(k):
            dy, dx = theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1]
            if dy * dy + dx * dx < box.separation * box.separation:
                distance = max(math.sqrt(dy * dy + dx * dx), 1e-9)
                push = stiffness * (box.separation - distance)
                u = (dy / distance, dx / distance)
                for a in range(2):
                    gradient[3 * k + a] += push * u[a]
                    gradient[3 * m + a] -= push * u[a]
                    for b in range(2):
                        bend = stiffness * u[a] * u[b]
                        hessian[3 * k + a, 3 * m + b] -= bend
                        if b <= a:
                            hessian[3 * k + a, 3 * k + b] += bend
                            hessian[3 * m + a, 3 * m + b] += bend
    for axis in range(2):
        first, last = extremes(theta, axis, count)
        excess = theta[last] - theta[first] - box.extent
        if excess > 0.0:
            gradient[last] -= stiffness * excess
            gradient[first] += stiffness * excess
            hessian[last, last] += stiffness
            hessian[first, first] += stiffness
            hessian[max(first, last), min(first, last)] -= stiffness
    if theta.size > 3 * count:
        b = 3 * count
        hessian[b, b] += 1.0 / box.background[1] ** 2
