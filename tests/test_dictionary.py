"""The sub-pixel grid and the dictionary on it, against matrices built cell by cell."""

import functools
import itertools
import pickle
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import coo_array
from scipy.sparse.linalg import lsqr, svds

import csunmix as cu
from csunmix.psf import PSF

SHAPE = (5, 7)


def _kernel(oversampling: int, shape: tuple[int, int]) -> npt.NDArray[np.floating[Any]]:
    dy, dx = ((np.arange(k) - (k - 1) / 2) / oversampling for k in shape)
    return np.asarray(cu.GaussianPSF(sigma_x=0.8, sigma_y=0.5).kernel(dy[:, None], dx))


class MovedGaussian(PSF):
    """A user's own PSF, with no symmetry at all."""

    def kernel(self, dy: npt.ArrayLike, dx: npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
        return cu.GaussianPSF(0.6).kernel(np.asarray(dy) - 0.3, np.asarray(dx) + 0.2)

    def kernel_gradient(self, dy: Any, dx: Any) -> Any:
        return cu.GaussianPSF(0.6).kernel_gradient(np.asarray(dy) - 0.3, np.asarray(dx) + 0.2)


PSFS: dict[str, PSF] = {
    "gaussian": cu.GaussianPSF(0.5),
    "anisotropic": cu.GaussianPSF(sigma_x=0.9, sigma_y=0.4),
    "airy": cu.AiryPSF(1.6),
    "sampled": cu.SampledPSF(_kernel(3, (16, 21)), oversampling=3),
    "own": MovedGaussian(),
}
FACTORS = (1, 2, 3, 4, 7)
EVERY_DICTIONARY = pytest.mark.parametrize(
    ("name", "factor", "normalised"), list(itertools.product(PSFS, FACTORS, (False, True)))
)
EVERY_PSF = pytest.mark.parametrize("psf", PSFS.values(), ids=PSFS.keys())


def centres(n: int, c: int) -> list[float]:
    """Positions of the cells by the formula of the published maps."""
    return [(i - (c - 1) / 2) / c for i in range(n * c)]


@functools.cache
def cell_by_cell(name: str, c: int) -> npt.NDArray[np.floating[Any]]:
    """The dense dictionary: the response to a target in every cell."""
    y, x = np.array(list(itertools.product(centres(SHAPE[0], c), centres(SHAPE[1], c)))).T
    return PSFS[name].response(y, x, SHAPE).reshape(y.size, -1).T


# Grid


@pytest.mark.parametrize("factor", FACTORS)
def test_cells_tile_the_pixels(factor: int) -> None:
    grid = cu.SubpixelGrid((3, 4), factor)
    assert grid.map_shape == (3 * factor, 4 * factor)
    np.testing.assert_allclose(grid.y, centres(3, factor), atol=1e-15)
    np.testing.assert_allclose(grid.x, centres(4, factor), atol=1e-15)
    # half a cell before the first centre the first pixel begins
    assert grid.x[0] - 0.5 / factor == pytest.approx(-0.5)
    assert grid.x[-1] + 0.5 / factor == pytest.approx(3.5)
    # the cells of a pixel lie around its centre
    np.testing.assert_allclose(grid.x.reshape(4, factor).mean(axis=1), range(4), atol=1e-14)
    assert (3.0 in grid.x) == (factor % 2 == 1)


@pytest.mark.parametrize("factor", FACTORS)
def test_position_and_cell_undo_each_other(factor: int) -> None:
    grid = cu.SubpixelGrid((3, 4), factor)
    i, j = np.indices(grid.map_shape)
    y, x = grid.position(i, j)
    np.testing.assert_array_equal(y[:, 0], grid.y)
    np.testing.assert_array_equal(x[0], grid.x)
    rng = np.random.default_rng(0)
    near = rng.uniform(-0.49, 0.49, (2, *grid.map_shape)) / factor
    np.testing.assert_array_equal(grid.cell(y + near[0], x + near[1]), (i, j))
    np.testing.assert_array_equal(grid.cell(-0.5 - 0.9 / factor, 4.0), (-1, grid.cell(0, 4)[1]))
    assert grid.cell(0.0, 0.0)[0].dtype == np.int64


def test_grid_refuses_what_is_no_position() -> None:
    grid = cu.SubpixelGrid((3, 4), 3)
    with pytest.raises(ValueError, match=r"^y must be finite"):
        grid.cell(np.nan, 1.0)
    with pytest.raises(TypeError, match=r"^x must hold real numbers"):
        grid.cell(1.0, "1")


# The dictionary


@EVERY_DICTIONARY
def test_dense_matrix_has_the_response_at_every_cell(
    name: str, factor: int, normalised: bool
) -> None:
    expected = cell_by_cell(name, factor)
    if normalised:
        expected = expected / np.linalg.norm(expected, axis=0)
    dictionary = cu.Dictionary(PSFS[name], SHAPE, factor, normalised=normalised)
    assert dictionary.separable == (name in ("gaussian", "anisotropic"))
    np.testing.assert_allclose(dictionary.to_dense(), expected, atol=1e-13)


@EVERY_DICTIONARY
def test_forward_and_adjoint(name: str, factor: int, normalised: bool) -> None:
    d = cu.Dictionary(PSFS[name], SHAPE, factor, normalised=normalised)
    dense, rng = d.to_dense(), np.random.default_rng(1)
    assert d.shape == dense.shape == (35, 35 * factor**2)
    x, r = rng.normal(size=(3, *d.map_shape)), rng.normal(size=(3, *d.image_shape))
    image = (x.reshape(3, -1) @ dense.T).reshape(r.shape)
    back = (r.reshape(3, -1) @ dense).reshape(x.shape)
    np.testing.assert_allclose(d.forward(x), image, atol=1e-12)
    np.testing.assert_allclose(d.adjoint(r), back, atol=1e-12)
    assert cu.dot_test(d.forward, d.adjoint, d.map_shape, d.image_shape)
    assert cu.dot_test(d.forward, d.adjoint, (2, 3, *d.map_shape), (2, 3, *d.image_shape), rng=7)


@EVERY_DICTIONARY
def test_norms_and_flux(name: str, factor: int, normalised: bool) -> None:
    d = cu.Dictionary(PSFS[name], SHAPE, factor, normalised=normalised)
    dense = d.to_dense()
    np.testing.assert_allclose(d.norms.ravel(), np.linalg.norm(dense, axis=0), rtol=1e-12)
    if normalised:
        np.testing.assert_allclose(d.norms, 1.0, rtol=1e-12)
    # one target of flux 230, whatever the scale of the atoms
    plain = cu.Dictionary(PSFS[name], SHAPE, factor)
    flux = np.zeros(d.map_shape)
    flux[1, 2] = 230.0
    x = flux * plain.norms if normalised else flux
    np.testing.assert_allclose(d.forward(x), plain.forward(flux), atol=1e-11)
    np.testing.assert_allclose(d.to_flux(x), flux, rtol=1e-12)
    assert d.to_flux(x.astype(np.float32)).dtype == np.float32
    for dtype in (np.float32, np.float64, np.int64):
        coefficients = x.astype(dtype)
        sparse = d.to_flux(coo_array(coefficients))
        assert sparse.dtype == (np.float64 if dtype == np.int64 else dtype)
        np.testing.assert_array_equal(sparse.toarray(), d.to_flux(coefficients))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("factor", [1, 3, 4])
@EVERY_PSF
def test_gram_and_lipschitz(psf: PSF, factor: int, normalised: bool) -> None:
    d = cu.Dictionary(psf, SHAPE, factor, normalised=normalised)
    dense = d.to_dense()
    np.testing.assert_allclose(np.kron(*d.gram), dense.T @ dense, atol=1e-12)
    largest = np.linalg.norm(dense, 2) ** 2
    assert d.lipschitz == pytest.approx(largest, rel=1e-12)


def test_facts_of_the_benchmarks_dictionary() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (11, 11), 3)
    dense = d.to_dense()
    assert d.lipschitz == pytest.approx(8.587, abs=5e-4)
    assert np.linalg.matrix_rank(dense) == 121
    assert [a.shape for a in d.factors] == [(11, 33), (11, 33)]
    unit = cu.Dictionary(cu.GaussianPSF(0.5), (11, 11), 3, normalised=True).factors[1]
    coherence = (unit[:, 1:] * unit[:, :-1]).sum(axis=0)
    assert coherence[3:-3].max() == pytest.approx(0.94, abs=5e-3)
    assert coherence[[0, -1]] == pytest.approx([0.99] * 2, abs=5e-3)
    assert d.norms[0, 0] == pytest.approx(0.34, abs=5e-3)
    assert d.norms.max() == pytest.approx(0.52, abs=5e-3)


