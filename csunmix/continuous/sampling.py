"""Samples of the posterior of one number of targets, and what they say of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.hops import wander
from csunmix._kernels.labels import describe, settle
from csunmix._kernels.modes import Modes
from csunmix._kernels.smc import sample
from csunmix._validation import FloatArray, IntArray
from csunmix.continuous.fit import COUNTED, Fit
from csunmix.continuous.importance import Draws, draw, weigh_together
from csunmix.continuous.window import Setting, Window
from csunmix.targets import Flag

SCORED = 0.1
"""px, distance that a score speaks of where nothing else is said."""

_FAR_FEWER = 0.75  # of the scenes that were to count, below which there are further runs
_RUNS, _AGAIN = 4, 100.0  # in all, and scenes that are to count in a further one
_PLENTY = 1000.0  # scenes that count, that would do whatever is asked for
_HARDLY_ANY = 3.0  # scenes that count, below which the optima alone tell more
_HOPS = 4  # after every path
_SOFT = 0.15  # of an interval of rounding, by which chains blur its ends
_TOO_FEW = 30.0  # scenes that count, below which chains do without that
_UNSETTLED = 0.02  # of a posterior variance, that of its mean from where chains are too short
_LONGER = 4  # times as long
_APART = 0.05  # the same after that, from where the sample is flagged
_EXPECTED = 10.0  # changes of mode
_FAR_BELOW = 0.01  # of the mean of all
_LEAST = 1e-200  # of what is divided by
_KEEP = 0.25  # of the particles, effective after a stage
_MAX_STAGES = 500
_PARTICLE_CHAINS = 50
_SUMMARISED = 2000  # scenes, about
_SKETCHED, _STARTS = 100, 6  # of relabelling: scenes and starts of the first pass


class Sample(NamedTuple):
    """Scenes of a posterior by the chains or runs that they come from."""

    theta: FloatArray  # (n_chains, n, d)
    weight: FloatArray  # (n_chains, n), of each in the answer
    flags: int


def weigh(best: Fit, enough: float, seed: int) -> Sample:
    """Scenes weighted by importance until `enough` of them count; none where none is to.

    Where far fewer do, there are further runs of draws with other seeds, which begin around scenes
    of the first one instead of chains of their own; how far their means are apart tells what these
    may err by, beyond what the first has missed, and the sample has `Flag.NOT_CONVERGED` where it
    is much. It has no scenes, and the flag, where hardly any scene counts.
    """
    if enough == 0.0:
        return _none(0)
    enough = max(enough, _HARDLY_ANY / _FAR_FEWER)  # that the first run may be all
    runs = [_first_run(best, enough, seed)]
    if runs[0].effective < _FAR_FEWER * min(enough, _PLENTY):
        again = min(enough, _AGAIN)
        runs += [_run(best, again, seed + n, runs[0], roam=False) for n in range(1, _RUNS)]
    found = _pool(runs, best.count)
    if effective(found) < _HARDLY_ANY:
        return _none(int(Flag.NOT_CONVERGED))
    apart = len(runs) > 1 and not _unsettled(found) <= _APART
    return found._replace(flags=int(Flag.NOT_CONVERGED) * apart)


def _none(flags: int) -> Sample:
    return Sample(np.empty((0, 0, 0)), np.empty((0, 0)), flags)


def _first_run(best: Fit, enough: float, seed: int) -> Draws:
    """Draws; where the evidence has some, no fewer scenes count in the answer than in these.

    Where nothing is rounded these serve, unless more are asked for.
    """
    if not best.drawn:
        return _run(best, enough, seed)
    enough = max(enough, COUNTED)
    serve = best.window.rounding == 0.0 and (enough == COUNTED or best.draws.effective >= enough)
    return best.draws if serve else _run(best, enough, seed, best.draws)


def _run(
    best: Fit, enough: float, seed: int, known: Draws | None = None, roam: bool = True
) -> Draws:
    """Draws from the posterior, rounding taken as the interval that it is."""
    model, smooth = best.model, None
    if best.window.rounding > 0.0:
        model, smooth = model._replace(pixels=best.window.pixels), model
    return draw(model, *best.modes, enough, seed, smooth, known, roam)


def _pool(runs: list[Draws], count: int) -> Sample:
    """Draws of several runs, weighed together; shorter ones filled up with what weighs nothing."""
    n, d = max(run.weight.size for run in runs), runs[0].theta.shape[1]
    theta, weight = np.zeros((len(runs), n, d)), np.zeros((len(runs), n))
    weights = [run.weight for run in runs] if len(runs) == 1 else weigh_together(runs, count)
    for k, (run, each) in enumerate(zip(runs, weights, strict=True)):
        if each.size:
            theta[k] = run.theta[np.minimum(np.arange(n), each.size - 1)]
            weight[k, : each.size] = each
    return Sample(theta, weight, 0)


def hop(setting: Setting, best: Fit, n_chains: int, n_steps: int, seed: int) -> Sample:
    """Chains that start at the optima of a fit and hop between them.

    Every mode has a chain, and more if its share is larger; every chain takes `n_steps` Hamiltonian
    paths, or, where the chains' means differ too much, all begin anew and take four times as many.
    Where pixels are rounded, the likelihood of the chains is softer than the true one
    (`csunmix._kernels.scene.log_soft`) and scenes weigh as the two differ, unless too few would
    count, as in an image that no scene explains. They weigh as `occupancy` says, too. The sample
    has `Flag.NOT_CONVERGED` where chains are still apart after the longer run, and, without scenes,
    where the prior leaves no room around the modes.
    """
    found = _thin(_hop_softly(setting, best, n_chains, n_steps, seed))
    if found.theta.size and not _unsettled(found) <= _UNSETTLED:
        found = _thin(_hop_softly(setting, best, n_chains, _LONGER * n_steps, seed))
        if found.theta.size and not _unsettled(found) <= _APART:
            found = found._replace(flags=found.flags | int(Flag.NOT_CONVERGED))
    return found


def _thin(chains: Sample) -> Sample:
    """Chains with as many of their scenes as are summarised."""
    every = max(1, chains.weight.size // _SUMMARISED)
    weight = chains.weight[:, ::every]
    return chains._replace(theta=chains.theta[:, ::every], weight=weight / weight.sum())


def _unsettled(found: Sample) -> float:
    """Variance of a target's mean over its posterior variance, the largest, as chains tell."""
    values, of_mean = _describe(found, 1.0)
    return float((of_mean / np.maximum(values[:, 3:6], _LEAST)).max())


