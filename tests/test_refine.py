"""Targets of a grid taken off it: the joint fit from where the grid has them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

import csunmix as cu
from csunmix._kernels import jit
from csunmix._kernels import refine as kernel
from csunmix._kernels.fit import EXACT, descend
from csunmix._kernels.scene import new_room
from csunmix.continuous.fit import Fit, fit
from csunmix.continuous.refine import refine, rules
from csunmix.continuous.window import Setting, log_room
from csunmix.peaks import Candidates
from csunmix.targets import Flag, make_table

PRESET = cu.presets.csist_100k()
SHAPE = PRESET.shape
PAIR = np.array([[5.0, 4.6, 231.0], [5.3, 5.4, 242.0]])
NEAR = np.array([[5.1, 4.5, 200.0], [5.2, 5.6, 200.0]])
ERRORS = ["y_err", "x_err", "flux_err"]


def light_of(targets: Any, psf: cu.PSF = PRESET.psf, shape: tuple[int, int] = SHAPE) -> Any:
    y, x, flux = np.transpose(targets)
    return np.einsum("k,kij->ij", flux, psf.response(y, x, shape))


def setting_for(prior: cu.Prior, sensor: cu.Sensor = PRESET.sensor) -> Setting:
    return Setting(PRESET.psf, sensor, prior, SHAPE, 0.0)


def unmixer(method: str = "active-set", **given: Any) -> cu.GridUnmixer:
    settings: dict[str, Any] = {
        "psf": PRESET.psf,
        "shape": SHAPE,
        "sensor": PRESET.sensor,
        "prior": PRESET.prior,
        "refine": True,
    }
    return cu.grid_unmixer(method, **(settings | given))


def task_for(setting: Setting, image: Any) -> kernel.Task:
    """What the kernel sees of an image."""
    views, rooms = setting.views(image[None]), setting.rooms[0].copy()
    return kernel.Task(*kernel.view(rules(setting), views, 0, rooms, kernel.EXPLORE))


def fitted(setting: Setting, image: Any, targets: Any) -> Fit:
    """The fit that these targets lead to."""
    window = setting.window(image)
    assert window is not None
    task = task_for(setting, image)
    found, probability = kernel.fit_from(task, targets - [*window.origin, 0.0])
    assert probability > 0.0
    model = kernel.model_for(task, found[0].shape[1] // 3, found[2])
    return Fit(window, model, *found[:2])


def settled(found: Fit) -> float:
    """Objective at the very end of the way, near which the fit ends."""
    theta, optics = found.theta.copy(), found.model.optics
    room = new_room(optics, found.count, theta.size, *found.model.pixels.low.shape)
    return float(descend(found.model, theta, 400, EXACT, room))


# --- the fit ------------------------------------------------------------------------------------


def test_without_memory_to_look_for_optima() -> None:
    @jit.kernel(no_cfunc_wrapper=False)
    def nothing(
        model: Any, starts: Any, effort: Any, enough: int, fresh: float, cells: bool
    ) -> Any:
        return np.empty((0, 0)), np.empty(0)

    task, targets = task_for(setting_for(PRESET.prior), light_of(PAIR)), PAIR - [4.0, 3.0, 0.0]
    model = kernel.model_for(task, 2, 0.0)
    given = model, np.empty((0, 0)), kernel.QUICK, 1, 0.0, False
    lost = task._replace(explore=jit.pointer(nothing, given, nothing(*given)))
    assert kernel.fit_from(task, targets)[1] > 0.0
    with pytest.raises(MemoryError, match="to look for optima"):
        kernel.fit_from(lost, targets)


@pytest.mark.parametrize("prior", [PRESET.prior, cu.Prior(), cu.Prior(cell=True)], ids=str)
def test_the_descent_ends_where_a_search_does(prior: cu.Prior) -> None:
    setting, image = setting_for(prior), PRESET.sensor.expose(light_of(PAIR), rng=0)
    window = setting.window(image)
    assert window is not None
    best, found = fit(setting, window, 2, seed=0), fitted(setting, image, NEAR)
    assert best is not None
    assert found.objective == pytest.approx(best.objective, abs=1e-4)
    order = found.theta.reshape(-1, 3)[:, 1].argsort()
    np.testing.assert_allclose(
        found.theta.reshape(-1, 3)[order, :2] + window.origin, PAIR[:, :2], atol=0.03
    )


def test_errors_are_those_of_the_fit() -> None:
    """Pulls of unit variance where targets stand well apart, fluxes of any size."""
    rng, sensor = np.random.default_rng(3), cu.Sensor(read_noise=1.0)
    start = np.array([[4.4, 4.6, 200.0], [5.6, 5.4, 200.0]])
    truth = start + rng.uniform([-0.2, -0.2, -50.0], [0.2, 0.2, 50.0], (200, 2, 3))
    images = np.array([sensor.expose(light_of(each), rng=rng) for each in truth])
    found = Candidates(np.repeat(np.arange(200), 2), *np.tile(start, (200, 1)).T)
    refined, claims, _ = refine(setting_for(cu.Prior(count=(2, 2)), sensor), images, found)
    order = np.lexsort((refined.y, refined.frame))  # as those of the truth
    pulls = (np.column_stack(refined[1:])[order] - truth.reshape(-1, 3)) / claims[order, :3]
    np.testing.assert_allclose(pulls.std(axis=0), 1.0, atol=0.12)


WIDE = (11, 40)
FAR = [[5.0, 33.0, 150.0]]
KEPT = {
    "beyond the extent": (cu.Prior(extent=1.2), [*PAIR, *FAR], [*NEAR, *FAR]),
    "one too many, apart": (PRESET.prior, PAIR, [*NEAR, [5.0, 30.0, 230.0]]),
    "more unknowns than pixels": (
        cu.Prior(),
        PAIR,
        [[4.6 + 0.01 * k, 5.0, 8.0] for k in range(60)],
    ),
}


@pytest.mark.parametrize(("prior", "truth", "start"), KEPT.values(), ids=KEPT.keys())
def test_what_the_prior_can_not_explain_is_left_as_it_was(
    prior: cu.Prior, truth: Any, start: Any
) -> None:
    images = np.array(
        [PRESET.sensor.expose(light_of(each, shape=WIDE), rng=0) for each in (truth, PAIR)]
    )
    frame = np.repeat([0, 1], [len(start), 2])
    found = Candidates(frame, *np.concatenate([start, NEAR]).T)
    setting = Setting(PRESET.psf, PRESET.sensor, prior, WIDE, 0.0)
    refined, errors, flags = refine(setting, images, found)
    mine = frame == 0
    np.testing.assert_array_equal(np.column_stack(refined)[mine], np.column_stack(found)[mine])
    assert np.isnan(errors[mine]).all()
    assert (flags[mine] == Flag.NOT_CONVERGED).all()
    assert np.isfinite(errors[~mine]).all()  # the other image is not touched by this one
    assert not (flags[~mine] & (Flag.NOT_CONVERGED | Flag.MISFIT)).any()


@pytest.mark.parametrize("far", [[[5.0, 30.0, 60.0]], [[5.0, 9.0, 20.0], [2.0, 37.0, 12.0]]])
def test_targets_too_faint_and_too_far_to_be_any_are_noise(far: Any) -> None:
    image = PRESET.sensor.expose(light_of(PAIR, shape=WIDE), rng=0)
    setting = Setting(PRESET.psf, PRESET.sensor, PRESET.prior, WIDE, 0.0)
    start = np.array([*far, *NEAR])
    found = Candidates(np.zeros(len(start), np.int64), *start.T)
    refined, errors, flags = refine(setting, image[None], found)
    alone, *_ = refine(setting, image[None], Candidates(np.zeros(2, np.int64), *NEAR.T))
    np.testing.assert_array_equal(np.column_stack(refined), np.column_stack(alone))
    assert np.isfinite(errors).all()
    assert not (flags & (Flag.NOT_CONVERGED | Flag.MISFIT)).any()


@pytest.mark.parametrize(("side", "noise", "least"), [(11, 10.0, 0.75), (31, 5.0, 0.9)])
def test_targets_of_noisy_saturated_images_are_counted(
    side: int, noise: float, least: float
) -> None:
    """Although the grid has some that are noise."""
    sensor, shape = replace(PRESET.sensor, read_noise=noise), (side, side)
    made = cu.simulate(PRESET.psf, sensor, PRESET.scene, shape=shape, n=60, rng=8)
    counts = unmixer(sensor=sensor, shape=shape)(made.images).groupby("frame").size()
    truth = made.truth.groupby("frame").size()
    assert (counts.reindex(truth.index, fill_value=0) == truth).mean() > least


@pytest.mark.parametrize(
    "start",
    [
        [[5.0, 4.6, 150.0], [5.3, 5.4, 240.0], [5.2, 5.0, 80.0]],
        [[5.0, 4.6, 231.0], [5.3, 5.4, 242.0], [4.5, 5.0, 0.0]],
        [[5.0, 4.5, 0.0], [5.0, 4.6, 0.0], [5.3, 5.4, 400.0]],
        [[5.1, 5.0, 473.0]],
        [[5.1, 5.0, 505.0]],
        [[5.1, 5.0, 473.0], [5.1, 5.2, 60.0]],
    ],
    ids=[
        "one too many",
        "one without flux",
        "two without flux",
        "one too few",
        "a little too bright",
        "one too bright",
    ],
)
def test_targets_become_as_many_as_the_prior_allows(start: Any) -> None:
    image = PRESET.sensor.expose(light_of(PAIR), rng=0)
    found = Candidates(np.zeros(len(start), int), *np.transpose(start))
    refined, errors, flags = refine(setting_for(PRESET.prior), image[None], found)
    order = refined.x.argsort()
    np.testing.assert_allclose(np.column_stack(refined[1:3])[order], PAIR[:, :2], atol=0.03)
    assert refined.frame.tolist() == [0, 0]
    assert (errors > 0).all()
    assert not (flags & (Flag.NOT_CONVERGED | Flag.MISFIT)).any()


def test_the_order_of_what_the_grid_found_does_not_matter() -> None:
    images = np.array([PRESET.sensor.expose(light_of(PAIR), rng=rng) for rng in (0, 1)])
    frame, targets = np.repeat([0, 1], 2), np.concatenate([NEAR, NEAR])
    setting = setting_for(PRESET.prior)
    refined, claims, flags = refine(setting, images, Candidates(frame, *targets.T))
    assert refined.frame.tolist() == [0, 0, 1, 1]
    order = [0, 2, 1, 3]
    other = refine(setting, images, Candidates(frame[order], *targets[order].T))
    for one, same in zip((*refined, claims, flags), (*other[0], *other[1:]), strict=True):
        np.testing.assert_array_equal(one, same)


def test_no_target_is_split_where_no_fluxes_are_told() -> None:
    """A lone star whose core is clipped, far brighter than what is seen of it."""
    sensor = cu.Sensor(rounding=True, saturation=255.0)
    star = [[5.1, 4.8, 10_000.0]]
    image = sensor.expose(light_of(star, cu.GaussianPSF(1.0)), rng=0)
    for prior in (cu.Prior(), cu.Prior(count=(1, 3))):
        setting = Setting(cu.GaussianPSF(1.0), sensor, prior, SHAPE, 0.0)
        refined, _, _ = refine(setting, image[None], Candidates([0], [5.0], [5.0], [9_000.0]))
        assert refined.frame.tolist() == [0]


OPEN = cu.Prior(count=(1, 5), flux=(50.0, 500.0), min_separation=0.494, extent=1.2)


def test_counts_are_those_of_the_evidence() -> None:
    """Where the grid has one target more or fewer, and fluxes of a wide range leave that open."""
    sensor = cu.Sensor(rounding=True)
    setting = setting_for(OPEN, sensor)
    several = replace(OPEN, count=(2, 4))
    made = cu.simulate(PRESET.psf, sensor, several, shape=SHAPE, n=60, rng=14)
    right, ambiguous = [], []
    for frame, truth in made.truth.groupby("frame"):
        scene = truth[["y", "x", "flux"]].to_numpy()
        more = np.vstack([scene, scene[-1] + [0.2, 0.1, 0.0]])
        for start in (scene, scene[1:] * [1.0, 1.0, len(scene) / (len(scene) - 1)], more):
            refined, _, flags = refine(
                setting, made.images[[frame]], Candidates(np.zeros(len(start), int), *start.T)
            )
            right.append(len(refined.flux) == len(scene))
            ambiguous.append(bool(flags[0] & Flag.COUNT_AMBIGUOUS))
    sure = ~np.array(ambiguous)
    assert np.mean(right) > 0.9
    assert np.array(right)[sure].mean() > 0.95
    assert 0.0 < np.mean(ambiguous) < 0.3


@pytest.mark.parametrize(
    ("count", "found"), [((1, 1), 1), ((2, 2), 2), ((1, 2), 2), ((3, 5), 3), (None, 1)]
)
def test_the_count_is_one_of_the_prior(count: Any, found: int) -> None:
    """Without one it is the grid's."""
    sensor = cu.Sensor(rounding=True)
    image, one = sensor.expose(light_of(PAIR), rng=0), Candidates([0], [5.1], [5.0], [470.0])
    refined, _, flags = refine(
        setting_for(replace(OPEN, count=count, min_separation=0.2), sensor), image[None], one
    )
    assert len(refined.flux) == found
    assert ((flags & Flag.MISFIT) != 0).all() == (found == 1)


