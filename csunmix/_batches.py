"""From a stack of images to one target table, many images at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from csunmix._validation import Array, FloatArray, IntArray, as_images, usable
from csunmix.peaks import Candidates
from csunmix.targets import Flag, make_table

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("csunmix")


class Found(NamedTuple):
    """Targets of some images, frames from 0 on."""

    targets: Candidates
    claims: FloatArray  # (n, 4), errors of y, x and flux, and the score
    marks: IntArray  # (n,), flags of targets
    flags: IntArray  # of images


Unmix = Callable[[FloatArray], Found]  # of finite images


def as_stack(images: npt.ArrayLike, shape: tuple[int, int] | None = None) -> Array:
    """One axis of images, as they are: they are made real numbers batch by batch."""
    if not isinstance(images, np.ndarray):
        images = as_images(images, shape=shape, finite=False)
    one = images if images.ndim < 3 or 0 in images.shape else images[(0,) * (images.ndim - 2)]
    as_images(one, shape=shape, finite=False)
    return images.reshape(-1, *images.shape[-2:])


def find_all(
    find: Callable[[Array], Found], stack: Array, most: int, n_jobs: int, progress: bool
) -> list[Found]:
    """What is found in each part of a stack, of `most` images at most, by `n_jobs` threads."""
    from tqdm import tqdm

    parts, found = split(len(stack), most, n_jobs), []
    with (
        ThreadPoolExecutor(n_jobs) as pool,
        tqdm(total=len(stack), unit="image", disable=not progress) as bar,
    ):
        apply = map if n_jobs == 1 else pool.map
        for each in apply(lambda part: find(stack[part]), parts):
            found.append(each)
            bar.update(len(each.flags))
    return found


def split(n: int, most: int, n_jobs: int) -> list[slice]:
    """Parts of `n` images, of `most` at most: alike, so that threads end together."""
    rounds = -(-n // (most * n_jobs))
    size = -(-n // (rounds * n_jobs))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def find_in_finite(unmix: Unmix, images: FloatArray) -> Found:
    """What is found in images (n, n_y, n_x) of which some may not be finite: in these, nothing."""
    finite = usable(images)
    flags = np.full(len(images), int(Flag.NOT_FINITE))
    if not finite.any():
        nothing = Candidates(np.empty(0, np.int64), *np.empty((3, 0)))
        return Found(nothing, np.empty((0, 4)), np.empty(0, np.int64), flags)
    found = unmix(images if finite.all() else images[finite])
    flags[finite] = found.flags
    frame = np.flatnonzero(finite)[found.targets.frame]
    return found._replace(targets=found.targets._replace(frame=frame), flags=flags)


def any_finite(found: Sequence[Found]) -> bool:
    """Whether any image is."""
    return any(not (each.flags & Flag.NOT_FINITE).all() for each in found)


def joined(found: Sequence[Found], attrs: dict[str, Any]) -> pd.DataFrame:
    """The target table of all parts, one after the other.

    Frames are flagged with what their targets are, and where they have none. The log names those
    that are not finite.
    """
    starts = np.cumsum([0, *(len(each.flags) for each in found)])
    targets = [
        each.targets._replace(frame=start + each.targets.frame)
        for start, each in zip(starts, found, strict=False)
    ]
    flags = np.concatenate([each.flags for each in found])
    bad = np.flatnonzero(flags & Flag.NOT_FINITE)
    if bad.size:
        logger.warning("%d image(s) not finite, first frame %d: skipped", bad.size, bad[0])
    every = Candidates(*(np.concatenate(column) for column in zip(*targets, strict=True)))
    y_err, x_err, flux_err, score = np.concatenate([each.claims for each in found]).T
    flags[np.bincount(every.frame, minlength=len(flags)) == 0] |= Flag.NO_TARGET
    marks = np.concatenate([each.marks for each in found])
    target_flags = flags[every.frame] | marks
    np.bitwise_or.at(flags, every.frame, marks)
    flagged = np.flatnonzero(flags)
    return make_table(
        *every,
        y_err=y_err,
        x_err=x_err,
        flux_err=flux_err,
        score=score,
        flags=target_flags,
        n_frames=len(flags),
        frame_flags=dict(zip(flagged.tolist(), flags[flagged].tolist(), strict=True)),
        attrs=attrs,
    )
