"""Joint fits begun at the moments of the light, as an unmixer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from csunmix._ahead import Step
from csunmix._batches import Found, any_finite, find_all, find_in_finite, joined
from csunmix._kernels.model import Views
from csunmix._kernels.moments import fit_moments
from csunmix._validation import Array, FloatArray, as_images, as_integer
from csunmix.continuous.ahead import MOMENTS
from csunmix.continuous.base import OffGrid, border_flags, image_flags
from csunmix.continuous.refine import rules, target_flags
from csunmix.continuous.sampling import SCORED
from csunmix.continuous.window import Setting
from csunmix.peaks import Candidates
from csunmix.prior import Prior

if TYPE_CHECKING:
    import pandas as pd

_PIXELS = 2**19  # of images that a thread works on at a time
_REACH = 3.5  # widths of the PSF from targets to the last pixels that are looked at
_PHASES = 4  # along each axis, at which they are taken


@dataclass(frozen=True)
class MomentUnmixer(OffGrid):
    r"""Off the grid in some tens of microseconds: joint fits begun at the moments of the light.

    The sum of the light says how many targets there are, as their fluxes lie in a range; its middle
    and its variances, less those of the PSF, are those of the targets. Regular figures of that
    spread, with as many corners or one corner less and a target in the middle, are the starts; of
    three turns each, those whose light is nearest to the image's. Each goes down in

    .. math:: -\sum_p \log p(\text{pixel}_p \mid \mu_p(\theta))
              + \sum_k \frac{(f_k - \bar f)^2}{2 \sigma_f^2}
              + \sum_k \frac{|(y_k, x_k) - c|^2}{2 \sigma^2}, \qquad
              \mu_p = b + \sum_k f_k\, \phi(p - (y_k, x_k))

    by Levenberg-Marquardt steps. Pixels are as for `ContinuousUnmixer`. In place of the bounds of
    the prior there are normal distributions of the same means and variances, around the middle of
    the light ``c``; fits keep to separation and extent by stiff walls. A cell that is likely, but
    not sure, makes no difference. The answer is the mean of the normal distributions around what
    the starts end in (Laplace's method), each weighing as much as it holds. The number of targets
    is the one of the largest sum of these, of all that the light allows.

    What a saturated or bad pixel hides is taken to be what the pixels around it would have it be,
    were the light a product of two factors; in the fit it is a bound, or nothing.

    Parameters
    ----------
    psf, sensor : PSF, Sensor
        As for `PosteriorUnmixer`.
    prior : Prior
        The same; needs a range of fluxes.
    background : float or "border"
        Level beside the sensor's offset, DN: known, or the median of the outermost ring of pixels.
    psf_error : float
        As for `ContinuousUnmixer`.
    n_starts : int
        Starts for every two targets, of 1 figure of one target or two, 3 of three, and 6 of more.
        More find more of what there is, and take longer.
    n_jobs : int
        Threads that work on the images; the answer is the same with any number.

    Notes
    -----
    ``y_err, x_err, flux_err`` are standard deviations of that sum of normal distributions: too
    small where an optimum that matters was missed, as of some scenes of four targets and of five,
    so that a few places lie many errors off; with twice the starts fewer are missed. ``score`` and
    flags are as for `ContinuousUnmixer`, the score by the errors alone. A fit that leaves more of
    the pixels around the targets than noise does has `Flag.MISFIT`: one of the other methods may do
    better. Numbers of targets are right where no other gives as much light; where fluxes lie in a
    wide range, they are less often right than those of other methods, and too sure. What this
    method loses to these is in ``benchmarks/accuracy/off_grid.md``, and what it gains in
    ``benchmarks/speed/off_grid.md``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range, or the prior has no range of fluxes;
        the message names it.

    Examples
    --------
    >>> import csunmix as cu
    >>> setup = cu.presets.csist_100k()
    >>> made = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=50, rng=0)
    >>> unmix = cu.MomentUnmixer(setup.psf, setup.sensor, setup.prior)
    >>> targets = unmix(made.images)
    >>> bool(cu.metrics.count_accuracy(targets, made.truth) == 1.0)
    True
    """

    prior: Prior = field(default_factory=Prior)
    _: KW_ONLY
    background: float | Literal["border"] = 0.0
    psf_error: float = 0.0
    n_starts: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.background, str) and self.background != "border":
            raise ValueError(f"background must be a number or 'border', got {self.background!r}")
        super().__post_init__()
        if self.prior.flux is None:
            raise ValueError(
                "prior must have a range of fluxes, by which light tells the number of targets, "
                f"got {self.prior!r}"
            )
        as_integer(self.n_starts, "n_starts", minimum=1)

    def images_at_a_time(self, shape: tuple[int, ...]) -> int:
        """Images of a shape that each thread works on at a time, which bounds the memory."""
        return max(1, _PIXELS // (shape[0] * shape[1]))

    def _to_compile(self) -> tuple[Step, ...]:
        return (MOMENTS,)

    def _new_setting(self, shape: tuple[int, int]) -> Setting:
        return Setting(self.psf, self.sensor, self.prior, shape, self.background, self.psf_error)

    def _unmix(self, setting: Setting, stack: Array, progress: bool) -> pd.DataFrame:
        _ = setting.optics, setting.box, self._core  # made once, before threads ask for them
        size = self.images_at_a_time(setting.shape)
        found = find_all(partial(self._find, setting), stack, size, self.n_jobs, progress)
        if not any_finite(found):
            as_images(stack)  # says where
        return joined(found, {"method": repr(self), "image_shape": setting.shape})

    def _find(self, setting: Setting, images: Array) -> Found:
        """Targets of a part of the stack, finite or not."""
        patched = self.sensor.patched(images.astype(np.float64))
        return find_in_finite(partial(self._find_finite, setting), patched)

    def _find_finite(self, setting: Setting, images: FloatArray) -> Found:
        views, least = self._near(setting.views(images)), setting.counts.start
        # No more unknowns than pixels.
        most = max(min(setting.counts.stop - 1, images[0].size // 3), least)
        told = rules(setting)._replace(counts=(least, most))
        answers = fit_moments(told, views, self._core, self.n_starts, most, SCORED)
        some = np.arange(most) < answers.n_targets[:, None]
        targets = answers.targets[some]
        marks = target_flags(setting, views, answers)[some]
        marks |= border_flags(setting, targets[:, 0], targets[:, 1])
        frame = np.repeat(np.arange(len(images)), answers.n_targets)
        found = Candidates(frame, *targets[:, :3].T)
        return Found(found, targets[:, 3:], marks, image_flags(setting, images))

    def _near(self, views: Views) -> Views:
        """Windows no larger than the targets' box around the middle of the light, and the PSF."""
        size = views.area[..., 1] - views.area[..., 0]
        box = 1.0 if self.prior.cell == 1.0 else self.prior.extent
        if box is not None:
            size = np.minimum(size, box)
        middle, reach = views.area.mean(axis=2), 0.5 * size + _REACH * self.psf.width
        start = np.maximum(views.start, np.floor(middle - reach + 0.5).astype(np.int64))
        stop = np.minimum(views.stop, np.ceil(middle + reach + 0.5).astype(np.int64))
        return views._replace(start=start, stop=np.maximum(stop, start))

    @cached_property
    def _core(self) -> FloatArray:
        """Middle of the PSF along y and x (px), its variances and its covariance (px^2).

        Of what is in reach, as an Airy disk's variance is infinite; the share of that comes last.
        """
        reach = np.ceil(_REACH * self.psf.width)
        phase = (np.arange(_PHASES) + 0.5) / _PHASES - 0.5
        d = (np.arange(-reach, reach + 1.0) - phase[:, None]).ravel()
        dy, dx = d[:, None], d
        light = self.psf.kernel(dy, dx)
        share = light / light.sum()
        y, x = (share * dy).sum(), (share * dx).sum()
        away = (dy - y) ** 2, (dx - x) ** 2, (dy - y) * (dx - x)
        moments = [(share * each).sum() for each in away]
        return np.array([y, x, *moments, light.sum() / _PHASES**2])
