"""Every compiled kernel against a plain NumPy or SciPy twin; the plain functions run too."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.optimize import lsq_linear, nnls

import csunmix as cu
from csunmix._kernels import active_set as active
from csunmix._kernels import (
    atoms,
    banded,
    claims,
    linalg,
    merging,
    proximal,
    pursuit,
    selection,
)

RNG_SEEDS = pytest.mark.parametrize("seed", range(3))


def both(*kernels: Any) -> Any:
    """Parametrise a test by compiled kernels, and by the Python functions they were made of."""
    plain = [kernel.py_func for kernel in kernels]
    names = [function.__name__.strip("_") for function in plain]
    return pytest.mark.parametrize(names, [kernels, plain], ids=["compiled", "plain"])


def factors(shape: tuple[int, int] = (4, 5), factor: int = 2, *, dense: bool = False) -> Any:
    """Factors of a small dictionary, as the dictionary hands them out: read-only."""
    psf = cu.AiryPSF(0.95) if dense else cu.GaussianPSF(0.5)
    return cu.Dictionary(psf, shape, factor).factors


def view_of(y: Any, weights: Any, a_y: Any, a_x: Any) -> tuple[atoms.View, Any, Any]:
    """A view, and the weighted matrix and image it stands for."""
    root = np.sqrt(weights)
    return (
        atoms.new_view(a_y, a_x, y, weights),
        np.kron(a_y, a_x) * root.reshape(-1, 1),
        (y * root).ravel(),
    )


def random_view(seed: int, **options: Any) -> tuple[atoms.View, Any, Any, np.random.Generator]:
    rng = np.random.default_rng(seed)
    a_y, a_x = factors(**options)
    sizes = (a_y.shape[0], a_x.shape[0])
    y, weights = rng.normal(0, 10, sizes), rng.uniform(0, 2, sizes)
    weights[0, 0] = 0.0
    return *view_of(y, weights, a_y, a_x), rng


# --- linear algebra -----------------------------------------------------------------------------


@both(linalg.largest, linalg.first_largest)
def test_largest_and_the_first_of_them(largest: Any, first_largest: Any) -> None:
    rng = np.random.default_rng(1)
    for n in range(1, 14):
        for a in (rng.normal(size=n), rng.integers(0, 3, n) - 5.0, np.full(n, -np.inf)):
            assert largest(a) == a.max()
            assert first_largest(a) == a.argmax()


@both(linalg.inner, linalg.add)
def test_inner_and_add(inner: Any, add: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7))
    out = b.copy()
    add(2.5, a, out)
    assert inner(a, b) == pytest.approx(a @ b, rel=1e-14)
    np.testing.assert_allclose(out, b + 2.5 * a, rtol=1e-14)


@both(linalg.cholesky, linalg.cholesky_solve)
def test_cholesky_factors_and_solves(cholesky: Any, cholesky_solve: Any) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(9, 6))
    gram, lower, out = a.T @ a, np.empty((6, 6)), np.empty(6)
    rhs = rng.normal(size=6)
    k = 5
    assert cholesky(gram, k, lower) == k
    np.testing.assert_allclose(np.tril(lower[:k, :k]), np.linalg.cholesky(gram[:k, :k]), rtol=1e-12)
    cholesky_solve(lower, k, rhs, out)
    np.testing.assert_allclose(out[:k], np.linalg.solve(gram[:k, :k], rhs[:k]), rtol=1e-10)


@both(linalg.invert_lower, linalg.inner_gram, linalg.invert)
def test_triangles_and_inverses(invert_lower: Any, inner_gram: Any, invert: Any) -> None:
    a = np.random.default_rng(4).normal(size=(9, 6))
    gram = a.T @ a
    lower, out = np.linalg.cholesky(gram), np.zeros((6, 6))
    invert_lower(lower, out)
    np.testing.assert_allclose(out, np.linalg.inv(lower), rtol=1e-11, atol=1e-13)
    inner_gram(lower, out)
    np.testing.assert_allclose(out, lower.T @ lower, rtol=1e-12)
    assert invert(gram, out)
    np.testing.assert_allclose(out, np.linalg.inv(gram), rtol=1e-9)
    for bad in ([[1.0, 2.0], [2.0, 2.0]], [[1.0, np.nan], [np.nan, 2.0]]):
        assert not invert(np.array(bad), out[:2, :2].copy())
    out = np.empty((2, 2))
    invert(np.array([[1.0, 2.0], [2.0, 2.0]]), out)
    assert out.tolist() == [[1.0, 0.0], [0.0, 0.5]]


@both(linalg.to_shares)
def test_shares_of_logarithms(to_shares: Any) -> None:
    logs, share = np.array([-1000.0, -1001.0, -np.inf]), np.empty(3)
    assert to_shares(logs, share) == pytest.approx(-1000.0 + np.log1p(np.exp(-1.0)))
    np.testing.assert_allclose(share, [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0.0], rtol=1e-12)


@both(linalg.effective)
def test_how_many_draws_count(effective: Any) -> None:
    logs = np.array([-1000.0, -1000.0, -1001.0])
    weight = np.exp(logs + 1000.0)
    assert effective(logs) == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert effective(logs[:2]) == pytest.approx(2.0)
    assert effective(logs[:0]) == 0.0


@both(linalg.cholesky)
def test_cholesky_names_the_first_dependent_row(cholesky: Any) -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=(9, 5))
    a[:, 3] = a[:, 0] - 2 * a[:, 1]
    assert cholesky(a.T @ a, 5, np.empty((5, 5))) == 3
    assert cholesky(np.zeros((2, 2)), 2, np.empty((2, 2))) == 0


@pytest.mark.parametrize("position", [0, 2, 5])
@both(linalg.cholesky_append, linalg.cholesky_drop)
def test_cholesky_follows_what_comes_and_goes(
    cholesky_append: Any, cholesky_drop: Any, position: int
) -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(9, 6))
    gram, lower = a.T @ a, np.empty((6, 6))
    assert all(cholesky_append(gram, i, lower) for i in range(6))
    np.testing.assert_allclose(np.tril(lower), np.linalg.cholesky(gram), rtol=1e-12)
    cholesky_drop(lower, 6, position)
    kept = np.delete(np.arange(6), position)
    twin = np.linalg.cholesky(gram[np.ix_(kept, kept)])
    np.testing.assert_allclose(np.tril(lower[:5, :5]), twin, rtol=1e-11, atol=1e-13)


# --- views and chosen atoms ---------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True], ids=["separable", "dense"])
@both(atoms.new_view, atoms.write_atom, atoms.forward)
def test_views_equal_the_weighted_matrix(
    new_view: Any, write_atom: Any, forward: Any, dense: bool
) -> None:
    view, matrix, target, rng = random_view(3, dense=dense)
    plain = new_view(view.a_y, view.a_x, np.ones(view.root.shape), view.root**2)
    np.testing.assert_allclose(plain.root, view.root, rtol=1e-14)
    np.testing.assert_allclose(plain.target, view.root.ravel(), rtol=1e-14)
    np.testing.assert_allclose(view.target, target, rtol=1e-14)

    column = np.empty(target.size)
    for atom in (0, 7, matrix.shape[1] - 1):
        write_atom(view, atom, column)
        np.testing.assert_allclose(column, matrix[:, atom], rtol=1e-14)
    write_atom(view, matrix.shape[1] + 7, column)  # the pixels' own atoms stand behind
    np.testing.assert_allclose(column, np.where(np.arange(20) == 7, -view.root.ravel(), 0))

    x = rng.normal(size=matrix.shape[1]) * (rng.random(matrix.shape[1]) < 0.2)
    image = np.empty(view.root.shape)
    forward(view.a_y, view.a_x, x, image)
    np.testing.assert_allclose(
        image.ravel(), np.kron(view.a_y, view.a_x) @ x, rtol=1e-12, atol=1e-14
    )


@both(atoms.append, atoms.contains, atoms.drop, atoms.residual, atoms.write_coefficients)
def test_chosen_atoms_keep_their_normal_equations(
    append: Any, contains: Any, drop: Any, residual: Any, write_coefficients: Any
) -> None:
    view, matrix, target, _ = random_view(4)
    chosen = atoms.new_chosen(6, target.size)
    for atom in (3, 11, 20, 8, 30):
        append(view, chosen, atom, float(atom), 0.25)
    for position in (4, 0, 1):  # the last, the first, one in between
        drop(chosen, position)
    append(view, chosen, 5, -1.0, 0.0)

    kept = [11, 8, 5]
    k = chosen.number[0]
    assert chosen.atoms[:k].tolist() == kept
    assert [j for j in range(matrix.shape[1]) if contains(chosen, j)] == sorted(kept)
    np.testing.assert_allclose(chosen.columns[:k], matrix[:, kept].T, rtol=1e-14)
    np.testing.assert_allclose(
        chosen.gram[:k, :k], matrix[:, kept].T @ matrix[:, kept], rtol=1e-12, atol=1e-15
    )
    price = [0.25, 0.25, 0.0]
    np.testing.assert_allclose(chosen.rhs[:k], matrix[:, kept].T @ target - price, rtol=1e-12)

    r, x = np.empty(target.size), np.zeros(matrix.shape[1])
    residual(view, chosen, r)
    write_coefficients(chosen, x)
    assert {int(j): x[j] for j in np.flatnonzero(x)} == {5: -1.0, 8: 8.0, 11: 11.0}
    np.testing.assert_allclose(r, target - matrix @ x, rtol=1e-12, atol=1e-12)


# --- banded products ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (1, 1), (30, 33)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@both(banded.forward, banded.adjoint)
def test_banded_products(forward: Any, adjoint: Any, dtype: Any, shape: tuple[int, int]) -> None:
    d = cu.Dictionary(cu.GaussianPSF(sigma_x=0.5, sigma_y=0.7), shape, 2)
    bands, matrix = [band.astype(dtype) for band in d.bands], d.to_dense()
    rng = np.random.default_rng(3)
    maps, images = rng.normal(size=(2, *d.map_shape)), rng.normal(size=(2, *shape))
    lit = np.linspace(-0.5, 1.0, d.map_shape[0])[:, None]  # rows of nothing, of few cells, of many
    maps *= rng.random(maps.shape) < lit
    image, back = np.empty_like(images, dtype), np.empty_like(maps, dtype)
    forward(*bands, d.across.astype(dtype), maps.astype(dtype), image)
    adjoint(*bands, images.astype(dtype), back)
    atol = 1e-12 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose(image.reshape(2, -1), maps.reshape(2, -1) @ matrix.T, atol=atol)
    np.testing.assert_allclose(back.reshape(2, -1), images.reshape(2, -1) @ matrix, atol=atol)


@both(banded.forward_cells, banded.adjoint_cells)
def test_banded_products_of_some_cells(forward_cells: Any, adjoint_cells: Any) -> None:
    given, matrix = proximal_problem()
    bands, image = given[:2], given[3][0]
    cells = np.array([0, 3, 50, 52, 94, 200])
    rows, cols = np.divmod(cells, 48)
    values, row, out = np.arange(1.0, 7.0), np.empty(24), np.empty(6)
    adjoint_cells(*bands, image, rows, cols, row, out)
    np.testing.assert_allclose(out, matrix[:, cells].T @ image.ravel(), atol=1e-13)
    fitted = np.empty_like(image)
    forward_cells(*bands, rows, cols, values, row, fitted)
    np.testing.assert_allclose(fitted.ravel(), matrix[:, cells] @ values, atol=1e-13)


@pytest.mark.parametrize("positive", [True, False])
@both(proximal._watch, proximal._follow)
def test_gradients_of_watched_cells_follow_their_steps(
    watch: Any, follow: Any, positive: bool
) -> None:
    (band_y, band_x, _, y, w, *_), matrix = proximal_problem()
    x, z = np.zeros((2, 6, 48))
    x[2, 30], z[2, 33] = 1.0, 1.0
    watched, row = new_watched(x.size), np.empty(24)
    n = watch(band_y, band_x, w[0] * y[0], 1.0, positive, x, z, row, watched)
    cells = watched.row[:n] * 48 + watched.col[:n]
    g = matrix.T @ (w[0] * y[0]).ravel()
    steep = g if positive else np.abs(g)
    told = np.flatnonzero((steep > 1.0) | (x.ravel() != 0) | (z.ravel() != 0))
    assert 0 < n < 150
    assert cells.tolist() == told.tolist()
    np.testing.assert_allclose(watched.slope[:n], g[cells], atol=1e-13)

    moves = np.where(np.arange(n) % 3 == 0, 0.5, 0.0)
    watched.z[:n] += moves
    for _ in range(2):  # with products to be made, and with those at hand
        d2 = follow(band_y, band_x, n, np.empty(3), row, watched)
        shift = matrix[:, cells] @ moves
        assert d2 == pytest.approx(shift @ shift)
        change = matrix[:, cells].T @ shift
        np.testing.assert_allclose(watched.g[:n], g[cells] - change, atol=1e-12)


def new_watched(n: int) -> proximal._Watched:
    """Room for `n` cells and all their products."""
    numbers = [np.empty(n, np.int64) for _ in range(3)]
    room = [np.empty(n) for _ in range(5)]
    return proximal._Watched(*numbers[:2], *room, np.empty(n * n), numbers[2])


# --- proximal gradient --------------------------------------------------------------------------


def proximal_twin(
    matrix: Any, y: Any, w: Any, censored: Any, lam: float, n_steps: int, **how: bool
) -> Any:
    """ISTA, FISTA and greedy FISTA as in the papers, on vectors."""
    shortest = 1 / (np.linalg.norm(matrix, 2) ** 2 * w.max())
    step = shortest * (1.6 if how["accelerate"] and how["restart"] else 1.0)
    x = z = np.zeros(matrix.shape[1])
    t, first = 1.0, None
    for _ in range(n_steps):
        r = y - matrix @ z
        r = w * np.where(censored, np.maximum(r, 0), r)
        v = z + step * (matrix.T @ r)
        new = np.sign(v) * np.maximum(np.abs(v) - lam * step, 0)
        if how["positive"]:
            new = np.maximum(v - lam * step, 0)
        momentum, moved = 0.0, np.linalg.norm(new - x)
        if how["accelerate"] and how["restart"]:
            momentum = float((z - new) @ (new - x) <= 0)
            if first is not None and moved >= first:
                step = max(0.96 * step, shortest)
            first = moved if first is None else first
        elif how["accelerate"]:
            t_next = (1 + np.sqrt(1 + 4 * t * t)) / 2
            momentum, t = (t - 1) / t_next, t_next
        z, x = new + momentum * (new - x), new
    return x


def proximal_problem(dtype: Any = np.float64) -> tuple[tuple[Any, ...], Any]:
    """Two small images as the kernels want them, and the matrix."""
    shape = (3, 24)  # along x a band, along y not
    d = cu.Dictionary(cu.GaussianPSF(0.5), shape, 2)
    bands = [band.astype(dtype) for band in (*d.bands, d.across)]
    rng = np.random.default_rng(5)
    y = rng.normal(0, 0.5, (2, *shape)).astype(dtype)
    y[:, 1, 5:9] += rng.uniform(2, 9, (2, 4)).astype(dtype)
    w = rng.uniform(0.2, 2, y.shape).astype(dtype)
    censored = rng.random(y.shape) < 0.2
    matrix = np.kron(*(band.to_dense() for band in bands[:2]))
    lipschitz = np.linalg.norm(matrix, 2) ** 2 * w.max(axis=(1, 2)).astype(float)
    lam = np.full(2, 0.4, dtype)
    return (*bands, y, w, censored, lam, lipschitz.astype(dtype)), matrix


@pytest.mark.parametrize(
    ("positive", "accelerate", "restart"), list(itertools.product([True, False], repeat=3))
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@both(proximal.proximal_steps)
def test_proximal_steps(
    proximal_steps: Any, dtype: Any, positive: bool, accelerate: bool, restart: bool
) -> None:
    given, matrix = proximal_problem(dtype)
    y, w, censored = given[3:6]
    w[1], censored[1] = 1.0, False  # of such an image products of atoms are used
    given[-1][1] = np.linalg.norm(matrix, 2) ** 2
    n_steps = 60
    x = np.zeros((2, 6, 48), dtype)
    z, memory = x.copy(), np.ones((2, 2), dtype)
    memory[:, 0] = 1 / given[-1]
    if accelerate and restart:
        memory *= dtype(1.6)
        memory[:, 1] = np.inf
    how = {"positive": positive, "accelerate": accelerate, "restart": restart}
    largest_norm = np.linalg.norm(matrix, axis=0).max()
    for part in (n_steps - 17, 17):  # the state goes on where it was left
        proximal_steps(*given, largest_norm, *how.values(), part, x, z, memory)
    rtol = 1e-10 if dtype is np.float64 else 2e-4
    for b in range(2):
        flat = (y[b].ravel(), w[b].ravel(), censored[b].ravel())
        twin = proximal_twin(matrix, *flat, 0.4, n_steps, **how)
        assert np.count_nonzero(twin) > 5
        np.testing.assert_allclose(x[b].ravel(), twin, rtol=rtol, atol=rtol * np.abs(twin).max())


def spectral_twin(
    matrix: Any, y: Any, w: Any, censored: Any, lam: float, n_steps: int, positive: bool
) -> tuple[Any, int, int]:
    """Adaptive Barzilai-Borwein steps on vectors; with the short and refused steps counted."""

    def look(x: Any) -> tuple[Any, float]:
        r = y - matrix @ x
        r = np.where(censored, np.maximum(r, 0), r)
        return matrix.T @ (w * r), 0.5 * np.sum(w * r * r) + lam * np.abs(x).sum()

    shortest = step = 1 / (np.linalg.norm(matrix, 2) ** 2 * w.max())
    x, shorts, n_short, n_refused = np.zeros(matrix.shape[1]), [np.inf] * 3, 0, 0
    g, value = look(x)
    for _ in range(n_steps):
        v = x + step * g
        new = np.maximum(v - lam * step, 0)
        if not positive:
            new = np.sign(v) * np.maximum(np.abs(v) - lam * step, 0)
        s, (g_new, value_new) = new - x, look(new)
        if value_new > value - 0.005 * (s @ s) / step and step > shortest:
            step, n_refused = max(step / 2, shortest), n_refused + 1
            continue
        d = g - g_new
        x, g, value = new, g_new, value_new
        if s @ d <= 0:
            continue
        long, short = (s @ s) / (s @ d), (s @ d) / np.sum(d[x != 0] ** 2)
        shorts = [*shorts[1:], short]
        n_short += short < 0.5 * long
        step = max(min(shorts) if short < 0.5 * long else long, shortest)
    return x, n_short, n_refused


@pytest.mark.parametrize("positive", [True, False])
@both(proximal.spectral_steps)
def test_spectral_steps(spectral_steps: Any, positive: bool) -> None:
    given, matrix = proximal_problem()
    y, w, censored = given[3:6]
    x = np.zeros((2, 6, 48))
    lengths = np.full((2, 4), np.inf)
    lengths[:, 0] = 1 / given[-1]
    for part in (43, 17):
        spectral_steps(*given, positive, part, x, lengths)
    short, refused = 0, 0
    for b in range(2):
        flat = (y[b].ravel(), w[b].ravel(), censored[b].ravel())
        twin, n_short, n_refused = spectral_twin(matrix, *flat, 0.4, 60, positive)
        short, refused = short + n_short, refused + n_refused
        np.testing.assert_allclose(x[b].ravel(), twin, rtol=1e-7, atol=1e-7)
    assert short > 3
    assert refused > 0


@both(proximal._shrink, proximal._l1, proximal._spectral_length)
def test_parts_of_the_proximal_steps(shrink: Any, l1: Any, spectral_length: Any) -> None:
    assert [shrink(v, 1.0, True) for v in (3.0, 0.5, -3.0)] == [2.0, 0.0, 0.0]
    assert [shrink(v, 1.0, False) for v in (3.0, 0.5, -0.5, -3.0)] == [2.0, 0.0, 0.0, -2.0]
    assert l1(np.array([[1.0, -2.0], [0.0, 0.5]])) == 3.5
    lengths = np.array([9.0, 0.1, 0.3, 0.2])
    assert spectral_length(1.0, 0.6, lengths) == 1.0
    assert lengths.tolist() == [9.0, 0.3, 0.2, 0.6]
    assert spectral_length(1.0, 0.4, lengths) == 0.2


# --- active set ---------------------------------------------------------------------------------


def nnls_with_linear_term(matrix: Any, y: Any, lam: float) -> Any:
    """``min 1/2 ||A x - y||^2 + lam sum x, x >= 0`` for full column rank, by SciPy's nnls."""
    upper = np.linalg.cholesky(matrix.T @ matrix).T
    return nnls(upper, np.linalg.solve(upper.T, matrix.T @ y - lam))[0]


