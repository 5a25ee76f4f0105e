"""What the grid-free unmixers have in common: from a stack of images to one target table."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import numpy.typing as npt

from csunmix._validation import FloatArray, IntArray, as_bool, as_images, as_integer
from csunmix.continuous.window import Background, Setting
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor
from csunmix.targets import Flag, make_table

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("csunmix")

_SURE = 0.9  # probability of the count below which it is ambiguous


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
    """

    targets: FloatArray
    flags: IntArray
    probability: FloatArray


@dataclass(frozen=True)
class _Unmixer(ABC):
    """Parameters and front door; a subclass answers for one image."""

    psf: PSF
    sensor: Sensor = field(default_factory=Sensor)
    prior: Prior = field(default_factory=Prior)
    _: KW_ONLY
    background: Background = 0.0
    psf_error: float = 0.0
    seed: int = 0
    n_jobs: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        self._setting((1, 1))  # refuses parts of a wrong type
        as_integer(self.seed, "seed", minimum=0)
        as_integer(self.n_jobs, "n_jobs", minimum=1)

    def __call__(self, images: npt.ArrayLike, *, progress: bool = False) -> pd.DataFrame:
        """Unmix images.

        Parameters
        ----------
        images : array_like, shape (..., n_y, n_x)
            One image or any number of them, DN; ``frame`` counts them in row-major order.
        progress : bool
            Show a progress bar.

        Returns
        -------
        pandas.DataFrame
            Target table. ``attrs["count_probability"]`` (n_frames, n_counts) holds the probability
            of every number of targets, ``attrs["counts"]`` these numbers. Images that are not
            finite, or in which no pixel is lit, yield no targets and a flag in
            ``attrs["frame_flags"]``.

        Raises
        ------
        TypeError
            If the images are not real numbers.
        ValueError
            If the images are empty, or none is finite.
        """
        as_bool(progress, "progress")
        images = as_images(images, finite=False)
        stack = images.reshape(-1, *images.shape[-2:])
        setting = self._setting(stack.shape[1:])
        answers = list(_progress(self._answers(setting, stack), len(stack), progress))
        if all(answer is None for answer in answers):
            as_images(stack)  # says where
        return self._table(setting, answers)

    @abstractmethod
    def _answer(self, setting: Setting, image: FloatArray, seed: int) -> Answer | None:
        """Targets of a finite image in which a pixel is lit; None if no pixel is."""

    def _setting(self, shape: tuple[int, ...]) -> Setting:
        return Setting(
            self.psf,
            self.sensor,
            self.prior,
            (shape[0], shape[1]),
            self.background,
            self.psf_error,
        )

    def _answers(self, setting: Setting, stack: FloatArray) -> Iterable[Answer | None]:
        def answer(frame: int) -> Answer | None:
            image = self._good(stack[frame].astype(np.float64))
            if not np.isfinite(image).all():
                return None
            # By the pixels, so that an answer depends neither on its batch nor on its place in it.
            found = self._answer(setting, image, crc32(image.tobytes(), self.seed))
            empty = np.zeros(len(setting.counts))
            return (
                Answer(np.empty((0, 7)), np.empty(0, np.int64), empty) if found is None else found
            )

        _ = setting.optics  # made once, before threads ask for it
        if self.n_jobs == 1:
            yield from map(answer, range(len(stack)))
        else:
            with ThreadPoolExecutor(self.n_jobs) as pool:
                yield from pool.map(answer, range(len(stack)))

    def _good(self, image: FloatArray) -> FloatArray:
        """The image with bad pixels at 0, whatever they hold."""
        if self.sensor.bad_pixels is None:
            return image
        return np.where(self.sensor.valid(np.zeros_like(image)), image, 0.0)

    def _table(self, setting: Setting, answers: list[Answer | None]) -> pd.DataFrame:
        frames: list[int] = []
        rows: list[FloatArray] = [np.empty((0, 7))]
        flags: list[IntArray] = [np.empty(0, np.int64)]
        frame_flags: dict[int, int] = {}
        probability = np.zeros((len(answers), len(setting.counts)))
        for frame, answer in enumerate(answers):
            if answer is None:
                frame_flags[frame] = int(Flag.NOT_FINITE) | int(Flag.NO_TARGET)
                continue
            probability[frame] = answer.probability
            if len(answer.targets) == 0:
                frame_flags[frame] = int(Flag.NO_TARGET)
            elif answer.flags.any():
                frame_flags[frame] = int(np.bitwise_or.reduce(answer.flags))
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
            attrs={
                "method": repr(self),
                "image_shape": setting.shape,
                "counts": tuple(setting.counts),
                "count_probability": probability.tolist(),
            },
            y_err=y_err,
            x_err=x_err,
            flux_err=flux_err,
            score=score,
            flags=np.concatenate(flags),
        )


def answer_for(
    setting: Setting, image: FloatArray, targets: FloatArray, flags: IntArray, p: FloatArray
) -> Answer:
    """The answer for the most probable count: its probability in the scores, shared flags added."""
    targets[:, 6] *= p.max()
    flags = flags | image_flags(setting, image)
    if p.max() < _SURE:
        flags |= int(Flag.COUNT_AMBIGUOUS)
    return Answer(targets, flags, p)


def image_flags(setting: Setting, image: FloatArray) -> int:
    """Flags that all targets of an image share."""
    flags = int(Flag.SATURATED) if setting.sensor.censored(image).any() else 0
    return flags | (int(Flag.BAD_PIXELS) if not setting.sensor.valid(image).all() else 0)


def border_flags(setting: Setting, y: FloatArray, x: FloatArray) -> IntArray:
    """`Flag.BORDER` for targets in the outermost ring of pixels."""
    n_y, n_x = setting.shape
    inside = (y >= 0.5) & (y <= n_y - 1.5) & (x >= 0.5) & (x <= n_x - 1.5)
    return np.where(inside, 0, int(Flag.BORDER))


def probabilities(log_evidence: FloatArray) -> FloatArray:
    """Probabilities of numbers of targets that are as likely as each other before."""
    p = np.exp(log_evidence - log_evidence.max())
    return np.asarray(p / p.sum())


def _progress(answers: Iterable[Answer | None], total: int, show: bool) -> Iterable[Answer | None]:
    from tqdm import tqdm

    return tqdm(answers, total=total, unit="image", disable=not show)