def _hop_softly(setting: Setting, best: Fit, n_chains: int, n_steps: int, seed: int) -> Sample:
    """Chains with the ends of intervals blurred, or without where too few scenes would count."""
    found = _hop(setting, best, n_chains, n_steps, _SOFT * best.window.rounding, seed)
    if best.window.rounding > 0.0 and found.theta.size and effective(found) <= _TOO_FEW:
        found = _hop(setting, best, n_chains, n_steps, 0.0, seed)
    return found


def _hop(
    setting: Setting, best: Fit, n_chains: int, n_steps: int, softening: float, seed: int
) -> Sample:
    """Chains with the ends of intervals blurred by `softening`, DN, or not at all."""
    model = best.window.model(setting.optics, best.count)
    modes, share = best.modes
    chains = np.maximum(np.rint(n_chains * share), 1).astype(int)
    starts = np.repeat(np.arange(len(share)), chains)
    theta, logs = wander(model, modes, starts, n_steps, _HOPS, softening**2, seed)
    if theta.size == 0:
        return Sample(theta, np.empty((0, 0)), int(Flag.NOT_CONVERGED))
    mode, true = _nearest_mode(modes, theta), np.exp(logs - logs.max())
    count = np.bincount(mode.ravel(), minlength=len(share))
    share = share / _means(true, mode, count)  # in the soft likelihood's posterior
    weight = (occupancy(mode, share / share.sum()) / np.maximum(count, 1))[mode] * true
    return Sample(theta, weight / weight.sum(), 0)


def _means(value: FloatArray, mode: IntArray, count: IntArray) -> FloatArray:
    """Mean of values (n_chains, n) in every mode (m,), at least 0.01 of the mean of all.

    That mean stands for a mode without values.
    """
    total, overall = np.bincount(mode.ravel(), value.ravel(), minlength=len(count)), value.mean()
    means = np.where(count > 0, total / np.maximum(count, 1), overall)
    return np.asarray(np.maximum(means, _FAR_BELOW * overall))


def occupancy(mode: IntArray, share: FloatArray) -> FloatArray:
    """Share (m,) of every mode in the posterior, by how often chains (n_chains, n) change it.

    That is the stationary distribution of the changes seen and of a few that keep to the shares
    that were expected: where chains hop often they decide, where never, what was expected.
    """
    visits = np.maximum(np.bincount(mode.ravel(), minlength=len(share)), 1)
    changes = _EXPECTED * np.outer(visits / visits.mean(), share)
    np.add.at(changes, (mode[:, :-1], mode[:, 1:]), 1.0)
    balance = changes / changes.sum(axis=1, keepdims=True) - np.eye(len(share))
    system = np.vstack([balance.T, np.ones(len(share))])
    found = np.linalg.lstsq(system, np.eye(len(system))[-1])[0]
    found = np.maximum(found, _LEAST)
    return np.asarray(found / found.sum())


