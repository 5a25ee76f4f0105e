"""The joint fit: its window, its objective and derivatives, its optimum and its evidence."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import approx_fprime

import csunmix as cu
from csunmix._kernels import fit as kernel
from csunmix._kernels import modes
from csunmix._kernels import search as searching
from csunmix._kernels.prior import Box, draw_scene, limits, log_prior, sure_cell
from csunmix._kernels.scene import illuminate, new_room
from csunmix._kernels.smc import Model, sample
from csunmix.continuous.fit import Fit, evidences, fit, fit_counts, least_objectives, log_room
from csunmix.continuous.window import Setting, Window

PRESET = cu.presets.csist_100k()
SHAPE = PRESET.shape


def limits_of(box: Box, theta: Any, count: int) -> tuple[Any, Any]:
    """Lowest and highest value of every parameter."""
    lower, upper = np.empty(theta.size), np.empty(theta.size)
    limits(box, theta, count, box.cell == 1.0, lower, upper)
    return lower, upper


def setting_of(sensor: cu.Sensor | None = None, **given: Any) -> Setting:
    """The preset's setting; `given` are a background and parts of the prior."""
    background = given.pop("background", 0.0)
    prior = replace(PRESET.prior, **given)
    return Setting(PRESET.psf, sensor or PRESET.sensor, prior, SHAPE, background)


@functools.cache
def simulated(count: int | None = None, n: int = 12, seed: int = 7) -> Any:
    scene = replace(PRESET.scene, count=(count, count)) if count else PRESET.scene
    made = cu.simulate(PRESET.psf, PRESET.sensor, scene, shape=SHAPE, n=n, rng=seed)
    made.images.flags.writeable = False
    return made


def window_of(setting: Setting, image: Any) -> Window:
    window = setting.window(image)
    assert window is not None
    return window


