"""What the networks that answer with a map on the sub-pixel grid have in common.

They see the crop and yield its map at c = 3. The target is the map with each target's flux in its
cell, the loss the squared error, and every cell at or above 50 DN a detection, as published. Crops
are brought into one octant (see `symmetry`), which makes training quicker and changes nothing else.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import csunmix as cu
from benchmarks.deep import data
from benchmarks.deep.data import HALF, SIDE
from benchmarks.deep.symmetry import Symmetry, octant, symmetry

FACTOR, THRESHOLD = 3, 50.0
CELLS = FACTOR * SIDE
SCALE = 100.0  # DN: networks see pixels and make maps in these units


class Body(Protocol):
    """A network from pixels (n, 25) to maps (n, 225), in units of 100 DN."""

    def unfold(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps, and a penalty that training adds to their squared error."""
        ...


class OnGrid(nn.Module):
    """A network for training and use.

    Parameters
    ----------
    body : nn.Module
        From pixels to maps, see `Body`.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def loss(self, windows: data.Windows) -> Tensor:
        """Squared error of the maps, summed over cells."""
        pixels, _, targets = octant(windows)
        maps, penalty = self.body.unfold(pixels.flatten(1) / SCALE)
        return (maps - true_maps(targets) / SCALE).square().sum(dim=1).mean() + penalty

    @torch.inference_mode()
    def unmix(self, images: np.ndarray) -> pd.DataFrame:
        """Targets of images: cells at or above 50 DN."""
        pixels, _, centre = data.images_only(images)
        turn = symmetry(pixels)
        maps, _ = self.body.unfold(turn.crops(pixels).flatten(1) / SCALE)
        found = cu.targets.from_grid(
            SCALE * maps.numpy(), factor=FACTOR, threshold=THRESHOLD, shape=(SIDE, SIDE)
        )
        frame = found["frame"].to_numpy(copy=True)
        place = torch.from_numpy(found[["y", "x", "flux"]].to_numpy() - [HALF, HALF, 0.0])
        turn = Symmetry(*(each[frame] for each in turn))
        y, x, flux = turn.back(place[:, None])[:, 0].numpy().T
        y, x = y + centre[frame, 0], x + centre[frame, 1]
        return cu.targets.make_table(frame, y, x, flux, n_frames=len(images))


def true_maps(targets: Tensor) -> Tensor:
    """Maps (n, 225), DN, of targets (n, MOST, 3) from the crops' centres."""
    cell = ((targets[..., :2] + HALF + 0.5) * FACTOR).floor().clamp(0, CELLS - 1).long()
    maps = torch.zeros(len(targets), CELLS**2)
    return maps.scatter_add_(1, CELLS * cell[..., 0] + cell[..., 1], targets[..., 2])


def dictionary(setting: data.Setting) -> Tensor:
    """Dense matrix (25, 225) from maps to crops."""
    return torch.from_numpy(cu.Dictionary(setting.psf, (SIDE, SIDE), FACTOR).to_dense()).float()


def first_guess(setting: data.Setting, n: int = 8192) -> Tensor:
    """Matrix (225, 25) that best makes maps of pixels, by least squares on drawn scenes."""
    pixels, _, targets = octant(data.windows(data.Stream(setting, 0, pool_size=256).batch(0, n)))
    y, x = pixels.flatten(1), true_maps(targets)
    return torch.linalg.solve(y.T @ y + 10.0 * torch.eye(SIDE**2), y.T @ x).T.contiguous()


def soft(x: Tensor, threshold: Tensor) -> Tensor:
    """Soft threshold."""
    return x.sign() * (x.abs() - threshold).relu()