@RNG_SEEDS
@pytest.mark.parametrize("lam", [0.0, 0.5])
@both(active.active_set)
def test_active_set_equals_nnls(active_set: Any, seed: int, lam: float) -> None:
    a_y, a_x = factors((5, 6), factor=1)
    rng = np.random.default_rng(seed)
    y, w = rng.normal(2, 5, (2, 5, 6)), rng.uniform(0.3, 2, (2, 5, 6))
    n_iter, optimal = np.zeros(2, np.int64), np.zeros(2, bool)
    start = active.Coefficients(np.zeros(3, np.int64), np.empty(0, np.int64), np.empty(0))
    censored = np.zeros(y.shape, bool)
    prices = np.array([lam, lam + 1.0])  # at once, and by stages
    lams, (objective, gap, norm) = np.full(2, lam), np.empty((3, 2))
    told = (n_iter, optimal, objective, gap, norm)
    answer = active_set(a_y, a_x, y, w, censored, lams, 1000, 0.0, prices, start, *told)
    assert (prices == lam).all()
    assert optimal.all()
    for b in range(2):
        root = np.sqrt(w[b].ravel())
        twin = nnls_with_linear_term(np.kron(a_y, a_x) * root[:, None], y[b].ravel() * root, lam)
        assert 3 < np.count_nonzero(twin) < 30
        x, own = np.zeros(30), slice(*answer.first[b : b + 2])
        x[answer.atoms[own]] = answer.x[own]
        np.testing.assert_allclose(x, twin, rtol=1e-8, atol=1e-8)
        r = (y[b].ravel() - np.kron(a_y, a_x) @ x) * root
        assert norm[b] == pytest.approx(np.linalg.norm(r))
        assert objective[b] == pytest.approx(0.5 * r @ r + lam * x.sum())


