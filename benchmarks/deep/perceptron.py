"""A plain multilayer perceptron, 25-384-384-384-225.

It maps the 5 x 5 pixels around the brightest one to the 15 x 15 cells of the sub-pixel grid there.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from benchmarks.deep import data
from benchmarks.deep.data import SIDE

BATCH = 1024
_WIDTHS = (SIDE**2, 384, 384, 384, (3 * SIDE) ** 2)


def perceptron() -> nn.Sequential:
    """Make the network: linear layers, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(_WIDTHS):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class GridPerceptron(nn.Module):
    """The same as a body of `on_grid.OnGrid`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def unfold(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of pixels; no penalty."""
        return self.layers(y), y.new_zeros(())


def crop(images: np.ndarray) -> np.ndarray:
    """Pixels (n, 25) around the brightest of each image, zero beyond the border."""
    return data.crop(images)[0].reshape(len(images), -1)
