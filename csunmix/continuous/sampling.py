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
_SUMMARISED = 2000  # scenes, about


class Sample(NamedTuple):
    """Scenes of a posterior by the chains that they come from."""

    theta: FloatArray  # (n_chains, n, d)
    share: FloatArray  # (n_chains,), of each in the answer
    log_evidence: float
    flags: int


def hop(setting: Setting, best: Fit, n_chains: int, n_steps: int, seed: int) -> Sample:
    """Chains that start at the optima of a fit and hop between them; the evidence is the fit's.

    Every optimum has a chain, and more if its share is larger; chains of an optimum have its share
    in the answer, which is right whether they hop often or never. Every chain takes `n_steps`
    Hamiltonian paths. Where the prior leaves no room around the optima, the sample has no scenes
    and `Flag.NOT_CONVERGED`.
    """
    model = best.window.model(setting.optics, best.count)
    modes, share = best.modes
    chains = np.maximum(np.rint(n_chains * share), 1).astype(int)
    starts = np.repeat(np.arange(len(share)), chains)
    theta = wander(model, modes, starts, n_steps, _HOPS, seed)
    flags = 0 if theta.size else int(Flag.NOT_CONVERGED)
    return Sample(theta, (share / chains)[starts], best.log_evidence, flags)


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
    theta = theta.reshape(_PARTICLE_CHAINS, -1, theta.shape[1])
    return Sample(theta, np.full(_PARTICLE_CHAINS, 1.0 / _PARTICLE_CHAINS), evidence, flags)


def summarise(window: Window, found: Sample, radius: float) -> FloatArray:
    """Mean, error and score of every target (K, 7), in the image.

    The error counts in what the mean may err by, as far as the chains' means tell. The score is the
    share of the scenes within `radius` px of the mean.
    """
    n_chains, n, d = found.theta.shape
    theta = found.theta[:, :: max(1, n_chains * n // _SUMMARISED), : 3 * (d // 3)]
    scenes = relabel(theta.reshape(-1, d // 3, 3)).reshape(n_chains, -1, d // 3, 3)
    means = scenes.mean(axis=1)
    mean = np.tensordot(found.share, means, 1)
    away = scenes - mean
    variance = np.tensordot(found.share, (away**2).mean(axis=1), 1)
    variance += np.tensordot(found.share**2, (means - mean) ** 2, 1) * n_chains / (n_chains - 1)
    near = np.hypot(away[..., 0], away[..., 1]) <= radius
    score = np.minimum(np.tensordot(found.share, near.mean(axis=1), 1), 1.0)
    mean[:, :2] += window.origin
    return np.column_stack([mean, np.sqrt(variance), score])


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