def test_target_centred_on_a_pixel() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (11, 11), 3)
    x = np.zeros(d.map_shape)
    x[d.grid.cell(4.0, 6.0)] = 100.0
    image = d.forward(x)
    assert np.unravel_index(image.argmax(), image.shape) == (4, 6)
    assert image[4, 6] == pytest.approx(46.6, abs=0.05)


def test_lam_max() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), SHAPE, 3)
    images = np.random.default_rng(2).normal(size=(4, 2, *SHAPE))
    expected = [[(d.to_dense().T @ image.ravel()).max() for image in row] for row in images]
    np.testing.assert_allclose(d.lam_max(images), expected, rtol=1e-12)
    assert d.lam_max(images[0, 0]).shape == ()
    assert d.lam_max(-np.ones(SHAPE)) == 0.0
    assert d.lam_max(np.zeros(SHAPE)) == 0.0
    np.testing.assert_allclose(d.lam_max(3 * images), 3 * d.lam_max(images), rtol=1e-12)
    with pytest.raises(ValueError, match=r"^images must be finite"):
        d.lam_max(np.full(SHAPE, np.nan))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("data", ["plain", "weighted", "censored", "both"])
def test_zero_is_optimal_from_lam_max_on(positive: bool, data: str) -> None:
    rng = np.random.default_rng(8)
    d = cu.Dictionary(cu.GaussianPSF(0.5), SHAPE, 2)
    images = rng.normal(-1.0, 3.0, (3, *SHAPE))
    images[0, 2, 3] = -40.0  # what a bound below zero hides
    given: dict[str, Any] = {}
    if data in ("weighted", "both"):
        given["weights"] = rng.uniform(0, 2, SHAPE) * (rng.random(SHAPE) < 0.7)
    if data in ("censored", "both"):
        given["censored"] = (images > 3) | (images < -30)
    solver = cu.ActiveSet if positive else cu.FISTA
    largest = d.lam_max(images, positive=positive, **given)
    for image, lam, mask in zip(images, largest, given.pop("censored", [None] * 3), strict=True):
        for scale, zero in ((1 + 1e-7, True), (1 - 1e-4, False)):
            solve = solver(lam=scale * lam, positive=positive, tol=1e-12).solve
            assert (not solve(d, image, censored=mask, **given).x.any()) == zero


