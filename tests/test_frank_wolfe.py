"""Sliding Frank-Wolfe: its kernels against plain twins, its answers against grids and the truth."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import csunmix as cu
from csunmix._kernels import frank_wolfe as kernel
from csunmix._kernels.scene import new_room
from csunmix.continuous.frank_wolfe import SlidingFrankWolfe
from csunmix.continuous.tables import tabulate
from csunmix.solvers.base import universal_lam
from csunmix.targets import Flag

SHAPE = (9, 8)
GAUSSIAN = cu.GaussianPSF(sigma=0.5)


def sampled_psf() -> cu.SampledPSF:
    """A lopsided PSF that is no product of one factor in y and one in x."""
    at = np.arange(-16, 17) / 4
    core = cu.GaussianPSF(sigma_y=0.6, sigma_x=0.8).kernel(at[:, None], at)
    wing = cu.GaussianPSF(sigma=1.2).kernel(at[:, None] - 0.3, at)
    return cu.SampledPSF(core + 0.05 * wing, oversampling=4)


PSFS = {
    "gaussian": GAUSSIAN,
    "anisotropic": cu.GaussianPSF(sigma_y=0.5, sigma_x=0.9),
    "sampled": sampled_psf(),
}


@cache
def optics(name: str) -> Any:
    return tabulate(PSFS[name], max(SHAPE) + 1)


def both(*names: str) -> Any:
    """Parametrise a test by compiled kernels, and by the Python functions they were made of."""
    kernels = [getattr(kernel, name) for name in names]
    plain = [function.py_func for function in kernels]
    return pytest.mark.parametrize(list(names), [kernels, plain], ids=["compiled", "plain"])


def random_task(name: str = "sampled", lam: float = 2.0) -> tuple[kernel.Task, np.ndarray]:
    """An image with bad and saturated pixels, and a scene that exceeds one of the bounds."""
    rng = np.random.default_rng(4)
    theta = np.array([3.7, 4.2, 200.0, 4.9, 3.4, 130.0, 2.2, 2.9, 90.0])
    image = light_of(PSFS[name], theta) + rng.normal(0.0, 5.0, SHAPE)
    weights, censored = rng.uniform(0.5, 1.5, SHAPE), np.zeros(SHAPE, bool)
    weights[4, 4] = 0.0
    censored[3:6, 3] = True
    image[censored] = [40.0, 20.0, 90.0]
    return kernel.new_task(optics(name), image, weights, censored, lam), theta


def light_of(psf: cu.PSF, theta: np.ndarray, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    y, x, flux = np.reshape(theta, (-1, 3)).T
    return np.einsum("k,kij->ij", flux, psf.response(y, x, shape))


def weighted_residual(task: kernel.Task, psf: cu.PSF, theta: np.ndarray) -> np.ndarray:
    r = task.image - light_of(psf, theta, task.image.shape)
    return task.weights * np.where(task.censored, np.maximum(r, 0.0), r)


def objective_of(task: kernel.Task, psf: cu.PSF, theta: np.ndarray) -> float:
    nu = weighted_residual(task, psf, theta)
    good = task.weights > 0
    return float(0.5 * (nu[good] ** 2 / task.weights[good]).sum() + task.lam * theta[2::3].sum())


# --- kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PSFS)
@both("objective", "residual")
def test_objective_and_residual(objective: Any, residual: Any, name: str) -> None:
    task, theta = random_task(name)
    room = new_room(task.optics, 3, 9, *SHAPE)
    twin = objective_of(task, PSFS[name], theta)
    assert objective(task, theta, room) == pytest.approx(twin, rel=1e-5)
    twin = weighted_residual(task, PSFS[name], theta)
    assert (twin == 0).sum() == 2  # the bad pixel, and the bound that is exceeded
    np.testing.assert_allclose(residual(task, theta), twin, atol=2e-3)


@pytest.mark.parametrize("name", PSFS)
@both("correlate")
def test_correlation_and_its_derivatives(correlate: Any, name: str) -> None:
    psf, pull = PSFS[name], np.random.default_rng(0).normal(size=SHAPE)
    y, x, h = 3.31, 6.87, 1e-4

    def twin(dy: float, dx: float) -> np.ndarray:
        at = (y + dy, x + dx, SHAPE)
        return np.array([(part * pull).sum() for part in (psf.response(*at), *psf.gradient(*at))])

    (by_y, by_x) = (twin(h, 0) - twin(-h, 0)) / (2 * h), (twin(0, h) - twin(0, -h)) / (2 * h)
    found = np.array(correlate(optics(name), pull, y, x))
    np.testing.assert_allclose(found[:3], twin(0, 0), atol=1e-4)
    np.testing.assert_allclose(found[3:], [by_y[1], by_y[2], by_x[2]], atol=2e-2)


@pytest.mark.parametrize("name", PSFS)
@both("new_task", "search")
def test_the_grid_that_is_searched_covers_the_image(new_task: Any, search: Any, name: str) -> None:
    task = new_task(optics(name), np.zeros(SHAPE), np.ones(SHAPE), np.zeros(SHAPE, bool), 1.0)
    pull = np.random.default_rng(1).normal(size=SHAPE)
    y, x = (
        np.linspace(-0.5, n - 0.5, len(grid))
        for n, grid in zip(SHAPE, (task.grid_y, task.grid_x), strict=True)
    )
    assert max(np.diff(y).max(), np.diff(x).max()) <= 0.26 * PSFS[name].width
    responses = PSFS[name].response(y[:, None], x, SHAPE)
    twin = np.einsum("mnij,ij->mn", responses, pull)
    np.testing.assert_allclose(search(task, pull), twin, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@both("summit", "climb")
def test_the_summit_is_the_highest_point_anywhere(summit: Any, climb: Any, seed: int) -> None:
    task, _ = random_task("gaussian")
    pull = np.random.default_rng(seed).normal(size=SHAPE)
    y, x, height = summit(task, pull)
    fine = cu.Dictionary(GAUSSIAN, SHAPE, 41).adjoint(pull)
    assert fine.max() - 1e-6 <= height <= fine.max() + 2e-3
    assert height == pytest.approx((GAUSSIAN.response(y, x, SHAPE) * pull).sum(), abs=1e-6)
    near = climb(task.optics, pull, min(y + 0.05, SHAPE[0] - 0.5), max(x - 0.05, -0.5))
    np.testing.assert_allclose(near, (y, x, height), atol=1e-6)


@both("climb")
def test_a_climb_ends_at_the_edge(climb: Any) -> None:
    pull = np.zeros(SHAPE)
    pull[0], pull[1] = GAUSSIAN.response(0.0, 3.2, SHAPE)[0], -5.0
    y, x, height = climb(optics("gaussian"), pull, 0.1, 3.5)
    assert y == -0.5
    row = [(GAUSSIAN.response(-0.5, at, SHAPE) * pull).sum() for at in (x - 0.01, x, x + 0.01)]
    assert row[1] == max(row) == pytest.approx(height, abs=1e-6)


@both("relative_gap")
def test_the_gap_is_that_of_the_grid_solvers(relative_gap: Any) -> None:
    task, _ = random_task("gaussian")
    dictionary = cu.Dictionary(GAUSSIAN, SHAPE, 3)
    x = np.zeros(dictionary.map_shape)
    x[12, 11], x[14, 12] = 150.0, 80.0
    given: Any = {"lam": task.lam, "weights": task.weights, "censored": task.censored}
    r = task.image - dictionary.forward(x)
    nu = task.weights * np.where(task.censored, np.maximum(r, 0.0), r)
    value = float(cu.solvers.base.objective(dictionary, task.image, x, **given))
    highest = float(dictionary.adjoint(nu).max())
    twin = float(cu.solvers.base.duality_gap(dictionary, task.image, x, **given))
    assert 0.01 < twin < 0.99
    assert relative_gap(task, nu, highest, value) == pytest.approx(twin, rel=1e-9)


@both("derive")
def test_derivatives_of_the_objective(derive: Any) -> None:
    task, theta = random_task()
    room = new_room(task.optics, 3, 9, *SHAPE)
    ascent, hessian, scale = np.empty(9), np.zeros((9, 9)), np.empty(9)
    other, unused = np.empty(9), np.empty((9, 9))
    derive(task, theta, room, ascent, hessian, scale)
    assert (scale > 0).all()
    for a in range(9):
        step = np.where(np.arange(9) == a, 1e-4, 0.0)
        values = [kernel.objective(task, theta + sign * step, room) for sign in (-1, 1)]
        assert ascent[a] == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-4)
        kernel.derive(task, theta + step, room, other, unused, scale)
        bend = (ascent - other)[a:] / 1e-4
        np.testing.assert_allclose(hessian[a:, a], bend, rtol=0.02, atol=2e-3 * abs(bend).max())


@pytest.mark.parametrize("moving", [False, True])
@both("slide")
def test_a_slide_ends_in_the_nearest_minimum(slide: Any, moving: bool) -> None:
    task, theta = random_task("gaussian")
    found, value = slide(task, theta, moving)
    bounds = [(-0.5, SHAPE[0] - 0.5), (-0.5, SHAPE[1] - 0.5), (0.0, None)] * 3
    if not moving:
        bounds = [b if k % 3 == 2 else (theta[k],) * 2 for k, b in enumerate(bounds)]
    twin = minimize(
        lambda t: objective_of(task, GAUSSIAN, t), theta, bounds=bounds, options={"ftol": 1e-13}
    )
    assert value == pytest.approx(twin.fun, rel=1e-5)
    assert value == pytest.approx(objective_of(task, GAUSSIAN, found), rel=1e-6)
    assert value < objective_of(task, GAUSSIAN, theta)


@both("slide")
def test_atoms_that_lose_their_flux_are_dropped(slide: Any) -> None:
    task, theta = random_task("gaussian")
    found, _ = slide(task, np.append(theta, [7.0, 0.5, 30.0]), False)
    np.testing.assert_allclose(found, slide(task, theta, False)[0], rtol=1e-9)


@pytest.mark.parametrize(("apart", "left"), [(0.0, 1), (0.06, 2)])
@both("merge", "objective")
def test_atoms_merge_only_where_that_costs_nothing(
    merge: Any, objective: Any, apart: float, left: int
) -> None:
    light = light_of(GAUSSIAN, np.array([4.0, 4.0, 120.0, 4.0, 4.0 + apart, 80.0]))
    task = kernel.new_task(
        optics("gaussian"), light, np.ones(SHAPE), np.zeros(SHAPE, bool), lam=1e-6
    )
    pair = np.array([4.0, 4.0 + 0.4 * apart - 0.02, 120.0, 4.0, 4.0 + 0.4 * apart + 0.03, 80.0])
    if left == 2:
        pair, _ = kernel.slide(task, pair, True)
    value = objective(task, pair, new_room(task.optics, 2, 6, *SHAPE))
    theta, new = merge(task, pair, value)
    assert theta.size == 3 * left
    assert new <= value


# --- answers ------------------------------------------------------------------------------------


def exposed(psf: cu.PSF, saturation: float | None = None) -> tuple[cu.Sensor, np.ndarray]:
    """A noisy image of four targets with a bad pixel, and its sensor."""
    bad = np.zeros(SHAPE, bool)
    bad[3, 4] = True
    sensor = cu.Sensor(read_noise=1.0, rounding=True, saturation=saturation, bad_pixels=bad)
    rng = np.random.default_rng(5)
    theta = rng.uniform([2.0, 2.0, 150.0], [6.0, 6.0, 300.0], (4, 3))
    return sensor, sensor.expose(light_of(psf, theta), rng=3)


@pytest.mark.parametrize("saturation", [None, 60.0])
@pytest.mark.parametrize("name", PSFS)
def test_fine_grids_come_close_to_the_continuum_and_never_below(
    name: str, saturation: float | None
) -> None:
    psf, lam = PSFS[name], 0.5
    sensor, image = exposed(psf, saturation)
    given: Any = {"weights": sensor.valid(image) * 1.0, "censored": sensor.censored(image)}
    assert given["censored"].any() == (saturation is not None)
    found = SlidingFrankWolfe(psf, sensor, lam=lam, tol=1e-7).solve(image)
    assert found.converged
    assert found.gap <= 1e-7
    excess = []
    for factor in (3, 5, 7, 15):
        grid = cu.ActiveSet(lam=lam).solve(cu.Dictionary(psf, SHAPE, factor), image, **given)
        excess.append(float(grid.objective) / found.objective - 1.0)
    assert min(excess) >= -1e-6
    assert excess[0] > 1e-3
    assert excess[-1] < 0.1 * excess[0]


@pytest.mark.parametrize("name", PSFS)
def test_no_atom_anywhere_pulls_more_than_lam(name: str) -> None:
    psf = PSFS[name]
    sensor, image = exposed(psf, 60.0)
    found = SlidingFrankWolfe(psf, sensor, lam=2.0, tol=1e-8).solve(image)
    task = kernel.new_task(
        optics(name), image, sensor.valid(image) * 1.0, sensor.censored(image), found.lam
    )
    theta = np.column_stack([found.positions, found.fluxes]).ravel()
    nu = weighted_residual(task, psf, theta)
    pull = cu.Dictionary(psf, SHAPE, 15).adjoint(nu)
    at_atoms = (psf.response(*found.positions.T, SHAPE) * nu).sum(axis=(1, 2))
    assert pull.max() <= found.lam * (1 + 1e-3)
    np.testing.assert_allclose(at_atoms, found.lam, rtol=1e-3)
    assert found.objective == pytest.approx(objective_of(task, psf, theta), rel=1e-6)


@pytest.mark.parametrize("name", PSFS)
def test_one_target_without_noise(name: str) -> None:
    image = 230.0 * PSFS[name].response(4.13, 3.68, SHAPE)
    found = SlidingFrankWolfe(PSFS[name], lam=1e-3).solve(image)
    np.testing.assert_allclose(found.positions, [[4.13, 3.68]], atol=1e-4)
    np.testing.assert_allclose(found.fluxes, [230.0], atol=0.05)


@pytest.mark.parametrize("name", PSFS)
def test_two_targets_a_pixel_apart(name: str) -> None:
    true = np.array([4.2, 3.6, 230.0, 4.8, 4.4, 245.0])
    found = SlidingFrankWolfe(PSFS[name], lam=1e-4, tol=1e-9).solve(light_of(PSFS[name], true))
    order = found.positions[:, 0].argsort()
    np.testing.assert_allclose(found.positions[order], [[4.2, 3.6], [4.8, 4.4]], atol=1e-3)
    np.testing.assert_allclose(found.fluxes[order], [230.0, 245.0], atol=0.5)


def test_a_target_outside_is_put_on_the_edge() -> None:
    image = 230.0 * GAUSSIAN.response(-0.9, 3.68, SHAPE)
    found = SlidingFrankWolfe(GAUSSIAN, lam=1e-3).solve(image)
    assert found.converged
    np.testing.assert_allclose(found.positions, [[-0.5, 3.68]], atol=1e-3)
    assert found.positions[0, 0] == -0.5


def test_an_airy_psf() -> None:
    psf = cu.AiryPSF(radius=3.0)
    image = light_of(psf, np.array([4.2, 3.6, 230.0]))
    found = SlidingFrankWolfe(psf, lam=1e-3).solve(image)
    np.testing.assert_allclose(found.positions, [[4.2, 3.6]], atol=1e-4)


def test_a_saturated_pixel_is_a_bound() -> None:
    image = light_of(GAUSSIAN, np.array([4.2, 3.6, 900.0]))
    clipped = np.minimum(image, 255.0)
    sensor = cu.Sensor(saturation=255.0)
    found = SlidingFrankWolfe(GAUSSIAN, sensor, lam=1e-3, tol=1e-6).solve(clipped)
    brightest = found.fluxes.argmax()
    np.testing.assert_allclose(found.positions[brightest], [4.2, 3.6], atol=0.02)
    assert found.fluxes.sum() == pytest.approx(900.0, abs=10.0)
    believed = SlidingFrankWolfe(GAUSSIAN, lam=1e-3, tol=1e-6).solve(clipped)
    assert believed.fluxes.max() < 0.8 * 900.0 < found.fluxes.max()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_image_does_not_matter(scale: float) -> None:
    sensor, image = cu.Sensor(read_noise=1.0), exposed(GAUSSIAN)[1]
    found = SlidingFrankWolfe(GAUSSIAN, sensor).solve(image)
    scaled = SlidingFrankWolfe(GAUSSIAN, cu.Sensor(read_noise=scale)).solve(scale * image)
    np.testing.assert_allclose(scaled.positions, found.positions, atol=1e-4)
    np.testing.assert_allclose(scaled.fluxes, scale * found.fluxes, rtol=1e-4)


def test_automatic_lam_is_above_noise_and_close_to_that_of_the_grid() -> None:
    sensor = cu.Sensor(read_noise=2.0)
    noise = sensor.expose(np.zeros((100, *SHAPE)), rng=8)
    unmix = SlidingFrankWolfe(GAUSSIAN, sensor)
    assert len(unmix(noise)) <= 10
    grid = universal_lam(cu.Dictionary(GAUSSIAN, SHAPE, 7), 2.0)
    assert unmix.solve(noise[0]).lam == pytest.approx(float(grid), rel=0.15)
    exact = SlidingFrankWolfe(GAUSSIAN).solve(230.1 * GAUSSIAN.response(4.0, 4.0, SHAPE))
    assert 0 < exact.lam < unmix.solve(noise[0]).lam


@pytest.mark.parametrize("value", [0.0, -0.7])
@pytest.mark.parametrize("lam", ["auto", 0.1])
def test_an_image_without_light_has_no_targets(value: float, lam: Any) -> None:
    unmix = SlidingFrankWolfe(GAUSSIAN, lam=lam)
    found = unmix.solve(np.full(SHAPE, value))
    assert found.fluxes.size == 0
    assert found.positions.shape == (0, 2)
    assert found.converged
    table = unmix(np.full((2, *SHAPE), value))
    assert len(table) == 0
    assert table.attrs["frame_flags"] == {0: Flag.NO_TARGET, 1: Flag.NO_TARGET}


@pytest.mark.parametrize("limit", [{"max_iter": 1}, {"max_targets": 1}])
def test_what_stops_early_says_so(limit: Any) -> None:
    image = light_of(GAUSSIAN, np.array([4.2, 3.6, 230.0, 4.8, 4.4, 245.0]))
    unmix = SlidingFrankWolfe(GAUSSIAN, lam=0.1, **limit)
    found = unmix.solve(image)
    best = SlidingFrankWolfe(GAUSSIAN, lam=0.1, tol=1e-9).solve(image)
    assert not found.converged
    assert found.fluxes.size == 1
    assert found.gap >= 1.0 - best.objective / found.objective > 1e-4
    assert unmix(image)["flags"].tolist() == [Flag.NOT_CONVERGED]


# --- tables -------------------------------------------------------------------------------------


def test_a_table_of_many_images(caplog: pytest.LogCaptureFixture) -> None:
    images = np.zeros((2, 2, *SHAPE))
    images[0, 0] = light_of(GAUSSIAN, np.array([4.2, 3.6, 900.0]))
    images[0, 1] = np.nan
    images[1, 1] = light_of(GAUSSIAN, np.array([0.1, 3.6, 230.0]))
    sensor = cu.Sensor(saturation=255.0)
    unmix = SlidingFrankWolfe(GAUSSIAN, sensor, lam=0.1, threshold=20.0)
    table = unmix(np.minimum(images, 255.0))
    assert set(table["frame"]) == {0, 3}
    assert (table.loc[table["frame"] == 0, "flags"] == Flag.SATURATED).all()
    assert table.loc[table["frame"] == 3, "flags"].tolist() == [Flag.BORDER]
    assert table[["score", "y_err", "x_err", "flux_err"]].isna().all(axis=None)
    assert table.attrs["frame_flags"] == {
        0: Flag.SATURATED,
        1: Flag.NOT_FINITE | Flag.NO_TARGET,
        2: Flag.NO_TARGET,
        3: Flag.BORDER,
    }
    assert table.attrs["n_frames"] == 4
    assert "1 image(s) not finite, first frame 1" in caplog.text


def test_faint_targets_are_left_out() -> None:
    image = light_of(GAUSSIAN, np.array([2.0, 2.0, 30.0, 6.0, 5.0, 200.0]))
    sizes = [
        len(SlidingFrankWolfe(GAUSSIAN, lam=0.01, **given)(image))
        for given in ({}, {"threshold": 50.0}, {"min_share": 0.1}, {"min_share": 0.2})
    ]
    assert sizes == [2, 1, 2, 1]


@pytest.mark.parametrize("background", [12.0, "border"])
def test_offset_and_background_are_taken_off(background: Any) -> None:
    image = light_of(GAUSSIAN, np.array([4.2, 3.6, 230.0]))
    sensor = cu.Sensor(offset=100.0)
    found = SlidingFrankWolfe(GAUSSIAN, sensor, lam=0.1, background=background).solve(image + 112.0)
    plain = SlidingFrankWolfe(GAUSSIAN, lam=0.1).solve(image)
    np.testing.assert_allclose(found.positions, plain.positions, atol=1e-4)
    np.testing.assert_allclose(found.fluxes, plain.fluxes, atol=0.1)


@pytest.mark.parametrize("lam", ["auto", 1.0])
def test_what_a_bad_pixel_holds_does_not_matter(lam: Any) -> None:
    sensor, image = exposed(GAUSSIAN)
    unmix = SlidingFrankWolfe(GAUSSIAN, sensor, lam=lam)
    found, flags = unmix.solve(image), set(unmix(image)["flags"])
    for value in (np.nan, 1e9):
        image[3, 4] = value
        np.testing.assert_array_equal(unmix.solve(image).positions, found.positions)
    assert flags == {Flag.BAD_PIXELS}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"psf": 0.5}, TypeError, "psf must be of type PSF"),
        ({"sensor": 1.0}, TypeError, "sensor must be of type Sensor"),
        ({"lam": 0.0}, ValueError, "lam must be above 0"),
        ({"lam": "small"}, ValueError, "lam must be a number or 'auto'"),
        ({"tol": 0.0}, ValueError, "tol must be above 0"),
        ({"max_targets": 0}, ValueError, "max_targets must be at least 1"),
        ({"max_iter": 2.5}, TypeError, "max_iter must be an integer"),
        ({"background": "fit"}, ValueError, "background must be a number or 'border'"),
        ({"threshold": -1.0}, ValueError, "threshold must be at least 0"),
        ({"min_share": 1.5}, ValueError, "min_share must be at most 1"),
    ],
)
def test_wrong_arguments_are_named(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        SlidingFrankWolfe(**{"psf": GAUSSIAN, **given})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, *SHAPE)), "image must have two axes"),
        (np.full(SHAPE, np.nan), "image must be finite"),
    ],
)
def test_wrong_images_are_named(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingFrankWolfe(GAUSSIAN).solve(image)


def test_a_stack_without_a_finite_image_is_refused() -> None:
    with pytest.raises(ValueError, match="images must be finite"):
        SlidingFrankWolfe(GAUSSIAN)(np.full((2, *SHAPE), np.inf))
