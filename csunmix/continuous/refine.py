"""From targets on a grid to targets off it: the joint fit, begun where the grid has them."""

from __future__ import annotations

import numpy as np

from csunmix._kernels.fit import descend, objective
from csunmix._kernels.scene import new_room
from csunmix._validation import FloatArray, IntArray
from csunmix.continuous.base import prior_flags
from csunmix.continuous.fit import ITERATIONS, Fit
from csunmix.continuous.window import Setting
from csunmix.peaks import Candidates
from csunmix.targets import Flag


def refine(
    setting: Setting, images: FloatArray, found: Candidates
) -> tuple[Candidates, FloatArray, IntArray]:
    """The same targets off the grid.

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
        The mean of the posterior around the fit, see `Fit.moments`; as found in an image without
        one, see `fit_from`.
    errors : ndarray, shape (n_targets, 3)
        Standard deviations of y, x (px) and flux (DN); NaN in such an image.
    flags : ndarray of int, shape (n_targets,)
        `Flag.NOT_CONVERGED` in such an image, `Flag.MISFIT` in one that the fit does not explain
        either, and `Flag.AT_BOUND` and `Flag.FLAT` of targets.
    """
    targets = np.column_stack(found[1:]).astype(np.float64)
    errors = np.full(targets.shape, np.nan)
    flags = np.full(len(targets), int(Flag.NOT_CONVERGED))
    for frame in np.unique(found.frame):
        mine = found.frame == frame
        fit = fit_from(setting, images[frame].astype(np.float64), targets[mine])
        if fit is not None:
            mean, covariance = fit.moments
            targets[mine] = mean.reshape(-1, 3)
            targets[mine, :2] += fit.window.origin
            errors[mine] = np.sqrt(np.diag(covariance)).reshape(-1, 3)
            flags[mine] = prior_flags(fit.window, np.hstack([targets[mine], errors[mine]]))
            flags[mine] |= 0 if fit.explains else int(Flag.MISFIT)
    return Candidates(found.frame, *targets.T), errors, flags


def fit_from(setting: Setting, image: FloatArray, targets: FloatArray) -> Fit | None:
    """The fit that the descent from `targets` (K, 3), rows ``y, x, flux``, ends in.

    None where no pixel is lit, a target lies outside of the window, there are more unknowns than
    pixels, or no scene within the prior's bounds is found that is likelier than the targets as they
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
    theta = start.ravel()
    model = window.model(setting.optics, len(targets))._replace(pixels=window.smooth)
    room = new_room(model.optics, model.n_targets, theta.size, *model.pixels.low.shape)
    free = model._replace(box=model.box._replace(separation=0.0, extent=np.inf))
    before = objective(free, theta, room)
    value = descend(model, theta, ITERATIONS[1], room)
    return Fit(window, model, theta, value) if objective(free, theta, room) < before else None
