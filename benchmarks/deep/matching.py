"""Which answer belongs to which target: exact, over all permutations."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor


def orders(k: int) -> Tensor:
    """All permutations (k!, k) of k things."""
    return torch.tensor(list(permutations(range(k))))


def pair(cost: Tensor) -> Tensor:
    """Cheapest one-to-one assignment.

    Parameters
    ----------
    cost : Tensor, shape (n, k, k)
        Of giving answer i the target j.

    Returns
    -------
    Tensor of int, shape (n, k)
        The target of each answer.
    """
    every = orders(cost.shape[1])
    total = sum(cost[:, i, every[:, i]] for i in range(cost.shape[1]))
    return every[torch.as_tensor(total).argmin(dim=1)]


def sort_like(found: Tensor, true: Tensor, count: Tensor) -> Tensor:
    """Bring targets into the order of the answers, by squared distances.

    Parameters
    ----------
    found, true : Tensor, shape (n, MOST, 3)
        y, x, flux; rows from `count` on are padding and keep their place.
    count : Tensor of int, shape (n,)

    Returns
    -------
    Tensor, shape (n, MOST, 3)
        `true` in the new order.
    """
    out = true.clone()
    for k in range(2, found.shape[1] + 1):
        of = torch.nonzero(count == k)[:, 0]
        if len(of):
            a, b = found[of, :k, :2].detach(), true[of, :k]
            cost = (a[:, :, None] - b[:, None, :, :2]).square().sum(dim=-1)
            out[of, :k] = b.gather(1, pair(cost)[..., None].expand_as(b))
    return out
