"""The convex route off the grid: the l1 problem over all positions, without a range of counts."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import pi, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from csunmix._ahead import Step
from csunmix._validation import FloatArray, as_images, as_integer, as_number
from csunmix.background import border_level, noise_level
from csunmix.continuous.ahead import FRANK_WOLFE
from csunmix.continuous.base import Answer, OneByOne, border_flags, image_flags
from csunmix.continuous.window import Setting
from csunmix.prior import Prior
from csunmix.solvers.base import Lam, check_lam, universal_threshold
from csunmix.targets import Flag

if TYPE_CHECKING:
    from csunmix._kernels.frank_wolfe import Task


@dataclass(frozen=True, eq=False, kw_only=True)
class FrankWolfeResult:
    """The measure found in one image.

    Attributes
    ----------
    positions : ndarray, shape (n, 2)
        ``y, x`` of every atom, px.
    fluxes : ndarray, shape (n,)
        Flux of every atom, above 0, DN.
    lam : float
        Weight of the total flux, DN.
    objective : float
        ``1/2 sum w r^2 + lam sum f``.
    gap : float
        Relative duality gap, an upper bound of the relative error of the objective.
    n_iter : int
        Atoms that were added; some may have merged or gone.
    converged : bool
        Whether the gap reached the tolerance.
    """

    positions: FloatArray
    fluxes: FloatArray
    lam: float
    objective: float
    gap: float
    n_iter: int
    converged: bool


@dataclass(frozen=True)
class SlidingFrankWolfe(OneByOne):
    r"""Sliding Frank-Wolfe: the l1 problem over positive measures, off the grid (compiled).

    Minimises over any number of targets at any positions in the image

    .. math:: \tfrac12 \sum_p w_p r_p^2 + \lambda \sum_k f_k, \qquad
              r = y - \sum_k f_k\, \phi(y_k, x_k), \quad f_k \ge 0,

    with ``phi`` the image of a target of unit flux, ``w = 0`` for bad pixels and else 1, and
    ``r = max(r, 0)`` in saturated pixels. Each round adds a target where the certificate
    ``<phi(y, x), w r>/lam`` is highest, finds the best fluxes, lets all positions and fluxes slide
    into the nearest minimum, drops targets without flux and makes two that meet one. The problem is
    convex in the measure: the relative duality gap, scaled by the highest point of the certificate,
    bounds what is left to gain. That point is searched on a grid of a quarter of the PSF's width
    and from there by Newton's method.

    An estimate by l1 shrinks fluxes and may put several targets where there is one: with a prior,
    `csunmix.continuous.ContinuousUnmixer` does better.

    Parameters
    ----------
    psf : PSF
        The optics.
    sensor : Sensor, optional
        Its bad pixels are ignored, its saturated pixels are lower bounds, its offset is taken off.
        As on the grid, its shot noise is not used.
    lam : float or "auto"
        Weight of the total flux, DN, above 0; "auto" is ``noise ||phi|| sqrt(2 log N)``, see
        `csunmix.solvers.base.universal_lam`, with ``||phi|| = 1/(sqrt(4 pi) width)`` and as many
        positions ``N`` as the certificate is searched at.
    max_targets : int
        Most targets.
    max_iter : int
        Most rounds.
    tol : float
        Relative duality gap at which an image is done.
    background : float or "border"
        Constant level taken off each image beside the sensor's offset, DN; "border" takes the
        median of the image's outermost ring of pixels instead of both.
    threshold : float
        Smallest flux of a target in the table, DN.
    min_share : float
        Likewise, as a share of the image's brightest target.
    n_jobs : int
        Images worked on at a time.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.

    References
    ----------
    Denoyelle, Duval, Peyré & Soubies 2019, Inverse Problems 36, 014001; Boyd, Schiebinger & Recht
    2017, SIAM J. Optim. 27, 616.

    Examples
    --------
    >>> import csunmix as cu
    >>> from csunmix.continuous import SlidingFrankWolfe
    >>> psf = cu.GaussianPSF(sigma=0.5)
    >>> image = 230.0 * psf.response(y=5.2, x=4.7, shape=(11, 11))
    >>> SlidingFrankWolfe(psf, lam=0.01)(image)[["y", "x", "flux"]].round(2)
         y    x    flux
    0  5.2  4.7  229.96
    """

    _: KW_ONLY
    lam: Lam = "auto"
    max_targets: int = 20
    max_iter: int = 100
    tol: float = 1e-4
    background: float | Literal["border"] = 0.0
    threshold: float = 0.0
    min_share: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.background, str) and self.background != "border":
            raise ValueError(f"background must be a number or 'border', got {self.background!r}")
        super().__post_init__()
        if check_lam(self.lam) == 0:
            raise ValueError(f"lam must be above 0 or 'auto', got {self.lam!r}")
        as_integer(self.max_targets, "max_targets", minimum=1)
        as_integer(self.max_iter, "max_iter", minimum=1)
        as_number(self.tol, "tol", above=0.0)
        as_number(self.threshold, "threshold", minimum=0.0)
        if as_number(self.min_share, "min_share", minimum=0.0) > 1:
            raise ValueError(f"min_share must be at most 1, got {self.min_share!r}")

    def solve(self, image: npt.ArrayLike) -> FrankWolfeResult:
        """Solve for one image (n_y, n_x), DN, in full: no threshold is applied."""
        image = as_images(image, "image", finite=False)
        if image.ndim != 2:
            raise ValueError(f"image must have two axes (y, x), got shape {image.shape}")
        setting = self._setting(image.shape)
        return self._solve(
            setting, as_images(self.sensor.patched(image.astype(np.float64)), "image")
        )

    def _to_compile(self) -> tuple[Step, ...]:
        return (FRANK_WOLFE,)

    def _new_setting(self, shape: tuple[int, int]) -> Setting:
        return Setting(self.psf, self.sensor, Prior(), shape, self.background)

    def _find(self, setting: Setting, images: FloatArray) -> list[Answer]:
        of_images = image_flags(setting, images).tolist()
        return [self._find_one(setting, *each) for each in zip(images, of_images, strict=True)]

    def _find_one(self, setting: Setting, image: FloatArray, of_image: int) -> Answer:
        """Targets of an image, which has these flags."""
        result = self._solve(setting, image)
        flux = result.fluxes
        bright = flux >= max(self.threshold, self.min_share * flux.max(initial=0.0))
        targets = np.full((int(bright.sum()), 7), np.nan)
        targets[:, :2], targets[:, 2] = result.positions[bright], flux[bright]
        of_image |= 0 if result.converged else int(Flag.NOT_CONVERGED)
        flags = of_image | border_flags(setting, *targets[:, :2].T)
        return Answer(targets, flags, np.empty(0), of_image)

    def _solve(self, setting: Setting, image: FloatArray) -> FrankWolfeResult:
        from csunmix._kernels.frank_wolfe import frank_wolfe, new_task

        sensor = setting.sensor
        weights = sensor.valid(image).astype(np.float64)
        above = image - self._level(setting, image)
        task = new_task(setting.optics, above, weights, sensor.censored(image), 0.0)
        lam = self._automatic(setting, image, task) if self.lam == "auto" else self.lam
        task = task._replace(lam=lam)
        theta, value, gap, n_iter = frank_wolfe(task, self.max_targets, self.max_iter, self.tol)
        atoms = theta.reshape(-1, 3)
        return FrankWolfeResult(
            positions=atoms[:, :2],
            fluxes=atoms[:, 2],
            lam=lam,
            objective=value,
            gap=gap,
            n_iter=n_iter,
            converged=gap <= self.tol,
        )

    def _level(self, setting: Setting, image: FloatArray) -> float:
        if self.background == "border":
            return float(border_level(image))
        return self.background + setting.sensor.offset

    def _automatic(self, setting: Setting, image: FloatArray, task: Task) -> float:
        """``lam`` by the noise; above 0 where there is none."""
        from csunmix._kernels.frank_wolfe import residual, summit

        noise = setting.sensor.noise or float(noise_level(image))
        norm = 1.0 / (sqrt(4.0 * pi) * self.psf.width)
        n_positions = len(task.grid_y) * len(task.grid_x)
        largest = summit(task, residual(task, np.empty(0)))[2]
        return float(universal_threshold(noise, norm, n_positions, largest))
