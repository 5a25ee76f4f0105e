"""The grid-free unmixers as a user has them: any image, any optics, any prior, one table."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import csunmix as cu
from csunmix.targets import COLUMNS, Flag

PRESET = cu.presets.csist_100k()
SHAPE = PRESET.shape
LOOSE = cu.Prior(count=(1, 2), flux=(150.0, 300.0))

BOTH = pytest.mark.parametrize("method", ["continuous", "posterior"])


def unmixer(method: str, *parts: Any, **given: Any) -> Any:
    """An unmixer of the preset's parts where none are given."""
    parts = parts + (PRESET.psf, PRESET.sensor, PRESET.prior)[len(parts) :]
    if method == "continuous":
        return cu.ContinuousUnmixer(*parts, **given)
    return cu.PosteriorUnmixer(*parts, **given)


@functools.cache
def simulated(n: int = 40, seed: int = 17) -> Any:
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=SHAPE, n=n, rng=seed)
    made.images.flags.writeable = False
    return made


def light_of(
    *targets: tuple[float, float, float], psf: Any = PRESET.psf, shape: tuple[int, int] = SHAPE
) -> Any:
    y, x, flux = np.transpose(targets)
    return np.einsum("k,kij->ij", flux, psf.response(y, x, shape))


ONE = (5.2, 4.7, 231.0)
PAIR = ((5.0, 4.6, 231.0), (5.3, 5.4, 242.0))


def assert_found(table: pd.DataFrame, *targets: tuple[float, float, float], within: float) -> None:
    """As many targets as there are, each within so many px of its own."""
    assert len(table) == len(targets)
    away = table[["y", "x"]].to_numpy()[:, None] - np.array(targets)[:, :2]
    assert np.hypot(away[..., 0], away[..., 1]).min(axis=0).max() < within


# --- the answer ---------------------------------------------------------------------------------


@BOTH
def test_form_of_the_table(method: str) -> None:
    images = simulated().images[:6]
    table = unmixer(method)(images)
    cu.targets.check_table(table)
    assert tuple(table.columns) == COLUMNS
    assert table["frame"].is_monotonic_increasing
    assert table.attrs["n_frames"] == 6
    assert table.attrs["image_shape"] == SHAPE
    assert table.attrs["counts"] == (1, 2, 3, 4, 5)
    probability = np.array(table.attrs["count_probability"])
    assert probability.shape == (6, 5)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0)
    counts = table.groupby("frame").size().to_numpy()
    np.testing.assert_array_equal(probability.argmax(axis=1) + 1, counts)
    errors = table[["y_err", "x_err", "flux_err"]].to_numpy()
    assert (errors > 0).all()
    assert np.isfinite(errors).all()
    assert table["score"].between(0.0, 1.0).all()


@BOTH
def test_it_is_far_above_the_ceiling_of_the_grid(method: str) -> None:
    """49 CSO-mAP is what a grid of a third of a pixel allows, whatever the method."""
    made = simulated()
    table = unmixer(method)(made.images)
    assert cu.metrics.count_accuracy(table, made.truth) >= 0.95
    assert cu.metrics.cso_map(table, made.truth).mean > 0.65
    assert cu.metrics.flux_error(table, made.truth) < 15.0


@BOTH
def test_one_image_and_a_stack_of_stacks_are_the_same_call(method: str) -> None:
    images = simulated().images[:4]
    unmix = unmixer(method)
    stack = unmix(images)
    nested = unmix(images.reshape(2, 2, *SHAPE))
    pd.testing.assert_frame_equal(stack, nested)
    single = unmix(images[0])
    pd.testing.assert_frame_equal(single, stack[stack["frame"] == 0], check_flags=False)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.uint16, ">f8"])
def test_kinds_of_numbers(method: str, dtype: Any) -> None:
    images = simulated().images[:3]
    unmix = unmixer(method)
    plain, other = unmix(images), unmix(images.astype(dtype))
    np.testing.assert_array_equal(plain.to_numpy(), other.to_numpy())


@BOTH
def test_the_unit_of_the_images_does_not_matter(method: str) -> None:
    """Grey levels, or shares of full scale."""
    image = cu.Sensor(read_noise=2.0).expose(light_of(*PAIR), rng=0)
    found = []
    for unit in (1.0, 1e-5, 1e5):
        prior = replace(LOOSE, flux=(150.0 * unit, 300.0 * unit))
        table = unmixer(method, PRESET.psf, cu.Sensor(read_noise=2.0 * unit), prior)(image * unit)
        assert not (table["flags"] & Flag.NOT_CONVERGED).any()
        assert_found(table, *PAIR, within=0.08)
        found.append(table["flux"].sum() / unit)
    assert found == pytest.approx([found[0]] * 3, rel=0.01)


