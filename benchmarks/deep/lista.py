"""LISTA (Gregor and LeCun, ICML 2010): ISTA with matrices and thresholds that are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.deep.data import Setting
from benchmarks.deep.on_grid import dictionary, soft


class LISTA(nn.Module):
    """``x = soft(W y + S x, theta)``, so many layers, each with its own matrices.

    Parameters
    ----------
    setting : Setting
        Its PSF makes the matrices of ISTA, where training starts.
    n_layers : int
    """

    def __init__(self, setting: Setting, n_layers: int = 10) -> None:
        super().__init__()
        A = dictionary(setting)
        scale = torch.linalg.matrix_norm(A, 2) ** 2
        n = A.shape[1]
        self.W = nn.Parameter((A.T / scale).repeat(n_layers, 1, 1))
        self.S = nn.Parameter((torch.eye(n) - A.T @ A / scale).repeat(n_layers, 1, 1))
        self.theta = nn.Parameter(torch.full((n_layers, n), 0.01))

    def unfold(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of pixels; no penalty."""
        x = soft(y @ self.W[0].T, self.theta[0])
        for W, S, theta in zip(self.W[1:], self.S[1:], self.theta[1:], strict=True):
            x = soft(y @ W.T + x @ S.T, theta)
        return x, torch.zeros(())
