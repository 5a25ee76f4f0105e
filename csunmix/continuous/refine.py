"""From targets on a grid to targets off it: the joint fit, begun where the grid has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt

from csunmix._kernels.fit import misfit
from csunmix._kernels.model import Model
from csunmix._kernels.search import explore
from csunmix._validation import FloatArray, IntArray
from csunmix.continuous.base import count_flag, prior_flags, probabilities
from csunmix.continuous.fit import ITERATIONS, Fit
from csunmix.continuous.sampling import SCORED, approximate
from csunmix.continuous.window import Setting, Window, log_room
from csunmix.peaks import Candidates
from csunmix.targets import Flag

ComplexArray = npt.NDArray[np.complex128]

_NEIGHBOURS = 2.0  # PSF widths, within which two targets may be one, and all are one cluster
_SPLIT = 0.5  # PSF widths between the halves of a target that is split, at least
_MOST = 30  # targets from where none are merged or left out: a descent takes as long as their cube
_STARTS = 4  # scenes of one target more or fewer that are fitted
_GAIN = 2.0  # of the objective by one target more, below which two that are close are one
_SLACK = 0.02  # px, of distances that the prior bounds
_FEW = 12  # targets of a likely cell, of a regular figure, and that light may be split into
_UNSURE = 0.97, 1.03  # of the light that the grid has, less and more
_LEAST = np.finfo(float).tiny  # weight, of targets without flux
_PIXELS = 2**18  # of images whose windows are made at a time
_LINES = np.pi * np.arange(4) / 4  # along which a target is split
_TURNS = np.exp(2j * np.pi * np.arange(1, 8) / 8)  # of a cluster


def refine(
    setting: Setting, images: FloatArray, found: Candidates
) -> tuple[Candidates, FloatArray, IntArray]:
    """Targets off the grid.

    Parameters
    ----------
    setting : Setting
        Optics, detector, background, and the prior whose bounds hold.
    images : ndarray, shape (n, n_y, n_x)
        Finite images, DN.
    found : Candidates
        What a grid method found in them.

    Returns
    -------
    refined : Candidates
        The mean of the posterior around the fit and others, see `Fit.mixture`; as found in an image
        without one, see `fit_from`.
    claims : ndarray, shape (n_targets, 4)
        Standard deviations of y, x (px) and flux (DN), and the probability that the count is right
        and the target lies within 0.1 px of its mean; NaN in such an image.
    flags : ndarray of int, shape (n_targets,)
        `Flag.NOT_CONVERGED` in such an image, `Flag.MISFIT` in one that the fit does not explain
        either, `Flag.COUNT_AMBIGUOUS`, and `Flag.AT_BOUND` and `Flag.FLAT` of targets.
    """
    order = np.argsort(found.frame, kind="stable")
    every = np.column_stack(found[1:]).astype(np.float64)[order]
    frames, rows = np.unique(np.asarray(found.frame, np.int64)[order], return_index=True)
    starts = np.split(every, rows)[1:]
    size = max(1, _PIXELS // (setting.shape[0] * setting.shape[1]))
    answers: list[tuple[FloatArray, IntArray]] = []
    for first in range(0, len(frames), size):
        part = slice(first, first + size)
        answers += _refined(setting, images[frames[part]].astype(np.float64), starts[part])
    frame = np.repeat(frames, [len(targets) for targets, _ in answers])
    values = np.concatenate([np.empty((0, 7)), *(targets for targets, _ in answers)])
    flags = np.concatenate([np.empty(0, np.int64), *(flags for _, flags in answers)])
    return Candidates(frame, *values[:, :3].T), values[:, 3:], flags


def _refined(
    setting: Setting, images: FloatArray, starts: Sequence[FloatArray]
) -> list[tuple[FloatArray, IntArray]]:
    """Targets (K, 7) of each image with what is claimed of them, and flags (K,)."""
    answers, alike = [], defaultdict(list)
    for n, (window, targets) in enumerate(zip(setting.windows(images), starts, strict=True)):
        found = None if window is None else fit_from(setting, window, targets)
        if found is None:
            targets = np.hstack([targets, np.full((len(targets), 4), np.nan)])
            flags = int(Flag.NOT_CONVERGED)
        else:
            fit, probability = found
            targets = approximate(fit, SCORED)
            targets[:, 6] *= probability
            flags = count_flag(probability) | (0 if fit.explains else int(Flag.MISFIT))
            alike[fit.count].append((n, fit.window))
        answers.append((targets, np.full(len(targets), flags)))
    for each in alike.values():  # of one number of targets, as arrays
        rows, of = zip(*each, strict=True)
        marks = prior_flags(of, np.array([answers[n][0] for n in rows]))
        for n, mark in zip(rows, marks, strict=True):
            np.bitwise_or(answers[n][1], mark, out=answers[n][1])
    return answers


def fit_from(setting: Setting, window: Window, targets: FloatArray) -> tuple[Fit, float] | None:
    """The best fit that descents from `targets` (K, 3), rows ``y, x, flux``, end in.

    Where their light is too much for so many within the prior's bounds, the brightest become two.
    Where a fit does not explain the image, so many may be too many: then the closest two of 30 at
    most become one, again and again, until it does, or none stand close. Where the prior has a
    count, the likeliest of one target more or fewer at a time follows, see `_likeliest`; its
    probability is the second value. It goes down again from other shapes, and in a cell that is
    likely; the fit has what they end in as its other optima. None where a target lies outside of
    the window, there are more unknowns than pixels, no scene within the bounds is found that
    explains the image or leaves less of it than the targets as they are, or none has a count of the
    prior.
    """
    if targets.size > window.pixels.low.size:
        return None
    start = targets - np.array([*window.origin, 0.0])
    inside = (start[:, :2] >= -0.5) & (start[:, :2] <= np.array(window.pixels.low.shape) - 0.5)
    if not inside.all():
        return None
    descents, best = _Descents(setting, window), None
    most = np.inf if setting.prior.flux is None else setting.prior.flux[1]
    for scenes in chain(_split(start, most, descents.apart), _merge(start, descents.reach)):
        fit = descents.fit(scenes.reshape(len(scenes), -1))
        better = fit.objective < (np.inf if best is None else best.objective)
        if better and (fit.explains or fit.misfit < descents.misfit(start)):
            best = fit
        if best is not None and best.explains:
            break
    likeliest = None if best is None else _likeliest(descents, best)
    if likeliest is None:
        return None
    fit, probability = likeliest
    return _with_others(descents, fit), probability


class _Descents:
    """Descents in one window; the posterior of each number of targets is made once."""

    def __init__(self, setting: Setting, window: Window) -> None:
        self.setting, self.window = setting, window
        self.reach = _NEIGHBOURS * setting.width
        self.apart = max(window.box.separation, _SPLIT * setting.width)
        self._models: dict[int, Model] = {}

    def fit(self, scenes: FloatArray, *, in_cells: bool = False) -> Fit:
        """What scenes (n, d) lead to, and that in cells."""
        model = self.model(scenes.shape[1] // 3)
        return Fit(self.window, model, *explore(model, scenes, *ITERATIONS, in_cells))

    def neighbour(self, fit: Fit, step: int) -> Fit | None:
        """The fit of one target more (`step` 1) or fewer (-1); None where so many find no room.

        Of all scenes with one of the targets in two, or one left out, or two as one, those are
        starts that leave least of the image.
        """
        targets, count = fit.targets, fit.count + step
        if not (0 < 3 * count <= self.window.pixels.low.size and self.has_room(count)):
            return None
        scenes = _more(targets, self.apart) if step > 0 else _fewer(targets, self.reach)
        left = [self.misfit(scene) for scene in scenes]
        best = scenes[np.argsort(left, kind="stable")[:_STARTS]]
        return self.fit(best.reshape(len(best), -1))

    def has_room(self, count: int) -> bool:
        """Whether so many targets can keep the prior's distances."""
        apart, size = self.window.box.separation, self.window.size
        if (count - 1) * np.pi * apart**2 < size.prod():  # others are too few to fill it
            return True
        return log_room(size, apart, count) > -np.inf

    def misfit(self, targets: FloatArray) -> float:
        """What targets (K, 3) leave of the image."""
        return float(misfit(self.model(len(targets)), targets.ravel()))

    def model(self, count: int) -> Model:
        """The posterior of so many targets, rounding as a normal error."""
        if count not in self._models:
            model = self.window.model(self.setting.optics, count, weighs_cell=False)
            self._models[count] = model._replace(pixels=self.window.smooth)
        return self._models[count]


