"""The eight symmetries of the pixel grid, used up before a network sees a crop.

Every crop is turned so that its centre of light lies in one octant, and the answer is turned back:
a network needs to learn an eighth of the problem. This holds for round PSFs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.deep.data import HALF, SIDE, Windows


class Symmetry(NamedTuple):
    """Signs (n,) along y and x, and whether to swap the axes then."""

    y: Tensor
    x: Tensor
    swap: Tensor

    def crops(self, crops: Tensor) -> Tensor:
        """Turn crops (n, SIDE, SIDE)."""
        crops = torch.where(self.y[:, None, None] < 0, crops.flip(1), crops)
        crops = torch.where(self.x[:, None, None] < 0, crops.flip(2), crops)
        return torch.where(self.swap[:, None, None], crops.mT, crops)

    def targets(self, targets: Tensor) -> Tensor:
        """Turn targets (n, k, 3): y, x from the crop's centre, flux."""
        place = targets[..., :2] * torch.stack([self.y, self.x], dim=1)[:, None]
        return torch.cat([self._swap(place), targets[..., 2:]], dim=2)

    def back(self, targets: Tensor) -> Tensor:
        """Undo that."""
        place = self._swap(targets[..., :2]) * torch.stack([self.y, self.x], dim=1)[:, None]
        return torch.cat([place, targets[..., 2:]], dim=2)

    def _swap(self, place: Tensor) -> Tensor:
        return torch.where(self.swap[:, None, None], place.flip(2), place)


def symmetry(pixels: Tensor) -> Symmetry:
    """What brings the centre of light of crops (n, SIDE, SIDE) to ``0 <= y <= x``."""
    at = torch.arange(SIDE) - float(HALF)
    y, x = pixels.sum(dim=2) @ at, pixels.sum(dim=1) @ at
    return Symmetry(torch.where(y < 0, -1.0, 1.0), torch.where(x < 0, -1.0, 1.0), y.abs() > x.abs())


def octant(windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, seen and targets of windows, turned into the octant."""
    turn = symmetry(windows.pixels)
    return turn.crops(windows.pixels), turn.crops(windows.seen), turn.targets(windows.targets)
