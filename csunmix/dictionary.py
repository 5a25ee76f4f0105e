"""The sub-pixel dictionary: one atom for a target of unit flux at every cell of the grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from csunmix._validation import (
    FloatArray,
    as_bool,
    as_images,
    as_instance,
    as_mask,
    as_rng,
    as_sparse_images,
    as_weights,
)
from csunmix.band import Band
from csunmix.grid import SubpixelGrid
from csunmix.psf import PSF, SeparablePSF

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

_MAX_DENSE_BYTES = 4 * 2**30
_MOST_ATOMS = 2**28  # a map of them takes 2 GiB
_SPARSE = 4  # times the band, and larger images are worked on band by band


class Dictionary:
    """The linear map ``A`` from flux on a sub-pixel grid to the image.

    ``(A x)[r, c] = sum_ij x[i, j] kernel(r - y_i, c - x_j) / w_ij``, with ``w = 1``, or the norm of
    the atom where `normalised`. With a separable PSF, ``A = A_y (x) A_x`` (a Kronecker product of
    two small matrices) and is applied as ``A_y X A_x^T``, on large images only where the PSF
    reaches (`bands`); with any other PSF it is one dense matrix, made when it is first needed.

    Parameters
    ----------
    psf : PSF
        The optics.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    factor : int
        Cells per pixel along each axis, odd or even.
    normalised : bool
        Scale every atom to unit norm; coefficients are then ``flux * norm``, see `to_flux`.

    Attributes
    ----------
    psf : PSF
    grid : SubpixelGrid
        Where the cells lie.
    normalised : bool

    Raises
    ------
    TypeError
        If `psf` is not a PSF or `factor` is not an integer.
    ValueError
        If `shape` or `factor` is not positive, or the grid has more than 2^28 cells.

    Examples
    --------
    >>> import csunmix as cu
    >>> import numpy as np
    >>> dictionary = cu.Dictionary(cu.GaussianPSF(sigma=0.5), shape=(11, 11), factor=3)
    >>> x = np.zeros(dictionary.map_shape)
    >>> x[dictionary.grid.cell(y=5.0, x=5.0)] = 230.0  # one target of 230 DN in the middle
    >>> image = dictionary.forward(x)
    >>> image.shape, round(float(image.sum()), 6), round(float(image[5, 5] / 230), 3)
    ((11, 11), 230.0, 0.466)
    """

    def __init__(
        self, psf: PSF, shape: tuple[int, int], factor: int, *, normalised: bool = False
    ) -> None:
        self.psf = as_instance(psf, PSF, "psf")
        self.grid = SubpixelGrid(shape, factor)
        most = math.isqrt(_MOST_ATOMS // math.prod(self.grid.shape))
        if self.grid.factor > most:
            raise ValueError(
                f"factor must be at most {most} for images of shape {self.grid.shape}, "
                f"got {factor}: the grid would have more than 2^28 cells"
            )
        self.normalised = as_bool(normalised, "normalised")

    def __repr__(self) -> str:
        return (
            f"Dictionary({self.psf!r}, shape={self.image_shape}, factor={self.grid.factor}, "
            f"normalised={self.normalised})"
        )

    @property
    def image_shape(self) -> tuple[int, int]:
        """Shape of an image, ``(n_y, n_x)``."""
        return self.grid.shape

    @property
    def map_shape(self) -> tuple[int, int]:
        """Shape of a coefficient map, ``(m_y, m_x)``."""
        return self.grid.map_shape

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix ``A``: pixels by atoms."""
        return (
            self.image_shape[0] * self.image_shape[1],
            self.map_shape[0] * self.map_shape[1],
        )

    @property
    def separable(self) -> bool:
        """Whether ``A`` is applied one axis at a time."""
        return isinstance(self.psf, SeparablePSF)

    @property
    def bands(self) -> tuple[Band, Band]:
        """Matrices ``(A_y, A_x)`` with ``A = A_y (x) A_x``, as far as they are not 0.

        For a PSF that is not separable, ``A_y = [[1]]`` and ``A_x`` is the dense matrix, so that
        whatever is written for the bands serves both cases.
        """
        return self._bands_and_norms[0]

    @cached_property
    def _bands_and_norms(self) -> tuple[tuple[Band, Band], FloatArray]:
        """The bands, and the norms of the atoms before any normalisation."""
        psf, (n_y, n_x) = self.psf, self.image_shape
        if isinstance(psf, SeparablePSF):
            y = Band.of_kernel(lambda d: psf.axis_kernel(d, "y"), n_y, self.grid.factor)
            x = Band.of_kernel(lambda d: psf.axis_kernel(d, "x"), n_x, self.grid.factor)
        else:
            y, x = Band.full(np.ones((1, 1))), Band.full(self._dense_columns())
        # 1 for an atom that no pixel sees
        norms_y, norms_x = (np.where(band.norms > 0, band.norms, 1.0) for band in (y, x))
        if self.normalised:
            y, x = y.scaled(1.0 / norms_y), x.scaled(1.0 / norms_x)
        for array in (y.first, y.values, x.first, x.values):
            array.flags.writeable = False
        return (y, x), np.outer(norms_y, norms_x).reshape(self.map_shape)

    @cached_property
    def across(self) -> Band:
        """The second of the `bands` transposed: each pixel's cells, as full maps are read."""
        return self.bands[1].transposed

    @cached_property
    def factors(self) -> tuple[FloatArray, FloatArray]:
        """Matrices ``(A_y, A_x)`` with ``A = A_y (x) A_x`` on row-major images and maps, dense.

        For a PSF that is not separable, ``A_y`` is the dense matrix itself and ``A_x = [[1]]``.
        """
        a_y, a_x = (band.to_dense() for band in self.bands)
        a_y.flags.writeable = a_x.flags.writeable = False
        return (a_y, a_x) if self.separable else (a_x, a_y)

    @cached_property
    def norms(self) -> FloatArray:
        """Euclidean norm of every atom as it is used, shape (m_y, m_x)."""
        return np.outer(*(band.norms for band in self.bands)).reshape(self.map_shape)

    @property
    def largest_norm(self) -> float:
        """The largest of `norms`."""
        y, x = self.bands
        return float(y.norms.max() * x.norms.max())

    @cached_property
    def lipschitz(self) -> float:
        """Largest eigenvalue of ``A^T A``: the Lipschitz constant of the data term's gradient."""
        y, x = self.bands
        return y.largest_eigenvalue * x.largest_eigenvalue

    @cached_property
    def gram(self) -> tuple[FloatArray, FloatArray]:
        """Gram matrices ``(A_y^T A_y, A_x^T A_x)``; ``A^T A`` is their Kronecker product."""
        a_y, a_x = self.factors
        return a_y.T @ a_y, a_x.T @ a_x

    def forward(self, x: npt.ArrayLike) -> FloatArray:
        """``A x``: coefficient maps (..., m_y, m_x) to images (..., n_y, n_x); keeps float32."""
        x = as_images(x, "x", shape=self.map_shape, finite=False)
        images = self.forward_stack(x.reshape(-1, *self.map_shape))
        return images.reshape(*x.shape[:-2], *self.image_shape)

    def adjoint(self, images: npt.ArrayLike) -> FloatArray:
        """``A^T r``: images (..., n_y, n_x) to maps (..., m_y, m_x); keeps float32."""
        images = as_images(images, shape=self.image_shape, finite=False)
        maps = self.adjoint_stack(images.reshape(-1, *self.image_shape))
        return maps.reshape(*images.shape[:-2], *self.map_shape)

    def forward_stack(self, maps: FloatArray) -> FloatArray:
        """`forward` of maps (b, m_y, m_x) that need no check."""
        if not self._sparse:
            a_y, a_x = self._factors_as(maps.dtype)
            images = a_y @ (maps.reshape(-1, a_y.shape[1], a_x.shape[1]) @ a_x.T)
            return images.reshape(-1, *self.image_shape)
        from csunmix._kernels.banded import forward

        images = np.empty((len(maps), *self.image_shape), maps.dtype)
        y, x, across = (band.astype(maps.dtype) for band in (*self.bands, self.across))
        forward(y, x, across, np.require(maps, None, ["C", "W"]), images)
        return images

    def adjoint_stack(self, images: FloatArray) -> FloatArray:
        """`adjoint` of images (b, n_y, n_x) that need no check."""
        if not self._sparse:
            a_y, a_x = self._factors_as(images.dtype)
            maps = (a_y.T @ images.reshape(-1, a_y.shape[0], a_x.shape[0])) @ a_x
            return maps.reshape(-1, *self.map_shape)
        from csunmix._kernels.banded import adjoint

        maps = np.empty((len(images), *self.map_shape), images.dtype)
        y, x = (band.astype(images.dtype) for band in self.bands)
        adjoint(y, x, np.require(images, None, ["C", "W"]), maps)
        return maps

    @property
    def _sparse(self) -> bool:
        """Whether a band is so narrow that to skip what is 0 beats a dense product."""
        return any(_SPARSE * band.values.shape[1] < band.n for band in self.bands)

    def lam_max(
        self,
        images: npt.ArrayLike,
        *,
        positive: bool = True,
        weights: npt.ArrayLike | None = None,
        censored: npt.ArrayLike | None = None,
    ) -> FloatArray:
        """Smallest ``lam`` for which ``x = 0`` is optimal, shape (...).

        ``max(0, max_j a_j^T (w r))`` for each image, with ``r = y``, or ``max(y, 0)`` in censored
        pixels: what is left of the data at ``x = 0``.

        Parameters
        ----------
        images : array_like, shape (..., n_y, n_x)
            Images ``y``, DN.
        positive : bool
            Whether ``x >= 0`` is required; without it the largest absolute value counts.
        weights : array_like, broadcasting to the images, optional
            Pixel weights ``w >= 0``.
        censored : array_like of bool, broadcasting to the images, optional
            Pixels whose recorded value is a lower bound.

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong type or shape, not finite, or a weight is negative.
        """
        y = as_images(images, shape=self.image_shape)
        bounded = as_mask(censored, y.shape, "censored")
        residual = as_weights(weights, y.shape) * np.where(bounded, np.maximum(y, 0), y)
        correlation = self.adjoint(residual.astype(y.dtype, copy=False))
        if not as_bool(positive, "positive"):
            correlation = np.abs(correlation)
        largest: FloatArray = correlation.max(axis=(-2, -1), initial=0.0)
        return largest

    @overload
    def to_flux(self, x: coo_array) -> coo_array: ...
    @overload
    def to_flux(self, x: npt.ArrayLike) -> FloatArray: ...
    def to_flux(self, x: npt.ArrayLike | coo_array) -> FloatArray | coo_array:
        """Flux (DN) of coefficients `x`: itself, or ``x / norm`` where atoms are normalised.

        A sparse array of coefficients stays one.
        """
        if isinstance(x, coo_array):
            sparse: coo_array = as_sparse_images(x, "x", shape=self.map_shape)
            if not self.normalised:
                return sparse
            norms = self._bands_and_norms[1].astype(sparse.dtype)[sparse.coords[-2:]]
            return coo_array((sparse.data / norms, sparse.coords), shape=sparse.shape)
        x = as_images(x, "x", shape=self.map_shape, finite=False)
        if not self.normalised:
            return x
        return np.asarray(x / self._bands_and_norms[1].astype(x.dtype))

    def to_dense(self) -> FloatArray:
        """The matrix ``A``, shape (n_y n_x, m_y m_x), row-major on both sides.

        Raises
        ------
        ValueError
            If it would take more than 4 GiB.
        """
        self._check_dense_size()
        return np.asarray(np.kron(*self.factors))

    def as_linear_operator(self) -> LinearOperator:
        """``A`` as a `scipy.sparse.linalg.LinearOperator` on flattened images and maps."""
        from scipy.sparse.linalg import LinearOperator

        return LinearOperator(
            shape=self.shape,
            dtype=np.float64,
            matvec=lambda x: self.forward(x.reshape(self.map_shape)).ravel(),
            rmatvec=lambda r: self.adjoint(r.reshape(self.image_shape)).ravel(),
        )

    def _factors_as(self, dtype: npt.DTypeLike) -> tuple[FloatArray, FloatArray]:
        a_y, a_x = self.factors
        return a_y.astype(dtype, copy=False), a_x.astype(dtype, copy=False)

    def _check_dense_size(self) -> None:
        size = 8 * self.shape[0] * self.shape[1]
        if size > _MAX_DENSE_BYTES:
            raise ValueError(
                f"the dense matrix of {self.shape[0]} x {self.shape[1]} would take "
                f"{size / 2**30:.1f} GiB (limit 4 GiB); use a separable PSF, a smaller image or "
                "a smaller factor"
            )

    def _dense_columns(self) -> FloatArray:
        """All atoms of a PSF that is not separable, shape (atoms, pixels).

        The response depends on pixel and cell only through their offset: the PSF is evaluated
        once for each offset that occurs, and the matrix gathered from that table.
        """
        self._check_dense_size()
        (n_y, n_x), c = self.image_shape, self.grid.factor
        rows = np.arange(1 - n_y * c, (n_y - 1) * c + 1)
        cols = np.arange(1 - n_x * c, (n_x - 1) * c + 1)
        half = (c - 1) / 2
        table = self.psf.kernel((rows[:, None] + half) / c, (cols[None, :] + half) / c)
        i = (c * np.arange(n_y)[:, None] - np.arange(n_y * c)) - rows[0]
        j = (c * np.arange(n_x)[:, None] - np.arange(n_x * c)) - cols[0]
        columns: FloatArray = table[i.T[:, None, :, None], j.T[None, :, None, :]]
        return columns.reshape(self.shape[::-1])


