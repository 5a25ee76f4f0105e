"""The integral of a posterior over all scenes, by importance sampling."""

from __future__ import annotations

import math

import numba
import numpy as np

from csunmix._kernels.billiards import nearest
from csunmix._kernels.hops import Modes
from csunmix._kernels.model import Model
from csunmix._kernels.prior import log_prior
from csunmix._kernels.scene import illuminate, log_likelihood, new_room
from csunmix._validation import FloatArray

_DEGREES = 4.0  # of freedom of the t distributions: tails that hold what is not normal


@numba.njit(cache=True, nogil=True)
def log_integral(model: Model, modes: Modes, share: FloatArray, n_draws: int, seed: int) -> float:
    """Log integral of likelihood and prior over the scenes in one order of their targets.

    That order is the one in which targets lie next to those of the first mode. Draws are from t
    distributions with the moments of the modes; the integral is in units of ``(2 pi)^(d/2)``, and
    -inf where no draw keeps to the prior.
    """
    np.random.seed(seed)
    m, d = modes.mean.shape
    theta, unit, logs = np.empty(d), np.empty(d), np.empty(m)
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    same, upto = np.arange(model.n_targets), np.cumsum(share)
    level = np.empty(m)  # log density at the mean of each
    for k in range(m):
        level[k] = math.log(share[k]) + math.lgamma(0.5 * (_DEGREES + d))
        level[k] -= math.lgamma(0.5 * _DEGREES) + 0.5 * d * math.log(0.5 * _DEGREES)
        for a in range(d):
            level[k] += math.log(modes.inverse[k, a, a])
    top, total = -np.inf, 0.0
    for _ in range(n_draws):
        k = min(np.searchsorted(upto, np.random.random() * upto[m - 1]), m - 1)
        spread = math.sqrt(0.5 * _DEGREES / np.random.gamma(0.5 * _DEGREES))
        for a in range(d):
            unit[a] = spread * np.random.normal()
        for a in range(d):
            theta[a] = modes.mean[k, a]
            for b in range(a + 1):
                theta[a] += modes.factor[k, a, b] * unit[b]
        log_weight = log_prior(model.box, theta, model.n_targets)
        if log_weight == -np.inf:
            continue
        if not (nearest(theta, modes.theta[0], model.n_targets) == same).all():
            continue
        illuminate(model.optics, theta, room)
        log_weight += log_likelihood(model.pixels, room.light, 0.0)
        for j in range(m):
            logs[j] = level[j] - 0.5 * (_DEGREES + d) * math.log1p(
                _distance2(modes, j, theta) / _DEGREES
            )
        most = logs.max()
        log_weight -= most + math.log(np.exp(logs - most).sum())
        if log_weight > top:
            total, top = total * math.exp(top - log_weight), log_weight
        total += math.exp(log_weight - top)
    return top + math.log(total / n_draws) if total > 0.0 else -np.inf


@numba.njit(cache=True, nogil=True)
def _distance2(modes: Modes, k: int, theta: FloatArray) -> float:
    """Squared distance of a scene from the mean of a mode, in its standard deviations."""
    total = 0.0
    for a in range(theta.size):
        s = 0.0
        for b in range(a + 1):
            s += modes.inverse[k, a, b] * (theta[b] - modes.mean[k, b])
        total += s * s
    return total
