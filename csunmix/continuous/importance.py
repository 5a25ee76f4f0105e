"""Scenes of a posterior, weighted by importance."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np

from csunmix._kernels.hops import wander
from csunmix._kernels.importance import DEGREES, add_density, log_level, scatter
from csunmix._kernels.model import Model
from csunmix._kernels.modes import Modes, approximate
from csunmix._validation import FloatArray

_EVEN = 0.1  # of the first draws, the same for every optimum
_HEAVIEST = 2  # scenes that a round draws around
_HOPS = 4  # of chains, after a path
_NOISIER = 3.0  # times the noise's variance, what they add to it
_MORE = (500, 0.1)  # draws around each, at least, and share of all draws so far
_LIGHT = 0.01  # of the largest weight, below which no scene is drawn around
_NEGLIGIBLE = 1e-3  # of all weight, what scenes without any would have at most in each run
_MOST = (40, 200_000)  # draws for every scene that is to count, and in all, at most


class Budget(NamedTuple):
    """How far draws look for where a posterior is."""

    first: int  # draws around the optima
    normal: float  # of these, that count where all is near normal
    chains: int  # in all, or one for every mode
    steps: int  # paths of each
    spread: int  # known scenes that draws begin around
    each: int  # draws of each
    least: int  # draws in all for every target beyond the first
    most: int  # draws in all, where no more are asked for


FULL = Budget(1000, 300.0, 8, 40, 40, 100, 1000, 15_000)
SMALL = Budget(300, 20.0, 12, 5, 25, 100, 0, 5_000)
FEW = 50.0
"""Scenes that are to count, up to which a small budget will do."""


class Mixture(NamedTuple):
    """Distributions that scenes were drawn from."""

    mean: FloatArray  # (m, d)
    inverse: FloatArray  # (m, d, d), inverses of the Cholesky factors of their scales
    number: FloatArray  # (m,), draws of each


class Draws(NamedTuple):
    """Weighted scenes of a posterior."""

    theta: FloatArray  # (n, d)
    weight: FloatArray  # (n,), summing to 1
    log_integral: float  # of likelihood and prior, in units of (2 pi)^(d/2)
    logs: FloatArray  # (n,), log posteriors
    density: FloatArray  # (n,), log densities of the mixture, times its number of draws
    mixture: Mixture

    @property
    def effective(self) -> float:
        """How many scenes count, ``1 / sum w^2``; 0 of none."""
        return 1.0 / float((self.weight**2).sum()) if self.weight.size else 0.0


def draw(
    model: Model,
    modes: Modes,
    share: FloatArray,
    enough: float,
    seed: int,
    smooth: Model | None = None,
    known: Draws | None = None,
    roam: bool = True,
) -> Draws:
    """Scenes of a posterior until `enough` of them count, or there were too many draws.

    Draws begin around the modes, and around some of the scenes that are `known` of a posterior like
    this one. Where few of the first count, it is no mixture of normal distributions, and as many as
    are asked for may come without its far ends: then they begin anew, and scenes of short chains
    say where else, if asked for (`roam`), which roam it or, where it has bounds that are hard to
    find a way between, one like it without these, `smooth`.
    """
    rng, budget = np.random.default_rng(seed), SMALL if enough <= FEW else FULL
    start, number = modes, np.ceil(budget.first * ((1.0 - _EVEN) * share + _EVEN / share.size))
    found = _follow(model, start, number, enough, budget.first, rng)
    normal = found.effective >= budget.normal
    if normal and found.effective >= enough:
        return found
    elsewhere = [] if known is None else [(known.theta, known.weight)]
    if roam and not normal:
        elsewhere.append(_roam(model if smooth is None else smooth, modes, share, budget, seed))
    for theta, weight in elsewhere:
        if weight.size:
            others, of_others = _spread(model, theta, weight, budget, rng)
            start, number = _join([start, others]), np.append(number, of_others)
    most = float(np.clip(_MOST[0] * enough, budget.most, _MOST[1]))
    return _follow(model, start, number, enough, most, rng, budget.least * (model.n_targets - 1))


def weigh_together(runs: Sequence[Draws], count: int) -> list[FloatArray]:
    """Weights of the scenes of every run as draws from all distributions of all runs.

    Where runs reach the same scenes, each counts by its number of draws; what one has found alone
    weighs as it does there (the balance heuristic of Veach & Guibas 1995, SIGGRAPH 22, 419). Other
    runs can but lower what a scene weighs: those that in their own run weigh next to nothing of
    what the least of the runs' integrals is take no weight.
    """
    first = runs[0].mixture
    unit = log_level(first.inverse[0], first.number[0])
    logs = [run.logs - run.density for run in runs]
    top = max(float(each.max(initial=-np.inf)) for each in logs)
    alone = [np.exp(each - top) for each in logs]
    allowed = _NEGLIGIBLE * min(float(each.sum()) for each in alone)
    for run, own, value in zip(runs, alone, logs, strict=True):
        order = np.argsort(own)
        counts = np.sort(order[np.cumsum(own[order]) > allowed])
        density = np.exp(run.density[counts] - unit)
        for other in runs:
            if other is not run:
                add_density(*other.mixture, unit, count, run.theta[counts], density)
        value[:] = -np.inf
        value[counts] = run.logs[counts] - np.log(density)
    weight = _to_weights(np.concatenate(logs))[0]
    return np.split(weight, np.cumsum([run.weight.size for run in runs])[:-1])


def _roam(
    model: Model, modes: Modes, share: FloatArray, budget: Budget, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Scenes (n, d) of chains that hop between the modes, and weights (n,), all the same.

    The noise in the dark is twice what it is.
    """
    chains = np.maximum(np.rint(budget.chains * share), 1).astype(int)
    starts = np.repeat(np.arange(share.size), chains)
    extra = _NOISIER * model.pixels.variance
    theta, _ = wander(model, modes, starts, budget.steps, _HOPS, extra, seed)
    theta = theta.reshape(-1, modes.mean.shape[1])
    return theta, np.full(len(theta), 1.0 / max(len(theta), 1))


