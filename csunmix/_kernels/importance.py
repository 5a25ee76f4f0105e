"""Importance sampling of a posterior around its optima."""

from __future__ import annotations

import math

import numpy as np

from csunmix._kernels.billiards import nearest
from csunmix._kernels.jit import kernel, leaf
from csunmix._kernels.linalg import copy, effective, to_shares
from csunmix._kernels.model import Model
from csunmix._kernels.modes import Modes
from csunmix._kernels.prior import log_prior
from csunmix._kernels.scene import illuminate, log_likelihood, new_room
from csunmix._validation import FloatArray

_DEGREES = 8.0  # of freedom of the t distributions: tails that hold what is not normal
_TINY = 1e-300  # least share of a mode, so that its logarithm is finite
_BLOCK = 100  # draws between two looks at how many count


@kernel()
def importance(
    model: Model, modes: Modes, share: FloatArray, most: int, enough: float, seed: int
) -> tuple[FloatArray, FloatArray, float]:
    """Scenes (n, d) of one order of the targets, their weights (n,), and a log integral.

    Draws are from t distributions with the means and scales of the modes, `most` of them or as many
    as it takes until `enough` count, ``(sum w)^2 / sum w^2``. The order is that in which targets
    lie next to those of the first mode. The integral is that of likelihood and prior over these
    scenes, in units of ``(2 pi)^(d/2)``; -inf where no draw keeps to the prior.
    """
    np.random.seed(seed)
    d = modes.mean.shape[1]
    thetas, logs = np.empty((most, d)), np.empty(most)
    theta, level = np.empty(d), _levels(modes, share)
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    kept, drawn = 0, 0
    while drawn < most:
        drawn += 1
        _draw(modes, share, theta)
        prior = log_prior(model.box, theta, model.n_targets)
        if prior > -np.inf and _in_order(theta, modes.theta[0], model.n_targets):
            illuminate(model.optics, theta, room)
            logs[kept] = prior + log_likelihood(model.pixels, room.light, 0.0)
            logs[kept] -= _log_density(modes, level, theta)
            copy(theta, thetas[kept])
            kept += 1
        if drawn % _BLOCK == 0 and effective(logs[:kept]) >= enough:
            break
    if kept == 0:
        return thetas[:0], logs[:0], -np.inf
    weight = np.empty(kept)
    total = to_shares(logs[:kept], weight)
    return thetas[:kept], weight, total - math.log(drawn)


@kernel()
def _levels(modes: Modes, share: FloatArray) -> FloatArray:
    """Log densities at the means."""
    m, d = modes.mean.shape
    half = 0.5 * _DEGREES
    level = np.empty(m)
    for k in range(m):
        level[k] = math.log(max(share[k], _TINY)) - 0.5 * d * math.log(half)
        level[k] += math.lgamma(half + 0.5 * d) - math.lgamma(half)
        for a in range(d):
            level[k] += math.log(modes.inverse[k, a, a])
    return level


@leaf()
def _draw(modes: Modes, share: FloatArray, theta: FloatArray) -> None:
    k, left = 0, np.random.random()
    while k < share.size - 1 and left > share[k]:
        left -= share[k]
        k += 1
    spread = math.sqrt(0.5 * _DEGREES / np.random.gamma(0.5 * _DEGREES))
    copy(modes.mean[k], theta)
    for b in range(theta.size):
        z = spread * np.random.normal()
        for a in range(b, theta.size):
            theta[a] += modes.factor[k, a, b] * z


@kernel()
def _in_order(theta: FloatArray, like: FloatArray, count: int) -> bool:
    """Whether targets lie next to those of `like`, see `nearest`."""
    for k in range(count):
        own = (theta[3 * k] - like[3 * k]) ** 2 + (theta[3 * k + 1] - like[3 * k + 1]) ** 2
        for m in range(count):
            d2 = (theta[3 * m] - like[3 * k]) ** 2 + (theta[3 * m + 1] - like[3 * k + 1]) ** 2
            if d2 < own:
                order, same = nearest(theta, like, count), True
                for n in range(count):
                    same = same and order[n] == n
                return same
    return True


@leaf(fastmath={"reassoc", "contract", "nsz"})
def _log_density(modes: Modes, level: FloatArray, theta: FloatArray) -> float:
    m, d = modes.mean.shape
    top, total = -np.inf, 0.0
    for k in range(m):
        distance2 = 0.0
        for a in range(d):
            s = 0.0
            for b in range(a + 1):
                s += modes.inverse[k, a, b] * (theta[b] - modes.mean[k, b])
            distance2 += s * s
        log = level[k] - 0.5 * (_DEGREES + d) * math.log1p(distance2 / _DEGREES)
        if log > top:
            total, top = total * math.exp(top - log), log
        total += math.exp(log - top)
    return top + math.log(total)
