"""Hamiltonian paths: walls that reflect, steps that can be undone, and what they leave as it is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from csunmix._kernels import billiards, smc
from csunmix._kernels.model import Model
from csunmix._kernels.prior import Box, densities, limits, log_prior
from csunmix._kernels.scene import Pixels
from csunmix.continuous.tables import tabulate
from csunmix.psf import GaussianPSF

COUNT = 3
INSIDE = np.array([2.0, 2.0, 225.0, 2.6, 2.7, 230.0, 3.0, 2.1, 245.0])
BOXES: dict[str, Any] = {
    "area": {},
    "extent": {"extent": 1.2},
    "cell": {"cell": 1.0, "area": np.array([[1.5, 3.5], [1.5, 3.5]])},
    "cell or extent": {"extent": 1.2, "cell": 0.5, "cell_density": 3.0},
}


def model_of(variance: float = 4.0, **given: Any) -> Model:
    parts: dict[str, Any] = {
        "area": np.array([[1.5, 3.5], [1.0, 3.0]]),
        "flux": (220.0, 250.0),
        "separation": 0.494,
        "extent": np.inf,
        "cell": 0.0,
        "cell_density": 0.0,
        "background": (0.0, 1.0),
    }
    box = Box(**{**parts, **given})
    optics = tabulate(GaussianPSF(sigma=0.5), 7)
    seen = np.zeros((6, 6))
    pixels = Pixels(seen - np.inf, seen + np.inf, variance, 0.0)  # bad: tell nothing
    precision = np.tile([12.0, 12.0, 12.0 / 30.0**2], COUNT)
    return Model(optics, pixels, box, precision, COUNT)


def start_of(given: Any) -> Any:
    if given.get("cell") != 1.0:
        return INSIDE.copy()
    return np.array([1.6, 1.6, 225.0, 2.2, 2.3, 230.0, 2.4, 1.6, 245.0])


def set_out(model: Model, theta: Any, seed: int) -> tuple[billiards.Chain, Any]:
    """A chain with a random momentum, and the inverse of a full mass matrix."""
    rng = np.random.default_rng(seed)
    chain, scale = billiards.new_chain(model), np.tile([0.3, 0.3, 9.0], COUNT)
    root = rng.normal(size=(9, 9))
    inverse = (root @ root.T / 9 + np.eye(9)) * np.outer(scale, scale)
    chain.theta[:] = theta
    limits(model.box, chain.theta, COUNT, model.box.cell == 1.0, chain.lower, chain.upper)
    billiards.draw_box(model.box, chain, COUNT)
    chain.momentum[:] = np.linalg.solve(inverse, scale * rng.normal(size=9))
    chain.velocity[:] = inverse @ chain.momentum
    return chain, inverse


@pytest.mark.parametrize("given", BOXES.values(), ids=BOXES)
def test_a_drift_keeps_to_the_prior_and_its_speed(given: Any) -> None:
    model = model_of(**given)
    turned = 0
    for seed in range(20):
        chain, inverse = set_out(model, start_of(given), seed)
        before, straight = chain.momentum @ chain.velocity, chain.velocity.copy()
        assert billiards.drift(model.box, COUNT, inverse, 2.0, chain)
        slack = model.box._replace(separation=0.494 - 1e-9, flux=(219.999, 250.001))
        assert np.isfinite(log_prior(slack, chain.theta, COUNT))
        assert chain.momentum @ chain.velocity == pytest.approx(before)
        np.testing.assert_allclose(inverse @ chain.momentum, chain.velocity, atol=1e-9)
        turned += not np.allclose(chain.velocity, straight)
    assert turned > 10


@pytest.mark.parametrize("given", BOXES.values(), ids=BOXES)
def test_a_drift_can_be_undone(given: Any) -> None:
    model = model_of(**given)
    for seed in range(10):
        chain, inverse = set_out(model, start_of(given), seed)
        billiards.drift(model.box, COUNT, inverse, 1.0, chain)
        chain.momentum[:] *= -1.0
        chain.velocity[:] *= -1.0
        billiards.drift(model.box, COUNT, inverse, 1.0, chain)
        np.testing.assert_allclose(chain.theta, start_of(given), rtol=1e-6)


@pytest.mark.parametrize("given", BOXES.values(), ids=BOXES)
def test_without_an_image_paths_leave_the_prior_as_it_is(given: Any) -> None:
    """Fluxes stay uniform, separations above their bound."""
    states = smc.explore(model_of(**given), start_of(given), 10, 500, 0)
    gap = np.hypot(states[:, 0] - states[:, 3], states[:, 1] - states[:, 4])
    least = 0.3 if given is BOXES["cell or extent"] else 0.5  # a change of order is refused
    assert (np.diff(states[:, 2]) != 0.0).mean() > least
    assert gap.min() >= 0.494 - 1e-9
    assert states[:, 2].mean() == pytest.approx(235.0, abs=1.0)
    assert states[:, 2].std() == pytest.approx(30.0 / np.sqrt(12.0), rel=0.06)


@pytest.mark.parametrize("extent", [1.2, 1.7])
def test_the_box_of_the_extent_is_drawn_around_the_targets(extent: float) -> None:
    """Uniform between where the targets and the area allow it."""
    box = model_of(extent=extent).box
    chain = billiards.new_chain(model_of())
    chain.theta[:] = INSIDE
    corners = []
    for _ in range(400):
        billiards.draw_box(box, chain, COUNT)
        corners.append([chain.lower[0], chain.lower[1]])
        assert chain.upper[0] - chain.lower[0] == pytest.approx(extent)
    for axis, corner in enumerate(np.transpose(corners)):
        place = INSIDE[axis::3]
        first = max(place.max() - extent, box.area[axis, 0])
        last = min(place.min(), box.area[axis, 1] - extent)
        assert stats.kstest((corner - first) / (last - first), "uniform").pvalue > 1e-3


def test_a_cell_is_drawn_as_often_as_it_is_dense() -> None:
    """Among boxes of the extent, and only where the targets share one."""
    model = model_of(extent=1.2, cell=0.5, cell_density=0.1)
    chain, shared = billiards.new_chain(model), start_of({"cell": 1.0})
    for theta in (shared, INSIDE):
        chain.theta[:] = theta
        sizes = []
        for _ in range(2000):
            limits(model.box, chain.theta, COUNT, False, chain.lower, chain.upper)
            billiards.draw_box(model.box, chain, COUNT)
            sizes.append(chain.upper[1] - chain.lower[1])
        in_box = densities(model.box, theta, COUNT)[0]
        share = 0.1 / (0.1 + in_box) if theta is shared else 0.0
        assert np.mean(np.isclose(sizes, 1.0)) == pytest.approx(share, abs=0.04)


def test_a_matrix_is_averaged_over_the_orders_of_the_targets() -> None:
    root = np.random.default_rng(0).normal(size=(10, 10))
    gram = root @ root.T
    orders = []
    for order in itertools.permutations(range(COUNT)):
        index = np.array([*(3 * np.repeat(order, 3) + np.tile(range(3), COUNT)), 9])
        orders.append(gram[np.ix_(index, index)])
    smc.level(gram, COUNT)
    np.testing.assert_allclose(gram, np.mean(orders, axis=0), atol=1e-12)