def test_lam_max_of_what_does_not_fit() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), SHAPE, 2)
    image = np.ones(SHAPE)
    with pytest.raises(ValueError, match=r"^weights of shape \(2,\) does not fit"):
        d.lam_max(image, weights=[1.0, 2.0])
    with pytest.raises(TypeError, match=r"^censored must be an array of bool"):
        d.lam_max(image, censored=np.zeros(SHAPE))
    with pytest.raises(TypeError, match=r"^positive must be True or False"):
        d.lam_max(image, positive="yes")  # type: ignore[arg-type]


@EVERY_PSF
def test_linear_and_batched(psf: PSF) -> None:
    d = cu.Dictionary(psf, SHAPE, 2)
    x, z = np.random.default_rng(3).normal(size=(2, 3, 2, *d.map_shape))
    np.testing.assert_allclose(d.forward(2 * x - z), 2 * d.forward(x) - d.forward(z), atol=1e-12)
    batch = d.forward(x)
    back = d.adjoint(batch)
    assert batch.shape == (3, 2, *SHAPE)
    assert back.shape == x.shape
    for k in np.ndindex(3, 2):
        np.testing.assert_allclose(batch[k], d.forward(x[k]), atol=1e-14)
        np.testing.assert_allclose(back[k], d.adjoint(batch[k]), atol=1e-13)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", ["gaussian", "anisotropic", "airy", "sampled"])