def _likeliest(descents: _Descents, fit: Fit) -> tuple[Fit, float] | None:
    """The likeliest of a fit and of some of more or fewer targets, and its probability among these.

    The number is taken as it is where the prior has no count. Else it first becomes one of these,
    and goes on by one at a time as long as that is likelier; the likeliest that explains the image
    is taken, if one does. None where it can not become one of these, or explains the image no more.
    """
    if descents.setting.prior.count is None:
        return fit, 1.0
    first, (low, high) = fit, descents.setting.prior.count
    while not (low <= fit.count <= high and descents.has_room(fit.count)):
        step = 1 if fit.count < low else -1
        other = descents.neighbour(fit, step) if step > 0 or fit.count <= _MOST else None
        if other is None:
            return None
        fit = other
    fits = [each for each in _climb(descents, fit) if each.explains and _keeps_distance(each)]
    if not fits:
        return (fit, 1.0) if fit is first else None
    if len(fits) == 1:
        return fits[0], 1.0
    evidence = np.array([each.likely_evidence for each in fits])
    return fits[int(evidence.argmax())], float(probabilities(evidence).max())


def _climb(descents: _Descents, fit: Fit) -> list[Fit]:
    """A fit, then those of more targets, or of fewer, up to the first that is less likely.

    A fit that owes next to nothing to one of its targets, which lies on another, is left out: the
    volume that these have says nothing.
    """
    fits, best = [fit], fit
    for step in (1, -1):
        while step * (best.count - fit.count) >= 0 and _allowed(descents, best, best.count + step):
            other = descents.neighbour(best, step)
            if other is None:
                break
            more, fewer = (other, best) if step > 0 else (best, other)
            gain = fewer.objective - more.objective
            if gain < _GAIN and _distances(more.targets).min() < 0.999 * descents.apart:
                fits, best = [each for each in (*fits, other) if each is not more], fewer
                if more is other:
                    break
                continue
            fits.append(other)
            if other.likely_evidence < best.likely_evidence:
                break
            best = other
    return fits


