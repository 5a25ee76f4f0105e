"""The solvers: against each other, an independent solver, plain twins, and their certificates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import lsq_linear, nnls
from scipy.sparse import issparse

import csunmix as cu
from csunmix.background import noise_level
from csunmix.solvers import IterationStats, Solver, duality_gap, kkt_violation, objective
from csunmix.solvers.active_set import _first_price
from csunmix.solvers.base import Problem, universal_lam
from csunmix.solvers.bregman import (
    _differences,
    _differences_adjoint,
    _solve_smooth,
    _WaveletTerm,
)

Floats = npt.NDArray[np.floating[Any]]

SHAPE = (7, 8)
PRESET = cu.presets.csist_100k()
SATURATION = 255.0


@functools.cache
def dictionary(name: str = "gauss-3") -> cu.Dictionary:
    """Small dictionaries: separable and dense, odd and even factors, normalised."""
    optics, factor = name.split("-")[:2]
    psf = {
        "gauss": cu.GaussianPSF(0.5),
        "skewed": cu.GaussianPSF(sigma_y=0.4, sigma_x=0.8),
        "airy": cu.AiryPSF(0.95),
    }[optics]
    return cu.Dictionary(psf, SHAPE, int(factor), normalised=name.endswith("normalised"))


@functools.cache
def images() -> Floats:
    """Two clusters, targets at the border and in a corner, nothing, and a saturated blob."""
    made = cu.simulate(
        PRESET.psf, cu.Sensor(rounding=True), PRESET.scene, shape=SHAPE, n=2, rng=11, margin=2
    ).images
    border = cu.targets.make_table(0, [0.0, 3.2, 6.4], [0.0, -0.4, 7.4], [230.0, 240.0, 220.0])
    crowd = cu.targets.make_table(0, [3, 3.3, 2.7, 3.1], [4, 4.4, 3.8, 3.4], 300.0)
    edges = cu.render(PRESET.psf, border, shape=SHAPE)
    blob = np.minimum(cu.render(PRESET.psf, crowd, shape=SHAPE), SATURATION)
    stack = np.concatenate([made, np.rint(edges), np.zeros((1, *SHAPE)), np.rint(blob)])
    assert (stack[4] == SATURATION).sum() >= 1
    stack.flags.writeable = False
    return stack


KINDS = ("plain", "weighted", "masked", "censored")


def options(kind: str) -> dict[str, Any]:
    """What else a solver is told of the pixels."""
    saturated = images() >= SATURATION
    if kind == "weighted":
        return {"weights": np.random.default_rng(3).uniform(0.2, 1.5, images().shape)}
    if kind == "masked":
        return {"weights": np.where(saturated, 0.0, 1.0)}
    return {"censored": saturated} if kind == "censored" else {}


@functools.cache
def oracle(name: str, kind: str, lam: float, positive: bool) -> Any:
    """What CVXPY says."""
    solver = cu.CvxpyLasso(lam=lam, positive=positive)
    result = solver.solve(dictionary(name), images(), **options(kind))
    assert result.converged.all()
    return result


L1: dict[str, Callable[..., Any]] = {
    "ISTA": cu.ISTA,
    "FISTA": functools.partial(cu.FISTA, max_iter=50_000),
    "ActiveSet": cu.ActiveSet,
    "SplitBregman": cu.SplitBregman,
}
FIXED = functools.partial(cu.ISTA, step="fixed", max_iter=100_000)
EVERY_L1 = pytest.mark.parametrize("make", L1.values(), ids=L1.keys())
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
PURSUITS: dict[str, Any] = {
    "MatchingPursuit": cu.MatchingPursuit(),
    "OMP": cu.OMP(),
    "OMP-local": cu.OMP(locally_optimised=True, bounds=(50, 300)),
}
EVERY: dict[str, Any] = {name: make(lam=50.0) for name, make in L1.items()} | PURSUITS
EVERY_SOLVER = pytest.mark.parametrize("solver", EVERY.values(), ids=EVERY.keys())


LAM = 2.0


def quick(solver: Any) -> Any:
    """The same solver, where it does not matter whether it converges."""
    return replace(solver, max_iter=200) if hasattr(solver, "max_iter") else solver


# --- the l1 optimum -----------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize(
    ("solver", "name"),
    [("ISTA-fixed", "gauss-1"), ("ISTA-fixed", "airy-1"), ("SplitBregman", "airy-1")]
    + [(solver, "gauss-2") for solver in L1]
    + [(s, name) for s in ("ISTA", "FISTA", "ActiveSet") for name in ("gauss-3", "airy-2")],
)
def test_l1_solvers_reach_the_optimum(solver: str, kind: str, name: str) -> None:
    made = FIXED(lam=LAM) if solver == "ISTA-fixed" else L1[solver](lam=LAM)
    result = made.solve(dictionary(name), images(), **options(kind))
    twin = oracle(name, kind, LAM, True)
    assert result.converged.all()
    assert (result.gap >= 0).all()
    assert (result.gap <= made.tol).all()
    assert (result.x >= 0).all()
    np.testing.assert_allclose(result.objective, twin.objective, rtol=1e-6, atol=1e-9)
    problem = {"lam": LAM, **options(kind)}
    at_x = objective(dictionary(name), images(), result.x, **problem)
    np.testing.assert_allclose(result.objective, at_x, rtol=1e-12)
    gap = duality_gap(dictionary(name), images(), result.x, **problem)
    np.testing.assert_allclose(result.gap, gap, rtol=1e-6, atol=1e-12)
    assert (kkt_violation(dictionary(name), images(), result.x, **problem) < 0.02 * LAM).all()
    assert (result.x[3] == 0).all()  # the empty image


@EVERY_L1
@pytest.mark.parametrize("name", ["skewed-2", "gauss-2-normalised"])
def test_other_dictionaries(make: Any, name: str) -> None:
    result = make(lam=LAM).solve(dictionary(name), images())
    assert result.converged.all()
    twin = oracle(name, "plain", LAM, True)
    np.testing.assert_allclose(result.objective, twin.objective, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [L1[n] for n in ("ISTA", "FISTA", "SplitBregman")])
@EVERY_KIND
def test_without_the_sign_constraint(make: Any, kind: str) -> None:
    d = dictionary("gauss-2")
    signs = np.where(np.arange(5) % 2, -1.0, 1.0)[:, None, None]
    y = images() * signs
    result = make(lam=LAM, positive=False).solve(d, y, **options(kind))
    twin = cu.CvxpyLasso(lam=LAM, positive=False).solve(d, y, **options(kind))
    assert result.converged.all()
    np.testing.assert_allclose(result.objective, twin.objective, rtol=1e-6, atol=1e-9)
    assert (result.x[1] < 0).any()
    problem = {"lam": LAM, "positive": False, **options(kind)}
    assert (kkt_violation(d, y, result.x, **problem) < 0.02 * LAM).all()


@pytest.mark.parametrize("lam", [0.0, 1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_active_set_is_exact_at_every_lam(lam: float, factor: int) -> None:
    made = cu.simulate(
        PRESET.psf, cu.Sensor(read_noise=2.0), PRESET.scene, shape=(11, 11), n=20, rng=8
    ).images
    d = cu.Dictionary(PRESET.psf, (11, 11), factor)
    result = cu.ActiveSet(lam=lam).solve(d, made)
    assert result.converged.all()
    # Rounding of a correlation, of at most some hundred DN, is all that is left.
    assert (kkt_violation(d, made, result.x, lam=lam) < 1e-9).all()
    if lam == 0:
        dense = d.to_dense()
        for b in range(3):
            residual = nnls(dense, made[b].ravel(), maxiter=10_000)[1]
            assert result.residual_norm[b] == pytest.approx(residual, rel=1e-8)
    else:
        assert (result.gap <= 1e-9).all()


@pytest.mark.parametrize("lam", [0.0, 1e-9, 1e-5, 1e-3, 1.0])
def test_active_set_begins_no_lower_than_a_share_of_the_largest_correlation(lam: float) -> None:
    """Where pixels are censored: with `lam`, or 1e-6 times that."""
    y = images()
    w, censored = np.ones_like(y), y >= 0.7 * y.max(axis=(1, 2), keepdims=True)
    w[1, 2], censored[0] = 0.0, False
    for d in (dictionary("gauss-2"), dictionary("airy-2")):
        problem = Problem.make(d, y, lam=lam, weights=w, censored=censored)
        floor = 1e-6 * d.adjoint(w * y).max(axis=(1, 2))
        expected = np.where(censored.any(axis=(1, 2)), np.maximum(lam, floor), lam)
        np.testing.assert_allclose(_first_price(problem), expected, rtol=1e-12)


def test_active_set_settles_which_censored_pixels_pull() -> None:
    made = cu.simulate(
        PRESET.psf, PRESET.sensor, PRESET.scene, shape=(11, 11), n=200, rng=21
    ).images
    for saturation in (255.0, 120.0, 40.0):
        y = np.minimum(made, saturation)
        censored = y >= saturation
        d = cu.Dictionary(PRESET.psf, (11, 11), 3)
        for lam in (0.02, 1.0):
            result = cu.ActiveSet(lam=lam).solve(d, y, censored=censored)
            assert result.converged.all()
            assert (kkt_violation(d, y, result.x, lam=lam, censored=censored) < 1e-6).all()
            assert (result.gap < 1e-7).all()


@EVERY_L1
def test_nothing_is_left_at_lam_max(make: Any) -> None:
    d, y = dictionary(), images()
    largest = d.lam_max(y)
    for b in range(5):
        result = make(lam=float(largest[b]) * (1 + 1e-12) + 1e-9).solve(d, y[b])
        assert (result.x == 0).all()
        assert result.gap == pytest.approx(0.0, abs=1e-12)
        assert result.n_iter == 0
        assert result.converged
        if largest[b] > 0:
            assert make(lam=0.99 * float(largest[b])).solve(d, y[b]).x.any()
    assert (make(lam=5.0).solve(d, -y).x == 0).all()


@EVERY_L1
def test_scale_law(make: Any) -> None:
    d, scale = dictionary("gauss-2"), 32.0  # a power of two: rounding is the same
    x = make(lam=LAM).solve(d, images()).x
    scaled = make(lam=LAM * scale).solve(d, images() * scale).x
    np.testing.assert_allclose(scaled, scale * x, rtol=1e-6, atol=1e-6 * scale)


@EVERY_L1
def test_warm_start_from_the_solution_ends_at_once(make: Any) -> None:
    d = dictionary("gauss-2")
    result = make(lam=LAM).solve(d, images())
    again = make(lam=LAM).solve(d, images(), x0=result.x)
    assert again.converged.all()
    assert (again.n_iter <= 2).all()
    assert len(again.history) <= 2
    np.testing.assert_allclose(again.objective, result.objective, rtol=1e-7, atol=1e-12)


@EVERY_L1
def test_a_poor_warm_start_does_not_change_the_answer(make: Any) -> None:
    d = dictionary("gauss-2")
    x0 = np.random.default_rng(1).uniform(0, 50, d.map_shape)  # one map for all images
    result = make(lam=LAM).solve(d, images(), x0=x0)
    twin = oracle("gauss-2", "plain", LAM, True)
    assert result.converged.all()
    np.testing.assert_allclose(result.objective, twin.objective, rtol=1e-6, atol=1e-9)


@EVERY_L1
def test_every_gap_is_a_bound(make: Any) -> None:
    best = oracle("gauss-2", "plain", LAM, True).objective
    seen: list[IterationStats] = []
    make(lam=LAM).solve(dictionary("gauss-2"), images(), callback=seen.append)
    values, gaps = np.array([s.objective for s in seen]), np.array([s.gap for s in seen])
    assert len(seen) > 2
    assert (values - best <= gaps * values + 1e-7 * best + 1e-9).all()


@pytest.mark.parametrize("step", ["spectral", "fixed"])
@EVERY_KIND
def test_ista_never_rises(step: Any, kind: str) -> None:
    seen: list[IterationStats] = []
    solver = cu.ISTA(lam=LAM, step=step, max_iter=2000)
    solver.solve(dictionary("gauss-2"), images(), callback=seen.append, **options(kind))
    values = np.array([s.objective for s in seen])
    assert len(values) > 10
    assert (np.diff(values, axis=0) <= 1e-12 * values[:-1]).all()


@EVERY_L1
def test_too_few_iterations_are_owned_up_to(make: Any) -> None:
    result = replace(make(lam=1.0), max_iter=3).solve(dictionary(), images())
    hard = [0, 1, 2, 4]
    assert not result.converged[hard].any()
    assert result.converged[3]
    assert (result.n_iter[hard] == 3).all()
    assert (result.gap[hard] > 1e-7).all()


def test_the_oracle_owns_up_too() -> None:
    result = cu.CvxpyLasso(lam=1.0, max_iter=2).solve(dictionary("gauss-2"), images()[:2])
    assert not result.converged.any()
    assert np.isfinite(result.objective).all()


@EVERY_L1
@EVERY_KIND
def test_pixels_of_weight_zero_are_ignored(make: Any, kind: str) -> None:
    y = images()[:2]
    w = np.ones(SHAPE)
    w[2, 3] = w[0, 0] = 0.0
    given = {"weights": w}
    if kind == "censored":
        given["censored"] = np.ones(SHAPE, bool) & (w == 0)
    changed = y.copy()
    changed[:, w == 0] = 1e5
    first = make(lam=LAM).solve(dictionary("gauss-2"), y, **given)
    second = make(lam=LAM).solve(dictionary("gauss-2"), changed, **given)
    np.testing.assert_allclose(second.objective, first.objective, rtol=1e-9)
    np.testing.assert_allclose(second.x, first.x, rtol=1e-9, atol=1e-9)


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_image_without_any_weight_holds_nothing(solver: Any, dtype: Any) -> None:
    result = solver.solve(dictionary(), images().astype(dtype), weights=0.0)
    assert (result.x == 0).all()
    assert (result.objective == 0).all()


@pytest.mark.parametrize("make", [L1[n] for n in ("FISTA", "ActiveSet", "SplitBregman")])
def test_every_pixel_saturated(make: Any) -> None:
    y = np.full(SHAPE, SATURATION)
    censored = np.ones(SHAPE, bool)
    result = make(lam=LAM).solve(dictionary("gauss-2"), y, censored=censored)
    twin = cu.CvxpyLasso(lam=LAM).solve(dictionary("gauss-2"), y, censored=censored)
    assert result.objective == pytest.approx(float(twin.objective), rel=1e-6)
    assert result.converged


def csist(kind: str) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Images of the benchmark's size, and which pixels are censored."""
    clipped = kind == "saturated"
    sensor = PRESET.sensor if clipped else cu.Sensor(rounding=True)
    y = cu.simulate(PRESET.psf, sensor, PRESET.scene, shape=(11, 11), n=3, rng=77).images
    if kind == "border":
        table = cu.targets.make_table(range(3), [-0.4, 4.7, 10.4], [-0.3, -0.3, 10.2], 235.0)
        y = cu.render(PRESET.psf, table, shape=(11, 11))
    y = np.zeros_like(y) if kind == "zero" else y
    return y, sensor.censored(y)


