"""Images to target tables: dictionary, solver and peak rule composed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field, is_dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from csunmix._ahead import Step, prepare
from csunmix._batches import Found, any_finite, as_stack, find_all, find_in_finite, joined
from csunmix._validation import (
    BoolArray,
    FloatArray,
    IntArray,
    as_bool,
    as_images,
    as_instance,
    as_integer,
    as_number,
)
from csunmix.background import border_level
from csunmix.dictionary import Dictionary
from csunmix.peaks import Candidates, PeakRule
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor
from csunmix.solvers.base import Solver, SolveResult, universal_lam
from csunmix.targets import Flag

if TYPE_CHECKING:
    import pandas as pd
    from threadpoolctl import ThreadpoolController

    from csunmix.continuous.window import Setting

Background = float | Literal["border"]

_BATCH = 4000  # images a thread works on at a time, if their maps have no more than
_CELLS = 4_000_000  # together, which bounds the memory


@dataclass(frozen=True)
class GridUnmixer:
    """Unmix images on a sub-pixel grid.

    Parameters
    ----------
    dictionary : Dictionary
        Optics, image shape and grid.
    solver : Solver
        Turns images into coefficient maps; its ``solve`` need not take `weights` where the sensor
        has no bad pixels, nor `censored` where it does not saturate. With ``lam="auto"`` and a
        sensor that has noise, the sensor's noise is used.
    peaks : PeakRule
        Turns flux maps into targets.
    sensor : Sensor, optional
        Its bad pixels are ignored, whatever they hold; its saturated pixels are lower bounds; its
        offset is taken off. Its shot noise (gain) is not used: all good pixels weigh the same.
        Weights ``noise^2/variance`` would let the same `lam` take up to ``variance/noise^2`` times
        as much flux from a bright target; call the solver with weights and a `lam` chosen for them.
    background : float or "border"
        Constant level taken off each image beside the sensor's offset, DN; "border" takes the
        median of the image's outermost ring of pixels instead of both.
    refine : Prior, optional
        Take the targets of each image off the grid: joint fits of all of them, begun where the grid
        has them, keep the bounds of this prior. There are as many as the grid says, unless the
        prior's fluxes and separation allow none of these to explain the image: then the brightest
        are split where the light is too much for so many, or else close ones merged. Where the
        prior has a count, the number is brought into it, and then is the likeliest of those that
        steps of one target lead to, by the volumes of the normal distributions below (a cell that
        is likely is not weighed): rough, and too sure where targets lie closer than half a PSF
        width; a PSF wider than the one told makes two of one. A scene that is one cluster begins
        anew in other shapes of the same spread: turned, and, of 3 to 13 targets, as regular
        figures, until some in a row lead to nothing new; up to 12 begin in a cell that is likely,
        too. Positions, fluxes and their errors are means and standard deviations of the normal
        distributions around all optima found, cut off by the prior's bounds (which a mean of
        several may leave): nearly those of `ContinuousUnmixer`, whose draws follow what is not
        normal. A score is the probability that the count is right among the numbers looked at, and
        the target within 0.1 px. Flags `COUNT_AMBIGUOUS`, `AT_BOUND`, `FLAT` and `MISFIT` are as
        there. An image keeps the answer of the grid, without errors and with `NOT_CONVERGED`, where
        nothing that the prior allows, its count included, explains it or fits it better than that
        answer, or where a target lies far from its light.
    n_jobs : int
        Threads that work on the images; the answer is the same with any number. A solver and a
        peak rule of your own must bear to be called by several at once.

    Raises
    ------
    TypeError
        If a part is of the wrong type or lacks the method it is needed for.
    ValueError
        If `background` is neither a number nor "border", the sensor's bad pixels have another
        shape than the dictionary's images, `refine` allows no target, or `n_jobs` is not positive.

    Examples
    --------
    >>> import csunmix as cu
    >>> setup = cu.presets.csist_100k()
    >>> image = cu.simulate(
    ...     setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=1, rng=0
    ... ).images[0]
    >>> dictionary = cu.Dictionary(setup.psf, shape=(11, 11), factor=7)
    >>> unmix = cu.GridUnmixer(dictionary, solver=cu.ActiveSet(lam=0.1), peaks=cu.MassMerging())
    >>> list(unmix(image).columns)
    ['frame', 'y', 'x', 'flux', 'y_err', 'x_err', 'flux_err', 'score', 'flags']
    """

    dictionary: Dictionary
    _: KW_ONLY
    solver: Solver
    peaks: PeakRule
    sensor: Sensor | None = None
    background: Background = 0.0
    refine: Prior | None = None
    n_jobs: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        as_instance(self.dictionary, Dictionary, "dictionary")
        as_integer(self.n_jobs, "n_jobs", minimum=1)
        # A class has the methods of its instances, but nobody's settings.
        if not isinstance(self.solver, Solver) or isinstance(self.solver, type):
            raise TypeError(f"solver must have a method solve(), got {self.solver!r}")
        if not isinstance(self.peaks, PeakRule) or isinstance(self.peaks, type):
            raise TypeError(f"peaks must have a method find(), got {self.peaks!r}")
        if self.sensor is not None:
            as_instance(self.sensor, Sensor, "sensor")
            self.sensor.valid(np.zeros(self.dictionary.image_shape))  # refuses another shape
            if self.sensor.bad_pixels is not None:
                _check_takes(self.solver, "weights", "the sensor has bad pixels")
            if self.sensor.saturation is not None:
                _check_takes(self.solver, "censored", "the sensor saturates")
        if isinstance(self.background, str):
            if self.background != "border":
                raise ValueError(
                    f"background must be a number or 'border', got {self.background!r}"
                )
        else:
            as_number(self.background, "background")
        if self.refine is not None:
            as_instance(self.refine, Prior, "refine")
            if self.refine.count is not None and self.refine.count[1] < 1:
                raise ValueError(f"refine must allow a target, got {self.refine}")

    def __call__(
        self, images: npt.ArrayLike, *, progress: bool = False, batch_size: int | None = None
    ) -> pd.DataFrame:
        """Unmix images.

        Parameters
        ----------
        images : array_like, shape (..., n_y, n_x)
            One image or any number of them, DN; ``frame`` counts them in row-major order.
        progress : bool
            Show a progress bar, and say so if kernels are compiled first (as does the log).
        batch_size : int, optional
            Images that each thread works on at a time, by default `batch_size`. It bounds the
            memory: a stack of integers, or one that is memory-mapped, is never copied whole.

        Returns
        -------
        pandas.DataFrame
            Target table. Errors and scores are NaN without `refine`: a grid method does not know
            them. Images with NaN or infinite pixels yield no targets and the flag
            ``NOT_FINITE`` in ``attrs["frame_flags"]``, and the log names them.

        Raises
        ------
        TypeError
            If the images are not real numbers.
        ValueError
            If the images have another shape than the dictionary's, are empty, or none is finite.
        """
        as_bool(progress, "progress")
        most = self.batch_size if batch_size is None else batch_size
        most = as_integer(most, "batch_size", minimum=1)
        stack = as_stack(images, self.dictionary.image_shape)
        prepare(self, progress=progress)
        with _one_blas_thread():
            found = find_all(self._find, stack, most, self.n_jobs, progress)
        if not any_finite(found):
            as_images(self._check(images))  # says where
        return joined(found, {"method": repr(self), "image_shape": self.dictionary.image_shape})

    @property
    def batch_size(self) -> int:
        """Images a thread works on at a time: 4000, or as many as have 4 million cells."""
        return max(1, min(_BATCH, _CELLS // self.dictionary.shape[1]))

    def solve(self, images: npt.ArrayLike) -> SolveResult:
        """Coefficient maps of `images` (..., n_y, n_x), background taken off; see `Solver`."""
        with _one_blas_thread():
            return self._solve(as_images(self._check(images)))

    def _to_compile(self) -> Iterator[Step]:
        """Steps that go side by side: what refines targets, and what finds them on the grid."""
        from csunmix.solvers.ahead import steps_for

        if self.refine is not None:
            from csunmix.continuous.ahead import REFINEMENT

            yield from REFINEMENT
        yield from steps_for(self.solver)

    def _solve(self, images: FloatArray) -> SolveResult:
        sensor = self.sensor or Sensor()
        level = self._level(images)
        told: dict[str, Any] = {}
        if sensor.bad_pixels is not None:
            told["weights"] = sensor.valid(images).astype(images.dtype)
        if sensor.saturation is not None:
            told["censored"] = sensor.censored(images)
        return self._solver.solve(self.dictionary, images - level.astype(images.dtype), **told)

    def _find(self, images: npt.ArrayLike) -> Found:
        """Targets of a part of the stack (n, n_y, n_x), finite or not."""
        return find_in_finite(self._unmix, self._check(images))

    def _check(self, images: npt.ArrayLike) -> FloatArray:
        """Real images, bad pixels put to the median of the good ones: nothing depends on them."""
        images = as_images(images, shape=self.dictionary.image_shape, finite=False)
        return images if self.sensor is None else self.sensor.patched(images)

    @property
    def psf(self) -> PSF:
        """The optics."""
        return self.dictionary.psf

    @cached_property
    def _solver(self) -> Solver:
        """The solver, with ``lam="auto"`` settled where the sensor's noise is known."""
        noise = self.sensor.noise if self.sensor is not None else 0.0
        automatic = is_dataclass(self.solver) and getattr(self.solver, "lam", None) == "auto"
        if not automatic or noise == 0:
            return self.solver
        lam = float(universal_lam(self.dictionary, noise))
        return cast(Solver, replace(cast(Any, self.solver), lam=lam))

    def _level(self, images: FloatArray) -> FloatArray:
        if self.background == "border":
            return border_level(images)[..., None, None]
        offset = self.sensor.offset if self.sensor is not None else 0.0
        return np.asarray(self.background + offset)

    def _unmix(self, images: FloatArray) -> Found:
        """Targets of a batch of finite images (n, n_y, n_x), and the flags of each."""
        result = self._solve(images)
        flags = np.where(result.converged, 0, int(Flag.NOT_CONVERGED))
        if self.sensor is not None:
            flags |= _any_pixel(self.sensor.censored(images)) * Flag.SATURATED
            flags |= _any_pixel(~self.sensor.valid(images)) * Flag.BAD_PIXELS
        sparse = getattr(self.peaks, "accepts_sparse", False)
        coefficients: Any = result.coefficients if sparse else result.x
        found = self.peaks.find(self.dictionary.to_flux(coefficients), self.dictionary.grid)
        targets, claims, marks = self._refine(images, found)
        marks = marks | at_border(targets.y, targets.x, self.dictionary.image_shape)
        return Found(targets, claims, marks, flags)

    def _refine(
        self, images: FloatArray, found: Candidates
    ) -> tuple[Candidates, FloatArray, IntArray]:
        """Targets, off the grid if asked for, what is claimed of them (n, 4), and flags (n,)."""
        if self._setting is None:
            n = len(found.flux)
            return found, np.full((n, 4), np.nan), np.zeros(n, np.int64)
        from csunmix.continuous.refine import refine

        return refine(self._setting, images, found)

    @cached_property
    def _setting(self) -> Setting | None:
        """What the fit is told; imported and tabulated where there is one."""
        if self.refine is None:
            return None
        from csunmix.continuous.window import Setting

        sensor, shape = self.sensor or Sensor(), self.dictionary.image_shape
        return Setting(self.psf, sensor, self.refine, shape, self.background)


def at_border(y: FloatArray, x: FloatArray, shape: tuple[int, int]) -> IntArray:
    """`Flag.BORDER` for targets in the outermost ring of pixels of an image of `shape`, else 0."""
    inside = (y >= 0.5) & (y <= shape[0] - 1.5) & (x >= 0.5) & (x <= shape[1] - 1.5)
    return np.where(inside, 0, int(Flag.BORDER))


def _check_takes(solver: Solver, name: str, reason: str) -> None:
    """Refuse a solver whose method lacks the argument `name`."""
    taken = inspect.signature(solver.solve).parameters
    if name not in taken and all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
        raise TypeError(
            f"solver must have a method solve(..., {name}=...) since {reason}, got {solver!r}"
        )


def _any_pixel(mask: BoolArray) -> IntArray:
    return np.asarray(mask.any(axis=(1, 2)), dtype=np.int64)


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Keep BLAS to one thread: for products this small, more wait longer than they compute."""
    return cast(AbstractContextManager[Any], _threads().limit(limits=1, user_api="blas"))


@cache
def _threads() -> ThreadpoolController:
    """The thread pools of BLAS; looking for them takes longer than unmixing an image."""
    import scipy.linalg.cython_blas  # noqa: F401  (numba's, which must be there to be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
