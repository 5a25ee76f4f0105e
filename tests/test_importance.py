"""Weighted draws: what they weigh, against particles and chains, and what they end in."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from scipy import stats

import csunmix as cu
from csunmix._kernels.importance import (
    DEGREES,
    NEVER,
    add_density,
    log_level,
    scatter,
)
from csunmix._kernels.labels import new_pairs, pair
from csunmix._kernels.modes import Modes, sharp
from csunmix._kernels.modes import approximate as approximations
from csunmix._kernels.prior import log_prior
from csunmix._kernels.scene import Pixels, illuminate, log_likelihood, new_room
from csunmix.continuous.fit import Fit, fit
from csunmix.continuous.importance import FULL, Draws, Mixture, draw, weigh_together
from csunmix.continuous.sampling import (
    Sample,
    _pool,
    approximate,
    cool,
    effective,
    hop,
    summarise,
    weigh,
)
from csunmix.continuous.window import Setting
from csunmix.targets import Flag
from tests.test_billiards import COUNT, INSIDE, model_of

PRESET = cu.presets.csist_100k()
RNG = np.random.default_rng(0)
NOTHING = np.empty(0)


def setting_of(sensor: cu.Sensor = PRESET.sensor, **known: Any) -> Setting:
    return Setting(PRESET.psf, sensor, replace(PRESET.prior, **known), PRESET.shape, 0.0)


def fits_of(setting: Setting, count: int, n: int, seed: int) -> list[Fit]:
    scene = replace(PRESET.scene, count=(count, count))
    made = cu.simulate(PRESET.psf, setting.sensor, scene, shape=PRESET.shape, n=n, rng=seed)
    fits = []
    for image in made.images:
        window = setting.window(image.astype(np.float64))
        assert window is not None
        best = fit(setting, window, count, 0)
        assert best is not None
        fits.append(best)
    return fits


def drawn(best: Fit, enough: float, seed: int = 0) -> Draws:
    exact = best.model._replace(pixels=best.window.pixels)
    return draw(exact, *best.modes, enough, seed, best.model)


def orders(theta: Any, count: int) -> Any:
    """The scene in all orders of its targets."""
    return [theta.reshape(count, 3)[list(order)].ravel() for order in permutations(range(count))]


def symmetric(theta: Any, weight: Any) -> tuple[Any, Any]:
    """Means and standard deviations of what does not depend on the order of targets."""
    place = theta.reshape(len(theta), -1, 3)
    away = ((place - place.mean(axis=1, keepdims=True))[..., :2] ** 2).sum(axis=1)
    told = np.column_stack([place.mean(axis=1), away])
    mean = weight @ told / weight.sum()
    return mean, np.sqrt(weight @ (told - mean) ** 2 / weight.sum())


# --- kernels ------------------------------------------------------------------------------------


def test_every_scene_has_one_order_next_to_a_mean() -> None:
    for _ in range(50):
        theta, like = RNG.uniform(0.0, 3.0, (2, 9))
        assert sum(pair(each, like, new_pairs(3)) for each in orders(theta, 3)) == 1


@pytest.mark.parametrize("background", [False, True])
def test_density_is_that_of_t_distributions_in_the_order_next_to_them(background: bool) -> None:
    d = 3 * COUNT + background
    mean = np.append(INSIDE, 0.0)[:d] + RNG.normal(0.0, 0.2, (4, d))
    factor = np.tril(RNG.normal(0.0, 0.05, (4, d, d)), -1) + 0.3 * np.eye(d)
    thetas = mean[RNG.integers(4, size=150)] + RNG.normal(0.0, 0.3, (150, d))
    number = np.array([10.0, 1.0, 200.0, 30.0])
    total = np.zeros(150)
    add_density(mean, np.linalg.inv(factor), number, 2.0, COUNT, thetas, total)
    expected = np.zeros(150)
    for k in range(4):
        t = stats.multivariate_t(mean[k], factor[k] @ factor[k].T, DEGREES)
        for i, theta in enumerate(thetas):
            for each in orders(theta[: 3 * COUNT], COUNT):
                if pair(each, mean[k], new_pairs(COUNT)):
                    density = t.pdf(np.append(each, theta[3 * COUNT :]))
                    expected[i] += number[k] * density * (2.0 * np.pi) ** (0.5 * d) / np.e**2
    np.testing.assert_allclose(total, expected, rtol=1e-9)


def test_scenes_are_scattered_around_modes_and_told_prior_and_likelihood() -> None:
    model = model_of(separation=0.2)
    room = new_room(model.optics, COUNT, 9, *model.pixels.low.shape)
    illuminate(model.optics, INSIDE, room)
    seen = room.light.copy()
    model = model._replace(pixels=Pixels(seen, seen, 4.0, 0.0))
    mean = INSIDE + RNG.normal(0.0, 0.05, (2, 9))
    factor = np.tril(RNG.uniform(0.0, 0.3, (2, 9, 9))) * np.tile([1.0, 1.0, 60.0], COUNT)[:, None]
    modes = Modes(mean, mean, factor, np.linalg.inv(factor))
    of, unit = RNG.integers(2, size=400), RNG.normal(0.0, 1.0, (400, 9))
    thetas = unit.copy()
    logs = scatter(model, modes, of, thetas)
    np.testing.assert_allclose(thetas, mean[of] + np.einsum("nab,nb->na", factor[of], unit))
    expected = []
    for theta, k in zip(thetas, of, strict=True):
        illuminate(model.optics, theta, room)
        value = log_prior(model.box, theta, COUNT)
        value += log_likelihood(model.pixels, room.light, 0.0)
        expected.append(value if pair(theta, mean[k], new_pairs(COUNT)) else -np.inf)
    assert np.isfinite(expected).any()
    assert np.isinf(expected).any()
    given = np.where(np.isfinite(logs), logs, np.array(expected))  # hopeless scenes are left out
    np.testing.assert_allclose(given, expected)
    left_out = np.isfinite(expected) & ~np.isfinite(logs)
    assert left_out.any()
    assert (np.array(expected)[left_out] < np.max(expected) - NEVER).all()


# --- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sensor", "count"),
    [(PRESET.sensor, 3), (cu.Sensor(read_noise=3.0), 3), (cu.Sensor(read_noise=5.0), 4)],
    ids=["rounded", "sigma 3", "sigma 5"],
)
def test_draws_agree_with_particles_from_the_prior(sensor: cu.Sensor, count: int) -> None:
    setting = setting_of(sensor)
    for best in fits_of(setting, count, 2, 3):
        found = drawn(best, 1000.0)
        assert found.effective >= 500.0
        runs = [cool(setting, best.window, count, seed)[0].theta for seed in range(3)]
        theta = np.concatenate(runs).reshape(-1, 3 * count)
        mean, spread = symmetric(theta, np.ones(len(theta)))
        given, given_spread = symmetric(found.theta, found.weight)
        np.testing.assert_allclose(given / spread, mean / spread, atol=0.3)
        np.testing.assert_allclose(given_spread, spread, rtol=0.25)


def test_integral_is_that_of_sequential_monte_carlo() -> None:
    """One that targets of which it is not known which is which share: of each order once."""
    sensor = cu.Sensor(read_noise=12.0)
    setting = setting_of(sensor, cell=False, min_separation=0.3)
    for best in fits_of(setting, 2, 3, 8):
        expected = [cool(setting, best.window, 2, seed)[1] for seed in range(4)]
        assert best.log_evidence == pytest.approx(np.mean(expected), abs=0.4)


def test_a_bent_posterior_is_followed_to_its_ends() -> None:
    """Four targets in a square may turn: 5 standard deviations of the approximation, bent."""
    setting = setting_of()
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=PRESET.shape, n=300, rng=100)
    window = setting.window(made.images[37].astype(np.float64))
    assert window is not None
    best = fit(setting, window, 4, 1)
    assert best is not None
    truth = made.truth[made.truth["frame"] == 37][["y", "x"]].to_numpy() - window.origin
    for seed in range(3):
        found = drawn(best, 400.0, seed)
        places = found.theta.reshape(len(found.theta), 4, 3)[..., :2]
        away = np.hypot(*(places[:, :, None] - truth).transpose(3, 0, 1, 2)).min(axis=1)
        near = (away < 0.06).all(axis=1)
        assert found.weight[near].sum() > 0.5
        first = best.modes[0].mean.reshape(-1, 4, 3)[..., :2]
        far = np.hypot(*(first[:, :, None] - truth).transpose(3, 0, 1, 2)).min(axis=1) > 0.06
        assert far.any(axis=1).all()  # no mode is there


def test_what_the_modes_do_not_show_is_found() -> None:
    """Five targets of any flux, most of whose posterior lies where no draw around modes does."""
    prior = replace(PRESET.prior, flux=(50.0, 500.0), cell=False)
    sensor = replace(PRESET.sensor, saturation=None)
    made = cu.simulate(PRESET.psf, sensor, prior, shape=PRESET.shape, n=300, rng=105)
    truth = made.truth[made.truth["frame"] == 201]
    setting = Setting(PRESET.psf, sensor, prior, PRESET.shape, 0.0)
    window = setting.window(made.images[201])
    assert window is not None
    best = fit(setting, window, 5, 201)
    assert best is not None
    place, shares = truth[["y", "x"]].to_numpy() - window.origin, []
    for seed in range(7):
        found = drawn(best, 100.0, seed)
        each = found.theta.reshape(-1, 5, 1, 3)[..., :2]
        far = np.hypot(*(each - place).transpose(3, 0, 1, 2)).min(axis=1).max(axis=1)
        shares.append(found.weight[far < 0.2].sum())
    assert np.median(shares) > 0.5  # one in 20 misses it, which one depends on the processor


def test_few_draws_find_what_many_do() -> None:
    """Means of 20 scenes err by more than those of 500, but by no more than so few must."""
    away, spreads, numbers = [], [], []
    for count in (2, 3, 4, 5):
        for best in fits_of(setting_of(), count, 6, 17):
            many, few = drawn(best, 500.0), drawn(best, 20.0)
            mean, spread = symmetric(many.theta, many.weight)
            given, given_spread = symmetric(few.theta, few.weight)
            away.append((given - mean) / spread)
            spreads.append(np.log(given_spread / spread))
            numbers.append(len(few.theta) / len(many.theta))
            assert few.effective >= 20.0
    assert np.sqrt(np.mean(np.square(away))) < 1.5 * np.sqrt(1.0 / 20.0 + 1.0 / 500.0)
    assert abs(np.mean(spreads)) < 0.1
    assert np.median(numbers) < 0.3


@pytest.mark.parametrize("sensor", [PRESET.sensor, cu.Sensor(read_noise=2.0)], ids=str)
@pytest.mark.parametrize("told", [{"cell": 0.0}, {"cell": 1.0, "extent": None}], ids=str)
def test_distributions_around_an_optimum_are_its_modes(sensor: cu.Sensor, told: Any) -> None:
    setting = setting_of(sensor, **told)
    for best in fits_of(setting, 3, 4, 12):
        model = best.model._replace(pixels=best.window.pixels)
        near = approximations(model, best.thetas[:1], NOTHING, np.zeros(1)).modes
        mode = approximations(model, best.thetas[:1], np.zeros(1), NOTHING).modes
        spread = np.sqrt((mode.factor[0] ** 2).sum(axis=1))
        np.testing.assert_array_equal(near.theta, best.thetas[:1])
        assert (np.abs(near.mean[0] - mode.mean[0]) < 0.2 * spread).all()
        np.testing.assert_allclose(np.sqrt((near.factor[0] ** 2).sum(axis=1)), spread, rtol=0.2)
        np.testing.assert_allclose(near.inverse[0] @ near.factor[0], np.eye(9), atol=1e-9)


def test_chance_says_which_distributions_are_of_scenes_in_a_cell() -> None:
    best = fits_of(setting_of(cell=0.5), 4, 1, 12)[0]
    scene = np.repeat(best.thetas[:1], 2, axis=0)
    as_cell, as_box = approximations(best.model, scene, NOTHING, np.array([0.0, 1.0])).modes.mean
    modes = approximations(best.model, best.thetas[:1], np.zeros(1), NOTHING).modes
    np.testing.assert_allclose(np.stack([as_box, as_cell]), modes.mean, rtol=1e-12)
    assert not np.allclose(as_cell, as_box, rtol=1e-3)


def test_scenes_that_all_are_lost_leave_a_distribution_to_draw_from() -> None:
    model = fits_of(setting_of(), 2, 1, 12)[0].model
    nowhere = np.full((3, 6), np.nan)
    modes = approximations(model, nowhere, NOTHING, np.zeros(3)).modes
    assert modes.mean.shape == (1, 6)
    assert np.isfinite(modes.factor).all()


@pytest.mark.parametrize("background", [0.0, "fit"])
def test_distributions_around_scenes_keep_to_the_intervals_of_rounding(background: Any) -> None:
    """They are nearer to the posterior than those with rounding as a normal error."""
    sensor = replace(PRESET.sensor, saturation=None)
    setting = replace(setting_of(sensor), background=background)
    apart = []
    for best in fits_of(setting, 1, 8, 6):
        exact = best.model._replace(pixels=best.window.pixels)
        found = drawn(best, 2000.0)
        mean = found.weight @ found.theta
        spread = np.sqrt(found.weight @ (found.theta - mean) ** 2)
        line = []
        for model in exact, best.model:
            modes = approximations(model, mean[None], np.zeros(1), NOTHING)[0]
            claimed = np.sqrt(np.diag(modes.factor[0] @ modes.factor[0].T))
            line += [np.abs(modes.mean[0] - mean) / spread, np.abs(np.log(claimed / spread))]
        apart.append(np.array(line).max(axis=1))
    sharp_mean, sharp_spread, mean, spread = np.mean(apart, axis=0)
    assert sharp_mean < min(0.8 * mean, 0.25)
    assert sharp_spread < min(0.8 * spread, 0.25)


def test_noise_and_shot_noise_leave_intervals_no_bounds() -> None:
    pixels = fits_of(setting_of(), 1, 1, 0)[0].window.pixels
    assert sharp(pixels)
    assert not sharp(pixels._replace(variance=0.04))
    assert not sharp(pixels._replace(per_light=0.1))
    assert not sharp(pixels._replace(high=pixels.low))
    bounds = np.full_like(pixels.low, np.inf)
    assert not sharp(pixels._replace(high=bounds, variance=25.0))
    bounds[0, 0] = pixels.high[0, 0]
    assert sharp(pixels._replace(high=bounds))


def part_of(found: Draws, which: Any) -> Draws:
    """Some of the scenes, as they were."""
    return Draws(
        *(part[which] for part in found[:2]),
        found[2],
        *(part[which] for part in found[3:5]),
        found[5],
    )


def test_density_of_a_run_is_kept() -> None:
    """It is what the scenes were weighed by, and what all runs together are weighed by."""
    best = fits_of(setting_of(cu.Sensor(read_noise=3.0)), 2, 1, 1)[0]
    one, two = (drawn(best, 100, seed) for seed in (0, 1))
    for run in one, two:
        density = np.zeros(len(run.theta))
        add_density(*run.mixture, 3.0, 2, run.theta, density)
        np.testing.assert_allclose(np.log(density) + 3.0, run.density, rtol=1e-9)
        log_weight = run.logs - run.density
        expected = np.exp(log_weight - log_weight.max())
        np.testing.assert_allclose(run.weight, expected / expected.sum(), rtol=1e-9)
    total = np.zeros(len(one.theta))
    for run in one, two:
        add_density(*run.mixture, 3.0, 2, one.theta, total)
    expected = np.exp(one.logs - one.logs.max()) / total
    weight, expected = weigh_together([one, two], 2)[0], expected / expected.sum()
    counts = weight > 0.0
    assert expected[~counts].sum() < 1e-3
    expected = expected[counts] / expected[counts].sum()
    np.testing.assert_allclose(weight[counts] / weight.sum(), expected, rtol=1e-9)


def test_a_scene_that_dominates_its_run_biases_nothing() -> None:
    """Of two modes alike, the first run has one, and a scene of the other by a rare chance."""
    rng, eye = np.random.default_rng(5), np.eye(3)[None].repeat(2, axis=0)
    mean = np.array([[0.0, 0.0, 0.0], [12.0, 0.0, 0.0]])

    def density_of(theta: Any, number: Any) -> Any:
        total, k = np.zeros(len(theta)), len(number)
        add_density(mean[:k], eye[:k], number, 0.0, 1, theta, total)
        return np.log(total)

    def run(theta: Any, number: Any) -> Draws:
        logs, density = density_of(theta, np.ones(2)), density_of(theta, number)
        weight = np.exp(logs - density)
        mixture = Mixture(mean[: len(number)], eye[: len(number)], number)
        return Draws(
            theta, weight / weight.sum(), float(np.log(weight.sum())), logs, density, mixture
        )

    def around(mean: Any, n: int) -> Any:
        return mean + rng.standard_normal((n, 3)) * np.sqrt(
            DEGREES / rng.chisquare(DEGREES, (n, 1))
        )

    first = run(np.vstack([around(mean[0], 2000), mean[1:]]), np.array([2000.0]))
    assert first.weight.max() > 0.99
    both = np.full(2, 1000.0)
    others = [run(np.vstack([around(each, 1000) for each in mean]), both) for _ in range(3)]
    share = sum(
        weight[each.theta[:, 0] > 6.0].sum()
        for each, weight in zip([first, *others], weigh_together([first, *others], 1), strict=True)
    )
    assert share == pytest.approx(0.5, abs=0.01)


def test_runs_are_weighed_as_one() -> None:
    """A run that has missed a part of the posterior takes no weight from what others have there."""
    setting = setting_of(cu.Sensor(read_noise=3.0))
    best = fits_of(setting, 2, 1, 1)[0]
    one, two, far = (drawn(best, enough, seed) for enough, seed in ((400, 0), (100, 1), (100, 2)))
    found = _pool([one, two], 2)
    assert effective(found) > one.effective
    assert found.weight.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(found.weight[1, len(two.weight) :], 0.0)
    alone, together = (
        symmetric(each.theta.reshape(-1, 6), each.weight.ravel())
        for each in (Sample(one.theta[None], one.weight[None], 0), found)
    )
    np.testing.assert_allclose(alone[0] / alone[1], together[0] / alone[1], atol=0.25)
    half = np.argsort(far.theta[:, 0])[: len(far.theta) // 2]
    cut = part_of(far, half)
    again = _pool([one, cut], 2)
    mean = symmetric(again.theta.reshape(-1, 6), again.weight.ravel())[0]
    assert (np.abs(mean - alone[0]) < np.abs(symmetric(cut.theta, cut.weight)[0] - alone[0])).all()


def test_a_run_of_nothing_is_none_beside_others() -> None:
    best = fits_of(setting_of(cu.Sensor(read_noise=3.0)), 2, 1, 1)[0]
    one = drawn(best, 100)
    none = part_of(one, slice(0))
    found = _pool([none, one], 2)
    assert found.weight[0].sum() == 0.0
    np.testing.assert_array_equal(found.theta[1], one.theta)
    assert effective(_pool([none, none], 2)) == 0.0


def test_draws_of_the_evidence_say_where_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of(cell=False)
    best = fits_of(setting, 3, 1, 1)[0]
    made, given = best.draws, []
    monkeypatch.setattr(
        "csunmix.continuous.sampling.draw", lambda *a: given.append(a[-2]) or draw(*a)
    )
    weigh(best, 300.0, 0)
    assert given[0] is made
    exact = best.model._replace(pixels=best.window.pixels)
    found, without = (
        draw(exact, *best.modes, 300.0, 0, best.model, known).mixture.mean for known in (made, None)
    )
    assert len(found) >= len(without) + 20


def test_draws_agree_with_chains() -> None:
    setting = setting_of(cu.Sensor(read_noise=3.0))
    for best in fits_of(setting, 3, 4, 2):
        answers = [
            summarise(best, each, 0.1)
            for each in (weigh(best, 400.0, 0), hop(setting, best, 8, 1000, 0))
        ]
        one, two = (answer[np.lexsort(answer[:, :2].T.round(1))] for answer in answers)
        assert (np.abs(one[:, :3] - two[:, :3]) < 0.4 * two[:, 3:6]).all()
        np.testing.assert_allclose(one[:, 3:6], two[:, 3:6], rtol=0.3)


def test_as_many_scenes_count_as_asked_for() -> None:
    best = fits_of(setting_of(cu.Sensor(read_noise=3.0)), 2, 1, 0)[0]
    for enough in (100.0, 1000.0):
        found = drawn(best, enough)
        assert 0.98 * enough <= found.effective < len(found.weight)
        assert found.weight.sum() == pytest.approx(1.0)


def test_the_seed_says_which_draws() -> None:
    best = fits_of(setting_of(), 3, 1, 0)[0]
    one, same, other = (drawn(best, 100.0, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.theta, same.theta)
    np.testing.assert_array_equal(one.weight, same.weight)
    assert one.log_integral != other.log_integral


def test_draws_of_the_evidence_are_the_answer_where_nothing_is_rounded() -> None:
    setting = setting_of(cu.Sensor(read_noise=3.0))
    best = fits_of(setting, 2, 1, 1)[0]
    assert not best.drawn
    made = best.draws
    assert best.drawn
    np.testing.assert_array_equal(weigh(best, 100, 0).theta[0], made.theta)
    assert weigh(best, 2 * made.effective, 0).theta.shape[1] > len(made.theta)


def test_draws_of_the_evidence_are_not_thrown_away_for_the_first_of_them() -> None:
    """Where too few of them count, further runs are beside them, and all are weighed together."""
    setting = setting_of(cu.Sensor(read_noise=3.0))
    best = fits_of(setting, 2, 1, 1)[0]
    few = best.draws._replace(weight=np.append(1.0, np.full(len(best.draws.weight) - 1, 1e-9)))
    best.__dict__["draws"] = few
    found = weigh(best, 100, 0)
    np.testing.assert_array_equal(found.theta[0, : len(few.theta)], few.theta)
    assert found.theta.shape[0] == 4
    assert effective(found) > 200.0


def test_draws_of_the_evidence_are_not_those_of_intervals() -> None:
    """As many of the latter count where there are some of the former."""
    setting = setting_of()
    few = (each for each in fits_of(setting, 4, 8, 1) if effective(weigh(each, 20, 0)) < 190.0)
    best = next(few)
    made = best.draws
    found = weigh(best, 20, 0)
    assert not np.array_equal(found.theta[0, :50], made.theta[:50])
    assert effective(found) >= 190.0


def unlike() -> tuple[Setting, Any]:
    """An image of another PSF, which no scene explains."""
    setting = setting_of(cu.Sensor(read_noise=0.01))
    wide, scene = cu.GaussianPSF(sigma=0.7), replace(PRESET.scene, count=(5, 5))
    made = cu.simulate(wide, setting.sensor, scene, shape=PRESET.shape, n=1, rng=0)
    return setting, made.images[0]


def test_hardly_any_scene_is_none() -> None:
    setting, image = unlike()
    window = setting.window(image)
    assert window is not None
    best = fit(setting, window, 5, 0)
    assert best is not None
    found = weigh(best, 200.0, 0)
    assert found.theta.size == 0
    assert found.flags == int(Flag.NOT_CONVERGED)


def test_a_small_number_is_reached_by_one_run() -> None:
    setting = setting_of(cu.Sensor(read_noise=3.0))
    best = fits_of(setting, 1, 1, 1)[0]
    found = weigh(best, 1.0, 0)
    assert found.theta.shape[0] == 1
    assert effective(found) >= 3.0


def test_further_runs_begin_at_scenes_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    best = fits_of(setting_of(cu.Sensor(read_noise=3.0)), 2, 1, 1)[0]
    made, given = draw(best.model, *best.modes, 100.0, 0), []
    few = made._replace(weight=np.append(1.0, np.full(len(made.weight) - 1, 1e-9)))
    runs = [few, made, made, made]
    monkeypatch.setattr(
        "csunmix.continuous.sampling.draw", lambda *a: given.append(a[-2:]) or runs[len(given) - 1]
    )
    weigh(best, 100.0, 0)
    assert given[0] == (None, True)
    assert all(known is few and not roam for known, roam in given[1:])
    assert len(given) == 4


def test_only_draws_that_are_to_roam_have_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    best = fits_of(setting_of(cu.Sensor(read_noise=3.0)), 4, 1, 1)[0]
    roamed = []
    picky = FULL._replace(normal=np.inf)
    monkeypatch.setattr("csunmix.continuous.importance.FULL", picky)
    monkeypatch.setattr(
        "csunmix.continuous.importance._roam",
        lambda *a: roamed.append(a) or (np.empty((0, best.model.precision.size)), np.empty(0)),
    )
    for roam in (False, True):
        draw(best.model, *best.modes, 2000.0, 0, roam=roam)
        assert len(roamed) == roam


def test_without_scenes_the_answer_is_that_of_the_approximations() -> None:
    setting, image = unlike()
    table = cu.ContinuousUnmixer(PRESET.psf, setting.sensor, setting.prior)(image)
    assert np.isfinite(table[["y", "x", "flux", "y_err", "score"]]).all(axis=None)
    assert (table["flags"] & int(Flag.MISFIT)).all()
    assert (table["flags"] & int(Flag.NOT_CONVERGED)).all()


def test_without_draws_the_answer_is_that_of_the_approximations() -> None:
    setting = setting_of()
    best = fits_of(setting, 3, 1, 4)[0]
    assert weigh(best, 0, 0).theta.size == 0
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=PRESET.shape, n=5, rng=4)
    unmix = cu.ContinuousUnmixer(PRESET.psf, setting.sensor, setting.prior, n_effective=0)
    table, slow = unmix(made.images), replace(unmix, n_effective=100)(made.images)
    assert cu.metrics.count_accuracy(table, made.truth) == 1.0
    assert not (table["flags"] & int(Flag.NOT_CONVERGED)).any()
    away = (table[["y", "x"]].to_numpy() - slow[["y", "x"]].to_numpy()) / slow[["y_err", "x_err"]]
    assert 0.0 < away.abs().max(axis=None) < 2.0
    for frame, image in enumerate(made.images):
        first = table[table["frame"] == frame]
        window = setting.window(image.astype(np.float64))
        assert window is not None
        found = fit(setting, window, len(first), crc32(image.astype(np.float64).tobytes(), 0))
        assert found is not None
        expected = approximate(found, 0.1)
        np.testing.assert_allclose(sorted(first["y"]), sorted(expected[:, 0]), rtol=1e-9)
        np.testing.assert_allclose(sorted(first["y_err"]), sorted(expected[:, 3]), rtol=1e-9)


@pytest.mark.parametrize(
    ("psf", "sensor", "background"),
    [
        (PRESET.psf, cu.Sensor(read_noise=2.0, gain=2.0), 0.0),
        (PRESET.psf, cu.Sensor(read_noise=3.0), "fit"),
        (cu.AiryPSF(radius=1.2), cu.Sensor(read_noise=3.0), 0.0),
    ],
    ids=["shot noise", "background", "rank"],
)
def test_draws_agree_with_chains_whatever_the_model(psf: Any, sensor: Any, background: Any) -> None:
    prior = replace(PRESET.prior, count=(2, 2), min_separation=0.8, extent=2.0, cell=False)
    made = cu.simulate(psf, sensor, prior, shape=(13, 13), n=3, rng=5)
    setting = Setting(psf, sensor, prior, (13, 13), background)
    for image in made.images:
        window = setting.window(image.astype(np.float64))
        assert window is not None
        best = fit(setting, window, 2, 0)
        assert best is not None
        answers = [
            summarise(best, each, 0.1)
            for each in (weigh(best, 1000.0, 0), hop(setting, best, 8, 500, 0))
        ]
        one, two = (answer[np.argsort(answer[:, 0] + answer[:, 1])] for answer in answers)
        assert (np.abs(one[:, :3] - two[:, :3]) < 0.35 * two[:, 3:6]).all()
        np.testing.assert_allclose(one[:, 3:6], two[:, 3:6], rtol=0.25)


def test_densities_beyond_numbers_are_none_all_the_same() -> None:
    """Forty isolated targets known to 1e-6 px: densities at their means are above 1e308."""
    count, d = 40, 120
    mean = np.column_stack([np.arange(count), np.zeros(count), np.full(count, 230.0)]).ravel()[None]
    inverse = 1e6 * np.eye(d)[None]
    unit = log_level(inverse[0], 1000.0)
    assert unit > np.log(np.finfo(float).max)
    total = np.zeros(3)
    add_density(mean, inverse, np.full(1, 1000.0), unit, count, np.repeat(mean, 3, axis=0), total)
    np.testing.assert_allclose(total, 1.0)