@pytest.mark.parametrize("kind", ["random", "border", "zero", "saturated"])
def test_l1_solvers_agree_with_cvxpy_where_atoms_are_coherent(kind: str) -> None:
    y, censored = csist(kind)
    d = cu.Dictionary(PRESET.psf, (11, 11), 3)
    twin = cu.CvxpyLasso(lam=1.0).solve(d, y, censored=censored)
    assert censored.any() == (kind == "saturated")
    for name, make in L1.items():
        result = make(lam=1.0).solve(d, y, censored=censored)
        assert result.converged.all(), name
        np.testing.assert_allclose(
            result.objective, twin.objective, rtol=1e-6, atol=1e-9, err_msg=name
        )


HARD = {
    "constant": lambda y: y + 20.0,
    "gradient": lambda y: y + np.linspace(0, 40, y.shape[-1]) + np.linspace(0, 10, len(y))[:, None],
    "half saturated": lambda y: np.where(np.arange(y.shape[-1]) < 5, SATURATION, y),
    "all saturated": lambda y: np.full_like(y, SATURATION),
    "two by two": lambda y: y[4:6, 4:6],
}


@pytest.mark.parametrize("factor", [3, 7])
@pytest.mark.parametrize("make", HARD.values(), ids=HARD.keys())
def test_active_set_agrees_with_cvxpy_on_hard_images(
    make: Callable[[Floats], Floats], factor: int
) -> None:
    y = make(csist("random")[0][0])
    d = cu.Dictionary(PRESET.psf, y.shape[-2:], factor)
    censored = y >= SATURATION
    result = cu.ActiveSet(lam=1.0).solve(d, y, censored=censored)
    twin = cu.CvxpyLasso(lam=1.0).solve(d, y, censored=censored)
    assert result.converged
    assert result.objective == pytest.approx(float(twin.objective), rel=1e-6)
    assert kkt_violation(d, y, result.x, lam=1.0, censored=censored) < 1e-6


