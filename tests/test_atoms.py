"""Boxes of cells and the products in them, against dense matrices; what a search by boxes finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import csunmix as cu
from csunmix._kernels import active_set, atoms, selection
from csunmix._kernels.linalg import cholesky_append


def view(*, even: bool = True, dense: bool = False) -> tuple[atoms.View, Any]:
    """A view of a random image, and the weighted matrix it stands for."""
    rng = np.random.default_rng(1)
    psf = cu.AiryPSF(0.95) if dense else cu.GaussianPSF(0.5)
    a_y, a_x = cu.Dictionary(psf, (6, 5), 3).factors
    sizes = (len(a_y), len(a_x))
    weights = np.full(sizes, 2.0) if even else rng.uniform(0.5, 2.0, sizes)
    made = atoms.new_view(a_y, a_x, rng.normal(0, 10, sizes), weights)
    return made, np.kron(a_y, a_x) * np.sqrt(weights).reshape(-1, 1)


def cells_of(seen: atoms.View, box: atoms.Box) -> Any:
    """Flat indices of a box's atoms."""
    grid = np.arange(seen.a_y.shape[1] * seen.a_x.shape[1]).reshape(-1, seen.a_x.shape[1])
    return grid[box.top : box.bottom, box.left : box.right].ravel()


@pytest.mark.parametrize(("height", "width"), [(1, 4), (2, 7), (5, 3), (6, 1)])
@pytest.mark.parametrize("n", [1, 3, 4, 11])
@pytest.mark.parametrize("plain", [False, True])
def test_products_of_parts_of_matrices(n: int, height: int, width: int, plain: bool) -> None:
    rng = np.random.default_rng(n)
    a, b, out = rng.normal(size=(n, 9)), rng.normal(size=(n, 12)), np.empty((height, width))
    multiply, sum_rows = atoms.multiply, atoms.sum_rows
    if plain:
        multiply, sum_rows = multiply.py_func, sum_rows.py_func
    multiply(a, b, atoms.Box(2, 2 + height, 3, 3 + width), out)
    np.testing.assert_allclose(out, a[:, 2 : 2 + height].T @ b[:, 3 : 3 + width], atol=1e-13)
    sum_rows(a, b, atoms.Box(2, 3, 3, 3 + width), out[0])
    np.testing.assert_allclose(out[0], a[:, 2] @ b[:, 3 : 3 + width], atol=1e-13)


@pytest.mark.parametrize("plain", [False, True])
def test_extremes_and_long_inner_products(plain: bool) -> None:
    a, b = np.random.default_rng(2).normal(size=(2, 37))
    extremes, long_inner = atoms.extremes, atoms.long_inner
    if plain:
        extremes, long_inner = extremes.py_func, long_inner.py_func
    assert extremes(a) == (a.min(), a.max())
    assert long_inner(a, b) == pytest.approx(a @ b, rel=1e-13)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("plain", [False, True])
def test_correlations_in_a_box(even: bool, dense: bool, plain: bool) -> None:
    seen, matrix = view(even=even, dense=dense)
    box = atoms.Box(0, 270, 0, 1) if dense else atoms.Box(4, 11, 2, 9)
    cells, out = cells_of(seen, box), np.empty(270)
    correlate_box, correlate_atom = atoms.correlate_box, atoms.correlate_atom
    if plain:
        correlate_box, correlate_atom = correlate_box.py_func, correlate_atom.py_func
    correlate_box(seen, seen.target, box, out)
    np.testing.assert_allclose(out[: cells.size], matrix[:, cells].T @ seen.target, atol=1e-12)
    column = np.empty(30)
    for atom in (0, 100, 270 + 13):  # the last is a pixel's own
        atoms.write_atom(seen, atom, column)
        correlate_atom(seen, atom, column, box, out)
        np.testing.assert_allclose(out[: cells.size], matrix[:, cells].T @ column, atol=1e-13)


