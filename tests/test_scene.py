"""Compiled loops over scenes: image, likelihood, prior, moments; against NumPy and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_ndtr

import csunmix as cu
from csunmix._kernels import prior as kernel_prior
from csunmix._kernels import scene
from csunmix._kernels.prior import Box
from csunmix._kernels.truncated import expectation_propagation, truncated_normal
from csunmix.continuous.tables import tabulate

INF = np.inf


def sampled(function: Any, reach: int, oversampling: int = 4) -> cu.SampledPSF:
    """A PSF of samples of `function` out to `reach` px."""
    d = np.arange(-reach * oversampling, reach * oversampling + 1) / oversampling
    return cu.SampledPSF(function(d[:, None], d), oversampling=oversampling)


def tilted(y: Any, x: Any) -> Any:
    """An elongated spot along the diagonal: narrow along both axes, not along the diagonal."""
    return np.exp(-0.25 * ((y + x) / 2.0) ** 2 - 0.25 * ((y - x) / 0.6) ** 2)


def ghosted(y: Any, x: Any) -> Any:
    """A spot with a faint reflection to one side."""
    return np.exp(-(y**2) - x**2) + 0.1 * np.exp(-0.5 * (y + 4.0) ** 2 - 0.5 * (x + 3.0) ** 2)


PSFS = {
    "round": cu.GaussianPSF(sigma=0.5),
    "narrow": cu.GaussianPSF(sigma=0.15),
    "wide": cu.GaussianPSF(sigma=2.7),
    "anisotropic": cu.GaussianPSF(sigma_x=0.4, sigma_y=1.3),
    "Airy": cu.AiryPSF(radius=2.5),
    "sampled": sampled(cu.GaussianPSF(sigma=0.6).kernel, 4),
    "tilted": sampled(tilted, 9),
    "ghosted": sampled(ghosted, 8),
}


def room_of(psf: cu.PSF, theta: Any, shape: tuple[int, int]) -> scene.Room:
    """Image and Jacobian of a scene, by the kernels."""
    optics = tabulate(psf, max(shape) + 1)
    room = scene.new_room(optics, len(theta) // 3, len(theta), *shape)
    scene.illuminate(optics, theta, room)
    scene.differentiate(theta, room)
    return room


# --- image and derivatives ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 6), (14, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("name", PSFS)
def test_image_and_jacobian_are_those_of_the_psf(name: str, shape: tuple[int, int]) -> None:
    """Targets inside, on a pixel's edge, at the border and outside, and a background."""
    psf, (n_y, n_x) = PSFS[name], shape
    y = np.array([0.4 * n_y, 0.5, -0.5, n_y + 0.3, n_y - 1.0])
    x = np.array([0.3 * n_x, n_x - 0.5, 0.0, -1.2, n_x - 1.0])
    flux, level = np.array([1.0, 2.0, 0.5, 1.5, 0.0]), 0.3
    room = room_of(psf, np.append(np.column_stack([y, x, flux]).ravel(), level), shape)
    response, (by_y, by_x) = psf.response(y, x, shape), psf.gradient(y, x, shape)
    light = np.einsum("k,kij->ij", flux, response) + level
    weight, jacobian = flux[:, None, None], room.jacobian.reshape(-1, *shape)
    near = np.meshgrid(*2 * [np.linspace(-2.0, 2.0, 41)])
    peak, steepest = (
        np.abs(each).max() for each in (psf.kernel(*near), psf.kernel_gradient(*near))
    )
    error = 1e-6 if isinstance(psf, cu.SeparablePSF) else 2e-4  # as the tables promise
    np.testing.assert_allclose(room.light, light, rtol=0, atol=flux.sum() * error * peak)
    np.testing.assert_allclose(jacobian[2:15:3], response, rtol=0, atol=error * peak)
    for a, slope in enumerate([weight * by_y, weight * by_x]):
        np.testing.assert_allclose(jacobian[a:15:3], slope, rtol=0, atol=1e-2 * steepest)
        if isinstance(psf, cu.SeparablePSF):
            np.testing.assert_allclose(jacobian[a:15:3], slope, rtol=0, atol=1e-4 * steepest)
    assert (jacobian[15] == 1.0).all()


def test_a_table_that_ends_within_the_window_is_dark_beyond() -> None:
    optics, shape = tabulate(PSFS["round"], 2), (9, 9)
    room = scene.new_room(optics, 1, 3, *shape)
    scene.illuminate(optics, np.array([4.2, 4.0, 1.0]), room)
    near = np.s_[2:8, 2:8]
    np.testing.assert_allclose(
        room.light[near], PSFS["round"].response(4.2, 4.0, shape)[near], atol=1e-6
    )
    room.light[near] = 0.0
    assert (room.light == 0.0).all()