def saturated_block(size: int) -> tuple[cu.Dictionary, Floats, npt.NDArray[np.bool_]]:
    """A dictionary, and an image with a saturated block in its middle on a dim noisy ground."""
    y = np.random.default_rng(size).integers(0, 20, (11, 11)).astype(float)
    first = (11 - size) // 2
    y[first : first + size, first : first + size] = SATURATION
    return cu.Dictionary(PRESET.psf, (11, 11), 3), y, y == SATURATION


@pytest.mark.parametrize("lam", [0.0, 1e-8, 1e-6, 1e-4])
@pytest.mark.parametrize("size", [6, 7, 9, 11])
@pytest.mark.parametrize("factor", [3, 7])
def test_active_set_on_large_saturated_areas(factor: int, size: int, lam: float) -> None:
    _, y, censored = saturated_block(size)
    d = cu.Dictionary(PRESET.psf, (11, 11), factor)
    result = cu.ActiveSet(lam=lam).solve(d, y, censored=censored)
    # FISTA is far from the optimum here, which is flat, but it can not be below it.
    first_order = cu.FISTA(lam=lam, max_iter=300).solve(d, y, censored=censored)
    assert result.objective <= first_order.objective * (1 + 1e-9) + 1e-9
    # Rounding is relative to the largest term of the fit.
    rounding = 1e-12 * max(SATURATION, result.x.max())
    assert kkt_violation(d, y, result.x, lam=lam, censored=censored) <= 100 * rounding
    if lam >= 1e-6:
        assert result.converged


@pytest.mark.parametrize("size", [6, 9])
def test_active_set_agrees_with_cvxpy_on_a_saturated_block(size: int) -> None:
    d, y, censored = saturated_block(size)
    result = cu.ActiveSet(lam=1e-2).solve(d, y, censored=censored)
    twin = cu.CvxpyLasso(lam=1e-2).solve(d, y, censored=censored)
    assert result.objective == pytest.approx(float(twin.objective), rel=1e-6)


def test_active_set_in_stages_is_the_same_when_watched() -> None:
    d, y, censored = saturated_block(7)
    seen: list[IterationStats] = []
    alone = cu.ActiveSet(lam=1e-6).solve(d, y, censored=censored)
    watched = cu.ActiveSet(lam=1e-6).solve(d, y, censored=censored, callback=seen.append)
    assert watched.converged
    assert watched.objective == pytest.approx(float(alone.objective), rel=1e-9)


def test_active_set_takes_as_many_atoms_as_a_bright_background_has_pixels() -> None:
    d = cu.Dictionary(PRESET.psf, (21, 21), 3)
    y = np.full((21, 21), 200.0) + np.random.default_rng(1).normal(size=(21, 21))
    result = cu.ActiveSet(lam=1.0).solve(d, y)
    assert result.converged
    assert np.count_nonzero(result.x) > 400
    assert kkt_violation(d, y, result.x, lam=1.0) < 1e-9


def test_fista_without_restart_reaches_the_same_optimum() -> None:
    d = dictionary("gauss-1")
    result = cu.FISTA(lam=LAM, restart=False, max_iter=50_000).solve(d, images())
    twin = oracle("gauss-1", "plain", LAM, True)
    np.testing.assert_allclose(result.objective, twin.objective, rtol=2e-6, atol=1e-9)


# --- precision, layout and batches --------------------------------------------------------------


@EVERY_SOLVER
def test_float32_stays_float32(solver: Any) -> None:
    d = dictionary()
    single, double = (solver.solve(d, images().astype(t)) for t in (np.float32, np.float64))
    assert single.x.dtype == np.float32
    assert double.x.dtype == np.float64
    assert single.objective.dtype == single.gap.dtype == single.residual_norm.dtype == np.float64
    assert single.converged.all()
    np.testing.assert_allclose(single.objective, double.objective, rtol=1e-5, atol=1e-6)


def test_float32_converges_where_its_rounding_allows() -> None:
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=(11, 11), n=10, rng=2).images
    d = cu.Dictionary(PRESET.psf, (11, 11), 3)
    exact = cu.ActiveSet(lam=5.0).solve(d, made)
    result = cu.FISTA(lam=5.0).solve(d, made.astype(np.float32))
    assert result.converged.all()
    assert (result.gap < 1e-4).all()
    np.testing.assert_allclose(result.objective, exact.objective, rtol=1e-5)


def layouts(tmp_path: Path) -> dict[str, Floats]:
    """The same images in every way that memory can hold them."""
    y = images()
    wide = np.zeros((5, 14, 24))
    wide[:, ::2, ::3] = y
    np.save(tmp_path / "y.npy", y)
    frozen = y.copy()
    frozen.flags.writeable = False
    return {
        "read-only": frozen,
        "strided": wide[:, ::2, ::3],
        "fortran": np.asfortranarray(y),
        "mapped": np.load(tmp_path / "y.npy", mmap_mode="r"),
        "big-endian": y.astype(">f8"),
        "integer": y.astype(np.uint16),
        "list": y.tolist(),  # type: ignore[dict-item]
    }


@EVERY_SOLVER
def test_memory_layout_does_not_matter(solver: Any, tmp_path: Path) -> None:
    solver = quick(solver)
    twin = solver.solve(dictionary(), images().copy())
    for name, y in layouts(tmp_path).items():
        before = np.array(y)
        result = solver.solve(dictionary(), y)
        np.testing.assert_array_equal(result.x, twin.x, err_msg=name)
        np.testing.assert_array_equal(np.array(y), before, err_msg=name)


@EVERY_SOLVER
@pytest.mark.parametrize("kind", ["plain", "censored"])
def test_batches_are_loops(solver: Any, kind: str) -> None:
    solver = quick(solver)
    every, order = options(kind), np.array([4, 2, 0, 3, 1])
    batch = solver.solve(dictionary(), images(), **every)
    turned = {k: v[order] for k, v in every.items()}
    permuted = solver.solve(dictionary(), images()[order], **turned)
    fields = ("x", "n_iter", "converged", "gap", "objective", "residual_norm")
    for field in fields:
        np.testing.assert_allclose(
            getattr(permuted, field), getattr(batch, field)[order], rtol=1e-12, atol=1e-12
        )
    for b in range(5):
        one = {k: v[b] for k, v in every.items()}
        single = solver.solve(dictionary(), images()[b], **one)
        for field in fields:
            np.testing.assert_allclose(
                getattr(single, field), getattr(batch, field)[b], rtol=1e-12, atol=1e-12
            )


@EVERY_SOLVER
@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_leading_axes_are_kept(solver: Any, lead: tuple[int, ...]) -> None:
    solver = quick(solver)
    d = cu.Dictionary(PRESET.psf, (11, 11), 2)
    n = int(np.prod(lead, dtype=int))
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=(11, 11), n=n, rng=4)
    seen: list[IterationStats] = []

    def watch(stats: IterationStats) -> bool:
        seen.append(stats)
        return len(seen) == 2

    y = made.images.reshape(*lead, 11, 11)
    for result in (solver.solve(d, y), solver.solve(d, y, callback=watch)):
        assert result.x.shape == (*lead, 22, 22)
        for field in ("n_iter", "converged", "gap", "objective", "residual_norm"):
            assert getattr(result, field).shape == lead, field
        assert result.n_iter.dtype == np.int64
        assert result.converged.dtype == np.bool_
        assert isinstance(result.history, tuple)
    assert len(seen) == 2  # True stopped it
    assert [s.iteration for s in seen] == sorted({s.iteration for s in seen})
    for stats in seen:
        assert isinstance(stats, IterationStats)
        assert stats.objective.shape == stats.gap.shape == (n,)
        assert stats.time >= 0


