r"""What all solvers share: the protocol, the result, and the certificates of optimality.

Every l1 solver minimises, for each image ``y`` by itself,

.. math:: P(x) = \tfrac12 \sum_p w_p\, r_p(x)^2 + \lambda \|x\|_1, \qquad x \ge 0
          \text{ unless told otherwise,}

with ``r = y - A x``, and for censored (saturated) pixels ``r = max(y - A x, 0)``: a fit above the
recorded bound costs nothing. The weights ``w`` are 1 by default; 0 ignores a pixel. There is no
factor 1/n.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

from csunmix._validation import (
    LARGEST,
    Array,
    BoolArray,
    FloatArray,
    as_bool,
    as_finite,
    as_images,
    as_instance,
    as_integer,
    as_number,
)
from csunmix.dictionary import Dictionary

Lam = float | Literal["auto"]

_LEAST_SHARE = 1e-4  # of the smallest lam that leaves nothing, for images without noise


class IterationStats(NamedTuple):
    """State of a solver when it last looked at its progress.

    Attributes
    ----------
    iteration : int
        Iterations done.
    time : float
        Seconds since the start.
    objective : ndarray, shape (n,)
        Objective ``P`` of every image.
    gap : ndarray, shape (n,)
        Relative duality gap of every image; NaN for greedy solvers.
    """

    iteration: int
    time: float
    objective: FloatArray
    gap: FloatArray


Callback = Callable[[IterationStats], "bool | None"]
"""Called with the progress; returning True stops the solver."""


@dataclass(frozen=True, kw_only=True)
class SolveResult:
    """Answer of a solver. Leading axes ``(...)`` are those of the images.

    Attributes
    ----------
    coefficients : ndarray or scipy.sparse.coo_array, shape (..., m_y, m_x)
        Coefficients; fluxes in DN where the dictionary is not normalised. Float32 for float32
        images; everything else is in double precision. Sparse by solvers that reckon with the
        non-zero ones alone (`ActiveSet`, `OMP`, `MatchingPursuit`): of a large stack at a fine grid
        they are less than a hundredth of the whole. `Dictionary.to_flux`, `EveryCell` and
        `MassMerging` take both; all else that takes maps takes `x`, an array always.
    n_iter : ndarray of int, shape (...)
        Iterations done.
    converged : ndarray of bool, shape (...)
        Whether the solver's own criterion was met.
    gap : ndarray, shape (...)
        Relative duality gap ``(P - D)/P``, an upper bound of the relative error of the objective;
        NaN for greedy solvers.
    objective : ndarray, shape (...)
        ``P(x)``; for greedy solvers its data term.
    residual_norm : ndarray, shape (...)
        ``sqrt(sum w r^2)``, DN.
    history : tuple of IterationStats
        Progress at the times the solver looked, the last entry being the end.
    """

    coefficients: FloatArray | coo_array
    n_iter: npt.NDArray[np.int64]
    converged: BoolArray
    gap: FloatArray
    objective: FloatArray
    residual_norm: FloatArray
    history: tuple[IterationStats, ...]

    @cached_property
    def x(self) -> FloatArray:
        """The coefficients as an array, shape (..., m_y, m_x), made where they are sparse."""
        maps = self.coefficients
        return maps if isinstance(maps, np.ndarray) else maps.toarray()


@runtime_checkable
class Solver(Protocol):
    """Anything that turns images into coefficient maps; no inheritance needed.

    `GridUnmixer` gives `weights` only for sensors with bad pixels and `censored` only for sensors
    that saturate: a solver that is not used with these may do without.
    """

    def solve(
        self,
        dictionary: Dictionary,
        images: npt.ArrayLike,
        *,
        weights: npt.ArrayLike | None = None,
        censored: npt.ArrayLike | None = None,
        x0: npt.ArrayLike | None = None,
        callback: Callback | None = None,
    ) -> SolveResult:
        """Solve for a batch of images.

        Parameters
        ----------
        dictionary : Dictionary
            The linear map ``A``.
        images : array_like, shape (..., n_y, n_x)
            Images ``y``, DN.
        weights : array_like, broadcasting to the images, optional
            Pixel weights ``w >= 0``; 0 ignores a pixel.
        censored : array_like of bool, broadcasting to the images, optional
            Pixels whose recorded value is a lower bound.
        x0 : array_like, shape (..., m_y, m_x), optional
            Coefficients to start from.
        callback : callable, optional
            Called with `IterationStats`; returning True stops the solver.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """A batch of images, checked, in double precision and laid out for a dictionary's factors.

    Images are ``(b, p, q)`` and maps ``(b, k, l)`` with factors ``a_y`` (p, k), ``a_x`` (q, l);
    a dense dictionary has ``q = l = 1``.
    """

    dictionary: Dictionary
    y: FloatArray
    weights: FloatArray
    censored: BoolArray
    lam: FloatArray
    positive: bool
    x0: FloatArray | None  # coefficients to start from, None for zeros
    batch_shape: tuple[int, ...]
    map_shape: tuple[int, int]
    dtype: np.dtype[Any]  # of the images, and of the answer

    @classmethod
    def make(
        cls,
        dictionary: Dictionary,
        images: npt.ArrayLike,
        *,
        lam: Lam = 0.0,
        positive: bool = True,
        weights: npt.ArrayLike | None = None,
        censored: npt.ArrayLike | None = None,
        x0: npt.ArrayLike | None = None,
    ) -> Problem:
        """Check what a solver was given; see `Solver.solve`."""
        as_instance(dictionary, Dictionary, "dictionary")
        y = as_images(images, shape=dictionary.image_shape, finite=False)
        largest = float(np.abs(y).max(initial=0.0))
        if not largest < LARGEST:
            as_images(y)  # says where one is not finite
            raise ValueError(f"images must be below {LARGEST:g} DN, got {largest:g}")
        w = as_finite(1.0 if weights is None else weights, "weights")
        if (w < 0).any():
            raise ValueError(f"weights must not be negative, got {w.min():g}")
        c = np.asarray(False if censored is None else censored)
        if c.dtype != np.bool_:
            raise TypeError(f"censored must be an array of bool, got dtype {c.dtype}")
        x = None if x0 is None else as_finite(x0, "x0")
        if positive and x is not None and (x < 0).any():
            raise ValueError(f"x0 must not be negative where x >= 0 is asked, got {x.min():g}")

        batch_shape, map_shape = y.shape[:-2], dictionary.map_shape

        def lay(array: Array, name: str, shape: tuple[int, int], sizes: tuple[int, int]) -> Any:
            """Stack of one kind of memory layout, so that one compiled version serves all."""
            stack = _broadcast(array, (*batch_shape, *shape), name).reshape(-1, *sizes)
            dtype = np.bool_ if array.dtype == np.bool_ else np.float64
            return np.require(stack, dtype, ["C", "W"])

        pixels, cells = dictionary.image_shape, map_shape
        if not dictionary.separable:
            pixels, cells = (dictionary.shape[0], 1), (dictionary.shape[1], 1)
        stack = lay(y, "images", dictionary.image_shape, pixels)
        return cls(
            dictionary=dictionary,
            y=stack,
            weights=lay(w, "weights", dictionary.image_shape, pixels),
            censored=lay(c, "censored", dictionary.image_shape, pixels),
            lam=np.broadcast_to(_resolve_lam(lam, dictionary, y), len(stack)).astype(np.float64),
            positive=positive,
            x0=None if x is None else lay(x, "x0", map_shape, cells),
            batch_shape=batch_shape,
            map_shape=map_shape,
            dtype=y.dtype,
        )

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: npt.NDArray[np.int64] | slice) -> Problem:
        """The same problem for some of the images."""
        return replace(
            self,
            y=self.y[index],
            weights=self.weights[index],
            censored=self.censored[index],
            lam=self.lam[index],
            x0=None if self.x0 is None else self.x0[index],
            batch_shape=(len(self.y[index]),),
        )

    def astype(self, dtype: npt.DTypeLike) -> Problem:
        """The same problem in another precision."""
        names = ("y", "weights", "lam")
        arrays = {name: getattr(self, name).astype(dtype, copy=False) for name in names}
        return replace(self, **arrays)

    @property
    def cells(self) -> tuple[int, int]:
        """Shape of a map as it is laid out, (k, l)."""
        return self.map_shape if self.dictionary.separable else (self.dictionary.shape[1], 1)

    def start(self, dtype: npt.DTypeLike = np.float64) -> FloatArray:
        """Coefficients to start from, (b, k, l), to be changed in place.

        Zeros take no memory before they are written to.
        """
        if self.x0 is None:
            return np.zeros((len(self), *self.cells), dtype)
        return self.x0.astype(dtype)

    @property
    def a_y(self) -> FloatArray:
        """First factor of the dictionary, dense: a copy, as kernels compile for writable arrays."""
        return self.dictionary.factors[0].copy()

    @property
    def a_x(self) -> FloatArray:
        """Second factor of the dictionary, dense: a copy too."""
        return self.dictionary.factors[1].copy()

    @property
    def lipschitz(self) -> FloatArray:
        """Upper bound of the Lipschitz constant of the data term's gradient, shape (b,)."""
        return np.asarray(self.dictionary.lipschitz * self.weights.max(axis=(1, 2)))

    def forward(self, x: FloatArray) -> FloatArray:
        """``A x``, in double precision."""
        maps = x.reshape(len(x), *self.map_shape).astype(np.float64, copy=False)
        return self.dictionary.forward_stack(maps).reshape(len(x), *self.y.shape[1:])

    def adjoint(self, r: FloatArray) -> FloatArray:
        """``A^T r``, in double precision."""
        images = r.reshape(len(r), *self.dictionary.image_shape).astype(np.float64, copy=False)
        return self.dictionary.adjoint_stack(images).reshape(len(r), *self.cells)

    def residual(self, x: FloatArray) -> FloatArray:
        """``y - A x``; not below 0 in censored pixels."""
        r = self.y - self.forward(x)
        return np.where(self.censored, np.maximum(r, 0), r)

    def penalty(self, x: FloatArray) -> FloatArray:
        """``lam ||x||_1``, shape (b,)."""
        return np.asarray(self.lam * np.abs(x).sum(axis=(1, 2), dtype=np.float64))

    def resolution(self, dtype: np.dtype[Any]) -> FloatArray:
        """Relative gap that rounding leaves in the precision `dtype`, shape (b,).

        ``16 eps max_j |a_j^T w y| / lam``: a dual point is scaled by ``lam`` over a correlation,
        which is told to within a few ``eps`` of the largest.
        """
        largest = np.abs(self.adjoint(self.weights * self.y)).max(axis=(1, 2))
        eps = float(np.finfo(dtype).eps)
        return np.asarray(16.0 * eps * largest / np.where(self.lam > 0, self.lam, np.inf))

    def sparse(self, x: csr_array) -> coo_array:
        """Coefficients (b, k l), sorted, in the shape and precision of the caller's images."""
        x.sort_indices()  # in place; peak rules read them in row-major order
        image = np.repeat(np.arange(len(self)), np.diff(x.indptr))
        shape, place = (*self.batch_shape, *self.map_shape), image * x.shape[1] + x.indices
        coords: Any = np.unravel_index(place, shape)  # which scipy-stubs has for two axes at most
        return coo_array((x.data.astype(self.dtype, copy=False), coords), shape=shape)

    def evaluate(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        r"""Objective and relative duality gap, shape (b,).

        The dual point is the best multiple ``s nu`` of ``nu = w r`` that is feasible,

        .. math:: D(s\nu) = s \langle\nu, y\rangle - \tfrac12 s^2 \sum_p w_p r_p^2,
                  \qquad s\, a_j^T \nu \le \lambda \ \forall j

        (``|a_j^T nu|`` without the sign constraint). At ``lam = 0`` only ``s = 0`` is feasible in
        general and the gap says nothing.
        """
        r = self.residual(x)
        correlation = self.adjoint(self.weights * r)
        return self.certify(r, correlation, self.penalty(x))

    def certify(
        self,
        r: FloatArray,
        correlation: FloatArray,
        penalty: FloatArray,
        largest_scale: float = np.inf,
    ) -> tuple[FloatArray, FloatArray]:
        """Objective and relative gap of a residual, the correlation ``lam`` bounds, and a penalty.

        `largest_scale` bounds ``s`` where the dual point has other parts that ``s`` scales too.
        """
        nu = self.weights * r
        energy, product = _inner(nu, r), _inner(nu, self.y)
        primal = 0.5 * energy + penalty
        limit = (correlation if self.positive else np.abs(correlation)).max(axis=(1, 2))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            feasible = np.where(limit > 0, self.lam / limit, np.inf)
            best = np.where(energy > 0, product / energy, 0.0)
        s = np.clip(best, 0.0, np.minimum(feasible, largest_scale))
        dual = s * product - 0.5 * s**2 * energy
        gap = np.maximum(primal - dual, 0.0) / np.where(primal > 0, primal, 1.0)
        return primal, gap

    def result(
        self,
        x: FloatArray,
        *,
        n_iter: npt.NDArray[np.int64],
        converged: BoolArray,
        objective: FloatArray,
        gap: FloatArray,
        history: list[IterationStats],
    ) -> SolveResult:
        """Bring the answer back into the shape and precision of the caller's images."""
        r = self.residual(x)
        shape = self.batch_shape
        return SolveResult(
            coefficients=x.reshape(*shape, *self.map_shape).astype(self.dtype, copy=False),
            n_iter=n_iter.reshape(shape),
            converged=converged.reshape(shape),
            gap=gap.reshape(shape),
            objective=objective.reshape(shape),
            residual_norm=np.sqrt(_inner(self.weights * r, r)).reshape(shape),
            history=tuple(history),
        )


class Monitor:
    """Collects the history of a run and asks the callback whether to stop."""

    def __init__(self, callback: Callback | None) -> None:
        self.history: list[IterationStats] = []
        self._callback = callback
        self.watched = callback is not None
        self._start = time.perf_counter()

    def report(self, iteration: int, objective: FloatArray, gap: FloatArray) -> bool:
        """Record the progress; True if the callback wants to stop."""
        elapsed = time.perf_counter() - self._start
        stats = IterationStats(iteration, elapsed, objective.copy(), gap.copy())
        self.history.append(stats)
        return self._callback is not None and bool(self._callback(stats))


@dataclass(frozen=True, kw_only=True)
class L1Solver(ABC):
    """Parameters and front door that the l1 solvers of this package have in common.

    Parameters
    ----------
    lam : float or "auto"
        Weight of the l1 norm, DN; "auto" takes it from the images' noise, see `universal_lam`.
    positive : bool
        Require ``x >= 0``.
    max_iter : int
        Most iterations.
    tol : float
        Relative duality gap at which an image is done.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.
    """

    lam: Lam
    positive: bool = True
    max_iter: int = 10_000
    tol: float = 1e-6

    def __post_init__(self) -> None:
        check_lam(self.lam)
        as_bool(self.positive, "positive")
        as_integer(self.max_iter, "max_iter", minimum=1)
        as_number(self.tol, "tol", minimum=0.0)

    def solve(
        self,
        dictionary: Dictionary,
        images: npt.ArrayLike,
        *,
        weights: npt.ArrayLike | None = None,
        censored: npt.ArrayLike | None = None,
        x0: npt.ArrayLike | None = None,
        callback: Callback | None = None,
    ) -> SolveResult:
        """Solve for a batch of images, see `Solver.solve`."""
        problem = Problem.make(
            dictionary,
            images,
            lam=self.lam,
            positive=self.positive,
            weights=weights,
            censored=censored,
            x0=x0,
        )
        return self._run(problem, Monitor(callback))

    @abstractmethod
    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        """Solve a problem that has been checked."""


def objective(
    dictionary: Dictionary,
    images: npt.ArrayLike,
    x: npt.ArrayLike,
    *,
    lam: float,
    weights: npt.ArrayLike | None = None,
    censored: npt.ArrayLike | None = None,
) -> FloatArray:
    """Objective ``P(x) = 1/2 sum w r^2 + lam ||x||_1`` of each image, shape (...)."""
    problem, stack = _posed(dictionary, images, x, lam, False, weights, censored)
    return problem.evaluate(stack)[0].reshape(problem.batch_shape)


def duality_gap(
    dictionary: Dictionary,
    images: npt.ArrayLike,
    x: npt.ArrayLike,
    *,
    lam: float,
    positive: bool = True,
    weights: npt.ArrayLike | None = None,
    censored: npt.ArrayLike | None = None,
) -> FloatArray:
    """Relative duality gap ``(P - D)/P`` of each image, shape (...), from `x` alone.

    It bounds the relative error of the objective: ``P(x) - P* <= gap P(x)``. The dual point is the
    best feasible multiple of the weighted residual (Kim et al. 2007, IEEE JSTSP 1(4), section II).
    """
    problem, stack = _posed(dictionary, images, x, lam, positive, weights, censored)
    return problem.evaluate(stack)[1].reshape(problem.batch_shape)


def kkt_violation(
    dictionary: Dictionary,
    images: npt.ArrayLike,
    x: npt.ArrayLike,
    *,
    lam: float,
    positive: bool = True,
    weights: npt.ArrayLike | None = None,
    censored: npt.ArrayLike | None = None,
) -> FloatArray:
    r"""Largest violation of the optimality conditions of each image, shape (...), DN.

    With ``g = A^T (w r)``: ``g_j = lam sign(x_j)`` where ``x_j != 0``; elsewhere ``g_j <= lam``
    (``|g_j| <= lam`` without the sign constraint).
    """
    problem, stack = _posed(dictionary, images, x, lam, positive, weights, censored)
    g = problem.adjoint(problem.weights * problem.residual(stack))
    excess = g if positive else np.abs(g)
    active = np.abs(g - lam * np.sign(stack))
    violation = np.where(stack != 0, active, np.maximum(excess - lam, 0.0))
    return np.asarray(violation.max(axis=(1, 2)).reshape(problem.batch_shape))


def check_lam(lam: Any) -> Lam:
    """Return `lam` if it is ``"auto"`` or a number not below 0."""
    if isinstance(lam, str):
        if lam != "auto":
            raise ValueError(f"lam must be a number or 'auto', got {lam!r}")
        return "auto"
    return as_number(lam, "lam", minimum=0.0)


def universal_lam(dictionary: Dictionary, noise: float | FloatArray) -> FloatArray:
    """``lam = noise max_j ||a_j|| sqrt(2 log N)``: above what noise alone correlates to.

    The universal threshold of Donoho & Johnstone (1994, Biometrika 81, 425), ``N`` atoms,
    `noise` the standard deviation of a pixel, DN.
    """
    return universal_threshold(noise, dictionary.largest_norm, dictionary.shape[1])


def universal_threshold(
    noise: float | FloatArray, norm: float, n_atoms: int, largest: float | FloatArray = 0.0
) -> FloatArray:
    """``noise norm sqrt(2 log n_atoms)``, or 1e-4 of the `largest` correlation if that is more."""
    lam = noise * norm * np.sqrt(2.0 * np.log(n_atoms))
    return np.asarray(np.maximum(lam, _LEAST_SHARE * largest))


def _resolve_lam(lam: Lam, dictionary: Dictionary, images: FloatArray) -> FloatArray:
    """``lam`` of every image, or of all; "auto" stays above 0 where there is no noise at all."""
    if lam != "auto":
        return np.asarray(lam, dtype=np.float64)
    from csunmix.background import noise_level

    largest = np.abs(dictionary.adjoint(images)).max(axis=(-2, -1))
    norm, n_atoms = dictionary.largest_norm, dictionary.shape[1]
    return universal_threshold(noise_level(images), norm, n_atoms, largest).reshape(-1)


def _posed(
    dictionary: Dictionary,
    images: npt.ArrayLike,
    x: npt.ArrayLike,
    lam: float,
    positive: bool,
    weights: npt.ArrayLike | None,
    censored: npt.ArrayLike | None,
) -> tuple[Problem, FloatArray]:
    """A problem and coefficients to judge, laid out as a solver's start would be."""
    as_instance(dictionary, Dictionary, "dictionary")
    lam = as_number(lam, "lam", minimum=0.0)
    x = as_images(x, "x", shape=dictionary.map_shape)
    problem = Problem.make(
        dictionary, images, lam=lam, positive=False, weights=weights, censored=censored, x0=x
    )
    return replace(problem, positive=positive), problem.start()


def _broadcast(array: Array, shape: tuple[int, ...], name: str) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} does not fit {shape}") from None


def _inner(a: FloatArray, b: FloatArray) -> FloatArray:
    """Inner product of each image, in double precision."""
    return np.asarray(np.einsum("bpq,bpq->b", a, b, dtype=np.float64))
