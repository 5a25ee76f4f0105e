"""Proximal gradient steps, one image at a time."""

from __future__ import annotations

import numba
import numpy as np

from csunmix._validation import BoolArray, FloatArray


@numba.njit(cache=True, nogil=True)
def proximal_steps(
    a_y: FloatArray,
    a_x: FloatArray,
    y: FloatArray,
    weights: FloatArray,
    censored: BoolArray,
    step: FloatArray,
    shrink: FloatArray,
    positive: bool,
    accelerate: bool,
    restart: bool,
    n_steps: int,
    x: FloatArray,
    z: FloatArray,
    t: FloatArray,
) -> None:
    """Run `n_steps` steps on each image; `x`, the extrapolated `z` and `t` change in place.

    `step` is ``1/L`` and `shrink` is ``lam/L`` of each image.
    """
    n_rows, n_cols = x.shape[1], x.shape[2]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for b in range(x.shape[0]):
        for _ in range(n_steps):
            r = np.dot(a_y, np.dot(z[b], a_x.T))
            for p in range(r.shape[0]):
                for q in range(r.shape[1]):
                    d = y[b, p, q] - r[p, q]
                    if censored[b, p, q]:
                        d = max(d, zero)
                    r[p, q] = weights[b, p, q] * d
            g = np.dot(np.dot(a_y.T, r), a_x)
            uphill = zero
            for i in range(n_rows):
                for j in range(n_cols):
                    v = z[b, i, j] + step[b] * g[i, j]
                    new = max(v - shrink[b], zero)
                    if not positive:
                        new += min(v + shrink[b], zero)
                    uphill += (z[b, i, j] - new) * (new - x[b, i, j])
                    g[i, j] = new
            momentum = zero
            if accelerate:
                if restart and uphill > 0:
                    t[b] = one
                t_next = (one + np.sqrt(one + 4 * t[b] * t[b])) / 2
                momentum = (t[b] - one) / t_next
                t[b] = t_next
            for i in range(n_rows):
                for j in range(n_cols):
                    new = g[i, j]
                    z[b, i, j] = new + momentum * (new - x[b, i, j])
                    x[b, i, j] = new