def test_targets_apart_are_not_merged_to_fit_the_count() -> None:
    sensor, far = cu.Sensor(rounding=True), [[2.0, 2.0, 240.0], [8.0, 8.0, 230.0]]
    image, two = sensor.expose(light_of(far), rng=0), Candidates([0, 0], *np.transpose(far))
    refined, claims, flags = refine(setting_for(cu.Prior(count=(1, 1)), sensor), image[None], two)
    assert refined.flux.tolist() == [240.0, 230.0]
    assert np.isnan(claims).all()
    assert (flags == Flag.NOT_CONVERGED).all()


@pytest.mark.parametrize("count", [(4, 4), (1, 4)], ids=str)
def test_a_count_without_room_is_no_answer(count: tuple[int, int]) -> None:
    """Four targets can not lie 0.494 px apart in a box of 0.4 px: three can, nearly."""
    prior = cu.Prior(count=count, min_separation=0.494, extent=0.4)
    square = [[y, x, 230.0] for y in (4.8, 5.3) for x in (4.8, 5.3)]
    sensor = cu.Sensor(read_noise=1.0)
    image, found = (
        sensor.expose(light_of(square), rng=0),
        Candidates([0] * 4, *np.transpose(square)),
    )
    refined, claims, flags = refine(setting_for(prior, sensor), image[None], found)
    assert refined.flux.tolist() == [230.0] * 4
    assert np.isnan(claims).all()
    assert (flags == Flag.NOT_CONVERGED).all()


