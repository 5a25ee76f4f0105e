"""From targets on a grid to targets off it: the joint fit, begun where the grid has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
from scipy.spatial.distance import pdist

from csunmix._kernels.fit import descend, objective
from csunmix._kernels.model import Model
from csunmix._kernels.scene import Room, new_room
from csunmix._validation import FloatArray, IntArray
from csunmix.continuous.base import prior_flags
from csunmix.continuous.fit import ITERATIONS, Fit, in_cells
from csunmix.continuous.sampling import SCORED, approximate
from csunmix.continuous.window import Setting, Window
from csunmix.peaks import Candidates
from csunmix.targets import Flag

_NEIGHBOURS = 2.0  # PSF widths, within which two targets may be one, and all are one cluster
_SPLIT = 0.5  # PSF widths between the halves of a target that is split, at least
_MOST = 30  # targets of an image that may be merged: a descent takes as long as their cube
_FEW = 12  # targets that a likely cell is reckoned with, and that light may be split into
_UNSURE = 0.97, 1.03  # of the light that the grid has, less and more
_LINES = 4  # that a target is split along, all of them
_TURNS = 8  # of a cluster, in all
_NEAR = 12.0  # objective above the best that a fit may be after its first steps, some still to go
_LEAST = np.finfo(float).tiny  # weight, of targets without flux


def refine(
    setting: Setting, images: FloatArray, found: Candidates
) -> tuple[Candidates, FloatArray, IntArray]:
    """Targets off the grid.

    Parameters
    ----------
    setting : Setting
        Optics, detector, background, and the prior whose bounds hold; its count does not matter.
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
        Standard deviations of y, x (px) and flux (DN), and the probability that the target lies
        within 0.1 px of its mean; NaN in such an image.
    flags : ndarray of int, shape (n_targets,)
        `Flag.NOT_CONVERGED` in such an image, `Flag.MISFIT` in one that the fit does not explain
        either, and `Flag.AT_BOUND` and `Flag.FLAT` of targets.
    """
    order = np.argsort(found.frame, kind="stable")
    every = np.column_stack(found[1:]).astype(np.float64)[order]
    frames, rows = np.unique(np.asarray(found.frame)[order], return_index=True)
    answers = [
        _refined(setting, images[frame].astype(np.float64), targets)
        for frame, targets in zip(frames, np.split(every, rows)[1:], strict=True)
    ]
    frame = np.repeat(frames, [len(targets) for targets, _ in answers])
    values = np.concatenate([np.empty((0, 7)), *(targets for targets, _ in answers)])
    flags = np.concatenate([np.empty(0, np.int64), *(flags for _, flags in answers)])
    return Candidates(frame, *values[:, :3].T), values[:, 3:], flags


def _refined(
    setting: Setting, image: FloatArray, targets: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Targets (K, 7) of an image with what is claimed of them, and flags (K,)."""
    fit = fit_from(setting, image, targets)
    if fit is None:
        unknown = np.full((len(targets), 4), np.nan)
        return np.hstack([targets, unknown]), np.full(len(targets), int(Flag.NOT_CONVERGED))
    refined = approximate(fit, SCORED)
    flags = prior_flags(fit.window, refined)
    return refined, flags | (0 if fit.explains else int(Flag.MISFIT))


def fit_from(setting: Setting, image: FloatArray, targets: FloatArray) -> Fit | None:
    """The best fit that descents from `targets` (K, 3), rows ``y, x, flux``, end in.

    Where their light is too much for so many within the prior's bounds, the brightest become two.
    Where a fit does not explain the image, so many may be too many: then the closest two of 30 at
    most become one, again and again, until it does, or none stand close. The best goes down again,
    turned about its middle, and in a cell that is likely; the fit has these as `others`. None where
    no pixel is lit, a target lies outside of the window, there are more unknowns than pixels, or no
    scene within the bounds is found that explains the image or is likelier than the targets as they
    are.
    """
    window = setting.window(image)
    if window is None or targets.size > window.pixels.low.size:
        return None
    start = targets.copy()
    start[:, :2] -= window.origin
    inside = (start[:, :2] >= -0.5) & (start[:, :2] <= np.array(window.pixels.low.shape) - 0.5)
    if not inside.all():
        return None
    descents, reach = _Descents(setting, window), _NEIGHBOURS * setting.width
    before, best = descents.misfit(start), None
    apart = max(window.box.separation, _SPLIT * setting.width)
    most = np.inf if setting.prior.flux is None else setting.prior.flux[1]
    for scenes in chain(_split(start, most, apart), _merge(start, reach)):
        for fit in (descents.fit(scene, ITERATIONS[1]) for scene in scenes):
            better = best is None or fit.objective < best.objective
            if better and (descents.misfit(fit.theta.reshape(-1, 3)) < before or fit.explains):
                best = fit
        if best is not None and best.explains:
            break
    return best if best is None else _with_others(descents, best, reach)


