"""Tables of a PSF from which compiled loops read its response at any position."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline

from csunmix._kernels.scene import Optics
from csunmix._validation import FloatArray
from csunmix.psf import PSF, SeparablePSF

_PHASES_PER_WIDTH = 32  # cubic interpolation then errs by less than 1e-7 of the peak
_SAMPLES_PER_WIDTH = 6  # of a PSF that is no product, at first
_DOUBLINGS = 1
_NEGLIGIBLE = 1e-7  # of the peak, where a table ends
_ERROR = 3e-6  # of the peak, of the sum of products
_INTERPOLATION_ERROR = 3e-5  # of the peak, interpolation counted in
_PROBES = 500  # random offsets that the error is measured at


def tabulate(psf: PSF, reach: int, *, error: float = _ERROR) -> Optics:
    """Tables of `psf` out to `reach` px, or to where less than 1e-7 of its peak is left.

    A PSF that is not separable is a sum of products of one factor in y and one in x: the singular
    vectors of its samples that reach `error` of the peak (3e-6 at least), joined by splines. It is
    sampled 6 times per width, and 12 times if the error at random offsets is above 3e-5 of the peak
    or twice `error`. A measured PSF, known to one per cent, takes about 80 products, and 20 to 30
    where a tenth of that may be lost.
    """
    n_phases = int(np.clip(np.ceil(_PHASES_PER_WIDTH / psf.width), 4, 256))
    reach = _reach(psf, reach)
    if isinstance(psf, SeparablePSF):
        offset = _offsets(reach, n_phases)
        factor_y, factor_x = psf.axis_kernel(offset, "y")[None], psf.axis_kernel(offset, "x")[None]
    else:
        offset, factor_y, factor_x = _products(psf, reach, max(error, _ERROR))
    return Optics(
        _table(factor_y, offset, reach, n_phases), _table(factor_x, offset, reach, n_phases)
    )


def _reach(psf: PSF, most: int) -> int:
    """Pixels beyond which the response is negligible, or `most`."""
    d = np.arange(-most, most + 1)
    response = np.abs(psf.kernel(d[:, None], d))
    lit = np.nonzero(response > _NEGLIGIBLE * response.max())
    return min(int(np.abs(d[np.concatenate(lit)]).max()) + 1, most)


def _offsets(reach: int, per_pixel: int) -> FloatArray:
    n = (reach + 1) * per_pixel
    return np.arange(-n, n + 1) / per_pixel


def _products(psf: PSF, reach: int, error: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Offsets (n,) and the factors (rank, n) whose products are the PSF there."""
    dy, dx = np.random.default_rng(0).uniform(-reach, reach, (2, _PROBES)) * 0.99
    # Half of them where the light is.
    dy[::2] *= min(1.0, 3.0 * psf.width / reach)
    dx[::2] *= min(1.0, 3.0 * psf.width / reach)
    wanted = psf.kernel(dy, dx)
    per_pixel = int(np.ceil(_SAMPLES_PER_WIDTH / psf.width))
    for doubling in range(_DOUBLINGS + 1):
        offset = _offsets(reach, per_pixel << doubling)
        samples = psf.kernel(offset[:, None], offset)
        u, s, v = np.linalg.svd(samples)
        peak = np.abs(samples).max()
        largest = s * np.abs(u).max(axis=0) * np.abs(v).max(axis=1)
        rank = int(np.flatnonzero(largest > error * peak).max()) + 1
        factor_y, factor_x = u[:, :rank].T * s[:rank, None], v[:rank]
        got = (_spline(factor_y, offset)(dy) * _spline(factor_x, offset)(dx)).sum(axis=0)
        if np.abs(got - wanted).max() <= max(_INTERPOLATION_ERROR, 2.0 * error) * peak:
            break
    return offset, factor_y, factor_x


def _spline(factor: FloatArray, offset: FloatArray) -> BSpline:
    return make_interp_spline(offset, factor, k=5, axis=1)


def _table(factor: FloatArray, offset: FloatArray, reach: int, n_phases: int) -> FloatArray:
    """Cubics of each phase, (rank, n_phases, 4, 2 reach + 2), see `Optics`.

    They have the values and the slopes of the factor where phases meet.
    """
    spline = _spline(factor, offset)
    place = np.arange(-reach, reach + 2) - np.arange(n_phases + 1)[:, None] / n_phases
    value, change = spline(place), -spline(place, 1) / n_phases
    v, w, d, e = value[:, :-1], value[:, 1:], change[:, :-1], change[:, 1:]
    cubics = [v, d, 3 * (w - v) - 2 * d - e, 2 * (v - w) + d + e]
    # In one order in memory: kernels are compiled for each.
    return np.ascontiguousarray(np.stack(cubics, axis=2))
