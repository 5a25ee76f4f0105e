"""Hamiltonian Monte Carlo over scenes, with the bounds of the prior as walls that reflect.

Between kicks by the gradient a scene moves on a straight line, along which the time of the next
wall is known: bounds of fluxes and places, the smallest separation. There the momentum is mirrored
(Afshar & Domke 2015, NeurIPS 28, 3007), so no step leaves the prior. The box or cell that the
targets lie in is drawn for every path, where the prior leaves several possible.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.jit import glue, leaf, part
from csunmix._kernels.linalg import add_up, cholesky, copy, invert
from csunmix._kernels.model import Model
from csunmix._kernels.prior import Box, densities, extremes, limits, log_level, log_prior
from csunmix._kernels.scene import (
    Pixels,
    Room,
    fisher,
    illuminate,
    log_likelihood,
    new_room,
    noise_variance,
    score,
    soft,
    soft_score,
    varying,
)
from csunmix._validation import FloatArray, IntArray

_BOUNCES = 100  # in one drift
_LENGTH = 2.5  # of a path at most, in standard deviations
_LEAPS = 40  # of a path at most


class Chain(NamedTuple):
    """A scene, how it moves, and (log likelihood, log prior of the background)."""

    theta: FloatArray
    momentum: FloatArray
    velocity: FloatArray
    gradient: FloatArray
    lower: FloatArray  # limits of the parameters on a path
    upper: FloatArray
    normal: FloatArray  # of a wall
    room: Room
    value: FloatArray


class Mass(NamedTuple):
    """Mass matrix: its Cholesky factor and its inverse."""

    factor: FloatArray  # (d, d), lower triangle
    inverse: FloatArray


@glue()
def new_chain(model: Model) -> Chain:
    """Space for one scene."""
    d = model.precision.size
    n_y, n_x = model.pixels.low.shape
    room = new_room(model.optics, model.n_targets, d, n_y, n_x)
    return Chain(
        np.empty(d),
        np.empty(d),
        np.empty(d),
        np.empty(d),
        np.empty(d),
        np.empty(d),
        np.empty(d),
        room,
        np.empty(2),
    )


@leaf()
def settle(model: Model, extra: float, theta: FloatArray, chain: Chain) -> None:
    """Put a chain at `theta`."""
    copy(theta, chain.theta)
    chain.value[1] = log_level(model.box, theta, model.n_targets)
    illuminate(model.optics, theta, chain.room)
    chain.value[0] = log_likelihood(model.pixels, chain.room.light, extra, -np.inf)
    force(model, extra, chain.theta, chain.room, chain.gradient)


@leaf()
def weigh(
    model: Model, extra: float, theta: FloatArray, order: IntArray, space: Chain, gram: FloatArray
) -> None:
    """Fisher information at `theta`, its targets in this order, for a mass matrix.

    It must not be that of the scene it is to move, or steps there and back would differ.
    """
    d = theta.size
    copy(theta, space.theta)
    for k in range(model.n_targets):
        for c in range(3):
            space.theta[3 * k + c] = theta[3 * order[k] + c]
    illuminate(model.optics, space.theta, space.room)
    fisher(model.pixels, extra, space.theta, space.room, gram)
    for a in range(d):
        for b in range(a):
            gram[b, a] = gram[a, b]
        gram[a, a] = (gram[a, a] + model.precision[a]) * (1.0 + 1e-9)


@part()
def to_mass(gram: FloatArray, mass: Mass) -> None:
    """Make a matrix the mass, or its diagonal where it is not positive definite."""
    d = gram.shape[0]
    if not invert(gram, mass.inverse):
        for a in range(d):
            for b in range(a):
                gram[a, b] = gram[b, a] = 0.0
    cholesky(gram, d, mass.factor)


@leaf()
def travel(model: Model, extra: float, leap: float, mass: Mass, chain: Chain, trial: Chain) -> bool:
    """One path from the scene of `chain`; whether its end, in `trial`, is to be taken."""
    d = chain.theta.size
    n_leaps = min(1 + int(_LENGTH * np.random.random() / leap), _LEAPS)
    leap *= 0.8 + 0.4 * np.random.random()
    for a in range(d):
        trial.theta[a], trial.gradient[a] = chain.theta[a], chain.gradient[a]
        trial.velocity[a] = np.random.normal()
    before = 0.0
    for a in range(d):
        s = 0.0
        for b in range(a + 1):
            s += mass.factor[a, b] * trial.velocity[b]
        trial.momentum[a] = s
        before += 0.5 * trial.velocity[a] ** 2
    limits(model.box, trial.theta, model.n_targets, model.box.cell == 1.0, trial.lower, trial.upper)
    draw_box(model.box, trial, model.n_targets)
    for n in range(n_leaps + 1):
        part = leap if 0 < n < n_leaps else 0.5 * leap
        for a in range(d):
            trial.momentum[a] += part * trial.gradient[a]
        speed(mass, trial)
        if n == n_leaps:
            break
        if not drift(model.box, model.n_targets, mass.inverse, leap, trial):
            return False
        illuminate(model.optics, trial.theta, trial.room)
        force(model, extra, trial.theta, trial.room, trial.gradient)
    if log_prior(model.box, trial.theta, model.n_targets) == -np.inf:  # by rounding
        return False
    trial.value[1] = log_level(model.box, trial.theta, model.n_targets)
    after = 0.0
    for a in range(d):
        after += 0.5 * trial.momentum[a] * trial.velocity[a]
    chance = math.log(np.random.random())
    floor = chance + chain.value[0] + chain.value[1] - before - trial.value[1] + after
    trial.value[0] = log_likelihood(model.pixels, trial.room.light, extra, floor)
    return bool(trial.value[0] >= floor)


@leaf()
def draw_box(box: Box, chain: Chain, count: int) -> None:
    """Draw the box or cell of the prior, given the targets in it, as limits of their places."""
    shared = 0.0 < box.cell < 1.0
    if shared:
        in_box, in_cell = densities(box, chain.theta, count)
        shared = (in_box + in_cell) * np.random.random() < in_cell
    if shared:
        limits(box, chain.theta, count, shared, chain.lower, chain.upper)
        return
    for axis in range(2):
        start, stop = box.area[axis, 0], box.area[axis, 1]
        if box.extent >= stop - start:
            continue
        lowest, highest = extremes(chain.theta, axis, count)
        low, high = chain.theta[lowest], chain.theta[highest]
        first, last = max(high - box.extent, start), min(low, stop - box.extent)
        corner = first + (last - first) * np.random.random()
        for k in range(count):
            chain.lower[3 * k + axis] = min(corner, low)
            chain.upper[3 * k + axis] = max(corner + box.extent, high)


@leaf(fastmath={"reassoc", "contract", "nsz"})
def speed(mass: Mass, chain: Chain) -> None:
    """Velocity from the momentum."""
    for a in range(chain.theta.size):
        s = 0.0
        for b in range(chain.theta.size):
            s += mass.inverse[a, b] * chain.momentum[b]
        chain.velocity[a] = s


@leaf()
def drift(box: Box, count: int, inverse: FloatArray, time: float, chain: Chain) -> bool:
    """Move on a straight line for `time`, mirrored at walls; False if they are too many."""
    theta, velocity, normal = chain.theta, chain.velocity, chain.normal
    for _ in range(_BOUNCES):
        until, k, m, axis = _next_wall(box, count, chain, time)
        for a in range(theta.size):
            theta[a] += until * velocity[a]
        if k < 0:
            return True
        time -= until
        for a in range(theta.size):
            normal[a] = 0.0
        if axis >= 0:
            normal[3 * k + axis] = 1.0
        else:
            for c in range(2):
                normal[3 * k + c] = theta[3 * k + c] - theta[3 * m + c]
                normal[3 * m + c] = -normal[3 * k + c]
        _mirror(normal, inverse, chain)
    return False


@leaf()
def _next_wall(box: Box, count: int, chain: Chain, time: float) -> tuple[float, int, int, int]:
    """Time of the next wall, the target or pair that meets it, and the axis (-1: separation).

    The first target is -1 if there is no wall in `time`.
    """
    theta, velocity = chain.theta, chain.velocity
    first, at, other, along = time, -1, -1, -1
    for k in range(count):
        for axis in range(3):
            a = 3 * k + axis
            if velocity[a] > 0.0:
                t = (chain.upper[a] - theta[a]) / velocity[a]
            elif velocity[a] < 0.0:
                t = (chain.lower[a] - theta[a]) / velocity[a]
            else:
                continue
            if t < first:
                first, at, other, along = max(t, 0.0), k, -1, axis
        for m in range(k):
            closing, rate, gap = 0.0, 0.0, -(box.separation**2)
            for axis in range(2):
                a, b = 3 * k + axis, 3 * m + axis
                away, v = theta[a] - theta[b], velocity[a] - velocity[b]
                gap += away * away
                closing -= away * v
                rate += v * v
            bend = closing * closing - rate * gap
            if closing > 0.0 and bend > 0.0:
                t = gap / (closing + math.sqrt(bend))
                if t < first:
                    first, at, other, along = max(t, 0.0), k, m, -1
    return first, at, other, along


@leaf()
def _mirror(normal: FloatArray, inverse: FloatArray, chain: Chain) -> None:
    """Reflect the momentum at a wall with this normal."""
    d = normal.size
    across, size = 0.0, 0.0
    for a in range(d):
        if normal[a] != 0.0:
            across += normal[a] * chain.velocity[a]
            for b in range(d):
                size += normal[a] * inverse[a, b] * normal[b]
    push = 2.0 * across / size
    for a in range(d):
        if normal[a] != 0.0:
            chain.momentum[a] -= push * normal[a]
            for b in range(d):
                chain.velocity[b] -= push * normal[a] * inverse[a, b]


@leaf(fastmath={"reassoc", "contract", "nsz"})
def force(model: Model, extra: float, theta: FloatArray, room: Room, gradient: FloatArray) -> None:
    """Gradient of the log posterior of the scene in the room; of rounding, see `smooth_scores`."""
    pixels, count = model.pixels, model.n_targets
    n_y, n_x = room.light.shape
    told = room.row
    smooth_scores(pixels, extra, room.light, told)
    for k in range(count):
        by_y, by_x, by_f = 0.0, 0.0, 0.0
        for r in range(room.y.shape[1]):
            for i in range(n_y):
                across, turned = 0.0, 0.0
                for j in range(n_x):
                    s = told[i * n_x + j]
                    across += s * room.x[k, r, j]
                    turned += s * room.x_slope[k, r, j]
                by_f += room.y[k, r, i] * across
                by_y += room.y_slope[k, r, i] * across
                by_x += room.y[k, r, i] * turned
        flux = theta[3 * k + 2]
        gradient[3 * k], gradient[3 * k + 1], gradient[3 * k + 2] = flux * by_y, flux * by_x, by_f
    if theta.size > 3 * count:
        b = theta.size - 1
        gradient[b] = add_up(told)
        gradient[b] -= (theta[b] - model.box.background[0]) / model.box.background[1] ** 2


@leaf()
def smooth_scores(pixels: Pixels, extra: float, light: FloatArray, out: FloatArray) -> None:
    """Derivative of each pixel's log likelihood by its light.

    Rounding is taken as a normal error, but for intervals that are `soft`.
    """
    n_y, n_x = light.shape
    varies, change = varying(pixels), 0.0
    variance = pixels.variance + extra
    of_point = 1.0 / variance  # the commonest width
    for i in range(n_y):
        for j in range(n_x):
            low, high, at = pixels.low[i, j], pixels.high[i, j], light[i, j]
            if varies:
                variance = extra + noise_variance(pixels, at)
                change = pixels.per_light if at > 0.0 else 0.0
            elif low == high:
                out[i * n_x + j] = of_point * (low - at)
                continue
            width = high - low
            if width == np.inf:
                out[i * n_x + j] = score(low, high, at, variance, change)
            elif soft(low, high, variance, extra):
                out[i * n_x + j] = soft_score(low, high, at, variance)
            else:
                blurred = variance + width * width / 12.0
                r = 0.5 * (low + high) - at
                out[i * n_x + j] = r / blurred
                if varies:
                    out[i * n_x + j] += 0.5 * change * (r * r / blurred - 1.0) / blurred