@pytest.mark.parametrize("count", [(1, 1), (1, 3)], ids=str)
def test_a_false_target_far_from_others_is_left_out(count: tuple[int, int]) -> None:
    sensor = cu.Sensor(read_noise=1.0)
    image = sensor.expose(light_of([[5.0, 5.0, 300.0]]), rng=0)
    found = Candidates([0, 0], [5.0, 8.0], [5.0, 7.0], [298.0, 4.0])
    refined, _, flags = refine(setting_for(cu.Prior(count=count), sensor), image[None], found)
    assert len(refined.flux) == 1
    assert not (flags & (Flag.NOT_CONVERGED | Flag.MISFIT)).any()


@pytest.mark.parametrize("start", [[0], [0, 0, 1, 2], [0, 1, 1, 2, 2]], ids=str)
def test_counts_are_reached_by_several_steps(start: list[int]) -> None:
    """Three stars in a row, of which one alone is two, from one of them up or from more down."""
    sensor = cu.Sensor(read_noise=1.0)
    scene = np.array([[5.0, 3.6, 230.0], [5.0, 5.0, 230.0], [5.0, 6.4, 230.0]])
    image = sensor.expose(light_of(scene), rng=0)
    found = scene[start] + 0.1 * np.arange(3 * len(start)).reshape(-1, 3) % [0.3, 0.4, 1.0]
    prior = cu.Prior(count=(1, 6), flux=(50.0, 1000.0))
    refined, _, flags = refine(
        setting_for(prior, sensor), image[None], Candidates(np.zeros(len(start), int), *found.T)
    )
    assert len(refined.flux) == 3
    assert not (flags & (Flag.MISFIT | Flag.NOT_CONVERGED)).any()


