"""Chains that hop between optima: what they leave as it is, and that they find their weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import csunmix as cu
from csunmix._kernels.hops import wander
from csunmix._kernels.modes import Modes
from csunmix._kernels.prior import log_prior
from csunmix.continuous.fit import Fit, fit
from csunmix.continuous.sampling import (
    _means,
    cool,
    effective,
    hop,
    occupancy,
    summarise,
)
from csunmix.continuous.window import Setting, log_room
from csunmix.targets import Flag
from tests.test_billiards import BOXES, COUNT, INSIDE, model_of

PRESET = cu.presets.csist_100k()
NOISE = cu.Sensor(read_noise=3.0)


def modes_of(*thetas: Any, scale: Any) -> Modes:
    """Modes at some scenes, of these standard deviations."""
    factor = np.array([np.diag(np.tile([0.1, 0.1, 5.0], COUNT) * s) for s in scale])
    theta = np.array(thetas)
    return Modes(theta, theta, factor, np.linalg.inv(factor))


@pytest.mark.parametrize(
    "given", [BOXES["area"], BOXES["extent"], BOXES["cell or extent"]], ids=str
)
def test_without_an_image_hops_leave_the_prior_as_it_is(given: Any) -> None:
    """Modes that mean nothing, of different sizes, must not draw the chain to them."""
    model = model_of(**given)
    modes = modes_of(INSIDE, INSIDE + np.tile([0.1, -0.1, 4.0], COUNT), scale=[1.0, 2.5])
    hopped, straight = (
        wander(model, modes, np.zeros(60, np.int64), 1000, n_hops, 0.0, 1)[0] for n_hops in (5, 0)
    )
    assert np.isfinite([log_prior(model.box, theta, COUNT) for theta in hopped[0, ::10]]).all()
    hopped, straight = hopped.reshape(-1, 9), straight.reshape(-1, 9)
    for a in range(3 * COUNT):
        spread = straight[:, a].std()
        assert hopped[:, a].mean() == pytest.approx(straight[:, a].mean(), abs=0.2 * spread)
        assert hopped[:, a].std() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("extent", [np.inf, 1.2])
def test_without_an_image_targets_spread_as_scenes_of_the_prior_do(extent: float) -> None:
    """Against scenes drawn and refused: the box of the extent and its walls are right."""
    model = model_of(extent=extent)
    modes = modes_of(INSIDE, INSIDE + np.tile([0.1, -0.1, 4.0], COUNT), scale=[1.0, 2.5])
    states = wander(model, modes, np.zeros(40, np.int64), 1500, 2, 0.0, 3)[0]
    states = states.reshape(-1, COUNT, 3)
    rng, n = np.random.default_rng(0), 200_000
    low, high = model.box.area.T
    size = np.minimum(high - low, extent)
    corner = low + rng.uniform(size=(n, 1, 2)) * (high - low - size)
    place = corner + rng.uniform(size=(n, COUNT, 2)) * size
    gap = [np.hypot(*(place[:, k] - place[:, m]).T) for k in range(COUNT) for m in range(k)]
    place = place[np.min(gap, axis=0) >= model.box.separation]
    for axis in range(2):
        spread, expected = np.ptp(states[..., axis], axis=1), np.ptp(place[..., axis], axis=1)
        assert spread.mean() == pytest.approx(expected.mean(), rel=0.02)
        assert spread.std() == pytest.approx(expected.std(), rel=0.05)
        middle, wanted = states[..., axis].mean(axis=1), place[..., axis].mean(axis=1)
        assert middle.std() == pytest.approx(wanted.std(), rel=0.1)


def test_without_an_image_as_many_scenes_are_of_a_cell_as_the_prior_says() -> None:
    """In an area of 2 x 2 cells, of which a box of 1.2 px leaves 0.8 x 0.8 px to its corner."""
    extent, cell, rng = 1.2, 0.3, np.random.default_rng(0)
    area = np.array([[1.5, 3.5], [0.5, 2.5]])
    sizes = (np.full(2, extent), np.ones(2))
    in_box, in_cell = (np.exp(log_room(size, 0.494, COUNT)) for size in sizes)
    density = cell / (1.0 - cell) * extent ** (2 * COUNT) * in_box / in_cell
    model = model_of(area=area, extent=extent, cell=cell, cell_density=density)
    start = INSIDE - np.tile([0.0, 0.5, 0.0], COUNT)
    modes = modes_of(start, start + np.tile([0.1, -0.1, 4.0], COUNT), scale=[1.0, 2.5])
    states = wander(model, modes, np.zeros(40, np.int64), 3000, 2, 0.0, 3)[0]

    def share(place: Any) -> float:
        pixel = np.floor(place[..., :2] + 0.5)
        return float((pixel == pixel[:, :1]).all(axis=(1, 2)).mean())

    place = area[:, 0] + rng.uniform(size=(400_000, 1, 2)) * (2.0 - extent)
    place = place + rng.uniform(size=(400_000, COUNT, 2)) * extent
    gap = [np.hypot(*(place[:, k] - place[:, m]).T) for k in range(COUNT) for m in range(k)]
    of_boxes = share(place[np.min(gap, axis=0) >= model.box.separation])
    cells, boxes = cell * 4.0, (1.0 - cell) * (2.0 - extent) ** 2
    expected = (cells + boxes * of_boxes) / (cells + boxes)
    assert share(states.reshape(-1, COUNT, 3)) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("read_noise", [0.0, 0.2])
def test_soft_intervals_are_weighed_to_the_true_ones(read_noise: float) -> None:
    """Against chains whose likelihood is the true one all along."""
    sensor = cu.Sensor(rounding=True, read_noise=read_noise)
    setting = Setting(PRESET.psf, sensor, PRESET.prior, PRESET.shape, 0.0)
    made = cu.simulate(
        PRESET.psf, sensor, replace(PRESET.scene, count=(2, 2)), shape=PRESET.shape, n=3, rng=4
    )
    for image in made.images:
        window = setting.window(image)
        assert window is not None
        best = fit(setting, window, 2, 0)
        assert best is not None
        soft = hop(setting, best, 16, 2000, 0)
        assert np.ptp(soft.weight[0]) > 0.0
        model = window.model(setting.optics, 2)
        true = wander(model, best.modes[0], np.zeros(16, np.int64), 8000, 4, 0.0, 1)[0]
        mean = np.tensordot(soft.weight, soft.theta, 2)
        spread = np.sqrt(np.tensordot(soft.weight, (soft.theta - mean) ** 2, 2))
        expected = true.std(axis=(0, 1))
        np.testing.assert_allclose((mean - true.mean(axis=(0, 1))) / expected, 0.0, atol=0.2)
        np.testing.assert_allclose(spread, expected, rtol=0.15)


def test_an_image_that_no_scene_explains_has_many_scenes_all_the_same() -> None:
    """Where soft intervals and true ones differ beyond measure, chains keep to the true ones."""
    setting = Setting(PRESET.psf, PRESET.sensor, PRESET.prior, PRESET.shape, 0.0)
    wide, scene = cu.GaussianPSF(sigma=0.55), replace(PRESET.scene, count=(3, 3))
    made = cu.simulate(wide, PRESET.sensor, scene, shape=PRESET.shape, n=3, rng=3)
    for image in made.images:
        window = setting.window(image)
        assert window is not None
        best = fit(setting, window, 3, 0)
        assert best is not None
        assert effective(hop(setting, best, 8, 200, 0)) > 100.0


def test_without_an_image_the_background_is_as_the_prior_has_it() -> None:
    model = model_of()
    model = model._replace(precision=np.append(model.precision, 1.0))
    theta = np.append(INSIDE, 0.0)[None]
    factor = np.diag(np.append(np.tile([0.1, 0.1, 5.0], COUNT), 1.0))[None]
    both = (np.concatenate([each, each]) for each in (theta, theta, factor, np.linalg.inv(factor)))
    states = wander(model, Modes(*both), np.zeros(20, np.int64), 1000, 3, 0.0, 0)[0][..., 9]
    assert states.mean() == pytest.approx(0.0, abs=0.1)
    assert states.std() == pytest.approx(1.0, abs=0.07)


def found(n: int, seed: int, count: int = 4) -> tuple[Setting, list[Fit]]:
    prior = PRESET.prior
    setting = Setting(PRESET.psf, NOISE, prior, PRESET.shape, 0.0)
    scene = cu.Prior(
        count=(count, count),
        flux=prior.flux,
        extent=prior.extent,
        min_separation=prior.min_separation,
    )
    made = cu.simulate(PRESET.psf, NOISE, scene, shape=PRESET.shape, n=n, rng=seed, margin=2)
    fits = []
    for image in made.images:
        window = setting.window(image)
        assert window is not None
        best = fit(setting, window, count, 0)
        assert best is not None
        fits.append(best)
    return setting, fits


def test_chains_that_start_in_one_mode_find_what_particles_from_the_prior_do() -> None:
    """The scene with the most optima of some: hops must weigh them."""
    setting, fits = found(12, 5)
    best = max(fits, key=lambda each: len(each.modes[1]))
    modes, share = best.modes
    assert len(share) > 1
    model = best.window.model(setting.optics, best.count)
    theta = wander(model, modes, np.zeros(8, np.int64), 2000, 4, 0.0, 0)[0]
    particles = np.array(
        [cool(setting, best.window, best.count, seed)[0].theta for seed in range(4)]
    )

    def alike(states: Any) -> Any:
        """What does not depend on the order of the targets."""
        place = states.reshape(-1, best.count, 3)[..., :2]
        away = ((place - place.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return np.column_stack([place.mean(axis=1), away])

    given, expected = alike(theta), alike(particles)
    spread = expected.std(axis=0)
    np.testing.assert_allclose(
        given.mean(axis=0) / spread, expected.mean(axis=0) / spread, atol=0.3
    )
    np.testing.assert_allclose(given.std(axis=0), spread, rtol=0.25)


def test_chains_that_never_hop_keep_the_shares_that_were_expected() -> None:
    mode = np.repeat([[0], [1], [2]], 50, axis=1)
    share = np.array([0.7, 0.2, 0.1])
    np.testing.assert_allclose(occupancy(mode, share), share, atol=1e-9)
    assert occupancy(np.zeros((2, 5), int), np.ones(1)) == pytest.approx(1.0)


def test_chains_that_hop_often_have_the_shares_that_they_find() -> None:
    """Whatever was expected, and wherever they started."""
    change = np.array([[0.8, 0.2, 0.0], [0.05, 0.9, 0.05], [0.0, 0.1, 0.9]])
    rng = np.random.default_rng(0)
    mode = np.zeros((20, 2000), int)
    for c in range(20):
        mode[c, 0] = 2
        for n in range(1, 2000):
            mode[c, n] = rng.choice(3, p=change[mode[c, n - 1]])
    share = np.array([1 / 7, 4 / 7, 2 / 7])  # left alone by these changes
    np.testing.assert_allclose(occupancy(mode, np.array([0.98, 0.01, 0.01])), share, atol=0.03)


def test_repeat_runs_agree() -> None:
    setting, fits = found(6, 3)
    for best in fits:
        answers = [summarise(best, hop(setting, best, 8, 600, seed), 0.1) for seed in (1, 2)]
        one, two = (answer[np.lexsort(answer[:, :2].T.round(1))] for answer in answers)
        away = np.abs(one[:, None, :2] - two[None, :, :2]).max(axis=2).min(axis=1)
        assert (away / one[:, 3:5].max(axis=1) < 1.0).all()


def test_without_room_around_the_optima_there_is_no_scene() -> None:
    model = model_of()
    far = INSIDE + np.tile([50.0, 0.0, 0.0], COUNT)
    states = wander(model, modes_of(far, scale=[0.1]), np.zeros(2, np.int64), 20, 4, 0.0, 0)[0]
    assert states.size == 0


def test_means_of_modes_stay_above_nothing() -> None:
    mode = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    value = np.where(mode == 0, [[1.0, 3.0, 0.0, 0.0]], 0.0)
    count = np.array([4, 4, 0])
    np.testing.assert_allclose(_means(value, mode, count), [2.0, 0.01, 1.0])


@pytest.mark.parametrize(
    ("count", "asked", "paths", "apart"),
    [(1, 100, 90, False), (3, 100, 360, False), (3, 10, 36, True)],
)
def test_chains_whose_means_differ_go_on_for_longer(
    count: int, asked: int, paths: int, apart: bool
) -> None:
    """One target is known after a hundred paths, three near each other are not.

    Chains that are too short even so are flagged, and a quarter of those that are not, by chance.
    """
    setting = Setting(PRESET.psf, NOISE, cu.Prior(extent=1.2, flux=(50, 500)), (11, 11), 0.0)
    places = [4.8, 5.2, 5.0][:count], [4.9, 5.1, 5.4][:count], [100, 200, 300][:count]
    light = cu.render(PRESET.psf, cu.targets.make_table(0, *places), shape=(11, 11))[0]
    window = setting.window(NOISE.expose(light, rng=0))
    assert window is not None
    best = fit(setting, window, count, 0)
    assert best is not None
    samples = [hop(setting, best, 8, asked, seed) for seed in range(41)]
    assert np.median([sample.theta.shape[1] for sample in samples]) == paths
    assert np.median([sample.flags for sample in samples]) == apart * int(Flag.NOT_CONVERGED)


def test_a_mode_without_room_does_not_stop_chains() -> None:
    """The first mode lies beyond the prior; chains begin at another, and none without any."""
    model = model_of(**BOXES["area"])
    beyond = INSIDE + np.tile([50.0, 50.0, 0.0], COUNT)
    for other, n_chains in ((INSIDE, 2), (beyond, 0)):
        modes = modes_of(beyond, other, scale=[1.0, 1.0])
        states, logs = wander(model, modes, np.zeros(2, np.int64), 50, 2, 0.0, 0)
        assert len(states) == len(logs) == n_chains
