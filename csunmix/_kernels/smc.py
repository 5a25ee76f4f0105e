"""Sequential Monte Carlo over scenes: from the prior to the posterior as the noise shrinks.

Waste-free (Dau & Chopin 2022, JRSS B 84, 114): every stage starts a few chains from resampled
particles and keeps all their states as the particles of the next.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.billiards import (
    Chain,
    Mass,
    new_chain,
    settle,
    to_mass,
    travel,
    weigh,
)
from csunmix._kernels.jit import kernel, part
from csunmix._kernels.labels import nearest
from csunmix._kernels.linalg import effective
from csunmix._kernels.model import Model
from csunmix._kernels.prior import draw_scene
from csunmix._kernels.scene import Pixels, log_likelihood, log_scales
from csunmix._validation import FloatArray, IntArray

# Log variances, those of the pixels' noise taken as 0: one that leaves nothing of the image, and
# one that changes nothing.
_HOT = 60.0
_COLD = -8.0
_HALVINGS = 10
_ACCEPTANCE = 0.65
_LEAP = (0.1, 0.3, 1.0)  # shortest, first and longest, standard deviations
_MIXED = 0.05  # of the paths that change the matching of targets, where these are taken as alike
_FIRST_STEPS = 4  # of every chain of the first stage
_PROBES = 150  # particles that choose the next noise


class Particles(NamedTuple):
    """All states of a stage."""

    theta: FloatArray  # (n, d)
    light: FloatArray  # (n, n_y, n_x)
    loglik: FloatArray  # (n,)


@kernel(unrolled=True)
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
    chain, trial = new_chain(model), new_chain(model)
    starts = np.empty((n // _FIRST_STEPS, d))  # many short chains make the prior
    for c in range(starts.shape[0]):
        if not draw_scene(model.box, model.n_targets, starts[c]):
            return particles.theta, -np.inf, 0
    leap, alike = _LEAP[1], True
    unit = math.log(model.pixels.variance)
    log_extra, coldest = unit + _HOT, unit + _COLD
    base = log_scales(model.pixels, math.exp(log_extra))
    log_evidence = base
    logs = np.empty(n)
    for stage in range(max_stages):
        extra = math.exp(log_extra) if log_extra > coldest else 0.0
        n_each = n // starts.shape[0]
        leap, mixed = _move(
            model, extra, n_each, starts, starts, alike, leap, chain, trial, particles
        )
        alike = alike and mixed > _MIXED
        if stage == 0:
            log_evidence += _log_mean(particles.loglik)
        if extra == 0.0:
            return particles.theta, log_evidence, stage + 1
        log_extra = _cool(model.pixels, particles, keep, log_extra, coldest)
        extra = math.exp(log_extra) if log_extra > coldest else 0.0
        for i in range(n):
            logs[i] = (
                log_likelihood(model.pixels, particles.light[i], extra, -np.inf)
                - particles.loglik[i]
            )
        scale = log_scales(model.pixels, extra)
        log_evidence += _log_mean(logs) + scale - base
        base = scale
        parents = _resample(logs, n_chains)
        starts = starts[:n_chains]
        for c in range(n_chains):
            starts[c] = particles.theta[parents[c]]
    return particles.theta, log_evidence, max_stages


@kernel(unrolled=True)
def explore(model: Model, start: FloatArray, n_blocks: int, n_steps: int, seed: int) -> FloatArray:
    """States (n_blocks n_steps, d) of one chain from `start`; steps are adapted block by block."""
    np.random.seed(seed)
    d = model.precision.size
    n_y, n_x = model.pixels.low.shape
    chain, trial = new_chain(model), new_chain(model)
    leap = _LEAP[1]
    particles = Particles(np.empty((n_steps, d)), np.empty((n_steps, n_y, n_x)), np.empty(n_steps))
    states = np.empty((n_blocks * n_steps, d))
    at, first = start.reshape(1, d).copy(), start.reshape(1, d)
    for block in range(n_blocks):
        leap, _ = _move(model, 0.0, n_steps, at, first, False, leap, chain, trial, particles)
        states[block * n_steps : (block + 1) * n_steps] = particles.theta
        at[0] = particles.theta[n_steps - 1]
    return states


@part()
def _move(
    model: Model,
    extra: float,
    n_steps: int,
    starts: FloatArray,
    others: FloatArray,
    alike: bool,
    leap: float,
    chain: Chain,
    trial: Chain,
    particles: Particles,
) -> tuple[float, float]:
    """Run a chain from every start and keep all its states; returns the next length of a leap.

    The mass of each is that of the scene half of all `others` away.
    """
    taken, mixed, d = 0.0, 0.0, chain.theta.size
    gram, mass = filled((d, d), 0.0), Mass(np.empty((d, d)), np.empty((d, d)))
    for c in range(starts.shape[0]):
        other = others[c - others.shape[0] // 2]  # resampling leaves neighbours alike
        order = nearest(other, starts[c], model.n_targets)
        weigh(model, extra, other, order, trial, gram)
        if alike:
            level(gram, model.n_targets)
        to_mass(gram, mass)
        settle(model, extra, starts[c], chain)
        for s in range(n_steps):
            moves = travel(model, extra, leap, mass, chain, trial)
            if moves:
                taken += 1.0
                same = (nearest(other, trial.theta, model.n_targets) == order).all()
                mixed += 0.0 if same else 1.0
                # Where targets would be matched otherwise, the way back has another mass.
                if same or alike:
                    chain, trial = trial, chain
            i = c * n_steps + s
            particles.theta[i] = chain.theta
            particles.light[i] = chain.room.light
            particles.loglik[i] = chain.value[0]
    share = taken / (starts.shape[0] * n_steps)
    leap = min(max(leap * math.exp(share - _ACCEPTANCE), _LEAP[0]), _LEAP[2])
    return leap, mixed / max(taken, 1.0)


@part()
def level(gram: FloatArray, count: int) -> None:
    """Average a matrix over all orders of the targets, in place."""
    n = 3 * count
    alone, pair = filled((3, 3), 0.0), filled((3, 3), 0.0)
    rest = filled((gram.shape[0] - n, 3), 0.0)
    for k in range(count):
        rest += gram[n:, 3 * k : 3 * k + 3] / count
        for m in range(count):
            part = gram[3 * k : 3 * k + 3, 3 * m : 3 * m + 3]
            if k == m:
                alone += part / count
            else:
                pair += part / (count * (count - 1))
    for k in range(count):
        gram[n:, 3 * k : 3 * k + 3] = rest
        gram[3 * k : 3 * k + 3, n:] = rest.T
        for m in range(count):
            gram[3 * k : 3 * k + 3, 3 * m : 3 * m + 3] = alone if k == m else pair


@part()
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
            logs[i] = log_likelihood(pixels, particles.light[i * stride], extra, -np.inf) - before
        share = effective(logs) / logs.size
        if share >= keep:
            high = middle
            if halving == 0 or share < 1.1 * keep:
                break
        else:
            low = middle
    return high


@part()
def _log_mean(logs: FloatArray) -> float:
    top = logs.max()
    return float(top + math.log(np.exp(logs - top).mean()))


@part()
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
