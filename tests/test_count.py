"""Likelihood-ratio test for more targets: its false-alarm rate, its power, its edges."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

import csunmix as cu
from csunmix.continuous.count import count_test

SHAPE = (9, 9)
PSF = cu.GaussianPSF(sigma=0.5)
OFFSET = np.arange(-30, 31) / 5
SAMPLED = cu.SampledPSF(cu.AiryPSF(radius=0.95).kernel(OFFSET[:, None], OFFSET), oversampling=5)
NOISY = cu.Sensor(read_noise=2)
FREE = cu.Prior()
TEN_PERCENT: dict[str, Any] = {"false_alarm": 0.1, "n_simulations": 9}
BRIGHT = cu.Prior(flux=(100, 250), extent=1.2)  # no pair is as faint as a faint single


def light(*targets: tuple[float, float, float], psf: cu.PSF = PSF) -> np.ndarray:
    """Noise-free image of targets ``(y, x, flux)``."""
    y, x, flux = np.array(targets).T
    return np.tensordot(flux, psf.response(y, x, SHAPE), axes=1)


def singles(n: int, sensor: cu.Sensor, flux: float, psf: cu.PSF = PSF) -> np.ndarray:
    """Images of one target anywhere in the central pixel."""
    rng = np.random.default_rng(1)
    place = rng.uniform(3.5, 4.5, (n, 2))
    return np.stack([sensor.expose(light((y, x, flux), psf=psf), rng) for y, x in place])


@pytest.mark.parametrize(
    ("psf", "sensor", "prior", "flux", "told"),
    [
        pytest.param(PSF, NOISY, FREE, 235.0, {}, id="no prior"),
        pytest.param(PSF, NOISY, FREE, 235.0, {"sensor": None}, id="noise estimated"),
        pytest.param(PSF, NOISY, FREE, 60.0, {"background": "fit"}, id="faint, background"),
        pytest.param(PSF, NOISY, BRIGHT, 130.0, {}, id="flux prior"),
        pytest.param(PSF, cu.Sensor(rounding=True), FREE, 235.0, {}, id="rounding alone"),
        pytest.param(SAMPLED, NOISY, FREE, 235.0, {}, id="not separable"),
    ],
)
def test_false_alarms_as_asked(
    psf: cu.PSF, sensor: cu.Sensor, prior: cu.Prior, flux: float, told: dict[str, Any]
) -> None:
    told = {"sensor": sensor, "prior": prior} | told
    test = count_test(singles(200, sensor, flux, psf), psf, **told, **TEN_PERCENT, rng=2)
    low, high = stats.binom.ppf([0.001, 0.999], 200, 0.1)
    assert low <= test.reject.sum() <= high
    np.testing.assert_array_equal(test.reject, test.p_value <= 0.1)


def test_chi2_would_not_do() -> None:
    # The reason for the simulations: three more parameters do not make three degrees of freedom.
    images = singles(200, NOISY, 235.0)
    statistic = count_test(images, PSF, NOISY, false_alarm=0.5, n_simulations=1).statistic
    rejected = (stats.chi2.sf(statistic, 3) <= 0.05).sum()
    assert rejected > stats.binom.ppf(0.999, 200, 0.05)


def test_false_alarms_of_a_pair() -> None:
    rng = np.random.default_rng(3)
    pairs = [light((4, x, 120.0), (4, x + 0.7, 110.0)) for x in rng.uniform(3.2, 4.2, 100)]
    images = NOISY.expose(np.stack(pairs), rng)
    test = count_test(images, PSF, NOISY, null=2, **TEN_PERCENT, rng=4)
    low, high = stats.binom.ppf([0.001, 0.999], 100, 0.1)
    assert low <= test.reject.sum() <= high


def test_more_targets_never_fit_worse() -> None:
    # Random starts miss the best fit of many targets now and then.
    rng = np.random.default_rng(0)
    scenes = [light(*rng.uniform((3.4, 3.4, 100), (4.6, 4.6, 250), (5, 3))) for _ in range(20)]
    images = NOISY.expose(np.stack(scenes), rng)
    test = count_test(images, PSF, NOISY, null=5, false_alarm=0.5, n_simulations=1)
    assert test.statistic.min() > -1e-6


@pytest.mark.parametrize("prior", [FREE, BRIGHT])
def test_detects_pairs_and_triples(prior: cu.Prior) -> None:
    pair = light((4.0, 3.7, 120.0), (4.2, 4.4, 110.0))
    triple = light((4.0, 3.3, 120.0), (4.2, 4.4, 110.0), (4.5, 3.6, 130.0))
    images = NOISY.expose(np.stack([pair, triple]), 3)
    assert count_test(images, PSF, NOISY, prior, **TEN_PERCENT).reject.all()
    assert count_test(triple, PSF, NOISY, prior, null=2, **TEN_PERCENT).reject
    assert count_test(triple, PSF, NOISY, prior, alternative=3, **TEN_PERCENT).reject


def test_recording_is_simulated_as_it_was() -> None:
    # Shot noise, an offset, a level and saturation.
    sensor = cu.Sensor(read_noise=1, gain=2.0, offset=20, rounding=True, saturation=255)
    rng = np.random.default_rng(4)
    scenes = np.stack([light((4.1, x, 600.0)) + 15.0 for x in rng.uniform(3.7, 4.3, 100)])
    images = sensor.expose(scenes, rng)
    assert (images == 255).any()
    test = count_test(images, PSF, sensor, background=15.0, **TEN_PERCENT, rng=5)
    low, high = stats.binom.ppf([0.001, 0.999], 100, 0.1)
    assert low <= test.reject.sum() <= high


def test_shapes_and_reproducibility() -> None:
    images = singles(6, NOISY, 100.0).reshape(2, 3, *SHAPE)
    settings: dict[str, Any] = {"false_alarm": 0.2, "n_simulations": 9}
    test = count_test(images, PSF, NOISY, rng=7, **settings)
    assert test.statistic.shape == test.p_value.shape == test.reject.shape == (2, 3)
    assert test.reject.dtype == bool
    again = count_test(images, PSF, NOISY, rng=np.random.default_rng(7), **settings)
    np.testing.assert_array_equal(test.p_value, again.p_value)
    np.testing.assert_array_equal(test.statistic, again.statistic)
    assert count_test(images[0, 0], PSF, NOISY, **settings).p_value.shape == ()
    first = count_test(images[0], PSF, NOISY, rng=7, **settings)  # an image stands for itself
    np.testing.assert_array_equal(first.p_value, test.p_value[0])


def test_images_without_answer() -> None:
    images = np.stack([np.zeros(SHAPE), np.full(SHAPE, np.nan), light((4.0, 4.0, 300.0))])
    absurd = np.where(np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) == 60, 1e200, images[2])
    test = count_test([*images, absurd], PSF, NOISY, false_alarm=0.5, n_simulations=1)
    np.testing.assert_array_equal(test.p_value[[0, 1, 3]], [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(test.statistic[[0, 1, 3]], [0.0, np.nan, np.nan])
    assert not test.reject[[0, 1, 3]].any()
    crowd = cu.Prior(min_separation=5.0, extent=1.0)
    narrow = count_test(images[2], PSF, NOISY, crowd, false_alarm=0.5, n_simulations=1)
    assert (narrow.statistic, narrow.p_value, narrow.reject) == (0.0, 1.0, False)


def test_simulation_ends_once_the_answer_is_sure() -> None:
    # The p-value of a test that ended early is h/l, with h the exceedances that allow no rejection.
    images = singles(20, NOISY, 100.0)
    p = count_test(images, PSF, NOISY, false_alarm=0.1, n_simulations=29).p_value
    kept = p[p > 0.1]
    np.testing.assert_allclose(3 / kept, np.rint(3 / kept))
    assert p.max() > 0.5


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"images": np.zeros(5)}, ValueError, "images must have at least two axes"),
        ({"images": np.zeros((0, 5, 5))}, ValueError, "images must not be empty"),
        ({"psf": 0.5}, TypeError, "psf must be of type PSF, got 0.5"),
        ({"sensor": 2.0}, TypeError, "sensor must be of type Sensor, got 2.0"),
        ({"prior": (1, 2)}, TypeError, "prior must be of type Prior"),
        ({"sensor": 0}, TypeError, "sensor must be of type Sensor, got 0"),
        ({"null": 0}, ValueError, "null must be at least 1, got 0"),
        ({"null": 1.5}, TypeError, "null must be an integer, got 1.5"),
        ({"null": 2, "alternative": 2}, ValueError, "alternative must be at least 3, got 2"),
        ({"false_alarm": 0}, ValueError, "false_alarm must be above 0, got 0"),
        ({"false_alarm": 1}, ValueError, "false_alarm must be below 1, got 1"),
        ({"n_simulations": 98}, ValueError, "n_simulations must be at least 99, got 98"),
        ({"background": "none"}, ValueError, "background must be a number, 'border' or 'fit'"),
        ({"rng": -1}, ValueError, "rng must be at least 0, got -1"),
    ],
)
def test_errors(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"images": np.zeros(SHAPE), "psf": PSF} | wrong
    with pytest.raises(error, match=message):
        count_test(**arguments)