# --- images that are not as they should be ------------------------------------------------------


@BOTH
def test_one_bad_image_does_not_stop_a_batch(method: str, caplog: pytest.LogCaptureFixture) -> None:
    images = np.array(simulated().images[:4])
    images[1, 3, 3] = np.nan
    images[2] = 0.0
    with caplog.at_level(logging.WARNING, logger="csunmix"):
        table = unmixer(method)(images)
    assert set(table["frame"]) == {0, 3}
    flags = table.attrs["frame_flags"]
    assert flags[1] == Flag.NOT_FINITE | Flag.NO_TARGET
    assert flags[2] == Flag.NO_TARGET
    assert np.sum(table.attrs["count_probability"], axis=1) == pytest.approx([1, 0, 0, 1])
    assert "1 image(s) not finite, first frame 1" in caplog.text
    alone = unmixer(method)(images[3])
    np.testing.assert_array_equal(
        alone[["y", "x"]].to_numpy(), table.loc[table["frame"] == 3, ["y", "x"]].to_numpy()
    )


@BOTH
@pytest.mark.parametrize("value", [1e39, 1e154, 1e200, -1e300])
def test_an_absurd_pixel_does_not_stop_a_batch(method: str, value: float) -> None:
    images = np.array(simulated().images[:3], dtype=np.float64)
    images[1, 3, 3] = value
    table = unmixer(method, PRESET.psf, cu.Sensor(read_noise=1.0), cu.Prior())(images)
    assert {0, 2} <= set(table["frame"])
    absurd = table.attrs["frame_flags"][1]
    assert absurd & (Flag.NOT_FINITE | Flag.MISFIT)
    assert bool(absurd & Flag.NOT_FINITE) == (abs(value) > 1e40)


@BOTH
def test_dark_images_hold_no_targets(method: str) -> None:
    table = unmixer(method)(np.zeros((2, *SHAPE)))
    assert len(table) == 0
    assert tuple(table.columns) == COLUMNS
    assert table.attrs["n_frames"] == 2
    assert table.attrs["frame_flags"] == {0: Flag.NO_TARGET, 1: Flag.NO_TARGET}


@BOTH
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.full((2, *SHAPE), np.nan), ValueError, "images must be finite"),
        (np.zeros((0, *SHAPE)), ValueError, "images"),
        (np.zeros(11), ValueError, "images"),
        (np.zeros(SHAPE, complex), TypeError, "images must hold real numbers"),
        ("image", TypeError, "images"),
        (None, TypeError, "images"),
    ],
    ids=["NaN", "empty", "1-D", "complex", "string", "none"],
)
def test_bad_images_are_named(method: str, images: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        unmixer(method)(images)


@BOTH
@pytest.mark.parametrize(
    ("parts", "given", "error", "message"),
    [
        ((0.5,), {}, TypeError, "psf must be of type PSF"),
        ((PRESET.psf, None), {}, TypeError, "sensor must be of type Sensor"),
        ((PRESET.psf, PRESET.sensor, {}), {}, TypeError, "prior must be of type Prior"),
        ((), {"background": "median"}, ValueError, "background must be a number, 'border' or"),
        ((), {"background": np.nan}, ValueError, "background"),
        ((), {"seed": -1}, ValueError, "seed"),
        ((), {"seed": 1.5}, TypeError, "seed"),
        ((), {"n_jobs": 0}, ValueError, "n_jobs"),
    ],
)
def test_bad_settings_are_named(
    method: str, parts: Any, given: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        unmixer(method, *parts, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"radius": 0.0}, "radius"),
        ({"n_chains": 1}, "n_chains"),
        ({"n_effective": 0}, "n_effective"),
        ({"n_steps": 9}, "n_steps"),
        ({"sampler": "nuts"}, "sampler"),
    ],
)
def test_bad_settings_of_the_sampler_are_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unmixer("posterior", **given)


