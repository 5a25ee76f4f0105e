"""An amortised posterior: a density of the set of targets, given the crop.

It stands on a trained `OffGrid`, which stays as it is and tells the count and a first answer. One
more perceptron looks at that answer as a refining stage does, and yields for each target a mixture
of normal densities of y, x and flux, their centres and shapes relative to the errors of the
linearised fit. With the mixtures ``f_i``, the density of a set of k targets ``t_j`` is::

    p(t_1, ..., t_k) = sum over permutations s of prod_i f_i(t_s(i))

and the loss its negative logarithm: no target need be tied to an answer. Between different targets
of a set, other than by the permutations, it knows no dependence. The answer is the mean of each
mixture, its standard deviations are the errors, and the score is its mass within 0.1 px.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.deep import data
from benchmarks.deep.data import MOST
from benchmarks.deep.matching import orders
from benchmarks.deep.off_grid import NEAR, OffGrid, Perceptron, among, standard, table
from benchmarks.deep.symmetry import octant, symmetry

N_COMPONENTS = 4
_N_OUT = 10  # of a component: weight, centre, three scales, three correlations
_N_DRAWS = 128  # of a component, for its mass near the mean


class Posterior(OffGrid):
    """From crops to mixtures.

    Parameters
    ----------
    setting : Setting
    density_width, density_depth : int
        Of the perceptron that makes the mixtures.
    """

    needs_first = True
    draws: Tensor

    def __init__(
        self, setting: data.Setting, density_width: int = 256, density_depth: int = 3
    ) -> None:
        super().__init__(setting)
        self.requires_grad_(False)
        n_out = MOST * N_COMPONENTS * _N_OUT
        self.density = Perceptron(self.n_told, density_width, density_depth, n_out)
        with torch.no_grad():  # start near the linearised fit
            self.density.last.weight *= 0.3
        generator = torch.Generator().manual_seed(0)
        draws = torch.randn(_N_DRAWS, 2, generator=generator)
        self.register_buffer("draws", draws, persistent=False)

    def mixtures(
        self, pixels: Tensor, seen: Tensor, count: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The count, and of each component log weight, centre (3) and factor (3, 3).

        Leading axes are (n, MOST, N_COMPONENTS); a factor is the lower triangle ``L`` with
        covariance ``L L^T``.
        """
        with torch.no_grad():
            _, count, answers = self(pixels, seen, count)
            told, _, error = self.look(pixels, seen, count, answers[-1])
        out = self.density(told).view(-1, MOST, N_COMPONENTS, _N_OUT)
        scale = error.exp()[:, :, None]
        centre = answers[-1].mean[:, :, None] + scale * out[..., 1:4]
        factor = torch.diag_embed(out[..., 4:7].clamp(-5.0, 3.0).exp())
        below = torch.tril_indices(3, 3, offset=-1)
        factor[..., below[0], below[1]] = out[..., 7:]
        return count, out[..., 0].log_softmax(dim=-1), centre, scale[..., None] * factor

    def loss(self, windows: data.Windows) -> Tensor:
        """Negative log density of the true sets, per image."""
        pixels, seen, targets = octant(windows)
        true = standard(targets, windows.count)
        mixtures = self.mixtures(pixels, seen, windows.count)[1:]
        loss = pixels.new_zeros(())
        for k in range(1, MOST + 1):
            of = torch.nonzero(windows.count == k)[:, 0]
            if len(of):
                log_f = log_density(true[of, :k], *(each[of, :k] for each in mixtures))
                every = orders(k)
                total = torch.stack([log_f[:, i, every[:, i]] for i in range(k)]).sum(dim=0)
                loss = loss - total.logsumexp(dim=1).sum()
        return loss / len(pixels)

    @torch.inference_mode()
    def unmix(self, images: np.ndarray) -> pd.DataFrame:
        """Targets of images: means, standard deviations and masses of the mixtures."""
        pixels, seen, centre = data.images_only(images)
        turn = symmetry(pixels)
        count, log_weight, centres, factor = self.mixtures(
            turn.crops(pixels), turn.crops(seen), None
        )
        weight = log_weight.exp()[..., None]
        mean = (weight * centres).sum(dim=2)
        spread = factor.square().sum(dim=-1) + (centres - mean[:, :, None]).square()
        error = (weight * spread).sum(dim=2).sqrt()
        off = (centres - mean[:, :, None])[..., :2]
        drawn = off[..., None, :] + torch.einsum("...ij,dj->...di", factor[..., :2, :2], self.draws)
        near = (drawn.square().sum(dim=-1) <= NEAR**2).float().mean(dim=-1)
        score = (weight[..., 0] * near).sum(dim=2).clamp(0.0, 1.0)
        mask = among(count)
        return table(turn, centre, count, mean * mask[..., None], error, score)


def log_density(true: Tensor, log_weight: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    """Log density (n, k, k) of each answer's mixture at each target (n, k, 3)."""
    away = true[:, None, :, None] - centre[:, :, None]  # (n, answer, target, component, 3)
    below = factor[:, :, None]
    solved: list[Tensor] = []
    for i in range(3):  # forward substitution
        rest = away[..., i] - sum(below[..., i, j] * solved[j] for j in range(i))
        solved.append(rest / below[..., i, i])
    square = sum(each.square() for each in solved)
    log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    normal = -0.5 * square - log_scale[:, :, None] - 1.5 * float(np.log(2.0 * np.pi))
    return (normal + log_weight[:, :, None]).logsumexp(dim=-1)
