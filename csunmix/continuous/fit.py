"""The joint fit of all targets, for one number of them or for all, and what it says of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations
from math import lgamma, log, pi

import numpy as np

from csunmix._kernels.evidence import log_integral
from csunmix._kernels.fit import heights, search, slope
from csunmix._kernels.hops import Modes
from csunmix._kernels.model import Model
from csunmix._kernels.prior import limits
from csunmix._kernels.scene import Pixels, log_scales, new_room
from csunmix._kernels.truncated import expectation_propagation
from csunmix._validation import BoolArray, FloatArray, IntArray
from csunmix.continuous.window import Setting, Window

_STARTS = (4, 6)  # random starts: so many, and so many for every target
_MOST_MODES = 12
_SINGULAR = 1e-10  # smallest eigenvalue of a correlation matrix
_LEAST_ROOM = 0.01  # of the extent
_NEGLIGIBLE = 8.0  # objective above the best from where a fit weighs nothing
ITERATIONS = (15, 100)
"""Steps of all starts, and of those that end apart."""

PLAUSIBLE = 15.0
"""Log evidence below the best from which a count is ruled out."""

_DRAWS = 200  # that tell whether the posterior is normal
_EVIDENCE_DRAWS = 20_000
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
    theta : ndarray, shape (d,)
        Positions and fluxes ``(y, x, f)`` of all targets, and the background where it is fitted.
    objective : float
        Minus the log likelihood but for a constant, see `csunmix._kernels.fit.objective`.
    others : tuple of Fit
        What other starts ended in, none better.
    """

    window: Window
    model: Model
    theta: FloatArray
    objective: float
    others: tuple[Fit, ...] = ()

    @property
    def count(self) -> int:
        """Number of targets."""
        return self.model.n_targets

    @cached_property
    def curvature(self) -> tuple[FloatArray, FloatArray]:
        """Gradient (d,) and minus second derivatives (d, d) of the log likelihood at the fit."""
        d = self.theta.size
        room = new_room(self.model.optics, self.count, d, *self.window.pixels.low.shape)
        free = self.model._replace(box=self.model.box._replace(separation=0.0, extent=np.inf))
        gradient, hessian = np.empty(d), np.zeros((d, d))
        slope(free, self.theta, room, gradient, hessian)
        return gradient, np.tril(hessian) + np.tril(hessian, -1).T

    @cached_property
    def moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean (d,) and covariance (d, d) of the posterior around this fit.

        The likelihood is taken as normal (Laplace), cut off by the bounds of the prior: fluxes,
        area or cell, and, along the line that joins two targets, their separation. Where bounds lie
        too far from the likelihood for that, it is the fit and its curvature, the prior's counted.
        """
        gradient, hessian = self.curvature
        shift = hessian @ self.theta + gradient
        mean, covariance = expectation_propagation(hessian, shift, *self._bounds)
        scale = np.sqrt(np.abs(np.diag(covariance)))
        if np.isfinite(mean).all() and (scale > 0.0).all():
            lowest = np.linalg.eigvalsh(covariance / np.outer(scale, scale))[0]
            if lowest > _SINGULAR:
                return mean, covariance
        return self.theta, np.linalg.inv(hessian + np.diag(self.model.precision))

    @cached_property
    def modes(self) -> tuple[Modes, FloatArray]:
        """Normal approximations around this fit and all that differ from it, and their shares (m,).

        Each weighs as its likelihood and prior at its mean times the volume of its covariance.
        """
        kept: list[tuple[FloatArray, FloatArray, FloatArray]] = []
        logs = []
        for each in (self, *self.others):
            if each.objective > self.objective + _NEGLIGIBLE or len(kept) == _MOST_MODES:
                break
            order = self._order(each.theta)
            theta, (mean, covariance) = each.theta[order], each.moments
            covariance = covariance[np.ix_(order, order)]
            if all(_apart(theta, known, covariance) for known, *_ in kept):
                kept.append((theta, mean[order], covariance))
                logs.append(each._log_mass)
        theta, mean, covariance = (np.array(each) for each in zip(*kept, strict=True))
        factor = np.linalg.cholesky(covariance)
        share = np.exp(np.array(logs) - max(logs))
        return Modes(theta, mean, factor, np.linalg.inv(factor)), share / share.sum()

    @cached_property
    def mixture(self) -> tuple[FloatArray, FloatArray]:
        """Mean (d,) and covariance (d, d) of the mixture of all modes."""
        modes, share = self.modes
        mean = share @ modes.mean
        away = modes.mean - mean
        covariances = modes.factor @ modes.factor.transpose(0, 2, 1)
        return mean, np.tensordot(share, covariances, 1) + (away.T * share) @ away

    def normality(self, seed: int) -> float:
        """Effective share of draws from a normal distribution as a sample of the posterior.

        The distribution has the moments of `mixture`; the share is ``(sum w)^2 / (n sum w^2)`` for
        the weights ``w`` of importance sampling.
        """
        mean, covariance = self.mixture
        rng = np.random.default_rng(seed)
        unit = rng.standard_normal((_DRAWS, mean.size))
        logs = heights(self.model, mean + unit @ np.linalg.cholesky(covariance).T)
        logs += 0.5 * (unit**2).sum(axis=1)
        if logs.max() == -np.inf:
            return 0.0
        weight = np.exp(logs - logs.max())
        return float(weight.sum() ** 2 / (weight**2).sum() / _DRAWS)

    @cached_property
    def _log_mass(self) -> float:
        """Log integral of likelihood and prior around this fit, but for a constant."""
        gradient, hessian = self.curvature
        mean, covariance = self.moments
        away = mean - self.theta
        change = gradient @ away - 0.5 * away @ hessian @ away
        volume = 0.5 * float(np.linalg.slogdet(covariance)[1])
        return float(-self.objective + change + volume + self._log_room(mean))

    def _log_room(self, theta: FloatArray) -> float:
        """Log room that the targets leave to the box of the prior's extent."""
        box, total = self.model.box, 0.0
        for axis, (start, stop) in enumerate(box.area):
            if box.extent < stop - start:
                place = theta[axis : 3 * self.count : 3]
                first = max(place.max() - box.extent, start)
                last = min(place.min(), stop - box.extent)
                total += log(max(last - first, _LEAST_ROOM * box.extent))
        return total

    def _order(self, theta: FloatArray) -> IntArray:
        """Order of the parameters of another fit that puts its targets next to those of this."""
        from scipy.optimize import linear_sum_assignment

        n = 3 * self.count
        mine, other = (each[:n].reshape(-1, 3)[:, :2] for each in (self.theta, theta))
        pairs = linear_sum_assignment(((mine[:, None] - other) ** 2).sum(axis=-1))[1]
        return np.append((3 * pairs[:, None] + np.arange(3)).ravel(), np.arange(n, theta.size))

    @property
    def _bounds(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Rows, lowest and highest values and widths of the bounds of the prior."""
        n, d, box = 3 * self.count, self.theta.size, self.model.box
        lower, upper = limits(box, self.theta, self.count)
        place = self.theta[:n].reshape(-1, 3)[:, :2]
        rows, low, high = [np.eye(d)[:n]], [*lower[:n]], [*upper[:n]]
        for k, m in combinations(range(self.count), 2):
            away = place[k] - place[m]
            row = np.zeros((1, d))
            row[0, 3 * k : 3 * k + 2] = away / max(np.hypot(*away), 1e-9)
            row[0, 3 * m : 3 * m + 2] = -row[0, 3 * k : 3 * k + 2]
            rows.append(row)
            low.append(box.separation)
            high.append(np.inf)
        if self.count > 1 and np.isfinite(box.extent):
            for axis in range(2):
                row = np.zeros((1, d))
                row[0, 3 * place[:, axis].argmax() + axis] += 1.0
                row[0, 3 * place[:, axis].argmin() + axis] -= 1.0
                rows.append(row)
                low.append(-np.inf)
                high.append(box.extent)
        width = np.full(len(low), np.inf)
        width[:n] = (upper - lower)[:n] / np.sqrt(12.0)
        every = np.concatenate(rows)
        some = every.any(axis=1)  # no line joins targets that lie at the same place
        return every[some], np.array(low)[some], np.array(high)[some], width[some]

    @cached_property
    def at_bound(self) -> BoolArray:
        """Parameters that the prior holds back, shape (d,)."""
        lower, upper = limits(self.model.box, self.theta, self.count)
        return np.asarray((self.theta <= lower) | (self.theta >= upper))

    @cached_property
    def rough_evidence(self) -> float:
        """Log evidence of this number of targets by Laplace's method, but for a constant.

        The bounds of the prior cut nothing off; other optima are left out.
        """
        n = 3 * self.count
        hessian = self.curvature[1].copy()
        hessian[:n, :n] += np.diag(self.model.precision[:n])
        volume = -0.5 * float(np.linalg.slogdet(hessian)[1])
        return -self.objective + volume + self._log_room(self.theta) + self._log_measure

    @cached_property
    def log_evidence(self) -> float:
        """The same by importance sampling around all `modes`.

        Where no draw keeps to the prior, by the volumes that its bounds leave of them.
        """
        modes, share = self.modes
        total = log_integral(self.model, modes, share, _EVIDENCE_DRAWS, 0)
        if total == -np.inf:
            total = self._log_mass - log(share[0])
        return total + self._log_measure

    @property
    def _log_measure(self) -> float:
        """Log of the number of orders of the targets over the size of the prior, and constants."""
        box, d = self.model.box, self.theta.size
        area = box.area[:, 1] - box.area[:, 0]
        total = log_scales(self.model.pixels, 0.0) + 0.5 * d * log(2 * pi)
        total += lgamma(self.count + 1) - self.count * log(box.flux[1] - box.flux[0])
        total -= self.count * float(np.log(self.window.size).sum())
        total -= float(np.log(area[box.extent < area] - box.extent).sum())
        size_y, size_x = self.window.size.tolist()
        return float(total - log_room((size_y, size_x), box.separation, self.count))


def fit_counts(setting: Setting, window: Window, seed: int) -> list[Fit]:
    """Best fit of every number of targets, until more of them are of no use."""
    fits: list[Fit] = []
    for count in setting.counts:
        found = fit(setting, window, count, seed)
        if found is None and not fits:
            raise ValueError(f"{count} target(s) have no room in {setting.prior!r}")
        if found is None:
            break
        fits.append(found)
        evidence = [each.rough_evidence for each in fits]
        if len(fits) > 2 and max(evidence[-2:]) < max(evidence) - _HOPELESS:
            break
    return fits


def evidences(setting: Setting, fits: list[Fit]) -> FloatArray:
    """Log evidence of every number of targets (n_counts,); rough where it is far below the best."""
    out = np.full(len(setting.counts), -np.inf)
    out[: len(fits)] = [each.rough_evidence for each in fits]
    plausible = np.flatnonzero(out >= out.max() - PLAUSIBLE)
    if len(plausible) > 1:
        out[plausible] = [fits[k].log_evidence for k in plausible]
    return out


def fit(setting: Setting, window: Window, count: int, seed: int) -> Fit | None:
    """Best fit of `count` targets; None if so many find no room."""
    model = window.model(setting.optics, count)._replace(pixels=smooth(window.pixels))
    starts = (_STARTS[0] + _STARTS[1] * count) * window.n_cells
    thetas, values = search(model, starts, *ITERATIONS, seed)
    found = [Fit(window, model, *each) for each in zip(thetas, values, strict=True)]
    return replace(found[0], others=tuple(found[1:])) if np.isfinite(values[0]) else None


def smooth(pixels: Pixels) -> Pixels:
    """The same pixels with a normal error of the same variance in place of rounding."""
    two = np.isfinite(pixels.low) & np.isfinite(pixels.high)
    width = float((pixels.high - pixels.low)[two].max(initial=0.0))
    middle = 0.5 * (np.where(two, pixels.low, 0.0) + np.where(two, pixels.high, 0.0))
    variance = pixels.variance + width**2 / 12.0
    low, high = np.where(two, middle, pixels.low), np.where(two, middle, pixels.high)
    return pixels._replace(low=low, high=high, variance=variance)


def _apart(mean: FloatArray, other: FloatArray, covariance: FloatArray) -> bool:
    """Whether two fits are not the same but for how far they went."""
    away = mean - other
    return bool(away @ np.linalg.solve(covariance, away) > mean.size)


@lru_cache(maxsize=256)
def log_room(size: tuple[float, float], separation: float, count: int) -> float:
    """Log probability that `count` points uniform in a box keep their distances.

    Points are added one by one to sets that keep them; what share does is multiplied up.
    """
    if separation == 0.0 or count < 2:
        return 0.0
    rng = np.random.default_rng(0)
    n, total = 4000, 0.0
    sets = rng.uniform(size=(n, 1, 2)) * size
    for _ in range(1, count):
        new = rng.uniform(size=(20, n, 1, 2)) * size
        apart = (((sets[None] - new) ** 2).sum(axis=-1) >= separation**2).all(axis=-1)
        if not apart.any():
            return -np.inf
        total += log(apart.mean())
        draw, which = np.nonzero(apart)
        keep = rng.choice(draw.size, n)
        sets = np.concatenate([sets[which[keep]], new[draw[keep], which[keep]]], axis=1)
    return total