@both(active.active_set, active._refit)
def test_refitting_the_answer_changes_nothing(active_set: Any, refit: Any) -> None:
    view, matrix, target, _ = random_view(8, shape=(4, 4), factor=1)
    keep = np.linalg.norm(matrix, axis=0) > 0
    y = (target / np.where(view.root.ravel() > 0, view.root.ravel(), 1)).reshape(1, 4, 4)
    lams, told = np.full(1, 0.2), np.empty((3, 1))
    start = active.Coefficients(np.zeros(2, np.int64), np.empty(0, np.int64), np.empty(0))
    n_iter, optimal = np.zeros(1, np.int64), np.zeros(1, bool)
    a = (view.a_y, view.a_x, y, view.root[None] ** 2, np.zeros(y.shape, bool))
    answer = active_set(*a, lams, 100, 0.0, lams.copy(), start, n_iter, optimal, *told)
    x, n = np.zeros(matrix.shape[1]), answer.first[-1]
    x[answer.atoms[:n]] = answer.x[:n]
    assert optimal[0]
    assert n_iter[0] >= np.count_nonzero(x)
    g = matrix.T @ (target - matrix @ x)
    np.testing.assert_allclose(g[x > 0], 0.2, rtol=1e-9)
    assert g.max() <= 0.2 + 1e-9
    # Refitting all atoms from a feasible start gives the same optimum where nothing re-enters.
    chosen = atoms.new_chosen(int(keep.sum()) + 1, target.size)
    for atom in np.flatnonzero(x):
        atoms.append(view, chosen, int(atom), 1.0, 0.2)
    refit(chosen, 0, np.empty(17))
    again = np.zeros_like(x)
    atoms.write_coefficients(chosen, again)
    np.testing.assert_allclose(again, x, rtol=1e-8)


