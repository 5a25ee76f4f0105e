"""The detector: what it does to the light, and what it says of its own noise."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

import csunmix as cu
from csunmix.background import border_level, noise_level

IMAGE = np.array([[10.0, 40.0], [0.0, 250.0]])
BAD = np.array([[False, True], [False, False]])


@pytest.mark.parametrize(
    ("sensor", "expected"),
    [
        (cu.Sensor(), np.zeros((2, 2))),
        (cu.Sensor(read_noise=3), np.full((2, 2), 9.0)),
        (cu.Sensor(rounding=True), np.full((2, 2), 1 / 12)),
        (cu.Sensor(gain=4), IMAGE / 4),
        (cu.Sensor(gain=4, offset=20), np.array([[0.0, 5.0], [0.0, 57.5]])),
        (cu.Sensor(read_noise=2, gain=0.5, rounding=True), 4 + IMAGE / 0.5 + 1 / 12),
    ],
)
def test_variance(sensor: cu.Sensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(sensor.variance(IMAGE), expected, rtol=1e-14)
    np.testing.assert_allclose(sensor.variance(IMAGE.astype(np.uint8)), expected, rtol=1e-14)
    batch = sensor.variance(np.stack([IMAGE, IMAGE[::-1]]))
    np.testing.assert_array_equal(batch[1], sensor.variance(IMAGE[::-1]))
    dark = np.full((1, 1), sensor.offset)
    assert sensor.noise == pytest.approx(np.sqrt(sensor.variance(dark)[0, 0]))


def test_censored_and_valid_pixels() -> None:
    sensor = cu.Sensor(saturation=40, bad_pixels=BAD)
    np.testing.assert_array_equal(sensor.censored(IMAGE), [[False, False], [False, True]])
    np.testing.assert_array_equal(sensor.valid(IMAGE), ~BAD)
    stack = np.stack([IMAGE, IMAGE])
    assert sensor.censored(stack).shape == sensor.valid(stack).shape == stack.shape
    sensor.valid(IMAGE)[:] = False  # an answer belongs to the caller
    assert sensor.valid(IMAGE).sum() == 3

    plain = cu.Sensor()
    assert not plain.censored(IMAGE).any()
    assert plain.valid(IMAGE).all()
    np.testing.assert_array_equal(cu.Sensor(saturation=40).censored(IMAGE), IMAGE >= 40)


def test_bad_pixels_are_put_to_the_median_of_the_good_ones() -> None:
    stack = np.stack([IMAGE, [[1.0, np.nan], [np.nan, 5.0]], [[7.0, np.inf], [2.0, 1.0]]])
    patched = cu.Sensor(bad_pixels=BAD).patched(stack)
    np.testing.assert_array_equal(patched[0], [[10.0, 10.0], [0.0, 250.0]])
    np.testing.assert_array_equal(np.isnan(patched[1]), [[False, True], [True, False]])
    np.testing.assert_array_equal(patched[2], [[7.0, 2.0], [2.0, 1.0]])
    assert np.isinf(stack[2, 0, 1])  # the caller's are left alone
    assert not cu.Sensor(bad_pixels=np.ones((2, 2), bool)).patched(stack).any()
    assert cu.Sensor().patched(stack) is stack
    with pytest.raises(ValueError, match="bad_pixels"):
        cu.Sensor(bad_pixels=BAD).patched(np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"read_noise": 1.0}, -np.inf),
        ({"offset": -3.0}, -np.inf),
        ({}, -np.inf),  # noise that is not declared
        ({"gain": 2.0}, 0.0),
        ({"rounding": True}, -0.5),
    ],
)
def test_a_clipped_zero_has_a_lower_bound_where_no_noise_takes_it_below(
    given: dict[str, Any], expected: float
) -> None:
    low, _ = cu.Sensor(saturation=255.0, **given).interval(np.zeros((1, 1)))
    assert low.item() == expected


def test_perfect_detector_records_the_light() -> None:
    recorded = cu.Sensor().expose(IMAGE, 0)
    np.testing.assert_array_equal(recorded, IMAGE)
    np.testing.assert_array_equal(cu.Sensor(offset=7.5).expose(IMAGE, 0), IMAGE + 7.5)


def test_rounding_saturation_and_bad_pixels() -> None:
    light = np.array([[-3.7, 1.4], [1.6, 301.2]])
    np.testing.assert_array_equal(cu.Sensor(rounding=True).expose(light, 0), [[-4, 1], [2, 301]])
    clipped = cu.Sensor(saturation=255, bad_pixels=BAD).expose(light, 0)
    np.testing.assert_array_equal(clipped, [[0, 0], [1.6, 255]])
    eight_bit = cu.Sensor(rounding=True, saturation=255).expose(light, 0)
    np.testing.assert_array_equal(eight_bit, [[0, 1], [2, 255]])
    np.testing.assert_array_equal(cu.Sensor(saturation=255).censored(eight_bit), light > 255)


@pytest.mark.parametrize(
    "sensor",
    [
        cu.Sensor(read_noise=2.5),
        cu.Sensor(gain=1.7),
        cu.Sensor(read_noise=1.5, gain=0.8, offset=100, rounding=True),
        cu.Sensor(rounding=True, read_noise=0.7),
    ],
)
def test_noise_has_the_mean_and_variance_that_the_sensor_states(sensor: cu.Sensor) -> None:
    n, light = 40_000, np.array([[2.0, 5.0, 60.0, 200.0]])
    draws = sensor.expose(np.broadcast_to(light, (n, 1, 4)), np.random.default_rng(11))
    variance = sensor.variance(light + sensor.offset)[0]
    mean_z = (draws.mean(axis=0)[0] - light[0] - sensor.offset) / np.sqrt(variance / n)
    assert (np.abs(mean_z) < 4).all()
    # (n - 1) s^2 / variance is chi-square with n - 1 degrees for Gaussian noise, about so here
    ratio = draws.var(axis=0, ddof=1)[0] / variance
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], n - 1) / (n - 1)
    assert (ratio > low).all()
    assert (ratio < high).all()


def test_shot_noise_counts_electrons() -> None:
    gain = 0.25
    draws = cu.Sensor(gain=gain).expose(np.full((1, 1000), 8.0), 3)
    np.testing.assert_allclose(draws * gain, np.rint(draws * gain), atol=1e-12)
    assert np.unique(draws).size > 3


def test_seed_or_generator() -> None:
    sensor = cu.Sensor(read_noise=1)
    first = sensor.expose(IMAGE, 5)
    np.testing.assert_array_equal(first, sensor.expose(IMAGE, np.random.default_rng(5)))
    assert (first != sensor.expose(IMAGE, 6)).all()


def test_inputs_are_left_alone() -> None:
    light, bad = IMAGE.copy(), BAD.copy()
    sensor = cu.Sensor(read_noise=1, gain=2, rounding=True, saturation=100, bad_pixels=bad)
    for array in (light, bad):
        array.flags.writeable = False
    sensor.expose(light, 0)
    sensor.variance(light)
    sensor.censored(light)
    sensor.valid(light)
    np.testing.assert_array_equal(light, IMAGE)
    bad.flags.writeable = True
    bad[:] = True  # the sensor has its own copy
    np.testing.assert_array_equal(sensor.valid(IMAGE), ~BAD)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"read_noise": -1}, ValueError, "read_noise must be at least 0, got -1"),
        ({"read_noise": np.nan}, ValueError, "read_noise must be finite"),
        ({"read_noise": "1"}, TypeError, "read_noise must be a real number, got '1'"),
        ({"gain": 0}, ValueError, "gain must be above 0"),
        ({"gain": -2.0}, ValueError, "gain must be above 0"),
        ({"offset": np.inf}, ValueError, "offset must be finite"),
        ({"rounding": 1}, TypeError, "rounding must be True or False, got 1"),
        ({"saturation": 0}, ValueError, "saturation must be above 0"),
        ({"saturation": 99.0, "offset": 100}, ValueError, "offset must be below the saturation 99"),
        ({"gain": 1e-300}, ValueError, "gain must be at least 1e-40"),
        ({"gain": 1e300}, ValueError, "gain must be at most"),
        ({"read_noise": 1e200}, ValueError, "read_noise must be at most"),
        ({"saturation": 100, "offset": 100}, ValueError, "offset must be below the saturation 100"),
        ({"saturation": True}, TypeError, "saturation must be a real number"),
        ({"bad_pixels": np.zeros((2, 2))}, TypeError, "bad_pixels must be a 2-D array of bool"),
        ({"bad_pixels": [True, False]}, TypeError, "bad_pixels must be a 2-D array of bool"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        cu.Sensor(**options)


def test_images_that_do_not_fit() -> None:
    sensor = cu.Sensor(bad_pixels=BAD, saturation=255)
    for method in (sensor.censored, sensor.valid, lambda images: sensor.expose(images, 0)):
        with pytest.raises(ValueError, match=r"bad_pixels has shape \(2, 2\).*\(3, 2\)"):
            method(np.zeros((5, 3, 2)))
    with pytest.raises(ValueError, match=r"^images must be finite"):
        sensor.variance([[1.0, np.nan]])
    with pytest.raises(ValueError, match=r"^light must have at least two axes"):
        sensor.expose([1.0, 2.0], 0)


# Background and noise of images without a known sensor


@pytest.mark.parametrize("shape", [(11, 11), (10, 13), (32, 33)])
def test_noise_level_of_pure_noise(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(4).normal(50.0, 3.0, (1000, *shape))
    assert noise_level(images).mean() == pytest.approx(3.0, rel=0.03)


def test_noise_level_sees_past_a_target_and_knows_of_rounding() -> None:
    setup = cu.presets.csist_100k()
    made = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=(11, 11), n=50, rng=0)
    np.testing.assert_allclose(noise_level(made.images), np.sqrt(1 / 12))
    np.testing.assert_allclose(noise_level(made.light), 0.0, atol=1e-2)
    with pytest.raises(ValueError, match="at least 2 x 2 pixels"):
        noise_level(np.ones((1, 9)))


def test_border_level() -> None:
    images = np.full((2, 6, 7), 1e6)
    images[0, [0, -1], :] = images[0, :, [0, -1]] = 12.0
    images[1, [0, -1], :] = images[1, :, [0, -1]] = -3.0
    images[1, 0, 2] = 1e9
    np.testing.assert_array_equal(border_level(images), [12.0, -3.0])
    assert border_level(images[0]) == 12.0
