"""The Cramer-Rao bound: how well positions and fluxes of known targets can be measured at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from csunmix._validation import (
    FloatArray,
    as_bool,
    as_finite,
    as_images,
    as_instance,
    as_range,
    as_shape,
)
from csunmix.psf import PSF
from csunmix.sensor import Sensor

_CERTAIN = 40.0  # standard deviations beyond which nothing is left of a normal variable
_SINGULAR = 1e-14  # eigenvalue, per parameter, below which a combination is not determined
_INVOLVED = 1e-6  # share of a parameter in such a combination


@dataclass(frozen=True, eq=False)
class CramerRao:
    """Smallest standard errors that an unbiased estimator can have.

    Attributes
    ----------
    y, x : ndarray, shape (K,)
        Of the positions, px.
    flux : ndarray, shape (K,)
        Of the fluxes, DN.
    covariance : ndarray, shape (d, d)
        Of all parameters ``(y_1, x_1, flux_1, ..., y_K, x_K, flux_K[, background])``, px and DN.
    """

    y: FloatArray
    x: FloatArray
    flux: FloatArray
    covariance: FloatArray


def cramer_rao(
    psf: PSF,
    sensor: Sensor,
    y: npt.ArrayLike,
    x: npt.ArrayLike,
    flux: npt.ArrayLike,
    shape: tuple[int, int],
    *,
    flux_range: tuple[float, float] | None = None,
    background: bool = False,
) -> CramerRao:
    r"""Cramer-Rao bound of the targets of one image, their number known.

    The covariance of an unbiased estimator is at least the inverse of the Fisher information

    .. math:: F = \sum_p I_p(\mu_p)\, \nabla\mu_p \nabla\mu_p^T + P, \qquad
              \mu_p = \sum_k f_k\, \mathrm{psf}_p(y_k, x_k) + b,

    over the pixels ``p``, with the gradient by all ``y_k``, ``x_k``, ``f_k`` (and ``b``). A pixel
    tells of its light ``mu`` (Gaussian noise cut off at the ends of the sensor's range)

    .. math:: I(\mu) = \frac1{s^2} \Big[\Phi(u) - u\varphi(u) - \Phi(l) + l\varphi(l)
              + \frac{\varphi(u)^2}{1 - \Phi(u)} + \frac{\varphi(l)^2}{\Phi(l)}\Big], \qquad
              s^2 = r^2 + \frac{\max(\mu, 0)}{g} + \frac1{12},

    where ``r`` is the read noise, ``g`` the gain, 1/12 is there where values are rounded, and
    ``Phi``, ``phi`` are the standard normal distribution and density. With a saturation,
    ``u = (saturation - offset - mu)/s`` and ``l = (0 - offset - mu)/s`` are where values are
    clipped, both half a DN further in where values are rounded; without it ``I = 1/s^2``. Bad
    pixels tell nothing.

    Parameters
    ----------
    psf : PSF
        The optics.
    sensor : Sensor
        The detector. A background's level belongs into its `offset`, its noise into `read_noise`.
    y, x : array_like, shape (K,)
        Positions, px.
    flux : array_like, shape (K,)
        Fluxes, DN, positive. A single number stands for all targets, here as well as above.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    flux_range : tuple of float, optional
        Fluxes are known to lie in this interval, DN. It adds ``P = 12/(high - low)^2`` to the
        information of each flux, as a normal prior of the same variance does (van Trees). That is
        a convention: a flat prior has no Fisher information of its own.
    background : bool
        Whether a constant background ``b`` is unknown too, 0 in truth.

    Returns
    -------
    CramerRao
        Errors of what the image does not determine within double precision, such as two targets
        at the same place, are infinite, and their covariances NaN.

    Raises
    ------
    TypeError
        If an argument is of the wrong type; the message names it.
    ValueError
        If the targets' shapes do not match, a position is not finite, a flux not positive, or the
        sensor has no noise at all.

    Notes
    -----
    Rounding alone is not Gaussian: it leaves an interval, from which more can be learnt than from
    a normal error of the same variance, so estimators may then beat the figure.

    Shot noise counts by its variance, held: ``1/s^2`` is exact for Poisson noise alone and for
    read noise alone, and in between what mean and variance tell, at most 7 % below the exact
    information of pixels that get an electron or more. The term ``(ds^2/dmu)^2/(2 s^4)`` of a
    normal variable whose variance grows with its mean is left out: Poisson noise does not have it.

    With `flux_range` the figure is that of an estimator that uses the prior, not unbiased any more.

    References
    ----------
    Van Trees, Detection, Estimation, and Modulation Theory, Part I (1968), section 2.4.

    Examples
    --------
    >>> import csunmix as cu
    >>> psf, sensor = cu.GaussianPSF(sigma=0.5), cu.Sensor(read_noise=1.0)
    >>> bound = cu.cramer_rao(psf, sensor, y=[5.0, 5.0], x=[4.7, 5.3], flux=240, shape=(11, 11))
    >>> bound.y.round(3), bound.x.round(3)
    (array([0.016, 0.016]), array([0.206, 0.206]))
    >>> told = cu.cramer_rao(psf, sensor, [5, 5], [4.7, 5.3], 240, (11, 11), flux_range=(220, 250))
    >>> told.x.round(3)
    array([0.011, 0.011])
    """
    as_instance(psf, PSF, "psf")
    as_instance(sensor, Sensor, "sensor")
    if sensor.noise == 0.0 and sensor.gain is None:
        raise ValueError(
            f"sensor must have noise or round, else no error has a bound; got {sensor}"
        )
    shape, background = as_shape(shape), as_bool(background, "background")
    y, x, flux = _as_targets(y, x, flux)
    response, (by_y, by_x) = psf.response(y, x, shape), psf.gradient(y, x, shape)
    weight = flux[:, None, None]
    gradient = np.stack([weight * by_y, weight * by_x, response], axis=1).reshape(
        3 * y.size, shape[0] * shape[1]
    )
    if background:
        gradient = np.vstack([gradient, np.ones(gradient.shape[1])])
    pixel = pixel_information(sensor, (weight * response).sum(axis=0)).ravel()
    information = (gradient * pixel) @ gradient.T
    fluxes = np.arange(2, 3 * y.size, 3)
    if flux_range is not None:
        low, high = as_range(flux_range, "flux_range", minimum=0.0)
        information[fluxes, fluxes] += 12.0 / (high - low) ** 2 if high > low else np.inf
    covariance = _inverse(information)
    errors = np.sqrt(np.diag(covariance))
    return CramerRao(errors[fluxes - 2], errors[fluxes - 1], errors[fluxes], covariance)


def pixel_information(sensor: Sensor, light: npt.ArrayLike) -> FloatArray:
    """Fisher information of pixels about their light, 1/DN^2; the formula of `cramer_rao`.

    Parameters
    ----------
    sensor : Sensor
        The detector.
    light : array_like, shape (..., n_y, n_x)
        Expected light, DN above the sensor's `offset`.

    Returns
    -------
    ndarray, shape (..., n_y, n_x)
    """
    light = as_images(light, "light").astype(np.float64)
    variance = sensor.variance(light + sensor.offset)
    # Without noise there is no light either, and the pixel reads the same whatever happens nearby.
    telling = sensor.valid(light) & (variance > 0.0)
    noise = np.sqrt(np.where(telling, variance, 1.0))
    return np.where(telling, _share(sensor, light, noise) / noise**2, 0.0)


def _share(sensor: Sensor, light: FloatArray, noise: FloatArray) -> FloatArray:
    """What clipping leaves of the information of pixels, between 0 and 1."""
    if sensor.saturation is None:
        return np.ones_like(light)
    low, high = 0.0, sensor.saturation
    if sensor.rounding:
        low, high = 0.5, np.ceil(high) - 0.5
    lower, upper = (
        np.clip((end - sensor.offset - light) / noise, -_CERTAIN, _CERTAIN) for end in (low, high)
    )
    return np.asarray(_within(upper) - _within(lower) + _beyond(-upper) + _beyond(lower))


def _within(z: FloatArray) -> FloatArray:
    """Information of a standard normal variable about its mean from its values below `z`."""
    return np.asarray(ndtr(z) - z * np.exp(_log_density(z)))


def _beyond(z: FloatArray) -> FloatArray:
    """Information from the mere fact, where it is one, that the variable lies below `z`."""
    return np.asarray(np.exp(2.0 * _log_density(z) - log_ndtr(z)))


def _log_density(z: FloatArray) -> FloatArray:
    return np.asarray(-0.5 * z**2 - 0.5 * np.log(2.0 * np.pi))


def _inverse(information: FloatArray) -> FloatArray:
    """Covariance; parameters that are not determined have infinite variance and NaN beside it."""
    scale = np.sqrt(np.diag(information))  # infinite where a parameter is known
    determined = scale > 0.0
    scale = np.where(determined, scale, 1.0)
    with np.errstate(invalid="ignore"):
        correlation = information / np.outer(scale, scale)
    np.fill_diagonal(correlation, determined)
    value, vector = np.linalg.eigh(correlation)
    lost = value <= _SINGULAR * value.size
    open_ = (np.abs(vector[:, lost]) > _INVOLVED).any(axis=1)
    covariance = (vector[:, ~lost] / value[~lost]) @ vector[:, ~lost].T / np.outer(scale, scale)
    covariance[open_] = covariance[:, open_] = np.nan
    covariance[open_, open_] = np.inf
    return np.asarray(covariance)


def _as_targets(
    y: npt.ArrayLike, x: npt.ArrayLike, flux: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Finite positions and positive fluxes, each of shape (K,)."""
    given = [as_finite(value, name) for value, name in ((y, "y"), (x, "x"), (flux, "flux"))]
    shapes = {array.shape for array in given if array.ndim} or {(1,)}
    if len(shapes) > 1 or len(min(shapes)) > 1:
        found = [array.shape for array in given]
        raise ValueError(f"y, x and flux must be numbers or all of shape (K,), got {found}")
    (shape,) = shapes
    if (given[2] <= 0.0).any():
        raise ValueError(f"flux must be positive, got {given[2].min():g}")
    y, x, flux = (np.broadcast_to(array.astype(np.float64), shape) for array in given)
    return y, x, flux