def allows(task: kernel.Task, theta: Any, count: int) -> bool:
    return kernel.allowed(task.box, task.fluxes, task.counts, theta, count)


def test_other_counts_are_those_that_the_light_allows() -> None:
    """Two targets of 400 to 800 DN in all may be three of 50 to 500 DN, not of 220 to 250."""
    image = PRESET.sensor.expose(light_of(PAIR), rng=0)
    for prior, expected in ((PRESET.prior, [2]), (OPEN, [1, 2, 3, 4, 5])):
        task = task_for(setting_for(prior), image)
        counts = [n for n in range(8) if allows(task, PAIR.ravel(), n)]
        assert counts == expected
        fit = kernel._explained(task, NEAR - [*setting_for(prior).window(image).origin, 0.0])
        path, n = kernel._climb(task, fit)
        assert sorted(path[1][:n]) == ([2] if prior is PRESET.prior else [1, 2, 3])
    unknown = task_for(setting_for(cu.Prior(count=(1, 5))), image)
    most = unknown.box.flux[1]
    assert allows(unknown, np.array([5.0, 5.0, 0.9 * most]), 2)
    assert not allows(unknown, np.array([5.0, 5.0, most]), 2)


@pytest.mark.parametrize("double", [0, 1])
def test_any_target_may_be_two(double: int) -> None:
    sensor, single = cu.Sensor(read_noise=1.0), [[4.4, 4.2, 240.0], [5.8, 6.0, 240.0]]
    y, x, flux = single[double]
    scene = [single[1 - double], [y - 0.3, x, 0.5 * flux], [y + 0.3, x, 0.5 * flux]]
    image, found = sensor.expose(light_of(scene), rng=0), Candidates([0, 0], *np.transpose(single))
    prior = cu.Prior(count=(1, 5), flux=(20.0, 500.0))
    assert len(refine(setting_for(prior, sensor), image[None], found)[0].flux) == 3


def test_where_no_count_explains_an_image_it_is_the_grids() -> None:
    sensor = cu.Sensor(read_noise=1.0)
    wide = sensor.expose(light_of([[5.0, 5.0, 9000.0]], cu.GaussianPSF(0.8)), rng=0)
    found, prior = Candidates([0], [5.0], [5.0], [9000.0]), cu.Prior(count=(1, 3))
    refined, claims, flags = refine(setting_for(prior, sensor), wide[None], found)
    assert len(refined.flux) == 1
    assert claims[0, 3] <= 1.0
    assert flags[0] & Flag.MISFIT


def test_a_single_star_is_one_and_surely_so() -> None:
    """Where a second would lie on the first, it is not counted by the volume that it has there."""
    rng, sensor = np.random.default_rng(6), cu.Sensor(read_noise=1.0)
    stars = [[[*rng.uniform(4.5, 5.5, 2), 300.0]] for _ in range(40)]
    images = np.array([sensor.expose(light_of(star), rng=rng) for star in stars])
    found = Candidates(np.arange(40), *np.concatenate(stars).T)
    prior = cu.Prior(count=(1, 5), flux=(20.0, 500.0))
    refined, _, flags = refine(setting_for(prior, sensor), images, found)
    assert len(refined.flux) == 40
    assert np.mean((flags & Flag.COUNT_AMBIGUOUS) != 0) < 0.05