@pytest.mark.parametrize("name", ["Airy", "tilted"])
def test_a_coarser_table_has_fewer_products_and_errs_as_allowed(name: str) -> None:
    fine, coarse = tabulate(PSFS[name], 9), tabulate(PSFS[name], 9, error=3e-3)
    assert coarse.y.shape[0] < fine.y.shape[0]
    shape, light = (9, 9), []
    for optics in (fine, coarse):
        room = scene.new_room(optics, 1, 3, *shape)
        scene.illuminate(optics, np.array([4.2, 3.9, 1.0]), room)
        light.append(room.light)
    assert np.abs(light[1] - light[0]).max() < 1e-2 * light[0].max()
    assert np.abs(light[1] - light[0]).max() > 0.0


def test_moving_one_target_is_making_the_image_anew() -> None:
    theta = np.array([2.0, 2.3, 5.0, 3.1, 1.7, 4.0])
    optics = tabulate(PSFS["round"], 7)
    moved, anew = (scene.new_room(optics, 2, 6, 5, 6) for _ in range(2))
    scene.illuminate(optics, theta, moved)
    theta[3:5] += 0.4
    scene.place(optics, theta, 1, moved)
    scene.shine(theta, moved)
    scene.illuminate(optics, theta, anew)
    np.testing.assert_array_equal(moved.light, anew.light)


# --- what a pixel says --------------------------------------------------------------------------


def log_between(a: float, b: float) -> float:
    """Log probability that a standard normal variable lies between, without cancellation."""
    if a + b < 0.0:
        a, b = -b, -a
    if a < 0.0:
        return float(np.log1p(-np.exp(log_ndtr(a)) - np.exp(log_ndtr(-b))))
    return float(log_ndtr(-a) + np.log1p(-np.exp(log_ndtr(-b) - log_ndtr(-a))))


def log_of(low: float, high: float, light: float, variance: float) -> float:
    """Log probability of a pixel, a log density where it is a point."""
    if low == high:
        return float(stats.norm.logpdf(low, light, np.sqrt(variance)))
    noise = np.sqrt(variance)
    return log_between((low - light) / noise, (high - light) / noise)


@pytest.mark.parametrize("z", [-50.0, -6.0, 0.0, 3.0, 5.99, 6.01, 10.0, 38.0, 1e4])
def test_log_tail(z: float) -> None:
    assert scene.log_tail(z) == pytest.approx(stats.norm.logsf(z), abs=3e-4, rel=1e-12)


@pytest.mark.parametrize("width", [0.5, 1.0, 3.0, 20.0, 200.0])
@pytest.mark.parametrize("a", [-210.0, -30.0, -7.0, -6.1, -3.0, -0.25, 0.0, 5.9, 6.1, 40.0, 1e3])
def test_log_interval(a: float, width: float) -> None:
    expected = log_between(a, a + width)
    assert scene.log_interval(a, a + width) == pytest.approx(expected, abs=5e-3, rel=1e-9)


BOUNDED = [(90.0, 90.0), (89.0, 91.0), (89.5, 90.5), (60.0, 120.0), (90.0, INF), (-INF, 90.0)]


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0, 4.0, 12.0])
@pytest.mark.parametrize(("low", "high"), [*BOUNDED, (-INF, INF)])
def test_a_pixel_against_scipy(low: float, high: float, noise: float) -> None:
    for z in (-3.0, -1.0, 0.0, 0.4, 2.0):
        end = low if np.isfinite(low) else high
        light = end + z * noise
        given = scene.log_pixel(low, high, light, noise**2, 0.5)
        given += scene.log_scale(low, high, noise**2)
        expected = 0.0 if low == -INF and high == INF else log_of(low, high, light, noise**2)
        assert given == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("noise", [0.05, 1.0, 12.0])
@pytest.mark.parametrize("light", [-300.0, 0.0, 89.9, 90.2, 150.0, 1000.0])
@pytest.mark.parametrize(("low", "high"), BOUNDED)
def test_score_is_the_derivative(low: float, high: float, light: float, noise: float) -> None:
    step = 1e-3 * noise
    ends = [scene.log_pixel(low, high, light + s * step, noise**2, 0.5) for s in (-1, 1)]
    numerical = (ends[1] - ends[0]) / (2.0 * step)
    given = scene.score(low, high, light, noise**2, 0.0)
    # What the asymptotic tail lacks, and what is lost in the difference of large numbers.
    lost = 1e-15 * abs(ends[0]) / step
    assert given == pytest.approx(numerical, rel=1e-3, abs=1e-4 / noise + 10 * lost)