def _follow(
    model: Model,
    new: Modes,
    more: FloatArray,
    enough: float,
    most: float,
    rng: np.random.Generator,
    least: float = 0.0,
) -> Draws:
    """Scenes by incremental mixture importance sampling (Raftery & Bao 2010, Biometrics 66, 1162).

    The first are drawn from t distributions with the means and scales of normal approximations, so
    many of each. Every round adds such distributions around the scenes that weigh most, and draws
    from them, so that a posterior that is bent is followed to its ends. Scenes weigh as draws from
    the mixture of all distributions. Of each distribution, only scenes are taken whose targets lie
    next to those of its mean, so that each has one order of targets.
    """
    count, d = model.n_targets, new.mean.shape[1]
    mixture = Mixture(np.empty((0, d)), np.empty((0, d, d)), np.empty(0))
    theta, logs, density = np.empty((0, d)), np.empty(0), np.empty(0)
    unit = log_level(new.inverse[0], more[0])  # so that densities are numbers
    while True:
        added = Mixture(new.mean, new.inverse, more)
        add_density(*added, unit, count, theta, density)
        mixture = Mixture(*(np.concatenate(p) for p in zip(mixture, added, strict=True)))
        drawn, values = _draw_round(model, new, more, rng)
        theta, logs = np.concatenate([theta, drawn]), np.concatenate([logs, values])
        density = np.concatenate([density, np.zeros(len(drawn))])
        add_density(*mixture, unit, count, drawn, density[density.size - len(drawn) :])
        of_mixture = np.log(density) + unit
        weight, log_integral = _to_weights(logs - of_mixture)
        found = Draws(theta, weight, log_integral, logs, of_mixture, mixture)
        total = float(mixture.number.sum())
        done = found.effective >= enough and total >= least
        if done or total >= most or not theta.size:
            return found
        each = max(_MORE[0], _MORE[1] * total)
        new, more = _around_heaviest(model, theta, weight, each, rng)


def _draw_round(
    model: Model, modes: Modes, number: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Scenes (n, d) from t distributions, so many of each, and the log posterior (n,) of each."""
    of = np.repeat(np.arange(number.size), number.astype(int))
    theta = rng.standard_normal((of.size, modes.mean.shape[1]))
    theta *= np.sqrt(DEGREES / rng.chisquare(DEGREES, of.size))[:, None]
    logs = scatter(model, modes, of, theta)
    possible = logs > -np.inf
    return theta[possible], logs[possible]


def _to_weights(logs: FloatArray) -> tuple[FloatArray, float]:
    """Weights that sum to 1 from their logarithms, and the log of their sum."""
    top = float(logs.max(initial=-np.inf))
    weight = np.exp(logs - top)
    total = float(weight.sum())
    return weight / total, top + log(total) if total > 0.0 else -np.inf


def _spread(
    model: Model, theta: FloatArray, weight: FloatArray, budget: Budget, rng: np.random.Generator
) -> tuple[Modes, FloatArray]:
    """Normal approximations around some of known scenes (n, d), as they weigh; draws of each."""
    total = np.cumsum(weight)
    even = (np.arange(budget.spread) + rng.random()) / budget.spread
    picked = np.searchsorted(total, total[-1] * even)
    modes = _modes_around(model, theta[picked], rng)
    return modes, np.full(len(modes.mean), float(budget.each))


def _modes_around(model: Model, theta: FloatArray, rng: np.random.Generator) -> Modes:
    """Normal approximations around scenes (n, d), as ones in a cell or in a box by chance."""
    return Modes(*approximate(model, theta, np.empty(0), rng.random(len(theta)))[0])


def _around_heaviest(
    model: Model, theta: FloatArray, weight: FloatArray, each: float, rng: np.random.Generator
) -> tuple[Modes, FloatArray]:
    """Normal approximations around the heaviest scenes apart from each other; draws of each."""
    heavy = weight > _LIGHT * weight.max()
    theta, weight = theta[heavy], weight[heavy]
    parts: list[Modes] = []
    while len(parts) < _HEAVIEST and weight.max() > 0.0:
        k = int(weight.argmax())
        modes = _modes_around(model, theta[k : k + 1], rng)
        parts.append(modes)
        unit = (theta - theta[k]) @ modes.inverse[0].T
        weight[(unit**2).sum(axis=1) < unit.shape[1]] = 0.0
    return _join(parts), np.full(len(parts), float(np.ceil(each)))


def _join(parts: list[Modes]) -> Modes:
    return Modes(*(np.concatenate(each) for each in zip(*parts, strict=True)))