def light_of(theta: Any) -> Any:
    """Image of ``(y, x, flux)`` of every target, and of a background."""
    n = 3 * (len(theta) // 3)
    y, x, flux = np.reshape(theta[:n], (-1, 3)).T
    return np.einsum("k,kij->ij", flux, PRESET.psf.response(y, x, SHAPE)) + sum(theta[n:])


def within(window: Window, theta: Any) -> Any:
    """The same scene in the window's coordinates."""
    moved = np.array(theta)
    for axis in range(2):
        moved[axis : 3 * (len(theta) // 3) : 3] -= window.origin[axis]
    return moved


TRIPLE = [4.8, 5.1, 225.0, 5.3, 4.7, 240.0, 5.2, 5.4, 231.0]
SENSORS = {
    "noise": cu.Sensor(read_noise=2.0),
    "rounding": cu.Sensor(rounding=True),
    "clipped": PRESET.sensor,
    "low clip": cu.Sensor(read_noise=3.0, rounding=True, saturation=120.0),
}


# --- the window ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=SENSORS)
@pytest.mark.parametrize(
    "known", [{}, {"extent": None, "cell": True}, {"extent": None}, {"extent": None, "flux": None}]
)
def test_the_window_never_excludes_the_truth(sensor: cu.Sensor, known: Any) -> None:
    setting = setting_of(sensor, **known)
    made = simulated(n=150)
    images = sensor.expose(made.light, rng=0)
    for frame, truth in made.truth.groupby("frame"):
        window = window_of(setting, images[frame])
        theta = within(window, truth[["y", "x", "flux"]].to_numpy().ravel())
        scene = theta.reshape(-1, 3)
        low, high = np.column_stack([window.box.area.T, window.box.flux])
        assert ((scene >= low) & (scene <= high)).all()


def test_a_window_is_a_part_of_the_image() -> None:
    made = simulated()
    bad = np.zeros(SHAPE, dtype=bool)
    for image in made.images:
        y, x = np.unravel_index(image.argmax(), SHAPE)
        bad[:] = False
        bad[y, x] = True
        sensor = replace(PRESET.sensor, bad_pixels=bad)
        window = window_of(setting_of(sensor), np.where(bad, 0.0, image))
        n_y, n_x = window.pixels.low.shape
        part = tuple(slice(a, a + n) for a, n in zip(window.origin, (n_y, n_x), strict=True))
        assert bad[part].any()
        low, high = sensor.interval(image)
        np.testing.assert_array_equal(window.pixels.low, low[part])
        np.testing.assert_array_equal(window.pixels.high, high[part])
        assert np.isinf(window.pixels.low[bad[part]]).all()


def test_what_lies_beyond_a_window_is_dark() -> None:
    """Less than a hundredth of the noise reaches pixels that are left out."""
    made, sensor = simulated(), cu.Sensor(read_noise=1.0)
    for light, image in zip(made.light, sensor.expose(made.light, rng=0), strict=True):
        window = window_of(setting_of(sensor), image)
        beyond = light.copy()
        part = [
            slice(a, a + n) for a, n in zip(window.origin, window.pixels.low.shape, strict=True)
        ]
        beyond[tuple(part)] = 0.0
        assert beyond.max() < 0.05


def test_the_area_holds_a_target_whose_brightest_pixel_is_not_lit() -> None:
    """Faint, so that noise says which of its pixels count as lit."""
    sensor, rng = cu.Sensor(read_noise=3.0), np.random.default_rng(5)
    psf, target = cu.GaussianPSF(sigma=1.0), np.array([5.4, 4.6])
    setting = Setting(psf, sensor, cu.Prior(), SHAPE, 0.0)
    light = 90.0 * psf.response(*target, SHAPE)
    windows = [setting.window(sensor.expose(light, rng)) for _ in range(200)]
    areas = np.array([w.box.area + np.array(w.origin)[:, None] for w in windows if w is not None])
    assert len(areas) > 50
    inside = (areas[..., 0] <= target) & (target <= areas[..., 1])
    assert inside.all(axis=1).mean() > 0.97


def test_an_error_of_the_psf_is_noise_of_all_pixels_alike() -> None:
    """As large as its share of the brightest one; what is lit does not depend on it."""
    sensor, theta = cu.Sensor(read_noise=2.0), [5.0, 5.0, 230.0]
    plain = setting_of(sensor)
    wrong = replace(plain, psf_error=0.1)
    image = light_of(theta)
    exact, rough = window_of(plain, image), window_of(wrong, image)
    assert rough.pixels.variance == pytest.approx(4.0 + (0.1 * image.max()) ** 2)
    np.testing.assert_array_equal(
        rough.box.area + np.array(rough.origin)[:, None],
        exact.box.area + np.array(exact.origin)[:, None],
    )


def test_an_error_of_the_psf_does_not_move_the_targets() -> None:
    """A halo that the PSF lacks: cores say where a pair is, whatever error is declared."""
    truth = np.array([[5.0, 4.4, 230.0], [5.2, 5.7, 110.0]])
    y, x, flux = truth.T
    halo = cu.GaussianPSF(sigma=2.0).response(y, x, SHAPE)
    light = np.tensordot(flux, 0.95 * PRESET.psf.response(y, x, SHAPE) + 0.05 * halo, 1)
    away = []
    for psf_error in (0.0, 0.05):
        setting = setting_of(cu.Sensor(read_noise=0.3), flux=None, extent=2.0)
        setting = replace(setting, psf_error=psf_error)
        window = window_of(setting, light)
        found = fit(setting, window, 2, 0)
        assert found is not None
        scene = found.theta.reshape(-1, 3)[np.argsort(-found.theta[2::3])]
        away.append(np.abs(scene[:, :2] + window.origin - truth[:, :2]).max())
    assert away[1] < 1.2 * away[0]


def test_a_dark_image_has_no_window() -> None:
    assert setting_of().window(np.zeros(SHAPE)) is None
    assert setting_of(background=7.0).window(np.full(SHAPE, 7.0)) is None


PRIORS = {
    "nothing told": cu.Prior(),
    "a box": cu.Prior(flux=(220.0, 250.0), extent=1.2),
    "a likely cell": PRESET.prior,
    "a cell": cu.Prior(cell=True),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("background", [0.0, "border", "fit"])
@pytest.mark.parametrize(
    "sensor",
    [PRESET.sensor, cu.Sensor(), cu.Sensor(read_noise=1.0, gain=2.0, offset=3.0)],
    ids=["clipped", "not declared", "electrons"],
)
def test_the_windows_of_a_stack_are_those_of_its_images(
    sensor: cu.Sensor, background: Any, prior: cu.Prior
) -> None:
    setting = Setting(PRESET.psf, sensor, prior, SHAPE, background, psf_error=0.01)
    images = np.array(simulated(n=12).light) + np.random.default_rng(0).normal(size=(12, *SHAPE))
    images[3], images[7] = 0.0, 5.0
    windows = setting.windows(images)
    assert windows[3] is None
    for image, one in zip(images, windows, strict=True):
        alone = setting.window(image)
        if one is None or alone is None:
            assert one is alone
            continue
        assert one.origin == alone.origin
        for part, same in zip((*one.pixels, *one.box), (*alone.pixels, *alone.box), strict=True):
            np.testing.assert_array_equal(part, same)


# --- the objective and its derivatives ----------------------------------------------------------


@pytest.mark.parametrize("name", ["noise", "low clip", "electrons", "clipped"])
def test_misfit_counts_residuals_and_bounds(name: str) -> None:
    sensor = cu.Sensor(read_noise=2.0, gain=1.5) if name == "electrons" else SENSORS[name]
    setting = setting_of(sensor)
    window = window_of(setting, sensor.expose(light_of(TRIPLE), rng=1))
    model = window.model(setting.optics, 3)._replace(pixels=window.smooth)
    pixels, theta = model.pixels, within(window, TRIPLE)
    y, x, flux = theta.reshape(-1, 3).T
    light = np.einsum("k,kij->ij", flux, PRESET.psf.response(y, x, pixels.low.shape))
    noise = np.sqrt(pixels.variance + pixels.per_light * light)
    below, above = (pixels.low - light) / noise, (pixels.high - light) / noise
    told = np.where(below == above, below**2, 0.0)
    told = np.where(np.isinf(above), -2.0 * stats.norm.logsf(below), told)
    told = np.where(np.isinf(below), -2.0 * stats.norm.logcdf(above), told)
    assert kernel.misfit(model, theta) == pytest.approx(told.sum(), rel=1e-4)
    best = fit(setting, window, 3, 0)
    assert best is not None
    assert best.explains
    assert not replace(best, thetas=best.thetas[:1] + 0.3, objectives=np.array([np.inf])).explains


CLOSE = [4.9, 5.0, 225.0, 5.1, 5.2, 240.0, 5.0, 5.1, 231.0]  # nearer than the prior allows
FAR = [4.4, 5.0, 225.0, 5.8, 5.2, 240.0, 5.0, 5.9, 231.0]  # wider than its extent


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=SENSORS)
@pytest.mark.parametrize("theta", [TRIPLE, CLOSE, FAR], ids=["within", "close", "far"])
@pytest.mark.parametrize("background", [0.0, "fit"])
def test_slope_is_the_gradient_of_the_objective(
    sensor: cu.Sensor, theta: Any, background: Any
) -> None:
    image = sensor.expose(light_of(TRIPLE), rng=1)
    setting = setting_of(sensor, background=background, extent=0.9, cell=False)
    window = window_of(setting, image)
    model = replace(window, pixels=window.smooth).model(setting.optics, 3)
    at = within(window, theta + [0.4] * (background == "fit"))
    room = new_room(setting.optics, 3, at.size, *window.pixels.low.shape)
    gradient, hessian = np.empty(at.size), np.zeros((at.size, at.size))
    illuminate(setting.optics, at, room)
    kernel.slope(model, at, kernel.EXACT.stiffness, room, gradient, hessian)
    step = 1e-6 * np.maximum(1.0, np.abs(at))

    def value(trial: Any) -> float:
        return kernel.objective(model, trial, kernel.EXACT.stiffness, room)

    numerical = [(value(at + d) - value(at - d)) / (2.0 * d.sum()) for d in np.diag(step)]
    scale = np.sqrt(np.diag(hessian))
    np.testing.assert_allclose(-gradient / scale, numerical / scale, rtol=2e-3, atol=2e-3)


def test_hessian_is_exact_where_the_fit_is_perfect() -> None:
    sensor, theta = cu.Sensor(read_noise=2.0), [*TRIPLE, 0.0]
    setting = setting_of(sensor, background="fit")
    window = window_of(setting, light_of(TRIPLE))
    model, at = window.model(setting.optics, 3), within(window, theta)
    room = new_room(setting.optics, 3, at.size, *window.pixels.low.shape)
    gradient, hessian = np.empty(at.size), np.zeros((at.size, at.size))

    def downhill(trial: Any) -> Any:
        illuminate(setting.optics, trial, room)
        kernel.slope(model, trial, kernel.EXACT.stiffness, room, gradient, np.zeros_like(hessian))
        return gradient.copy()

    numerical = -approx_fprime(at, downhill, 1e-6 * np.maximum(1.0, np.abs(at)))
    downhill(at)
    kernel.slope(model, at, kernel.EXACT.stiffness, room, gradient, hessian)
    whole = np.tril(hessian) + np.tril(hessian, -1).T
    scale = np.sqrt(np.outer(np.diag(whole), np.diag(whole)))
    np.testing.assert_allclose(whole / scale, numerical / scale, atol=1e-3)


# --- the optimum --------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=SENSORS)
@pytest.mark.parametrize(
    "known", [{"cell": False}, {"extent": None, "cell": True}], ids=["extent", "cell"]
)
def test_descent_keeps_to_the_bounds_and_goes_down(sensor: cu.Sensor, known: Any) -> None:
    """From most places to the same optimum."""
    setting = setting_of(sensor, **known)
    window = window_of(setting, sensor.expose(light_of(TRIPLE), rng=2))
    best = fit(setting, window, 3, 0)
    assert best is not None
    box, room = best.model.box, new_room(setting.optics, 3, 9, *window.pixels.low.shape)
    values, theta = [], np.empty(9)
    for _ in range(40):
        draw_scene(box, 3, theta)
        lower, upper = limits_of(box, theta, 3)
        before = kernel.objective(
            best.model, np.clip(theta, lower, upper), kernel.EXACT.stiffness, room
        )
        values.append(kernel.descend(best.model, theta, 300, kernel.EXACT, room))
        assert values[-1] <= before
        assert values[-1] == pytest.approx(
            kernel.objective(best.model, theta, kernel.EXACT.stiffness, room), rel=1e-12
        )
        assert ((theta >= lower) & (theta <= upper)).all()
    assert min(values) >= best.objective - 1e-3
    assert np.mean(np.array(values) < best.objective + 0.1) > 0.5


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("flux", [(220.0, 250.0), None], ids=["flux known", "flux free"])
def test_targets_without_noise_are_found_exactly(count: int, flux: Any) -> None:
    made = simulated(count, n=6)
    setting = setting_of(cu.Sensor(read_noise=0.01), flux=flux)
    for frame, truth in made.truth.groupby("frame"):
        window = window_of(setting, made.light[frame])
        found = fit(setting, window, count, 0)
        assert found is not None
        best = found.theta.reshape(-1, 3)[:, :2] + window.origin
        away = np.abs(best[:, None] - truth[["y", "x"]].to_numpy()).max(axis=-1).min(axis=0)
        assert away.max() < 1e-4


def test_no_long_search_beats_the_fit() -> None:
    """Three to five targets, clipped: ten times the starts."""
    setting, better = setting_of(), 0
    long = searching.THOROUGH._replace(max_iter=200)
    for count in (3, 4, 5):
        for image in simulated(count, n=4, seed=count).images:
            window = window_of(setting, image)
            found = fit(setting, window, count, 0)
            assert found is not None
            starts = 10 * (4 + 6 * count)
            values = searching.search(found.model, starts, starts, np.inf, long, 99)[1]
            better += values[0] < found.objective - 1e-2
    assert better <= 1  # of 12


def test_hopeless_numbers_of_targets_are_searched_less_long() -> None:
    setting, optima = setting_of(), []
    for count in (2, 3, 4):
        for image in simulated(count, n=4, seed=40 + count).images:
            window = window_of(setting, image)
            right, more = (fit(setting, window, n, 0) for n in (count, count + 1))
            assert right is not None
            assert more is not None
            limit = right.objective + 50.0
            cut = fit(setting, window, count + 1, 0, limit)
            assert cut is not None
            assert limit < min(more.objective, cut.objective)
            optima.append((len(cut.thetas), len(more.thetas)))
            # The right number is found as well, whatever a wrong one leaves.
            found = fit(setting, window, count, 0, more.objective + 50.0)
            assert found is not None
            assert found.objective < right.objective + 1e-2
    few, many = np.sum(optima, axis=0)
    assert few < 0.8 * many


@pytest.mark.parametrize(("flux", "cut"), [((220.0, 250.0), True), ((100.0, 600.0), False)])
def test_a_search_is_cut_short_only_where_light_tells_numbers_apart(
    flux: Any, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, limits = setting_of(flux=flux), []

    def spy(*args: Any) -> Any:
        limits.append(args[4])
        return fit(*args)

    monkeypatch.setattr("csunmix.continuous.fit.fit", spy)
    fits = fit_counts(setting, window_of(setting, simulated(3).images[0]), 0)
    assert len(fits) > 1
    assert limits[0] == np.inf  # nothing is known yet
    assert (min(limits) < np.inf) is cut


WIDE = cu.Prior(count=(2, 8), flux=(200.0, 600.0), min_separation=1.0)


@functools.cache
def wide(n: int = 8, seed: int = 3) -> tuple[Setting, Any]:
    """Scenes anywhere in 31 x 31 pixels, of which nothing is told."""
    sensor = cu.Sensor(read_noise=2.0)
    made = cu.simulate(PRESET.psf, sensor, WIDE, shape=(31, 31), n=n, rng=seed, margin=1)
    return Setting(PRESET.psf, sensor, cu.Prior(count=(1, 8)), (31, 31), 0.0), made


def test_a_fit_in_a_wide_window_is_as_good_as_one_that_starts_at_the_truth() -> None:
    setting, made = wide()
    for frame, truth in made.truth.groupby("frame"):
        window = window_of(setting, made.images[frame])
        found = fit(setting, window, len(truth), 0)
        assert found is not None
        theta = within(window, truth[["y", "x", "flux"]].to_numpy().ravel())
        room = new_room(found.model.optics, len(truth), theta.size, *window.pixels.low.shape)
        assert found.objective < kernel.descend(found.model, theta, 200, kernel.EXACT, room) + 0.01


def test_targets_far_apart_are_counted() -> None:
    setting, made = wide()
    for frame, truth in made.truth.groupby("frame"):
        evidence = evidences(
            setting, fit_counts(setting, window_of(setting, made.images[frame]), 0)
        )
        assert setting.counts[int(evidence.argmax())] == len(truth)


@pytest.mark.parametrize("name", ["noise", "low clip", "electrons"])
@pytest.mark.parametrize("extent", [None, 1.2])
def test_a_target_is_put_where_it_explains_most(name: str, extent: float | None) -> None:
    """As a search of the same places, half a pixel apart, written with arrays."""
    sensor = cu.Sensor(read_noise=2.0, gain=1.5) if name == "electrons" else SENSORS[name]
    setting = setting_of(sensor, extent=extent, cell=False)
    window = window_of(setting, simulated(3).images[2])
    model = window.model(setting.optics, 2)._replace(pixels=window.smooth)
    area, flux, pixels = model.box.area, model.box.flux, model.pixels
    middle = area.mean(axis=1)
    theta = np.array([*middle, 230.0, 0.0, 0.0, 0.0])
    room = new_room(model.optics, 2, 6, *pixels.low.shape)
    assert searching._place_best(model, 1, theta, room)
    light = PRESET.psf.response(middle[:1], middle[1:], pixels.low.shape)[0] * 230.0
    seen = np.clip(light, pixels.low, pixels.high)
    variance = pixels.variance + pixels.per_light * np.maximum(np.maximum(seen, light), 0.0)
    rest, gains = seen - light, {}
    bounded = np.isinf(pixels.high) | np.isinf(pixels.low)
    weight = np.where(bounded & (rest == 0.0), 0.0, 1.0 / variance)
    for y, x in itertools.product(*(np.minimum(np.arange(a, b + 0.5, 0.5), b) for a, b in area)):
        away = np.abs([y, x] - middle)
        if np.hypot(*away) < 0.494 or (extent is not None and away.max() > extent):
            continue
        atom = PRESET.psf.response(np.array([y]), np.array([x]), pixels.low.shape)[0]
        best = np.clip((weight * rest * atom).sum() / (weight * atom**2).sum(), *flux)
        left = weight * (rest**2 - (rest - best * atom) ** 2)
        gains[0.5 * left.sum()] = (y, x, best)
    np.testing.assert_allclose(theta[3:], gains[max(gains)], rtol=1e-3, atol=1e-3)


def test_fits_are_in_order_and_keep_to_the_bounds() -> None:
    setting = setting_of()
    for image in simulated(4, n=4).images:
        window = window_of(setting, image)
        best = fit(setting, window, 4, 3)
        assert best is not None
        assert (np.diff(best.objectives) >= 0.0).all()
        for theta, value in zip(best.thetas, best.objectives, strict=True):
            lower, upper = limits_of(best.model.box, theta, 4)
            assert ((theta >= lower) & (theta <= upper)).all()
            place = theta.reshape(-1, 3)[:, :2]
            apart = np.hypot(*(place[:, None] - place).T)[~np.eye(4, dtype=bool)]
            hopeless = value > best.objective + 50.0  # left before its end
            assert hopeless or apart.min() > 0.494 - 0.03


def test_among_the_optima_are_those_of_a_cell_that_is_likely() -> None:
    """Of an image whose best fit lies beside a cell, as a search told of the cell finds them."""
    setting, beside = setting_of(), 0
    for image in simulated(5).images:
        best = fit(setting, window_of(setting, image), 5, 0)
        assert best is not None
        sure = best.model._replace(box=sure_cell(best.model.box))
        inside = searching.search(sure, 68, 21, np.inf, searching.THOROUGH, 0)[1][0]
        if inside > best.objective + 0.01:
            beside += 1
            assert np.abs(best.objectives - inside).min() < 0.01
            assert (np.diff(best.objectives) >= 0.0).all()
    assert beside > 0


def test_starts_that_lead_to_the_same_optimum_have_it_once() -> None:
    setting = setting_of(cell=False)
    for image in simulated(3).images:
        best = fit(setting, window_of(setting, image), 3, 0)
        assert best is not None
        turned = best.theta.reshape(3, 3)[[2, 0, 1]].ravel()
        starts = np.array([best.theta, turned, best.theta + 0.01])
        thetas, values = searching.explore(best.model, starts, searching.THOROUGH, 3, 0.0, False)
        assert values[0] == pytest.approx(best.objective, abs=1e-3)
        assert (np.diff(values) > 0.0).all()
        assert len(thetas) < 3
        np.testing.assert_array_equal(starts[0], best.theta)


def test_starts_near_an_optimum_and_after_some_in_vain_are_not_followed() -> None:
    setting = setting_of(cell=False)
    best = fit(setting, window_of(setting, simulated(3).images[0]), 3, 0)
    assert best is not None
    far = best.theta + np.tile([0.4, -0.4, 0.0], 3)
    still = searching.THOROUGH._replace(rough_iter=0, max_iter=0)  # what is followed stays there
    for starts, enough, fresh, n_known in (
        ([best.theta, best.theta + 0.1], 2, 0.0, 2),
        ([best.theta, best.theta + 0.1], 2, 0.15, 1),
        ([best.theta, best.theta + 0.1, far], 2, 0.15, 2),
        ([best.theta, best.theta, best.theta, far], 2, 0.0, 1),
        ([best.theta, best.theta, best.theta, far], 3, 0.0, 2),
    ):
        found = searching.explore(best.model, np.array(starts), still, enough, fresh, False)
        assert len(found[1]) == n_known


def test_a_fit_is_reproducible_by_its_seed() -> None:
    setting, image = setting_of(), simulated(3).images[0]
    window = window_of(setting, image)
    one, same = (fit(setting, window, 3, 5) for _ in range(2))
    assert one is not None
    assert same is not None
    np.testing.assert_array_equal(one.theta, same.theta)


@pytest.mark.parametrize(
    "given",
    [
        {"count": None, "flux": None, "min_separation": 0.7, "extent": None, "cell": True},
        {"count": (1, 9), "min_separation": 0.5, "extent": 1.05, "cell": False},
        {"count": (1, 7), "flux": (100.0, 300.0), "extent": None, "cell": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [2, 5])
def test_counts_that_hardly_have_room_are_no_answer(given: Any, count: int) -> None:
    """Lattices hold more targets than a prior of them has weight."""
    setting = setting_of(**given)
    for image in simulated(count, n=3).images:
        evidence = evidences(setting, fit_counts(setting, window_of(setting, image), 0))
        assert np.isfinite(evidence.max())
        assert not np.isnan(evidence).any()


@pytest.mark.parametrize("cell", [False, True])
def test_a_target_is_moved_from_where_it_explains_nothing(cell: bool) -> None:
    """To about a step from its own place, though the others lean on bounds of the prior."""
    setting = setting_of(cell=cell, extent=None if cell else 1.0)
    image = PRESET.sensor.expose(light_of(TRIPLE), rng=0)
    window = window_of(setting, image)
    model = window.model(setting.optics, 3)._replace(pixels=window.smooth)
    room = new_room(model.optics, 3, 9, *window.pixels.low.shape)
    true = within(window, TRIPLE)
    theta = true.copy()
    theta[:2] = true[3:5] + np.array([0.0, 0.499])  # where hardly any light is left over
    assert searching._move(model, 0, theta, room)
    np.testing.assert_array_equal(theta[:3], true[6:])  # the last takes its place
    assert np.hypot(*(theta[6:8] - true[:2])) < 0.6
    values = [kernel.objective(model, each, kernel.EXACT.stiffness, room) for each in (theta, true)]
    assert np.isfinite(values).all()


def test_scenes_near_the_best_keep_to_the_prior() -> None:
    setting = setting_of()
    best = fit(setting, window_of(setting, simulated(3).images[0]), 3, 0)
    assert best is not None
    theta, made = np.empty(9), 0
    for _ in range(50):
        if searching._shake(best.model, best.theta, theta):
            made += 1
            assert log_prior(best.model.box, theta, 3) > -np.inf
            assert 0.0 < np.abs(theta - best.theta)[[0, 1, 3, 4, 6, 7]].max() < 2.0
    assert made > 10


def test_more_targets_than_find_room_have_no_fit() -> None:
    setting = setting_of(min_separation=1.0, extent=0.5, cell=False)
    window = window_of(setting, simulated(1).images[0])
    assert fit(setting, window, 2, 0) is None
    assert list(fit_counts(setting, window, 0)) == [1]


@pytest.mark.parametrize("seed", [0, 2, 8])
def test_the_true_count_is_fitted_where_the_light_speaks_for_more(seed: int) -> None:
    """Two targets at the largest flux: with the noise, more than two can give."""
    rng = np.random.default_rng(seed)
    places = np.array([[5.0, 3.8], [5.0, 6.2]]) + rng.uniform(-0.3, 0.3, (2, 2))
    sensor = cu.Sensor(read_noise=1.0)
    setting = setting_of(sensor, flux=(100.0, 250.0), min_separation=0.3, extent=None)
    light = light_of(np.column_stack([places, [249.8, 249.8]]).ravel())
    window = window_of(setting, sensor.expose(light, rng=seed))
    fits = fit_counts(setting, window, 0)
    assert setting.counts[int(evidences(setting, fits).argmax())] == 2


@pytest.mark.parametrize("clip", [None, 255.0])
def test_no_fit_is_below_what_the_light_allows(clip: float | None) -> None:
    sensor = cu.Sensor(rounding=True, saturation=clip)
    setting = setting_of(sensor)
    seen = 0.0
    for image in cu.simulate(
        PRESET.psf, sensor, PRESET.scene, shape=SHAPE, n=6, rng=3
    ).images.astype(float):
        window = window_of(setting, image)
        for count, least in least_objectives(setting, window).items():
            found = fit(setting, window, count, 0)
            assert found is not None
            assert found.objective >= least - 1e-6
            seen = max(seen, least)
    assert seen > 100.0


def test_a_bounded_step_is_that_of_the_quadratic() -> None:
    """Newton's where no bound is met; else that of what meets none, the rest being at its bound."""
    rng, met = np.random.default_rng(0), 0
    for _ in range(20):
        root = rng.normal(size=(5, 5))
        hessian, gradient = root @ root.T + 0.5 * np.eye(5), rng.normal(size=5)
        theta, step = np.zeros(5), np.empty(5)
        space = kernel.Space(*np.zeros((2, 5, 5)), *np.empty((3, 5)), np.empty(5, np.int64))
        wide, narrow = np.full(5, 1e6), np.full(5, 0.1)
        lower = np.tril(hessian)
        assert kernel.bounded_step(lower, gradient, 0.0, theta, -wide, wide, space, step)
        np.testing.assert_allclose(step, np.linalg.solve(hessian, gradient), rtol=1e-9)
        assert kernel.bounded_step(lower, gradient, 0.0, theta, -narrow, narrow, space, step)
        assert (np.abs(step) <= 0.1).all()
        free = np.abs(step) < 0.1
        np.testing.assert_allclose((hessian @ step)[free], gradient[free], atol=1e-9)
        assert step @ gradient > 0.5 * step @ hessian @ step  # downhill
        met += (~free).sum()
    assert met > 20


# --- what the fit says of itself ----------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [(1.2, 1.2), (0.8, 1.6), (2.2, 3.1), (6.0, 9.0)], ids=str)
def test_room_for_targets_against_rejection(size: tuple[float, float], count: int) -> None:
    rng, trials = np.random.default_rng(1), 300_000
    place = rng.uniform(size=(trials, count, 2)) * size
    apart = np.ones(trials, dtype=bool)
    for k in range(count):
        for m in range(k):
            apart &= np.hypot(*(place[:, k] - place[:, m]).T) >= 0.494
    share = apart.mean()
    expected = np.log(share)
    error = np.sqrt(1.0 / (trials * share) + count / 4000.0)
    assert log_room(np.array(size), 0.494, count) == pytest.approx(expected, abs=4.0 * error)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_density_of_a_cell_against_rejection(count: int) -> None:
    """Scenes of a cell and of a box are each as many as their probability says."""
    setting = setting_of(cu.Sensor(read_noise=1.0), extent=1.3, cell=0.3)
    window = window_of(setting, light_of([5.1, 4.9, 500.0]))
    rng, shares = np.random.default_rng(2), []
    for size in (1.3, 1.0):
        place = size * rng.uniform(size=(200_000, count, 2))
        pairs = [place[:, k] - place[:, m] for k in range(count) for m in range(k)]
        apart = [np.hypot(*pair.T) >= setting.prior.min_separation for pair in pairs]
        shares.append(np.mean(np.all(apart, axis=0)) if pairs else 1.0)
    expected = 0.3 / 0.7 * 1.3 ** (2 * count) * shares[0] / shares[1]
    given = window.model(setting.optics, count).box.cell_density
    assert given == pytest.approx(expected, rel=0.05)


def test_more_targets_than_a_cell_holds_lie_in_a_box() -> None:
    """A cell that is likely for fewer takes nothing from their evidence."""
    sensor, known = cu.Sensor(read_noise=2.0), {"extent": 2.5, "min_separation": 1.2}
    image = sensor.expose(light_of([4.2, 4.3, 230.0, 5.6, 4.4, 235.0, 4.9, 5.8, 240.0]), rng=0)
    logs = []
    for cell in (0.8, 0.0):
        setting = setting_of(sensor, cell=cell, **known)
        found = fit(setting, window_of(setting, image), 3, 0)
        assert found is not None
        assert found.model.box.cell_density == 0.0
        logs.append(found.log_evidence)
    assert logs[0] == pytest.approx(logs[1], abs=0.3)


def moments_of(found: Fit) -> Any:
    """Mean and covariance around a fit, others left out."""
    model, theta = found.model, found.theta
    room = new_room(model.optics, model.n_targets, theta.size, *model.pixels.low.shape)
    return modes.moments(model, theta, *modes.curvature(model, theta, room), False)


def test_moments_of_one_target_are_those_of_its_posterior() -> None:
    """A flux cut off by its bounds on both sides: the rest of the posterior is normal."""
    sensor = cu.Sensor(read_noise=4.0)
    setting = setting_of(sensor, count=(1, 1), extent=None)
    for seed in range(4):
        image = sensor.expose(light_of([5.2, 4.9, 222.0 + 8 * seed]), rng=seed)
        found = fit(setting, window_of(setting, image), 1, 0)
        assert found is not None
        mean, covariance = moments_of(found)
        model = found.model
        theta, _, _ = sample(model, 200, 80, 0.5, 500, seed)
        spread = theta.std(axis=0)
        np.testing.assert_allclose(mean / spread, theta.mean(axis=0) / spread, atol=0.15)
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), spread, rtol=0.15)


@pytest.mark.parametrize(
    "known",
    [
        {"extent": 1.2},
        {"extent": None},
        {"extent": None, "cell": True},
        {"extent": 1.2, "cell": 0.8},
    ],
    ids=str,
)
def test_evidence_against_sequential_monte_carlo(known: Any) -> None:
    """The ratio of two targets to one, where both may be."""
    sensor = cu.Sensor(read_noise=6.0)
    setting = setting_of(sensor, flux=(100.0, 400.0), **known)
    for seed in range(3):
        theta = [5.0, 4.75, 180.0, 5.1, 5.25, 170.0]
        window = window_of(setting, sensor.expose(light_of(theta), rng=seed))
        given, expected = [], []
        for count in (1, 2):
            found = fit(setting, window, count, 0)
            assert found is not None
            given.append(found.log_evidence)
            d = 3 * count
            runs = [sample(found.model, 60, 8 * d, 0.5, 500, s)[1] for s in range(3)]
            expected.append(np.mean(runs))
        assert np.diff(given) == pytest.approx(np.diff(expected), abs=0.7)


def test_evidence_of_a_second_target_where_there_is_none() -> None:
    """Nothing keeps it from the place of the first: the likelihood there is far from normal."""
    sensor = cu.Sensor(read_noise=2.0)
    setting = setting_of(sensor, flux=None, extent=None, min_separation=0.0)
    given, expected = [], []
    for seed in range(6):
        window = window_of(setting, sensor.expose(light_of([5.1, 4.8, 300.0]), rng=seed))
        one, two = fit(setting, window, 1, 0), fit(setting, window, 2, 0)
        assert one is not None
        assert two is not None
        given.append(two.log_evidence - one.log_evidence)
        runs = [[sample(each.model, 60, 48, 0.5, 500, s)[1] for s in (0, 1)] for each in (one, two)]
        expected.append(np.diff(np.mean(runs, axis=1))[0])
    assert np.mean(given) == pytest.approx(np.mean(expected), abs=0.5)
    np.testing.assert_allclose(given, expected, atol=1.5)


def test_evidence_of_targets_that_are_free_in_their_fluxes() -> None:
    """Draws miss most of such a posterior, and what they sum to is 1.3 too low on the mean.

    Runs of other seeds give means 0.2 apart, and 0.2 for what is 1 too high.
    """
    setting = Setting(
        PRESET.psf,
        cu.Sensor(rounding=True),
        replace(PRESET.prior, flux=None, cell=False),
        SHAPE,
        0.0,
    )
    scene = replace(PRESET.scene, count=(5, 5))
    made = cu.simulate(PRESET.psf, setting.sensor, scene, shape=SHAPE, n=4, rng=1)
    away = []
    for image in made.images:
        found = fit(setting, window_of(setting, image), 5, 0)
        assert found is not None
        assert found.draws.effective < 200.0
        # One run of particles errs by 2 or 3 either way.
        runs = [sample(found.model, 150, 48, 0.5, 500, seed)[1] for seed in range(3)]
        expected = np.logaddexp.reduce(runs) - np.log(len(runs))
        away.append([found.drawn_evidence - expected, found.log_evidence - expected])
    drawn, given = np.mean(away, axis=0)
    assert drawn < -0.5
    assert given == pytest.approx(0.0, abs=2.0)
    assert given - drawn > 1.0  # else the one by volumes was not taken


@pytest.mark.parametrize("edge", [-0.5, 0.5], ids=["lower", "upper"])
def test_either_edge_of_a_cell_is_as_good_as_the_other(edge: float) -> None:
    """A pair of which one target ends on the edge of their cell; mirrored, the same evidence."""
    sensor = cu.Sensor(read_noise=2.0)
    setting = setting_of(sensor, extent=None, cell=True)
    light = light_of([5.0 + 1.08 * edge, 4.8, 230.0, 5.0 + 0.9 * edge, 5.3, 230.0])
    image = sensor.expose(light, rng=0)
    one, mirrored = (
        fit(setting, window_of(setting, each), 2, 0) for each in (image, image[::-1].copy())
    )
    assert one is not None
    assert mirrored is not None
    lower, upper = limits_of(one.model.box, one.theta, 2)
    assert ((one.theta <= lower) | (one.theta >= upper))[[0, 3]].any()
    assert one.log_evidence == pytest.approx(mirrored.log_evidence, abs=0.5)


def test_evidence_is_sampled_where_numbers_of_targets_are_plausible() -> None:
    """By volumes it is near to that, so that numbers far below the best need no draws."""
    sensor = replace(PRESET.sensor, saturation=None)
    prior = replace(PRESET.prior, flux=(50.0, 500.0), cell=False)
    setting = Setting(PRESET.psf, sensor, prior, SHAPE, 0.0)
    made = cu.simulate(PRESET.psf, sensor, prior, shape=SHAPE, n=30, rng=3)
    drawn = kept = 0
    for image in made.images:
        fits = fit_counts(setting, window_of(setting, image), 0)
        given = evidences(setting, fits)
        for count, each in fits.items():
            value = given[setting.counts.index(count)]
            if each.drawn:
                drawn += 1
                assert value == each.log_evidence
                assert each.likely_evidence == pytest.approx(value, abs=3.0)
            elif value > given.max() - 15.0 and len(fits) > 1:
                kept += 1
                assert value < given.max() - 5.0 or value == given.max()
    assert drawn > 10
    assert kept > 5


def test_a_mixture_does_not_depend_on_how_other_fits_are_labelled() -> None:
    """A bright and a faint target, and two fits that are the same but for the faint one's error."""
    sensor = cu.Sensor(read_noise=2.0)
    setting = setting_of(sensor, flux=(10.0, 500.0), extent=None)
    image = sensor.expose(light_of([5.0, 4.2, 400.0, 5.3, 6.1, 30.0]), rng=3)
    best = fit(setting, window_of(setting, image), 2, 0)
    assert best is not None
    bright, faint = 3 * np.argsort(-best.theta[2::3])
    error = np.sqrt(np.diag(moments_of(best)[1]))
    assert error[faint] > 3.0 * error[bright]
    step = np.zeros(6)
    step[faint] = error[faint]
    others = [best.theta + 4.0 * step, best.theta + 5.0 * step]
    given = []
    for order in ([0, 1, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2]):
        thetas = np.array([best.theta, *(other[order] for other in others)])
        objectives = np.full(3, best.objective)
        given.append(replace(best, thetas=thetas, objectives=objectives).mixture)
    for plain, turned in zip(*given, strict=True):
        np.testing.assert_allclose(plain, turned, rtol=0.01, atol=1e-3)


def test_moments_of_a_mixture() -> None:
    """Of the modes of several optima, and of a cell beside a box."""
    made = simulated(5)
    setting = setting_of()
    fits = [fit(setting, window_of(setting, image), 5, 0) for image in made.images]
    assert max(len(each.modes[1]) for each in fits if each is not None) > 2
    for each in fits:
        assert each is not None
        modes, share = each.modes
        mean = share @ modes.mean
        away = modes.mean - mean
        within = np.einsum("m,mac,mbc->ab", share, modes.factor, modes.factor)
        np.testing.assert_allclose(each.mixture[0], mean, rtol=1e-12)
        np.testing.assert_allclose(each.mixture[1], within + (away.T * share) @ away, rtol=1e-9)


def test_shot_noise_is_fitted_near_its_optimum() -> None:
    """Steps hold the variance, the objective does not: near the optimum, against its errors."""
    sensor = cu.Sensor(read_noise=1.0, gain=0.5)
    setting = setting_of(sensor, flux=(50.0, 500.0))
    image = sensor.expose(light_of([5.0, 5.2, 230.0]), rng=0)
    window = window_of(setting, image)
    found = fit(setting, window, 1, 0)
    assert found is not None
    errors = np.sqrt(np.diag(moments_of(found)[1]))
    assert best_by_simplex(found.model, found.theta, errors) == pytest.approx(np.zeros(3), abs=0.25)


def best_by_simplex(model: Model, start: Any, errors: Any) -> Any:
    """Where the objective is least, in standard errors from `start`."""
    from scipy.optimize import minimize

    room = new_room(model.optics, 1, 3, *model.pixels.low.shape)
    found = minimize(
        lambda step: kernel.objective(model, start + step * errors, kernel.EXACT.stiffness, room),
        np.zeros(3),
        method="Nelder-Mead",
        options={"xatol": 1e-4, "fatol": 1e-8},
    )
    return found.x


def test_pulls_of_one_target_have_unit_variance() -> None:
    sensor = cu.Sensor(read_noise=3.0, rounding=True)
    setting, rng = setting_of(sensor, flux=(50.0, 500.0), extent=None), np.random.default_rng(4)
    pulls = []
    for _ in range(60):
        theta = np.array([*rng.uniform(4.5, 5.5, 2), rng.uniform(200.0, 300.0)])
        window = window_of(setting, sensor.expose(light_of(theta), rng))
        found = fit(setting, window, 1, 0)
        assert found is not None
        mean, covariance = moments_of(found)
        pulls.append((mean - within(window, theta)) / np.sqrt(np.diag(covariance)))
    low, high = stats.chi2.ppf([5e-4, 1 - 5e-4], 180)
    assert low < np.square(pulls).sum() < high


def test_targets_in_the_same_place_have_moments() -> None:
    """Two that share a corner of the area: no line joins them, along none are they ordered."""
    sensor = cu.Sensor(read_noise=2.0)
    setting = setting_of(sensor, flux=(50.0, 500.0), min_separation=0.0)
    window = window_of(setting, sensor.expose(light_of([5.0, 5.2, 230.0]), rng=0))
    best = fit(setting, window, 2, 0)
    assert best is not None
    corner = np.tile([*window.box.area[:, 0], 115.0], 2)
    mean, covariance = moments_of(replace(best, thetas=corner[None]))
    assert np.isfinite(mean).all()
    assert (np.diag(covariance) > 0.0).all()
