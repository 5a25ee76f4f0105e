"""Importance sampling of a posterior: densities of scenes there and in mixtures around it."""

from __future__ import annotations

import math

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.jit import kernel, leaf
from csunmix._kernels.labels import Pairs, new_pairs, pair
from csunmix._kernels.model import Model
from csunmix._kernels.modes import Modes
from csunmix._kernels.prior import log_prior
from csunmix._kernels.scene import glow, log_likelihood, new_room
from csunmix._validation import FloatArray, IntArray

DEGREES = 8
"""Of freedom of the t distributions: tails that hold what is not normal."""

_BLOCK = 64  # scenes that go through a step side by side
NEVER = 50.0
"""Log likelihood, and one for every parameter, that a scene which weighs nothing lacks."""


@kernel()
def scatter(model: Model, modes: Modes, of: IntArray, scenes: FloatArray) -> FloatArray:
    """Turn unit `scenes` (n, d), in place, into ones around the modes `of` (n,).

    Returns the log of likelihood times prior of each, the latter without ``(2 pi)^(d/2)``: -inf
    where its targets do not lie next to those of the mode, and where a scene weighs nothing beside
    one before it.
    """
    n, d = scenes.shape
    logs = filled(n, -np.inf)
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    pairs, floor = new_pairs(model.n_targets), -np.inf
    for i in range(n):
        mean, factor, scene = modes.mean[of[i]], modes.factor[of[i]], scenes[i]
        for a in range(d - 1, -1, -1):
            s = mean[a]
            for b in range(a + 1):
                s += factor[a, b] * scene[b]
            scene[a] = s
        prior = log_prior(model.box, scene, model.n_targets)
        if prior == -np.inf or not pair(scene, mean, pairs):
            continue
        glow(model.optics, scene, room)
        value = log_likelihood(model.pixels, room.light, 0.0, floor)
        if value >= floor:
            floor = max(floor, value - NEVER - d)
            logs[i] = prior + value
    return logs


@kernel(unrolled=True, fastmath={"reassoc", "contract", "nsz"})
def add_density(
    mean: FloatArray,
    inverse: FloatArray,
    number: FloatArray,
    unit: float,
    count: int,
    thetas: FloatArray,
    total: FloatArray,
) -> None:
    """Add densities at scenes (n, d) of t distributions (m,), times `number`, to `total` (n,).

    They have the means (m, d), and the inverses (m, d, d) of lower Cholesky factors of their
    scales, 0 above the diagonal; densities are in units of ``exp(unit) (2 pi)^(-d/2)``. Of each it
    is that of the one order of a scene's targets in which they lie next to those of the mean.
    Scenes go side by side through every step, so that steps are vectorised.
    """
    m, d = mean.shape
    scenes, away = np.empty((d, _BLOCK)), np.empty((d, _BLOCK))
    rows, distance2 = np.empty((3, _BLOCK)), np.empty(_BLOCK)
    row, power = rows[0], rows[1]
    level, reach2, pairs = np.empty(m), np.empty(m), new_pairs(count)
    for k in range(m):
        level[k] = math.exp(log_level(inverse[k], number[k]) - unit)
        reach2[k] = _sure_reach(mean[k], count) ** 2
    for start in range(0, thetas.shape[0], _BLOCK):
        size = min(_BLOCK, thetas.shape[0] - start)
        for i in range(size):
            for a in range(d):
                scenes[a, i] = thetas[start + i, a]
        for k in range(m):
            for a in range(d):
                for i in range(_BLOCK):
                    away[a, i] = scenes[a, i] - mean[k, a]
            _reorder(mean[k], reach2[k], pairs, thetas[start : start + size], away, row)
            _square(inverse[k], count, away, rows, distance2)
            for i in range(_BLOCK):
                power[i] = 1.0 + distance2[i] / DEGREES
                row[i] = math.sqrt(power[i]) if (DEGREES + d) % 2 else 1.0
            for _ in range((DEGREES + d) // 2):
                for i in range(_BLOCK):
                    row[i] *= power[i]
            for i in range(size):
                total[start + i] += level[k] / row[i]


@leaf(fastmath={"reassoc", "contract", "nsz"})
def _square(
    inverse: FloatArray, count: int, away: FloatArray, rows: FloatArray, distance2: FloatArray
) -> None:
    """Squared lengths (n,) of ``inverse away`` (d, n), three rows and columns at a time."""
    first, second, third = rows[0], rows[1], rows[2]
    for i in range(distance2.size):
        distance2[i] = 0.0
    for k in range(count):
        for i in range(distance2.size):
            first[i] = second[i] = third[i] = 0.0
        for m in range(k + 1):
            a, b = 3 * k, 3 * m
            y, x, f = away[b], away[b + 1], away[b + 2]
            yy, yx, yf = inverse[a, b], inverse[a, b + 1], inverse[a, b + 2]
            xy, xx, xf = inverse[a + 1, b], inverse[a + 1, b + 1], inverse[a + 1, b + 2]
            fy, fx, ff = inverse[a + 2, b], inverse[a + 2, b + 1], inverse[a + 2, b + 2]
            for i in range(distance2.size):
                first[i] += yy * y[i] + yx * x[i] + yf * f[i]
                second[i] += xy * y[i] + xx * x[i] + xf * f[i]
                third[i] += fy * y[i] + fx * x[i] + ff * f[i]
        for i in range(distance2.size):
            distance2[i] += first[i] * first[i] + second[i] * second[i] + third[i] * third[i]
    for a in range(3 * count, inverse.shape[0]):
        for i in range(distance2.size):
            first[i] = 0.0
        for b in range(a + 1):
            for i in range(distance2.size):
                first[i] += inverse[a, b] * away[b, i]
        for i in range(distance2.size):
            distance2[i] += first[i] * first[i]


@kernel(_nrt=False)
def log_level(inverse: FloatArray, number: float) -> float:
    """Log density of a t distribution at its mean, times `number`, in ``(2 pi)^(-d/2)``."""
    d = inverse.shape[0]
    log = float(math.log(number) - 0.5 * d * math.log(0.5 * DEGREES))
    log += math.lgamma(0.5 * (DEGREES + d)) - math.lgamma(0.5 * DEGREES)
    for a in range(d):
        log += math.log(inverse[a, a])
    return log


@leaf()
def _sure_reach(mean: FloatArray, count: int) -> float:
    """How far targets may be from those of `mean` and surely lie next to them."""
    least = np.inf
    for k in range(count):
        for m in range(k):
            dy, dx = mean[3 * k] - mean[3 * m], mean[3 * k + 1] - mean[3 * m + 1]
            least = min(least, math.hypot(dy, dx))
    return float(0.5 * least)


@leaf()
def _reorder(
    mean: FloatArray,
    reach2: float,
    pairs: Pairs,
    thetas: FloatArray,
    away: FloatArray,
    farthest: FloatArray,
) -> None:
    """Put what scenes (n, d) differ by from `mean`, in `away` (d, n), into the order next to it."""
    for i in range(farthest.size):
        farthest[i] = 0.0
    count = pairs.order.size
    for k in range(count):
        for i in range(farthest.size):
            d2 = away[3 * k, i] ** 2 + away[3 * k + 1, i] ** 2
            farthest[i] = max(farthest[i], d2)
    for i in range(thetas.shape[0]):
        if farthest[i] >= reach2 and not pair(thetas[i], mean, pairs):
            for n in range(count):
                for c in range(3):
                    away[3 * n + c, i] = thetas[i, 3 * pairs.order[n] + c] - mean[3 * n + c]