def test_flips_and_transposition(name: str, factor: int) -> None:
    psf = PSFS[name]
    d = cu.Dictionary(psf, SHAPE, factor)
    x = np.random.default_rng(4).normal(size=d.map_shape)
    image = d.forward(x)
    for axis in (0, 1):
        np.testing.assert_allclose(d.forward(np.flip(x, axis)), np.flip(image, axis), atol=1e-12)
    turned: PSF = psf
    if isinstance(psf, cu.GaussianPSF):
        turned = cu.GaussianPSF(sigma_x=psf.sigma_y, sigma_y=psf.sigma_x)
    elif isinstance(psf, cu.SampledPSF):
        turned = cu.SampledPSF(psf.values.T, oversampling=psf.oversampling)
    across = cu.Dictionary(turned, SHAPE[::-1], factor)
    np.testing.assert_allclose(across.forward(x.T), image.T, atol=1e-12)


@EVERY_PSF
def test_float32_stays_float32(psf: PSF) -> None:
    d = cu.Dictionary(psf, SHAPE, 3, normalised=True)
    x = np.random.default_rng(5).uniform(size=d.map_shape)
    image = d.forward(x.astype(np.float32))
    assert image.dtype == d.adjoint(image).dtype == np.float32
    assert d.lam_max(image).dtype == np.float32
    np.testing.assert_allclose(image, d.forward(x), rtol=1e-5)
    assert d.forward(x.astype(np.float16)).dtype == np.float64
    assert d.forward(np.ones(d.map_shape, int)).dtype == np.float64


@EVERY_PSF
def test_any_memory_layout_and_inputs_left_alone(psf: PSF) -> None:
    d = cu.Dictionary(psf, SHAPE, 3)
    x = np.random.default_rng(6).normal(size=(2, *d.map_shape))
    expected = d.forward(x)
    wide = np.repeat(x, 2, axis=-1)
    layouts = (wide[..., ::2], np.asfortranarray(x), x.astype(">f8"), np.ma.masked_array(x))
    for layout in layouts:
        kept = layout.copy()
        layout.flags.writeable = False
        np.testing.assert_allclose(d.forward(layout), expected, atol=1e-12)
        np.testing.assert_array_equal(layout, kept)
    image = expected.copy()
    image.flags.writeable = False
    np.testing.assert_allclose(d.adjoint(image), d.adjoint(expected.tolist()), atol=1e-13)
    # what the dictionary hands out does not change it
    d.to_dense()[:] = 0.0
    np.testing.assert_array_equal(d.forward(x), expected)
    with pytest.raises(ValueError, match="read-only"):
        d.factors[0][:] = 0.0


def test_separable_dictionary_stays_small() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (512, 512), 3)
    x = np.zeros(d.map_shape)
    x[d.grid.cell(200.0, 311.0)] = 1000.0
    tracemalloc.start()
    image = d.forward(x)
    back = d.adjoint(image)
    assert d.norms.shape == back.shape == x.shape
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20  # the matrix would take 4.5 TiB
    assert image.sum() == pytest.approx(1000.0)
    assert image[200, 311] == pytest.approx(466, abs=0.5)
    with pytest.raises(ValueError, match=r"dense matrix of 262144 x 2359296 .* GiB"):
        d.to_dense()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 4, 11, 40])
def test_bands_leave_out_nothing_that_counts(n: int, factor: int, normalised: bool) -> None:
    psf = cu.GaussianPSF(sigma_y=0.5, sigma_x=1.3)
    d = cu.Dictionary(psf, (n, n + 3), factor, normalised=normalised)
    for band, cells, axis in zip(d.bands, (d.grid.y, d.grid.x), ("y", "x"), strict=True):
        whole = psf.axis_response(cells, band.n, axis).T  # type: ignore[arg-type]
        if normalised:
            whole = whole / np.linalg.norm(whole, axis=0)
        np.testing.assert_allclose(band.to_dense(), whole, rtol=0, atol=1e-14)
        np.testing.assert_allclose(band.norms, np.linalg.norm(whole, axis=0), rtol=1e-14)
        largest = np.linalg.norm(whole, 2) ** 2
        assert band.largest_eigenvalue == pytest.approx(largest, rel=1e-12)
    assert d.bands[0].values.shape[1] <= 10
    np.testing.assert_array_equal(d.across.to_dense(), d.bands[1].to_dense().T)
    assert d.largest_norm == pytest.approx(d.norms.max(), rel=1e-14)


