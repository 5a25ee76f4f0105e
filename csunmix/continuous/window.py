"""What a grid-free estimator sees of an image: the pixels around the light, and the prior there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from csunmix._kernels.measure import cell_density
from csunmix._kernels.measure import log_room as measured_room
from csunmix._kernels.model import Model, Views
from csunmix._kernels.prior import Box
from csunmix._kernels.scene import Optics, Pixels
from csunmix._validation import BoolArray, FloatArray, IntArray, as_instance, as_number, as_shape
from csunmix.background import border_level, noise_level
from csunmix.continuous.tables import tabulate
from csunmix.prior import Prior
from csunmix.psf import PSF
from csunmix.sensor import Sensor

Background = float | Literal["border", "fit"]

MAX_COUNT = 6
"""Largest number of targets looked for where the prior does not say."""

_ROUNDING_NOISE = 0.05  # DN, blurs the ends of the intervals that rounding leaves
_LIT = 3.0  # times the noise, from where a pixel counts as lit
_SLACK = 0.3  # px, error allowed to the centroid of the light
_TAIL = 0.02  # times the noise, light that a pixel outside of the window may get
_FEW_ELECTRONS = 0.375  # electron^2, least variance of a count of them (Anscombe 1948)
_KEPT = 256  # twice the numbers of targets whose room is kept
_MOST_FLUX = 1.5  # times what the image shows, of a target without a flux prior


@dataclass(frozen=True)
class Window:
    """The part of an image that its targets reach.

    Attributes
    ----------
    origin : tuple of int
        Row and column of the first pixel.
    pixels : Pixels
        What they recorded.
    box : Box
        The prior, in the window's coordinates.
    fit_background : bool
        Whether a constant background is one of the parameters.
    """

    origin: tuple[int, int]
    pixels: Pixels
    box: Box
    fit_background: bool

    @cached_property
    def size(self) -> FloatArray:
        """Size of the area that a target may be in given one other, px."""
        area = self.box.area[:, 1] - self.box.area[:, 0]
        return np.minimum(area, 1.0 if self.box.cell == 1.0 else self.box.extent)

    @cached_property
    def smooth(self) -> Pixels:
        """The pixels with a normal error of the same variance in place of rounding."""
        low, high = self.pixels.low, self.pixels.high
        two = np.isfinite(low) & np.isfinite(high)
        if not two.any():
            return self.pixels
        middle = 0.5 * (low[two] + high[two])
        variance = self.pixels.variance + self.rounding**2 / 12.0
        low, high = low.copy(), high.copy()
        low[two] = high[two] = middle
        return self.pixels._replace(low=low, high=high, variance=variance)

    @cached_property
    def rounding(self) -> float:
        """Width of the intervals that rounding leaves, the largest, DN; 0 where there are none."""
        width = self.pixels.high - self.pixels.low
        return float(np.max(width, where=np.isfinite(width), initial=0.0))

    @property
    def n_cells(self) -> int:
        """Cells that the targets may share; 1 where that is not sure."""
        if self.box.cell < 1.0:
            return 1
        ends = np.ceil(self.box.area[:, 1] - 0.5) - np.floor(self.box.area[:, 0] + 0.5) + 1.0
        return int(ends.prod())

    def model(self, optics: Optics, count: int, *, weighs_cell: bool = True) -> Model:
        """Posterior of `count` targets; a fit can do without what a likely cell weighs."""
        widths = np.array([*self.size, self.box.flux[1] - self.box.flux[0]])
        precision = np.tile(12.0 / widths**2, count)
        if self.fit_background:
            precision = np.append(precision, 1.0 / self.box.background[1] ** 2)
        box = self.box
        if weighs_cell:
            box = box._replace(cell_density=self.cell_density(count))
        return Model(optics, self.pixels, box, precision, count)

    def cell_density(self, count: int) -> float:
        """Density of scenes in a cell, see `csunmix._kernels.measure.cell_density`."""
        box = self.box
        if box.cell in (0.0, 1.0):
            return 0.0
        in_box = log_room(self.size, box.separation, count)
        in_cell = log_room(np.ones(2), box.separation, count)
        return float(cell_density(box, self.size, in_box, in_cell, count))


@dataclass(frozen=True)
class Setting:
    """PSF, sensor and prior for images of one shape."""

    psf: PSF
    sensor: Sensor
    prior: Prior
    shape: tuple[int, int]
    background: Background
    psf_error: float = 0.0

    def __post_init__(self) -> None:
        as_instance(self.psf, PSF, "psf")
        as_instance(self.sensor, Sensor, "sensor")
        as_instance(self.prior, Prior, "prior")
        if self.prior.count is not None and self.prior.count[1] < 1:
            raise ValueError(f"prior.count must allow a target, got {self.prior.count}")
        as_shape(self.shape)
        as_number(self.psf_error, "psf_error", minimum=0.0)
        if isinstance(self.background, str):
            if self.background not in ("border", "fit"):
                raise ValueError(
                    f"background must be a number, 'border' or 'fit', got {self.background!r}"
                )
        else:
            as_number(self.background, "background")

    @cached_property
    def optics(self) -> Optics:
        """Tables of the PSF."""
        return tabulate(self.psf, max(self.shape) + 1, error=0.1 * self.psf_error)

    @cached_property
    def rooms(self) -> list[FloatArray]:
        """What was last known of the room for targets, see `csunmix._kernels.refine.refine`."""
        return [np.full((_KEPT, 3), np.nan)]

    @property
    def counts(self) -> range:
        """Numbers of targets to choose from."""
        low, high = self.prior.count or (1, MAX_COUNT)
        return range(max(low, 1), high + 1)

    def window(self, image: FloatArray) -> Window | None:
        """The window of a finite image; None if no pixel is lit."""
        return self.windows(image[None])[0]

    def windows(self, images: FloatArray) -> list[Window | None]:
        """The windows of finite images (n, n_y, n_x), each as it would be alone."""
        views = self.views(images)
        lit = views.stop[:, 0] > views.start[:, 0]
        return [self._window(views, n) if any_lit else None for n, any_lit in enumerate(lit)]

    def _window(self, views: Views, n: int) -> Window:
        (top, left), (bottom, right) = views.start[n].tolist(), views.stop[n].tolist()
        cut = (n, slice(top, bottom), slice(left, right))
        pixels = Pixels(
            views.low[cut].copy(), views.high[cut].copy(), float(views.variance[n]), views.per_light
        )
        area = views.area[n] - views.start[n][:, None]
        flux, background = views.flux[n].tolist(), views.background[n].tolist()
        box = self.box._replace(area=area, flux=tuple(flux), background=tuple(background))
        return Window((top, left), pixels, box, self.background == "fit")

    @cached_property
    def box(self) -> Box:
        """What the prior says of all images alike; areas, fluxes and backgrounds are of each."""
        unknown = -np.inf, np.inf
        return Box(
            np.array([unknown, unknown]),
            unknown,
            float(self.prior.min_separation),
            np.inf if self.prior.extent is None else float(self.prior.extent),
            float(self.prior.cell),
            0.0,  # depends on the number of targets
            unknown,
        )

    def views(self, images: FloatArray) -> Views:
        """What the windows of finite images (n, n_y, n_x) show; of one without light, nothing."""
        valid = self.sensor.valid(images)
        level = self.levels(images)
        low, high = self.sensor.interval(images)
        low, high = low - level[:, None, None], high - level[:, None, None]
        noise2 = self._noise_variance(images, level)
        # Half way between the bounds, or the one that there is.
        first, last = np.where(np.isfinite(low), low, high), np.where(np.isfinite(high), high, low)
        if not valid.all():
            first, last = np.where(valid, first, 0.0), np.where(valid, last, 0.0)
        signal = 0.5 * first + 0.5 * last
        dark2 = noise2 + self._rounding_variance
        recorded2 = dark2[:, None, None]
        if self._per_light > 0.0:
            recorded2 = recorded2 + self._per_light * np.maximum(signal, 0.0)
        lit = signal > _LIT * np.sqrt(recorded2)
        light, brightest = np.where(lit, signal, 0.0), signal.max(axis=(1, 2))
        # The same in all pixels: to grow with each one's own light would take the weight off the
        # cores, which say where targets are, and leave it to the wings, which a PSF errs in too.
        noise2 = noise2 + (self.psf_error * brightest) ** 2
        some: BoolArray = np.asarray(lit.any(axis=(1, 2)))
        areas = np.zeros((len(images), 2, 2))
        areas[some] = self._areas(light[some], _LIT * np.sqrt(dark2[some]))
        total = light.reshape(len(light), -1).sum(axis=1)
        # Of a faint target few pixels are lit, and its peak says more than their sum.
        flux = self._flux_bounds(noise2, np.maximum(total, brightest / self._peak))
        noise = np.sqrt(noise2 + self._rounding_variance)
        start, stop = self._ends(areas, noise / np.maximum(flux[:, 1], total))
        stop[~some] = start[~some]
        spread = np.maximum(noise, 1e-3 * np.abs(level))
        background = np.stack([np.zeros_like(spread), spread], axis=1)
        return Views(low, high, noise2, self._per_light, start, stop, areas, flux, background)

    def _flux_bounds(self, noise2: FloatArray, shown: FloatArray) -> FloatArray:
        """Least and most flux (n, 2) of a target; without a prior, what `shown` allows."""
        if self.prior.flux is None:
            least = np.zeros_like(shown)
            most = _MOST_FLUX * shown + 10.0 * np.sqrt(noise2 + self._rounding_variance)
        else:
            least, most = (np.full(len(shown), float(flux)) for flux in self.prior.flux)
        return np.stack([least, np.maximum(most, least + 1e-6 * most)], axis=1)

    def _ends(self, areas: FloatArray, share: FloatArray) -> tuple[IntArray, IntArray]:
        """First rows and columns (n, 2) of the windows, and those after their last.

        Beyond these a target's light is less than some `share` (n,) of its flux.
        """
        margin = np.maximum(np.searchsorted(-self._tail, -_TAIL * share), 1)[:, None]
        start = np.maximum(np.floor(areas[..., 0] - margin), 0.0)
        stop = np.minimum(np.ceil(areas[..., 1] + margin) + 1.0, self.shape)
        return start.astype(np.int64), stop.astype(np.int64)

    def levels(self, images: FloatArray) -> FloatArray:
        """Background beside the sensor's offset (n,), DN; or what it is fitted around."""
        if isinstance(self.background, str):
            return border_level(images) - self.sensor.offset
        return np.full(len(images), float(self.background))

    @property
    def _per_light(self) -> float:
        """Variance of the noise per DN of light, DN."""
        return 0.0 if self.sensor.gain is None else 1.0 / self.sensor.gain

    @property
    def _rounding_variance(self) -> float:
        return self.sensor.noise**2 - self.sensor.read_noise**2

    def _noise_variance(self, images: FloatArray, level: FloatArray) -> FloatArray:
        """Variance (n,) of the noise of a pixel without target, before rounding."""
        variance = np.full(len(images), self.sensor.read_noise**2)
        if self.sensor.gain is not None:
            few = _FEW_ELECTRONS / self.sensor.gain**2
            variance = np.maximum(variance + np.maximum(level, 0.0) / self.sensor.gain, few)
        if self.sensor.noise == 0.0 and self.sensor.gain is None:
            variance = noise_level(images) ** 2
        if self.sensor.rounding:
            return np.asarray(np.maximum(variance, _ROUNDING_NOISE**2))
        return np.asarray(np.maximum(variance, (1e-4 * np.abs(images).max(axis=(1, 2))) ** 2))

    def _areas(self, light: FloatArray, least: FloatArray) -> FloatArray:
        """Where targets may be, (n, 2, 2): where the light is, and as the prior says around it.

        Pixels are lit from `least` (n,) on, so that in a faint image a target's own may be dark.
        """
        sure = self.prior.cell == 1.0
        reach = 1.0 if sure else self.prior.extent
        edge = 0.5 + self.width * least / light.max(axis=(1, 2), initial=0.0)
        ends = [_first_and_last(np.einsum(axes, light) > 0.0) for axes in ("nij->ni", "nij->nj")]
        area = np.stack([[first - edge, last + edge] for first, last in ends]).transpose(2, 0, 1)
        if reach is None:
            return area
        reach = max(reach, 1.0) if self.prior.cell else reach
        near = self._centroids(light, reach)[..., None] + _SLACK * np.array([-1.0, 1.0])
        if sure:
            near = np.floor(near + 0.5) + np.array([-0.5, 0.5])
        else:
            near = near + reach * np.array([-1.0, 1.0])
        return np.clip(near, area[..., :1], area[..., 1:])

    def _centroids(self, light: FloatArray, reach: float) -> FloatArray:
        """Centroids (n, 2) of the light within reach of the targets, from the brightest pixel."""
        n, n_y, n_x = light.shape
        y, x = np.arange(n_y, dtype=np.float64), np.arange(n_x, dtype=np.float64)
        brightest = light.reshape(n, n_y * n_x).argmax(axis=1)
        centre = np.stack(np.divmod(brightest, n_x), axis=1).astype(np.float64)
        limit = reach + 3.0 * self.width
        for _ in range(3):
            rows = np.where(np.abs(y - centre[:, :1]) <= limit, 1.0, 0.0)
            columns = np.where(np.abs(x - centre[:, 1:]) <= limit, 1.0, 0.0)
            of_y = rows * np.einsum("nij,nj->ni", light, columns)
            of_x = columns * np.einsum("nij,ni->nj", light, rows)
            total = of_y.sum(axis=1)
            centre = np.stack([(of_y * y).sum(axis=1), (of_x * x).sum(axis=1)], axis=1)
            centre /= total[:, None]
        return centre

    @cached_property
    def width(self) -> float:
        """Equivalent Gaussian width of the PSF, px."""
        return self.psf.width

    @cached_property
    def _peak(self) -> float:
        """Largest response of a pixel."""
        d = np.linspace(-3.0, 3.0, 49) * self.width
        return float(np.abs(self.psf.kernel(d[:, None], d)).max())

    @cached_property
    def _tail(self) -> FloatArray:
        """Largest response in rows and columns of pixels at a distance or more, falling."""
        d = np.arange(0.5, max(self.shape) + 0.5)
        across = np.arange(-self.shape[0] - self.shape[1], self.shape[0] + self.shape[1] + 1.0)
        down = self.psf.kernel(d[:, None], across).max(axis=1)
        right = self.psf.kernel(across, d[:, None]).max(axis=1)
        return np.maximum.accumulate(np.abs(np.maximum(down, right))[::-1])[::-1]


def _first_and_last(lit: BoolArray) -> tuple[IntArray, IntArray]:
    """First and last (n,) that is lit in every row."""
    return lit.argmax(axis=1), lit.shape[1] - 1 - lit[:, ::-1].argmax(axis=1)


def log_room(size: FloatArray, separation: float, count: int) -> float:
    """Log probability that `count` points uniform in a box (2,) keep their distances.

    See `csunmix._kernels.measure.log_room`.
    """
    return _log_room(*size.tolist(), separation, count)


@lru_cache(maxsize=256)
def _log_room(size_y: float, size_x: float, separation: float, count: int) -> float:
    return float(measured_room(size_y, size_x, float(separation), count))
