"""Mean and covariance of a normal distribution cut off by linear bounds."""

from __future__ import annotations

import math

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.jit import leaf, part
from csunmix._kernels.linalg import copy, invert
from csunmix._validation import FloatArray

_SWEEPS = 30
_DAMPING = 0.9
_LEAST = 1e-12  # variance left by two bounds, of that without them
_SETTLED = 1e-2  # change of a mean, in standard deviations, that ends the sweeps
_SQRT_HALF = math.sqrt(0.5)
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)


@leaf()
def truncated_normal(a: float, b: float) -> tuple[float, float]:
    """Mean and variance of a standard normal variable that lies between `a` and `b`."""
    if a + b < 0.0:
        mean, variance = truncated_normal_above(-b, -a)
        return -mean, variance
    return truncated_normal_above(a, b)


@leaf()
def truncated_normal_above(a: float, b: float) -> tuple[float, float]:
    """The same where ``a + b >= 0``: all is told in units of the density at `a`, if above 0."""
    if a > 20.0 or b - a < 1e-3:
        # Exponential with rate a, cut at b - a.
        width = (b - a) * max(a, 1e-300)
        if width < 1e-2 or a <= 0.0:
            return 0.5 * (a + b), (b - a) ** 2 / 12.0
        if width > 30.0:
            return a + 1.0 / a - 2.0 / a**3, 1.0 / (a * a) - 6.0 / a**4
        cut = 1.0 / math.expm1(width)
        mean = 1.0 - width * cut
        return a + mean / a, (1.0 - width * width * cut * (1.0 + cut)) / (a * a)
    mass = 0.5 * (math.erfc(a * _SQRT_HALF) - math.erfc(b * _SQRT_HALF))
    at_a = _DENSITY * math.exp(-0.5 * a * a) / mass
    at_b = _DENSITY * math.exp(-0.5 * b * b) / mass if b < 38.0 else 0.0
    mean = at_a - at_b
    variance = 1.0 - mean * mean
    if a > -38.0:
        variance += a * at_a
    if at_b > 0.0:
        variance -= b * at_b
    return mean, max(variance, 1e-12)


@part()
def expectation_propagation(
    precision: FloatArray,
    shift: FloatArray,
    rows: FloatArray,
    low: FloatArray,
    high: FloatArray,
    scale: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Mean and covariance of ``exp(-x P x/2 + x shift)`` where ``low <= rows x <= high``.

    Each bound is a normal factor along its row (Minka 2001; Cunningham, Hennig & Lacoste-Julien
    2011, arXiv 1111.6832). `scale` is a standard deviation to start each factor from, inf for none;
    it is centred between its bounds. The first mean is NaN where the
    precision is singular.
    """
    n, d = rows.shape
    tau, nu = filled(n, 0.0), filled(n, 0.0)
    total, natural = np.empty((d, d)), np.empty(d)
    copy(shift, natural)
    for a in range(d):
        copy(precision[a], total[a])
    for i in range(n):
        if scale[i] < np.inf:
            tau[i] = 1.0 / scale[i] ** 2
            nu[i] = tau[i] * 0.5 * (low[i] + high[i])
            for a in range(d):
                natural[a] += nu[i] * rows[i, a]
                for b in range(d):
                    total[a, b] += tau[i] * rows[i, a] * rows[i, b]
    mean, covariance, along = filled(d, 0.0), np.empty((d, d)), np.empty(d)
    which, n_which = np.empty((n, d), np.int64), integers(n, 0)  # where rows are not 0
    for i in range(n):
        for a in range(d):
            if rows[i, a] != 0.0:
                which[i, n_which[i]] = a
                n_which[i] += 1
    if not invert(total, covariance):
        mean[0] = np.nan
        return mean, covariance
    for a in range(d):
        for b in range(d):
            mean[a] += covariance[a, b] * natural[b]
    for _ in range(_SWEEPS):
        largest = 0.0
        for i in range(n):
            variance, middle = 0.0, 0.0
            for a in range(d):
                along[a] = 0.0
            for k in range(n_which[i]):
                b = which[i, k]
                middle += rows[i, b] * mean[b]
                for a in range(d):
                    along[a] += rows[i, b] * covariance[b, a]
            for k in range(n_which[i]):
                variance += rows[i, which[i, k]] * along[which[i, k]]
            if variance <= 0.0:  # lost by rounding, bounds being too far off
                continue
            rest = 1.0 / variance - tau[i]
            if rest <= 1e-12 / variance:
                continue
            centre = (middle / variance - nu[i]) / rest
            spread = math.sqrt(1.0 / rest)
            m, v = truncated_normal((low[i] - centre) / spread, (high[i] - centre) / spread)
            m, v = centre + spread * m, max(v, _LEAST) / rest
            more = _DAMPING * (max(1.0 / v - rest, 0.0) - tau[i])
            add = _DAMPING * (m / v - centre * rest - nu[i])
            tau[i] += more
            nu[i] += add
            shrink = more / (1.0 + more * variance)
            pull = add - more * middle
            for a in range(d):
                mean[a] += pull * along[a] / (1.0 + more * variance)
                less = shrink * along[a]
                for b in range(d):
                    covariance[a, b] -= less * along[b]
            largest = max(largest, abs(pull) * math.sqrt(variance) / (1.0 + more * variance))
        if largest < _SETTLED:
            break
    return mean, covariance