class Shifted(cu.psf.SeparablePSF):
    """A response that lies to one side of its target."""

    def axis_kernel(self, d: Any, axis: Any) -> Any:
        return cu.GaussianPSF(0.4).axis_kernel(np.asarray(d) - 2.0, axis)

    def axis_kernel_gradient(self, d: Any, axis: Any) -> Any:
        return cu.GaussianPSF(0.4).axis_kernel_gradient(np.asarray(d) - 2.0, axis)


@pytest.mark.parametrize("psf", [cu.GaussianPSF(0.5), Shifted()], ids=["gaussian", "shifted"])
def test_large_images_are_worked_on_band_by_band(psf: PSF) -> None:
    d = cu.Dictionary(psf, (4, 120), 2, normalised=True)
    dense, rng = d.to_dense(), np.random.default_rng(1)
    x, r = rng.normal(size=(2, 3, *d.map_shape)), rng.normal(size=(2, 3, *d.image_shape))
    image, back = d.forward(x), d.adjoint(r)
    np.testing.assert_allclose(image, (x.reshape(2, 3, -1) @ dense.T).reshape(r.shape), atol=1e-12)
    np.testing.assert_allclose(back, (r.reshape(2, 3, -1) @ dense).reshape(x.shape), atol=1e-12)
    assert d.forward(x.astype(np.float32)).dtype == np.float32
    np.testing.assert_array_equal(d.forward(x[:, ::-1])[:, ::-1], image)
    assert cu.dot_test(d.forward, d.adjoint, d.map_shape, d.image_shape)


def test_nothing_dense_is_made_for_large_images() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (16, 4096), 3)
    image = np.zeros(d.image_shape)
    image[8, 1000] = 100.0
    cu.FISTA(lam=1.0, max_iter=1).solve(d, image)  # compiles
    tracemalloc.start()
    d = cu.Dictionary(cu.GaussianPSF(0.5), (16, 4096), 3)
    result = cu.FISTA(lam=1.0, max_iter=20).solve(d, image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * result.x.nbytes  # one factor alone would take 85 times as much
    assert result.x.sum() > 50


def test_dense_dictionary_refuses_what_does_not_fit() -> None:
    d = cu.Dictionary(cu.AiryPSF(0.95), (128, 128), 3)
    with pytest.raises(ValueError, match=r"18\.0 GiB .*use a separable PSF"):
        d.forward(np.zeros(d.map_shape))


@pytest.mark.parametrize("name", ["anisotropic", "airy"])
def test_linear_operator_serves_scipy(name: str) -> None:
    d = cu.Dictionary(PSFS[name], SHAPE, 2)
    operator = d.as_linear_operator()
    assert operator.shape == d.shape
    dense = d.to_dense()
    x = np.random.default_rng(8).normal(size=(d.shape[1], 3))
    np.testing.assert_allclose(operator @ x, dense @ x, atol=1e-12)
    largest = svds(operator, k=1, return_singular_vectors=False, v0=np.ones(d.shape[0]))
    assert largest[0] ** 2 == pytest.approx(d.lipschitz, rel=1e-9)
    image = d.forward(np.abs(x[:, 0]).reshape(d.map_shape))
    solution = lsqr(operator, image.ravel(), atol=1e-12, btol=1e-12, iter_lim=2000)[0]
    np.testing.assert_allclose(dense @ solution, image.ravel(), atol=1e-6)


def test_atom_that_no_pixel_sees_stays_zero() -> None:
    psf = cu.SampledPSF(np.ones((4, 4)), oversampling=10)  # 0.3 px wide
    d = cu.Dictionary(psf, (4, 4), 3, normalised=True)
    seen = np.zeros(d.map_shape, bool)
    seen[1::3, 1::3] = True
    np.testing.assert_allclose(d.norms, seen)
    np.testing.assert_array_equal(d.to_flux(np.ones(d.map_shape))[~seen], 1.0)
    assert np.isfinite(d.to_dense()).all()


def test_one_pixel() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (1, 1), 3)
    np.testing.assert_allclose(d.forward(np.ones((3, 3))), d.to_dense().sum())


