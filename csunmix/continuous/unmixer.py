"""The joint fit as an unmixer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from csunmix._ahead import Step
from csunmix._validation import as_integer
from csunmix.continuous.ahead import APPROXIMATION, ESTIMATION
from csunmix.continuous.base import Answer, _Unmixer, answer_for, probabilities
from csunmix.continuous.fit import evidences, fit_counts
from csunmix.continuous.sampling import SCORED, summarise, weigh
from csunmix.continuous.window import Setting, Window


@dataclass(frozen=True)
class ContinuousUnmixer(_Unmixer):
    r"""Off the grid: the bounded joint fit of all targets at once, and how many there are.

    For every number of targets the scene ``theta = (y_k, x_k, f_k)`` minimises

    .. math:: -\sum_p \log p(\text{pixel}_p \mid \mu_p(\theta)), \qquad
              \mu_p = b + \sum_k f_k\, \phi(p - (y_k, x_k))

    within what the `Prior` allows, by bounded Levenberg-Marquardt steps with analytic derivatives
    from many starts: targets one by one where each explains most of what is left, single ones
    moved to where they would explain more, and random ones. Pixels are normal with the sensor's
    variance (see `PosteriorUnmixer`), rounding counted in it; a saturated pixel is a lower bound
    and costs ``-log Pr(noise > bound - mu)``. The number of targets is that of the largest
    evidence, see `PosteriorUnmixer`.

    The answer is the mean of the posterior, rounding taken as the interval that it is, by
    importance sampling as in `PosteriorUnmixer`, with fewer scenes. It begins around all optima:
    there the posterior is near a normal distribution, the likelihood's cut off by the bounds of the
    prior (expectation propagation, Minka 2001).

    Parameters
    ----------
    psf, sensor, prior : PSF, Sensor, Prior
        As for `PosteriorUnmixer`.
    background : float, "border" or "fit"
        Level beside the sensor's offset, DN: known, or the median of the outermost ring of pixels,
        or fitted around that.
    psf_error : float
        Error of the PSF as a share of the brightest pixel; adds ``(psf_error * brightest)**2`` to
        the noise variance of every pixel. To be taken larger than what single stars leave, as a
        PSF errs alike in neighbouring pixels.
    n_effective : int
        Scenes that count, ``(sum w)^2 / sum w^2``, at which draws end: a mean errs by one part in
        ``sqrt(n_effective)`` of its error. There are at most 40 draws for each, or 15,000 if that
        is more, and never more than about 200,000; where fewer than three quarters of these scenes
        count (or of 1000), three further runs, each until as many count, or 100. Where several
        numbers of targets were told apart by draws, no fewer count than in these, 200. 0: no draws
        but these; the answer is that of the normal approximations, whose errors are too small where
        four or more targets stand close together. 1 to 50: as in `PosteriorUnmixer`, looked less
        long for where to draw.
    seed : int
        Of the random numbers, which follow from it and the pixels of each image.
    n_jobs : int
        Images worked on at a time.

    Notes
    -----
    ``y_err, x_err, flux_err`` are posterior standard deviations. ``score`` is the probability that
    the count is right and the target lies within 0.1 px of its estimate.

    ``Flag.NOT_CONVERGED`` marks targets of an image whose further runs are apart, the variance of
    their mean above 0.05 of the posterior's for some target (it is a part of the claimed error),
    and of one where fewer than 3 scenes count in all runs, or whose optima the prior leaves no room
    around: there the answer is that of the normal approximations.

    ``Flag.AT_BOUND`` marks targets with a coordinate, a flux or a distance to another target within
    1.5 errors of a bound of the prior, of which walls of a cell that they may share are one (errors
    of two targets are taken as independent), ``Flag.FLAT`` those with an error above 0.8 of the
    prior's own standard deviation. ``Flag.MISFIT`` marks those of an image of which the best fit
    leaves more than noise does (10 standard deviations of ``chi^2``): nothing said of them holds
    where PSF, sensor or prior are wrong.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range; the message names it.

    Examples
    --------
    >>> import csunmix as cu
    >>> setup = cu.presets.csist_100k()
    >>> made = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=5, rng=0)
    >>> unmix = cu.ContinuousUnmixer(setup.psf, setup.sensor, setup.prior)
    >>> targets = unmix(made.images)
    >>> bool(cu.metrics.count_accuracy(targets, made.truth) == 1.0)
    True
    """

    _: KW_ONLY
    n_effective: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        as_integer(self.n_effective, "n_effective", minimum=0)

    def _to_compile(self) -> tuple[Step, ...]:
        return ESTIMATION if self.n_effective > 0 else APPROXIMATION

    def _answer(self, setting: Setting, window: Window, seed: int) -> Answer:
        fits = fit_counts(setting, window, seed)
        probability = probabilities(evidences(setting, fits))
        best = fits[setting.counts[int(probability.argmax())]]
        found = weigh(best, self.n_effective, seed)
        targets = summarise(best, found, SCORED)
        return answer_for(setting, best, targets, found.flags, probability)
