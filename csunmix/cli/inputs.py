"""What ``csunmix unmix`` asks of its images before the work starts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from csunmix._validation import Array
from csunmix.background import border_level, noise_level
from csunmix.cli.options import preset_name
from csunmix.io import ImageStack
from csunmix.presets import PRESETS
from csunmix.unmixer import GridUnmixer

if TYPE_CHECKING:
    from distributed import Client

    from csunmix.cli.run import Unmixer

_BATCH_PIXELS = 1_000_000
_SAMPLE = 100  # images, enough to see a background


def finite(images: Array) -> npt.NDArray[np.bool_]:
    """Which of the images (n, n_y, n_x) have neither NaN nor infinite pixels."""
    return np.asarray(np.isfinite(images).all(axis=(1, 2)))


def parts(stack: ImageStack) -> Iterator[Array]:
    """The images in parts, in memory one after the other."""
    step = max(1, _BATCH_PIXELS // math.prod(stack.images.shape[1:]))
    return (stack.part(k, k + step) for k in range(0, len(stack), step))


def largest_value(stack: ImageStack, source: str) -> float:
    """Largest value of the finite images, DN.

    Raises
    ------
    ValueError
        If no image of the file or folder `source` is finite.
    """
    maxima = [float(part[good].max()) for part in parts(stack) if (good := finite(part)).any()]
    if maxima:
        return max(maxima)
    y, x = np.argwhere(~np.isfinite(stack.images[0]))[0].tolist()
    folder, name = Path(source), stack.name(0)
    file = folder / name if folder.is_dir() and folder.name != name else source
    raise ValueError(
        f"{file}: has NaN or infinite pixels, the first in image 0 at row {y}, "
        f"column {x}" + (", and so has every other image" if len(stack) > 1 else "")
    )


def hints(stack: ImageStack, unmixer: Unmixer) -> Iterator[str]:
    """Signs that the PSF or the background is not as the settings have it.

    The PSF: an image measures less than four of its widths. The background: in more than half of
    some images, of all parts of the stack, the median of the border lies above what is taken off
    by more than 5 times the noise and a hundredth of the brightest pixel (the PSF's own tails).
    """
    width, (n_y, n_x) = unmixer.psf.width, stack.images.shape[1:]
    if min(n_y, n_x) < 4 * width:
        yield (
            f"images of {n_y} x {n_x} px are small for a PSF {width:.3g} px wide (sigma); "
            "is its width, or --psf-oversampling, right?"
        )
        return
    if isinstance(unmixer.background, str):
        return
    offset = unmixer.sensor.offset if unmixer.sensor is not None else 0.0
    some = np.linspace(0, len(stack) - 1, min(_SAMPLE, len(stack))).astype(int).tolist()
    sample = np.concatenate([stack.part(k, k + 1) for k in some])
    sample = sample[finite(sample)] - (unmixer.background + offset)
    if len(sample) == 0:
        return
    level = border_level(sample)
    bright = level > np.maximum(5 * noise_level(sample), 0.01 * sample.max(axis=(1, 2)))
    if bright.mean() > 0.5:
        yield (
            f"a background of {np.median(level):.4g} DN is left in the images; "
            "--background border takes it off"
        )


def assumed(options: argparse.Namespace, unmixer: Unmixer, shape: tuple[int, ...]) -> Iterator[str]:
    """What is taken for granted of images of a shape and may be wrong: the preset, a target."""
    preset = preset_name(options)
    if preset is not None and options.preset is None:
        usual = PRESETS[preset]().shape
        if usual != shape:
            yield (
                f"preset {preset}, assumed for want of a PSF, has {usual[0]} x {usual[1]} px, "
                f"these images have {shape[0]} x {shape[1]}; --psf-sigma or --psf tells another"
            )
    if not isinstance(unmixer, GridUnmixer) and (unmixer.prior.count or (1,))[0] == 0:
        yield "a count of 0 is not weighed: where there is light there is a target"


def cluster(scheduler: str | None) -> AbstractContextManager[Client | None]:
    """The Dask cluster of the scheduler of that address, where one is given."""
    if scheduler is None:
        return nullcontext()
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("--scheduler needs distributed: pip install 'csunmix[dask]'") from None
    return cast("AbstractContextManager[Client]", Client(scheduler))  # type: ignore[no-untyped-call]