def _allowed(descents: _Descents, fit: Fit, count: int) -> bool:
    """Whether the prior allows so many, and by its fluxes the light that is there.

    Without fluxes, not where a target has all that the window shows, and may have more.
    """
    prior, flux = descents.setting.prior, fit.theta[2::3]
    least, most = fit.model.box.flux
    if prior.flux is None and flux.max() >= most:
        return False
    lit = count * most >= _UNSURE[0] * flux.sum() and count * least <= _UNSURE[1] * flux.sum()
    return bool(lit and count in descents.setting.counts)


def _keeps_distance(fit: Fit) -> bool:
    """Whether the targets lie as far apart and as close together as the prior says, or nearly."""
    box = fit.model.box
    apart = _distances(fit.targets).min(initial=np.inf) > box.separation - _SLACK
    return bool(apart and np.ptp(fit.targets[:, :2], axis=0).max() < box.extent + _SLACK)


def _distances(targets: FloatArray) -> FloatArray:
    """Distances between targets (K, 3), px, by `_pairs`."""
    first, second = _pairs(len(targets))
    away = targets[first] - targets[second]
    return np.asarray(np.hypot(away[:, 0], away[:, 1]))


@lru_cache(maxsize=16)
def _pairs(count: int) -> tuple[IntArray, IntArray]:
    """The first and the second target of every pair."""
    return np.triu_indices(count, 1)


def _more(targets: FloatArray, apart: float) -> FloatArray:
    """Scenes (n, K + 1, 3), each of the targets in two."""
    scenes = targets[None]
    return np.concatenate([_in_two(scenes, k, _away(apart)) for k in range(len(targets))])


def _fewer(targets: FloatArray, reach: float) -> FloatArray:
    """Scenes (n, K - 1, 3), one of the targets left out, or two that stand close as one."""
    near = _distances(targets) <= reach
    pairs = zip(*(index[near].tolist() for index in _pairs(len(targets))), strict=True)
    without = [np.delete(targets, k, axis=0) for k in range(len(targets))]
    return np.array(without + [_as_one(targets, a, b) for a, b in pairs])


