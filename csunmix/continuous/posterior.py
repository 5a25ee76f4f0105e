"""The posterior mean, by Monte Carlo."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

from csunmix._ahead import Step
from csunmix._validation import as_integer, as_number
from csunmix.continuous.ahead import ESTIMATION, SMC
from csunmix.continuous.base import Answer, _Unmixer, answer_for, probabilities
from csunmix.continuous.fit import PLAUSIBLE, evidences, fit_counts
from csunmix.continuous.sampling import Sample, cool, hop, summarise, weigh
from csunmix.continuous.window import Setting, Window


@dataclass(frozen=True)
class PosteriorUnmixer(_Unmixer):
    r"""Off the grid: the mean of the posterior of all targets at once, its errors and its count.

    The posterior of ``K`` targets is

    .. math:: p(y, x, f \mid \text{image}) \propto p(y, x, f)
              \prod_p \Pr\big(l_p \le \mu_p + \epsilon_p \le h_p\big), \qquad
              \mu_p = b + \sum_k f_k\, \phi(p - (y_k, x_k))

    with the interval ``[l, h]`` that rounding and clipping leave of every pixel (`Sensor.interval`;
    a density where it is a point) and normal noise of the sensor's variance,
    ``read_noise^2 + max(mu, 0)/gain``, in the dark at least 3/8 of an electron squared: where
    electrons are few they are no normal variable, and errors are too small for targets of less than
    100. ``p(y, x, f)`` is uniform over what the `Prior` allows, of a cell or box wherever that may
    be.

    Of the number of targets with the largest evidence, scenes are found by incremental mixture
    importance sampling (Raftery & Bao 2010, Biometrics 66, 1162): draws from t distributions around
    all optima of the joint fit (see `ContinuousUnmixer`), to which every round adds others around
    the scenes that weigh most, so that a posterior that is bent is followed to its ends; weights
    are those of draws from the mixture. Where few of the first draws count, short chains say where
    else draws begin, with twice the noise in the dark and rounding as a normal error; so do draws
    that were made for the evidence. Around a scene of rounded pixels without other noise, the
    distribution is that of the scenes whose light, taken as linear, keeps to all intervals
    (expectation propagation, Minka 2001). Where too few scenes count there are three further runs,
    which begin around scenes of the first, without chains of their own; scenes weigh as draws from
    the distributions of all runs.

    The evidence of a number of targets is rough first, by Laplace's method and by the volumes that
    the bounds of the prior leave of the optima; where several remain plausible, it is the mean
    weight of such draws, rounding taken as a normal error. Where fewer than 200 of them count, that
    is too low, and the one by volumes is taken if it is higher.

    With ``sampler="hops"``, there are chains that start at the optima. They move by Hamiltonian
    Monte Carlo, the bounds of the prior being walls that reflect (Afshar & Domke 2015, NeurIPS 28,
    3007), and hop between optima: a map from the normal
    approximation around one to that around another is proposed, with its Jacobian in the chance of
    being taken. How much of the answer the scenes near an optimum are follows from how often chains
    change between them; where they hardly do, from the normal approximations. Where pixels are
    rounded, chains see the ends of the intervals blurred, and scenes are weighed to make up for it.

    With ``sampler="smc"``, scenes and evidence come from waste-free sequential Monte Carlo (Dau &
    Chopin 2022, JRSS B 84, 114) that starts at the prior, the noise shrinking from beyond the image
    to what it is: several times slower, and independent of the optima that the fit has found. Only
    numbers of targets that are plausible by their fits are sampled.

    Targets are told apart by the assignment of every scene's targets to their common mean that has
    the least sum of squared distances, repeated until it stands.

    Parameters
    ----------
    psf, sensor, prior : PSF, Sensor, Prior
        Optics, detector and what is known of the targets. Without a count range, 1 to 6 targets are
        looked for; without a flux range, fluxes up to 1.5 times what the image shows; without an
        extent, positions where pixels are lit. A sensor without any noise takes the noise of each
        image, see `csunmix.background.noise_level`: on small images, which targets fill, up to a
        quarter too much, and so are the errors. No targets at all are not weighed: an image without
        a lit pixel has none.
    background : float, "border" or "fit"
        Level beside the sensor's offset, DN: known, or the median of the outermost ring of pixels,
        or fitted around that.
    psf_error : float
        Error of the PSF as a share of the brightest pixel; adds ``(psf_error * brightest)**2`` to
        the noise variance of every pixel. To be taken larger than what single stars leave, as a
        PSF errs alike in neighbouring pixels.
    radius : float
        Distance that ``score`` speaks of, px.
    sampler : {"importance", "hops", "smc"}
        Where samples come from, see above.
    n_effective : int
        Scenes that count, ``(sum w)^2 / sum w^2``, at which draws of "importance" end: a mean errs
        by one part in ``sqrt(n_effective)`` of its error. There are at most 40 draws for each, or
        15,000 if that is more, and never more than about 200,000; where fewer than three quarters
        of these scenes count (or of 1000), three further runs, each until as many count, or 100.
        Where several numbers of targets were told apart by draws, no fewer count than in these,
        200. Else, up to 50 it is looked less long for where to draw, and there are 5,000 draws of
        a run at most: where little but rounding blurs the image, 30 take a seventh of the time, and
        means are nearly as good; with noise they err more, and errors are too small by up to an
        eighth.
    n_chains, n_steps : int
        Of "hops": chains (one more for every optimum that would have none), and paths of each, the
        first tenth of which is not kept; four times as many where the chains' means show that they
        are too few.
    seed : int
        Of the random numbers, which follow from it and the pixels of each image.
    n_jobs : int
        Images worked on at a time.

    Notes
    -----
    ``y_err, x_err, flux_err`` are posterior standard deviations, what the mean of the samples may
    err by counted in; ``score`` is the probability that the count is right and the target lies
    within `radius` of its estimate.

    ``Flag.NOT_CONVERGED`` marks targets of an image whose further runs, or chains after the longer
    run, are apart, the variance of their mean above 0.05 of the posterior's for some target (it is
    a part of the claimed error), and of one where fewer than 3 scenes count in all runs, or whose
    optima the prior leaves no room around: there the answer is that of the normal approximations.

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
    >>> made = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=3, rng=0)
    >>> unmix = cu.PosteriorUnmixer(setup.psf, setup.sensor, setup.prior)
    >>> targets = unmix(made.images)
    >>> bool(cu.metrics.count_accuracy(targets, made.truth) == 1.0)
    True
    """

    _: KW_ONLY
    radius: float = 0.1
    sampler: Literal["importance", "hops", "smc"] = "importance"
    n_effective: int = 500
    n_chains: int = 8
    n_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        as_number(self.radius, "radius", above=0.0)
        if self.sampler not in ("importance", "hops", "smc"):
            raise ValueError(f"sampler must be 'importance', 'hops' or 'smc', got {self.sampler!r}")
        as_integer(self.n_effective, "n_effective", minimum=1)
        as_integer(self.n_chains, "n_chains", minimum=2)
        as_integer(self.n_steps, "n_steps", minimum=10)

    def _to_compile(self) -> tuple[Step, ...]:
        return SMC if self.sampler == "smc" else ESTIMATION

    def _answer(self, setting: Setting, window: Window, seed: int) -> Answer:
        fits = fit_counts(setting, window, seed)
        evidence = evidences(setting, fits)
        cooled: dict[int, Sample] = {}
        if self.sampler == "smc":
            plausible = np.flatnonzero(evidence >= evidence.max() - PLAUSIBLE)
            evidence[:] = -np.inf
            for k in plausible:
                cooled[setting.counts[k]], evidence[k] = cool(
                    setting, window, setting.counts[k], seed
                )
        probability = probabilities(evidence)
        best = setting.counts[int(probability.argmax())]
        found = cooled.get(best)
        if self.sampler == "importance":
            found = weigh(fits[best], self.n_effective, seed)
        elif found is None:
            found = hop(setting, fits[best], self.n_chains, self.n_steps, seed)
        targets = summarise(fits[best], found, self.radius)
        return answer_for(setting, fits[best], targets, found.flags, probability)
