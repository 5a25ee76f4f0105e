"""Samples of the posterior of one number of targets, and what they say of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.hops import wander
from csunmix._kernels.smc import sample
from csunmix._validation import FloatArray
from csunmix.continuous.fit import Fit
from csunmix.continuous.window import Setting, Window
from csunmix.targets import Flag

_HOPS = 4  # after every path
_KEEP = 0.25  # of the particles, effective after a stage
_MAX_STAGES = 500
_PARTICLE_CHAINS = 50
_SUMMARISED = 2000  # scenes


class Sample(NamedTuple):
    """Scenes (n, d) of a posterior, and how they were drawn."""

    theta: FloatArray
    n_chains: int  # of equal length, one after another
    log_evidence: float
    flags: int


def hop(setting: Setting, best: Fit, n_chains: int, n_steps: int, seed: int) -> Sample:
    """Chains that start at the optima of a fit and hop between them; the evidence is the fit's.

    Every chain takes `n_steps` Hamiltonian paths. Where the prior leaves no room around the optima,
    the sample has no scenes and `Flag.NOT_CONVERGED`.
    """
    model = best.window.model(setting.optics, best.count)
    modes, share = best.modes
    starts = np.searchsorted(share.cumsum(), (np.arange(n_chains) + 0.5) / n_chains)
    theta = wander(model, modes, np.minimum(starts, len(share) - 1), n_steps, _HOPS, seed)
    flags = 0 if len(theta) else int(Flag.NOT_CONVERGED)
    return Sample(theta, n_chains, best.log_evidence, flags)


def cool(setting: Setting, window: Window, count: int, seed: int) -> Sample:
    """Particles of sequential Monte Carlo that begins at the prior.

    Every chain of a stage takes ``4 + 2 d`` paths for ``d`` parameters.
    """
    model = window.model(setting.optics, count)
    n_steps = 4 + 2 * model.precision.size
    theta, evidence, stages = sample(model, _PARTICLE_CHAINS, n_steps, _KEEP, _MAX_STAGES, seed)
    if stages == 0:
        raise ValueError(f"{count} target(s) have no room in {setting.prior!r}")
    flags = int(Flag.NOT_CONVERGED) * (stages == _MAX_STAGES)
    return Sample(theta, _PARTICLE_CHAINS, evidence, flags)


def summarise(window: Window, found: Sample, radius: float) -> FloatArray:
    """Mean, error and score of every target (K, 7), in the image.

    The error counts in what the mean may err by: the variance of the chains' means over their
    number. The score is the share of the scenes within `radius` px of the mean.
    """
    count = found.theta.shape[1] // 3
    scenes = found.theta[:, : 3 * count].reshape(-1, count, 3)
    scenes = relabel(scenes[:: max(1, len(scenes) // _SUMMARISED)])
    mean = scenes.mean(axis=0)
    means = np.array([each.mean(axis=0) for each in np.array_split(scenes, found.n_chains)])
    error = np.sqrt(scenes.var(axis=0) + means.var(axis=0, ddof=1) / found.n_chains)
    distance = np.hypot(*(scenes - mean).transpose(2, 0, 1)[:2])
    score = (distance <= radius).mean(axis=0)
    mean[:, :2] += window.origin
    return np.column_stack([mean, error, score])


def relabel(scenes: FloatArray) -> FloatArray:
    """Scenes (n, K, 3) with their targets in the order that keeps each nearest to its mean."""
    from scipy.optimize import linear_sum_assignment

    count = scenes.shape[1]
    if count == 1:
        return scenes
    mean, order = scenes[-1, :, :2], None
    for _ in range(10):
        cost = ((scenes[:, None, :, :2] - mean[None, :, None]) ** 2).sum(axis=-1)
        new = cost.argmin(axis=2)  # the assignment wanted, where no two are next to the same
        for n in np.flatnonzero((np.sort(new, axis=1) != np.arange(count)).any(axis=1)):
            new[n] = linear_sum_assignment(cost[n])[1]
        if order is not None and (new == order).all():
            break
        order = new
        mean = np.take_along_axis(scenes[..., :2], order[..., None], axis=1).mean(axis=0)
    return np.take_along_axis(scenes, new[..., None], axis=1)