def test_pickles_and_prints() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), SHAPE, 3, normalised=True)
    again = pickle.loads(pickle.dumps(d))
    np.testing.assert_array_equal(again.to_dense(), d.to_dense())
    assert repr(d) == (
        "Dictionary(GaussianPSF(sigma_x=0.5, sigma_y=0.5), shape=(5, 7), factor=3, normalised=True)"
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"factor": 0}, ValueError, "factor must be at least 1, got 0"),
        ({"factor": -1}, ValueError, "factor must be at least 1, got -1"),
        ({"factor": 2.5}, TypeError, "factor must be an integer, got 2.5"),
        ({"factor": 3.0}, TypeError, "factor must be an integer, got 3.0"),
        ({"factor": True}, TypeError, "factor must be an integer, got True"),
        ({"factor": "3"}, TypeError, "factor must be an integer, got '3'"),
        ({"factor": None}, TypeError, "factor must be an integer, got None"),
        ({"shape": (0, 5)}, ValueError, r"shape\[0\] must be at least 1"),
        ({"shape": (5, -2)}, ValueError, r"shape\[1\] must be at least 1"),
        ({"shape": (5, 2.0)}, TypeError, r"shape\[1\] must be an integer"),
        ({"shape": 11}, TypeError, r"shape must be a pair \(n_y, n_x\), got 11"),
        ({"shape": (3, 11, 11)}, ValueError, "shape must be a pair"),
        ({"shape": "ab"}, TypeError, r"shape\[0\] must be an integer, got 'a'"),
        ({"psf": 0.5}, TypeError, "psf must be of type PSF, got 0.5"),
        ({"psf": cu.GaussianPSF}, TypeError, "psf must be of type PSF"),
        ({"psf": None}, TypeError, "psf must be of type PSF"),
        ({"normalised": "yes"}, TypeError, "normalised must be True or False"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"psf": cu.GaussianPSF(0.5), "shape": (5, 7), "factor": 3} | change
    with pytest.raises(error, match=f"^{message}"):
        cu.Dictionary(**arguments)


def test_maps_and_images_of_the_wrong_shape() -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), SHAPE, 3)
    with pytest.raises(ValueError, match=r"^x must end in the image shape \(15, 21\), got"):
        d.forward(np.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"^images must end in the image shape \(5, 7\)"):
        d.adjoint(np.zeros((2, 7, 5)))
    with pytest.raises(ValueError, match=r"^x must have at least two axes"):
        d.to_flux(np.zeros(315))
    with pytest.raises(TypeError, match=r"^x must hold real numbers, got dtype complex128"):
        d.forward(np.zeros(d.map_shape, complex))


# The dot test itself


def test_dot_test_tells_adjoint_from_not() -> None:
    rng = np.random.default_rng(9)
    a = rng.normal(size=(4, 6))
    assert cu.dot_test(lambda u: a @ u, lambda v: a.T @ v, (6,), (4,))
    wrong = a.copy()
    wrong[2, 3] *= 1 + 1e-6
    assert not cu.dot_test(lambda u: a @ u, lambda v: wrong.T @ v, (6,), (4,))
    assert cu.dot_test(lambda u: a @ u, lambda v: wrong.T @ v, (6,), (4,), rtol=1e-4)
    assert not cu.dot_test(lambda u: a @ u, lambda v: -(a.T @ v), (6,), (4,))
    assert not cu.dot_test(lambda u: a @ u, lambda v: np.full(6, np.nan), (6,), (4,))
    # a map to zero has only one adjoint
    zero = np.zeros((4, 6))
    assert cu.dot_test(lambda u: zero @ u, lambda v: zero.T @ v, (6,), (4,))
    assert not cu.dot_test(lambda u: zero @ u, lambda v: a.T @ v, (6,), (4,))
