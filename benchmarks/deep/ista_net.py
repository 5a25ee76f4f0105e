"""ISTA-Net+ (Zhang and Ghanem, CVPR 2018): ISTA whose sparsifying transform is learned.

A stage is a gradient step ``r``, and ``x = r + G(B(soft(F(D(r)), theta)))``: D and G one
convolution, F and B two with a ReLU between, B drawn towards the inverse of F by a symmetry loss.
Of its published size (9 stages of 32 channels) a network is trained too slowly on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.deep.data import Setting
from benchmarks.deep.on_grid import CELLS, dictionary, first_guess, soft

SYMMETRY = 0.01  # weight of that loss


class Stage(nn.Module):
    """A gradient step, and a proximal step that is learned."""

    def __init__(self, channels: int, step: float) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step))
        self.theta = nn.Parameter(torch.tensor(0.01))
        self.first, self.last = convolution(1, channels), convolution(channels, 1)
        self.forth, self.back = pair(channels), pair(channels)

    def forward(self, x: Tensor, y: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        """Improve maps; also the symmetry loss."""
        r = x - self.step * ((x @ A.T - y) @ A)
        features = self.first(r.view(-1, 1, CELLS, CELLS))
        forth = self.forth(features)
        x = r + self.last(self.back(soft(forth, self.theta))).flatten(1)
        loss = (self.back(forth) - features).square().mean() if self.training else x.new_zeros(())
        return x, loss


class ISTANet(nn.Module):
    """From pixels to maps.

    Parameters
    ----------
    setting : Setting
        Its PSF makes the gradient, its scenes the first guess.
    n_stages, channels : int
    """

    A: Tensor
    start: Tensor

    def __init__(self, setting: Setting, n_stages: int = 6, channels: int = 16) -> None:
        super().__init__()
        self.register_buffer("A", dictionary(setting))
        self.register_buffer("start", first_guess(setting))
        step = 1.0 / float(torch.linalg.matrix_norm(self.A, 2)) ** 2
        self.stages = nn.ModuleList(Stage(channels, step) for _ in range(n_stages))

    def unfold(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of pixels, and the symmetry loss."""
        x, penalty = y @ self.start.T, y.new_zeros(())
        for stage in self.stages:
            x, loss = stage(x, y, self.A)
            penalty = penalty + SYMMETRY * loss
        return x, penalty


def convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


def pair(channels: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(channels, channels), nn.ReLU(), convolution(channels, channels)
    )
