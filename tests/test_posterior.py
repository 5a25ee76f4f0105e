"""The sampler: against sums over grids, long chains and itself; its calibration."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linear_sum_assignment

import csunmix as cu
from csunmix._kernels import smc
from csunmix._kernels.labels import assign, describe, hungarian, nearest, new_pairs, pair, settle
from csunmix._kernels.prior import log_prior
from csunmix.continuous.sampling import relabel
from csunmix.continuous.window import Setting, Window

PRESET = cu.presets.csist_100k()
SHAPE = PRESET.shape
PRIOR = replace(PRESET.prior, extent=None, cell=False)
SENSORS = {
    "noise": cu.Sensor(read_noise=6.0),
    "rounded": cu.Sensor(read_noise=0.7, rounding=True),
    "shot noise": cu.Sensor(read_noise=2.0, gain=3.0),
    "clipped": cu.Sensor(read_noise=4.0, rounding=True, saturation=60.0),
}


def setting_of(sensor: cu.Sensor, **given: Any) -> Setting:
    return Setting(PRESET.psf, sensor, replace(PRIOR, **given), SHAPE, 0.0)


def exposed(sensor: cu.Sensor, targets: Any, seed: int = 0) -> Any:
    y, x, flux = np.transpose(targets)
    light = np.einsum("k,kij->ij", flux, PRESET.psf.response(y, x, SHAPE))
    return sensor.expose(light, rng=seed)


def window_of(setting: Setting, image: Any) -> Window:
    window = setting.window(image)
    assert window is not None
    return window


def sampled(setting: Setting, window: Window, count: int, seed: int, steps: int = 30) -> Any:
    """Particles and log evidence, with more steps than by default."""
    model = window.model(setting.optics, count)
    theta, evidence, _ = smc.sample(model, 60, steps, 0.5, 500, seed)
    return theta, evidence


# --- one target against a sum over a fine grid --------------------------------------------------


def on_a_grid(window: Window, theta: Any, density: Any = None) -> tuple[Any, Any, float]:
    """Mean, standard deviations and log evidence of one target, summed where particles are."""
    box, n = window.box, 31
    middle, reach = theta.mean(axis=0), 6.0 * theta.std(axis=0)
    ends = np.column_stack([*box.area, box.flux]).T
    low, high = np.maximum(middle - reach, ends[:, 0]), np.minimum(middle + reach, ends[:, 1])
    y, x, flux = (a + (b - a) * (np.arange(n) + 0.5) / n for a, b in zip(low, high, strict=True))
    pixels = window.pixels
    n_y, n_x = pixels.low.shape
    k_y = PRESET.psf.axis_response(y, n_y, "y")
    k_x = PRESET.psf.axis_response(x, n_x, "x")
    logs = np.empty((n, n, n))
    for i, f in enumerate(flux):
        light = f * k_y[:, None, :, None] * k_x[None, :, None, :]
        variance = pixels.variance + pixels.per_light * light
        told = log_of(pixels.low, pixels.high, light, variance)
        logs[:, :, i] = told.sum(axis=(2, 3))
    p = np.exp(logs - logs.max())
    if density is not None:
        p *= density(y, 0)[:, None, None] * density(x, 1)[None, :, None]
    volume = np.prod((high - low) / n)
    prior = (
        1.0 / np.prod(ends[:, 1] - ends[:, 0]) if density is None else 1.0 / np.diff(box.flux)[0]
    )
    evidence = float(logs.max() + np.log(p.sum() * volume * prior))
    p /= p.sum()
    mean = np.array([(p.sum(axis=axes) @ v) for axes, v in zip(OTHER, (y, x, flux), strict=True)])
    square = np.array(
        [(p.sum(axis=axes) @ v**2) for axes, v in zip(OTHER, (y, x, flux), strict=True)]
    )
    return mean, np.sqrt(square - mean**2), evidence


OTHER = ((1, 2), (0, 2), (0, 1))


def log_of(low: Any, high: Any, light: Any, variance: Any) -> Any:
    """Log likelihood of pixels by SciPy: a density, or the probability of an interval."""
    noise = np.sqrt(variance)
    a, b = (low - light) / noise, (high - light) / noise
    flip = a + b > 0.0  # the tail that does not cancel
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    point = low == high
    with np.errstate(divide="ignore", invalid="ignore"):
        upper, lower = stats.norm.logcdf(b), stats.norm.logcdf(a)
        between = upper + np.log1p(-np.exp(np.where(np.isinf(a), -np.inf, lower - upper)))
        density = stats.norm.logpdf(np.where(point, low, 0.0), light, noise)
    return np.where(point, density, between)


@functools.cache
def one_target(name: str) -> tuple[Any, Any, Any, Any]:
    """Particles and log evidences of some runs; the grid's moments and log evidence."""
    sensor = SENSORS[name]
    setting = setting_of(sensor, flux=(150.0, 300.0))
    window = window_of(setting, exposed(sensor, [(5.2, 4.6, 231.0)]))
    runs = [sampled(setting, window, 1, seed) for seed in range(8)]
    theta = np.concatenate([run[0] for run in runs])
    mean, spread, evidence = on_a_grid(window, theta)
    return theta, [run[1] for run in runs], (mean, spread), evidence


