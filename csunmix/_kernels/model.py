"""The posterior of a scene: optics, what was recorded, and the prior."""

from __future__ import annotations

from typing import NamedTuple

from csunmix._kernels.jit import part
from csunmix._kernels.prior import Box
from csunmix._kernels.scene import Optics, Pixels
from csunmix._validation import FloatArray


class Model(NamedTuple):
    """What the posterior is of."""

    optics: Optics
    pixels: Pixels
    box: Box
    precision: FloatArray  # (d,), rough inverse variance of the prior
    n_targets: int


@part()
def within(model: Model, box: Box) -> Model:
    """The posterior with another prior."""
    return Model(model.optics, model.pixels, box, model.precision, model.n_targets)