@EVERY_SOLVER
def test_watching_changes_nothing(solver: Any) -> None:
    solver = quick(solver)
    watched = solver.solve(dictionary(), images(), callback=lambda _: None)
    alone = solver.solve(dictionary(), images())
    np.testing.assert_allclose(watched.objective, alone.objective, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(watched.converged, alone.converged)
    np.testing.assert_allclose(watched.history[-1].objective, watched.objective, rtol=1e-12)
    np.testing.assert_allclose(alone.history[-1].objective, alone.objective, rtol=1e-12)


@pytest.mark.parametrize("locally_optimised", [False, True])
def test_watching_a_warm_start_changes_nothing(locally_optimised: bool) -> None:
    solver = cu.OMP(n_nonzero=5, locally_optimised=locally_optimised)
    start = cu.OMP(n_nonzero=3).solve(dictionary(), images()).x
    watched = solver.solve(dictionary(), images(), x0=start, callback=lambda _: None)
    alone = solver.solve(dictionary(), images(), x0=start)
    np.testing.assert_allclose(watched.x, alone.x, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(watched.n_iter, alone.n_iter)


def test_the_oracle_can_be_stopped() -> None:
    seen: list[IterationStats] = []

    def stop(stats: IterationStats) -> bool:
        seen.append(stats)
        return True

    result = cu.CvxpyLasso(lam=30.0).solve(dictionary("gauss-2"), images(), callback=stop)
    assert len(seen) == 1
    assert result.converged.tolist() == [True, False, False, True, False]


@EVERY_L1
@pytest.mark.parametrize(
    "turn",
    [
        lambda a: a[..., ::-1, :],
        lambda a: a[..., ::-1],
        lambda a: np.swapaxes(a, -1, -2),
    ],
    ids=["up-down", "left-right", "transpose"],
)
def test_flips_and_transposition(make: Any, turn: Callable[[Floats], Floats]) -> None:
    d = dictionary("gauss-2")
    turned = cu.Dictionary(PRESET.psf, turn(images()).shape[-2:], d.grid.factor)
    first = make(lam=LAM).solve(d, images())
    second = make(lam=LAM).solve(turned, turn(images()))
    np.testing.assert_allclose(second.objective, first.objective, rtol=2e-6, atol=1e-9)
    fitted = turn(d.forward(first.x))  # is unique where the coefficients are not
    np.testing.assert_allclose(turned.forward(second.x), fitted, atol=0.1)


# --- lam="auto" ---------------------------------------------------------------------------------


def test_universal_lam_is_the_formula() -> None:
    d = dictionary()
    norms = np.linalg.norm(d.to_dense(), axis=0)
    expected = 3.0 * norms.max() * np.sqrt(2 * np.log(norms.size))
    assert universal_lam(d, 3.0) == pytest.approx(expected)


@EVERY_L1
def test_auto_lam_comes_from_the_noise_of_each_image(make: Any) -> None:
    rng = np.random.default_rng(5)
    noise = np.array([2.0, 8.0])[:, None, None]
    y = images()[:2] + noise * rng.normal(size=(2, *SHAPE))
    d = dictionary("gauss-2")
    lam = universal_lam(d, noise_level(y))
    auto = make(lam="auto").solve(d, y)
    for b in range(2):
        fixed = make(lam=float(lam[b])).solve(d, y[b])
        assert auto.objective[b] == pytest.approx(float(fixed.objective), rel=1e-6)


@EVERY_L1
def test_auto_lam_of_images_without_any_noise(make: Any) -> None:
    d = dictionary("gauss-2")
    on_grid = cu.targets.make_table(
        0, d.grid.y[len(d.grid.y) // 2], d.grid.x[len(d.grid.x) // 2], 230.0
    )
    lone = cu.render(PRESET.psf, on_grid, shape=SHAPE)
    level = np.full((1, *SHAPE), -0.5)
    result = replace(make(lam="auto"), max_iter=2000).solve(d, np.concatenate([lone, level]))
    assert np.isfinite(result.x).all()
    assert result.x[0].sum() == pytest.approx(230.0, rel=0.01)
    assert (result.x[1] == 0).all()


# --- split Bregman with wavelets and total variation --------------------------------------------


@pytest.mark.parametrize(
    ("wavelet", "level", "map_shape"),
    [("haar", 2, (14, 16)), ("haar", 1, (5, 7)), ("db2", 2, (21, 24)), ("sym4", 1, (15, 33))],
)
def test_the_wavelet_term_is_an_isometry(
    wavelet: str, level: int, map_shape: tuple[int, int]
) -> None:
    term = _WaveletTerm(wavelet, level, map_shape)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *map_shape))
    coefficients = term.forward(x)
    v = rng.normal(size=coefficients.shape)
    np.testing.assert_allclose(term.adjoint(coefficients), x, atol=1e-12)
    assert np.vdot(coefficients, v) == pytest.approx(np.vdot(x, term.adjoint(v)), rel=1e-10)
    # A constant map has no details where nothing is padded.
    if all(n % 2**level == 0 for n in map_shape):
        flat = term.forward(np.ones((1, *map_shape)))[0]
        np.testing.assert_allclose(flat[term.details], 0.0, atol=1e-12)
        assert (~term.details).sum() == np.prod([n // 2**level for n in map_shape])


def test_differences_and_their_solver() -> None:
    rng = np.random.default_rng(0)
    x, d = rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 2, 5, 6))
    forward = _differences(x)
    np.testing.assert_allclose(forward[:, 0, :-1], np.diff(x, axis=1))
    np.testing.assert_allclose(forward[:, 1, :, :-1], np.diff(x, axis=2))
    assert np.vdot(forward, d) == pytest.approx(np.vdot(x, _differences_adjoint(d)), rel=1e-12)
    solved = _solve_smooth(x)
    np.testing.assert_allclose(solved + _differences_adjoint(_differences(solved)), x, atol=1e-12)


def matrix_of(apply: Callable[[Floats], Floats], map_shape: tuple[int, int]) -> Floats:
    """Matrix of a linear function of one map, column by column."""
    n = map_shape[0] * map_shape[1]
    return apply(np.eye(n).reshape(n, *map_shape)).reshape(n, -1).T


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(
    ("lam_wavelet", "lam_tv"), [(3.0, 0.0), (0.0, 2.0), (3.0, 2.0)], ids=["wavelet", "tv", "both"]
)
def test_analysis_terms_against_cvxpy(lam_wavelet: float, lam_tv: float, positive: bool) -> None:
    import cvxpy

    cp: Any = cvxpy
    d, lam = dictionary("gauss-2"), 4.0
    y = images()[[0, 3]]
    seen: list[IterationStats] = []
    solver = cu.SplitBregman(lam=lam, lam_wavelet=lam_wavelet, lam_tv=lam_tv, positive=positive)
    result = solver.solve(d, y, callback=seen.append)
    assert result.converged.all()
    details = _WaveletTerm("haar", 2, d.map_shape).details.ravel()
    psi = matrix_of(_WaveletTerm("haar", 2, d.map_shape).forward, d.map_shape)[details]
    differences = matrix_of(_differences, d.map_shape)
    best = []
    for image in y:
        x = cp.Variable(d.shape[1], nonneg=positive)
        fit = 0.5 * cp.sum_squares(image.ravel() - d.to_dense() @ x) + lam * cp.norm1(x)
        terms = lam_wavelet * cp.norm1(psi @ x) + lam_tv * cp.norm1(differences @ x)
        program = cp.Problem(cp.Minimize(fit + terms))
        program.solve(solver=cp.CLARABEL, tol_gap_rel=1e-10, tol_gap_abs=1e-9, tol_feas=1e-10)
        best.append(program.value)
    np.testing.assert_allclose(result.objective, best, rtol=1e-6, atol=1e-6)
    # The gap of every iterate on the way bounds its distance from the optimum.
    values, gaps = np.array([s.objective for s in seen]), np.array([s.gap for s in seen])
    assert (values - best <= gaps * values + 1e-6 * np.abs(best) + 1e-6).all()


def test_split_bregman_reaches_the_same_optimum_at_any_penalty() -> None:
    y = images()[[0, 2]]
    for terms, default in (({}, 0.01), ({"lam_wavelet": 3.0}, 0.1), ({"lam_tv": 2.0}, 0.1)):
        solver = cu.SplitBregman(lam=4.0, **terms)
        chosen = solver.solve(dictionary("gauss-2"), y)
        for penalty in (default, 0.03):
            other = replace(solver, penalty=penalty).solve(dictionary("gauss-2"), y)
            assert other.converged.all()
            np.testing.assert_allclose(other.objective, chosen.objective, rtol=2e-6)
            assert (penalty == default) == (other.n_iter == chosen.n_iter).all()


def test_analysis_terms_work_in_batches_and_with_a_dense_dictionary() -> None:
    solver = cu.SplitBregman(lam=4.0, lam_wavelet=1.0, lam_tv=1.0, max_iter=50)
    for name in ("gauss-3", "airy-2"):
        batch = solver.solve(dictionary(name), images(), **options("censored"))
        for b in (0, 4):
            censored = images()[b] >= SATURATION
            single = solver.solve(dictionary(name), images()[b], censored=censored)
            np.testing.assert_allclose(single.x, batch.x[b], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wavelet", ["nonsense", "bior2.2", "mexh", None, 3])
def test_wrong_wavelets_are_refused(wavelet: Any) -> None:
    with pytest.raises(ValueError, match="wavelet must be an orthogonal"):
        cu.SplitBregman(lam=1.0, wavelet=wavelet)


@pytest.mark.parametrize(("wavelet", "level", "most"), [("db4", 3, 1), ("haar", 4, 3)])
def test_too_many_wavelet_levels_are_refused(wavelet: str, level: int, most: int) -> None:
    solver = cu.SplitBregman(lam=1.0, lam_wavelet=1.0, wavelet=wavelet, level=level)
    with pytest.raises(ValueError, match=f"level must be at most {most} for wavelet '{wavelet}'"):
        solver.solve(dictionary("gauss-2"), images())


# --- pursuits -----------------------------------------------------------------------------------


def omp_twin(matrix: Floats, y: Floats, n: int, positive: bool) -> Floats:
    """Textbook OMP: normalised correlations, lstsq on the support."""
    norms = np.linalg.norm(matrix, axis=0)
    support: list[int] = []
    x, r = np.zeros(matrix.shape[1]), y
    for _ in range(n):
        g = matrix.T @ r / norms
        g[support] = 0
        best = int(np.argmax(g if positive else np.abs(g)))
        support.append(best)
        x[:] = 0
        x[support] = np.linalg.lstsq(matrix[:, support], y, rcond=None)[0]
        r = y - matrix @ x
    return x


def ols_twin(matrix: Floats, y: Floats, n: int) -> Floats:
    """Textbook orthogonal least squares: try every atom beside those chosen."""
    x, support = np.zeros(matrix.shape[1]), []
    for _ in range(n):
        left = [
            float(np.linalg.norm(y - m @ np.linalg.lstsq(m, y, rcond=None)[0]))
            for j in range(matrix.shape[1])
            for m in (matrix[:, [*support, j]],)
        ]
        support.append(int(np.argmin(left)))
    x[support] = np.linalg.lstsq(matrix[:, support], y, rcond=None)[0]
    return x


@pytest.mark.parametrize("weighted", [False, True])
def test_omp_by_residual_is_orthogonal_least_squares(weighted: bool) -> None:
    rng = np.random.default_rng(31)
    d = cu.Dictionary(cu.GaussianPSF(0.5), (4, 5), 2)
    y = rng.normal(0, 10, (2, 4, 5))
    weights = rng.uniform(0.5, 2, (4, 5)) if weighted else np.ones((4, 5))
    solver = cu.OMP(n_nonzero=4, positive=False, selection="residual")
    result = solver.solve(d, y, weights=weights)
    root = np.sqrt(weights).ravel()
    for x, image in zip(result.x, y, strict=True):
        twin = ols_twin(d.to_dense() * root[:, None], image.ravel() * root, 4)
        np.testing.assert_allclose(x.ravel(), twin, rtol=1e-7, atol=1e-8)
    plain = cu.OMP(n_nonzero=4, positive=False).solve(d, y, weights=weights)
    assert (result.residual_norm != plain.residual_norm).any()


@pytest.mark.parametrize(("name", "positive"), [("gauss-1", True), ("gauss-3", False)])
@pytest.mark.parametrize("weighted", [False, True])
def test_omp_equals_its_plain_twin(name: str, positive: bool, weighted: bool) -> None:
    d = dictionary(name)
    rng = np.random.default_rng(6)
    truth = np.zeros((6, *d.map_shape))
    for b in range(6):
        truth[b].ravel()[rng.choice(truth[b].size, 3, replace=False)] = rng.uniform(50, 250, 3)
    y = d.forward(truth) + rng.normal(0, 0.5, (6, *SHAPE))
    w = rng.uniform(0.3, 2, SHAPE) if weighted else np.ones(SHAPE)
    result = cu.OMP(n_nonzero=4, positive=positive).solve(d, y, weights=w)
    root = np.sqrt(w.ravel())
    for b in range(6):
        twin = omp_twin(d.to_dense() * root[:, None], y[b].ravel() * root, 4, positive)
        if positive:
            assert (twin >= 0).all()  # else the cases would not be comparable
        np.testing.assert_allclose(result.x[b].ravel(), twin, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_omp_in_wide_images_equals_its_plain_twin(weighted: bool) -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (5, 18), 2)
    rng = np.random.default_rng(8)
    y = rng.normal(0, 10, (4, 5, 18))
    w = rng.uniform(0.3, 2, (5, 18)) if weighted else np.full((5, 18), 2.0)
    result = cu.OMP(n_nonzero=6, positive=False).solve(d, y, weights=w)
    root = np.sqrt(w.ravel())
    for b in range(4):
        twin = omp_twin(d.to_dense() * root[:, None], y[b].ravel() * root, 6, False)
        np.testing.assert_allclose(result.x[b].ravel(), twin, rtol=1e-8, atol=1e-8)


def bounded_twin(matrix: Floats, y: Floats, n: int, bounds: tuple[float, float]) -> Floats:
    """Orthogonal least squares with coefficients in a box, by gains that count refitting."""
    x, support = np.zeros(matrix.shape[1]), []
    for _ in range(n):
        basis = np.linalg.qr(matrix[:, support])[0]
        free = ((matrix - basis @ (basis.T @ matrix)) ** 2).sum(axis=0)
        g, seen = matrix.T @ (y - matrix @ x), free > 1e-9
        v = np.clip(g / np.where(seen, free, 1.0), *bounds)
        support.append(int(np.argmax(np.where(seen, v * g - 0.5 * v**2 * free, -np.inf))))
        x[support] = lsq_linear(matrix[:, support], y, bounds, method="bvls", tol=1e-14).x
    return x


@pytest.mark.parametrize("weighted", [False, True])
def test_omp_by_residual_within_bounds(weighted: bool) -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (6, 7), 2)
    rng = np.random.default_rng(9)
    truth = np.zeros((6, *d.map_shape))
    for b in range(6):
        truth[b].ravel()[rng.choice(truth[b].size, 4, replace=False)] = rng.uniform(80, 250, 4)
    y = d.forward(truth) + rng.normal(0, 1, (6, 6, 7))
    w = rng.uniform(0.3, 2, (6, 7)) if weighted else np.ones((6, 7))
    bounds = (50.0, 200.0)
    result = cu.OMP(n_nonzero=3, selection="residual", bounds=bounds).solve(d, y, weights=w)
    root = np.sqrt(w.ravel())
    for b in range(6):
        twin = bounded_twin(d.to_dense() * root[:, None], y[b].ravel() * root, 3, bounds)
        np.testing.assert_allclose(result.x[b].ravel(), twin, rtol=1e-6)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    "solver",
    [
        cu.OMP(n_nonzero=4),
        cu.OMP(n_nonzero=4, positive=False, selection="residual"),
        cu.OMP(n_nonzero=4, selection="residual", bounds=(1.0, 50.0)),
        cu.MatchingPursuit(max_iter=8, n_nonzero=3),
        cu.ActiveSet(lam=1.0),
    ],
    ids=["omp", "residual", "bounds", "matching", "active-set"],
)
@pytest.mark.parametrize("shape", [(6, 7), (5, 17)])
def test_images_of_a_batch_do_not_know_of_each_other(
    solver: Any, shape: tuple[int, int], started: bool
) -> None:
    d, rng = cu.Dictionary(cu.GaussianPSF(0.5), shape, 2), np.random.default_rng(10)
    y = rng.normal(5, 10, (5, *shape))
    w = np.ones((5, *shape))
    w[1], w[2], w[3:] = 4.0, rng.uniform(0.2, 2.0, shape), 4.0
    x0 = np.zeros((5, *d.map_shape))
    if started:
        x0[:, 4, 4] = x0[:, 5, 8] = 20.0
    result = solver.solve(d, y, weights=w, x0=x0)
    for b in range(5):
        alone = solver.solve(d, y[b], weights=w[b], x0=x0[b])
        np.testing.assert_allclose(result.x[b], alone.x, rtol=1e-9, atol=1e-9)
        assert result.objective[b] == pytest.approx(float(alone.objective), rel=1e-9)