@pytest.mark.parametrize("name", SENSORS)
def test_one_target_against_a_sum_over_a_grid(name: str) -> None:
    theta, _, (mean, spread), _ = one_target(name)
    np.testing.assert_allclose(theta.mean(axis=0) / spread, mean / spread, atol=0.12)
    np.testing.assert_allclose(theta.std(axis=0), spread, rtol=0.1)


@pytest.mark.parametrize("name", SENSORS)
def test_evidence_of_one_target_against_a_sum_over_a_grid(name: str) -> None:
    _, evidences, _, expected = one_target(name)
    assert np.mean(evidences) == pytest.approx(expected, abs=0.35)


def test_one_target_in_a_box_anywhere() -> None:
    """With an extent, targets are rarer near the ends of the area than in its middle."""
    sensor, extent = cu.Sensor(read_noise=40.0), 1.2
    setting = setting_of(sensor, flux=(150.0, 300.0), extent=extent)
    image = exposed(sensor, [(5.2, 4.6, 231.0)], seed=3)
    window = window_of(setting, image)
    theta = np.concatenate([sampled(setting, window, 1, seed)[0] for seed in range(8)])

    def density(at: Any, axis: int) -> Any:
        low, high = window.box.area[axis]
        corner = np.linspace(low, high - extent, 4001)
        inside = (corner[:, None] <= at) & (at < corner[:, None] + extent)
        return inside.mean(axis=0) / extent

    mean, spread, _ = on_a_grid(window, theta, density)
    np.testing.assert_allclose(theta.mean(axis=0) / spread, mean / spread, atol=0.12)
    np.testing.assert_allclose(theta.std(axis=0), spread, rtol=0.12)


# --- several targets ----------------------------------------------------------------------------

PAIR = [(5.0, 4.7, 231.0), (5.1, 5.3, 242.0)]


def symmetric(theta: Any) -> Any:
    """What does not depend on the order of two targets: means, total flux, distance."""
    y, x, flux = theta.reshape(len(theta), -1, 3).transpose(2, 0, 1)
    apart = np.hypot(y[:, 0] - y[:, -1], x[:, 0] - x[:, -1])
    return np.column_stack([y.mean(axis=1), x.mean(axis=1), flux.sum(axis=1), apart])


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=SENSORS)
def test_repeat_runs_agree(sensor: cu.Sensor) -> None:
    setting = setting_of(sensor)
    window = window_of(setting, exposed(sensor, PAIR))
    runs = [sampled(setting, window, 2, seed, steps=40) for seed in range(6)]
    means = np.array([symmetric(theta).mean(axis=0) for theta, _ in runs])
    within = np.mean([symmetric(theta).std(axis=0) for theta, _ in runs], axis=0)
    assert (means.std(axis=0, ddof=1) / within < 0.3).all()
    assert np.std([evidence for _, evidence in runs], ddof=1) < 1.0


def test_it_samples_what_a_long_chain_from_the_truth_does() -> None:
    sensor = cu.Sensor(read_noise=4.0)
    setting = setting_of(sensor)
    window = window_of(setting, exposed(sensor, PAIR))
    start = np.array(PAIR) - [*window.origin, 0.0]
    model = window.model(setting.optics, 2)
    chain = symmetric(smc.explore(model, start.ravel(), 40, 250, 0)[1000:])
    theta = np.concatenate([sampled(setting, window, 2, seed)[0] for seed in range(4)])
    given, spread = symmetric(theta), chain.std(axis=0)
    np.testing.assert_allclose(given.mean(axis=0) / spread, chain.mean(axis=0) / spread, atol=0.2)
    np.testing.assert_allclose(given.std(axis=0), spread, rtol=0.15)


