"""Point spread functions, integrated over the detector's pixels.

Every PSF here is shift-invariant and has unit volume: `PSF.kernel` gives the share of a target's
energy that a pixel receives, as a function of the offset from the target to the pixel's centre.
To add a PSF of your own, derive from `PSF` (or from `SeparablePSF`, where the response is a product
of one factor in y and one in x) and write its kernel and the kernel's gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import erf, j1

from csunmix._validation import FloatArray, as_finite, as_images, as_number, as_shape

Axis = Literal["y", "x"]

_RAYLEIGH_PER_SIGMA = 1.9  # Airy radius of a Gaussian of width sigma, by 84 % encircled energy
_FIRST_ZERO_J1 = 3.8317059702075123
_WIDTH_TOLERANCE = 1e-6  # relative, of the squared kernel's sum
_MOST_SAMPLES = 512  # of that sum, to either side


class PSF(ABC):
    """A pixel-integrated, shift-invariant point spread function of unit volume."""

    @abstractmethod
    def kernel(self, dy: npt.ArrayLike, dx: npt.ArrayLike) -> FloatArray:
        """Share of the energy in a pixel whose centre lies `dy`, `dx` (px) from the target.

        `dy` and `dx` broadcast against each other; the result has their common shape.
        """

    @abstractmethod
    def kernel_gradient(
        self, dy: npt.ArrayLike, dx: npt.ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Derivatives of `kernel` by `dy` and by `dx`, 1/px."""

    @property
    def width(self) -> float:
        """Equivalent Gaussian width of the pixel response, ``1/sqrt(4 pi sum kernel^2)``, px.

        The sum runs over the pixels of a target at a pixel's centre, as far out as they count, but
        not beyond 512 samples. The norm of the response is ``1/(sqrt(4 pi) width)``.
        """
        return float(1.0 / np.sqrt(4.0 * np.pi * self._energy()))

    def _energy(self) -> float:
        """Sum of the squared response to a target at a pixel's centre."""
        return _sum_of_squares(lambda d: self.kernel(d[:, None], d), self._spacing("y"))

    def _spacing(self, axis: Axis) -> float:
        """Distance of samples that tell the response's sum as well as all pixels do, px."""
        return 1.0

    def response(self, y: npt.ArrayLike, x: npt.ArrayLike, shape: tuple[int, int]) -> FloatArray:
        """Image of a target of unit flux.

        Parameters
        ----------
        y, x : array_like, shape (...)
            Position of the targets, px; they broadcast against each other.
        shape : tuple of int
            Image shape ``(n_y, n_x)``.

        Returns
        -------
        ndarray, shape (..., n_y, n_x)
            ``kernel(r - y, c - x)`` for every pixel ``(r, c)``.

        Raises
        ------
        TypeError, ValueError
            If `y` or `x` are not finite numbers or do not broadcast, or `shape` is no image shape.
        """
        return self.kernel(*_offsets(y, x, shape))

    def gradient(
        self, y: npt.ArrayLike, x: npt.ArrayLike, shape: tuple[int, int]
    ) -> tuple[FloatArray, FloatArray]:
        """Derivatives of `response` by the target's position ``y`` and ``x``, 1/px."""
        by_dy, by_dx = self.kernel_gradient(*_offsets(y, x, shape))
        return -by_dy, -by_dx


