"""What the detector does to the light: noise, rounding, saturation, bad pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from csunmix._validation import (
    LARGEST,
    BoolArray,
    FloatArray,
    as_bool,
    as_images,
    as_number,
    as_rng,
)

_ROUNDING_VARIANCE = 1.0 / 12.0  # of a uniform error of one DN


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensor:
    """A detector.

    The recorded value of a pixel that receives the light ``v`` (DN) is
    ``offset + v + noise``, rounded to integers and clipped to ``[0, saturation]`` where declared,
    with the noise variance ``read_noise**2 + v / gain``.

    Parameters
    ----------
    read_noise : float
        Standard deviation of the signal-independent noise, DN.
    gain : float, optional
        Electrons per DN; None for no shot noise.
    offset : float
        Value of a pixel without light, DN.
    rounding : bool
        Whether values are rounded to integers.
    saturation : float, optional
        Largest value, DN, above `offset`; pixels at or above it are saturated. None for no limit.
    bad_pixels : array_like of bool, shape (n_y, n_x), optional
        Pixels that carry no information.

    Raises
    ------
    TypeError
        If an argument is of the wrong type; the message names it.
    ValueError
        If a number is out of range or no light fits between `offset` and `saturation`.

    Examples
    --------
    >>> import csunmix as cu
    >>> sensor = cu.Sensor(rounding=True, saturation=255)
    >>> recorded = sensor.expose([[12.3, 301.7]], rng=0)
    >>> recorded
    array([[ 12., 255.]])
    >>> sensor.censored(recorded)
    array([[False,  True]])
    """

    read_noise: float = 0.0
    gain: float | None = None
    offset: float = 0.0
    rounding: bool = False
    saturation: float | None = None
    bad_pixels: npt.ArrayLike | None = None

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "read_noise": as_number(self.read_noise, "read_noise", minimum=0.0),
            "offset": as_number(self.offset, "offset"),
            "rounding": as_bool(self.rounding, "rounding"),
        }
        if self.gain is not None:
            checked["gain"] = as_number(self.gain, "gain", above=0.0)
            as_number(self.gain, "gain", minimum=1.0 / LARGEST)
        if self.saturation is not None:
            saturation = as_number(self.saturation, "saturation", above=0.0)
            if saturation <= self.offset:  # a dark pixel would be saturated
                raise ValueError(
                    f"offset must be below the saturation {saturation:g}, got {self.offset}"
                )
            checked["saturation"] = saturation
        if self.bad_pixels is not None:
            bad = np.array(self.bad_pixels)
            if bad.dtype != np.bool_ or bad.ndim != 2:
                raise TypeError(
                    "bad_pixels must be a 2-D array of bool, "
                    f"got dtype {bad.dtype} and shape {bad.shape}"
                )
            bad.flags.writeable = False
            checked["bad_pixels"] = bad
        for name, value in checked.items():
            if isinstance(value, float) and abs(value) > LARGEST:
                raise ValueError(f"{name} must be at most {LARGEST:g}, got {value}")
            object.__setattr__(self, name, value)

    def variance(self, images: npt.ArrayLike) -> FloatArray:
        """Noise variance of every pixel, DN^2, its light estimated by the pixel itself.

        ``read_noise**2 + max(image - offset, 0)/gain``, plus 1/12 where values are rounded.
        """
        images = as_images(images)
        variance = np.full(images.shape, self.read_noise**2)
        if self.gain is not None:
            variance += np.maximum(images - self.offset, 0.0) / self.gain
        if self.rounding:
            variance += _ROUNDING_VARIANCE
        return variance

    def censored(self, images: npt.ArrayLike) -> BoolArray:
        """Saturated pixels: the true value is at least the recorded one.

        Values above `saturation` count as well, with a bound as high as they are: a flat field or
        a scale lifts saturated pixels to different levels.
        """
        images = as_images(images)
        if self.saturation is None:
            return np.zeros(images.shape, dtype=bool)
        return np.asarray(images >= self.saturation) & self._good(images)

    def valid(self, images: npt.ArrayLike) -> BoolArray:
        """Pixels that carry information: not declared bad (saturated ones do, as a bound)."""
        images = as_images(images)
        return np.broadcast_to(self._good(images), images.shape).copy()

    def patched(self, images: npt.ArrayLike) -> FloatArray:
        """The images with bad pixels put to the median of each one's good ones, or 0 without any.

        Nothing that works on images may depend on what bad pixels hold. Others may be NaN. Without
        bad pixels these are the images themselves, no copy.
        """
        images = as_images(images, finite=False)
        good = self._good(images)
        if good.all():
            return images
        if not good.any():
            return np.zeros_like(images)
        median = np.median(images[..., good], axis=-1)
        return np.where(good, images, median[..., None, None])

    def interval(self, images: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Bounds of what every pixel held before rounding and clipping, DN above `offset`.

        Rounding leaves half a DN to either side; a saturated pixel has no upper bound, one that
        reads 0 or less where values are clipped no lower bound (if noise, be it undeclared, could
        take it below 0), a bad pixel neither. Where values are not rounded both bounds are the
        value itself.
        """
        images = as_images(images)
        half = 0.5 if self.rounding else 0.0
        low, high = images - half - self.offset, images + half - self.offset
        censored = self.censored(images)
        high[censored] = np.inf
        if self.rounding:  # up to a limit that is no whole number, too
            low[censored] = np.ceil(images[censored]) - 0.5 - self.offset
        unknown = self.noise == 0.0 and self.gain is None
        if self.saturation is not None and (self.read_noise > 0.0 or self.offset < 0.0 or unknown):
            low[images <= 0.0] = -np.inf
        bad = ~self.valid(images)
        low[bad], high[bad] = -np.inf, np.inf
        return low, high

    @property
    def noise(self) -> float:
        """Standard deviation of the noise of a dark pixel, DN."""
        return float(np.sqrt(self.read_noise**2 + _ROUNDING_VARIANCE * self.rounding))

    def expose(self, light: npt.ArrayLike, rng: np.random.Generator | int) -> FloatArray:
        """Record noise-free light as the detector would.

        Parameters
        ----------
        light : array_like, shape (..., n_y, n_x)
            Expected light in each pixel, DN above `offset`.
        rng : numpy.random.Generator or int
            Source of the noise, or a seed.

        Returns
        -------
        ndarray of float64, shape (..., n_y, n_x)
            The recorded values, DN; bad pixels read 0.
        """
        rng = as_rng(rng)
        value = as_images(light, "light").astype(np.float64)
        if self.gain is not None:
            value = rng.poisson(np.maximum(value, 0.0) * self.gain) / self.gain
        value = value + self.offset
        if self.read_noise > 0:
            value += rng.normal(0.0, self.read_noise, value.shape)
        if self.rounding:
            value = np.rint(value)
        if self.saturation is not None:
            value = np.clip(value, 0.0, self.saturation)
        value[~np.broadcast_to(self._good(value), value.shape)] = 0.0
        return value

    def _good(self, images: FloatArray) -> BoolArray:
        if self.bad_pixels is None:
            return np.ones(images.shape[-2:], dtype=bool)
        bad = np.asarray(self.bad_pixels)
        if bad.shape != images.shape[-2:]:
            raise ValueError(f"bad_pixels has shape {bad.shape}, the images {images.shape[-2:]}")
        return ~bad