def test_matching_pursuit_takes_no_more_atoms_than_asked_for() -> None:
    d, y = dictionary(), images()[:2]
    start = np.zeros((2, *d.map_shape))
    start[0, 3, 3:7] = 5.0  # for which there is room in the other image, too
    result = cu.MatchingPursuit(n_nonzero=2, max_iter=30).solve(d, y, x0=start)
    assert np.count_nonzero(result.x[1]) <= 2


def test_omp_residual_is_orthogonal_to_its_support() -> None:
    d, y = dictionary(), images()
    for solver in (
        cu.OMP(n_nonzero=4),
        cu.OMP(n_nonzero=4, positive=False),
        cu.OMP(n_nonzero=4, locally_optimised=True),
    ):
        result = solver.solve(d, y)
        assert (np.count_nonzero(result.x, axis=(1, 2)) <= 4).all()
        correlation = d.adjoint(y - d.forward(result.x))
        assert np.abs(correlation[result.x != 0]).max() < 1e-9
        assert np.isnan(result.gap).all()
        norm = np.linalg.norm(y - d.forward(result.x), axis=(1, 2))
        np.testing.assert_allclose(result.residual_norm, norm, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(result.objective, 0.5 * norm**2, rtol=1e-9, atol=1e-9)


def test_pursuits_do_not_mind_normalised_dictionaries() -> None:
    plain, scaled = dictionary("gauss-3"), dictionary("gauss-3-normalised")
    for solver in (cu.OMP(n_nonzero=3), cu.MatchingPursuit(n_nonzero=3, max_iter=20)):
        first, second = (d.to_flux(solver.solve(d, images()).x) for d in (plain, scaled))
        np.testing.assert_allclose(second, first, rtol=1e-8, atol=1e-8)


def test_local_optimisation_never_worsens_a_fit() -> None:
    made = cu.simulate(
        PRESET.psf, cu.Sensor(rounding=True), PRESET.scene, shape=(11, 11), n=60, rng=13
    ).images
    d = cu.Dictionary(PRESET.psf, (11, 11), 5)
    for n in (1, 2, 4):
        plain = cu.OMP(n_nonzero=n).solve(d, made)
        local = cu.OMP(n_nonzero=n, locally_optimised=True)
        moved = local.solve(d, made, x0=plain.x)
        assert (moved.objective <= plain.objective * (1 + 1e-12)).all()
        if n > 1:
            assert np.median(moved.objective / plain.objective) < 0.8
        if n == 1:  # the same first atom, then moves
            assert (local.solve(d, made).objective <= plain.objective * (1 + 1e-12)).all()


@pytest.mark.parametrize("clipped", [False, True])
def test_omp_counts_targets(clipped: bool) -> None:
    sensor = PRESET.sensor if clipped else cu.Sensor(rounding=True)
    made = cu.simulate(PRESET.psf, sensor, PRESET.scene, shape=(11, 11), n=100, rng=31)
    d = cu.Dictionary(PRESET.psf, (11, 11), 5)
    assert PRESET.prior.flux is not None
    solver = cu.OMP(bounds=PRESET.prior.flux, locally_optimised=True, exclusion_radius=0.3)
    result = solver.solve(d, made.images, censored=sensor.censored(made.images))
    fluxes = result.x[result.x != 0]
    assert ((fluxes >= 220 - 1e-9) & (fluxes <= 250 + 1e-9)).all()
    count = np.count_nonzero(result.x, axis=(1, 2))
    truth = made.truth["frame"].value_counts().sort_index().to_numpy()
    assert (count == truth).mean() >= 0.95


def test_omp_refuses_atoms_that_do_not_help_within_the_bounds() -> None:
    d = dictionary()
    x = np.zeros(d.map_shape)
    x[10, 12] = 230.0
    result = cu.OMP(bounds=(220, 250)).solve(d, d.forward(x))
    np.testing.assert_allclose(result.x, x, atol=1e-6)
    faint = cu.OMP(bounds=(220, 250)).solve(d, d.forward(x) * 0.3)
    assert (faint.x == 0).all()


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("local", [False, True])
def test_exclusion_radius_is_kept(radius: float, local: bool) -> None:
    d = cu.Dictionary(PRESET.psf, SHAPE, 5)
    solver = cu.OMP(n_nonzero=4, exclusion_radius=radius, locally_optimised=local)
    result = solver.solve(d, images())
    for x in result.x[[0, 1, 4]]:
        i, j = np.nonzero(x)
        y, z = d.grid.position(i, j)
        distance = np.hypot(y[:, None] - y, z[:, None] - z)[~np.eye(y.size, dtype=bool)]
        assert y.size > 1
        assert distance.min() >= radius - 1e-9


def test_exclusion_and_search_radius_include_their_edge() -> None:
    d = cu.Dictionary(PRESET.psf, SHAPE, 5)
    x = np.zeros(d.map_shape)
    x[17, 20] = x[17, 23] = 200.0  # 0.6 px apart: three cells, and 3 > 0.6 * 5 by rounding alone
    exact = cu.OMP(n_nonzero=2, exclusion_radius=0.6).solve(d, d.forward(x), x0=x)
    np.testing.assert_allclose(exact.x, x, atol=1e-6)
    for step in (1, 3):
        start = np.zeros(d.map_shape)
        start[17, 20 - step] = 200.0
        lone = np.zeros(d.map_shape)
        lone[17, 20] = 200.0
        solver = cu.OMP(n_nonzero=1, locally_optimised=True, search_radius=step / 5)
        np.testing.assert_allclose(solver.solve(d, d.forward(lone), x0=start).x, lone, atol=1e-6)


@pytest.mark.parametrize("local", [False, True])
def test_omp_and_identical_atoms(local: bool) -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.02), (4, 4), 4)  # all cells of a pixel are alike
    assert np.linalg.matrix_rank(d.to_dense()) < d.shape[1] / 2
    y = np.zeros((4, 4))
    y[1, 2], y[3, 0] = 100.0, 60.0
    result = cu.OMP(n_nonzero=6, locally_optimised=local).solve(d, y)
    assert np.count_nonzero(result.x) <= 6
    assert result.residual_norm < 1e-6
    assert result.x.sum() == pytest.approx(160.0)