@RNG_SEEDS
@both(active._exchange)
def test_dependent_atoms_are_exchanged_at_no_loss(exchange: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a_y, a_x = factors((3, 3))
    view, matrix, target = view_of(rng.normal(3, 1, (3, 3)), np.ones((3, 3)), a_y, a_x)
    chosen = atoms.new_chosen(11, 9)
    for atom in rng.choice(36, 10, replace=False):  # ten atoms, nine pixels
        atoms.append(view, chosen, int(atom), rng.uniform(0.5, 2), float(rng.uniform(0, 1)))
    x, prices = np.zeros(36), np.zeros(36)
    atoms.write_coefficients(chosen, x)
    prices[chosen.atoms[:10]] = matrix[:, chosen.atoms[:10]].T @ target - chosen.rhs[:10]
    sound = min(linalg.cholesky(chosen.gram, 10, chosen.lower), 9)  # rounding may see a tenth
    atoms.drop(chosen, exchange(chosen, sound, np.empty(11)))
    after = np.zeros(36)
    atoms.write_coefficients(chosen, after)
    assert chosen.number[0] == 9
    assert (after >= -1e-12).all()
    np.testing.assert_allclose(matrix @ after, matrix @ x, rtol=1e-9)
    assert prices @ after <= prices @ x + 1e-12


# --- pursuits -----------------------------------------------------------------------------------


def rules(low: float = 0.0, high: float = np.inf, width: int = 10, **distances: float) -> Any:
    return selection.Rules(
        low, high, width, distances.get("exclusion", 0.0), distances.get("reach", 0.0), False
    )


@RNG_SEEDS
@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (1.0, 2.0), (1.0, np.inf), (-1.0, 1.0)])
@both(pursuit._descend)
def test_box_fit_equals_scipy(descend: Any, seed: int, low: float, high: float) -> None:
    view, matrix, target, rng = random_view(seed)
    chosen_atoms = rng.choice(matrix.shape[1], 4, replace=False)
    chosen = atoms.new_chosen(5, target.size)
    for atom in chosen_atoms:
        atoms.append(view, chosen, int(atom), max(low, 0.5), 0.0)
    descend(rules(low, high), chosen)
    twin = lsq_linear(matrix[:, chosen_atoms], target, (low, high), method="bvls", tol=1e-14)
    np.testing.assert_allclose(chosen.x[:4], twin.x, rtol=1e-5, atol=1e-5)


