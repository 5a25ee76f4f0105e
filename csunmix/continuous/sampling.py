"""Samples of the posterior of one number of targets, and what they say of each."""

from __future__ import annotations

import numpy as np

from csunmix._kernels.smc import sample
from csunmix._validation import FloatArray
from csunmix.continuous.window import Setting, Window
from csunmix.targets import Flag

_KEEP = 0.25  # of the particles, effective after a stage
_MAX_STAGES = 500
_RELABELLED = 2000  # particles that targets are told apart on


def draw(
    setting: Setting, window: Window, count: int, n_chains: int, n_steps: int, seed: int
) -> tuple[FloatArray, float, int]:
    """Particles (n, d), log evidence and flags of one number of targets.

    Every chain makes ``n_steps (4 + 2 d)`` paths a stage for ``d`` parameters.
    """
    model = window.model(setting.optics, count)
    n_paths = n_steps * (4 + 2 * model.precision.size)
    theta, evidence, stages = sample(model, n_chains, n_paths, _KEEP, _MAX_STAGES, seed)
    if stages == 0:
        raise ValueError(f"{count} target(s) have no room in {setting.prior!r}")
    return theta, evidence, int(Flag.NOT_CONVERGED) * (stages == _MAX_STAGES)


def summarise(window: Window, theta: FloatArray, radius: float) -> FloatArray:
    """Mean, error and score of every target (K, 7) of particles (n, d), in the image.

    The score is the share of the particles within `radius` px of the mean.
    """
    count = theta.shape[1] // 3
    scenes = theta[:, : 3 * count].reshape(len(theta), count, 3)
    scenes = relabel(scenes[:: max(1, len(scenes) // _RELABELLED)])
    mean, error = scenes.mean(axis=0), scenes.std(axis=0)
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
        new = np.array([linear_sum_assignment(each)[1] for each in cost])
        if order is not None and (new == order).all():
            break
        order = new
        mean = np.take_along_axis(scenes[..., :2], order[..., None], axis=1).mean(axis=0)
    return np.take_along_axis(scenes, new[..., None], axis=1)
