"""The Cramer-Rao bound, against independent derivations, simulation and published figures."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

import csunmix as cu
from csunmix.continuous.bound import cramer_rao, pixel_information

SHAPE = (7, 8)
PSF = cu.GaussianPSF(sigma=0.5)
NOISY = cu.Sensor(read_noise=1.0)
BAD = np.zeros(SHAPE, dtype=bool)
BAD[3, 4] = True
PAIR = {"y": [2.8, 3.3], "x": [3.9, 4.2], "flux": [240.0, 150.0]}


def sampled_psf():
    offset = np.arange(-15, 16) / 4
    return cu.SampledPSF(cu.GaussianPSF(sigma=0.6).kernel(offset[:, None], offset), oversampling=4)


def light_of(psf, theta):
    """Image of ``(y, x, flux)`` of every target, and of what is left: a constant background."""
    n = 3 * (len(theta) // 3)
    y, x, flux = theta[:n].reshape(-1, 3).T
    return np.einsum("k,kij->ij", flux, psf.response(y, x, SHAPE)) + theta[n:].sum()


def hessian(function, theta):
    """Central second differences."""
    d = len(theta)
    step = np.diag(1e-4 * np.maximum(1.0, 0.1 * np.abs(theta)))
    return np.array(
        [
            [
                sum(
                    s * t * function(theta + s * step[a] + t * step[b])
                    for s in (1, -1)
                    for t in (1, -1)
                )
                / (4 * step[a, a] * step[b, b])
                for b in range(d)
            ]
            for a in range(d)
        ]
    )


# The information


@pytest.mark.parametrize(
    "psf",
    [
        PSF,
        cu.GaussianPSF(sigma_x=0.4, sigma_y=0.8),
        cu.AiryPSF(radius=1.1),
        sampled_psf(),
    ],
    ids=lambda psf: type(psf).__name__,
)
@pytest.mark.parametrize("background", [False, True])
def test_covariance_inverts_the_hessian_of_the_expected_log_likelihood(psf, background):
    sensor = cu.Sensor(read_noise=2.0, bad_pixels=BAD)
    bound = cramer_rao(psf, sensor, **PAIR, shape=SHAPE, background=background)
    theta = np.append(np.transpose(list(PAIR.values())).ravel(), [0.0] * background)
    true = light_of(psf, theta)

    def misfit(trial):
        return 0.5 * ((light_of(psf, trial) - true)[~BAD] ** 2).sum() / 2.0**2

    expected = np.linalg.inv(hessian(misfit, theta))
    np.testing.assert_allclose(bound.covariance, expected, rtol=1e-3, atol=1e-6)
    errors = np.column_stack([bound.y, bound.x, bound.flux]).ravel()
    np.testing.assert_allclose(errors**2, np.diag(bound.covariance)[:6], rtol=1e-12)


def test_clipped_pixels_tell_the_variance_of_their_score():
    """Recorded by the sensor itself, the score written down from the censored likelihood."""
    sensor = cu.Sensor(read_noise=3.0, offset=5.0, saturation=40.0)
    light = np.array([[-7.0, -3.0, 0.0, 15.0, 31.0, 34.0, 38.0, 44.0]])
    value = sensor.expose(np.broadcast_to(light, (200_000, *light.shape)), rng=0)
    normal = stats.norm(light + 5.0, 3.0)
    score = np.select(
        [value == 0.0, value == 40.0],
        [-normal.pdf(0.0) / normal.cdf(0.0), normal.pdf(40.0) / normal.sf(40.0)],
        (value - 5.0 - light) / 3.0**2,
    )
    np.testing.assert_allclose(
        pixel_information(sensor, light), (score**2).mean(0), rtol=0.01, atol=5e-4
    )


@pytest.mark.parametrize("saturation", [None, 255.0, 254.7])
@pytest.mark.parametrize("read_noise", [0.7, 1.0, 3.0])
def test_rounded_and_clipped_pixels_tell_what_their_levels_do(read_noise, saturation):
    """The exact information of a discrete variable: ``sum_n (dP_n/dmu)^2 / P_n``."""
    sensor = cu.Sensor(read_noise=read_noise, rounding=True, saturation=saturation)
    light = np.array([[100.0, 100.3, 0.2, 1.0, 253.0, 254.4, 255.1, 256.0]])
    level = np.arange(-30.0, 300.0) if saturation is None else np.arange(np.ceil(saturation))
    ends = np.concatenate([[-np.inf], level + 0.5, [np.inf]])[:, None, None]
    probability = np.diff(stats.norm.cdf(ends, light, read_noise), axis=0)
    change = -np.diff(stats.norm.pdf(ends, light, read_noise), axis=0)
    likely = probability > 1e-12
    exact = np.where(likely, change**2 / np.where(likely, probability, 1.0), 0.0).sum(axis=0)
    told = pixel_information(sensor, light)
    np.testing.assert_allclose(told, exact, atol=0.05 / read_noise**2)


@pytest.mark.parametrize("read_noise", [0.1, 1.0, 4.0])
def test_shot_noise_counts_by_its_variance(read_noise):
    """Never above the exact information of a Poisson variable with read noise, and close to it."""
    gain, light = 2.0, np.array([[0.5, 1.0, 3.0, 20.0]])
    told = pixel_information(cu.Sensor(read_noise=read_noise, gain=gain), light)
    np.testing.assert_allclose(told, 1.0 / (read_noise**2 + light / gain))
    electrons = np.arange(120)
    value = np.linspace(-8.0 * read_noise, 60.0 + 8.0 * read_noise, 10_001)
    read = stats.norm.pdf(value[:, None], electrons / gain, read_noise)
    mean = gain * light[0]
    chance = stats.poisson.pmf(electrons[:, None], mean)
    change = gain * (stats.poisson.pmf(electrons[:, None] - 1, mean) - chance)
    density, slope = read @ chance, read @ change
    likely = density > 1e-200
    fisher = np.where(likely, slope**2 / np.where(likely, density, 1.0), 0.0)
    exact = fisher.sum(axis=0) * (value[1] - value[0])
    assert (told[0] <= exact * (1 + 1e-6)).all()
    assert (told[0] >= 0.93 * exact).all()


def test_saturated_images_say_where_targets_are_not():
    """A clipped pixel tells less than a recorded one, and more than a bad one."""
    errors = [
        cramer_rao(PSF, cu.Sensor(read_noise=1.0, **sensor), **PAIR, shape=SHAPE).covariance[0, 0]
        for sensor in ({}, {"saturation": 162.0, "offset": 0.0}, {"bad_pixels": BAD})
    ]
    recorded, clipped, bad = errors
    assert recorded < clipped < bad


def test_far_beyond_its_range_a_pixel_tells_nothing():
    sensor = cu.Sensor(read_noise=1.0, saturation=255.0)
    assert pixel_information(sensor, [[1e9, -1e9]]).tolist() == [[0.0, 0.0]]
    assert pixel_information(cu.Sensor(gain=2.0), [[-1.0, 0.0, 8.0]]).tolist() == [[0.0, 0.0, 0.25]]


# The prior, and what is not determined


def test_a_flux_range_is_a_normal_prior_of_the_same_variance():
    free = cramer_rao(PSF, NOISY, **PAIR, shape=SHAPE)
    told = cramer_rao(PSF, NOISY, **PAIR, shape=SHAPE, flux_range=(220, 250))
    gained = np.linalg.inv(told.covariance) - np.linalg.inv(free.covariance)
    expected = np.diag([0.0, 0.0, 12 / 30**2] * 2)
    np.testing.assert_allclose(gained, expected, atol=1e-6 * np.abs(gained).max() + 1e-6)


def test_known_fluxes_have_no_error():
    known = cramer_rao(PSF, NOISY, **PAIR, shape=SHAPE, flux_range=(230, 230))
    nearly = cramer_rao(PSF, NOISY, **PAIR, shape=SHAPE, flux_range=(230, 230.001))
    assert known.flux.tolist() == [0.0, 0.0]
    np.testing.assert_allclose([known.y, known.x], [nearly.y, nearly.x], rtol=1e-6)


def test_targets_at_one_place_have_infinite_errors_and_others_do_not():
    y, x = [1.5, 1.5, 4.5], [1.5, 1.5, 6.0]
    psf = cu.GaussianPSF(sigma=0.3)
    bound = cramer_rao(psf, NOISY, y, x, 200.0, SHAPE)
    lone = cramer_rao(psf, NOISY, 4.5, 6.0, 200.0, SHAPE)
    for name in ("y", "x", "flux"):
        assert np.isinf(getattr(bound, name)[:2]).all()
        assert getattr(bound, name)[2] == pytest.approx(getattr(lone, name)[0], rel=1e-4)
    assert np.isnan(bound.covariance[0, 1:]).all()
    told = cramer_rao(psf, NOISY, y, x, 200.0, SHAPE, flux_range=(190, 210))
    assert np.isinf(told.x[:2]).all()
    assert np.isfinite(told.flux).all()


def test_a_target_that_no_pixel_sees_has_infinite_errors():
    bound = cramer_rao(sampled_psf(), NOISY, [3.0, 40.0], [3.0, 40.0], 200.0, SHAPE)
    assert np.isinf([bound.y[1], bound.x[1], bound.flux[1]]).all()
    assert np.isfinite([bound.y[0], bound.x[0], bound.flux[0]]).all()


def test_an_image_without_targets():
    bound = cramer_rao(PSF, NOISY, [], [], [], SHAPE, background=True)
    assert bound.y.shape == bound.x.shape == bound.flux.shape == (0,)
    assert bound.covariance[0, 0] == pytest.approx(1 / np.prod(SHAPE))


# What estimators reach


@pytest.mark.parametrize(
    "sensor",
    [cu.Sensor(read_noise=2.0), cu.Sensor(read_noise=1.0, gain=2.0), cu.Sensor(rounding=True)],
    ids=["read noise", "shot noise", "rounding"],
)
def test_least_squares_reaches_the_bound(sensor):
    """Single targets all over a pixel; the pulls have unit variance."""
    rng = np.random.default_rng(5)
    y, x = rng.uniform(2.5, 3.5, (2, 200))
    truth = np.column_stack([y, x, np.full(200, 235.0)])
    pulls = []
    for theta in truth:
        light = light_of(PSF, theta)
        weight = np.sqrt(pixel_information(sensor, light))
        image = sensor.expose(light, rng)

        def residual(trial, image=image, weight=weight):
            return ((light_of(PSF, trial) - image) * weight).ravel()

        fit = optimize.least_squares(residual, theta, x_scale=[0.01, 0.01, 1.0])
        bound = cramer_rao(PSF, sensor, *theta, shape=SHAPE)
        pulls.append((fit.x - theta) / [bound.y[0], bound.x[0], bound.flux[0]])
    # 600 pulls: their mean square is 1 within 0.06 (1 s.d.).
    assert np.mean(np.square(pulls)) == pytest.approx(1.0, abs=0.18)


@pytest.mark.parametrize(
    ("count", "flux_known", "flux_unknown"),
    [
        (1, 0.002, 0.002),
        (2, 0.006, 0.010),
        (3, 0.009, 0.022),
        (4, 0.017, 0.059),
        (5, 0.037, 0.120),
    ],
)
def test_csist_100k_allows_what_is_known_of_it(count, flux_known, flux_unknown):
    """Medians of the r.m.s. of both axes, against an independent computation on other scenes.

    With the fluxes known nothing is clipped, with the fluxes unknown clipped pixels are dropped.
    How those figures were averaged is not on record: they are met within a fifth.
    """
    setup = cu.presets.csist_100k()
    scene = replace(setup.scene, count=(count, count))
    made = cu.simulate(setup.psf, setup.sensor, scene, shape=setup.shape, n=200, rng=0, margin=4)
    rounded = cu.Sensor(rounding=True)
    known, unknown = [], []
    for frame, rows in made.truth.groupby("frame"):
        scene = (rows["y"], rows["x"], rows["flux"], setup.shape)
        dropped = cu.Sensor(rounding=True, bad_pixels=made.light[frame] > 255)
        known.append(cramer_rao(setup.psf, rounded, *scene, flux_range=(220, 250)))
        unknown.append(cramer_rao(setup.psf, dropped, *scene))
    for bounds, figure in ((known, flux_known), (unknown, flux_unknown)):
        errors = np.concatenate([np.hypot(b.y, b.x) / np.sqrt(2) for b in bounds])
        assert np.median(errors) == pytest.approx(figure, rel=0.2, abs=0.0005)


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"psf": 0.5}, TypeError, "psf must be of type PSF"),
        ({"sensor": None}, TypeError, "sensor must be of type Sensor"),
        ({"sensor": cu.Sensor()}, ValueError, "sensor must have noise"),
        (
            {"sensor": cu.Sensor(rounding=True, bad_pixels=BAD.T)},
            ValueError,
            "bad_pixels has shape",
        ),
        ({"y": [1.0, np.nan]}, ValueError, "y must be finite"),
        ({"x": ["a", "b"]}, TypeError, "x must hold real numbers"),
        ({"x": [1.0, 2.0, 3.0]}, ValueError, r"y, x and flux must .* got \[\(2,\), \(3,\)"),
        ({"y": [[1.0, 2.0]]}, ValueError, "y, x and flux must be numbers or all of shape"),
        ({"flux": 0.0}, ValueError, "flux must be positive, got 0"),
        ({"shape": (7,)}, ValueError, "shape must be a pair"),
        ({"flux_range": (250, 220)}, ValueError, "flux_range must be ordered"),
        ({"flux_range": 3}, TypeError, "flux_range must be a pair"),
        ({"background": 1.0}, TypeError, "background must be True or False"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"psf": PSF, "sensor": NOISY, **PAIR, "shape": SHAPE, **change}
    with pytest.raises(error, match=message):
        cramer_rao(**arguments)