@BOTH
@pytest.mark.parametrize("held", [0.0, 255.0, 1e9, np.nan, -np.inf], ids=str)
def test_bad_pixels_may_hold_anything(method: str, held: float) -> None:
    bad = np.zeros(SHAPE, dtype=bool)
    bad[5, 5] = bad[0, 0] = True
    sensor = replace(PRESET.sensor, bad_pixels=bad)
    image = sensor.expose(light_of(ONE), rng=0)
    image[bad] = held
    table = unmixer(method, PRESET.psf, sensor)(image)
    assert_found(table, ONE, within=0.05)
    assert (table["flags"] & Flag.BAD_PIXELS).all()


@BOTH
def test_saturated_images_are_flagged_and_unmixed(method: str) -> None:
    sensor = cu.Sensor(read_noise=1.0, rounding=True, saturation=60.0)
    image = sensor.expose(light_of(*PAIR), rng=0)
    assert (image == 60.0).sum() >= 2
    table = unmixer(method, PRESET.psf, sensor, LOOSE)(image)
    assert_found(table, *PAIR, within=0.15)
    assert (table["flags"] & Flag.SATURATED).all()
    assert not (unmixer(method)(simulated().images[0])["flags"] & Flag.BORDER).any()


@BOTH
def test_what_the_prior_says_rather_than_the_image_is_flagged(method: str) -> None:
    """A flux in the middle of its range, one at its end, and many targets in little light."""
    sensor = cu.Sensor(read_noise=2.0)
    unmix = unmixer(method, PRESET.psf, sensor, replace(PRESET.prior, count=(1, 1)))
    images = [light_of((5.1, 4.8, flux)) for flux in (235.0, 250.0)]
    told = unmix(sensor.expose(images, rng=3))["flags"].to_numpy()
    assert not told[0] & (int(Flag.AT_BOUND) | int(Flag.FLAT))
    assert told[1] & int(Flag.AT_BOUND)
    four = [(y, x, 235.0) for y in (4.7, 5.3) for x in (4.6, 5.2)]
    crowd = unmixer(method, PRESET.psf, sensor, replace(PRESET.prior, count=(4, 4)))
    assert (crowd(light_of(*four))["flags"].to_numpy() & int(Flag.FLAT)).all()


@BOTH
@pytest.mark.parametrize(("y", "flagged"), [(5.0, False), (5.5, True)], ids=["middle", "wall"])
def test_walls_of_a_cell_that_is_likely_are_flagged(method: str, y: float, flagged: bool) -> None:
    prior = replace(PRESET.prior, count=(2, 2), flux=(100.0, 400.0), cell=0.8)
    sensor = cu.Sensor(read_noise=0.3)
    light = light_of((y, 4.7, 235.0), (5.0, 5.3, 235.0))
    table = unmixer(method, PRESET.psf, sensor, prior)(sensor.expose(light, 4))
    at_bound = (table.sort_values("x")["flags"].to_numpy() & int(Flag.AT_BOUND)) != 0
    assert at_bound.tolist() == [flagged, False]


@BOTH
@pytest.mark.parametrize(
    ("apart", "extent", "held"),
    [(0.5, None, True), (0.9, None, False), (0.9, 0.91, True)],
    ids=["closest", "free", "widest"],
)
def test_distances_that_the_prior_bounds_are_flagged(
    method: str, apart: float, extent: float | None, held: bool
) -> None:
    known = {"extent": extent, "cell": False, "min_separation": 0.494}
    prior = replace(PRESET.prior, count=(2, 2), **known)
    sensor = cu.Sensor(read_noise=2.0)
    light = light_of((5.0, 5.0 - 0.5 * apart, 235.0), (5.0, 5.0 + 0.5 * apart, 235.0))
    table = unmixer(method, PRESET.psf, sensor, prior)(sensor.expose(light, rng=1))
    assert len(table) == 2
    assert ((table["flags"].to_numpy() & int(Flag.AT_BOUND)) != 0).tolist() == [held, held]


@BOTH
@pytest.mark.parametrize("place", [(0.1, 5.0), (-0.3, 10.2), (5.0, -0.4), (10.4, 10.4)], ids=str)
def test_targets_at_the_border(method: str, place: tuple[float, float]) -> None:
    target = (*place, 240.0)
    table = unmixer(method)(PRESET.sensor.expose(light_of(target), rng=0))
    assert_found(table, target, within=0.05)
    assert (table["flags"] & Flag.BORDER).all()


# --- what is known ------------------------------------------------------------------------------

NOISY = cu.Sensor(read_noise=1.5, rounding=True)


