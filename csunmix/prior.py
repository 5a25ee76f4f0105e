"""What is known of a cluster of targets before the image is seen."""

from __future__ import annotations

from dataclasses import dataclass

from csunmix._validation import as_integer, as_number, as_range


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What an estimator may assume of the targets of one image. Every part is optional.

    Parameters
    ----------
    count : tuple of int, optional
        Smallest and largest number of targets, equally likely in between.
    flux : tuple of float, optional
        Smallest and largest flux of a target, DN.
    min_separation : float
        Smallest distance between two targets, px.
    extent : float, optional
        The targets lie in a box of this size, anywhere in the image, px.
    cell : bool
        The targets share one pixel cell, ``round(y)`` and ``round(x)`` the same for all;
        excludes `extent`.

    Raises
    ------
    ValueError
        If a range is empty or a number out of range, or both `extent` and `cell` are given.
    """

    count: tuple[int, int] | None = None
    flux: tuple[float, float] | None = None
    min_separation: float = 0.0
    extent: float | None = None
    cell: bool = False

    def __post_init__(self) -> None:
        if self.count is not None:
            low, high = as_range(self.count, "count", minimum=0)
            count = as_integer(self.count[0], "count[0]"), as_integer(self.count[1], "count[1]")
            if not low <= high:
                raise ValueError(f"count must be ordered, got {self.count!r}")
            object.__setattr__(self, "count", count)
        if self.flux is not None:
            object.__setattr__(self, "flux", as_range(self.flux, "flux", minimum=0.0))
        as_number(self.min_separation, "min_separation", minimum=0.0)
        if self.extent is not None:
            as_number(self.extent, "extent", above=0.0)
            if self.cell:
                raise ValueError("extent and cell exclude each other; give one of them")