@both(pursuit._fit)
def test_fit_drops_dependent_and_negative_atoms(fit: Any) -> None:
    a_y, a_x = factors()
    truth = np.zeros(80)
    truth[[22, 45]] = 5.0, -3.0
    y = (np.kron(a_y, a_x) @ truth).reshape(4, 5)
    for low, expected in ((0.0, [22]), (-np.inf, [22, 45])):
        view, matrix, target = view_of(y, np.ones((4, 5)), a_y, a_x)
        chosen = atoms.new_chosen(4, target.size)
        for atom in (22, 45, 22):
            atoms.append(view, chosen, atom, 1.0, 0.0)
        fit(rules(low), chosen, 0)
        k = chosen.number[0]
        assert sorted(chosen.atoms[:k]) == expected
        twin = np.linalg.lstsq(matrix[:, chosen.atoms[:k]], target, rcond=None)[0]
        np.testing.assert_allclose(chosen.x[:k], twin, rtol=1e-10)


@RNG_SEEDS
@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (0.5, 1.5), (-np.inf, np.inf)])
@both(pursuit._best_pair, selection.best_value)
def test_best_coefficients_of_one_and_two_atoms(
    best_pair: Any, best_value: Any, seed: int, low: float, high: float
) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        a, r = rng.normal(size=(7, 2)), rng.normal(0, 2, 7)
        g, h = a.T @ r
        gram = a.T @ a
        v, w, gain = best_pair(rules(low, high), g, h, gram[0, 0], gram[1, 1], gram[0, 1])
        twin = lsq_linear(a, r, (low, high), method="bvls").x
        np.testing.assert_allclose([v, w], twin, rtol=1e-7, atol=1e-8)
        assert gain == pytest.approx(0.5 * (r @ r - np.sum((r - a @ twin) ** 2)), abs=1e-9)
        v, gain = best_value(rules(low, high), g, gram[0, 0])
        alone = lsq_linear(a[:, :1], r, (low, high), method="bvls").x
        assert v == pytest.approx(alone[0], abs=1e-9)
        assert gain == pytest.approx(0.5 * (r @ r - np.sum((r - a[:, :1] @ alone) ** 2)), abs=1e-9)


def energy_of(matrix: Any, target: Any, cells: Any, x: Any) -> float:
    return float(np.sum((target - matrix[:, list(cells)] @ np.asarray(x)) ** 2))