@pytest.mark.parametrize("solver", PURSUITS.values(), ids=PURSUITS.keys())
def test_pursuits_and_nothing(solver: Any) -> None:
    result = solver.solve(dictionary(), np.stack([np.zeros(SHAPE), np.full(SHAPE, -3.0)]))
    assert (result.x == 0).all()
    assert result.converged.all()
    assert result.n_iter[0] == 0


@pytest.mark.parametrize("solver", PURSUITS.values(), ids=PURSUITS.keys())
def test_pursuits_ignore_pixels_of_weight_zero_and_censored_ones(solver: Any) -> None:
    y = images()[[0, 4]]
    hidden = y >= 100
    hidden[:, :2] = True  # whole atoms are out of sight
    changed = np.where(hidden, 999.0, y)
    first = solver.solve(dictionary(), y, weights=~hidden)
    for given in ({"weights": ~hidden}, {"censored": hidden}):
        second = solver.solve(dictionary(), changed, **given)
        np.testing.assert_array_equal(second.x, first.x)
    assert first.x.any()


def test_residual_tol_stops_pursuits() -> None:
    d, y = dictionary(), images()[[0, 1, 2]]
    for make in (cu.OMP, cu.MatchingPursuit):
        full = make(n_nonzero=5).solve(d, y)
        tol = float(full.residual_norm.max()) * 3
        short = make(n_nonzero=5, residual_tol=tol).solve(d, y)
        assert (short.residual_norm <= tol).all()
        assert short.converged.all()
        assert (short.n_iter < full.n_iter).any()
        tight = make(n_nonzero=1, residual_tol=1e-6).solve(d, y)
        assert (tight.residual_norm > 1e-6).all()
        assert tight.converged.all()  # it has the atom it was allowed


