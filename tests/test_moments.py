"""Fits begun at the moments of the light: each step against NumPy, and the unmixer as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, minimize

import csunmix as cu
from csunmix._kernels import moments as kernel
from csunmix._kernels.fit import EXACT, Pull, descend_pulled, objective
from csunmix._kernels.refine import Spread, Task, view
from csunmix._kernels.scene import new_room
from csunmix.continuous.refine import rules
from csunmix.targets import Flag

PRESET = cu.presets.csist_100k()
PSF, PRIOR, SHAPE = PRESET.psf, PRESET.prior, PRESET.shape
SENSOR = cu.Sensor(read_noise=1.0)
PAIR = np.array([[5.0, 4.6, 231.0], [5.3, 5.4, 242.0]])
FOUR = np.array([[4.7, 4.6, 231.0], [5.3, 5.4, 242.0], [4.7, 5.3, 222.0], [5.4, 4.7, 240.0]])


def light_of(targets: Any, psf: cu.PSF = PSF, shape: tuple[int, int] = SHAPE) -> Any:
    y, x, flux = np.transpose(targets)
    return np.einsum("k,kij->ij", flux, psf.response(y, x, shape))


def unmixer(**given: Any) -> cu.MomentUnmixer:
    settings: dict[str, Any] = {"psf": PSF, "sensor": SENSOR, "prior": PRIOR}
    return cu.MomentUnmixer(**(settings | given))


def task_for(unmix: cu.MomentUnmixer, image: Any) -> tuple[Task, Any]:
    """What the kernel sees of an image, and the first pixel of that."""
    setting = unmix._setting(image.shape)
    views = unmix._near(setting.views(image[None]))
    return Task(*view(rules(setting), views, 0, np.empty((0, 3)), None)), views.start[0]


def covariance_of(targets: Any) -> Any:
    return np.cov(targets[:, :2].T, aweights=targets[:, 2], ddof=0)


# --- what the light says ------------------------------------------------------------------------


@pytest.mark.parametrize("psf", [PSF, cu.GaussianPSF(sigma_y=0.5, sigma_x=0.7), cu.AiryPSF(1.2)])
def test_moments_of_the_light_are_those_of_the_targets(psf: cu.PSF) -> None:
    unmix = unmixer(psf=psf, sensor=cu.Sensor(read_noise=0.01))
    task, origin = task_for(unmix, light_of(FOUR, psf))
    light = kernel._look(task, unmix._core)
    spread = Spread(*light[3])
    y, x = np.average(FOUR[:, :2], axis=0, weights=FOUR[:, 2]) - origin
    assert light[0] == pytest.approx(FOUR[:, 2].sum(), rel=0.01)
    assert (spread.y, spread.x) == pytest.approx((y, x), abs=0.01)
    turn = np.array([[spread.sine, spread.cosine], [spread.cosine, -spread.sine]])
    found = turn @ np.diag([spread.far**2, spread.near**2]) @ turn.T
    assert found == pytest.approx(covariance_of(FOUR), abs=0.02)


def test_light_behind_a_bound_is_that_of_a_product() -> None:
    task, _ = task_for(unmixer(), light_of(PAIR[:1]))
    hidden = np.unravel_index(task.pixels.low.argmax(), task.pixels.low.shape)
    truth = task.pixels.low[hidden]
    task.pixels.low[hidden], task.pixels.high[hidden] = 60.0, np.inf
    assert kernel._behind(task.pixels, *map(int, hidden)) == pytest.approx(truth, rel=1e-6)
    assert kernel._behind(task.pixels, 0, 0) == 0.0  # nothing is lit around it
    found = kernel._look(task, unmixer()._core)
    assert found[0] == pytest.approx(231.0, rel=0.02)
    assert found[2] - found[0] > 0.3 * (truth - 60.0)  # of which it is not sure


def test_a_bound_is_the_least_of_what_it_may_hide() -> None:
    task, _ = task_for(unmixer(), light_of(PAIR[:1]))
    hidden = np.unravel_index(task.pixels.low.argmax(), task.pixels.low.shape)
    task.pixels.low[hidden], task.pixels.high[hidden] = 1e4, np.inf
    assert kernel._look(task, unmixer()._core)[0] > 1e4


@pytest.mark.parametrize("count", range(2, 9))
def test_figures_have_the_spread_that_is_asked_for(count: int) -> None:
    spread = Spread(3.0, 4.0, np.sin(0.4), np.cos(0.4), 0.5, 0.3)
    scenes = kernel._figures(spread, count, 7.0)
    assert len(scenes) == {2: 1, 3: 3}.get(count, 6)
    axes = np.array([[spread.sine, spread.cosine], [spread.cosine, -spread.sine]])
    for scene in scenes:
        assert scene[:, :2].mean(axis=0) == pytest.approx([3.0, 4.0])
        assert (scene[:, 2] == 7.0).all()
        along = (scene[:, :2] - [3.0, 4.0]) @ axes
        expected = np.diag([0.25, 0.09 if count > 2 else 0.0])
        assert along.T @ along / count == pytest.approx(expected, abs=1e-12)
    assert len({tuple(scene.ravel().round(9)) for scene in scenes}) == len(scenes)


# --- fits ---------------------------------------------------------------------------------------


def against(model: Any, pull: Pull, theta: Any) -> float:
    """What a fit minimises, of a scene that keeps to separation and extent."""
    pixels = model.pixels
    y, x, flux = np.asarray(theta).reshape(-1, 3).T
    shown = np.einsum("k,kij->ij", flux, PSF.response(y, x, pixels.low.shape))
    left = 0.5 * ((pixels.low - shown) ** 2).sum() / pixels.variance
    return float(left + 0.5 * (pull.precision * (theta - pull.mean) ** 2).sum())


def posterior(targets: Any) -> tuple[Any, Pull, Any, Any]:
    """Model and normal prior of an image without noise, its targets and its task."""
    unmix = unmixer(prior=replace(PRIOR, min_separation=0.0, extent=3.0))
    task, origin = task_for(unmix, light_of(targets))
    model, pull = kernel._model(task, kernel._look(task, unmix._core), len(targets))
    return model, Pull(*pull), targets - [*origin, 0.0], task


def test_a_fit_ends_where_the_posterior_is_largest() -> None:
    model, pull, targets, _ = posterior(PAIR)
    room = new_room(model.optics, 2, 6, *model.pixels.low.shape)
    theta = (targets + np.array([[0.1, 0.0, 5.0], [0.0, -0.1, -5.0]])).ravel()
    gradient, hessian = np.empty(6), np.zeros((6, 6))
    value, _ = descend_pulled(model, theta, pull, 100, EXACT, room, gradient, hessian)
    found = minimize(lambda at: against(model, pull, at), targets.ravel(), tol=1e-12)
    assert theta == pytest.approx(found.x, abs=2e-3)
    assert value == pytest.approx(found.fun, abs=1e-5)
    assert objective(model, theta, EXACT.stiffness, room) < value  # which the prior is a part of


@pytest.mark.parametrize(
    ("max_iter", "flat", "at_end"),
    [(1, 1e-6, False), (100, 1e-6, True), (100, 1e9, True), (100, 300.0, False)],
)
def test_a_fit_knows_where_its_slope_is_of(max_iter: int, flat: float, at_end: bool) -> None:
    """At the end, or before the last step, which with the last of these is no large one."""
    model, pull, targets, _ = posterior(PAIR)
    theta = (targets + np.array([[0.1, 0.0, 5.0], [0.0, -0.1, -5.0]])).ravel()
    room = new_room(model.optics, 2, 6, *model.pixels.low.shape)
    gradient, hessian = np.empty(6), np.zeros((6, 6))
    soft = kernel._SOFT._replace(flat=flat)
    _, there = descend_pulled(model, theta, pull, max_iter, soft, room, gradient, hessian)
    of_end = slope_at(model, pull, theta)
    assert there == at_end
    assert there == np.allclose(gradient, of_end[0], rtol=1e-9, atol=1e-9)
    assert there == np.allclose(hessian, of_end[1], rtol=1e-9)


def slope_at(model: Any, pull: Pull, theta: Any) -> tuple[Any, Any]:
    """Downhill gradient and Hessian of a scene."""
    d = theta.size
    room = new_room(model.optics, model.n_targets, d, *model.pixels.low.shape)
    gradient, hessian = np.empty(d), np.zeros((d, d))
    kernel._slope_at(model, theta, pull, room, gradient, hessian)
    return gradient, hessian


def test_moments_are_those_of_a_normal_distribution() -> None:
    model, pull, targets, _ = posterior(PAIR)
    found = minimize(lambda at: against(model, pull, at), targets.ravel(), tol=1e-12)
    covariance = np.empty((6, 6))
    begin = found.x + 0.01 * np.array([1.0, -1.0, 20.0, 1.0, 1.0, 20.0])
    mean = begin.copy()
    volume = kernel._moments(model, pull, *slope_at(model, pull, begin), mean, covariance)
    away = np.abs(mean - found.x) / np.sqrt(np.diag(covariance))
    assert away.max() < 0.1  # by one step
    steps = 1e-4 * np.diag([1.0, 1.0, 100.0] * 2)
    images = [
        (light_at(model, begin + step) - light_at(model, begin - step)).ravel() / (2 * step.sum())
        for step in steps
    ]
    information = np.array(images) @ np.transpose(images) / model.pixels.variance
    expected = np.linalg.inv(information + np.diag(pull.precision))
    assert covariance == pytest.approx(expected, rel=1e-4, abs=1e-4 * 2e-4)
    # Both orders of the two targets, which lie apart.
    assert volume == pytest.approx(0.5 * np.linalg.slogdet(expected)[1] + np.log(2.0), abs=1e-3)


def light_at(model: Any, theta: Any) -> Any:
    y, x, flux = np.asarray(theta).reshape(-1, 3).T
    return np.einsum("k,kij->ij", flux, PSF.response(y, x, model.pixels.low.shape))


def test_what_has_no_curvature_keeps_the_prior() -> None:
    model, pull, targets, _ = posterior(PAIR)
    mean, covariance, broken = targets.ravel(), np.empty((6, 6)), np.full((6, 6), np.nan)
    volume = kernel._moments(model, pull, np.zeros(6), broken, mean, covariance)
    assert covariance == pytest.approx(np.diag(1.0 / pull.precision))
    assert volume == pytest.approx(-0.5 * np.log(pull.precision).sum())


def test_evidence_is_the_integral_over_all_scenes() -> None:
    model, pull, _, task = posterior(PAIR[:1])
    light = kernel._look(task, unmixer()._core)
    mean, covariance, evidence, explains = kernel._guess(task, light, 1, 1)
    assert explains
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    lower = np.linalg.cholesky(covariance)
    total = 0.0
    for index in np.ndindex(7, 7, 7):
        at = nodes[list(index)]
        weight = weights[list(index)].prod() * np.exp(0.5 * at @ at)
        total += weight * np.exp(-against(model, pull, mean + lower @ at))
    log = np.log(total * np.linalg.det(lower)) + 0.5 * np.log(pull.precision).sum()
    # Both lack the same power of 2 pi.
    assert evidence == pytest.approx(log - 1.5 * np.log(2.0 * np.pi), abs=0.02)


def test_orders_of_targets_count_where_these_are_apart() -> None:
    """From 1, one place for all, to K!."""
    precision = np.tril(np.kron(np.eye(3), np.diag([4.0, 4.0, 0.01])))
    scene = np.zeros((3, 3))
    assert kernel._log_orders(precision, scene.ravel(), 3) == 0.0
    scene[:, 0] = [0.0, 100.0, 200.0]
    assert kernel._log_orders(precision, scene.ravel(), 3) == pytest.approx(np.log(6.0))
    pair = scene[:2] * 0.01
    # Two normal distributions 2 sqrt(2) errors apart.
    overlap = np.exp(-0.125 * 2.0 * 4.0)
    found = kernel._log_orders(precision[:6, :6], pair.ravel(), 2)
    assert found == pytest.approx(np.log(2.0 - overlap))


def test_starts_that_end_in_one_optimum_count_once() -> None:
    prior = replace(PRIOR, count=(1, 3), flux=(50.0, 500.0))
    image = light_of([[5.0, 4.4, 300.0], [4.6, 5.4, 200.0], [5.6, 5.2, 300.0]])
    unmix = unmixer(prior=prior)
    task, _ = task_for(unmix, image)
    light = kernel._look(task, unmix._core)
    evidence = [kernel._guess(task, light, 3, n)[2] for n in (1, 2)]
    assert evidence[1] == pytest.approx(evidence[0], abs=0.1)  # as closely as fits end


def test_a_mixture_has_the_moments_of_its_parts() -> None:
    rng = np.random.default_rng(0)
    order = np.array([1, 0])  # of the second part's targets
    mean = np.stack([PAIR.ravel(), PAIR[order].ravel() + 0.1])
    root = rng.normal(size=(2, 6, 6))
    covariance = root @ root.transpose(0, 2, 1)
    middle, around, mass = kernel._mixture(mean, covariance, np.log([0.3, 0.1]), 0, 2)
    at = np.array([3, 4, 5, 0, 1, 2])
    parts = np.stack([mean[0], mean[1][at]])
    inside = np.stack([covariance[0], covariance[1][np.ix_(at, at)]])
    share = np.array([0.75, 0.25])
    assert middle == pytest.approx(share @ parts)
    away = parts - share @ parts
    expected = np.einsum("m,mab->ab", share, inside + away[:, :, None] * away[:, None])
    assert around == pytest.approx(expected)
    assert mass == pytest.approx(np.log(0.4))


# --- the unmixer --------------------------------------------------------------------------------


def simulated(n: int = 300, rng: int = 31, **given: Any) -> Any:
    parts: dict[str, Any] = {"psf": PSF, "sensor": PRESET.sensor, "prior": PRESET.scene}
    parts |= given
    return cu.simulate(*parts.values(), shape=SHAPE, n=n, rng=rng)


def pulls(targets: Any, truth: Any) -> Any:
    """Errors over those that are claimed, of frames with the right count, (n, 3)."""
    of_truth = dict(list(truth.groupby("frame")))
    found = []
    for frame, each in targets.groupby("frame"):
        true = of_truth[frame]
        if len(each) == len(true):
            a, b = (part[["y", "x", "flux"]].to_numpy() for part in (each, true))
            rows, columns = linear_sum_assignment(((a[:, None, :2] - b[None, :, :2]) ** 2).sum(2))
            errors = each[["y_err", "x_err", "flux_err"]].to_numpy()
            found.append((a[rows] - b[columns]) / errors[rows])
    return np.concatenate(found)


def test_accuracy_on_the_main_protocol() -> None:
    made = simulated()
    clipped = made.images.max(axis=(1, 2)) == 255
    assert 0.2 < clipped.mean() < 0.8
    targets = unmixer(sensor=PRESET.sensor)(made.images)
    assert cu.metrics.count_accuracy(targets, made.truth) == 1.0
    assert cu.metrics.cso_map(targets, made.truth, rank_by="flux").mean > 0.88
    more = unmixer(sensor=PRESET.sensor, n_starts=2)(made.images)
    assert cu.metrics.cso_map(more, made.truth, rank_by="flux").mean > 0.89


def test_errors_by_the_usual_starts() -> None:
    """A missed optimum is many errors off: the middle of all is to be right, and not much more."""
    made = simulated(600, sensor=SENSOR)
    off = pulls(unmixer()(made.images), made.truth)
    assert np.abs(off).max(axis=0).max() > 4.0
    assert (np.median(np.abs(off), axis=0) / 0.6745 < 1.15).all()
    assert (np.sqrt((off**2).mean(axis=0)) < 1.6).all()


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_errors_are_those_that_are_made(noise: float) -> None:
    sensor, prior = cu.Sensor(read_noise=noise), replace(PRIOR, count=(1, 3))
    made = simulated(400, sensor=sensor, prior=prior)
    found = unmixer(sensor=sensor, prior=prior, n_starts=2)(made.images)
    assert cu.metrics.count_accuracy(found, made.truth) == 1.0
    spread = np.sqrt((pulls(found, made.truth) ** 2).mean(axis=0))
    assert (spread > 0.85).all()
    assert (spread < 1.2).all()


def test_answers_depend_neither_on_threads_nor_on_batches() -> None:
    images = simulated(60).images
    every = unmixer(sensor=PRESET.sensor)(images)
    threads = unmixer(sensor=PRESET.sensor, n_jobs=2)(images)
    assert every.equals(threads)
    alone = unmixer(sensor=PRESET.sensor)(images[41])
    rows = every[every["frame"] == 41].reset_index(drop=True).assign(frame=0)
    assert alone.equals(rows.astype(alone.dtypes))


def test_counts_that_light_does_not_tell_are_flagged() -> None:
    sensor, prior = cu.Sensor(read_noise=2.0), replace(PRIOR, flux=(50.0, 500.0), count=(1, 3))
    made = simulated(200, sensor=sensor, prior=prior)
    found = unmixer(sensor=sensor, prior=prior)(made.images)
    unsure = (flags_of(found, 200) & Flag.COUNT_AMBIGUOUS) > 0
    right = found.groupby("frame").size() == made.truth.groupby("frame").size()
    assert 0.02 < unsure.mean() < 0.6
    assert right[~unsure].mean() > 0.9 > right[unsure].mean()  # as is claimed


def flags_of(found: Any, n: int) -> Any:
    return np.array([found.attrs["frame_flags"].get(i, 0) for i in range(n)])


def wrong(found: Any, truth: Any, n: int) -> tuple[Any, Any]:
    """Images whose count is wrong, and those of which nothing says so."""
    counts = (np.bincount(each["frame"], minlength=n) for each in (found, truth))
    bad = np.not_equal(*counts)
    return bad, bad & ((flags_of(found, n) & (Flag.MISFIT | Flag.COUNT_AMBIGUOUS)) == 0)


def test_without_a_range_of_counts() -> None:
    made = simulated(50, sensor=SENSOR)
    found = unmixer(prior=replace(PRIOR, count=None))(made.images)
    assert cu.metrics.count_accuracy(found, made.truth) == 1.0


def test_no_more_targets_than_pixels_tell_of() -> None:
    found = unmixer(prior=cu.Prior(count=(1, 10**6), flux=(1.0, 2.0)))(np.full((3, 4), 50.0))
    assert len(found) == 4


@pytest.mark.parametrize("psf_error", [0.05, 0.5])
def test_light_counts_however_wrong_the_optics_may_be(psf_error: float) -> None:
    found = unmixer(psf_error=psf_error)(light_of(PAIR))
    assert found["y"].mean() == pytest.approx(5.15, abs=0.2)


@pytest.mark.parametrize("edge", ["top", "corner"])
def test_light_beyond_the_border_is_reckoned_with(edge: str) -> None:
    rng, images, rows = np.random.default_rng(3), [], []
    for _ in range(60):
        count = rng.integers(1, 5)
        y = 0.2 + rng.uniform(-0.45, 0.45, count)
        x = (0.2 if edge == "corner" else 5.0) + rng.uniform(-0.45, 0.45, count)
        scene = np.column_stack([y, x, rng.uniform(220.0, 250.0, count)])
        images.append(light_of(scene) + rng.normal(size=SHAPE))
        rows.append(count)
    found = unmixer(prior=replace(PRIOR, min_separation=0.0))(np.stack(images))
    assert (np.bincount(found["frame"], minlength=60) == rows).mean() > 0.95


def bad(where: Any) -> Any:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[where] = True
    return replace(SENSOR, bad_pixels=mask)


@pytest.mark.parametrize(
    ("sensor", "most", "silent"),
    [
        (bad(np.s_[:, 5]), 0.03, 0.02),
        (bad(np.s_[5:7, 5:7]), 0.03, 0.02),
        (replace(SENSOR, saturation=60.0), 0.1, 0.05),  # which may hide any light
        (replace(SENSOR, gain=0.5), 0.03, 0.02),  # shot noise
    ],
)
def test_light_that_is_not_known_is_unsure(sensor: cu.Sensor, most: float, silent: float) -> None:
    made = simulated(150, sensor=sensor)
    of_count, of_none = wrong(unmixer(sensor=sensor)(made.images), made.truth, 150)
    assert of_count.mean() < most
    assert of_none.mean() < silent


def test_a_psf_beside_its_middle() -> None:
    d = np.arange(-12, 13) / 4.0
    shifted = cu.SampledPSF(PSF.kernel(d[:, None] - 0.5, d - 0.75), oversampling=4.0)
    found = unmixer(psf=shifted)(light_of(FOUR, shifted))
    assert not found.attrs["frame_flags"].get(0, 0) & Flag.MISFIT
    assert found["y"].mean() == pytest.approx(FOUR[:, 0].mean(), abs=0.05)


def test_pixels_far_from_the_targets_are_left_out() -> None:
    unmix, image = unmixer(), light_of(FOUR)
    image[0, 0] = 1.0  # noise
    setting = unmix._setting(SHAPE)
    views = unmix._near(setting.views(image[None]))
    assert (views.start[0] >= 2).all()
    assert (views.stop[0] <= 9).all()
    assert (views.stop[0] - views.start[0] >= 5).all()


def test_answers_lie_where_targets_may_be() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        shape = tuple(rng.integers(5, 9, 2))
        images = rng.uniform(0.0, 300.0, (5, *shape))
        found = unmixer(prior=replace(PRIOR, flux=(50.0, 80.0)))(images)
        for axis, size in zip("yx", shape, strict=True):
            assert found[axis].between(-2.5, size + 1.5).all()
        assert found["flux"].between(30.0, 100.0).all()


def test_what_no_scene_explains_is_a_misfit() -> None:
    image = light_of(PAIR) + light_of([[1.0, 9.0, 500.0]])
    found = unmixer()(np.stack([image, light_of(PAIR)]))
    assert found.attrs["frame_flags"].get(0, 0) & Flag.MISFIT
    assert not found.attrs["frame_flags"].get(1, 0) & Flag.MISFIT


def test_images_that_are_dark_or_not_finite() -> None:
    images = np.stack([np.zeros(SHAPE), np.full(SHAPE, np.nan), light_of(PAIR)])
    found = unmixer()(images)
    assert found["frame"].tolist() == [2, 2]
    flags = found.attrs["frame_flags"]
    assert flags[0] == Flag.NO_TARGET
    assert flags[1] == Flag.NO_TARGET | Flag.NOT_FINITE
    with pytest.raises(ValueError, match="finite"):
        unmixer()(images[1])


def test_bad_pixels_may_hold_anything() -> None:
    bad = np.zeros(SHAPE, dtype=bool)
    bad[5, 6] = bad[0, 0] = True
    unmix = unmixer(sensor=replace(SENSOR, bad_pixels=bad))
    image = light_of(PAIR)
    other = np.where(bad, np.nan, image)
    found = unmix(image)
    assert found.equals(unmix(other))
    assert np.abs(found.sort_values("x")[["y", "x"]].to_numpy() - PAIR[:, :2]).max() < 0.05
    assert (found["flags"] & Flag.BAD_PIXELS).all()


def test_offset_and_background_are_taken_off() -> None:
    image = light_of(PAIR)
    plain = unmixer()(image)[["y", "x", "flux"]].to_numpy()
    for given, level in (
        ({"sensor": replace(SENSOR, offset=100.0)}, 100.0),
        ({"background": 30.0}, 30.0),
        ({"background": "border"}, 30.0),
    ):
        found = unmixer(**given)(image + level)[["y", "x", "flux"]].to_numpy()
        assert found == pytest.approx(plain, abs=0.02)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"prior": cu.Prior(count=(1, 5))}, ValueError, "prior must have a range of fluxes"),
        ({"background": "fit"}, ValueError, "background must be a number or 'border'"),
        ({"background": "none"}, ValueError, "background must be a number or 'border'"),
        ({"n_starts": 0}, ValueError, "n_starts"),
        ({"n_starts": 1.5}, TypeError, "n_starts"),
        ({"psf": 0.5}, TypeError, "psf"),
        ({"psf_error": -1.0}, ValueError, "psf_error"),
    ],
)
def test_wrong_parts(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unmixer(**given)


@pytest.mark.parametrize("flux", [(231.0, 231.0), (0.0, 500.0)])
def test_fluxes_that_are_known_and_that_may_be_anything(flux: tuple[float, float]) -> None:
    found = unmixer(prior=cu.Prior(count=(1, 1), flux=flux))(light_of(PAIR[:1]))
    assert found[["y", "x"]].to_numpy()[0] == pytest.approx(PAIR[0, :2], abs=0.01)
    assert found["flux"].iloc[0] == pytest.approx(231.0, abs=2.0)


def test_brightness_that_no_prior_explains() -> None:
    """Nothing crashes a batch."""
    images = np.stack([1e35 * light_of(PAIR), 1e-3 * light_of(PAIR), -light_of(PAIR)])
    found = unmixer()(images)
    assert found["frame"].tolist() == 5 * [0]
    assert np.isfinite(found[["y", "x", "flux"]].to_numpy()).all()
    assert found.attrs["frame_flags"][0] & Flag.MISFIT
