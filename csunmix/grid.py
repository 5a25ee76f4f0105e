"""The sub-pixel grid: the only place that knows where the cells of a pixel lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csunmix._validation import FloatArray, as_finite, as_integer, as_shape


@dataclass(frozen=True)
class SubpixelGrid:
    """A grid of `factor` x `factor` cells per pixel.

    Cell ``(i, j)`` is centred at ``y = (i - (c - 1)/2)/c`` and ``x = (j - (c - 1)/2)/c`` with
    ``c = factor``, so that the cells tile the pixels exactly, for odd and even factors alike.

    Parameters
    ----------
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    factor : int
        Cells per pixel along each axis.

    Raises
    ------
    TypeError
        If `shape` is not a pair of integers or `factor` is not an integer.
    ValueError
        If `shape` or `factor` is not positive.

    Examples
    --------
    >>> import csunmix as cu
    >>> cu.SubpixelGrid(shape=(1, 2), factor=2).x
    array([-0.25,  0.25,  0.75,  1.25])
    """

    shape: tuple[int, int]
    factor: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_shape(self.shape))
        object.__setattr__(self, "factor", as_integer(self.factor, "factor", minimum=1))

    @property
    def map_shape(self) -> tuple[int, int]:
        """Number of cells along y and x."""
        return self.shape[0] * self.factor, self.shape[1] * self.factor

    @property
    def y(self) -> FloatArray:
        """Row of every cell centre, px, shape (m_y,)."""
        return self._centres(np.arange(self.map_shape[0]))

    @property
    def x(self) -> FloatArray:
        """Column of every cell centre, px, shape (m_x,)."""
        return self._centres(np.arange(self.map_shape[1]))

    def position(self, i: npt.ArrayLike, j: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Centre ``(y, x)`` of cells ``(i, j)``, px."""
        return self._centres(np.asarray(i)), self._centres(np.asarray(j))

    def cell(
        self, y: npt.ArrayLike, x: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Cells ``(i, j)`` that hold the positions `y`, `x` (px); may lie outside the grid."""
        half = (self.factor - 1) / 2
        i = np.rint(as_finite(y, "y").astype(np.float64) * self.factor + half)
        j = np.rint(as_finite(x, "x").astype(np.float64) * self.factor + half)
        return i.astype(np.int64), j.astype(np.int64)

    def _centres(self, index: npt.NDArray[np.integer]) -> FloatArray:
        return (index - (self.factor - 1) / 2) / self.factor