@pytest.mark.parametrize("make", [cu.OMP, cu.MatchingPursuit])
def test_a_pursuit_has_converged_unless_it_was_stopped(make: Any) -> None:
    lone = np.zeros(dictionary().map_shape)
    lone[10, 12] = 230.0
    y = np.stack([images()[0], dictionary().forward(lone), np.zeros(SHAPE)])

    def solve(callback: Any) -> list[bool]:
        solver = make(n_nonzero=5, residual_tol=1e-6)
        return solver.solve(dictionary(), y, callback=callback).converged.tolist()

    assert solve(None) == solve(lambda _: False) == [True, True, True]
    # One step is all that the lone target needs, and none the empty image.
    assert solve(lambda _: True) == [False, True, True]
    last = 5 if make is cu.OMP else 100
    assert solve(lambda stats: stats.iteration == last) == [True, True, True]


def test_more_atoms_than_pixels_may_be_asked_for() -> None:
    d = dictionary("gauss-2")
    result = cu.OMP(n_nonzero=10**6, positive=False).solve(d, images()[0])
    assert np.count_nonzero(result.x) <= images()[0].size
    assert result.residual_norm < 1e-3


def test_pursuits_start_from_x0() -> None:
    d, y = dictionary(), images()[:2]
    for solver in (cu.OMP(n_nonzero=3), cu.MatchingPursuit(n_nonzero=3, max_iter=40)):
        first = solver.solve(d, y)
        again = solver.solve(d, y, x0=first.x)
        assert (again.residual_norm <= first.residual_norm * (1 + 1e-9)).all()
    start = np.zeros((2, *d.map_shape))
    start[:, 0, 0] = 5.0
    kept = cu.OMP(n_nonzero=1, positive=False).solve(d, y, x0=start)
    assert (kept.x[:, 0, 0] != 0).all()  # no room for another
    assert (kept.n_iter == 0).all()


def matching_pursuit_twin(matrix: Floats, y: Floats, n: int, steps: int, positive: bool) -> Floats:
    """Mallat & Zhang on vectors, with at most `n` distinct atoms."""
    norms = np.linalg.norm(matrix, axis=0)
    x, r = np.zeros(matrix.shape[1]), y.copy()
    for _ in range(steps):
        g = matrix.T @ r / norms
        if np.count_nonzero(x) >= n:
            g[x == 0] = 0
        best = int(np.argmax(g if positive else np.abs(g)))
        if positive and g[best] <= 0:
            break
        x[best] += g[best] / norms[best]
        r -= g[best] / norms[best] * matrix[:, best]
    return x


@pytest.mark.parametrize("positive", [True, False])
def test_matching_pursuit_equals_its_plain_twin(positive: bool) -> None:
    d = dictionary("skewed-3")
    solver = cu.MatchingPursuit(n_nonzero=4, max_iter=12, positive=positive)
    result = solver.solve(d, images())
    for b in (0, 1, 2, 4):
        twin = matching_pursuit_twin(d.to_dense(), images()[b].ravel(), 4, 12, positive)
        np.testing.assert_allclose(result.x[b].ravel(), twin, rtol=1e-8, atol=1e-8)
    assert (np.count_nonzero(result.x, axis=(1, 2)) <= 4).all()


def test_matching_pursuit_residual_never_rises() -> None:
    seen: list[IterationStats] = []
    cu.MatchingPursuit(max_iter=30).solve(dictionary(), images(), callback=seen.append)
    values = np.array([s.objective for s in seen])
    assert len(values) == 30
    assert (np.diff(values, axis=0) <= 1e-12).all()
    assert (values[-1, :3] < 0.5 * values[0, :3]).any()


# --- protocol and certificates ------------------------------------------------------------------


def test_every_solver_satisfies_the_protocol() -> None:
    assert all(isinstance(solver, Solver) for solver in (*EVERY.values(), cu.CvxpyLasso(lam=1.0)))
    assert not isinstance(object(), Solver)


def test_certificates_by_hand() -> None:
    d, lam = dictionary("gauss-2"), 3.0
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 10, d.map_shape) * (rng.random(d.map_shape) < 0.1)
    y, w = images()[4], rng.uniform(0.5, 2, SHAPE)
    censored = y >= SATURATION
    a = d.to_dense()
    r = (y.ravel() - a @ x.ravel()).reshape(SHAPE)
    r = np.where(censored, np.maximum(r, 0), r)
    value = 0.5 * np.sum(w * r**2) + lam * np.abs(x).sum()
    given = {"lam": lam, "weights": w, "censored": censored}
    assert objective(d, y, x, **given) == pytest.approx(value, rel=1e-12)
    g = a.T @ (w * r).ravel()
    active = x.ravel() > 0
    worst = max(np.abs(g[active] - lam).max(), (g[~active] - lam).max())
    assert kkt_violation(d, y, x, **given) == pytest.approx(worst, rel=1e-10)
    scales = np.linspace(0, lam / g.max(), 2001)
    nu = (w * r).ravel()
    dual = scales * (nu @ y.ravel()) - 0.5 * scales**2 * np.sum(w * r**2)
    assert duality_gap(d, y, x, **given) == pytest.approx((value - dual.max()) / value, rel=1e-5)
    # Without the sign constraint, negative correlations count too.
    free = kkt_violation(d, -y, x, lam=lam, positive=False)
    g = a.T @ (-y.ravel() - a @ x.ravel())
    assert free == pytest.approx(
        max(np.abs(g[active] - lam).max(), (np.abs(g[~active]) - lam).max()), rel=1e-10
    )