@BOTH
@pytest.mark.parametrize(
    "prior",
    [
        cu.Prior(),
        cu.Prior(count=(1, 3)),
        cu.Prior(count=(0, 3), flux=(150.0, 300.0)),
        cu.Prior(flux=(200.0, 280.0)),
        cu.Prior(flux=(240.0, 240.0), count=(1, 3)),
        cu.Prior(count=(2, 2)),
        cu.Prior(count=(1, 3), flux=(150.0, 300.0), min_separation=0.5, extent=1.2),
        cu.Prior(count=(1, 3), flux=(150.0, 300.0), cell=True),
        cu.Prior(count=(1, 2), flux=(150.0, 300.0), extent=30.0),
    ],
    ids=[
        "nothing",
        "count",
        "count from 0",
        "flux",
        "one flux",
        "one count",
        "extent",
        "cell",
        "extent beyond the image",
    ],
)
def test_any_part_of_the_prior_may_be_absent(method: str, prior: cu.Prior) -> None:
    pair = ((5.0, 4.6, 240.0), (5.3, 5.4, 240.0))
    image = NOISY.expose(light_of(*pair), rng=1)
    table = unmixer(method, PRESET.psf, NOISY, prior)(image)
    assert_found(table, *pair, within=0.1)
    probability = np.array(table.attrs["count_probability"][0])
    assert table.attrs["counts"][int(probability.argmax())] == 2


@BOTH
@pytest.mark.parametrize("count", [(2, 3), (3, 3)], ids=str)
def test_a_prior_without_room_is_no_crash(method: str, count: tuple[int, int]) -> None:
    """Either an error that names the prior, or an image without targets, and never garbage."""
    prior = cu.Prior(count=count, flux=(200.0, 260.0), min_separation=1.0, extent=0.3)
    unmix = unmixer(method, PRESET.psf, NOISY, prior)
    try:
        table = unmix(NOISY.expose(light_of(ONE), rng=0))
    except ValueError as error:
        assert "prior" in str(error) or "min_separation" in str(error)  # noqa: PT017
    else:
        assert len(table) == 0
        assert table.attrs["frame_flags"][0] & Flag.NO_TARGET


# --- other optics, detectors and images ---------------------------------------------------------


def sampled_psf() -> cu.SampledPSF:
    d = np.arange(-24, 25) / 4
    y, x = d[:, None], d
    return cu.SampledPSF(
        np.exp(-0.3 * (y + 0.6 * x) ** 2 - 0.5 * x**2)
        + 0.2 * np.exp(-((y - 1) ** 2) - (x - 2) ** 2),
        oversampling=4,
    )


@BOTH
@pytest.mark.parametrize(
    ("psf", "shape"),
    [
        (cu.GaussianPSF(sigma=1.0), (15, 15)),
        (cu.GaussianPSF(sigma_x=0.5, sigma_y=1.2), (9, 15)),
        (cu.AiryPSF(radius=2.0), (9, 9)),
        (sampled_psf(), (15, 13)),
    ],
    ids=["wide", "anisotropic", "Airy", "sampled"],
)
def test_any_optics_and_any_shape(method: str, psf: cu.PSF, shape: tuple[int, int]) -> None:
    pair = ((4.0, 4.2, 3000.0), (5.1, 5.9, 2000.0))
    sensor = cu.Sensor(read_noise=2.0)
    image = sensor.expose(light_of(*pair, psf=psf, shape=shape), rng=0)
    prior = cu.Prior(count=(1, 3), flux=(500.0, 5000.0), min_separation=0.5)
    table = unmixer(method, psf, sensor, prior)(image)
    assert_found(table, *pair, within=0.05)
    assert sorted(table["flux"]) == pytest.approx([2000.0, 3000.0], rel=0.05)


@BOTH
@pytest.mark.parametrize(
    ("sensor", "background", "level"),
    [
        (cu.Sensor(read_noise=1.5, rounding=True), 40.0, 40.0),
        (cu.Sensor(read_noise=1.5, rounding=True), "border", 40.0),
        (cu.Sensor(read_noise=1.5, rounding=True), "fit", 40.0),
        (cu.Sensor(read_noise=1.5, offset=40.0, rounding=True, saturation=255.0), 0.0, 0.0),
        (cu.Sensor(read_noise=1.5, offset=30.0), "border", 10.0),
        (cu.Sensor(read_noise=1.5, offset=30.0), "fit", 10.0),
        (cu.Sensor(read_noise=1.0, gain=5.0), 0.0, 0.0),
        (cu.Sensor(gain=5.0), "border", 20.0),
        (cu.Sensor(read_noise=1.0, gain=5.0, offset=10.0), "fit", 20.0),
    ],
)
def test_detectors_and_backgrounds(
    method: str, sensor: cu.Sensor, background: Any, level: float
) -> None:
    image = sensor.expose(light_of(*PAIR) + level, rng=2)
    table = unmixer(method, PRESET.psf, sensor, LOOSE, background=background)(image)
    assert_found(table, *PAIR, within=0.15)
    assert table["flux"].sum() == pytest.approx(473.0, abs=25.0)


