"""What the grid-free unmixers have in common: from a stack of images to one target table."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import numpy.typing as npt

from csunmix._ahead import Step, prepare
from csunmix._batches import as_stack
from csunmix._kernels.prior import Box
from csunmix._validation import (
    Array,
    BoolArray,
    FloatArray,
    IntArray,
    as_bool,
    as_images,
    as_integer,
    refuse_colours,
    usable,
)
from csunmix.continuous.fit import Fit
from csunmix.continuous.window import Background, Setting, Window
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor
from csunmix.targets import Flag, make_table
from csunmix.unmixer import at_border

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("csunmix")

_TOGETHER, _SHARES = 8, 16  # images of a part at most, and parts for each thread at least
_SURE = 0.9  # probability of the count below which it is ambiguous
_LEANING = 1.5  # errors to a bound; 1.7 where all between two bounds is as likely, 1.3 at a wall
_FLAT = 0.8  # of the prior's standard deviation


@dataclass(frozen=True)
class Answer:
    """The targets of one image.

    Attributes
    ----------
    targets : ndarray, shape (n, 7)
        ``y, x, flux, y_err, x_err, flux_err, score`` of each.
    flags : ndarray of int, shape (n,)
        Flags of each.
    probability : ndarray, shape (n_counts,)
        Probability of each number of targets that was looked for.
    frame_flags : int
        Flags of the image beside those of its targets.
    """

    targets: FloatArray
    flags: IntArray
    probability: FloatArray
    frame_flags: int = 0


@dataclass(frozen=True)
class OffGrid(ABC):
    """From a stack of images to a target table, and what is known of images of a shape."""

    psf: PSF
    sensor: Sensor = field(default_factory=Sensor)
    _: KW_ONLY
    n_jobs: int = field(default=1, repr=False)
    _settings: dict[tuple[int, ...], Setting] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self._new_setting((1, 1))  # refuses parts of a wrong type
        as_integer(self.n_jobs, "n_jobs", minimum=1)

    def __call__(self, images: npt.ArrayLike, *, progress: bool = False) -> pd.DataFrame:
        """Unmix images.

        Parameters
        ----------
        images : array_like, shape (..., n_y, n_x)
            One image or any number of them, DN; ``frame`` counts them in row-major order.
        progress : bool
            Show a progress bar, and say so if kernels are compiled first (as does the log).

        Returns
        -------
        pandas.DataFrame
            Target table. Images that are not finite, or in which nothing was found, yield no
            targets and a flag in ``attrs["frame_flags"]``. `ContinuousUnmixer` and
            `PosteriorUnmixer` tell of all numbers of targets: ``attrs["count_probability"]``, a
            list for each frame, holds the probability of each, ``attrs["counts"]`` these numbers.

        Raises
        ------
        TypeError
            If the images are not real numbers.
        ValueError
            If the images are empty, or colours by their shape, or none is finite.
        """
        as_bool(progress, "progress")
        stack = as_stack(images)
        refuse_colours(np.shape(images))
        setting = self._setting(stack.shape[1:])
        prepare(self, progress=progress)
        return self._unmix(setting, stack, progress)

    @abstractmethod
    def _to_compile(self) -> Iterable[Step]:
        """Steps that go side by side."""

    @abstractmethod
    def _new_setting(self, shape: tuple[int, int]) -> Setting:
        """What is known of images of one shape."""

    @abstractmethod
    def _unmix(self, setting: Setting, stack: Array, progress: bool) -> pd.DataFrame:
        """The target table of a stack, finite or not."""

    def _setting(self, shape: tuple[int, ...]) -> Setting:
        """`_new_setting`, kept: to tabulate a PSF takes time."""
        if shape not in self._settings:
            self._settings[shape] = self._new_setting((shape[0], shape[1]))
        return self._settings[shape]


@dataclass(frozen=True)
class OneByOne(OffGrid):
    """A method that answers for each image; for some at a time, as their windows are."""

    @abstractmethod
    def _find(self, setting: Setting, images: FloatArray) -> list[Answer]:
        """Targets of each of finite images (n, n_y, n_x) in double precision."""

    def _unmix(self, setting: Setting, stack: Array, progress: bool) -> pd.DataFrame:
        answers = list(_progress(self._answers(setting, stack), len(stack), progress))
        if all(answer is None for answer in answers):
            as_images(stack)  # says where
        return self._table(setting, answers)

    def _answers(self, setting: Setting, stack: Array) -> Iterable[Answer | None]:
        _ = setting.optics  # made once, before threads ask for it
        size = min(max(len(stack) // (_SHARES * self.n_jobs), 1), _TOGETHER)
        parts = (stack[first : first + size] for first in range(0, len(stack), size))
        answer = partial(self._answer_part, setting)
        if self.n_jobs == 1:
            yield from chain.from_iterable(map(answer, parts))
        else:
            with ThreadPoolExecutor(self.n_jobs) as pool:
                yield from chain.from_iterable(pool.map(answer, parts))

    def _answer_part(self, setting: Setting, images: Array) -> list[Answer | None]:
        """Targets of each of some images, finite or not."""
        images = self.sensor.patched(images.astype(np.float64))
        finite = usable(images)
        found = iter(self._find(setting, images[finite]) if finite.any() else ())
        return [next(found) if each else None for each in finite]

    def _table(self, setting: Setting, answers: list[Answer | None]) -> pd.DataFrame:
        frames: list[int] = []
        rows: list[FloatArray] = [np.empty((0, 7))]
        flags: list[IntArray] = [np.empty(0, np.int64)]
        frame_flags: dict[int, int] = {}
        for frame, answer in enumerate(answers):
            if answer is None:
                frame_flags[frame] = int(Flag.NOT_FINITE) | int(Flag.NO_TARGET)
                continue
            of_image = answer.frame_flags | int(np.bitwise_or.reduce(answer.flags))
            of_image |= 0 if len(answer.targets) else int(Flag.NO_TARGET)
            if of_image:
                frame_flags[frame] = of_image
            frames += [frame] * len(answer.targets)
            rows.append(answer.targets)
            flags.append(answer.flags)
        bad = [frame for frame, answer in enumerate(answers) if answer is None]
        if bad:
            logger.warning("%d image(s) not finite, first frame %d: skipped", len(bad), bad[0])
        y, x, flux, y_err, x_err, flux_err, score = np.concatenate(rows).T
        return make_table(
            np.array(frames, np.int64),
            y,
            x,
            flux,
            n_frames=len(answers),
            frame_flags=frame_flags,
            attrs={"method": repr(self), "image_shape": setting.shape},
            y_err=y_err,
            x_err=x_err,
            flux_err=flux_err,
            score=score,
            flags=np.concatenate(flags),
        )


@dataclass(frozen=True)
class _Unmixer(OneByOne):
    """Front door of the methods that choose the number of targets by a prior."""

    prior: Prior = field(default_factory=Prior)
    _: KW_ONLY
    background: Background = 0.0
    psf_error: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        as_integer(self.seed, "seed", minimum=0)

    @abstractmethod
    def _answer(self, setting: Setting, window: Window, seed: int) -> Answer:
        """Targets of an image in which a pixel is lit."""

    def _new_setting(self, shape: tuple[int, int]) -> Setting:
        return Setting(self.psf, self.sensor, self.prior, shape, self.background, self.psf_error)

    def _find(self, setting: Setting, images: FloatArray) -> list[Answer]:
        of_images = image_flags(setting, images)
        nothing = np.empty((0, 7)), np.empty(0, np.int64), np.zeros(len(setting.counts))
        answers = []
        for image, window, flags in zip(images, setting.windows(images), of_images, strict=True):
            if window is None:
                answers.append(Answer(*nothing, int(flags)))
                continue
            # By the pixels, so that an answer depends neither on its batch nor on its place in it.
            found = self._answer(setting, window, crc32(image.tobytes(), self.seed))
            answers.append(replace(found, flags=found.flags | flags))
        return answers

    def _table(self, setting: Setting, answers: list[Answer | None]) -> pd.DataFrame:
        table = super()._table(setting, answers)
        nothing = np.zeros(len(setting.counts))
        table.attrs["counts"] = tuple(setting.counts)
        table.attrs["count_probability"] = [
            (nothing if answer is None else answer.probability).tolist() for answer in answers
        ]
        return table


def answer_for(
    setting: Setting, best: Fit, targets: FloatArray, flags: int, p: FloatArray
) -> Answer:
    """The answer for the most probable count: its probability in the scores, and flags added."""
    targets[:, 6] *= p.max()
    flags |= int(count_flags(p.max()))
    flags |= 0 if best.explains else int(Flag.MISFIT)
    border = border_flags(setting, targets[:, 0], targets[:, 1])
    box, (top, left) = best.window.box, best.window.origin
    ends = np.vstack([box.area + np.array([[top], [left]]), box.flux])
    return Answer(targets, flags | border | prior_flags(box, ends[None], targets[None])[0], p)


def count_flags(probability: npt.ArrayLike) -> IntArray:
    """`Flag.COUNT_AMBIGUOUS` where a count is not sure."""
    return np.where(np.asarray(probability) >= _SURE, 0, int(Flag.COUNT_AMBIGUOUS))


def prior_flags(box: Box, ends: FloatArray, targets: FloatArray) -> IntArray:
    """Flags (n, K) of targets (n, K, 7) of which the prior says more than the image.

    Parameters
    ----------
    box : Box
        What it says of all images alike.
    ends : ndarray, shape (n, 3, 2)
        Lowest and highest y, x (px) and flux (DN) of a target, by the prior and the light.
    targets : ndarray, shape (n, K, 7)
        Rows as those of `Answer`.
    """
    low, high = ends[:, None, :, 0], ends[:, None, :, 1]
    value, error = targets[..., :3], targets[..., 3:6]
    place, of_place = value[..., :2], error[..., :2]
    room = np.minimum(value - low, high - value)
    if box.cell > 0.0 and targets.shape[1] > 1:
        room[..., :2] = np.minimum(room[..., :2], _room_in_cell(place, of_place))
    spread = (high - low) / np.sqrt(12.0)
    size = np.minimum(high - low, 1.0 if box.cell == 1.0 else box.extent)
    spread[..., :2] = size[..., :2] / np.sqrt(12.0)
    leaning = (room < _LEANING * error).any(axis=2) | _held(box, place, of_place)
    flat = (error > _FLAT * spread).any(axis=2)
    return np.asarray(leaning * int(Flag.AT_BOUND) | flat * int(Flag.FLAT), dtype=np.int64)


def _room_in_cell(place: FloatArray, error: FloatArray) -> FloatArray:
    """Distances (n, K, 2) to the nearest wall of the cell that all share; inf if they do not."""
    room = 0.5 - np.abs(place - np.floor(place.mean(axis=1, keepdims=True) + 0.5))
    shared = (room > -_LEANING * error).all(axis=(1, 2), keepdims=True)
    return np.where(shared, np.abs(room), np.inf)


def _held(box: Box, place: FloatArray, error: FloatArray) -> BoolArray:
    """Targets (n, K) that the smallest separation keeps from another, or the extent near it."""
    away = np.abs(place[:, :, None] - place[:, None])
    distance = np.maximum(np.sqrt(_inner(away, away)), 1e-9)
    errors = np.sqrt(error[:, :, None] ** 2 + error[:, None] ** 2)
    along = np.sqrt(_inner(away * errors, away * errors)) / distance
    held = distance - box.separation < _LEANING * along
    held &= box.separation > 0.0
    far = box.extent - away < _LEANING * errors
    held |= far[..., 0] | far[..., 1]
    held &= ~np.eye(place.shape[1], dtype=bool)
    return np.asarray(held.any(axis=2))


def _inner(a: FloatArray, b: FloatArray) -> FloatArray:
    """Inner product along the last axis, of y and x; NumPy's own takes longer for two."""
    return np.asarray(a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1])


def image_flags(setting: Setting, images: FloatArray) -> IntArray:
    """Flags (n,) that all targets of an image share, of images (n, n_y, n_x)."""
    saturated = setting.sensor.censored(images).any(axis=(1, 2))
    bad = ~setting.sensor.valid(images).all(axis=(1, 2))
    return np.asarray(saturated * int(Flag.SATURATED) | bad * int(Flag.BAD_PIXELS), dtype=np.int64)


def border_flags(setting: Setting, y: FloatArray, x: FloatArray) -> IntArray:
    """`Flag.BORDER` for targets in the outermost ring of pixels."""
    return at_border(y, x, setting.shape)


def probabilities(log_evidence: FloatArray) -> FloatArray:
    """Probabilities of numbers of targets that are as likely as each other before."""
    p = np.exp(log_evidence - log_evidence.max())
    return np.asarray(p / p.sum())


def _progress(answers: Iterable[Answer | None], total: int, show: bool) -> Iterable[Answer | None]:
    from tqdm import tqdm

    return tqdm(answers, total=total, unit="image", disable=not show)
