"""A network after FOCUS: two stages of convolutions, intensity times mask, pixel shuffle.

Written from a description of it. A stage is a 5 x 5 and two 3 x 3 convolutions at the resolution of
the image; the second is also given the image. Its last convolution makes an intensity and the logit
of a mask for every cell; the pixel shuffle lays the nine cells of a pixel out on the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.deep.data import SIDE
from benchmarks.deep.on_grid import FACTOR


class FOCUS(nn.Module):
    """From pixels to maps.

    Parameters
    ----------
    channels : int
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.first = stage(1, channels, channels)
        self.second = stage(channels + 1, channels, 2 * FACTOR**2)

    def unfold(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of pixels; no penalty."""
        image = y.view(-1, 1, SIDE, SIDE)
        both = self.second(torch.cat([functional.relu(self.first(image)), image], dim=1))
        intensity, mask = functional.pixel_shuffle(both, FACTOR).unbind(dim=1)
        return (intensity * torch.sigmoid(mask)).flatten(1), y.new_zeros(())


def stage(before: int, channels: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, channels, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, after, 3, padding=1),
    )