def dot_test(
    forward: Callable[[FloatArray], FloatArray],
    adjoint: Callable[[FloatArray], FloatArray],
    domain_shape: tuple[int, ...],
    range_shape: tuple[int, ...],
    *,
    rng: np.random.Generator | int = 0,
    rtol: float = 1e-10,
) -> bool:
    """Check that two functions are adjoint: ``<A u, v> = <u, A^T v>`` for random u and v.

    Parameters
    ----------
    forward, adjoint : callable
        The map and what should be its adjoint.
    domain_shape, range_shape : tuple of int
        Shapes of ``u`` and ``v``.
    rng : numpy.random.Generator or int
        Source of the random vectors, or a seed.
    rtol : float
        Allowed difference, relative to ``||A u|| ||v||``.

    Returns
    -------
    bool
        Whether both sides agree.

    Examples
    --------
    >>> import csunmix as cu
    >>> d = cu.Dictionary(cu.GaussianPSF(sigma=0.5), shape=(11, 11), factor=3)
    >>> cu.dot_test(d.forward, d.adjoint, d.map_shape, d.image_shape)
    True
    """
    rng = as_rng(rng)
    u, v = rng.standard_normal(domain_shape), rng.standard_normal(range_shape)
    image, back = forward(u), adjoint(v)
    difference = abs(np.vdot(image, v) - np.vdot(u, back))
    scale = float(np.linalg.norm(image.ravel()) * np.linalg.norm(v.ravel()))
    return bool(difference <= rtol * max(scale, np.finfo(np.float64).tiny))