def test_there_are_no_more_unknowns_than_pixels() -> None:
    setting = Setting(PRESET.psf, cu.Sensor(), cu.Prior(count=(1, 5)), (3, 3), 0.0)
    image = np.full((1, 3, 3), 200.0)
    found = Candidates([0, 0, 0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [300.0] * 3)
    assert len(refine(setting, image, found)[0].flux) <= 3


def test_a_prior_may_have_more_targets_than_an_image_can() -> None:
    image = PRESET.sensor.expose(light_of(PAIR), rng=0)[None]
    found = Candidates([0, 0], *NEAR.T)
    few, many = (
        refine(setting_for(replace(OPEN, count=(1, most))), image, found) for most in (6, 10**6)
    )
    np.testing.assert_array_equal(few[0].y, many[0].y)


@pytest.mark.parametrize("flux", [np.nan, np.inf])
def test_targets_without_a_number_as_flux_are_left_as_they_are(flux: float) -> None:
    image = PRESET.sensor.expose(light_of(PAIR), rng=0)[None]
    found = Candidates([0, 0], [5.0, 5.2], [5.0, 5.2], [flux, 100.0])
    refined, _, flags = refine(setting_for(PRESET.prior), image, found)
    np.testing.assert_array_equal(refined.flux, found.flux)
    assert (flags == Flag.NOT_CONVERGED).all()


def test_a_score_is_the_less_the_less_sure_the_count_is() -> None:
    """Two targets of which the image hardly tells whether they are one."""
    sensor = cu.Sensor(read_noise=2.0)
    close = [[5.0, 4.75, 80.0], [5.0, 5.25, 80.0]]
    image, one = sensor.expose(light_of(close), rng=0), Candidates([0], [5.0], [5.0], [160.0])
    open_, closed = (
        refine(setting_for(replace(OPEN, count=count), sensor), image[None], one)
        for count in ((1, 2), (2, 2))
    )
    assert len(open_[0].flux) == len(closed[0].flux) == 2
    share = open_[1][:, 3] / closed[1][:, 3]
    assert 0.3 < share[0] < 0.9
    assert share == pytest.approx(share[0], rel=1e-6)
    assert (open_[2] & Flag.COUNT_AMBIGUOUS).all()
    assert not (closed[2] & Flag.COUNT_AMBIGUOUS).any()


def test_a_cluster_that_begins_turned_ends_in_the_best_fit() -> None:
    setting = setting_for(cu.Prior(flux=(220.0, 250.0), min_separation=0.494, extent=1.2))
    several = replace(PRESET.scene, count=(3, 5))
    made = cu.simulate(PRESET.psf, PRESET.sensor, several, shape=SHAPE, n=40, rng=11)
    turn = np.sqrt(0.5) * np.array([[1.0, -1.0], [1.0, 1.0]])  # an eighth
    same = []
    for frame, truth in made.truth.groupby("frame"):
        scene = truth[["y", "x", "flux"]].to_numpy()
        middle = scene[:, :2].mean(axis=0)
        scene[:, :2] = middle + (scene[:, :2] - middle) @ turn
        window = setting.window(made.images[frame])
        assert window is not None
        best, found = (
            fit(setting, window, len(scene), 0),
            fitted(setting, made.images[frame], scene),
        )
        assert best is not None
        same.append(found.objective < best.objective + 0.01)
    assert np.mean(same) > 0.9


def test_a_cluster_that_begins_in_a_line_ends_in_the_best_fit() -> None:
    setting = setting_for(replace(PRESET.prior, cell=False), cu.Sensor(read_noise=1.0))
    five = replace(PRESET.scene, count=(5, 5))
    made = cu.simulate(PRESET.psf, setting.sensor, five, shape=SHAPE, n=60, rng=13)
    same = []
    for frame, truth in made.truth.groupby("frame"):
        scene = truth[["y", "x", "flux"]].to_numpy().copy()
        scene[:, :2] = scene[:, :2].mean(axis=0) + np.outer(np.arange(-2, 3), [0.1, 0.2])
        window = setting.window(made.images[frame])
        assert window is not None
        best, found = fit(setting, window, 5, 0), fitted(setting, made.images[frame], scene)
        assert best is not None
        assert found.objective < best.objective + 1.0
        same.append(settled(found) < best.objective + 0.01)
    assert np.mean(same) > 0.95


def moments_of(scene: Any) -> Any:
    """Middle and covariance of the light of targets."""
    middle = np.average(scene[:, :2], axis=0, weights=scene[:, 2])
    return middle, np.cov(scene[:, :2].T, aweights=scene[:, 2], ddof=0)


def test_other_shapes_have_the_middle_and_the_spread_of_the_first() -> None:
    first = np.array([[4.6, 4.9, 225.0], [5.1, 4.7, 400.0], [5.2, 5.4, 131.0], [5.0, 5.0, 229.0]])
    shapes = kernel.reshaped(first, 1.0)
    assert len(shapes) == 3 + 2 * 3  # turned, and two regular figures each turned twice
    three = kernel.reshaped(first[:3] * [1.0, 1.0, 0.0] + [0.0, 0.0, 230.0], 1.0)
    turned = three[[0, 1, -1], :, :2]
    for one, other in combinations(turned, 2):  # nor of three, a triangle where stretched
        apart = np.linalg.norm(one[:, None] - other, axis=-1)
        assert apart[linear_sum_assignment(apart)].max() > 0.1
    np.testing.assert_array_equal(shapes[0], first)
    middle, spread = moments_of(first)
    for scene in shapes[[1, -1]]:
        np.testing.assert_array_equal(scene[:, 2], first[:, 2])
        np.testing.assert_allclose(moments_of(scene)[0], middle)
        np.testing.assert_allclose(moments_of(scene)[1], spread)
    for scene in shapes[2:-1]:  # figures are those of targets of the same flux
        np.testing.assert_array_equal(scene[:, 2], first[:, 2])
        np.testing.assert_allclose(scene[:, :2].mean(axis=0), middle)
        np.testing.assert_allclose(np.cov(scene[:, :2].T, ddof=0), spread)
    for one, other in combinations(shapes[:, :, :2], 2):  # none twice
        apart = np.linalg.norm(one[:, None] - other, axis=-1)
        assert apart[linear_sum_assignment(apart)].max() > 0.02


def test_figures_of_targets_on_a_line_have_some_width() -> None:
    line = np.array([[4.0, 4.0, 230.0], [5.0, 5.0, 230.0], [6.0, 6.0, 230.0]])
    figures = kernel.reshaped(line, 2.0)[2:-1]
    assert len(figures) == 3
    for scene in figures:
        across, along = np.linalg.eigvalsh(moments_of(scene)[1])
        assert along == pytest.approx(4.0 / 3.0)
        assert across == pytest.approx(0.1 * along)


@pytest.mark.parametrize("change", [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], ids=["dark", "one place"])
def test_shapes_of_targets_without_a_spread_are_places(change: Any) -> None:
    shapes = kernel.reshaped(
        np.array([[4.0, 4.0, 9.0], [4.5, 5.0, 9.0], [5.0, 5.0, 9.0]]) * change, 2.0
    )
    assert np.isfinite(shapes).all()


def test_targets_apart_and_one_alone_keep_their_shape() -> None:
    pair = np.array([[4.6, 4.9, 225.0], [5.1, 4.7, 240.0]])
    assert len(kernel.reshaped(pair, 1.0)) == 3
    assert len(kernel.reshaped(pair, 0.2)) == len(kernel.reshaped(pair[:1], 1.0)) == 1
    bright_and_faint = np.array([[5.0, 5.0, 1000.0], [5.0, 6.4, 50.0]])  # whatever their light
    assert len(kernel.reshaped(bright_and_faint, 1.0)) == 3


def test_scenes_in_a_likely_cell_are_among_the_optima() -> None:
    """Of fits beside a cell, as good a scene in it as the fit of one who knows of the cell."""
    likely = setting_for(PRESET.prior)
    sure = setting_for(replace(PRESET.prior, extent=None, cell=True))
    made = cu.simulate(
        PRESET.psf, PRESET.sensor, replace(PRESET.scene, count=(5, 5)), shape=SHAPE, n=40, rng=12
    )
    found = []
    for frame, truth in made.truth.groupby("frame"):
        scene = truth[["y", "x", "flux"]].to_numpy()
        fit, inside = (fitted(each, made.images[frame], scene) for each in (likely, sure))
        if inside.objective > fit.objective + 0.01:
            found.append(np.abs(fit.objectives - inside.objective).min() < 0.2)  # both end near it
    assert len(found) > 4
    assert np.mean(found) > 0.8


@pytest.mark.parametrize(
    "targets",
    [
        [[5.1, 5.0, 230.0]] * 2,
        [[5.1, 5.0, 1e12], [5.2, 5.0, 1e12]],
        [[5.1, 5.0, 230.0], [5.2, 5.2, 0.0]],
        [[5.1, 5.0, -230.0], [5.2, 5.2, 100.0]],
    ],
    ids=["one place", "far too bright", "without flux", "below 0"],
)
def test_starts_that_are_no_good_still_end_in_the_fit(targets: Any) -> None:
    image = PRESET.sensor.expose(light_of(PAIR), rng=0)
    found, errors, _ = refine(
        setting_for(cu.Prior()), image[None], Candidates([0, 0], *np.transpose(targets))
    )
    order = np.argsort(found.x)
    np.testing.assert_allclose(np.column_stack(found[1:3])[order], PAIR[:, :2], atol=0.03)
    assert (errors > 0).all()


def test_without_light_or_targets_nothing_happens() -> None:
    none = Candidates(*np.empty((4, 0)))
    refined, errors, _ = refine(setting_for(cu.Prior()), np.zeros((1, *SHAPE)), none)
    assert errors.shape == (0, 4)
    assert refined.flux.size == 0
    one = Candidates([0], [5.0], [5.0], [3.0])
    refined, errors, _ = refine(setting_for(cu.Prior()), np.zeros((1, *SHAPE)), one)
    assert refined.flux == [3.0]
    assert np.isnan(errors).all()


def test_what_the_fit_does_not_explain_is_flagged() -> None:
    """An image of a wider PSF, and targets whose fluxes end at a bound of the prior."""
    prior = cu.Prior(flux=(220.0, 250.0))
    sensor = cu.Sensor(rounding=True)
    wide = sensor.expose(light_of(PAIR, cu.GaussianPSF(sigma=0.6)), rng=0)
    dim = sensor.expose(light_of(PAIR * [1.0, 1.0, 0.92]), rng=0)
    frame = np.repeat([0, 1], 2)
    found = Candidates(frame, *np.concatenate([NEAR, NEAR]).T)
    flags = refine(setting_for(prior, sensor), np.array([wide, dim]), found)[2]
    assert (flags[:2] & Flag.MISFIT == Flag.MISFIT).all()
    assert (flags[2:] & Flag.AT_BOUND).any()


# --- the unmixer --------------------------------------------------------------------------------


@pytest.mark.parametrize("saturation", [255.0, None], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("factor", [3, 5])
def test_refined_targets_are_better_than_the_grid_allows(
    factor: int, saturation: float | None
) -> None:
    sensor = cu.Sensor(rounding=True, saturation=saturation)
    made = cu.simulate(PRESET.psf, sensor, PRESET.scene, shape=SHAPE, n=60, rng=8)
    grid = unmixer(sensor=sensor, factor=factor, refine=False)(made.images)
    refined = unmixer(sensor=sensor, factor=factor)(made.images)
    before, after = (cu.metrics.cso_map(each, made.truth).mean for each in (grid, refined))
    assert after > max(before + 0.2, 0.85)
    assert cu.metrics.count_accuracy(refined, made.truth) > 0.95
    assert refined[ERRORS].notna().all(axis=1).mean() > 0.95
    cu.targets.check_table(refined)


def test_far_too_many_cells_that_fit_the_image_better_than_targets_can() -> None:
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=SHAPE, n=60, rng=5)
    given: dict[str, Any] = {"solver": cu.ActiveSet(lam=0.1), "sensor": PRESET.sensor}
    unmix = cu.GridUnmixer(
        cu.Dictionary(PRESET.psf, SHAPE, 5),
        peaks=cu.EveryCell(threshold=1.0),
        refine=PRESET.prior,
        **given,
    )
    table = unmix(made.images)
    assert cu.metrics.count_accuracy(table, made.truth) > 0.95
    assert table["x_err"].notna().mean() > 0.95


def test_a_likely_cell_and_all_optima_are_reckoned_with() -> None:
    sensor = cu.Sensor(read_noise=1.0)
    made = cu.simulate(PRESET.psf, sensor, PRESET.scene, shape=SHAPE, n=100, rng=10)
    anywhere = replace(PRESET.prior, cell=False)
    in_cell, free = (
        unmixer(sensor=sensor, prior=prior)(made.images) for prior in (PRESET.prior, anywhere)
    )
    better, worse = (cu.metrics.cso_map(each, made.truth).mean for each in (in_cell, free))
    assert better > worse + 0.04
    pairs = cu.metrics.match(free, made.truth, max_distance=2.0)
    near, true = free.iloc[pairs.detection], made.truth.iloc[pairs.truth]
    pull = near[["y", "x"]].to_numpy() - true[["y", "x"]].to_numpy()
    pull /= near[["y_err", "x_err"]].to_numpy()
    assert pull.std() < 1.4  # 2.4 around the best optimum alone
    hit = pairs.distance < 0.1
    assert near["score"].mean() == pytest.approx(hit.mean(), abs=0.06)
    sure = near["score"].to_numpy() > near["score"].median()
    assert hit[sure].mean() > hit[~sure].mean() + 0.1


def test_what_room_there_is_is_known_at_the_second_call() -> None:
    setting, image = setting_for(PRESET.prior), PRESET.sensor.expose(light_of(PAIR), rng=0)
    found = Candidates([0, 0], *NEAR.T)
    first = refine(setting, image[None], found)
    known = setting.rooms[0].copy()
    assert known[4].tolist() == [1.2, 1.2, log_room(np.full(2, 1.2), 0.494, 2)]
    assert known[5].tolist() == [1.0, 1.0, log_room(np.ones(2), 0.494, 2)]
    second = refine(setting, image[None], found)
    np.testing.assert_array_equal(setting.rooms[0], known)
    np.testing.assert_array_equal(first[1], second[1])


def test_form_of_the_table() -> None:
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=SHAPE, n=12, rng=41)
    images = made.images.copy()
    images[4, 2, 3], images[7] = np.nan, 0.0
    table = unmixer()(images)
    assert set(table["frame"]) == set(range(12)) - {4, 7}
    assert table["score"].dropna().between(0.0, 1.0).all()
    assert table["score"].isna().equals(table["x_err"].isna())
    assert "refine=Prior(" in table.attrs["method"]
    flags = table.attrs["frame_flags"]
    assert (flags[4], flags[7]) == (Flag.NOT_FINITE | Flag.NO_TARGET, Flag.NO_TARGET)
    grid = unmixer(refine=False)(images)
    of_fit = Flag.AT_BOUND | Flag.FLAT | Flag.MISFIT | Flag.NOT_CONVERGED | Flag.BORDER
    seen = {frame: flag & ~of_fit for frame, flag in flags.items() if flag & ~of_fit}
    assert seen == {k: f & ~of_fit for k, f in grid.attrs["frame_flags"].items() if f & ~of_fit}
    kept = (table["flags"] & Flag.NOT_CONVERGED) != 0
    assert kept.equals(table["x_err"].isna())
    pd.testing.assert_frame_equal(unmixer()(images, batch_size=5), table)
    single, double = (
        t.sort_values(["frame", "y"]) for t in (unmixer()(images.astype("f4")), table)
    )
    np.testing.assert_allclose(single["y"], double["y"], atol=2e-3)