def _nearest_mode(modes: Modes, theta: FloatArray) -> IntArray:
    """The mode whose normal distribution is densest at each scene (..., d)."""
    logs = []
    for mean, inverse in zip(modes.mean, modes.inverse, strict=True):
        unit = (theta - mean) @ inverse.T
        logs.append(np.log(np.diag(inverse)).sum() - 0.5 * (unit**2).sum(axis=-1))
    return np.asarray(np.argmax(logs, axis=0))


def cool(setting: Setting, window: Window, count: int, seed: int) -> tuple[Sample, float]:
    """Particles of sequential Monte Carlo that begins at the prior, and their log evidence.

    Every chain of a stage takes ``4 + 2 d`` paths for ``d`` parameters.
    """
    model = window.model(setting.optics, count)
    n_steps = 4 + 2 * model.precision.size
    theta, evidence, stages = sample(model, _PARTICLE_CHAINS, n_steps, _KEEP, _MAX_STAGES, seed)
    if stages == 0:
        raise ValueError(f"{count} target(s) have no room in {setting.prior!r}")
    flags = int(Flag.NOT_CONVERGED) * (stages == _MAX_STAGES)
    theta = theta.reshape(_PARTICLE_CHAINS, -1, theta.shape[1])
    found = Sample(theta, np.full(theta.shape[:2], 1.0 / theta[..., 0].size), flags)
    return _thin(found), evidence


def effective(found: Sample) -> float:
    """How many scenes count, ``(sum w)^2 / sum w^2``; 0 where there are none."""
    squares = float((found.weight**2).sum())
    return float(found.weight.sum()) ** 2 / squares if squares > 0.0 else 0.0


def summarise(best: Fit, found: Sample, radius: float) -> FloatArray:
    """Mean, error and score of every target (K, 7), in the image.

    Without scenes, they are those of the normal distributions around the optima of the fit.

    The error counts in what the mean may err by, as far as the means of chains or runs tell: too
    much where chains keep to modes of their own. The score is the share of the scenes within
    `radius` px of the mean.
    """
    if not found.theta.size:
        return approximate(best, radius)
    out, of_mean = _describe(found, radius)
    out[:, 3:6] = np.sqrt(out[:, 3:6] + of_mean)
    out[:, :2] += best.window.origin
    out[:, 6] = np.minimum(out[:, 6], 1.0)
    return out


def _describe(found: Sample, radius: float) -> tuple[FloatArray, FloatArray]:
    """Mean, variance and score of every target (K, 7), and variances of the means (K, 3)."""
    n_chains, _, d = found.theta.shape
    theta, weight = found.theta[..., : 3 * (d // 3)], found.weight / found.weight.sum()
    scenes = relabel(theta.reshape(-1, d // 3, 3), weight.ravel())
    out = describe(scenes, weight.ravel(), radius)
    once = float((weight**2).sum())  # over how many scenes count
    of_mean = out[:, 3:6] * 2.0 * once / max(1.0 - once, _LEAST)
    if n_chains > 1:
        each = scenes.reshape(n_chains, -1, d // 3, 3)
        away = np.einsum("cn,cnka->cka", weight, each - out[:, :3])
        between = (away**2).sum(axis=0) * n_chains / (n_chains - 1)
        of_mean = np.maximum(of_mean, between)
    return out, of_mean


def approximate(best: Fit, radius: float) -> FloatArray:
    """The same of the normal distributions around the optima of a fit."""
    n = 3 * best.count
    mean, covariance = best.mixture
    values = mean[:n].reshape(-1, 3).copy()
    errors = np.sqrt(np.diag(covariance)[:n]).reshape(-1, 3)
    values[:, :2] += best.window.origin
    spread2 = 0.5 * (errors[:, :2] ** 2).sum(axis=1)
    return np.column_stack([values, errors, 1.0 - np.exp(-0.5 * radius**2 / spread2)])


def relabel(scenes: FloatArray, weight: FloatArray | None = None) -> FloatArray:
    """Scenes (n, K, 3) with their targets in the order that keeps each nearest to its mean.

    Of the orders that some scenes lead to, the one of least variance.
    """
    if scenes.shape[1] == 1:
        return scenes
    weight = np.full(len(scenes), 1.0 / len(scenes)) if weight is None else weight
    total = np.cumsum(weight)
    few = np.searchsorted(total, total[-1] * (np.arange(_SKETCHED) + 0.5) / _SKETCHED)
    means = [scenes[n, :, :2].copy() for n in few[:: -(-_SKETCHED // _STARTS)]]
    alike = np.ones(_SKETCHED)
    spreads = [settle(scenes[few], alike, mean) for mean in means]
    out = scenes.copy()
    settle(out, weight, means[int(np.argmin(spreads))])
    return out