class SeparablePSF(PSF):
    """A PSF that is a product of one factor per axis: ``kernel(dy, dx) = k_y(dy) k_x(dx)``."""

    @abstractmethod
    def axis_kernel(self, d: npt.ArrayLike, axis: Axis) -> FloatArray:
        """Factor of the response along one axis at the offset `d` (px)."""

    @abstractmethod
    def axis_kernel_gradient(self, d: npt.ArrayLike, axis: Axis) -> FloatArray:
        """Derivative of `axis_kernel` by `d`, 1/px."""

    def _energy(self) -> float:
        along_y = _sum_of_squares(lambda d: self.axis_kernel(d, "y"), self._spacing("y"))
        return along_y * _sum_of_squares(lambda d: self.axis_kernel(d, "x"), self._spacing("x"))

    def axis_response(self, position: npt.ArrayLike, n: int, axis: Axis) -> FloatArray:
        """Factor of the response in `n` pixels along one axis, shape (..., n)."""
        return self.axis_kernel(_axis_offsets(position, n), axis)

    def axis_gradient(self, position: npt.ArrayLike, n: int, axis: Axis) -> FloatArray:
        """Derivative of `axis_response` by the target's position, 1/px, shape (..., n)."""
        return -self.axis_kernel_gradient(_axis_offsets(position, n), axis)

    def kernel(self, dy: npt.ArrayLike, dx: npt.ArrayLike) -> FloatArray:
        """Share of the energy in a pixel whose centre lies `dy`, `dx` (px) from the target."""
        return self.axis_kernel(dy, "y") * self.axis_kernel(dx, "x")

    def kernel_gradient(
        self, dy: npt.ArrayLike, dx: npt.ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Derivatives of `kernel` by `dy` and by `dx`, 1/px."""
        k_y, k_x = self.axis_kernel(dy, "y"), self.axis_kernel(dx, "x")
        return (
            self.axis_kernel_gradient(dy, "y") * k_x,
            k_y * self.axis_kernel_gradient(dx, "x"),
        )


@dataclass(frozen=True, init=False)
class GaussianPSF(SeparablePSF):
    r"""A Gaussian PSF integrated exactly over each pixel.

    .. math:: k(d) = \tfrac12\Big[\operatorname{erf}\frac{d + 1/2}{\sqrt2\,\sigma}
              - \operatorname{erf}\frac{d - 1/2}{\sqrt2\,\sigma}\Big]

    along each axis; the response is the product of both.

    Parameters
    ----------
    sigma : float, optional
        Standard deviation along both axes, px.
    sigma_x, sigma_y : float, optional
        Standard deviation along x and y, px; each defaults to `sigma`.

    Raises
    ------
    TypeError
        If a width is not a real number or none is given.
    ValueError
        If a width is not positive and finite.

    Examples
    --------
    >>> import csunmix as cu
    >>> psf = cu.GaussianPSF(sigma=0.5)
    >>> psf.response(y=1.0, x=1.0, shape=(3, 3)).round(3)
    array([[0.025, 0.107, 0.025],
           [0.107, 0.466, 0.107],
           [0.025, 0.107, 0.025]])
    """

    sigma_x: float
    sigma_y: float

    def __init__(
        self,
        sigma: float | None = None,
        *,
        sigma_x: float | None = None,
        sigma_y: float | None = None,
    ) -> None:
        if sigma is None and (sigma_x is None or sigma_y is None):
            raise TypeError("GaussianPSF needs sigma, or both sigma_x and sigma_y")
        for name, given in (("sigma_x", sigma_x), ("sigma_y", sigma_y)):
            value, label = (sigma, "sigma") if given is None else (given, name)
            object.__setattr__(self, name, as_number(value, label, above=0.0))

    @property
    def rayleigh(self) -> float:
        """Rayleigh unit: ``1.9 sigma``, px, of the geometric mean width."""
        return _RAYLEIGH_PER_SIGMA * float(np.sqrt(self.sigma_x * self.sigma_y))

    def axis_kernel(self, d: npt.ArrayLike, axis: Axis) -> FloatArray:
        """Gaussian factor integrated over a pixel at the offset `d` (px)."""
        scale = np.sqrt(2.0) * self._sigma(axis)
        d = np.asarray(d, dtype=np.float64)
        return np.asarray(0.5 * (erf((d + 0.5) / scale) - erf((d - 0.5) / scale)))

    def axis_kernel_gradient(self, d: npt.ArrayLike, axis: Axis) -> FloatArray:
        """Derivative of `axis_kernel` by `d`, 1/px."""
        sigma = self._sigma(axis)
        d = np.asarray(d, dtype=np.float64)
        edges = np.exp(-0.5 * ((d + 0.5) / sigma) ** 2) - np.exp(-0.5 * ((d - 0.5) / sigma) ** 2)
        return np.asarray(edges / (np.sqrt(2.0 * np.pi) * sigma))

    def _spacing(self, axis: Axis) -> float:
        return max(1.0, self._sigma(axis) / 4.0)

    def _sigma(self, axis: Axis) -> float:
        return self.sigma_y if axis == "y" else self.sigma_x


@dataclass(frozen=True)
class AiryPSF(PSF):
    r"""Diffraction pattern of a circular aperture, integrated over each pixel.

    .. math:: f(r) = \frac{a^2}{4\pi}\Big[\frac{2 J_1(a r)}{a r}\Big]^2,
              \qquad a = 3.8317 / \text{radius}

    (Born & Wolf, Principles of Optics, section 8.5.2), integrated over the pixel by
    Gauss-Legendre quadrature. It is not separable.

    Parameters
    ----------
    radius : float
        Radius of the first dark ring (the Rayleigh unit), px; at least 0.05, below which the
        pattern is too fine for the quadrature.

    Raises
    ------
    TypeError
        If `radius` is not a real number.
    ValueError
        If `radius` is below 0.05 or not finite.

    Examples
    --------
    >>> import csunmix as cu
    >>> psf = cu.AiryPSF(radius=0.95)
    >>> psf.response(y=1.0, x=1.0, shape=(3, 3)).round(3)
    array([[0.01 , 0.045, 0.01 ],
           [0.045, 0.688, 0.045],
           [0.01 , 0.045, 0.01 ]])
    """

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", as_number(self.radius, "radius", minimum=0.05))

    @property
    def rayleigh(self) -> float:
        """Rayleigh unit: the radius of the first dark ring, px."""
        return self.radius

    def kernel(self, dy: npt.ArrayLike, dx: npt.ArrayLike) -> FloatArray:
        """Share of the energy in a pixel whose centre lies `dy`, `dx` (px) from the target."""
        dy, dx = np.asarray(dy, np.float64), np.asarray(dx, np.float64)
        nodes = zip(*self._rule, strict=True)
        return np.asarray(sum(weight * self._line(dy + node, dx) for node, weight in nodes))

    def kernel_gradient(
        self, dy: npt.ArrayLike, dx: npt.ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Derivatives of `kernel` by `dy` and by `dx`, 1/px."""
        # Moving a pixel adds the light along its front edge and drops that along its back edge.
        dy, dx = np.asarray(dy, np.float64), np.asarray(dx, np.float64)
        return (
            self._line(dy + 0.5, dx) - self._line(dy - 0.5, dx),
            self._line(dx + 0.5, dy) - self._line(dx - 0.5, dy),
        )

    def _spacing(self, axis: Axis) -> float:
        return max(1.0, self.radius / 8.0)  # its square holds no period below 0.4 radius

    @cached_property
    def _rule(self) -> tuple[FloatArray, FloatArray]:
        """Nodes and weights of the quadrature over ``[-1/2, 1/2]``."""
        # The integrand oscillates with a period of about 0.8 radius: resolve it well.
        node, weight = np.polynomial.legendre.leggauss(6 + int(np.ceil(6.0 / self.radius)))
        return 0.5 * node, 0.5 * weight

    def _line(self, across: FloatArray, along: FloatArray) -> FloatArray:
        """Intensity integrated along a line of one pixel's length, 1/px.

        The line runs from `along` - 1/2 to `along` + 1/2 on one axis, at `across` on the other.
        """
        node, weight = self._rule
        return np.asarray(self._profile(across[..., None], along[..., None] + node) @ weight)

    def _profile(self, y: FloatArray, x: FloatArray) -> FloatArray:
        """Intensity ``f(r)``, 1/px^2."""
        a = _FIRST_ZERO_J1 / self.radius
        v = np.maximum(a * np.hypot(y, x), 1e-9)
        return np.asarray(a**2 / np.pi * (j1(v) / v) ** 2)


@dataclass(frozen=True, eq=False)
class SampledPSF(PSF):
    """A measured PSF: samples of the pixel response, joined by a cubic spline.

    The samples are those of an *effective* PSF (Anderson & King 2000, PASP 112, 1360): the value
    at an offset is what a pixel whose centre lies there receives, so pixel integration is already
    in it. Between samples the kernel is the interpolating bicubic spline, outside of them zero.
    The kernel is scaled to unit volume, ``sum(kernel) = oversampling**2``.

    Parameters
    ----------
    values : array_like, shape (k_y, k_x)
        Samples, at least 4 along each axis; their middle ``((k_y - 1)/2, (k_x - 1)/2)`` is the
        target's position.
    oversampling : float
        Samples per pixel along each axis.

    Raises
    ------
    TypeError
        If the samples or `oversampling` are not real numbers.
    ValueError
        If the samples are not a finite 2-D array, too few, or do not sum to a positive number,
        or `oversampling` is not positive and finite.

    Examples
    --------
    >>> import csunmix as cu
    >>> import numpy as np
    >>> offset = np.arange(-12, 13) / 4  # px, four samples per pixel
    >>> measured = cu.GaussianPSF(sigma=0.5).kernel(offset[:, None], offset)
    >>> psf = cu.SampledPSF(measured, oversampling=4)
    >>> psf.response(y=1.0, x=1.0, shape=(3, 3)).round(3)
    array([[0.025, 0.107, 0.025],
           [0.107, 0.466, 0.107],
           [0.025, 0.107, 0.025]])
    """

    values: FloatArray = field(repr=False)
    oversampling: float = 1

    def __post_init__(self) -> None:
        values = as_images(self.values, "values").astype(np.float64)
        if values.ndim != 2 or min(values.shape) < 4:
            raise ValueError(
                f"values must be a 2-D array of at least 4 x 4 samples, got shape {values.shape}"
            )
        if values.sum() <= 0:
            raise ValueError(f"values must sum to a positive number, got {values.sum():g}")
        oversampling = as_number(self.oversampling, "oversampling", above=0.0)
        values = values * (oversampling**2 / values.sum())
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "oversampling", oversampling)

    def kernel(self, dy: npt.ArrayLike, dx: npt.ArrayLike) -> FloatArray:
        """Share of the energy in a pixel whose centre lies `dy`, `dx` (px) from the target."""
        return self._evaluate(dy, dx)

    def kernel_gradient(
        self, dy: npt.ArrayLike, dx: npt.ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Derivatives of `kernel` by `dy` and by `dx`, 1/px."""
        return self._evaluate(dy, dx, by_dy=1), self._evaluate(dy, dx, by_dx=1)

    def _energy(self) -> float:
        d_y, d_x = (np.arange(-(edge[-1] // 1), edge[-1] // 1 + 1) for edge in self._axes)
        return float(np.square(self.kernel(d_y[:, None], d_x)).sum())

    @cached_property
    def _axes(self) -> tuple[FloatArray, FloatArray]:
        k_y, k_x = self.values.shape
        return (
            (np.arange(k_y) - (k_y - 1) / 2) / self.oversampling,
            (np.arange(k_x) - (k_x - 1) / 2) / self.oversampling,
        )

    @cached_property
    def _spline(self) -> Any:
        from scipy.interpolate import RectBivariateSpline

        return RectBivariateSpline(*self._axes, self.values, kx=3, ky=3, s=0)

    def _evaluate(
        self, dy: npt.ArrayLike, dx: npt.ArrayLike, by_dy: int = 0, by_dx: int = 0
    ) -> FloatArray:
        dy, dx = np.broadcast_arrays(np.asarray(dy, np.float64), np.asarray(dx, np.float64))
        edge_y, edge_x = self._axes[0][-1], self._axes[1][-1]
        inside = (np.abs(dy) <= edge_y) & (np.abs(dx) <= edge_x)
        out = np.zeros(dy.shape)
        out[inside] = self._spline.ev(dy[inside], dx[inside], dx=by_dy, dy=by_dx)
        return out


def _sum_of_squares(response: Callable[[FloatArray], FloatArray], spacing: float) -> float:
    """``spacing^n sum response^2`` along the response's n axes, as far out as it counts."""
    reach, energy, change = 8, 0.0, np.inf
    while change > _WIDTH_TOLERANCE * energy and reach < _MOST_SAMPLES:
        reach *= 2
        values = response(spacing * np.arange(-reach, reach + 1))
        before, energy = energy, float(spacing**values.ndim * np.square(values).sum())
        change = energy - before
    return energy


def _axis_offsets(position: npt.ArrayLike, n: int) -> FloatArray:
    """Offsets from positions (...) to the centres of `n` pixels, shape (..., n)."""
    return np.arange(n) - np.asarray(position, dtype=np.float64)[..., None]


def _offsets(
    y: npt.ArrayLike, x: npt.ArrayLike, shape: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """Offsets from targets (...) to all pixels, shapes (..., n_y, 1) and (..., 1, n_x)."""
    n_y, n_x = as_shape(shape)
    y, x = as_finite(y, "y"), as_finite(x, "x")
    try:
        np.broadcast_shapes(y.shape, x.shape)
    except ValueError:
        raise ValueError(f"y and x must broadcast, got shapes {y.shape} and {x.shape}") from None
    return _axis_offsets(y, n_y)[..., :, None], _axis_offsets(x, n_x)[..., None, :]