def test_few_windows_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=SHAPE, n=7, rng=14)
    whole, sizes = unmixer()(made.images), []
    views = Setting.views

    def counted(setting: Setting, images: Any) -> Any:
        sizes.append(len(images))
        return views(setting, images)

    monkeypatch.setattr(Setting, "views", counted)
    monkeypatch.setattr("csunmix.continuous.refine._PIXELS", 2 * SHAPE[0] * SHAPE[1])
    pd.testing.assert_frame_equal(unmixer()(made.images), whole)
    assert sizes == [2, 2, 2, 1]


def test_flags_are_of_where_targets_are() -> None:
    """The fit moves a target of the outermost ring into it; the grid's own flags stay."""
    target = [[0.45, 5.0, 240.0]]
    image = cu.Sensor(rounding=True, saturation=60.0).expose(light_of(target), rng=0)
    sensor = cu.Sensor(rounding=True, saturation=60.0)
    given: dict[str, Any] = {"factor": 1, "prior": cu.Prior(), "sensor": sensor}
    grid, refined = (unmixer("omp", n_nonzero=1, refine=r, **given)(image) for r in (False, True))
    assert refined["y"].item() == pytest.approx(0.45, abs=0.03)
    assert refined["flags"].item() == Flag.BORDER | Flag.SATURATED
    assert grid["flags"].item() & Flag.SATURATED