class _Descents:
    """Descents in one window; what they need of memory is made once for each number of targets."""

    def __init__(self, setting: Setting, window: Window) -> None:
        self.setting, self.window = setting, window
        self._made: dict[int, tuple[Model, Room]] = {}

    def fit(self, scene: FloatArray, n_steps: int) -> Fit:
        """The fit that so many steps from a scene (K, 3) lead to."""
        (model, room), theta = self._for(len(scene)), scene.flatten()
        return Fit(self.window, model, theta, descend(model, theta, n_steps, room))

    def misfit(self, scene: FloatArray) -> float:
        """Minus the log likelihood, whatever the prior says of separation and extent."""
        model, room = self._for(len(scene))
        free = model._replace(box=model.box._replace(separation=0.0, extent=np.inf))
        return float(objective(free, scene.ravel(), room))

    def _for(self, count: int) -> tuple[Model, Room]:
        """The posterior of so many targets, rounding as a normal error, and room for its light."""
        if count not in self._made:
            pixels = self.window.smooth
            model = self.window.model(self.setting.optics, count, weighs_cell=False)
            model = model._replace(pixels=pixels)
            room = new_room(model.optics, count, 3 * count, *pixels.low.shape)
            self._made[count] = model, room
        return self._made[count]


def _with_others(descents: _Descents, fit: Fit, reach: float) -> Fit:
    """The best of a fit, of what it becomes turned, and of both in a cell; the others beside it."""
    near = _distinct([fit, *_turned(descents, fit, reach)])
    least = near[0].objective
    near = [each for each in near if each.objective < least + _NEAR]
    fits = _distinct([descents.fit(each.theta.reshape(-1, 3), ITERATIONS[1]) for each in near])
    if 0.0 < fit.model.box.cell < 1.0 and fit.count <= _FEW:
        model = descents.window.model(descents.setting.optics, fit.count)
        model = model._replace(pixels=fit.model.pixels)
        fits = [replace(each, model=model) for each in fits]
        fits = _distinct(fits + in_cells(fits))
    return replace(fits[0], others=tuple(fits[1:]))


def _distinct(fits: list[Fit]) -> list[Fit]:
    """The best first, and one of those that are the same but for rounding and their order."""
    found: dict[tuple[float, ...], Fit] = {}
    for fit in fits:
        places = np.sort(np.round(fit.theta.reshape(-1, 3)[:, :2], 2), axis=0)
        found.setdefault((round(fit.objective, 3), *places.ravel().tolist()), fit)
    return [found[key] for key in sorted(found)]


def _turned(descents: _Descents, fit: Fit, reach: float) -> Iterator[Fit]:
    """What a cluster becomes that is turned about its middle, after the first steps.

    Its light hardly tells its shape from one that is turned: many an optimum is that of another
    turned. Targets that stand apart are left as they are.
    """
    scene = fit.theta.reshape(-1, 3)
    middle = scene[:, :2].mean(axis=0)
    away = scene[:, :2] - middle
    if fit.count == 1 or np.hypot(*away.T).max() > reach:
        return
    turned = scene.copy()
    for angle in 2.0 * np.pi * np.arange(1, _TURNS) / _TURNS:
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned[:, :2] = middle + away @ turn.T
        yield descents.fit(turned, ITERATIONS[0])


def _split(targets: FloatArray, most: float, apart: float) -> Iterator[list[FloatArray]]:
    """Scenes (K, 3): the brightest of too few targets in two, `apart` along one line or another.

    For as many as their light needs at `most` DN each, by a little less or more of it; none where
    that is no more than there are, or more than `_FEW` and twice as many.
    """
    light = targets[:, 2].sum() / most
    limit = max(2 * len(targets), _FEW)
    for number in sorted({float(np.ceil(share * light)) for share in _UNSURE}):
        if len(targets) < number <= limit:
            yield [_halved(targets, number, apart, n * np.pi / _LINES) for n in range(_LINES)]


def _halved(targets: FloatArray, number: float, apart: float, angle: float) -> FloatArray:
    """So many targets (K, 3), the brightest in two along a line again and again."""
    away = 0.5 * apart * np.array([np.sin(angle), np.cos(angle), 0.0])
    scene = targets.copy()
    while len(scene) < number:
        k = int(scene[:, 2].argmax())
        scene[k, 2] *= 0.5
        scene = np.vstack([scene, scene[k] + away])
        scene[k] -= away
    return scene


def _merge(targets: FloatArray, reach: float) -> Iterator[list[FloatArray]]:
    """The targets (K, 3), then the closest two as one, and again while they are in `reach`."""
    while True:
        yield [targets]
        if not 1 < len(targets) <= _MOST:
            return
        distance = pdist(targets[:, :2])
        closest = int(distance.argmin())
        if distance[closest] > reach:
            return
        a, b = (int(index[closest]) for index in np.triu_indices(len(targets), 1))
        pair = targets[[a, b]]
        place = np.average(pair[:, :2], axis=0, weights=np.maximum(pair[:, 2], _LEAST))
        targets = np.delete(targets, b, axis=0)
        targets[a] = *place, pair[:, 2].sum()
