"""From targets on a grid to targets off it: the joint fit, begun where the grid has them."""

from __future__ import annotations

import numpy as np

from csunmix._kernels.model import Views
from csunmix._kernels.refine import EXPLORE, FEW, Answers, Rules
from csunmix._kernels.refine import refine as refine_views
from csunmix._validation import FloatArray, IntArray
from csunmix.continuous.base import count_flags, prior_flags
from csunmix.continuous.sampling import SCORED
from csunmix.continuous.window import Setting
from csunmix.peaks import Candidates
from csunmix.targets import Flag

_NEIGHBOURS = 2.0  # PSF widths, within which two targets may be one, and all are one cluster
_SPLIT = 0.5  # PSF widths between the halves of a target that is split, at least
_PIXELS = 2**16  # of images whose windows are made at a time


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
        The mean of the posterior around the fit and others; as found in an image without a fit, see
        `csunmix._kernels.refine.fit_from`.
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
    rows = np.append(rows, len(every))
    size = max(1, _PIXELS // (setting.shape[0] * setting.shape[1]))
    frame: list[IntArray] = [np.empty(0, np.int64)]
    values: list[FloatArray] = [np.empty((0, 7))]
    flags: list[IntArray] = [np.empty(0, np.int64)]
    for first in range(0, len(frames), size):
        part = frames[first : first + size]
        mine = rows[first : first + size + 1]
        starts = every[mine[0] : mine[-1]]
        which, targets, marks = _refined(
            setting, images[part].astype(np.float64), starts, mine - mine[0]
        )
        frame.append(part[which])
        values.append(targets)
        flags.append(marks)
    every = np.concatenate(values)
    refined = Candidates(np.concatenate(frame), *every[:, :3].T)
    return refined, every[:, 3:], np.concatenate(flags)


def _refined(
    setting: Setting, images: FloatArray, starts: FloatArray, rows: IntArray
) -> tuple[IntArray, FloatArray, IntArray]:
    """Of which image each target is, what is claimed of it (7,), and its flags.

    The targets of image n begin as those of ``rows[n]`` to ``rows[n + 1]``.
    """
    views, found = setting.views(images), np.diff(rows)
    many = min((setting.prior.count or (0, 0))[1], images[0].size // 3)
    most = max(FEW, 2 * int(found.max()), many)
    known = setting.rooms[0].copy()
    answers = refine_views(rules(setting), views, starts, rows, most, SCORED, known, EXPLORE)
    setting.rooms[0] = known  # another, as a thread that works on it may not be done
    fitted = answers.n_targets > 0
    which = np.repeat(np.arange(len(images)), np.where(fitted, answers.n_targets, found))
    mine = fitted[which]
    some = np.arange(most) < answers.n_targets[:, None]
    targets = np.full((len(which), 7), np.nan)
    targets[mine] = answers.targets[some]
    targets[~mine, :3] = starts[np.repeat(~fitted, found)]
    flags = np.full(len(which), int(Flag.NOT_CONVERGED))
    flags[mine] = target_flags(setting, views, answers)[some]
    return which, targets, flags


def rules(setting: Setting) -> Rules:
    """What a fit keeps to in all images."""
    prior = setting.prior
    return Rules(
        setting.optics,
        setting.box,
        _NEIGHBOURS * setting.width,
        max(float(prior.min_separation), _SPLIT * setting.width),
        prior.flux is not None,
        (0, 0) if prior.count is None else (setting.counts.start, setting.counts.stop - 1),
    )


def target_flags(setting: Setting, views: Views, answers: Answers) -> IntArray:
    """Flags (n, most) of the targets of images with a fit."""
    of_image = count_flags(answers.probability)
    of_image |= np.where(answers.explains > 0.0, 0, int(Flag.MISFIT))
    flags = np.repeat(of_image[:, None], answers.targets.shape[1], axis=1)
    ends = np.concatenate([views.area, views.flux[:, None]], axis=1)
    for count in np.unique(answers.n_targets[answers.n_targets > 0]):
        rows = answers.n_targets == count
        marks = prior_flags(setting.box, ends[rows], answers.targets[rows, :count])
        flags[rows, :count] |= marks
    return flags