@BOTH
def test_a_sensor_without_noise_takes_that_of_the_image(method: str) -> None:
    for noise in (0.0, 1.5):
        image = light_of(*PAIR) + np.random.default_rng(0).normal(0.0, noise, SHAPE)
        table = unmixer(method, PRESET.psf, cu.Sensor(), LOOSE)(image)
        assert_found(table, *PAIR, within=0.1)


@BOTH
def test_targets_on_a_field_larger_than_the_light(method: str) -> None:
    """Where the targets are in a large image does not matter."""
    shape, moved = (64, 40), (45.0, 20.0)
    pair = [(y + moved[0], x + moved[1], flux) for y, x, flux in PAIR]
    image = PRESET.sensor.expose(light_of(*pair, shape=shape), rng=0)
    assert_found(unmixer(method)(image), *pair, within=0.05)


@BOTH
def test_many_targets_are_counted_right(method: str) -> None:
    """Where a fit of the right number is found late, it is not given up for one of another."""
    prior = cu.Prior(count=(8, 10), flux=(150, 300), min_separation=0.9, extent=5.0)
    sensor, shape = cu.Sensor(read_noise=1.0), (13, 13)
    made = cu.simulate(PRESET.psf, sensor, prior, shape=shape, n=6, rng=21)
    given: dict[str, Any] = {"n_effective": 20}
    unmix = {"posterior": cu.PosteriorUnmixer, "continuous": cu.ContinuousUnmixer}[method]
    table = unmix(PRESET.psf, sensor, prior, **given)(made.images)
    assert cu.metrics.count_accuracy(table, made.truth) == 1.0


@BOTH
def test_images_that_no_scene_explains_are_flagged(method: str) -> None:
    """Told a wrong PSF; nothing but noise; and everything saturated by bounds that contradict."""
    images = simulated().images[:5]

    def misfit(unmix: Any, images: Any) -> Any:
        return (unmix(images)["flags"].to_numpy() & int(Flag.MISFIT)) != 0

    right = unmixer(method)
    assert not misfit(right, images).any()
    assert misfit(replace(right, psf=cu.GaussianPSF(sigma=0.7)), images).all()
    noise = np.random.default_rng(0).normal(0.0, 2.0, SHAPE)
    assert misfit(right, noise).all()
    assert misfit(right, np.full(SHAPE, 255.0)).all()


def test_shot_noise_is_no_misfit() -> None:
    sensor = cu.Sensor(read_noise=1.0, gain=0.5)
    prior = replace(PRESET.prior, count=(1, 3))
    made = cu.simulate(PRESET.psf, sensor, prior, shape=SHAPE, n=10, rng=3)
    table = cu.ContinuousUnmixer(PRESET.psf, sensor, prior)(made.images)
    assert not (table["flags"].to_numpy() & int(Flag.MISFIT)).any()


@BOTH
def test_pairs_of_few_electrons_are_counted(method: str) -> None:
    """Without any other noise, in the dark: counts of 0 and 1 are no normal variables."""
    psf, sensor, rng = cu.GaussianPSF(sigma=0.7), cu.Sensor(gain=1.0), np.random.default_rng(0)
    prior = cu.Prior(count=(1, 3), min_separation=0.5, extent=2.0)
    light = light_of((5.0, 4.4, 100.0), (5.0, 5.6, 100.0), psf=psf)
    table = unmixer(method, psf, sensor, prior)(rng.poisson(light, (40, *SHAPE)))
    right = table.groupby("frame").filter(lambda part: len(part) == 2)
    assert right["frame"].nunique() > 32
    truth = np.where(right["x"] < 5.0, 4.4, 5.6)
    assert 0.75 < ((right["x"] - truth) / right["x_err"]).std() < 1.25
