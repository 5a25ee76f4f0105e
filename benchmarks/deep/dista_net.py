"""A deep unfolding network after DISTA-Net (ICCV 2025).

Written from a description of it, not from its code. Six stages at c = 3, each a gradient step on
the sub-pixel map, a dynamic and a static convolution forward, a soft threshold whose map comes from
large kernels with spatial selection (as in LSKNet, ICCV 2023), and two convolutions back, which a
symmetry loss draws towards the inverse of those forward. The description leaves open which
convolution is dynamic, and the width between the linear layers that make its kernel; these are our
choice, with which the 2.07 million parameters at the published width of 64 channels are near the
published 2.179. At that width a network is trained too slowly on a CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

N_STAGES = 6
CHANNELS = 64
BATCH = 64
SYMMETRY = 0.01  # weight of that loss
_HIDDEN = 4  # between the linear layers of the dynamic kernel
_DYNAMIC = 0.7  # its weight beside the static one


class DynamicConvolution(nn.Module):
    """A 3 x 3 convolution, of each image with a kernel of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.static = nn.Parameter(0.01 * torch.randn(channels, channels, 3, 3))
        self.make_kernel = nn.Sequential(
            nn.Linear(channels, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, self.static.numel())
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images (n, channels, n_y, n_x)."""
        dynamic = self.make_kernel(x.mean(dim=(2, 3))).view(-1, *self.static.shape)
        # One convolution with the blended kernel: the images are its groups.
        kernel = ((1 - _DYNAMIC) * self.static + _DYNAMIC * dynamic).flatten(0, 1)
        grouped = functional.conv2d(
            x.reshape(1, -1, *x.shape[2:]), kernel, padding=1, groups=len(x)
        )
        return grouped.reshape(x.shape)


class Threshold(nn.Module):
    """A soft threshold that differs between cells and channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.halve_near, self.halve_far = nn.Conv2d(channels, half, 1), nn.Conv2d(channels, half, 1)
        self.select = nn.Conv2d(2, 2, 7, padding=3)
        self.merge = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Threshold feature maps (n, channels, n_y, n_x); one below zero makes them larger."""
        near = self.near(x)
        far = self.halve_far(self.far(near))
        near = self.halve_near(near)
        both = torch.cat([near, far], dim=1)
        pooled = torch.cat([both.mean(1, keepdim=True), both.amax(1, keepdim=True)], dim=1)
        share = torch.sigmoid(self.select(pooled))
        threshold = x * self.merge(near * share[:, :1] + far * share[:, 1:])
        return torch.sign(x) * functional.relu(x.abs() - threshold)


class Stage(nn.Module):
    """A gradient step, and a proximal step that is learned."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.1))
        self.first, self.last = convolution(1, channels), convolution(channels, 1)
        self.forth = nn.Sequential(
            DynamicConvolution(channels), nn.ReLU(), convolution(channels, channels)
        )
        self.threshold = Threshold(channels)
        self.back = nn.Sequential(
            convolution(channels, channels), nn.ReLU(), convolution(channels, channels)
        )

    def forward(self, x: Tensor, y: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Improve maps (n, n_cells) for images (n, n_pixels); also the symmetry loss."""
        x = x - self.step * ((x @ matrix.T - y) @ matrix)
        side = int(x.shape[1] ** 0.5)
        features = self.first(x.view(-1, 1, side, side))
        forth = self.forth(features)
        x = x + self.last(self.back(self.threshold(forth))).flatten(1)
        loss = (self.back(forth) - features).square().mean() if self.training else x.new_zeros(())
        return x, loss


class DISTANet(nn.Module):
    """From images (n, n_pixels) to maps (n, n_cells) on the sub-pixel grid.

    Parameters
    ----------
    matrix : ndarray, shape (n_pixels, n_cells)
        Dense dictionary of a square grid.
    start : Tensor, shape (n_cells, n_pixels), optional
        What makes the first map; the pseudo-inverse by default.
    channels : int
    """

    matrix: Tensor
    start: Tensor

    def __init__(
        self, matrix: np.ndarray, start: Tensor | None = None, channels: int = CHANNELS
    ) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(matrix).float())
        self.register_buffer("start", torch.linalg.pinv(self.matrix) if start is None else start)
        self.stages = nn.ModuleList(Stage(channels) for _ in range(N_STAGES))

    def forward(self, y: Tensor) -> Tensor:
        """Find the maps of images."""
        return self.unfold(y)[0]

    def unfold(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of images, and the symmetry loss."""
        x, penalty = y @ self.start.T, y.new_zeros(())
        for stage in self.stages:
            x, loss = stage(x, y, self.matrix)
            penalty = penalty + SYMMETRY * loss
        return x, penalty


def convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


def n_parameters() -> int:
    """Count what would be trained."""
    return N_STAGES * sum(each.numel() for each in Stage().parameters())