def _with_others(descents: _Descents, fit: Fit) -> Fit:
    """The best of a fit, of what it becomes reshaped, and of both in a cell; others beside it."""
    in_cells = 0.0 < fit.model.box.cell < 1.0 and fit.count <= _FEW
    scenes = np.vstack([fit.theta, _reshaped(fit.theta, descents.reach)])
    fit = descents.fit(scenes, in_cells=in_cells)
    density = fit.window.cell_density(fit.count) if in_cells else 0.0
    box = fit.model.box._replace(cell_density=density)
    return replace(fit, model=fit.model._replace(box=box))


def _reshaped(theta: FloatArray, reach: float) -> FloatArray:
    """A scene (d,) turned about its middle, and as regular figures (n, d).

    The light of a cluster hardly tells its shape from one that is turned, nor from another of the
    same spread: many an optimum is that of another shape. Targets that stand apart, and one alone,
    are left as they are.
    """
    place = theta[::3] + 1j * theta[1::3]
    away = place - place.mean()
    if away.size == 1 or np.abs(away).max() > reach:
        return np.empty((0, theta.size))
    spread = np.sqrt((np.abs(away) ** 2).sum())
    places = place.mean() + np.vstack([_TURNS[:, None] * away, spread * _figures(away.size)])
    scenes = np.repeat(theta[None], len(places), axis=0)
    scenes[:, ::3], scenes[:, 1::3] = places.real, places.imag
    return scenes


@cache
def _figures(count: int) -> ComplexArray:
    """Places (n, count) at equal angles, of one in the middle too, their squares summing to 1."""
    figures = [np.empty((0, count), complex)]
    for n in (count, count - 1):
        if 3 <= n <= _FEW:
            angles = 2.0 * np.pi * (np.arange(n) + np.array([[0.0], [0.5]])) / n
            ring = np.exp(1j * angles) / np.sqrt(n)
            figures.append(np.pad(ring, [(0, 0), (0, count - n)]))
    return np.vstack(figures)


def _split(targets: FloatArray, most: float, apart: float) -> Iterator[FloatArray]:
    """Scenes (n, K, 3): the brightest of too few targets in two, `apart` along one line or another.

    For as many as their light needs at `most` DN each, by a little less or more of it; none where
    that is no more than there are, or more than `_FEW` and twice as many.
    """
    light = targets[:, 2].sum() / most
    limit = max(2 * len(targets), _FEW)
    for number in sorted({float(np.ceil(share * light)) for share in _UNSURE}):
        if len(targets) < number <= limit:
            scenes = targets[None]
            while scenes.shape[1] < number:
                scenes = _in_two(scenes, int(scenes[0, :, 2].argmax()), _away(apart))
            yield scenes


def _away(apart: float) -> FloatArray:
    """From the middle of two targets `apart` along a line to one of them (n, 3), for each line."""
    return 0.5 * apart * np.stack([np.sin(_LINES), np.cos(_LINES), np.zeros_like(_LINES)], axis=1)


def _in_two(scenes: FloatArray, k: int, away: FloatArray) -> FloatArray:
    """Scenes (n, K + 1, 3) of n scenes, or of one, target k in two, `away` (n, 3) both ways."""
    scenes = np.repeat(scenes, len(away) // len(scenes), axis=0)
    scenes[:, k, 2] *= 0.5
    other = scenes[:, k] + away
    scenes[:, k] -= away
    return np.concatenate([scenes, other[:, None]], axis=1)


def _merge(targets: FloatArray, reach: float) -> Iterator[FloatArray]:
    """The targets (1, K, 3), then the closest two as one, and again while they are in `reach`."""
    while True:
        yield targets[None]
        if not 1 < len(targets) <= _MOST:
            return
        distance = _distances(targets)
        closest = int(distance.argmin())
        if distance[closest] > reach:
            return
        a, b = (int(index[closest]) for index in _pairs(len(targets)))
        targets = _as_one(targets, a, b)


def _as_one(targets: FloatArray, a: int, b: int) -> FloatArray:
    """The targets (K - 1, 3) with a and b as one between them, of all their light."""
    pair = targets[[a, b]]
    place = np.average(pair[:, :2], axis=0, weights=np.maximum(pair[:, 2], _LEAST))
    out = np.delete(targets, b, axis=0)
    out[a] = *place, pair[:, 2].sum()
    return out