@RNG_SEEDS
@both(pursuit._move_one)
def test_one_atom_moves_to_the_best_cell_in_reach(move_one: Any, seed: int) -> None:
    view, matrix, target, rng = random_view(seed)
    width, reach, exclusion = 10, 2.3, 1.5
    for start in rng.choice(80, 6, replace=False):
        other = int((start + 24) % 80)
        chosen = atoms.new_chosen(3, target.size)
        atoms.append(view, chosen, int(start), 2.0, 0.0)
        atoms.append(view, chosen, other, 3.0, 0.0)
        r = np.empty(target.size)
        atoms.residual(view, chosen, r)
        moved = move_one(
            rules=rules(width=width, reach=reach, exclusion=exclusion),
            view=view,
            chosen=chosen,
            m=0,
            r=r,
            column=np.empty(target.size),
        )
        rest = target - 3.0 * matrix[:, other]
        best, least = int(start), energy_of(matrix, rest, [start], [2.0])
        for cell in range(80):

            def apart(a: int, b: int) -> float:
                return float(np.hypot(a // width - b // width, a % width - b % width))

            column = matrix[:, cell]
            if column @ rest <= 0 or apart(cell, int(start)) > reach or cell == start:
                continue
            if apart(cell, other) < exclusion:
                continue
            energy = energy_of(matrix, rest, [cell], [column @ rest / (column @ column)])
            if energy < least * (1 - 1e-8):
                best, least = cell, energy
        assert chosen.atoms[0] == best
        assert moved == (best != start)
        assert energy_of(matrix, rest, [best], chosen.x[:1]) == pytest.approx(least, rel=1e-9)
        np.testing.assert_allclose(r, rest - chosen.x[0] * matrix[:, best], atol=1e-10)


@RNG_SEEDS
@both(pursuit._move_two)
def test_two_atoms_move_together_to_the_best_neighbours(move_two: Any, seed: int) -> None:
    view, matrix, target, rng = random_view(seed)
    width = 10
    for first in rng.choice(np.arange(20, 50), 4, replace=False):
        pair = (int(first), int(first) + 3)
        chosen = atoms.new_chosen(3, target.size)
        for cell in pair:
            atoms.append(view, chosen, cell, 1.0, 0.0)
        r = np.empty(target.size)
        atoms.residual(view, chosen, r)
        scratch = np.empty((18, target.size))
        moved = move_two(view, rules(width=width), chosen, 0, 1, r, scratch)

        def around(cell: int) -> list[int]:
            i, j = divmod(cell, width)
            near = itertools.product((i - 1, i, i + 1), (j - 1, j, j + 1))
            return [a * width + b for a, b in near if 0 <= a < 8 and 0 <= b < width]

        best, least = pair, energy_of(matrix, target, pair, [1.0, 1.0])
        for a, b in itertools.product(around(pair[0]), around(pair[1])):
            if a == b or (a, b) == pair or not matrix[:, a].any() or not matrix[:, b].any():
                continue
            fitted = nnls(matrix[:, [a, b]], target)
            energy = fitted[1] ** 2
            if (fitted[0] > 0).all() and energy < least * (1 - 1e-8):
                best, least = (a, b), energy
        assert moved == (best != pair)
        assert tuple(chosen.atoms[:2]) == best
        assert energy_of(matrix, target, best, chosen.x[:2]) == pytest.approx(least, rel=1e-9)
        np.testing.assert_allclose(r, target - matrix[:, best] @ chosen.x[:2], atol=1e-10)


@both(selection.select, selection.near)
def test_select_takes_the_largest_gain_outside_the_bands(select: Any, near: Any) -> None:
    view, matrix, target, _ = random_view(6)
    energies = (matrix**2).sum(axis=0)
    chosen = atoms.new_chosen(3, target.size)
    atoms.append(view, chosen, 33, 1.0, 0.0)
    g = matrix.T @ target
    far = [j for j in range(80) if np.hypot(j // 10 - 3, j % 10 - 3) >= 2]
    banned = rules(exclusion=2.0)
    assert [near(banned, j, chosen, 9, 9) for j in range(80)] == [j not in far for j in range(80)]
    assert not near(banned, 33, chosen, 0, 0)  # the atom itself is left out
    gain = np.where(energies > 1e-12 * energies.max(), np.maximum(g, 0) ** 2, 0)
    gain[energies > 0] /= energies[energies > 0]
    rows = selection.new_rows(view, 3)
    selection.weigh(energies, rows)
    selection.see(view, target, rows, rows.left)
    best, value = select(view, banned, energies, True, rows, chosen)
    assert best == max(far, key=lambda j: float(gain[j]))
    assert value == pytest.approx(g[best] / energies[best])
    selection.see(view, -np.abs(target), rows, rows.left)
    assert select(view, banned, energies, True, rows, chosen)[0] == -1
    selection.weigh(np.zeros(80), rows)
    assert select(view, rules(-np.inf), np.zeros(80), True, rows, chosen)[0] == -1


@pytest.mark.parametrize("side", [4, 8, 9, 16])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (0.5, 3.0)])
@both(selection.select, selection._write_gains)
def test_select_in_maps_of_any_size(
    select: Any, write_gains: Any, bounds: tuple[float, float], side: int
) -> None:
    rng = np.random.default_rng(side)
    weights, told = rng.uniform(0.5, 2.0, (side, side)), rules(*bounds, width=side)
    eye, none = np.eye(side), atoms.new_chosen(1, side**2)
    for atom in {0, 1, 2, 3, side**2 - 2, side**2 - 1}:
        y = rng.uniform(-1.0, 1.0, (side, side))
        y.flat[atom] = 4.0  # which gains 4 at least, others 1 at most
        view = atoms.new_view(eye, eye, y, weights)
        rows = selection.new_rows(view, 1)
        selection.weigh(weights.ravel(), rows)
        selection.see(view, view.target, rows, rows.left)
        best, value = select(view, told, weights.ravel(), True, rows, none)
        assert best == atom
        assert value == pytest.approx(min(4.0, bounds[1]))
        out, g, energies = np.empty(side), weights[0] * y[0], weights[0].copy()
        write_gains(told, g, energies, 1.0 / energies, out)
        v = np.clip(y[0], *bounds)
        np.testing.assert_allclose(out, v * g - 0.5 * v**2 * energies)


def rows_of(seed: int, even: bool, dense: bool) -> tuple[Any, ...]:
    """A view, its matrix, image and energies, and room for six chosen atoms."""
    a_y, a_x = factors(dense=dense)
    rng = np.random.default_rng(seed)
    sizes = (len(a_y), len(a_x))
    w = np.full(sizes, 1.7) if even else rng.uniform(0.3, 2, sizes)
    view, matrix, target = view_of(rng.normal(size=sizes), w, a_y, a_x)
    energies, rows = (matrix**2).sum(axis=0), selection.new_rows(view, 6)
    selection.weigh(energies, rows)
    selection.begin(view, rows)
    return view, matrix, target, energies, rows, atoms.new_chosen(6, target.size)


@pytest.mark.parametrize("dense", [False, True], ids=["separable", "dense"])
@pytest.mark.parametrize("even", [False, True], ids=["weights", "even"])
@both(selection.see_left, selection._see_sum)
def test_rows_see_what_chosen_atoms_explain_and_leave(
    see_left: Any, see_sum: Any, even: bool, dense: bool
) -> None:
    view, matrix, target, _, rows, chosen = rows_of(2, even, dense)
    rng, out = np.random.default_rng(3), np.empty(rows.left.shape)
    for atom in (3, 11, 20, 8, 30):
        atoms.append(view, chosen, atom, 1.0, 0.0)
        k = chosen.number[0]
        chosen.x[:k] = rng.normal(size=k)
        fitted = matrix[:, chosen.atoms[:k]] @ chosen.x[:k]
        see_left(view, chosen, target - fitted, rows)
        see_sum(view, chosen, chosen.x[:k], rows, out)
        for seen, twin in ((rows.left, target - fitted), (out, fitted)):
            weighted = twin.reshape(view.root.shape) * view.root
            np.testing.assert_allclose(seen, weighted.T @ view.a_y, atol=1e-12)


@pytest.mark.parametrize("dense", [False, True], ids=["separable", "dense"])
@pytest.mark.parametrize("even", [False, True], ids=["weights", "even"])
@pytest.mark.parametrize("refitted", [False, True], ids=["correlation", "residual"])
@both(selection._bound, selection.span)
def test_bounds_of_rows_exceed_what_their_atoms_gain(
    bound: Any, span: Any, refitted: bool, even: bool, dense: bool
) -> None:
    hidden = 0
    for seed in range(5):
        view, matrix, target, energies, rows, chosen = rows_of(seed, even, dense)
        for k in range(4):
            basis = np.linalg.qr(matrix[:, chosen.atoms[:k]])[0]
            r = target - basis @ (basis.T @ target)
            left = energies.copy()
            if refitted:
                left = ((matrix - basis @ (basis.T @ matrix)) ** 2).sum(axis=0)
                assert span(view, chosen, rows)
            gain = np.zeros(len(left))
            np.divide(0.5 * (matrix.T @ r) ** 2, left, out=gain, where=left > 1e-9)
            selection.see(view, r, rows, rows.left)
            bound(rows)
            most = gain.reshape(view.a_y.shape[1], -1).max(axis=1)
            assert (rows.bound >= most - 1e-12 * most.max()).all()
            hidden += np.count_nonzero(rows.bound < most.max())
            atoms.append(view, chosen, int(gain.argmax()), 1.0, 0.0)
            assert linalg.cholesky_append(chosen.gram, k, chosen.lower)
    assert hidden > 5


def pursuit_arguments(seed: int) -> tuple[Any, ...]:
    a_y, a_x = factors((3, 4))
    rng = np.random.default_rng(seed)
    y, w = rng.normal(1, 3, (2, 3, 4)), rng.uniform(0.5, 1.5, (2, 3, 4))
    energies = np.einsum("bp,pj->bj", w.reshape(2, -1), np.kron(a_y, a_x) ** 2)
    return a_y, a_x, y, w, energies


@RNG_SEEDS
def test_compiled_pursuits_equal_plain_ones(seed: int) -> None:
    a_y, a_x, y, w, energies = pursuit_arguments(seed)
    answers = []
    for plain in (False, True):
        omp, mp = pursuit.orthogonal_matching_pursuit, pursuit.matching_pursuit
        if plain:
            omp, mp = omp.py_func, mp.py_func
        for rule in (
            rules(width=8),
            rules(width=8, reach=2.0),
            rules(0.5, 4.0, width=8),
            rules(width=8)._replace(refitted=True),
        ):
            found = pursuit.Picks(
                np.zeros(2, np.int64), np.zeros((2, 4), np.int64), np.ones((2, 4))
            )
            n_iter, energy = np.zeros(2, np.int64), np.empty(2)
            omp(a_y, a_x, y, w, energies, 4, 0.0, rule, found, n_iter, energy)
            answers.append((found, n_iter, energy))
        found = pursuit.Picks(np.zeros(2, np.int64), np.zeros((2, 4), np.int64), np.ones((2, 4)))
        n_iter, energy = np.zeros(2, np.int64), np.empty(2)
        mp(a_y, a_x, y, w, energies, 3, 0.0, 20, rules(width=8), found, n_iter, energy)
        answers.append((found, n_iter, energy))
    matrix = np.kron(a_y, a_x)
    for answer, twin in zip(answers[:5], answers[5:], strict=True):
        (found, n_iter, energy), (plain, plain_n, plain_energy) = answer, twin
        np.testing.assert_array_equal(found.number, plain.number)
        np.testing.assert_array_equal(n_iter, plain_n)
        np.testing.assert_allclose(energy, plain_energy, rtol=1e-9)
        for b, k in enumerate(found.number):
            assert 0 < k <= 4
            np.testing.assert_array_equal(found.atoms[b, :k], plain.atoms[b, :k])
            np.testing.assert_allclose(found.x[b, :k], plain.x[b, :k], rtol=1e-9)
            r = y[b].ravel() - matrix[:, found.atoms[b, :k]] @ found.x[b, :k]
            assert energy[b] == pytest.approx(w[b].ravel() @ r**2)


# --- merging ------------------------------------------------------------------------------------


def merge_twin(points: Any, radius: float) -> Any:
    """Naive agglomeration: all pairs again after every merge. Rows (y, x, flux), sorted."""
    points = [tuple(map(float, p)) for p in points]
    while True:
        pairs = []
        for a, b in itertools.combinations(points, 2):
            distance = np.hypot(a[0] - b[0], a[1] - b[1])
            if distance <= radius * (1 + 1e-9):
                share = min(a[2], b[2]) / (a[2] + b[2])
                pairs.append((round(distance, 7), share, a, b))
        if not pairs:
            return np.array(sorted(points))
        a, b = min(pairs)[2:]
        flux = a[2] + b[2]
        merged = tuple((a[2] * a[i] + b[2] * b[i]) / flux for i in range(2))
        points = [p for p in points if p not in (a, b)] + [(*merged, flux)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@both(merging.count_cells, merging.list_cells)
def test_cells_are_counted_and_listed(count_cells: Any, list_cells: Any, dtype: Any) -> None:
    maps = np.random.default_rng(8).normal(size=(5, 37)).astype(dtype)
    maps[2] = -1.0
    maps[4, 3], count = 0.5, np.empty(5, np.int64)
    assert count_cells(maps, 0.5, count)
    image, cell = np.nonzero(maps >= 0.5)
    np.testing.assert_array_equal(count, np.bincount(image, minlength=5))
    cells = np.empty(cell.size, np.int64)
    list_cells(maps, 0.5, count, cells)
    np.testing.assert_array_equal(cells, cell)
    for value in (np.nan, np.inf, -np.inf):
        maps[1, 36] = value
        assert not count_cells(maps, 0.5, count)


@pytest.mark.parametrize("radius", [0.2, 0.35, 1.0])
@pytest.mark.parametrize("factor", [3, 4, 5])
@both(merging.merge_closest)
def test_merging_equals_the_naive_loop(merge_closest: Any, factor: int, radius: float) -> None:
    rng = np.random.default_rng(factor)
    sizes = [0, 1, 2, 12, 25]
    groups = []
    for size in sizes:
        cells = rng.permutation(36)[:size]
        groups.append(
            np.column_stack([cells // 6 / factor, cells % 6 / factor, rng.uniform(0.1, 9, size)])
        )
    mass = np.concatenate(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    merge_closest(mass, starts, radius)
    for g, group in enumerate(groups):
        rows = mass[starts[g] : starts[g + 1]]
        left = rows[rows[:, 2] > 0]
        left = left[np.lexsort(left.T[::-1])]
        np.testing.assert_allclose(left, merge_twin(group, radius).reshape(-1, 3), atol=1e-9)
        assert left[:, 2].sum() == pytest.approx(group[:, 2].sum())


@both(merging.merge_closest)
def test_merging_does_not_depend_on_the_order_of_rows(merge_closest: Any) -> None:
    rng = np.random.default_rng(9)
    cells = rng.permutation(49)[:30]
    mass = np.column_stack([cells // 7 / 3, cells % 7 / 3, rng.uniform(0.1, 9, 30)])
    answers = []
    for order in (np.arange(30), rng.permutation(30), np.arange(30)[::-1]):
        rows = mass[order]
        merge_closest(rows, np.array([0, 30]), 0.5)
        rows = rows[rows[:, 2] > 0]
        answers.append(rows[np.lexsort(rows.T)])
    assert 2 < len(answers[0]) < 15
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-12)
    np.testing.assert_allclose(answers[2], answers[0], atol=1e-12)


# --- metrics ------------------------------------------------------------------------------------


@both(claims.sort_rows)
def test_rows_in_the_order_of_their_keys(sort_rows: Any) -> None:
    rng = np.random.default_rng(1)
    tied = rng.integers(-3, 4, 60).astype(float)
    wide = np.concatenate([rng.normal(size=40) * 10.0 ** rng.integers(-300, 300, 40), [5e-324]])
    ends = np.array([np.inf, 0.0, -np.inf, -5e-324, 1.0, np.finfo(float).max])
    for values in (tied, wide, ends, rng.normal(235, 8, 50), np.ones(5), np.zeros(0)):
        first = rng.permutation(values.size)
        rows, other = first.copy(), np.empty(values.size, np.int64)
        keys = (values + 0.0).view(np.int64)
        swapped = sort_rows(keys, rows, other, np.empty(2**claims.BITS, np.int64))
        want = first[np.argsort(values[first], kind="stable")]
        np.testing.assert_array_equal(other if swapped else rows, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@both(claims.find_nearest)
def test_nearest_truths(find_nearest: Any, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    frame, true_frame = rng.integers(0, 6, 40), rng.integers(0, 5, 30)  # frame 5 has no truth
    (y, x), (true_y, true_x) = (rng.integers(0, 4, (2, n)).astype(dtype) for n in (40, 30))
    true_frame.sort()
    first = np.searchsorted(true_frame, np.arange(7))
    nearest, distance = np.empty(40, np.int64), np.empty(40, dtype)
    find_nearest(frame, y, x, first, true_y, true_x, nearest, distance)
    apart = np.hypot(y[:, None] - true_y, x[:, None] - true_x)
    apart[frame[:, None] != true_frame] = np.inf
    none = np.isinf(apart).all(axis=1)
    assert 0 < none.sum() < 40
    np.testing.assert_array_equal(nearest, np.where(none, -1, apart.argmin(axis=1)))
    np.testing.assert_allclose(distance, apart.min(axis=1), rtol=1e-6)


@both(claims.claim)
def test_the_first_detection_near_a_truth_claims_it(claim: Any) -> None:
    nearest = np.array([2, 2, 0, -1, 2, 0])
    distance = np.array([0.3, 0.1, 0.2, np.inf, 0.05, 0.1])
    limits, hit = np.array([0.1, 0.25, 1.0]), np.empty((3, 6), bool)
    order = np.arange(6)
    claim(order, nearest, distance, limits, np.empty(4), hit)
    assert [np.flatnonzero(row).tolist() for row in hit] == [[1, 5], [1, 2], [0, 2]]
    claim(order[::-1].copy(), nearest, distance, limits, np.empty(4), hit)
    assert [np.flatnonzero(row).tolist() for row in hit] == [[0, 1], [0, 1], [0, 1]]
    claim(order[3:4], nearest, distance, np.array([1.0]), np.empty(4), hit[:1, :1])
    assert not hit[0, 0]


@both(claims.envelope)
def test_the_envelope_of_precision(envelope: Any) -> None:
    hits = np.random.default_rng(9).random((4, 30)) < np.array([[0.3], [0.9], [0.0], [1.0]])
    for hit in [*hits, np.zeros(0, bool)]:
        largest = np.full(hit.size + 1, np.nan)
        n = envelope(hit, largest)
        precision = [hit[: k + 1].mean() for k in range(hit.size)]
        want = [max(precision[k:]) for k in np.flatnonzero(hit)]
        np.testing.assert_array_equal(largest[:n], want)