def test_a_prior_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^refine must allow a target, got Prior\(count=\(0, 0\)"):
        unmixer(prior=cu.Prior(count=(0, 0)))


def test_bounds_of_the_prior_hold() -> None:
    image = PRESET.sensor.expose(light_of(PAIR), rng=0)
    table = unmixer(prior=cu.Prior(flux=(225.0, 236.0)))(image)
    assert table["flux_err"].notna().all()
    assert table["flux"].between(225.0, 236.0).all()


@pytest.mark.parametrize(
    ("sensor", "background", "level"),
    [
        (cu.Sensor(read_noise=1.0, offset=100.0), 0.0, 0.0),
        (cu.Sensor(read_noise=1.0, offset=100.0), 20.0, 20.0),
        (cu.Sensor(read_noise=1.0, offset=100.0), "border", 20.0),
        (cu.Sensor(read_noise=1.0, bad_pixels=np.eye(11, k=3) > 0), "border", 20.0),
        (cu.Sensor(read_noise=1.0, rounding=True, saturation=120.0), 0.0, 0.0),
        (None, "border", 20.0),
    ],
)
def test_detectors_and_backgrounds(sensor: Any, background: Any, level: float) -> None:
    exposed = (sensor or cu.Sensor(read_noise=1.0)).expose(light_of(PAIR) + level, rng=4)
    if sensor is not None and sensor.bad_pixels is not None:
        exposed[sensor.bad_pixels] = np.nan
    prior = cu.Prior(flux=(150.0, 300.0))
    found = unmixer("omp", n_nonzero=2, sensor=sensor, prior=prior, background=background)(exposed)
    found = found.sort_values("x")
    assert len(found) == 2
    away = (found[["y", "x", "flux"]].to_numpy() - PAIR) / found[ERRORS].to_numpy()
    assert np.abs(away).max() < 4.0
    assert (found[["y_err", "x_err"]] < 0.1).all(axis=None)


@pytest.mark.parametrize("psf", [cu.AiryPSF(radius=2.0), cu.GaussianPSF(1.2, sigma_x=0.8)], ids=str)
def test_any_optics(psf: cu.PSF) -> None:
    shape = (13, 12)
    pair = [[5.2, 4.1, 3000.0], [6.1, 7.3, 2000.0]]
    sensor = cu.Sensor(read_noise=1.0)
    image = sensor.expose(light_of(pair, psf, shape), rng=0)
    table = cu.grid_unmixer(psf=psf, shape=shape, sensor=sensor, refine=True)(image)
    assert len(table) == 2
    np.testing.assert_allclose(table.sort_values("y")[["y", "x"]], np.array(pair)[:, :2], atol=0.02)
    assert cu.metrics.flux_error(table, make_table(0, *np.transpose(pair))) < 20.0


def test_the_fit_is_loaded_where_it_is_needed() -> None:
    code = (
        "import sys, csunmix as cu; s = cu.presets.csist_100k();"
        "unmix = cu.grid_unmixer(psf=s.psf, shape=s.shape, refine=True);"
        "print('csunmix.continuous' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_wrong_settings() -> None:
    with pytest.raises(TypeError, match="refine must be True or False, got Prior"):
        unmixer(refine=PRESET.prior)
    plain = unmixer(refine=False)
    with pytest.raises(TypeError, match="refine must be of type Prior, got True"):
        cu.GridUnmixer(plain.dictionary, solver=plain.solver, peaks=plain.peaks, refine=True)  # type: ignore[arg-type]


def test_an_absurd_pixel_does_not_stop_a_batch() -> None:
    images = np.array(PRESET.sensor.expose([light_of(PAIR)] * 2, rng=0), dtype=np.float64)
    images[1, 3, 3] = 1e200
    table = unmixer(sensor=cu.Sensor(rounding=True))(images)
    assert set(table["frame"]) == {0}
    assert table.attrs["frame_flags"][1] == Flag.NOT_FINITE | Flag.NO_TARGET
