"""The strongest rival we could build: a network that answers off the grid.

A multilayer perceptron sees the crop and tells the count and, for each count, positions, fluxes
and their errors. Refining stages follow. Each renders the answer so far, and is given what is left
of the image and a damped Gauss-Newton step: a deep unfolding network, as DISTA-Net is one, of
positions in place of a map. Stages are trained together, each on its own answer, without gradients
between them.

Loss of a stage, targets brought into the order of the answers by the permutation of least squared
distance: ``|d|`` of the positions (smooth below 0.05 px: between their mean and their geometric
median), squared error of the fluxes, and the normal likelihood of the errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.deep import data
from benchmarks.deep.data import FLUX, FLUX_UNIT, HALF, MOST, SIDE
from benchmarks.deep.matching import sort_like
from benchmarks.deep.symmetry import Symmetry, octant, symmetry

SHARES = (0.05, 0.09, 0.22, 0.31, 0.33)  # of counts in training: the many are harder
_SMOOTH = 0.05  # px
_DAMPING = 0.1  # px, and ranges of flux: the prior of a Gauss-Newton step
_LEAST = -12.0  # log variance
NEAR = 0.1  # px: a score is the chance that an answer is at least so near
N_FEATURES = 3 * SIDE**2 + 6


class Answer(NamedTuple):
    """Targets, padded: y, x (px from the crop's centre), flux as (flux - 235)/15."""

    mean: Tensor  # (n, MOST, 3)
    log_variance: Tensor  # (n, MOST, 3)


class Perceptron(nn.Module):
    """Layers of one width, each added to what it is given."""

    def __init__(self, before: int, width: int, depth: int, after: int) -> None:
        super().__init__()
        self.first = nn.Linear(before, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, after)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (n, before) to (n, after)."""
        x = functional.silu(self.first(x))
        for layer in self.layers:
            x = x + functional.silu(layer(x))
        return self.last(x)


class OffGrid(nn.Module):
    """From crops to targets with errors.

    Parameters
    ----------
    setting : Setting
        What the network is for: the PSF, the noise and the saturation are used in rendering.
    width, depth : int
        Of the first perceptron.
    refine_width, refine_depth, n_refine : int
        Of the refining stages, and their number.
    """

    shares = SHARES

    def __init__(
        self,
        setting: data.Setting,
        width: int = 384,
        depth: int = 3,
        refine_width: int = 256,
        refine_depth: int = 3,
        n_refine: int = 3,
    ) -> None:
        super().__init__()
        self.setting = setting
        self.start = Perceptron(N_FEATURES, width, depth, MOST + MOST * MOST * 6)
        self.refine = nn.ModuleList(
            Perceptron(self.n_told, refine_width, refine_depth, 9 * MOST) for _ in range(n_refine)
        )

    def forward(
        self, pixels: Tensor, seen: Tensor, count: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Answer]]:
        """Count logits, the count taken (the likeliest where not told), answers of each stage."""
        logits, heads = self.start(features(pixels, seen)).split([MOST, MOST * MOST * 6], dim=1)
        if count is None:
            count = 1 + (logits - torch.tensor(self.shares).log()).argmax(dim=1)
        mask = among(count)[..., None]
        head = heads.view(-1, MOST, MOST, 6)[torch.arange(len(count)), count - 1] * mask
        answers = [Answer(head[..., :3], bounded(head[..., 3:]))]
        for stage in self.refine:
            last = Answer(*(each.detach() for each in answers[-1]))
            told, step, error = self.look(pixels, seen, count, last)
            gate, move, spread = (stage(told).view(-1, MOST, 9) * mask).split(3, dim=2)
            mean = last.mean + torch.sigmoid(gate) * step + 0.1 * move
            answers.append(Answer(mean * mask, bounded(2.0 * error + spread)))
        return logits, count, answers

    @torch.no_grad()
    def look(
        self, pixels: Tensor, seen: Tensor, count: Tensor, last: Answer
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a refining stage is told, the step that it may take, and log errors there."""
        mask = among(count)[..., None]
        left, step, error = linearise(self.setting, pixels, seen, last.mean, mask)
        one_hot = functional.one_hot(count - 1, MOST).float()
        more = [last.mean, 0.2 * last.log_variance * mask, squash(step / 0.03), error, squash(left)]
        told = [features(pixels, seen), one_hot, *(each.flatten(1) for each in more)]
        return torch.cat(told, dim=1), step, error

    @property
    def n_told(self) -> int:
        """Length of what a refining stage is told."""
        return N_FEATURES + MOST + SIDE**2 + 4 * 3 * MOST

    def loss(self, windows: data.Windows) -> Tensor:
        """Sum over the stages."""
        pixels, seen, targets = octant(windows)
        mask, true = among(windows.count), standard(targets, windows.count)
        logits, _, answers = self(pixels, seen, windows.count)
        loss = functional.cross_entropy(logits, windows.count - 1)
        for answer in answers:
            error = answer.mean - sort_like(answer.mean, true, windows.count)
            distance = (error[..., :2].square().sum(dim=2) + _SMOOTH**2).sqrt() - _SMOOTH
            flux = error[..., 2].square()
            spread = answer.log_variance
            fit = (error.detach().square() * (-spread).exp() + spread).mean(dim=2)
            each = 20.0 * distance + 0.5 * flux + 0.1 * fit
            loss = loss + (each * mask).sum() / len(true)
        return loss

    @torch.inference_mode()
    def unmix(self, images: np.ndarray, *, n_refine: int | None = None) -> pd.DataFrame:
        """Targets of images, by all stages or the first of them."""
        pixels, seen, centre = data.images_only(images)
        turn = symmetry(pixels)
        _, count, answers = self(turn.crops(pixels), turn.crops(seen))
        mean, log_variance = answers[-1 if n_refine is None else n_refine]
        error = (0.5 * log_variance).exp()
        score = -torch.expm1(-0.5 * NEAR**2 / error[..., :2].square().mean(dim=2))
        return table(turn, centre, count, mean, error, score)


def table(
    turn: Symmetry, centre: np.ndarray, count: Tensor, mean: Tensor, error: Tensor, score: Tensor
) -> pd.DataFrame:
    """Target table of answers in the octant; a score is the chance of an error below 0.1 px."""
    mean, error = turn.back(mean), turn.back(error).abs()
    flux = FLUX + FLUX_UNIT * mean[..., 2:]
    return data.table(
        centre,
        count.numpy(),
        torch.cat([mean[..., :2], flux], dim=2).numpy(),
        y_err=error[..., 0].numpy(),
        x_err=error[..., 1].numpy(),
        flux_err=FLUX_UNIT * error[..., 2].numpy(),
        score=score.numpy(),
    )


def among(count: Tensor) -> Tensor:
    """Which of the padded targets are there, (n, MOST) of 0 and 1."""
    return (torch.arange(MOST) < count[:, None]).float()


def standard(targets: Tensor, count: Tensor) -> Tensor:
    """Targets with fluxes as (flux - 235)/15."""
    flux = (targets[..., 2:] - FLUX) / FLUX_UNIT
    return torch.cat([targets[..., :2], flux], dim=2) * among(count)[..., None]


def bounded(log_variance: Tensor) -> Tensor:
    return log_variance.clamp(_LEAST, 4.0)


def squash(x: Tensor) -> Tensor:
    """Keep small numbers and shrink large ones."""
    return torch.asinh(x)


def features(pixels: Tensor, seen: Tensor) -> Tensor:
    """What the perceptrons see of a crop: pixels, linear and squashed, and moments."""
    flat = pixels.flatten(1)
    moments = _moments(pixels)
    return torch.cat([flat / 100.0, squash(flat / 2.0) / 3.0, seen.flatten(1), moments], dim=1)


def _moments(pixels: Tensor) -> Tensor:
    at = torch.arange(SIDE) - float(HALF)
    total = pixels.sum(dim=(1, 2)).clamp(min=1.0)
    along_y, along_x = pixels.sum(dim=2) / total[:, None], pixels.sum(dim=1) / total[:, None]
    y, x = along_y @ at, along_x @ at
    cross = torch.einsum("nij,i,j->n", pixels, at, at) / total - y * x
    spread_y, spread_x = along_y @ at**2 - y**2, along_x @ at**2 - x**2
    return torch.stack([total / 1000.0, 2 * y, 2 * x, 4 * spread_y, 4 * spread_x, 8 * cross], dim=1)


def linearise(
    setting: data.Setting, pixels: Tensor, seen: Tensor, mean: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What an answer leaves of the image, the step that would lessen it, and log errors.

    With the residual ``r`` and its Jacobian ``J``, in units of the noise, the step is
    ``(J^T J + D)^-1 J^T r``, ``D`` the damping; the errors are those of the inverse.
    """
    y, slope_y = _response(setting.psf.sigma_y, mean[..., 0])
    x, slope_x = _response(setting.psf.sigma_x, mean[..., 1])
    flux = (FLUX + FLUX_UNIT * mean[..., 2])[..., None] * mask
    light = torch.einsum("nky,nkx->nyx", y * flux, x)
    left, weight = pixels - light, seen / setting.noise
    if setting.sensor.saturation is not None:
        full = pixels >= setting.sensor.saturation
        left = torch.where(full, left.clamp(min=0.0), left)  # it holds at least so much
        weight = weight * ~(full & (left == 0.0))
    left = left * weight
    y, x, slope_y, slope_x = (each * mask for each in (y, x, slope_y, slope_x))
    columns = [(slope_y * flux, x), (y * flux, slope_x), (FLUX_UNIT * y, x)]
    jacobian = torch.stack([a[..., :, None] * b[..., None, :] for a, b in columns], dim=2)
    jacobian = (jacobian * weight[:, None, None]).flatten(1, 2).flatten(2)  # (n, 3 MOST, pixels)
    damping = torch.tensor([_DAMPING, _DAMPING, 1.0]).repeat(MOST) ** -2
    curvature = jacobian @ jacobian.mT + damping.diag()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(curvature)[0])
    step = inverse @ (jacobian @ left.flatten(1)[..., None])
    error = 0.5 * inverse.diagonal(dim1=1, dim2=2).clamp(min=1e-6).log()
    shape = mean.shape
    return left, (step.view(shape) * mask).clamp(-0.3, 0.3), error.view(shape) * mask


def _response(sigma: float, position: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the energy in each pixel along an axis, (n, MOST, SIDE), and its slope."""
    edges = torch.arange(SIDE + 1) - HALF - 0.5 - position[..., None]
    response = 0.5 * torch.erf(edges / (2.0**0.5 * sigma)).diff(dim=-1)
    density = (-0.5 * (edges / sigma).square()).exp() / ((2.0 * torch.pi) ** 0.5 * sigma)
    return response, -density.diff(dim=-1)