@pytest.mark.parametrize("light", [80.0, 90.2, 97.0])
@pytest.mark.parametrize(("low", "high"), BOUNDED)
def test_score_counts_the_change_of_the_variance(low: float, high: float, light: float) -> None:
    def variance(light: float) -> float:
        return 0.5 + 0.3 * light + 0.01 * light**2

    def log(light: float) -> float:
        given = scene.log_pixel(low, high, light, variance(light), 0.5)
        return given + scene.log_scale(low, high, variance(light))

    numerical = (log(light + 1e-3) - log(light - 1e-3)) / 2e-3
    given = scene.score(low, high, light, variance(light), 0.3 + 0.02 * light)
    assert given == pytest.approx(numerical, rel=1e-3, abs=1e-7)


def test_an_unbounded_pixel_has_no_score_and_no_information() -> None:
    assert scene.score(-INF, INF, 3.0, 1.0, 0.0) == 0.0
    assert scene.information(-INF, INF, 3.0, 1.0) == 0.0


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("z", [-30.0, -3.0, 0.0, 2.0, 5.0, 30.0])
def test_information_of_a_bound_is_minus_the_curvature(z: float, noise: float) -> None:
    h = 0.01 * noise
    for low, high, light in ((90.0, INF, 90.0 - z * noise), (-INF, 90.0, 90.0 + z * noise)):
        s = [scene.score(low, high, light + d, noise**2, 0.0) for d in (-h, h)]
        told = scene.information(low, high, light, noise**2)
        assert told == pytest.approx(-(s[1] - s[0]) / (2 * h), rel=0.02, abs=1e-6)


@pytest.mark.parametrize("noise", [0.6, 1.0, 5.0])
def test_information_of_an_interval_is_the_variance_of_its_score(noise: float) -> None:
    """Over the levels that a pixel may read, its light anywhere between two of them."""
    level = np.arange(-40.0, 41.0)
    told = []
    for light in np.linspace(0.0, 1.0, 11)[:-1]:
        chance = np.exp([log_of(n - 0.5, n + 0.5, light, noise**2) for n in level])
        score = np.array([scene.score(n - 0.5, n + 0.5, light, noise**2, 0.0) for n in level])
        told.append(float(chance @ score**2))
    assert scene.information(-0.5, 0.5, 0.0, noise**2) == pytest.approx(np.mean(told), rel=0.02)


@pytest.mark.parametrize("per_light", [0.0, 0.5])
@pytest.mark.parametrize("extra", [0.0, 0.4, 9.0, 1e6])
def test_likelihood_of_an_image_is_the_sum_over_pixels(extra: float, per_light: float) -> None:
    low = np.array([[3.0, 2.5, 6.0, 0.0], [-INF, 4.0, -INF, -INF]])
    high = np.array([[3.0, 3.5, 8.0, 40.0], [INF, INF, 1.5, 40.0]])
    light = np.array([[3.4, 2.2, 7.1, 20.0], [8.0, 4.4, -0.5, 20.0]])
    pixels = scene.Pixels(low, high, 0.6, per_light)
    lit = np.maximum(light, 0.0)
    variance = 0.6 + extra + per_light * lit
    bounds = zip(low.flat, high.flat, light.flat, variance.flat, strict=True)
    expected = sum(log_of(*each) for each in bounds if np.isfinite(each[:2]).any())
    given = scene.log_likelihood(pixels, light, extra) + scene.log_scales(pixels, extra)
    assert given == pytest.approx(expected, abs=0.05 if extra == 0.4 else 3e-3)  # rough on the way


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("per_light", [0.0, 0.3])
@pytest.mark.parametrize("psf", ["anisotropic", "tilted"])
def test_fisher_is_the_weighted_gram_matrix(psf: str, per_light: float, background: bool) -> None:
    theta, shape = np.array([2.0, 2.3, 50.0, 3.1, 1.7, 40.0, 2.0]), (5, 6)
    theta = theta[: 7 if background else 6]
    room = room_of(PSFS[psf], theta, shape)
    low = np.rint(room.light) - 0.5
    high = low + 1.0
    low[0, 0], high[0, 0], high[2, 2] = -INF, INF, INF
    pixels = scene.Pixels(low, high, 0.7, per_light)
    out = np.zeros((theta.size, theta.size))
    scene.fisher(pixels, 0.2, theta, room, out)
    weight = [
        scene.information(a, b, m, 0.7 + 0.2 + per_light * m)
        for a, b, m in zip(low.flat, high.flat, room.light.flat, strict=True)
    ]
    expected = (room.jacobian * weight) @ room.jacobian.T
    np.testing.assert_allclose(np.tril(out), np.tril(expected), rtol=1e-10, atol=1e-10)


