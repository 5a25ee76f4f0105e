"""The joint fit of all targets of a scene: bounded Levenberg-Marquardt from many starts."""

from __future__ import annotations

import math

import numba
import numpy as np

from csunmix._kernels.billiards import force, nearest
from csunmix._kernels.linalg import cholesky, cholesky_solve
from csunmix._kernels.model import Model
from csunmix._kernels.prior import draw_scene, limits, log_prior
from csunmix._kernels.scene import (
    Room,
    differentiate,
    fisher,
    illuminate,
    log_likelihood,
    new_room,
)
from csunmix._validation import FloatArray, IntArray

_STIFFNESS = 1.0 / 0.003**2  # 1/px^2, of the limits to how targets lie to one another
_DAMPING = (1e-9, 1e-3, 1e9)  # least, first and largest
_FLAT = 1e-9  # decrease of the objective that ends a fit
_SAME = 0.003  # px, between targets of rough fits that are the same
_HOPELESS = 50.0  # objective of a rough fit above the best from where it is dropped


@numba.njit(cache=True, nogil=True)
def search(
    model: Model, n_starts: int, rough_iter: int, max_iter: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Optima (n, d) that random starts end in, the best first, and their objectives.

    A start whose rough fit ends at an optimum that another led to, or far above the best, is
    dropped. The objective is inf where no scene was drawn.
    """
    np.random.seed(seed)
    d = model.precision.size
    thetas, values = np.zeros((n_starts, d)), np.full(n_starts, np.inf)
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    for s in range(n_starts):
        if draw_scene(model.box, model.n_targets, thetas[s]):
            values[s] = descend(model, thetas[s], rough_iter, room)
    order = np.argsort(values)
    kept = np.empty(n_starts, np.int64)
    n_kept = 0
    for s in order:
        if n_kept > 0 and not values[s] < values[kept[:n_kept]].min() + _HOPELESS:
            break
        if not _known(model.n_targets, thetas, kept[:n_kept], thetas[s]):
            if values[s] < np.inf:
                values[s] = descend(model, thetas[s], max_iter, room)
            kept[n_kept] = s
            n_kept += 1
    order = kept[:n_kept]
    order = order[np.argsort(values[order])]
    return thetas[order], values[order]


@numba.njit(cache=True, nogil=True)
def _known(count: int, thetas: FloatArray, kept: IntArray, theta: FloatArray) -> bool:
    """Whether the targets of `theta` are where those of a scene kept before are."""
    for s in kept:
        order = nearest(theta, thetas[s], count)
        away = 0.0
        for k in range(count):
            for axis in range(2):
                apart = abs(theta[3 * order[k] + axis] - thetas[s, 3 * k + axis])
                away = max(away, apart)
        if away < _SAME:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def descend(model: Model, theta: FloatArray, max_iter: int, room: Room) -> float:
    """Fit from `theta`, in place; returns the objective, see `objective`."""
    d = theta.size
    lower, upper = limits(model.box, theta, model.n_targets)
    clip(theta, lower, upper)
    gradient, hessian = np.empty(d), np.empty((d, d))
    damped, factor, reduced, step = np.empty((d, d)), np.empty((d, d)), np.empty(d), np.empty(d)
    free, trial = np.empty(d, np.int64), np.empty(d)
    value = objective(model, theta, room)
    damping = _DAMPING[1]
    for _ in range(max_iter):
        slope(model, theta, room, gradient, hessian)
        n_free = 0
        for a in range(d):
            held = theta[a] <= lower[a] and gradient[a] < 0.0
            held = held or (theta[a] >= upper[a] and gradient[a] > 0.0)
            if not held:
                free[n_free] = a
                n_free += 1
        if n_free == 0:
            break
        better = False
        while damping < _DAMPING[2]:
            for a in range(n_free):
                for b in range(a + 1):
                    damped[a, b] = hessian[max(free[a], free[b]), min(free[a], free[b])]
                damped[a, a] *= 1.0 + damping
                reduced[a] = gradient[free[a]]
            if cholesky(damped, n_free, factor) == n_free:
                cholesky_solve(factor, n_free, reduced, step)
                trial[:] = theta
                for a in range(n_free):
                    trial[free[a]] += step[a]
                clip(trial, lower, upper)
                new = objective(model, trial, room)
                if new < value:
                    better = value - new > _FLAT
                    theta[:], value = trial, new
                    damping = max(damping / 5.0, _DAMPING[0])
                    break
            damping *= 4.0
        if not better:
            break
    illuminate(model.optics, theta, room)
    return value


@numba.njit(cache=True, nogil=True)
def clip(theta: FloatArray, lower: FloatArray, upper: FloatArray) -> None:
    """Put every parameter between its limits."""
    for a in range(theta.size):
        theta[a] = min(max(theta[a], lower[a]), upper[a])


@numba.njit(cache=True, nogil=True)
def objective(model: Model, theta: FloatArray, room: Room) -> float:
    """Minus log likelihood, plus half the squares of what oversteps the prior's distances.

    Its gradient (`slope`) takes rounding as a normal error: pixels are to be points or bounds.
    """
    illuminate(model.optics, theta, room)
    value = -log_likelihood(model.pixels, room.light, 0.0)
    box, count = model.box, model.n_targets
    for k in range(count):
        for m in range(k):
            gap = box.separation - math.hypot(
                theta[3 * k] - theta[3 * m], theta[3 * k + 1] - theta[3 * m + 1]
            )
            if gap > 0.0:
                value += 0.5 * _STIFFNESS * gap * gap
    for axis in range(2):
        excess = theta[axis : 3 * count : 3].max() - theta[axis : 3 * count : 3].min() - box.extent
        if excess > 0.0:
            value += 0.5 * _STIFFNESS * excess * excess
    if theta.size > 3 * count:
        value += 0.5 * ((theta[3 * count] - box.background[0]) / box.background[1]) ** 2
    return value


@numba.njit(cache=True, nogil=True)
def heights(model: Model, thetas: FloatArray) -> FloatArray:
    """Log posterior densities (n,) of scenes (n, d), but for a constant."""
    out = np.empty(thetas.shape[0])
    room = new_room(model.optics, model.n_targets, thetas.shape[1], *model.pixels.low.shape)
    for n in range(out.size):
        out[n] = log_prior(model.box, thetas[n], model.n_targets)
        if out[n] > -np.inf:
            illuminate(model.optics, thetas[n], room)
            out[n] += log_likelihood(model.pixels, room.light, 0.0)
    return out


@numba.njit(cache=True, nogil=True)
def slope(
    model: Model, theta: FloatArray, room: Room, gradient: FloatArray, hessian: FloatArray
) -> None:
    """Downhill gradient and Gauss-Newton Hessian (lower triangle) of `objective`."""
    illuminate(model.optics, theta, room)
    differentiate(theta, room)
    fisher(model.pixels, 0.0, room, np.full(theta.size, 1e-12), hessian)
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
        along = theta[axis : 3 * count : 3]
        first, last = 3 * along.argmin() + axis, 3 * along.argmax() + axis
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
