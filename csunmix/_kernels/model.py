"""The posterior of a scene: optics, what was recorded, and the prior."""

from __future__ import annotations

from typing import NamedTuple

from csunmix._kernels.jit import glue
from csunmix._kernels.prior import Box
from csunmix._kernels.scene import Optics, Pixels
from csunmix._validation import FloatArray, IntArray


class Model(NamedTuple):
    """What the posterior is of."""

    optics: Optics
    pixels: Pixels
    box: Box
    precision: FloatArray  # (d,), rough inverse variance of the prior
    n_targets: int


class Views(NamedTuple):
    """Windows of n images; one without light has no pixels."""

    low: FloatArray  # (n, n_y, n_x), of whole images, see `Pixels`
    high: FloatArray
    variance: FloatArray  # (n,)
    per_light: float
    start: IntArray  # (n, 2), first row and column
    stop: IntArray  # (n, 2), those after the last
    area: FloatArray  # (n, 2, 2), see `Box`, in the image's coordinates
    flux: FloatArray  # (n, 2)
    background: FloatArray  # (n, 2)


@glue()
def within(model: Model, box: Box) -> Model:
    """The posterior with another prior."""
    return Model(model.optics, model.pixels, box, model.precision, model.n_targets)