@pytest.mark.parametrize(("n_chains", "n_steps"), [(50, 29), (7, 9), (3, 5), (2, 3)])
def test_every_particle_keeps_to_the_prior(n_chains: int, n_steps: int) -> None:
    """In the first stage as well, where there are more and shorter chains."""
    sensor = cu.Sensor(read_noise=1.0)
    setting = setting_of(sensor)
    window = window_of(setting, exposed(sensor, PAIR))
    model = window.model(setting.optics, 2)
    # In plain Python an index beyond an array is an error.
    theta, evidence, stages = smc.sample.py_func(model, n_chains, n_steps, 0.5, 1, 0)
    assert stages == 1
    assert np.isfinite(evidence)
    assert np.isfinite([log_prior(model.box, each, 2) for each in theta]).all()


def test_without_room_there_is_no_evidence() -> None:
    setting = setting_of(SENSORS["noise"], extent=0.3)
    window = window_of(setting, exposed(SENSORS["noise"], PAIR))
    assert sampled(setting, window, 2, 0)[1] == -np.inf


# --- calibration --------------------------------------------------------------------------------

_RANKS = 20
_BINS = 5


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=SENSORS)
def test_the_truth_ranks_evenly_among_particles(sensor: cu.Sensor) -> None:
    """Simulation-based calibration (Talts et al. 2018), by statistics of one and two targets."""
    scene = replace(PRIOR, count=(1, 2), extent=1.2)
    n = 200
    made = cu.simulate(PRESET.psf, sensor, scene, shape=SHAPE, n=n, rng=12, margin=2)
    setting = setting_of(sensor, extent=1.2)
    ranks = []
    for frame, truth in made.truth.groupby("frame"):
        window = window_of(setting, made.images[frame])
        theta = smc.sample(window.model(setting.optics, len(truth)), 19, 24, 0.5, 500, frame)[0]
        some = symmetric(theta[23::24])[:, :3]  # the end of every chain
        true = truth[["y", "x", "flux"]].to_numpy() - [*window.origin, 0.0]
        ranks.append((some < symmetric(true.reshape(1, -1))[:, :3]).sum(axis=0))
    for each in np.transpose(ranks):
        counts = np.bincount(each * _BINS // _RANKS, minlength=_BINS)
        assert stats.chisquare(counts).pvalue > 1e-3


# --- labels -------------------------------------------------------------------------------------


def test_targets_are_matched_the_nearest_first() -> None:
    like = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 1.0])
    theta = np.array([2.1, 0.1, 1.0, 0.2, 0.0, 1.0, 1.0, 0.9, 1.0])
    assert nearest(theta, like, 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_pairs_are_the_closest_of_those_that_remain(count: int) -> None:
    rng, pairs = np.random.default_rng(count), new_pairs(count)
    for _ in range(50):
        theta, like = np.round(rng.uniform(0.0, 1.0, (2, count, 3)), 1)  # with pairs as far apart
        apart = ((like[:, None, :2] - theta[:, :2]) ** 2).sum(axis=2)
        expected = np.empty(count, int)
        for _ in range(count):
            at, of = np.unravel_index(apart.argmin(), apart.shape)
            expected[at] = of
            apart[at], apart[:, of] = np.inf, np.inf
        same = pair(theta.ravel(), like.ravel(), pairs)
        assert pairs.order.tolist() == expected.tolist()
        assert same == (expected == np.arange(count)).all()


def test_labels_that_were_mixed_are_put_in_order() -> None:
    rng = np.random.default_rng(0)
    place = np.array([[1.0, 1.0, 5.0], [1.0, 2.0, 6.0], [2.0, 1.5, 7.0], [2.5, 2.5, 8.0]])
    scenes = place + rng.normal(0.0, 0.05, (300, 4, 3))
    mixed = np.array([each[rng.permutation(4)] for each in scenes])
    ordered = relabel(mixed)
    np.testing.assert_array_equal(np.sort(ordered, axis=1), np.sort(mixed, axis=1))
    assert (ordered.std(axis=0) < 0.07).all()
    one = scenes[:, :1]
    np.testing.assert_array_equal(relabel(one), one)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_assignments_are_those_of_scipy(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(50):
        scene, mean = rng.uniform(size=(size, 3)), rng.uniform(size=(size, 2))
        cost = ((scene[None, :, :2] - mean[:, None]) ** 2).sum(axis=-1)
        expected = cost[linear_sum_assignment(cost)].sum()
        order, space = np.empty(size, np.int64), np.empty((size, size))
        assert assign(scene, mean, space, order) == pytest.approx(expected)
        hungarian(space, order)
        assert sorted(order) == list(range(size))
        assert cost[np.arange(size), order].sum() == pytest.approx(expected)


def test_scenes_without_weight_are_no_starts_of_relabelling() -> None:
    rng = np.random.default_rng(0)
    scenes, weight = rng.uniform(size=(1200, 4, 3)), np.zeros(1200)
    weight[3] = 1.0  # none of those that a thinning by 4 keeps
    order = relabel(scenes, weight)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.sort(scenes, axis=1))


def test_scenes_that_weigh_nothing_do_not_count() -> None:
    rng = np.random.default_rng(3)
    scenes = np.array([[1.0, 1.0, 5.0], [1.0, 2.0, 6.0]]) + rng.normal(0.0, 0.05, (200, 2, 3))
    weight = np.full(200, 1.0)
    alone = describe(scenes, weight, 0.06)
    np.testing.assert_allclose(alone[:, :3], scenes.mean(axis=0))
    np.testing.assert_allclose(alone[:, 3:6], scenes.var(axis=0))
    near = np.hypot(*(scenes - scenes.mean(axis=0))[..., :2].T).T <= 0.06
    np.testing.assert_allclose(alone[:, 6], near.mean(axis=0))
    more = np.concatenate([scenes, scenes + 100.0])
    again = describe(more, np.concatenate([weight, np.zeros(200)]), 0.06)
    np.testing.assert_allclose(again, alone)


@pytest.mark.parametrize("seed", [5, 12, 18, 27])
def test_labels_are_those_of_the_best_start(seed: int) -> None:
    """Two kinds of scenes, between which it is not plain which target became which."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(0.0, 1.0, (2, 4, 3))
    scenes = place[rng.integers(2, size=300)] + rng.normal(0.0, 0.1, (300, 4, 3))
    scenes = np.array([each[rng.permutation(4)] for each in scenes])
    spread = relabel(scenes)[..., :2].var(axis=0).sum()
    spreads = []
    for start in scenes[::15, :, :2]:
        settled = scenes.copy()
        settle(settled, np.ones(len(scenes)), start.copy())
        spreads.append(settled[..., :2].var(axis=0).sum())
    assert spread <= 1.02 * min(spreads)
    assert max(spreads) > 1.02 * min(spreads)  # or any start would do


# --- random numbers -----------------------------------------------------------------------------


def unmix(images: Any, **given: Any) -> Any:
    return cu.PosteriorUnmixer(PRESET.psf, PRESET.sensor, PRESET.prior, **given)(images)


@functools.cache
def images() -> Any:
    made = cu.simulate(
        PRESET.psf, PRESET.sensor, replace(PRESET.scene, count=(1, 3)), shape=SHAPE, n=6, rng=2
    )
    return made.images


def values(table: Any) -> Any:
    return table.drop(columns="frame").to_numpy(float)


def test_answers_are_reproducible_and_depend_on_the_seed() -> None:
    np.testing.assert_array_equal(values(unmix(images())), values(unmix(images())))
    assert (values(unmix(images()))[:, 0] != values(unmix(images(), seed=1))[:, 0]).all()


def test_answers_do_not_depend_on_the_number_of_jobs_or_the_batch() -> None:
    whole = unmix(images())
    np.testing.assert_array_equal(values(whole), values(unmix(images(), n_jobs=2)))
    parts = np.concatenate([values(unmix(images()[:2])), values(unmix(images()[2:]))])
    np.testing.assert_array_equal(values(whole), parts)
    turned = unmix(images()[::-1])
    assert set(turned["x"]) == set(whole["x"])
