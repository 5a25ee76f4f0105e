"""Sequential Monte Carlo over scenes: from the prior to the posterior as the noise shrinks.

Waste-free (Dau & Chopin 2022, JRSS B 84, 114): every stage starts a few chains from resampled
particles and keeps all their states as the particles of the next.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np

from csunmix._kernels.prior import Box, draw_scene, log_prior
from csunmix._kernels.scene import (
    Optics,
    Pixels,
    Room,
    differentiate,
    fisher,
    illuminate,
    log_likelihood,
    log_scales,
    new_room,
    place,
    shine,
)
from csunmix._validation import FloatArray, IntArray

# Log variances, those of the pixels' noise taken as 0: one that leaves nothing of the image, and
# one that changes nothing.
_HOT = 60.0
_COLD = -8.0
_HALVINGS = 16
_HOPELESS = -12.0  # log ratio below which a step is not looked at further
_ACCEPTANCE = 0.25
_SPREAD = 0.5  # of the logarithm of a step's length
_FIRST_STEPS = 4  # of every chain of the first stage
_PROBES = 300  # particles that choose the next noise


class Chain(NamedTuple):
    """A scene, its image, its Fisher information, and (log likelihood, log prior)."""

    theta: FloatArray
    room: Room
    gram: FloatArray
    value: FloatArray


class Particles(NamedTuple):
    """All states of a stage."""

    theta: FloatArray  # (n, d)
    light: FloatArray  # (n, n_y, n_x)
    loglik: FloatArray  # (n,)


class Model(NamedTuple):
    """What the posterior is of."""

    optics: Optics
    pixels: Pixels
    box: Box
    precision: FloatArray  # (d,), rough inverse variance of the prior
    n_targets: int


@numba.njit(cache=True, nogil=True)
def sample(
    model: Model, n_chains: int, n_steps: int, keep: float, max_stages: int, seed: int
) -> tuple[FloatArray, float, int]:
    """Particles (n_chains n_steps, d) of the posterior, log evidence, and stages taken.

    The steps are rounded up to a multiple of those of the first stage. The log evidence is -inf
    where no scene keeps to the prior.
    """
    np.random.seed(seed)
    n_steps += -n_steps % _FIRST_STEPS
    d, n = model.precision.size, n_chains * n_steps
    n_y, n_x = model.pixels.low.shape
    particles = Particles(np.empty((n, d)), np.empty((n, n_y, n_x)), np.empty(n))
    chain, trial = _new_chain(model), _new_chain(model)
    starts = np.empty((n // _FIRST_STEPS, d))  # many short chains make the prior
    for c in range(starts.shape[0]):
        if not draw_scene(model.box, model.n_targets, starts[c]):
            return particles.theta, -np.inf, 0
    scales = _first_scales(model.n_targets)
    unit = math.log(model.pixels.variance)
    log_extra, coldest = unit + _HOT, unit + _COLD
    base = log_scales(model.pixels, math.exp(log_extra))
    log_evidence = base
    logs = np.empty(n)
    for stage in range(max_stages):
        extra = math.exp(log_extra) if log_extra > coldest else 0.0
        _move(model, extra, n // starts.shape[0], starts, scales, chain, trial, particles)
        if stage == 0:
            log_evidence += _log_mean(particles.loglik)
        if extra == 0.0:
            return particles.theta, log_evidence, stage + 1
        log_extra = _cool(model.pixels, particles, keep, log_extra, coldest)
        extra = math.exp(log_extra) if log_extra > coldest else 0.0
        for i in range(n):
            logs[i] = log_likelihood(model.pixels, particles.light[i], extra) - particles.loglik[i]
        scale = log_scales(model.pixels, extra)
        log_evidence += _log_mean(logs) + scale - base
        base = scale
        parents = _resample(logs, n_chains)
        starts = starts[:n_chains]
        for c in range(n_chains):
            starts[c] = particles.theta[parents[c]]
    return particles.theta, log_evidence, max_stages


@numba.njit(cache=True, nogil=True)
def explore(model: Model, start: FloatArray, n_blocks: int, n_steps: int, seed: int) -> FloatArray:
    """States (n_blocks n_steps, d) of one chain from `start`; steps are adapted block by block."""
    np.random.seed(seed)
    d = model.precision.size
    n_y, n_x = model.pixels.low.shape
    chain, trial = _new_chain(model), _new_chain(model)
    scales = _first_scales(model.n_targets)
    particles = Particles(np.empty((n_steps, d)), np.empty((n_steps, n_y, n_x)), np.empty(n_steps))
    states, at = np.empty((n_blocks * n_steps, d)), np.empty((1, d))
    at[0] = start
    for block in range(n_blocks):
        _move(model, 0.0, n_steps, at, scales, chain, trial, particles)
        states[block * n_steps : (block + 1) * n_steps] = particles.theta
        at[0] = particles.theta[n_steps - 1]
    return states


@numba.njit(cache=True, nogil=True)
def _first_scales(count: int) -> FloatArray:
    """Lengths of the steps of any number of targets, before they are adapted."""
    return np.asarray(1.5 / np.sqrt(3.0 * np.arange(count + 1) + 1.0))


@numba.njit(cache=True, nogil=True)
def _new_chain(model: Model) -> Chain:
    d = model.precision.size
    n_y, n_x = model.pixels.low.shape
    room = new_room(model.optics, model.n_targets, d, n_y, n_x)
    return Chain(np.empty(d), room, np.zeros((d, d)), np.empty(2))


@numba.njit(cache=True, nogil=True)
def _move(
    model: Model,
    extra: float,
    n_steps: int,
    starts: FloatArray,
    scales: FloatArray,
    chain: Chain,
    trial: Chain,
    particles: Particles,
) -> None:
    """Run a chain from every start and keep all its states; adapt the lengths of the steps."""
    count, d = model.n_targets, model.precision.size
    order, index = np.arange(count), np.empty(d, np.int64)
    lower, other, step = np.empty((d, d)), np.empty((d, d)), np.empty(d)
    taken, tried = np.zeros(count + 1), np.zeros(count + 1)
    for c in range(starts.shape[0]):
        chain.theta[:] = starts[c]
        chain.value[1] = log_prior(model.box, chain.theta, count)
        illuminate(model.optics, chain.theta, chain.room)
        chain.value[0] = log_likelihood(model.pixels, chain.room.light, extra)
        _inform(model, extra, chain)
        for s in range(n_steps):
            size = 1 + np.random.randint(0, count)
            block = _choose(order, size, d, index)
            tried[size] += 1.0
            if _step(model, extra, scales[size], index[:block], lower, other, step, chain, trial):
                taken[size] += 1.0
                chain, trial = trial, chain
            i = c * n_steps + s
            particles.theta[i] = chain.theta
            particles.light[i] = chain.room.light
            particles.loglik[i] = chain.value[0]
    for size in range(1, count + 1):
        if tried[size] > 0.0:
            change = 2.0 * (taken[size] / tried[size] - _ACCEPTANCE)
            scales[size] = min(max(scales[size] * math.exp(change), 0.02), 2.5)


@numba.njit(cache=True, nogil=True)
def _inform(model: Model, extra: float, chain: Chain) -> None:
    differentiate(chain.theta, chain.room)
    fisher(model.pixels, extra, chain.room, model.precision, chain.gram)


@numba.njit(cache=True, nogil=True)
def _choose(order: IntArray, size: int, d: int, index: IntArray) -> int:
    """Choose `size` targets at random; their parameters, and the background, into `index`."""
    for a in range(size):
        b = a + np.random.randint(0, order.size - a)
        order[a], order[b] = order[b], order[a]
        for c in range(3):
            index[3 * a + c] = 3 * order[a] + c
    if d > 3 * order.size:
        index[3 * size] = d - 1
        return 3 * size + 1
    return 3 * size


@numba.njit(cache=True, nogil=True)
def _step(
    model: Model,
    extra: float,
    scale: float,
    index: IntArray,
    lower: FloatArray,
    other: FloatArray,
    step: FloatArray,
    chain: Chain,
    trial: Chain,
) -> bool:
    """A Metropolis-Hastings step of some parameters, scaled by the Fisher information where it is.

    The proposal is normal with covariance ``s^2 G^-1``, G at the start; the ratio accounts for G
    being another one at the end. Returns whether it is taken; `trial` then holds the new state.
    """
    size = index.size
    length = scale * math.exp(_SPREAD * np.random.normal())
    log_ratio = -_factor(chain.gram, index, lower)
    trial.theta[:] = chain.theta
    for a in range(size):
        step[a] = np.random.normal()
        log_ratio += 0.5 * step[a] * step[a]
    for a in range(size - 1, -1, -1):
        for b in range(a + 1, size):
            step[a] -= lower[b, a] * step[b]
        step[a] /= lower[a, a]
    for a in range(size):
        trial.theta[index[a]] += length * step[a]
    trial.value[1] = log_prior(model.box, trial.theta, model.n_targets)
    if trial.value[1] == -np.inf:
        return False
    _shine(model, index, chain.room, trial)
    trial.value[0] = log_likelihood(model.pixels, trial.room.light, extra)
    posterior = trial.value[0] + trial.value[1] - chain.value[0] - chain.value[1]
    if posterior < _HOPELESS:
        return False
    _inform(model, extra, trial)
    log_ratio += posterior + _factor(trial.gram, index, other)
    for a in range(size):
        back = 0.0
        for b in range(a, size):
            back += other[b, a] * step[b]
        log_ratio -= 0.5 * back * back
    return log_ratio >= 0.0 or np.random.random() < math.exp(log_ratio)


@numba.njit(cache=True, nogil=True)
def _shine(model: Model, index: IntArray, before: Room, trial: Chain) -> None:
    """Image of the trial, from the factors of the targets that have not moved."""
    room = trial.room
    room.y[:] = before.y
    room.x[:] = before.x
    room.y_slope[:] = before.y_slope
    room.x_slope[:] = before.x_slope
    for a in range(index.size // 3):
        place(model.optics, trial.theta, index[3 * a] // 3, room)
    shine(trial.theta, room)


@numba.njit(cache=True, nogil=True)
def _factor(gram: FloatArray, index: IntArray, lower: FloatArray) -> float:
    """Cholesky factor of the block `index` of `gram` (lower triangle); half its log determinant."""
    total = 0.0
    for a in range(index.size):
        for b in range(a + 1):
            i, j = max(index[a], index[b]), min(index[a], index[b])
            v = gram[i, j]
            for c in range(b):
                v -= lower[a, c] * lower[b, c]
            if b < a:
                lower[a, b] = v / lower[b, b]
            else:
                v = math.sqrt(max(v, 1e-12 * gram[i, i]))
                lower[a, a] = v
                total += math.log(v)
    return total


@numba.njit(cache=True, nogil=True)
def _cool(
    pixels: Pixels, particles: Particles, keep: float, log_extra: float, coldest: float
) -> float:
    """Log of the next variance: the smallest that leaves `keep` of the sample effective."""
    n = particles.loglik.size
    stride = max(1, n // _PROBES)
    logs = np.empty((n + stride - 1) // stride)
    low, high = coldest, log_extra
    for halving in range(_HALVINGS):
        middle = coldest if halving == 0 else 0.5 * (low + high)
        extra = math.exp(middle) if middle > coldest else 0.0
        for i in range(logs.size):
            before = particles.loglik[i * stride]
            logs[i] = log_likelihood(pixels, particles.light[i * stride], extra) - before
        share = _effective(logs)
        if share >= keep:
            high = middle
            if halving == 0 or share < 1.1 * keep:
                break
        else:
            low = middle
    return high


@numba.njit(cache=True, nogil=True)
def _effective(logs: FloatArray) -> float:
    """Effective share of a sample with log weights `logs`."""
    top, total, squares = logs.max(), 0.0, 0.0
    for i in range(logs.size):
        w = math.exp(logs[i] - top)
        total += w
        squares += w * w
    return float(total * total / (squares * logs.size))


@numba.njit(cache=True, nogil=True)
def _log_mean(logs: FloatArray) -> float:
    top = logs.max()
    return float(top + math.log(np.exp(logs - top).mean()))


@numba.njit(cache=True, nogil=True)
def _resample(logs: FloatArray, n: int) -> IntArray:
    """Systematic resampling: `n` indices with weights ``exp(logs)``."""
    weights = np.exp(logs - logs.max())
    goal = np.random.random() * weights.sum() / n
    each = weights.sum() / n
    parents = np.empty(n, np.int64)
    total, k = 0.0, 0
    for i in range(weights.size):
        total += weights[i]
        while k < n and goal < total:
            parents[k] = i
            goal += each
            k += 1
    parents[k:] = weights.size - 1
    return parents
