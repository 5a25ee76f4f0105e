"""The joint fit of all targets, for one number of them or for all, and what it says of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from csunmix._kernels.model import Model
from csunmix._kernels.modes import Judgement, Mixture, Modes, approximate, judge
from csunmix._kernels.scene import least_share
from csunmix._kernels.search import THOROUGH, search
from csunmix._validation import FloatArray
from csunmix.continuous.importance import Draws, draw
from csunmix.continuous.window import Setting, Window, log_room

_STARTS = (8, 12)  # random starts at most: so many, and so many for every target
_ENOUGH = (6, 3)  # of these in a row that lead to nothing new end the search
PLAUSIBLE = 8.0
"""Log evidence below the best from which a count is ruled out."""

_ROUGHLY = 15.0  # the same by Laplace's method, which may be further off

COUNTED = 200.0
"""Scenes that are to count for the evidence of a number of targets."""

_EXCLUDED = 50.0  # objective above the best from where a number of targets is not fitted
_WITHIN = 0.98  # of the light that a target in a corner of its area gives, what any gives at least
_HOPELESS = 20.0  # log evidence below the best that ends the search for more targets


@dataclass(frozen=True)
class Fit:
    """The best fit of a number of targets.

    Attributes
    ----------
    window : Window
        What was fitted.
    model : Model
        The posterior, rounding as a normal error.
    thetas : ndarray, shape (n, d)
        Positions and fluxes ``(y, x, f)`` of all targets, and the background where it is fitted:
        the fit, then what other starts ended in, and what good fits become in a cell, none better.
    objectives : ndarray, shape (n,)
        Minus the log likelihoods but for a constant, see `csunmix._kernels.fit.objective`.
    seed : int
        Of the random numbers of draws.
    """

    window: Window
    model: Model
    thetas: FloatArray
    objectives: FloatArray
    seed: int = 0

    @property
    def count(self) -> int:
        """Number of targets."""
        return self.model.n_targets

    @property
    def theta(self) -> FloatArray:
        """The fit (d,)."""
        return np.asarray(self.thetas[0])

    @property
    def targets(self) -> FloatArray:
        """Its targets (K, 3), rows ``y, x, flux``, without a background."""
        return self.theta[: 3 * self.count].reshape(-1, 3)

    @property
    def objective(self) -> float:
        """Its objective."""
        return float(self.objectives[0])

    @property
    def explains(self) -> bool:
        """Whether noise may leave as much of the image, see `csunmix._kernels.fit.explains`."""
        return self._judgement.explains

    @cached_property
    def modes(self) -> tuple[Modes, FloatArray]:
        """Normal approximations around this fit and all that differ from it, and their shares."""
        modes = self._approximation.modes
        return Modes(*modes), self._approximation.share

    @cached_property
    def mixture(self) -> tuple[FloatArray, FloatArray]:
        """Mean (d,) and covariance (d, d) of the mixture of all modes."""
        return self._approximation.mean, self._approximation.covariance

    @property
    def rough_evidence(self) -> float:
        """Log evidence of this number of targets by Laplace's method, but for a constant.

        The bounds of the prior cut nothing off; other optima are left out.
        """
        return self._judgement.log_evidence

    @cached_property
    def draws(self) -> Draws:
        """Weighted scenes of the posterior, from all `modes` on."""
        return draw(self.model, *self.modes, COUNTED, self.seed)

    @property
    def drawn(self) -> bool:
        """Whether `draws` were made: `evidences` does where several counts are plausible."""
        return "draws" in self.__dict__

    @cached_property
    def log_evidence(self) -> float:
        """`drawn_evidence`; where too few draws count, `likely_evidence` if that is more."""
        if self.draws.effective >= COUNTED:
            return self.drawn_evidence
        return max(self.drawn_evidence, self.likely_evidence)

    @property
    def drawn_evidence(self) -> float:
        """Log evidence by the mean weight of `draws`.

        Those that do not reach as many as are to count have not reached all of the posterior
        either, and what they sum to is too low (``benchmarks/accuracy/sampler.md``).
        """
        return self.draws.log_integral + self._judgement.log_measure

    @property
    def likely_evidence(self) -> float:
        """Log evidence by the volumes that the prior's bounds leave of all `modes`.

        Rough where a posterior is flat or bent (``benchmarks/accuracy/sampler.md``).
        """
        return self._approximation.mass + self._judgement.log_measure

    @cached_property
    def _approximation(self) -> Mixture:
        return Mixture(*approximate(self.model, self.thetas, self.objectives, np.empty(0)))

    @cached_property
    def _judgement(self) -> Judgement:
        size = self.window.size
        room = log_room(size, self.model.box.separation, self.count)
        return judge(self.model, self.theta, self.objective, size, room)


def fit_counts(setting: Setting, window: Window, seed: int) -> dict[int, Fit]:
    """Best fits by the number of targets, but for numbers that can be no better than these.

    Those that the total of the light speaks for come first, small numbers before large ones.
    """
    fits: dict[int, Fit] = {}
    least = least_objectives(setting, window)
    for count in sorted(least, key=least.__getitem__):
        limit = min((e.objective for e in fits.values()), default=np.inf) + _EXCLUDED
        if least[count] > limit:
            break
        if _beyond(fits, count, window.box.flux[0] > 0.0):
            continue
        narrow = _apart_in_light(fits, count, window.box.flux)
        found = fit(setting, window, count, seed, limit if narrow else np.inf)
        if found is not None:
            fits[count] = found
    if not fits:
        raise ValueError(f"no number of targets has room in {setting.prior!r}")
    return fits


def _apart_in_light(fits: dict[int, Fit], count: int, flux: tuple[float, float]) -> bool:
    """Whether `count` targets give other light than those that explain the image, whatever theirs.

    Then a few starts tell that they do not. Where fluxes may be anything, a number that is right
    may be far from it in nearly all starts.
    """
    right = [k for k, each in fits.items() if each.explains]
    return any(max(k, count) * flux[0] > min(k, count) * flux[1] for k in right)


def _beyond(fits: dict[int, Fit], count: int, bounded: bool) -> bool:
    """Whether numbers on the way from the best to `count` are hopeless.

    One will do where fluxes have a lower bound, so that the light says how many there are; else two
    above the best.
    """
    evidence = {k: fit.rough_evidence for k, fit in fits.items()}
    if not evidence:
        return False
    best = max(evidence, key=evidence.__getitem__)
    hopeless = [k for k, e in evidence.items() if e < evidence[best] - _HOPELESS]
    above = sum(best < k < count for k in hopeless)
    below = sum(count < k < best for k in hopeless)
    return above > 0 or below > 0 if bounded else above > 1


def evidences(setting: Setting, fits: dict[int, Fit]) -> FloatArray:
    """Log evidence of every number of targets (n_counts,).

    Sampled where several numbers are plausible; less exact the further it is below the best.
    """
    out = np.full(len(setting.counts), -np.inf)
    for count, each in fits.items():
        out[setting.counts.index(count)] = each.rough_evidence
    near = np.flatnonzero(out >= out.max() - _ROUGHLY)
    if len(near) > 1:
        out[near] = [fits[setting.counts[k]].likely_evidence for k in near]
        near = np.flatnonzero(out >= out.max() - PLAUSIBLE)
    if len(near) > 1:
        out[near] = [fits[setting.counts[k]].log_evidence for k in near]
    return out


def least_objectives(setting: Setting, window: Window) -> dict[int, float]:
    """What no fit of so many targets can be below, by the total of the light.

    Where this differs by D from all that these targets can give, n pixels of noise variance v cost
    ``D^2 / 2 n v`` at least. A bound stands for light that was at least as much; where there are
    bounds, or pixels that tell nothing, these may hide light of further targets. The pixels of a
    target are taken to sum to no more than its flux.
    """
    pixels, box = window.smooth, window.box
    if pixels.per_light > 0.0 or window.fit_background:
        return dict.fromkeys(setting.counts, 0.0)
    light = float(pixels.low[np.isfinite(pixels.low)].sum())
    share = 0.0
    if (pixels.low == pixels.high).all():
        share = _WITHIN * least_share(setting.optics, box.area, *pixels.low.shape)
    out = {}
    for count in setting.counts:
        away = max(light - count * box.flux[1], count * share * box.flux[0] - light, 0.0)
        out[count] = float(0.5 * away**2 / (pixels.low.size * pixels.variance))
    return out


def fit(
    setting: Setting, window: Window, count: int, seed: int, limit: float = np.inf
) -> Fit | None:
    """Best fit of `count` targets; None if so many find no room.

    It is looked for less long where objectives are above `limit`.
    """
    if log_room(window.size, window.box.separation, count) == -np.inf:
        return None
    model = window.model(setting.optics, count)._replace(pixels=window.smooth)
    starts = (_STARTS[0] + _STARTS[1] * count) * window.n_cells
    enough = (_ENOUGH[0] + _ENOUGH[1] * count) * window.n_cells
    thetas, values = search(model, starts, enough, limit, THOROUGH, seed)
    if not np.isfinite(values[0]):
        return None
    return Fit(window, model, thetas, values, seed)
