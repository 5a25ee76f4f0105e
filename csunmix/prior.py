"""What is known of a cluster of targets before the image is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csunmix._validation import as_integer, as_number, as_range

_LEAST_FLUX = 1e-100  # DN, whose square is a number still


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What an estimator may assume of the targets of one image. Every part is optional.

    Parameters
    ----------
    count : tuple of int, optional
        Smallest and largest number of targets, equally likely in between; from 0 where an image may
        hold none.
    flux : tuple of float, optional
        Smallest and largest flux of a target, DN.
    min_separation : float
        Smallest distance between two targets, px.
    extent : float, optional
        The targets lie in a box of this size, anywhere in the image, px.
    cell : float or bool
        Probability that the targets share one pixel cell, ``round(y)`` and ``round(x)`` the same
        for all. Else they lie as `extent` says: a cell that is certain excludes that, and one that
        is not asks for an extent of 1 px or more.

    Raises
    ------
    TypeError
        If a part is of the wrong type; the message names it.
    ValueError
        If a range is empty or a number out of range, or an extent is given beside a cell that is
        certain, or one below 1 px beside a cell that is likely.

    Examples
    --------
    >>> import csunmix as cu
    >>> prior = cu.Prior(count=(1, 5), flux=(220, 250), min_separation=0.494, extent=1.2)
    >>> prior.flux
    (220.0, 250.0)
    """

    count: tuple[int, int] | None = None
    flux: tuple[float, float] | None = None
    min_separation: float = 0.0
    extent: float | None = None
    cell: float = 0.0

    def __post_init__(self) -> None:
        if self.count is not None:
            as_range(self.count, "count", minimum=0)
            low, high = (as_integer(end, f"count[{k}]") for k, end in enumerate(self.count))
            object.__setattr__(self, "count", (low, high))
        if self.flux is not None:
            object.__setattr__(self, "flux", as_range(self.flux, "flux", minimum=0.0))
            if self.flux[1] < _LEAST_FLUX:
                raise ValueError(f"flux must allow a target some light, got {self.flux}")
        separation = as_number(self.min_separation, "min_separation", minimum=0.0)
        object.__setattr__(self, "min_separation", separation)
        object.__setattr__(self, "cell", _as_probability(self.cell, "cell"))
        if self.extent is not None:
            object.__setattr__(self, "extent", as_number(self.extent, "extent", above=0.0))
            if self.cell == 1.0:
                raise ValueError("extent and a certain cell exclude each other; give one of them")
            if self.cell > 0.0 and self.extent < 1.0:
                raise ValueError(f"extent must be at least 1 beside a cell, got {self.extent:g}")


def _as_probability(value: Any, name: str) -> float:
    """`value` as a number from 0 to 1; True and False count as those."""
    number = float(value) if isinstance(value, bool | np.bool_) else as_number(value, name)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must be a probability, from 0 to 1, got {value!r}")
    return number