# --- wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*L1.values(), cu.CvxpyLasso], ids=[*L1, "CvxpyLasso"])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"lam": -1.0}, ValueError, "lam must be at least 0"),
        ({"lam": np.nan}, ValueError, "lam must be finite"),
        ({"lam": "x"}, ValueError, "lam must be a number or 'auto', got 'x'"),
        ({"lam": None}, TypeError, "lam must be a real number"),
        ({"lam": 1.0, "tol": -1e-9}, ValueError, "tol must be at least 0"),
        ({"lam": 1.0, "max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"lam": 1.0, "max_iter": 1.5}, TypeError, "max_iter must be an integer"),
        ({"lam": 1.0, "positive": 1}, TypeError, "positive must be True or False"),
    ],
)
def test_wrong_parameters_of_l1_solvers(
    make: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cu.ActiveSet(lam=1.0, positive=False), "ActiveSet solves x >= 0 only"),
        (lambda: cu.ISTA(lam=1.0, step="long"), "step must be 'spectral' or 'fixed', got 'long'"),
        (lambda: cu.SplitBregman(lam=0), "lam must be above 0"),
        (lambda: cu.SplitBregman(lam=1, lam_tv=-1), "lam_tv must be at least 0"),
        (lambda: cu.SplitBregman(lam=1, lam_wavelet=-1), "lam_wavelet must be at least 0"),
        (lambda: cu.SplitBregman(lam=1, level=0), "level must be at least 1"),
        (lambda: cu.SplitBregman(lam=1, penalty=0), "penalty must be above 0"),
        (lambda: cu.OMP(n_nonzero=0), "n_nonzero must be at least 1"),
        (lambda: cu.OMP(residual_tol=-1), "residual_tol must be at least 0"),
        (lambda: cu.OMP(bounds=(5, 3)), "bounds must be ordered"),
        (lambda: cu.OMP(bounds=(1, 2), positive=False), "bounds need positive=True"),
        (lambda: cu.OMP(search_radius=0), "search_radius must be above 0"),
        (lambda: cu.OMP(exclusion_radius=-1), "exclusion_radius must be at least 0"),
        (lambda: cu.MatchingPursuit(n_nonzero=0), "n_nonzero must be at least 1"),
        (lambda: cu.MatchingPursuit(residual_tol=np.inf), "residual_tol must be finite"),
        (lambda: cu.MatchingPursuit(max_iter=0), "max_iter must be at least 1"),
    ],
)
def test_wrong_parameters(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cu.FISTA(lam=1.0, restart=3), "restart must be True or False, got 3"),
        (lambda: cu.OMP(positive=1), "positive must be True or False, got 1"),
        (lambda: cu.OMP(locally_optimised="yes"), "locally_optimised must be True or False"),
        (lambda: cu.MatchingPursuit(positive=None), "positive must be True or False, got None"),
    ],
)
def test_parameters_of_the_wrong_type(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("solver", [*EVERY.values(), cu.CvxpyLasso(lam=1.0)])
def test_no_dictionary(solver: Any) -> None:
    with pytest.raises(TypeError, match="dictionary must be of type Dictionary, got None"):
        solver.solve(None, np.zeros(SHAPE))


SOME_NAN = np.where(np.eye(7, 8) > 0, np.nan, 1.0)


@pytest.mark.parametrize("solver", [*EVERY.values(), cu.CvxpyLasso(lam=1.0)])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"images": np.zeros((7, 9))}, ValueError, r"images must end in the image shape \(7, 8\)"),
        ({"images": np.zeros(8)}, ValueError, "images must have at least two axes"),
        ({"images": np.zeros((0, 7, 8))}, ValueError, "images must not be empty"),
        ({"images": SOME_NAN}, ValueError, r"images must be finite.*\(0, 0\)"),
        ({"images": np.zeros(SHAPE, complex)}, TypeError, "images must hold real numbers"),
        ({"weights": -np.ones(SHAPE)}, ValueError, "weights must not be negative, got -1"),
        ({"weights": SOME_NAN}, ValueError, "weights must be finite"),
        ({"weights": np.ones((3, 3))}, ValueError, r"weights of shape \(3, 3\) does not fit"),
        ({"weights": "heavy"}, TypeError, "weights must hold real numbers"),
        ({"censored": np.zeros(SHAPE)}, TypeError, "censored must be an array of bool"),
        ({"censored": np.zeros(3, bool)}, ValueError, r"censored of shape \(3,\) does not fit"),
        ({"x0": np.zeros((3, 3))}, ValueError, r"x0 of shape \(3, 3\) does not fit \(21, 24\)"),
        ({"x0": -np.ones((21, 24))}, ValueError, "x0 must not be negative"),
        ({"x0": np.full((21, 24), np.inf)}, ValueError, "x0 must be finite"),
    ],
)
def test_wrong_input_of_solvers(
    solver: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"images": np.zeros(SHAPE), **given}
    with pytest.raises(error, match=message):
        solver.solve(dictionary(), **given)


def test_wrong_input_of_certificates() -> None:
    d, y = dictionary(), images()
    for check in (objective, duality_gap, kkt_violation):
        with pytest.raises(TypeError, match="dictionary must be of type Dictionary, got None"):
            check(None, y, np.zeros((5, 21, 24)), lam=1.0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="x must end in the image shape"):
            check(d, y, np.zeros((3, 3)), lam=1.0)
        with pytest.raises(ValueError, match="lam must be at least 0"):
            check(d, y, np.zeros((5, 21, 24)), lam=-1.0)
        with pytest.raises(ValueError, match=r"x.* of shape \(4, 21, 24\) does not fit"):
            check(d, y, np.zeros((4, 21, 24)), lam=1.0)


# Sparse answers

SPARSE = {
    "active-set": cu.ActiveSet(lam=1.0),
    "matching-pursuit": cu.MatchingPursuit(),
    "omp": cu.OMP(),
}


@pytest.mark.parametrize("solver", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("name", ["gauss-3", "airy-2"], ids=["separable", "dense"])
@pytest.mark.parametrize("lead", [(), (1,), (2, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_answers_are_those_of_each_image(
    solver: Any, name: str, lead: tuple[int, ...], dtype: Any
) -> None:
    d = dictionary(name)
    stack = images()[: max(1, int(np.prod(lead)))].astype(dtype)
    result = solver.solve(d, stack.reshape(*lead, *SHAPE))
    assert issparse(result.coefficients)
    assert result.coefficients.shape == result.x.shape == (*lead, *d.map_shape)
    assert result.coefficients.dtype == result.x.dtype == dtype
    assert result.x is result.x
    assert np.count_nonzero(result.x) == result.coefficients.nnz > 0
    for image, x in zip(stack, result.x.reshape(-1, *d.map_shape), strict=True):
        np.testing.assert_allclose(solver.solve(d, image).x, x, rtol=1e-6, atol=1e-4)


def test_answers_of_more_atoms_than_there_was_room_for() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.4), SHAPE, 1)
    stack = np.random.default_rng(4).uniform(50, 100, (3, *SHAPE))
    result = cu.ActiveSet(lam=0.0).solve(d, stack)
    assert result.coefficients.nnz > 16 * len(stack)
    assert kkt_violation(d, stack, result.x, lam=0.0).max() < 1e-9


def test_some_images_have_a_start_and_some_have_none() -> None:
    d, solver = dictionary(), cu.ActiveSet(lam=1.0)
    whole = solver.solve(d, images()).x
    x0 = np.where(np.arange(5)[:, None, None] % 2, whole, 0.0)
    again = solver.solve(d, images(), x0=x0)
    np.testing.assert_allclose(again.x, whole, atol=1e-6)
    assert (again.n_iter[1::2] == 0).all()
    assert again.n_iter[0] > 0


def test_a_callback_may_stop_before_the_first_step() -> None:
    d, x0 = dictionary(), np.ones((5, *dictionary().map_shape))
    result = cu.ActiveSet(lam=1.0).solve(d, images(), x0=x0, callback=lambda _: True)
    np.testing.assert_array_equal(result.x, x0)
    np.testing.assert_allclose(result.objective, objective(d, images(), x0, lam=1.0))
    np.testing.assert_allclose(result.gap, duality_gap(d, images(), x0, lam=1.0))
    r = images() - d.forward(x0)
    np.testing.assert_allclose(result.residual_norm, np.sqrt((r**2).sum(axis=(1, 2))))
    assert not result.converged.any()


@pytest.mark.parametrize("solver", SPARSE.values(), ids=SPARSE.keys())
def test_sparse_coefficients_come_in_row_major_order(solver: Any) -> None:
    found = solver.solve(dictionary(), images()).coefficients
    place = np.ravel_multi_index(found.coords, found.shape)
    assert place.size > 10
    assert (np.diff(place) > 0).all()


def test_sparse_coefficients_are_no_maps() -> None:
    d = dictionary()
    found = cu.OMP().solve(d, images()).coefficients
    for read in (d.forward, lambda maps: cu.LocalMaxima().find(maps, d.grid)):
        with pytest.raises(TypeError, match=r"is a sparse array; give \w+\.toarray\(\)"):
            read(found)


@pytest.mark.parametrize("solver", [*SPARSE.values(), cu.FISTA(lam=1.0)])
def test_absurd_pixels_are_refused(solver: Any) -> None:
    with pytest.raises(ValueError, match=r"images must be below 1e\+40 DN, got 1e\+200"):
        solver.solve(dictionary(), np.where(images() > 0, 1e200, 0.0))
