"""A plain multilayer perceptron, 25-384-384-384-225, for timing only; random weights.

It maps the 5 x 5 pixels around the brightest one to the 15 x 15 cells of the sub-pixel grid there.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

SIDE = 5
BATCH = 1024
_WIDTHS = (SIDE**2, 384, 384, 384, (3 * SIDE) ** 2)


def perceptron() -> nn.Sequential:
    """Make the network: linear layers, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(_WIDTHS):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def crop(images: np.ndarray) -> np.ndarray:
    """Pixels (n, 25) around the brightest of each image, zero beyond the border."""
    half = SIDE // 2
    padded = np.pad(images, ((0, 0), (half, half), (half, half)))
    windows = sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
    y, x = np.unravel_index(images.reshape(len(images), -1).argmax(axis=1), images.shape[1:])
    return windows[np.arange(len(images)), y, x].reshape(len(images), -1)