def test_boxes_hold_what_they_must() -> None:
    seen, _ = view()
    box = atoms.widen(seen, atoms.Box(0, 0, 0, 0), 0)
    assert box == (0, 4, 0, 4)
    assert atoms.widen(seen, box, 15 * 8 + 10) == (0, 12, 0, 14)
    assert atoms.widen(view(dense=True)[0], atoms.Box(0, 0, 0, 0), 7) == (0, 270, 0, 1)
    a_y, a_x = np.empty((40, 120)), np.empty((40, 120))
    large = atoms.new_view(a_y, a_x, np.zeros((40, 40)), np.ones((40, 40)))
    corner = atoms.widen(large, atoms.Box(0, 0, 0, 0), 0)
    far = atoms.widen(large, corner, 120 * 119 + 119)  # both would be the whole map
    assert far == (116, 120, 116, 120)
    assert atoms.largest_box(a_y, a_x) >= (far.bottom - far.top) * (far.right - far.left)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("plain", [False, True])
def test_bounds_of_rows_hide_no_atom(even: bool, plain: bool) -> None:
    seen, matrix = view(even=even)
    g, n = matrix.T @ seen.target, matrix.shape[1]
    room = active_set._Room(
        seen.target.copy(), np.empty(31), np.empty(30), np.zeros(n + 30, bool), *np.empty((2, 18))
    )
    chosen = atoms.new_chosen(4, 30)
    strongest = active_set._strongest.py_func if plain else active_set._strongest
    everything = atoms.whole(seen)
    best, highest = strongest(seen, seen.target, everything, 0.0, chosen, room)
    assert best == g.argmax()
    assert highest == pytest.approx(g.max())
    atoms.append(seen, chosen, int(best), 0.0, 0.0)  # the next one then
    room.blocked[np.argsort(g)[-2]] = True
    second, _ = strongest(seen, seen.target, everything, 0.0, chosen, room)
    assert second == np.argsort(g)[-3]
    none, highest = strongest(seen, seen.target, everything, 1.01 * g.max(), chosen, room)
    assert none == -1
    assert g.max() * (1 - 1e-12) <= highest <= 1.01 * g.max()


@pytest.mark.parametrize("plain", [False, True])
def test_what_the_chosen_atoms_leave_of_the_others(plain: bool) -> None:
    seen, matrix = view(even=False)
    span, look_at_row = selection.span, selection._look_at_row
    if plain:
        span, look_at_row = span.py_func, look_at_row.py_func
    energies, height = (matrix**2).sum(axis=0), seen.a_y.shape[1]
    chosen, rows = atoms.new_chosen(4, 30), selection.new_rows(seen, 3)
    selection.weigh(energies, rows)
    selection.begin(seen, rows)
    told = selection.Rules(-np.inf, np.inf, 18, 0.0, 0.0, True)
    for k, atom in enumerate((50, 52, 200)):
        atoms.append(seen, chosen, atom, 1.0, 0.0)
        assert cholesky_append(chosen.gram, k, chosen.lower)
        assert span(seen, chosen, rows)
        for i in range(k % 2, height):  # the first row is left for later
            look_at_row(seen, told, energies, i, True, rows, chosen)
        basis = np.linalg.qr(matrix[:, chosen.atoms[: k + 1]])[0]
        left = ((matrix - basis @ (basis.T @ matrix)) ** 2).sum(axis=0)
        fit = basis @ (basis.T @ seen.target)
        done = np.arange(left.size) // (left.size // height) >= k % 2
        np.testing.assert_allclose(rows.free.ravel()[done], left[done], atol=1e-12)
        g = matrix.T @ (seen.target - fit)
        weighted = (seen.target - fit).reshape(seen.root.shape) * seen.root
        np.testing.assert_allclose(rows.left, weighted.T @ seen.a_y, atol=1e-9)
        np.testing.assert_allclose(rows.g.ravel()[done], g[done], atol=1e-9)
        wanted = done & (left > 1e-9)
        np.testing.assert_allclose(rows.inverse.ravel()[wanted], 1 / left[wanted], rtol=1e-6)
        assert (rows.inverse.ravel()[chosen.atoms[: k + 1]] == 0).all()
    atoms.drop(chosen, 0)
    assert not span(seen, chosen, rows)
    selection.forget(rows)
    assert (rows.spanned == -1).all()
    assert not rows.hidden.any()


@pytest.mark.parametrize("watched", [False, True])
def test_the_start_that_was_given_is_left_alone(watched: bool) -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (5, 5), 2)
    images = 100.0 * np.random.default_rng(0).random((3, 5, 5))
    x0 = np.zeros((3, 10, 10))
    seen: list[Any] = []
    result = cu.ActiveSet(lam=1.0).solve(
        d, images, x0=x0, callback=seen.append if watched else None
    )
    assert not x0.any()
    assert result.x.any()
