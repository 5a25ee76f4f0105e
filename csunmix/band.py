"""One axis of a separable dictionary: a matrix whose columns reach a few rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigvals_banded

from csunmix._validation import FloatArray, IntArray

_NOTHING = float(np.finfo(np.float64).eps)  # share of the peak that a sum does not see


class Band(NamedTuple):
    """A matrix (n, m): column ``j`` is ``values[j]`` from row ``first[j]`` on, else 0.

    Where `w` is `n` this is any matrix.

    Attributes
    ----------
    first : ndarray of int, shape (m,)
        Not falling.
    values : ndarray, shape (m, w)
    n : int
    """

    first: IntArray
    values: FloatArray
    n: int

    @classmethod
    def of_kernel(cls, kernel: Callable[[FloatArray], FloatArray], n: int, factor: int) -> Band:
        """Response of `n` pixels to ``n factor`` cells, by a kernel of their offset (px).

        Beyond the offsets where the kernel is above 2.2e-16 of its peak it is cut: no sum in
        double precision tells the difference.
        """
        steps = np.arange(1 - n * factor, (n - 1) * factor + 1)  # factor * pixel - cell
        table = kernel((steps + (factor - 1) / 2) / factor)
        size = np.abs(table)
        low, high = steps[np.flatnonzero(size >= _NOTHING * size.max())[[0, -1]]]
        w = min(n, int(high - low) // factor + 1)
        cells = np.arange(n * factor)
        first = np.clip(-((-low - cells) // factor), 0, n - w)  # rounded up
        step = factor * (first[:, None] + np.arange(w)) - cells[:, None]
        return cls(first, table[step - steps[0]], n)

    @classmethod
    def full(cls, columns: FloatArray) -> Band:
        """The matrix with these columns, shape (m, n)."""
        return cls(np.zeros(len(columns), np.int64), columns, columns.shape[1])

    @property
    def norms(self) -> FloatArray:
        """Norms of the columns, shape (m,)."""
        return np.asarray(np.sqrt(np.einsum("jk,jk->j", self.values, self.values)))

    @property
    def largest_eigenvalue(self) -> float:
        """Largest eigenvalue of ``A^T A``, which is that of the banded ``A A^T``."""
        m, w = self.values.shape
        if w == self.n:
            columns = self.values
            gram = columns @ columns.T if m < w else columns.T @ columns
            return float(np.linalg.eigvalsh(gram)[-1])
        rows = self.first[:, None] + np.arange(w)
        lower = np.zeros((w, self.n))
        for k in range(w):
            products = self.values[:, k:] * self.values[:, : w - k]
            np.add.at(lower[k], rows[:, : w - k], products)
        last = self.n - 1
        return float(eigvals_banded(lower, lower=True, select="i", select_range=(last, last))[0])

    @property
    def transposed(self) -> Band:
        """The transposed matrix: column ``p`` holds the cells that row ``p`` reaches."""
        m, w = self.values.shape
        rows = np.arange(self.n)
        low = np.searchsorted(self.first, rows - w, side="right")
        high = np.searchsorted(self.first, rows, side="right")
        width = int((high - low).max(initial=1))
        first = np.minimum(low, m - width)
        cells = first[:, None] + np.arange(width)
        place = rows[:, None] - self.first[cells]
        inside = (place >= 0) & (place < w)
        return Band(first, np.where(inside, self.values[cells, place.clip(0, w - 1)], 0.0), m)

    def scaled(self, factors: FloatArray) -> Band:
        """The matrix with its columns times `factors` (m,)."""
        return self._replace(values=self.values * factors[:, None])

    def astype(self, dtype: npt.DTypeLike) -> Band:
        """The matrix in another precision."""
        return self._replace(values=self.values.astype(dtype, copy=False))

    def to_dense(self) -> FloatArray:
        """The matrix, shape (n, m)."""
        m, w = self.values.shape
        dense = np.zeros((self.n, m))
        dense[self.first[:, None] + np.arange(w), np.arange(m)[:, None]] = self.values
        return dense
