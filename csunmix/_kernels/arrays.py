"""Arrays that kernels make.

For every way that ``np.zeros``, ``np.ones`` and ``np.full`` are told what to make, numba compiles
up to three functions of its own; these are one for a number of axes.
"""

from __future__ import annotations

import numpy as np

from csunmix._kernels.jit import part
from csunmix._validation import FloatArray, IntArray


@part()
def filled(shape: int | tuple[int, ...], value: float) -> FloatArray:
    """Array of this shape full of a value."""
    out = np.empty(shape)
    out[:] = value
    return out


@part()
def integers(n: int, value: int) -> IntArray:
    """Vector of n times an integer."""
    out = np.empty(n, np.int64)
    out[:] = value
    return out
