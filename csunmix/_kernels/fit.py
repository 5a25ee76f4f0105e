"""The joint fit of all targets of a scene: bounded Levenberg-Marquardt steps."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.billiards import force
from csunmix._kernels.jit import kernel, leaf
from csunmix._kernels.linalg import cholesky, cholesky_solve, copy, inner
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
)
from csunmix._validation import FloatArray, IntArray

_STIFFNESS = 1.0 / 0.003**2  # 1/px^2, of the limits to how targets lie to one another
_DAMPING = (1e-9, 1e-3, 1e9)  # least, first and largest
_FLAT = 1e-6  # decrease of the objective that ends a fit


class Space(NamedTuple):
    """Arrays that `bounded_step` works in."""

    damped: FloatArray  # (d, d)
    factor: FloatArray  # (d, d)
    reduced: FloatArray  # (d)
    solution: FloatArray  # (d)
    free: IntArray  # (d)


@kernel()
def descend(model: Model, theta: FloatArray, max_iter: int, room: Room) -> float:
    """Fit from `theta`, in place; returns the objective, see `objective`."""
    d = theta.size
    lower, upper = np.empty(d), np.empty(d)
    limits(model.box, theta, model.n_targets, model.box.cell == 1.0, lower, upper)
    clip(theta, lower, upper)
    gradient, hessian, step, trial = np.empty(d), np.zeros((d, d)), np.empty(d), np.empty(d)
    space = Space(
        np.empty((d, d)), np.zeros((d, d)), np.empty(d), np.empty(d), np.empty(d, np.int64)
    )
    value = objective(model, theta, room)
    damping = _DAMPING[1]
    for _ in range(max_iter):
        slope(model, theta, room, gradient, hessian)
        better = False
        while damping < _DAMPING[2]:
            if bounded_step(hessian, gradient, damping, theta, lower, upper, space, step):
                if not inner(step, step) > 0.0:
                    break
                for a in range(d):
                    trial[a] = min(max(theta[a] + step[a], lower[a]), upper[a])
                new = objective(model, trial, room)
                if new < value:
                    better = value - new > _FLAT
                    copy(trial, theta)
                    value = new
                    damping = max(damping / 5.0, _DAMPING[0])
                    break
            damping *= 4.0
        if not better:
            break
    return value


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
    d = theta.size
    n_free = _hold(gradient, theta, lower, upper, space.free, step)
    while n_free > 0:
        for i in range(n_free):
            a = space.free[i]
            space.reduced[i] = gradient[a]
            for b in range(d):
                if step[b] != 0.0:
                    space.reduced[i] -= hessian[max(a, b), min(a, b)] * step[b]
            for j in range(i + 1):
                space.damped[i, j] = hessian[a, space.free[j]]
            space.damped[i, i] *= 1.0 + damping
        if cholesky(space.damped, n_free, space.factor) < n_free:
            return False
        cholesky_solve(space.factor, n_free, space.reduced, space.solution)
        kept = 0
        for i in range(n_free):
            a = space.free[i]
            room_down, room_up = lower[a] - theta[a], upper[a] - theta[a]
            if space.solution[i] < room_down:
                step[a] = room_down
            elif space.solution[i] > room_up:
                step[a] = room_up
            else:
                space.solution[kept] = space.solution[i]
                space.free[kept] = a
                kept += 1
        if kept == n_free:
            for i in range(n_free):
                step[space.free[i]] = space.solution[i]
            return True
        n_free = kept
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
    """Begin a step: number of parameters that do not lie at a bound and lean on it; and which."""
    n_free = 0
    for a in range(theta.size):
        step[a] = 0.0
        held = theta[a] <= lower[a] and gradient[a] < 0.0
        held = held or (theta[a] >= upper[a] and gradient[a] > 0.0)
        if not held:
            free[n_free] = a
            n_free += 1
    return n_free


@leaf()
def clip(theta: FloatArray, lower: FloatArray, upper: FloatArray) -> None:
    """Put every parameter between its limits."""
    for a in range(theta.size):
        theta[a] = min(max(theta[a], lower[a]), upper[a])


@leaf()
def objective(model: Model, theta: FloatArray, room: Room) -> float:
    """Minus log likelihood, plus half the squares of what oversteps the prior's distances.

    Its gradient (`slope`) takes rounding as a normal error: pixels are to be points or bounds.
    """
    illuminate(model.optics, theta, room)
    value = -log_likelihood(model.pixels, room.light, 0.0, -np.inf)
    box, count = model.box, model.n_targets
    for k in range(count):
        for m in range(k):
            gap = box.separation - math.hypot(
                theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1]
            )
            if gap > 0.0:
                value += 0.5 * _STIFFNESS * gap * gap
    for axis in range(2):
        first, last = extremes(theta, axis, count)
        excess = theta[last] - theta[first] - box.extent
        if excess > 0.0:
            value += 0.5 * _STIFFNESS * excess * excess
    if theta.size > 3 * count:
        value += 0.5 * ((theta[3 * count] - box.background[0]) / box.background[1]) ** 2
    return value


@kernel()
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


@kernel()
def slope(
    model: Model, theta: FloatArray, room: Room, gradient: FloatArray, hessian: FloatArray
) -> None:
    """Downhill gradient and Gauss-Newton Hessian (lower triangle) of `objective`."""
    fisher(model.pixels, 0.0, theta, room, np.full(theta.size, 1e-12), hessian)
    force(model, 0.0, theta, room, gradient)
    box, count = model.box, model.n_targets
    for k in range(count):
        for m in range(k):
            dy, dx = theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1]
            distance = max(math.hypot(dy, dx), 1e-9)
            if distance < box.separation:
                push = _STIFFNESS * (box.separation - distance)
                u = (dy / distance, dx / distance)
                for a in range(2):
                    gradient[3 * k + a] += push * u[a]
                    gradient[3 * m + a] -= push * u[a]
                    for b in range(2):
                        bend = _STIFFNESS * u[a] * u[b]
                        hessian[3 * k + a, 3 * m + b] -= bend
                        if b <= a:
                            hessian[3 * k + a, 3 * k + b] += bend
                            hessian[3 * m + a, 3 * m + b] += bend
    for axis in range(2):
        first, last = extremes(theta, axis, count)
        excess = theta[last] - theta[first] - box.extent
        if excess > 0.0:
            gradient[last] -= _STIFFNESS * excess
            gradient[first] += _STIFFNESS * excess
            hessian[last, last] += _STIFFNESS
            hessian[first, first] += _STIFFNESS
            hessian[max(first, last), min(first, last)] -= _STIFFNESS
    if theta.size > 3 * count:
        b = 3 * count
        hessian[b, b] += 1.0 / box.background[1] ** 2