# --- the prior ----------------------------------------------------------------------------------

AREA = np.array([[-0.5, 3.5], [0.5, 3.5]])


def box(**given: Any) -> Box:
    parts: dict[str, Any] = {
        "area": AREA,
        "flux": (200.0, 250.0),
        "separation": 0.4,
        "extent": INF,
        "cell": 0.0,
        "cell_density": 0.0,
        "background": (1.0, 2.0),
    }
    return Box(**(parts | given))


def scene_of(*targets: tuple[float, float, float], background: float | None = None) -> Any:
    theta = np.array(targets).ravel()
    return theta if background is None else np.append(theta, background)


GOOD = ((1.2, 1.3, 220.0), (1.4, 1.9, 230.0))


@pytest.mark.parametrize(
    ("change", "second", "possible"),
    [
        ({}, GOOD[1], True),
        ({}, (1.4, 1.6, 230.0), False),  # too close
        ({}, (3.6, 1.9, 230.0), False),  # beyond the area
        ({}, (1.4, 0.4, 230.0), False),
        ({}, (1.4, 1.9, 199.0), False),  # too faint, too bright
        ({}, (1.4, 1.9, 251.0), False),
        ({"extent": 0.7}, GOOD[1], True),
        ({"extent": 0.5}, GOOD[1], False),  # too wide for a box
        ({"cell": 1.0}, (0.8, 1.0, 230.0), True),
        ({"cell": 1.0}, (1.2, 1.7, 230.0), False),  # of the next cell
        ({"cell": 0.5, "cell_density": 2.0, "extent": 0.4}, (1.2, 1.7, 230.0), False),
        ({"cell": 0.5, "cell_density": 2.0, "extent": 0.4}, (0.8, 1.0, 230.0), True),
        ({"cell": 0.5, "cell_density": 2.0, "extent": 0.7}, GOOD[1], True),
    ],
)
def test_what_the_prior_excludes(change: Any, second: Any, possible: bool) -> None:
    theta = scene_of(GOOD[0], second)
    assert np.isfinite(kernel_prior.log_prior(box(**change), theta, 2)) == possible


def test_the_background_is_normal() -> None:
    levels = np.array([-3.0, 0.0, 1.0, 6.0])
    logs = [kernel_prior.log_prior(box(), scene_of(*GOOD, background=b), 2) for b in levels]
    expected = stats.norm.logpdf(levels, 1.0, 2.0)
    np.testing.assert_allclose(np.diff(logs), np.diff(expected), rtol=1e-12)


@pytest.mark.parametrize("extent", [0.9, 2.0, 2.9, 3.5, 20.0])
def test_a_box_anywhere_is_summed_over_where_it_may_lie(extent: float) -> None:
    """Along each axis, the corners of boxes of this size in the area that hold all targets."""
    rng, many = np.random.default_rng(0), box(separation=0.0, extent=extent)
    log_density, expected = [], []
    for _ in range(40):
        y, x = rng.uniform(*AREA[0], 3), rng.uniform(*AREA[1], 3)
        share = 1.0
        for at, (low, high) in zip((y, x), AREA, strict=True):
            corner = np.linspace(low, max(high - extent, low), 20_001)
            share *= np.mean((corner <= at.min()) & (at.max() < corner + extent))
        expected.append(share)
        theta = np.column_stack([y, x, np.full(3, 220.0)]).ravel()
        log_density.append(kernel_prior.log_prior(many, theta, 3))
    density, shares = np.exp(log_density), np.array(expected)
    assert shares.any()
    np.testing.assert_allclose(density / density.max(), shares / shares.max(), atol=2e-3)


PRIORS = [
    {},
    {"extent": 0.9},
    {"extent": 20.0},
    {"cell": 1.0},
    {"cell": 1.0, "separation": 0.6},
    {"extent": 1.2, "cell": 0.5, "cell_density": 2.0},
]


@pytest.mark.parametrize("change", PRIORS, ids=str)
def test_draws_keep_to_the_prior(change: Any) -> None:
    known = box(**change)
    theta = np.empty(10)
    for _ in range(200):
        assert kernel_prior.draw_scene(known, 3, theta)
        assert np.isfinite(kernel_prior.log_prior(known, theta, 3))


