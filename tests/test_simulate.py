"""Scenes with truth, what they are drawn from, and the presets."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy import stats

import csunmix as cu
from csunmix.presets import PRESETS
from csunmix.targets import COLUMNS, make_table

Array = npt.NDArray[np.floating[Any]]
PSF = cu.GaussianPSF(0.5)
PERFECT = cu.Sensor()


def draw(scene: cu.Prior, n: int, rng: int = 0, **options: Any) -> cu.Simulation:
    options = {"shape": (11, 13)} | options
    return cu.simulate(PSF, PERFECT, scene, n=n, rng=rng, **options)


def scene_of(count: int, **options: Any) -> cu.Prior:
    return cu.Prior(count=(count, count), flux=(220, 250), **options)


def positions(made: cu.Simulation, count: int) -> Array:
    """Positions (n, count, 2) where every frame has `count` targets."""
    return np.asarray(made.truth[["y", "x"]].to_numpy().reshape(-1, count, 2))


def smallest_distance(points: Array) -> Array:
    distance = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    distance[:, *np.diag_indices(points.shape[1])] = np.inf
    return np.asarray(distance.min(axis=(1, 2)))


# Prior


def test_everything_in_a_prior_is_optional() -> None:
    prior = cu.Prior()
    assert (prior.count, prior.flux, prior.extent) == (None, None, None)
    assert prior.min_separation == 0.0
    assert prior.cell == 0.0
    assert cu.Prior(cell=True).cell == 1.0
    full = cu.Prior(count=[1, 5], flux=(220, 250), min_separation=1, extent=2)
    assert full == cu.Prior(count=(1, 5), flux=[220.0, 250.0], min_separation=1.0, extent=2.0)
    assert isinstance(full.extent, float)
    assert hash(full) == hash(cu.Prior(count=(1, 5), flux=(220, 250), min_separation=1, extent=2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": (5, 1)}, ValueError, r"count must be ordered \(low, high\), got \(5, 1\)"),
        ({"count": (-1, 2)}, ValueError, r"count\[0\] must be at least 0"),
        ({"count": (1.0, 2)}, TypeError, r"count\[0\] must be an integer"),
        ({"count": (1, True)}, TypeError, r"count\[1\] must be a real number, got True"),
        ({"count": 3}, TypeError, r"count must be a pair \(low, high\), got 3"),
        ({"count": (1, 2, 3)}, ValueError, "count must be a pair"),
        ({"flux": (250, 220)}, ValueError, "flux must be ordered"),
        ({"flux": (-1, 220)}, ValueError, r"flux\[0\] must be at least 0"),
        ({"flux": (0, 0)}, ValueError, "flux must allow a target some light"),
        ({"flux": (0, np.inf)}, ValueError, r"flux\[1\] must be finite"),
        ({"flux": ("a", "b")}, TypeError, r"flux\[0\] must be a real number, got 'a'"),
        ({"min_separation": -0.1}, ValueError, "min_separation must be at least 0"),
        ({"min_separation": None}, TypeError, "min_separation must be a real number"),
        ({"extent": 0}, ValueError, "extent must be above 0"),
        ({"extent": np.nan}, ValueError, "extent must be finite"),
        ({"cell": "no"}, TypeError, "cell must be a real number, got 'no'"),
        ({"cell": 1.2}, ValueError, "cell must be a probability, from 0 to 1, got 1.2"),
        ({"cell": np.nan}, ValueError, "cell must be finite"),
        ({"extent": 1.2, "cell": True}, ValueError, "extent and a certain cell exclude each other"),
        ({"extent": 0.9, "cell": 0.5}, ValueError, "extent must be at least 1 beside a cell"),
    ],
)
def test_bad_prior(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        cu.Prior(**options)


# Presets


def test_csist_100k_is_what_was_published() -> None:
    setup = cu.presets.csist_100k()
    assert setup.psf == cu.GaussianPSF(0.5)
    assert setup.shape == (11, 11)
    assert setup.threshold == 50
    assert setup.frames_per_track == 1
    assert (setup.sensor.rounding, setup.sensor.saturation) == (True, 255.0)
    assert (setup.sensor.read_noise, setup.sensor.gain) == (0.0, None)
    prior = setup.prior
    assert (prior.count, prior.flux) == ((1, 5), (220.0, 250.0))
    assert (prior.extent, prior.cell) == (1.2, 0.8)
    assert prior.min_separation == pytest.approx(0.52 * PSF.rayleigh)
    assert (setup.scene.cell, setup.scene.extent) == (True, None)
    assert (setup.scene.count, setup.scene.flux) == (prior.count, prior.flux)


def test_seq_csist_has_tracks_of_twenty_frames() -> None:
    setup = cu.presets.seq_csist()
    assert (setup.frames_per_track, setup.threshold, setup.shape) == (20, 70, (11, 11))
    assert setup.prior.count == setup.scene.count == (2, 4)
    assert setup.psf == cu.GaussianPSF(0.5)


def test_presets_by_name() -> None:
    assert {name: make().name for name, make in PRESETS.items()} == {
        "csist-100k": "csist-100k",
        "seq-csist": "seq-csist",
    }


def test_csist_images_clip_as_the_published_ones_do() -> None:
    setup = cu.presets.csist_100k()
    made = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=2000, rng=0)
    assert made.images.max() == 255
    np.testing.assert_array_equal(made.images, np.rint(made.images))
    count = np.bincount(made.truth["frame"], minlength=2000)
    clipped = (made.images == 255).sum(axis=(1, 2))
    assert (clipped[count <= 2] == 0).all()
    assert (clipped[count >= 4] == 1).all()
    assert 0.2 < clipped[count == 3].mean() < 0.35


# Simulator: what is drawn


def test_same_seed_same_scenes() -> None:
    scene = cu.Prior(count=(0, 4), flux=(220, 250), min_separation=0.5, cell=True)
    noisy = cu.Sensor(read_noise=1, gain=2)
    args: dict[str, Any] = {"shape": (9, 9), "n": 40}
    first = cu.simulate(PSF, noisy, scene, rng=3, **args)
    again = cu.simulate(PSF, noisy, scene, rng=np.random.default_rng(3), **args)
    other = cu.simulate(PSF, noisy, scene, rng=4, **args)
    np.testing.assert_array_equal(first.images, again.images)
    pd.testing.assert_frame_equal(first.truth, again.truth)
    assert (first.images != other.images).all()


def test_truth_is_a_target_table() -> None:
    made = draw(cu.Prior(count=(0, 2), flux=(1, 2)), 30)
    assert list(made.truth.columns) == list(COLUMNS)
    assert made.truth["frame"].is_monotonic_increasing
    assert cu.targets.n_frames(made.truth) == 30
    assert made.images.shape == made.light.shape == (30, 11, 13)


def test_counts_are_uniform() -> None:
    made = draw(cu.Prior(count=(1, 5), flux=(220, 250)), 5000)
    count = np.bincount(made.truth["frame"], minlength=5000)
    observed = np.bincount(count)
    assert observed[0] == 0
    assert observed.size == 6
    assert stats.chisquare(observed[1:]).pvalue > 1e-3


def test_normal_counts() -> None:
    scene = cu.Prior(count=(1, 5), flux=(220, 250))
    made = draw(scene, 5000, count_model="normal")
    observed = np.bincount(np.bincount(made.truth["frame"], minlength=5000))
    edges = stats.norm(3, 1).cdf([-np.inf, 1.5, 2.5, 3.5, 4.5, np.inf])
    assert stats.chisquare(observed[1:], 5000 * np.diff(edges)).pvalue > 1e-3


def test_fluxes_are_uniform_in_their_range() -> None:
    flux = draw(scene_of(3), 2000).truth["flux"]
    assert stats.kstest(flux, stats.uniform(220, 30).cdf).pvalue > 1e-3
    assert flux.between(220, 250).all()


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_targets_of_a_cell_share_their_pixel(margin: int) -> None:
    made = draw(scene_of(3, min_separation=0.494, cell=True), 1000, margin=margin)
    points = positions(made, 3)
    pixel = np.rint(points).astype(int)
    assert (pixel == pixel[:, :1]).all()
    pixel = pixel[:, 0]
    np.testing.assert_array_equal(pixel.min(axis=0), [margin, margin])
    np.testing.assert_array_equal(pixel.max(axis=0), [10 - margin, 12 - margin])
    assert smallest_distance(points).min() >= 0.494
    n_y, n_x = 11 - 2 * margin, 13 - 2 * margin
    cells = np.bincount((pixel[:, 0] - margin) * n_x + pixel[:, 1] - margin, minlength=n_y * n_x)
    assert stats.chisquare(cells).pvalue > 1e-3


@pytest.mark.parametrize("extent", [0.7, 1.2, 5.0])
def test_targets_of_a_box_lie_no_further_apart_than_its_size(extent: float) -> None:
    made = draw(scene_of(3, min_separation=0.3, extent=extent), 1000)
    points = positions(made, 3)
    spread = np.ptp(points, axis=1)
    assert spread.max() <= extent
    assert spread.max() > 0.95 * extent
    assert smallest_distance(points).min() >= 0.3
    # anywhere, but one pixel from the border
    assert points.min() >= 0.5
    assert (points.max(axis=(0, 1)) <= [9.5, 11.5]).all()
    assert (points.min(axis=(0, 1)) < [0.8, 0.8]).all()
    assert (points.max(axis=(0, 1)) > [9.2, 11.2]).all()


def test_targets_without_a_window_fill_the_image() -> None:
    points = positions(draw(scene_of(2, min_separation=2.0), 2000, margin=2), 2)
    assert smallest_distance(points).min() >= 2.0
    for axis, (low, size) in enumerate([(1.5, 7.0), (1.5, 9.0)]):
        assert points[..., axis].min() >= low
        assert points[..., axis].max() <= low + size
    free = positions(draw(scene_of(1), 2000, margin=2), 1)
    assert stats.kstest(free[:, 0, 0], stats.uniform(1.5, 7).cdf).pvalue > 1e-3
    assert stats.kstest(free[:, 0, 1], stats.uniform(1.5, 9).cdf).pvalue > 1e-3


def plain_rejection(n: int, count: int, distance: float, rng: np.random.Generator) -> Array:
    """Points uniform in a unit cell, drawn all at once and dropped all at once."""
    found: list[Array] = []
    while len(found) < n:
        sets = rng.uniform(-0.5, 0.5, (20_000, count, 2))
        found.extend(sets[smallest_distance(sets) >= distance])
    return np.array(found[:n])


def one_after_another(n: int, count: int, distance: float, rng: np.random.Generator) -> Array:
    """The wrong way: a point too close to those before it is drawn again on its own."""
    sets = np.empty((n, count, 2))
    for points in sets:
        k = tries = 0
        while k < count:
            points[k] = rng.uniform(-0.5, 0.5, 2)
            k += bool((np.linalg.norm(points[:k] - points[k], axis=1) >= distance).all())
            tries += 1
            if tries > 200:  # no room is left: start again
                k = tries = 0
    return sets


def test_positions_are_uniform_given_their_separation() -> None:
    count, distance, n = 3, 0.494, 1500
    rng = np.random.default_rng(5)
    points = positions(draw(scene_of(count, min_separation=distance, cell=True), n, rng=6), count)
    offset = points - np.rint(points)
    expected = plain_rejection(n, count, distance, rng)
    wrong = one_after_another(n, count, distance, rng)
    # any target, its column alone: what the others leave free
    for k in range(count):
        assert stats.ks_2samp(offset[:, k, 1], expected[:, k, 1]).pvalue > 1e-3
    radius, expected_radius, wrong_radius = (
        np.linalg.norm(sets, axis=2).mean(axis=1) for sets in (offset, expected, wrong)
    )
    assert stats.ks_2samp(radius, expected_radius).pvalue > 1e-3
    assert stats.ks_2samp(wrong_radius, expected_radius).pvalue < 1e-3
    nearest, expected_nearest = smallest_distance(offset), smallest_distance(expected)
    assert stats.ks_2samp(nearest, expected_nearest).pvalue > 1e-3


def test_a_share_of_the_scenes_is_of_one_cell() -> None:
    """The others lie in boxes that need not be one."""
    scene = scene_of(3, min_separation=0.3, extent=1.2, cell=0.4)
    points = positions(draw(scene, 4000), 3)
    pixel = np.floor(points + 0.5)
    shared = (pixel == pixel[:, :1]).all(axis=(1, 2))
    boxes = positions(draw(replace(scene, cell=False), 4000), 3)
    pixel = np.floor(boxes + 0.5)
    by_chance = (pixel == pixel[:, :1]).all(axis=(1, 2)).mean()
    assert shared.mean() == pytest.approx(0.4 + 0.6 * by_chance, abs=0.03)
    assert np.ptp(points, axis=1).max() <= 1.2


def test_five_targets_of_the_benchmark_fit_into_their_cell() -> None:
    points = positions(draw(scene_of(5, min_separation=0.494, cell=True), 20), 5)
    assert smallest_distance(points).min() >= 0.494


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (5, {"min_separation": 0.72, "cell": True}),  # 1/sqrt(2) is the most for five
        (2, {"min_separation": 1.5, "cell": True}),
        (12, {"min_separation": 0.5, "extent": 1.0}),
        (3, {"min_separation": 40.0}),
    ],
)
def test_targets_that_do_not_fit_are_refused(count: int, options: dict[str, Any]) -> None:
    message = rf"^{count} targets .* px apart do not fit .*: 0 of \d+ sets drawn"
    with pytest.raises(ValueError, match=message):
        draw(scene_of(count, **options), 10)


def test_frames_may_be_empty() -> None:
    made = draw(scene_of(0, min_separation=0.5, cell=True), 3)
    assert len(made.truth) == 0
    assert cu.targets.n_frames(made.truth) == 3
    assert not made.images.any()


# Simulator: what is recorded


@pytest.mark.parametrize(
    "psf", [PSF, cu.GaussianPSF(sigma_x=0.9, sigma_y=0.4), cu.AiryPSF(0.95)], ids=repr
)
def test_render_adds_the_responses_up(psf: Any) -> None:
    rng = np.random.default_rng(7)
    frame = rng.integers(0, 4, 12)  # in any order
    y, x, flux = rng.uniform(-1, 8, 12), rng.uniform(-1, 8, 12), rng.uniform(1, 9, 12)
    expected = np.zeros((6, 7, 8))
    for k in range(12):
        expected[frame[k]] += flux[k] * psf.response(y[k], x[k], (7, 8))
    table = make_table(frame, y, x, flux, n_frames=6)
    np.testing.assert_allclose(cu.render(psf, table, shape=(7, 8)), expected, atol=1e-13)
    np.testing.assert_allclose(cu.render(psf, table, shape=(7, 8), n=4), expected[:4], atol=1e-13)
    picked = table[table["frame"] == 2]
    only = np.where(np.arange(6)[:, None, None] == 2, expected, 0.0)
    np.testing.assert_allclose(cu.render(psf, picked, shape=(7, 8)), only, atol=1e-13)


def test_render_works_in_blocks() -> None:
    # more targets than fit into one block of responses
    n = 70_000
    table = make_table(np.arange(n) % 3, 2.0, 2.0, 1.0)
    images = cu.render(PSF, table, shape=(5, 6))
    count = np.bincount(table["frame"])
    np.testing.assert_allclose(images, count[:, None, None] * PSF.response(2, 2, (5, 6)))


def test_render_of_nothing() -> None:
    empty = make_table([], [], [], [])
    assert cu.render(PSF, empty, shape=(3, 4)).shape == (0, 3, 4)
    np.testing.assert_array_equal(cu.render(PSF, empty, shape=(3, 4), n=2), np.zeros((2, 3, 4)))


def test_images_hold_the_flux_of_their_targets() -> None:
    made = draw(cu.Prior(count=(1, 4), flux=(220, 250), cell=True), 200, margin=4)
    flux = made.truth.groupby("frame")["flux"].sum()
    np.testing.assert_allclose(made.light.sum(axis=(1, 2)), flux, rtol=1e-9)
    np.testing.assert_array_equal(made.images, made.light)
    np.testing.assert_allclose(made.light, cu.render(PSF, made.truth, shape=(11, 13)))


def test_the_sensor_records_the_light() -> None:
    sensor = cu.Sensor(rounding=True, saturation=60)
    made = cu.simulate(PSF, sensor, scene_of(2), shape=(9, 9), n=20, rng=0)
    np.testing.assert_array_equal(made.images, np.clip(np.rint(made.light), 0, 60))


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"psf": 0.5}, TypeError, "psf must be of type PSF, got 0.5"),
        ({"sensor": None}, TypeError, "sensor must be of type Sensor, got None"),
        ({"scene": cu.presets.csist_100k()}, TypeError, "scene must be of type Prior"),
        ({"scene": cu.Prior(flux=(1, 2))}, ValueError, "scene must have a count range and a flux"),
        ({"scene": cu.Prior(count=(1, 2))}, ValueError, "scene must have a count range and a flux"),
        ({"scene": scene_of(1, extent=9.5)}, ValueError, r"scene.extent 9.5 px does not fit"),
        ({"shape": (9,)}, ValueError, "shape must be a pair"),
        ({"shape": (9, 2)}, ValueError, r"shape \(9, 2\) leaves no pixel 1 px from the border"),
        ({"margin": -1}, ValueError, "margin must be at least 0"),
        ({"margin": 0.5}, TypeError, "margin must be an integer"),
        ({"n": 0}, ValueError, "n must be at least 1"),
        ({"n": 2.0}, TypeError, "n must be an integer"),
        ({"count_model": "poisson"}, ValueError, "count_model must be 'uniform' or 'normal'"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"psf": PSF, "sensor": PERFECT, "scene": scene_of(1), "shape": (11, 11), "n": 1}
    with pytest.raises(error, match=f"^{message}"):
        cu.simulate(**(good | {"rng": 0} | change))


def test_render_refuses_what_it_cannot_place() -> None:
    table = make_table([0, 4], [1, 1], [1, 1], [1, 1])
    with pytest.raises(ValueError, match=r"^n must be above the last frame of the targets, 4, got"):
        cu.render(PSF, table, shape=(3, 3), n=4)
    with pytest.raises(ValueError, match=r"column 'frame' must be whole numbers from 0, row 1 has"):
        cu.render(PSF, table.assign(frame=[0, -1]), shape=(3, 3))
    with pytest.raises(ValueError, match=r"column 'y' must be finite numbers, row 0 has nan"):
        cu.render(PSF, table.assign(y=np.nan), shape=(3, 3))
    with pytest.raises(TypeError, match=r"^psf must be of type PSF"):
        cu.render(table, table, shape=(3, 3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^n must be at least 0"):
        cu.render(PSF, table, shape=(3, 3), n=-1)
