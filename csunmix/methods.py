"""Methods by name, with settings that suit the optics and the prior: what the command line runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from csunmix._validation import as_bool, as_instance, as_integer, as_shape
from csunmix.dictionary import Dictionary
from csunmix.names import DEFAULT_GRID_METHOD, GRID_METHODS, PEAK_RULES, PURSUITS
from csunmix.peaks import EveryCell, LocalMaxima, MassMerging, PeakRule
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor
from csunmix.solvers.base import Lam, Solver, check_lam, universal_lam
from csunmix.unmixer import Background, GridUnmixer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEFAULT_GRID_METHOD", "GRID_METHODS", "PEAK_RULES", "grid_unmixer"]

# For sigma = 0.5 px (a width of 0.55 px with the pixel); lengths scale with the width. Factor,
# merging radius and lam are tuned with benchmarks/accuracy/tune.py, the pursuit's radii by trial on
# the same seed, which no table uses; lam of what is refined on seeds 3, 5, 13, 14, 60 and 61. The
# smallest share was chosen on the WISE images of real.py.
_CELLS_PER_WIDTH = 3.8
_MERGING_RADIUS = 0.64  # widths
_SEARCH_RADIUS = 1.8  # widths
_EXCLUSION_RADIUS = 0.55  # widths
_LAM_PER_NOISE = 0.07
_REFINED_LAM = 0.35  # of the universal one
_MIN_SHARE = 0.06
# Relative gaps of the first-order methods at the universal lam, and the most at a smaller one.
_TOL = {"ista": 1e-3, "fista": 3e-3, "split-bregman": 1e-3}
_LARGEST_TOL = 0.03


def grid_unmixer(
    method: str = DEFAULT_GRID_METHOD,
    *,
    psf: PSF,
    shape: tuple[int, int],
    sensor: Sensor | None = None,
    prior: Prior | None = None,
    factor: int | None = None,
    lam: Lam | None = None,
    n_nonzero: int | None = None,
    peaks: str | None = None,
    threshold: float | None = None,
    min_share: float | None = None,
    background: Background = 0.0,
    refine: bool = False,
) -> GridUnmixer:
    """Compose a `GridUnmixer` from a method's name; what is not given is chosen.

    Parameters
    ----------
    method : str
        One of `GRID_METHODS`.
    psf : PSF
        The optics.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    sensor : Sensor, optional
        The detector.
    prior : Prior, optional
        Its largest count limits pursuits; its flux range bounds the coefficients of "omp" and
        sets the default threshold. `refine` uses all of it.
    factor : int, optional
        Cells per pixel; by default about 3.8 per width of the PSF, 2 at least.
    lam : float or "auto", optional
        Weight of the l1 norm, DN; by default "auto". Where the sensor saturates, 0.07 times its
        noise (DN), or 0.35 times `universal_lam` with `refine`.
    n_nonzero : int, optional
        Most atoms of a pursuit; by default the prior's largest count, or 5.
    peaks : str, optional
        One of `PEAK_RULES`; by default "mass-merging" for the l1 methods and "every-cell" for the
        pursuits.
    threshold : float, optional
        Smallest flux of a target, DN; by default a fifth of the prior's smallest flux, or 5 times
        the flux error of a lone target where that is 0 or there is no flux prior.
    min_share : float, optional
        Smallest flux as a share of the image's brightest target; by default 0 with a flux prior
        and 0.06 without, since an imperfect PSF leaves false targets in proportion to the true.
    background : float or "border"
        See `GridUnmixer`.
    refine : bool
        Take the targets off the grid within the bounds of the prior, see `GridUnmixer`.

    Returns
    -------
    GridUnmixer

    Notes
    -----
    "ista", "fista" and "split-bregman" stop at a relative duality gap of 0.001 (0.003 "fista") at
    `universal_lam` and above, where smaller ones cost more time than they are worth. A correlation
    that is too large by ``d`` shows as a gap of about ``d/lam``: at a smaller `lam` the gap is
    larger in proportion, up to 0.03. At the small `lam` chosen for clipped images the exact
    "active-set" is the better choice, and the solvers' own 1e-6 mostly out of reach.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If a name is not known or a number is out of range.

    Examples
    --------
    >>> import csunmix as cu
    >>> setup = cu.presets.csist_100k()
    >>> unmix = cu.grid_unmixer(
    ...     "omp", psf=setup.psf, shape=setup.shape, sensor=setup.sensor, prior=setup.prior
    ... )
    """
    as_instance(psf, PSF, "psf")
    shape = as_shape(shape)
    sensor = Sensor() if sensor is None else as_instance(sensor, Sensor, "sensor")
    prior = Prior() if prior is None else as_instance(prior, Prior, "prior")
    refine = as_bool(refine, "refine")
    width = psf.width
    if factor is None:
        factor = int(np.clip(round(_CELLS_PER_WIDTH / width), 2, 15))
    dictionary = Dictionary(psf, shape, factor)
    enough = float(universal_lam(dictionary, sensor.noise))
    if lam is None:
        lam = _default_lam(sensor, enough, refine)
    check_lam(lam)  # also where the method does not use it
    if n_nonzero is None:
        n_nonzero = prior.count[1] if prior.count is not None else 5
    else:
        as_integer(n_nonzero, "n_nonzero", minimum=1)
    if threshold is None:
        threshold = _default_threshold(width, sensor, prior)
    if min_share is None:
        min_share = 0.0 if prior.flux is not None else _MIN_SHARE
    if peaks is None:
        peaks = "every-cell" if method in PURSUITS else "mass-merging"
    residual_tol = sensor.noise * float(np.sqrt(shape[0] * shape[1]))
    return GridUnmixer(
        dictionary,
        solver=_solver(method, lam, enough, n_nonzero, residual_tol, prior, width),
        peaks=_peak_rule(peaks, threshold, min_share, width),
        sensor=sensor,
        background=background,
        refine=prior if refine else None,
    )


def _default_lam(sensor: Sensor, enough: float, refine: bool) -> Lam:
    """The weight of the l1 norm, smaller where pixels saturate.

    Such a pixel holds its targets by a bound only, and shrinkage takes their flux away. Refined
    targets get that back, while those of a smaller weight that are noise cost time.
    """
    if sensor.saturation is None or sensor.noise == 0:
        return "auto"
    return _REFINED_LAM * enough if refine else _LAM_PER_NOISE * sensor.noise


def _default_threshold(width: float, sensor: Sensor, prior: Prior) -> float:
    if prior.flux is not None and prior.flux[0] > 0.0:
        return 0.2 * prior.flux[0]
    # Matched filter: the flux error of a lone target is noise / ||response||.
    norm = 1.0 / (2.0 * math.sqrt(math.pi) * width)
    return 5.0 * max(sensor.noise, math.sqrt(1.0 / 12.0)) / norm


def _solver(
    method: str,
    lam: Lam,
    enough: float,
    n_nonzero: int,
    residual_tol: float,
    prior: Prior,
    width: float,
) -> Solver:
    from csunmix import solvers

    first_order: dict[str, Callable[..., Solver]] = {
        "ista": solvers.ISTA,
        "fista": solvers.FISTA,
        "split-bregman": solvers.SplitBregman,
    }
    if method in first_order:
        return first_order[method](lam=lam, tol=_tolerance(_TOL[method], lam, enough))
    if method == "active-set":
        return solvers.ActiveSet(lam=lam)
    if method == "matching-pursuit":
        return solvers.MatchingPursuit(n_nonzero=n_nonzero, residual_tol=residual_tol)
    if method == "omp":
        return solvers.OMP(
            n_nonzero=n_nonzero,
            residual_tol=residual_tol,
            bounds=prior.flux,
            locally_optimised=True,
            search_radius=_SEARCH_RADIUS * width,
            exclusion_radius=_EXCLUSION_RADIUS * width,
        )
    raise ValueError(f"method must be one of {', '.join(GRID_METHODS)}, got {method!r}")


def _tolerance(tol: float, lam: Lam, enough: float) -> float:
    """Relative gap to stop at, given that for a weight of `enough`."""
    if lam == "auto" or enough <= lam:
        return tol
    return _LARGEST_TOL if lam == 0 else min(tol * enough / lam, _LARGEST_TOL)


def _peak_rule(name: str, threshold: float, min_share: float, width: float) -> PeakRule:
    if name == "every-cell":
        return EveryCell(threshold=threshold, min_share=min_share)
    if name == "local-maxima":
        return LocalMaxima(threshold=threshold, min_share=min_share)
    if name == "mass-merging":
        return MassMerging(threshold=threshold, min_share=min_share, radius=_MERGING_RADIUS * width)
    raise ValueError(f"peaks must be one of {', '.join(PEAK_RULES)}, got {name!r}")