@pytest.mark.parametrize("change", [{"extent": 0.9}, {"cell": 1.0}, {}], ids=str)
def test_draws_without_separation_follow_the_prior(change: Any) -> None:
    known = box(separation=0.0, **change)
    theta = np.empty((20_000, 6))
    for each in theta:
        kernel_prior.draw_scene(known, 2, each)
    size = [change.get("extent", 1.0 if change else side) for side in (4.0, 3.0)]
    apart = np.abs(theta[:, :2] - theta[:, 3:5]).mean(axis=0)
    np.testing.assert_allclose(apart, np.array(size) / 3.0, rtol=0.02)
    np.testing.assert_allclose(theta[:, :2].mean(axis=0), AREA.mean(axis=1), atol=0.03)
    np.testing.assert_allclose(theta[:, 2].mean(), 225.0, atol=0.5)


def test_a_prior_without_room_draws_nothing() -> None:
    assert not kernel_prior.draw_scene(box(extent=0.3, separation=0.5), 2, np.empty(6))


# --- normal distributions cut off by bounds -----------------------------------------------------


@pytest.mark.parametrize("width", [1e-5, 1e-3, 0.01, 0.3, 2.0, 15.0, 60.0, INF])
@pytest.mark.parametrize("a", [-60.0, -25.0, -8.0, -2.0, -0.1, 0.0, 1.0, 7.0, 19.9, 20.1, 45.0])
def test_truncated_normal(a: float, width: float) -> None:
    b = a + width
    mean, variance = truncated_normal(a, b)
    expected_mean, expected_variance = moments_between(a, b)
    spread = np.sqrt(expected_variance)
    assert mean == pytest.approx(expected_mean, abs=5e-3 * spread)
    assert variance == pytest.approx(expected_variance, rel=0.01)
    assert truncated_normal(-b, -a) == pytest.approx((-mean, variance), rel=1e-12)


def moments_between(a: float, b: float) -> tuple[float, float]:
    """Mean and variance by a fine sum over where the density is not negligible."""
    peak = min(max(0.0, a), b)
    scale = 1.0 / max(abs(peak), 1.0)
    low, high = max(a, peak - 40.0 * scale), min(b, peak + 40.0 * scale)
    edge = np.linspace(low, high, 400_001)
    z = 0.5 * (edge[1:] + edge[:-1])
    p = np.exp(-0.5 * (z - peak) * (z + peak))
    p /= p.sum()
    mean = float(p @ (z - peak))
    return peak + mean, float(p @ (z - peak - mean) ** 2)


def unbounded(n: int) -> Any:
    return np.full(n, INF)


def test_expectation_propagation_is_exact_for_independent_bounds() -> None:
    low, high = np.array([0.5, -1.0, -INF]), np.array([3.0, 0.2, 2.0])
    mean, covariance = expectation_propagation(
        np.eye(3), np.zeros(3), np.eye(3), low, high, unbounded(3)
    )
    np.testing.assert_allclose(mean, stats.truncnorm.mean(low, high), atol=1e-3)
    np.testing.assert_allclose(np.diag(covariance), stats.truncnorm.var(low, high), rtol=5e-3)


@pytest.mark.parametrize("start", [INF, 2.0], ids=["flat", "started"])
@pytest.mark.parametrize("seed", range(3))
def test_expectation_propagation_against_a_sample(seed: int, start: float) -> None:
    """Four correlated variables between bounds, and the difference of two of them above one."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(4, 6))
    covariance = root @ root.T / 4.0
    mean = rng.normal(0.0, 0.5, 4)
    rows = np.vstack([np.eye(4), [1.0, -1.0, 0.0, 0.0]])
    low, high = np.append(np.full(4, -1.0), 0.3), np.append(np.full(4, 1.5), INF)
    scale = np.append(np.full(4, start), INF)
    precision = np.linalg.inv(covariance)
    given = expectation_propagation(precision, precision @ mean, rows, low, high, scale)
    draws = rng.multivariate_normal(mean, covariance, 1_000_000)
    along = draws @ rows.T
    kept = draws[((along >= low) & (along <= high)).all(axis=1)]
    assert len(kept) > 5_000
    spread = kept.std(axis=0)
    np.testing.assert_allclose(given[0] / spread, kept.mean(axis=0) / spread, atol=0.06)
    np.testing.assert_allclose(np.sqrt(np.diag(given[1])), spread, rtol=0.1)
    np.testing.assert_allclose(given[1] / np.outer(spread, spread), np.corrcoef(kept.T), atol=0.15)
