"""Are there more targets than so many? A likelihood-ratio test with a stated false-alarm rate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from csunmix._kernels.scene import render
from csunmix._kernels.search import THOROUGH, explore
from csunmix._validation import (
    BoolArray,
    FloatArray,
    as_images,
    as_integer,
    as_number,
    as_rng,
    refuse_colours,
    usable,
)
from csunmix.continuous.fit import Fit, fit
from csunmix.continuous.window import Background, Setting
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor

_EXCEEDANCES = 10  # among the simulations that leave the rate asked for resolved
_DIRECTIONS = 4  # in which a target is split
_FAINT = 0.2  # share of the light that goes to the new target
_JITTER = 0.2  # of the PSF's width, by which simulated scenes are moved along each axis
_SEEDS = 2**32
_STAY = THOROUGH._replace(rough_iter=0, max_iter=0)  # to know an objective


@dataclass(frozen=True, eq=False)
class CountTest:
    """Outcome of `count_test`, one value an image.

    Attributes
    ----------
    statistic : ndarray, shape (...)
        Twice the log of the likelihood ratio of the two best fits.
    p_value : ndarray, shape (...)
        Probability of such a statistic or a larger one without the additional targets.
    reject : ndarray of bool, shape (...)
        Whether the image holds more targets than assumed: `p_value` at most the false-alarm rate.
    """

    statistic: FloatArray
    p_value: FloatArray
    reject: BoolArray


def count_test(
    images: npt.ArrayLike,
    psf: PSF,
    sensor: Sensor | None = None,
    prior: Prior | None = None,
    *,
    null: int = 1,
    alternative: int | None = None,
    false_alarm: float = 0.01,
    n_simulations: int | None = None,
    background: Background = 0.0,
    psf_error: float = 0.0,
    rng: np.random.Generator | int = 0,
) -> CountTest:
    r"""Test whether images hold more than `null` targets.

    The statistic is

    .. math:: T = 2 \big[\max \log L(\text{alternative targets}) - \max \log L(\text{null targets})
              \big]

    over all scenes that the prior allows. Its distribution is no :math:`\chi^2`: without a second
    target nothing fixes where that would be, and fluxes end at a bound (Ghosh & Sen 1985,
    Proc. Berkeley Conf. Neyman & Kiefer 2, 789). It is simulated instead: the best fit of `null`
    targets, moved by up to 0.2 PSF widths, is recorded by the sensor and fitted anew, which gives
    :math:`T_1, T_2, \dots` and

    .. math:: p = \frac{1 + \#\{T_i \ge T\}}{1 + n}.

    Where fluxes have a lower bound, fewer targets are no special case of more, and T varies with
    the fluxes and not only with the noise: T of the null's fit itself, without noise, is taken off
    :math:`T` and likewise off every :math:`T_i` (Cox 1962, JRSS B 24, 406).

    Simulation ends as soon as `n_simulations` can no longer lead to rejection; with :math:`h`
    exceedances in the :math:`l` simulations so far, :math:`p = h / l` (Besag & Clifford 1991,
    Biometrika 78, 301).

    Parameters
    ----------
    images : array_like, shape (..., n_y, n_x)
        One image or any number of them, DN.
    psf : PSF
        The optics.
    sensor : Sensor, optional
        The detector; one that declares neither read noise, gain nor rounding (the default) has
        its noise estimated from each image.
    prior : Prior, optional
        What is known of the targets; its count range is not used.
    null : int
        Number of targets that is taken for granted, at least 1.
    alternative : int, optional
        Number of targets it is tested against; `null` + 1 by default.
    false_alarm : float
        Rate of images with `null` targets that are rejected, in (0, 1).
    n_simulations : int, optional
        Largest number of simulations an image; by default ``ceil(10 / false_alarm) - 1``. Fewer
        keep the rate but detect less.
    background : float or {"border", "fit"}
        Light that belongs to no target, DN: a number, the median of the image's border, or one of
        the parameters of both fits.
    psf_error : float
        Error of the PSF as a share of the brightest pixel, see `PosteriorUnmixer`; simulated
        images have it as noise of every pixel of its own, in proportion to its light.
    rng : numpy.random.Generator or int
        Source of randomness, or a seed.

    Returns
    -------
    CountTest
        Images that are not finite have NaN and are not rejected; those without a lit pixel, and
        those whose prior leaves no room for so many targets, have statistic 0 and p-value 1.

    Raises
    ------
    TypeError
        If an argument is of the wrong type; the message names it.
    ValueError
        If the images are empty or colours by their shape, a number is out of range, or
        `n_simulations` is too small to ever reject at this rate.

    Examples
    --------
    >>> import csunmix as cu
    >>> psf, sensor = cu.GaussianPSF(sigma=0.5), cu.Sensor(read_noise=2)
    >>> one = cu.targets.make_table(frame=0, y=[5.2], x=[5.0], flux=[440])
    >>> two = cu.targets.make_table(frame=0, y=[5.2, 5.2], x=[4.8, 5.3], flux=[220, 220])
    >>> light = [cu.render(psf, scene, shape=(11, 11))[0] for scene in (one, two)]
    >>> count_test(sensor.expose(light, rng=1), psf, sensor, false_alarm=0.05).reject
    array([False,  True])
    """
    images = as_images(images, finite=False)
    refuse_colours(images.shape)
    null = as_integer(null, "null", minimum=1)
    alternative = null + 1 if alternative is None else alternative
    alternative = as_integer(alternative, "alternative", minimum=null + 1)
    false_alarm = as_number(false_alarm, "false_alarm", above=0.0)
    if false_alarm >= 1.0:
        raise ValueError(f"false_alarm must be below 1, got {false_alarm:g}")
    if n_simulations is None:
        n_simulations = ceil(_EXCEEDANCES / false_alarm) - 1
    least = ceil(1.0 / false_alarm) - 1
    n_simulations = as_integer(n_simulations, "n_simulations", minimum=least)
    shape = (images.shape[-2], images.shape[-1])
    setting = Setting(
        psf,
        Sensor() if sensor is None else sensor,
        Prior() if prior is None else prior,
        shape,
        background,
        psf_error,
    )
    test = _Test(setting, psf.width, null, alternative, false_alarm, n_simulations)
    stack = images.reshape(-1, *shape).astype(np.float64)
    seeds = as_rng(rng).integers(_SEEDS, size=len(stack))
    pairs = [test(image, int(seed)) for image, seed in zip(stack, seeds, strict=True)]
    statistic, p = np.array(pairs).T.reshape(2, *images.shape[:-2])
    return CountTest(statistic, p, p <= false_alarm)


class _Test(NamedTuple):
    """The test of one image."""

    setting: Setting
    width: float  # of the PSF, px
    null: int
    alternative: int
    false_alarm: float
    n_simulations: int

    def __call__(self, image: FloatArray, seed: int) -> tuple[float, float]:
        """Statistic and p-value of an image."""
        image = np.where(self.setting.sensor.valid(np.zeros_like(image)), image, 0.0)
        if not usable(image):
            return np.nan, np.nan
        rng = np.random.default_rng(seed)
        few = self._fit_null(image, rng)
        if few is None:
            return 0.0, 1.0
        statistic = self._statistic(few, rng)
        observed = statistic - self._expected(few, rng)
        level = float(self.setting.levels(image[None])[0])
        most = floor(self.false_alarm * (self.n_simulations + 1) + 1e-9)
        exceeding = 0
        for n in range(1, self.n_simulations + 1):
            exceeding += self._simulate(few, level, rng) >= observed
            if exceeding == most:
                return statistic, exceeding / n
        return statistic, (1 + exceeding) / (1 + self.n_simulations)

    def _fit_null(self, image: FloatArray, rng: np.random.Generator) -> Fit | None:
        window = self.setting.window(image)
        return None if window is None else fit(self.setting, window, self.null, _seed(rng))

    def _simulate(self, few: Fit, level: float, rng: np.random.Generator) -> float:
        """Statistic, less what is expected of it, of an image like the null's fit."""
        setting, theta = self.setting, few.theta.copy()
        sensor = setting.sensor
        if sensor.noise == 0.0 and sensor.gain is None:  # estimated from the image
            pixels = few.window.pixels  # whose variance holds the error of the PSF as well
            noise2 = pixels.variance - (setting.psf_error * pixels.low.max()) ** 2
            sensor = replace(sensor, read_noise=float(np.sqrt(noise2)))
        # Moved a little, as a sensor that only rounds would record the same image each time.
        move = few.window.origin + self.width * rng.uniform(-_JITTER, _JITTER, 2)
        theta[: 3 * few.count].reshape(-1, 3)[:, :2] += move
        light = render(setting.optics, theta, few.count, *setting.shape)
        light *= 1.0 + setting.psf_error * rng.normal(size=light.shape)
        again = self._fit_null(sensor.expose(light + level, rng), rng)
        return 0.0 if again is None else self._statistic(again, rng) - self._expected(again, rng)

    def _statistic(self, few: Fit, rng: np.random.Generator) -> float:
        """Twice the log likelihood ratio."""
        more = few
        for count in range(few.count + 1, self.alternative + 1):
            found = fit(self.setting, few.window, count, _seed(rng))
            if found is None:
                return 0.0
            more = min(
                found, _split(self.setting, more, 0.5 * self.width), key=lambda each: each.objective
            )
        return 2.0 * (few.objective - more.objective)

    def _expected(self, few: Fit, rng: np.random.Generator) -> float:
        """Statistic of the null's fit itself, without noise: 0 where fluxes may be 0."""
        if few.window.box.flux[0] == 0.0:
            return 0.0
        old = few.model.pixels
        light = render(few.model.optics, few.theta, few.count, *old.low.shape)
        bound = np.isinf(old.low) | np.isinf(old.high)
        pixels = old._replace(
            low=np.where(bound, old.low, light), high=np.where(bound, old.high, light)
        )
        model = few.model._replace(pixels=pixels)
        window = replace(few.window, pixels=pixels)
        there = explore(model, few.theta[None], _STAY, 1, 0.0, False)
        ideal = Fit(window, model, *there)
        return self._statistic(ideal, rng)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(_SEEDS))


def _split(setting: Setting, few: Fit, distance: float) -> Fit:
    """Best fit of one more target, from a fit one of whose targets sends off a faint one."""
    window, count = few.window, few.count + 1
    model = window.model(setting.optics, count)._replace(pixels=few.model.pixels)
    distance = max(window.box.separation, distance)
    starts = []
    for k in range(few.count):
        y, x, flux = few.theta[3 * k : 3 * k + 3]
        for angle in 2.0 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS:
            away = distance * np.array([np.sin(angle), np.cos(angle)])
            theta = np.insert(few.theta, 3 * few.count, [y + away[0], x + away[1], _FAINT * flux])
            theta[3 * k + 2] -= _FAINT * flux
            starts.append(theta)
    return Fit(window, model, *explore(model, np.array(starts), THOROUGH, len(starts), 0.0, False))
