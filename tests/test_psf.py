"""Point spread functions against quadrature, finite differences and closed forms."""

import pickle
from typing import Any

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.special import jv

import csunmix as cu
from csunmix.psf import PSF, SeparablePSF

FIRST_ZERO_J1 = 3.8317059702075123


def sampled(psf: PSF, oversampling: int, shape: tuple[int, int]) -> cu.SampledPSF:
    """Samples of a kernel, their middle at the target."""
    dy, dx = ((np.arange(k) - (k - 1) / 2) / oversampling for k in shape)
    return cu.SampledPSF(psf.kernel(dy[:, None], dx), oversampling=oversampling)


PSFS: dict[str, PSF] = {
    "gaussian": cu.GaussianPSF(0.5),
    "gaussian-narrow": cu.GaussianPSF(0.2),
    "gaussian-anisotropic": cu.GaussianPSF(sigma_x=0.9, sigma_y=0.4),
    "airy-0.4": cu.AiryPSF(0.4),
    "airy-0.95": cu.AiryPSF(0.95),
    "airy-1.6": cu.AiryPSF(1.6),
    "airy-2.5": cu.AiryPSF(2.5),
    "sampled-1": sampled(cu.GaussianPSF(1.2), 1, (15, 15)),
    "sampled-3-even": sampled(cu.GaussianPSF(0.6), 3, (24, 26)),
    "sampled-4-anisotropic": sampled(cu.GaussianPSF(sigma_x=0.9, sigma_y=0.6), 4, (33, 49)),
}
EVERY_PSF = pytest.mark.parametrize("psf", PSFS.values(), ids=PSFS.keys())
OFFSETS = [(0.0, 0.0), (0.3, -0.7), (-0.5, 0.5), (1.2, 2.4), (3.1, 0.4)]


def profile(psf: PSF, y: float, x: float) -> float:
    """Intensity before the pixel integrates it, 1/px^2, written down a second time."""
    if isinstance(psf, cu.GaussianPSF):
        exponent = (y / psf.sigma_y) ** 2 + (x / psf.sigma_x) ** 2
        return float(np.exp(-exponent / 2) / (2 * np.pi * psf.sigma_x * psf.sigma_y))
    assert isinstance(psf, cu.AiryPSF)
    a = FIRST_ZERO_J1 / psf.radius
    v = a * np.hypot(y, x)
    return float(a**2 / (4 * np.pi) * ((2 * jv(1, v) / v) ** 2 if v > 0 else 1.0))


@pytest.mark.parametrize("name", [name for name in PSFS if not name.startswith("sampled")])
def test_kernel_is_the_profile_integrated_over_the_pixel(name: str) -> None:
    psf = PSFS[name]
    for dy, dx in OFFSETS:
        expected, error = dblquad(
            lambda x, y: profile(psf, y, x),
            dy - 0.5,
            dy + 0.5,
            dx - 0.5,
            dx + 0.5,
            epsabs=1e-11,
            epsrel=1e-11,
        )
        assert psf.kernel(dy, dx) == pytest.approx(expected, abs=1e-10 + error)


def test_gaussian_of_half_a_pixel_puts_0466_of_the_flux_into_its_pixel() -> None:
    image = cu.GaussianPSF(0.5).response(5.0, 5.0, (11, 11))
    assert image[5, 5] == pytest.approx(0.466, abs=5e-4)
    assert image.max() == image[5, 5]


@pytest.mark.parametrize("sigma", [{"sigma": 0.5}, {"sigma_x": 1.3, "sigma_y": 0.3}])
def test_gaussian_has_unit_volume(sigma: dict[str, float]) -> None:
    image = cu.GaussianPSF(**sigma).response(15.3, 14.9, (31, 31))
    assert image.sum() == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize("radius", [0.4, 0.95, 1.6, 2.5])
def test_airy_volume_lies_between_the_encircled_energies_of_the_window(radius: float) -> None:
    def encircled(r: float) -> float:  # Born & Wolf, eq. 8.5.18
        v = FIRST_ZERO_J1 * r / radius
        return float(1 - jv(0, v) ** 2 - jv(1, v) ** 2)

    half = 30.5
    volume = cu.AiryPSF(radius).response(30.0, 30.0, (61, 61)).sum()
    assert encircled(half) < volume < encircled(half * np.sqrt(2))
    assert encircled(half) > 0.98


@pytest.mark.parametrize("name", [name for name in PSFS if name.startswith("sampled")])
def test_sampled_psf_has_unit_volume(name: str) -> None:
    psf = PSFS[name]
    assert isinstance(psf, cu.SampledPSF)
    assert psf.values.sum() == pytest.approx(psf.oversampling**2, rel=1e-12)
    positions = 12 + np.linspace(-0.5, 0.5, 5)
    volume = psf.response(positions, positions[::-1], (25, 25)).sum(axis=(-2, -1))
    np.testing.assert_allclose(volume, 1.0, atol=2e-4)


@EVERY_PSF
def test_gradient_is_the_derivative_by_the_targets_position(psf: PSF) -> None:
    y, x, shape, h = np.array([3.2, 4.1]), np.array([4.9, 3.5]), (9, 10), 1e-5
    by_y, by_x = psf.gradient(y, x, shape)
    numerical_y = (psf.response(y + h, x, shape) - psf.response(y - h, x, shape)) / (2 * h)
    numerical_x = (psf.response(y, x + h, shape) - psf.response(y, x - h, shape)) / (2 * h)
    assert np.abs(by_y).max() > 1e-2
    np.testing.assert_allclose(by_y, numerical_y, atol=2e-8)
    np.testing.assert_allclose(by_x, numerical_x, atol=2e-8)


@EVERY_PSF
def test_kernel_gradient_is_the_derivative_by_the_offset(psf: PSF) -> None:
    dy, dx = np.array(OFFSETS[1:4]).T
    h = 1e-5
    by_dy, by_dx = psf.kernel_gradient(dy, dx)
    numerical_dy = (psf.kernel(dy + h, dx) - psf.kernel(dy - h, dx)) / (2 * h)
    numerical_dx = (psf.kernel(dy, dx + h) - psf.kernel(dy, dx - h)) / (2 * h)
    np.testing.assert_allclose(by_dy, numerical_dy, atol=2e-8)
    np.testing.assert_allclose(by_dx, numerical_dx, atol=2e-8)


@EVERY_PSF
def test_kernel_is_symmetric(psf: PSF) -> None:
    d = np.linspace(0, 2.5, 6)
    quarter = psf.kernel(d[:, None], d)
    np.testing.assert_allclose(psf.kernel(-d[:, None], d), quarter, atol=1e-12)
    np.testing.assert_allclose(psf.kernel(d[:, None], -d), quarter, atol=1e-12)
    by_dy, by_dx = psf.kernel_gradient(0.0, 0.0)
    np.testing.assert_allclose([by_dy, by_dx], 0.0, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "airy-0.4", "airy-1.6", "sampled-1"])
def test_round_psf_does_not_tell_rows_from_columns(name: str) -> None:
    psf = PSFS[name]
    image = psf.response(3.2, 4.9, (9, 10))
    np.testing.assert_allclose(psf.response(4.9, 3.2, (10, 9)), image.T, atol=1e-12)
    by_y, by_x = psf.gradient(3.2, 4.9, (9, 10))
    swapped = psf.gradient(4.9, 3.2, (10, 9))
    np.testing.assert_allclose(swapped, (by_x.T, by_y.T), atol=1e-12)


def test_sigma_x_widens_along_columns() -> None:
    image = cu.GaussianPSF(sigma_x=1.5, sigma_y=0.9).response(20.2, 19.7, (41, 41))
    r, c = np.indices(image.shape)
    # a box of one pixel has the variance 1/12
    assert (image * (c - 19.7) ** 2).sum() == pytest.approx(1.5**2 + 1 / 12, abs=1e-5)
    assert (image * (r - 20.2) ** 2).sum() == pytest.approx(0.9**2 + 1 / 12, abs=1e-5)
    assert (image * c).sum() == pytest.approx(19.7, abs=1e-5)
    assert (image * r).sum() == pytest.approx(20.2, abs=1e-5)


@pytest.mark.parametrize(
    ("gaussian", "oversampling", "shape", "tolerance"),
    [
        (cu.GaussianPSF(0.5), 3, (21, 21), 2e-3),
        (cu.GaussianPSF(0.5), 4, (33, 33), 5e-4),
        (cu.GaussianPSF(0.5), 4, (32, 30), 5e-4),
        (cu.GaussianPSF(sigma_x=0.9, sigma_y=0.5), 4, (33, 61), 5e-4),
        (cu.GaussianPSF(1.5), 1, (21, 21), 4e-3),
    ],
)
def test_sampled_psf_reproduces_what_it_was_sampled_from(
    gaussian: cu.GaussianPSF, oversampling: int, shape: tuple[int, int], tolerance: float
) -> None:
    psf = sampled(gaussian, oversampling, shape)
    y, x = np.random.default_rng(0).uniform(5, 6, (2, 20))
    peak = gaussian.kernel(0, 0)
    np.testing.assert_allclose(
        psf.response(y, x, (12, 12)), gaussian.response(y, x, (12, 12)), atol=tolerance * peak
    )
    slope = np.abs(gaussian.gradient(y, x, (12, 12))).max()
    np.testing.assert_allclose(
        psf.gradient(y, x, (12, 12)),
        gaussian.gradient(y, x, (12, 12)),
        atol=6 * tolerance * slope,
    )


def test_sampled_psf_goes_through_its_samples_and_is_zero_outside() -> None:
    values = np.random.default_rng(1).uniform(0.5, 1, (7, 8))
    psf = cu.SampledPSF(values, oversampling=2)
    np.testing.assert_allclose(psf.values, values * 4 / values.sum(), rtol=1e-12)
    dy, dx = (np.arange(7) - 3.0) / 2, (np.arange(8) - 3.5) / 2
    np.testing.assert_allclose(psf.kernel(dy[:, None], dx), psf.values, rtol=1e-12)
    assert psf.kernel(1.51, 0.0) == psf.kernel(0.0, -1.76) == 0.0
    assert psf.kernel_gradient(1.51, 0.0) == (0.0, 0.0)


def test_scale_of_the_samples_does_not_matter() -> None:
    values = np.random.default_rng(2).uniform(0, 1, (9, 9))
    np.testing.assert_allclose(
        cu.SampledPSF(700 * values, oversampling=3).values,
        cu.SampledPSF(values, oversampling=3).values,
        rtol=1e-12,
    )


def test_sampled_psf_keeps_its_own_read_only_samples() -> None:
    values = np.ones((5, 5))
    psf = cu.SampledPSF(values)
    values[:] = np.nan
    assert psf.values.sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="read-only"):
        psf.values[0, 0] = 1.0


@EVERY_PSF
def test_batches_of_targets(psf: PSF) -> None:
    shape = (6, 8)
    y, x = np.random.default_rng(3).uniform(0, 6, (2, 3, 2))
    single = psf.response(y[1, 0], x[1, 0], shape)
    assert single.shape == shape
    assert psf.response(y[0], x[0], shape).shape == (2, *shape)
    batch = psf.response(y, x, shape)
    assert batch.shape == (3, 2, *shape)
    assert batch.dtype == np.float64
    np.testing.assert_allclose(batch[1, 0], single, atol=1e-15)
    gradient = psf.gradient(y, x, shape)
    np.testing.assert_allclose(
        [part[1, 0] for part in gradient], psf.gradient(y[1, 0], x[1, 0], shape), atol=1e-14
    )
    along_a_row = psf.response(2.5, x[:, 0], shape)  # a number goes with every x
    np.testing.assert_allclose(along_a_row, psf.response(np.full(3, 2.5), x[:, 0], shape))


@EVERY_PSF
def test_image_is_a_cut_out_of_a_larger_one(psf: PSF) -> None:
    large = psf.response(7.2, 8.7, (20, 22))
    np.testing.assert_allclose(psf.response(3.2, 3.7, (9, 8)), large[4:13, 5:13], atol=1e-13)
    # a target outside the image still lights its border
    outside = psf.response(-0.8, 3.7, (9, 8))
    np.testing.assert_allclose(outside, large[8:17, 5:13], atol=1e-13)
    assert 0.0 < outside.sum() < 0.6


@EVERY_PSF
def test_target_far_away_leaves_nothing(psf: PSF) -> None:
    image = psf.response(1e4, -3e5, (5, 5))
    assert np.isfinite(image).all()
    assert np.abs(image).max() < 1e-9
    assert np.isfinite(psf.gradient(1e4, -3e5, (5, 5))).all()


@pytest.mark.parametrize("name", ["gaussian", "gaussian-anisotropic"])
def test_separable_response_is_an_outer_product(name: str) -> None:
    psf = PSFS[name]
    assert isinstance(psf, SeparablePSF)
    k_y, k_x = psf.axis_response(2.3, 6, "y"), psf.axis_response(4.1, 9, "x")
    g_y, g_x = psf.axis_gradient(2.3, 6, "y"), psf.axis_gradient(4.1, 9, "x")
    np.testing.assert_allclose(np.outer(k_y, k_x), psf.response(2.3, 4.1, (6, 9)), rtol=1e-14)
    by_y, by_x = psf.gradient(2.3, 4.1, (6, 9))
    np.testing.assert_allclose(np.outer(g_y, k_x), by_y, rtol=1e-14)
    np.testing.assert_allclose(np.outer(k_y, g_x), by_x, rtol=1e-14)


@pytest.mark.parametrize(
    "psf",
    [
        cu.GaussianPSF(0.5),
        cu.GaussianPSF(sigma_x=14.0, sigma_y=3.0),
        cu.GaussianPSF(20.0),
        cu.AiryPSF(1.5),
        cu.AiryPSF(8.0),
        cu.AiryPSF(13.0),
        sampled(cu.GaussianPSF(11.0), 1, (121, 101)),
    ],
    ids=repr,
)
def test_width_tells_the_norm_of_the_response(psf: PSF) -> None:
    norm = np.linalg.norm(psf.response(100.0, 100.0, (201, 201)))
    assert psf.width == pytest.approx(1 / (np.sqrt(4 * np.pi) * norm), rel=1e-6)


def test_width_of_a_wide_gaussian_is_its_own_with_the_pixel() -> None:
    for sigma in (4.0, 10.0, 40.0, 3000.0, 1e7):
        assert cu.GaussianPSF(sigma).width == pytest.approx(np.hypot(sigma, 12**-0.5), rel=1e-5)


def test_width_needs_few_samples_however_wide_the_psf(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def count(kind: type[PSF], name: str) -> None:
        kernel = getattr(kind, name)

        def counted(self: PSF, d: Any, *rest: Any) -> Any:
            sizes.append(np.size(d))
            return kernel(self, d, *rest)

        monkeypatch.setattr(kind, name, counted)

    count(cu.GaussianPSF, "axis_kernel")
    count(cu.AiryPSF, "kernel")
    assert cu.GaussianPSF(sigma_x=800.0, sigma_y=0.5).width == pytest.approx(21.1, rel=1e-2)
    assert cu.AiryPSF(5000.0).width == pytest.approx(100 * cu.AiryPSF(50.0).width, rel=1e-3)
    assert max(sizes) <= 1025


def test_width_of_a_psf_that_never_falls_off() -> None:
    class Flat(PSF):
        def kernel(self, dy: Any, dx: Any) -> Any:
            return np.ones(np.broadcast_shapes(np.shape(dy), np.shape(dx)))

        def kernel_gradient(self, dy: Any, dx: Any) -> Any:
            raise NotImplementedError

    assert 0 < Flat().width < 1


def test_rayleigh_unit() -> None:
    assert cu.GaussianPSF(0.5).rayleigh == pytest.approx(0.95)
    psf = cu.AiryPSF(1.2)
    assert psf.rayleigh == 1.2
    assert profile(psf, 0.0, psf.rayleigh) == pytest.approx(0.0, abs=1e-12)


def test_width_is_that_of_the_equivalent_gaussian() -> None:
    # blurred by the pixel, a box of variance 1/12
    assert cu.GaussianPSF(1.5).width == pytest.approx(np.sqrt(1.5**2 + 1 / 12), rel=1e-3)
    blurred_x, blurred_y = 1.8**2 + 1 / 12, 1.2**2 + 1 / 12
    oblong = cu.GaussianPSF(sigma_x=1.8, sigma_y=1.2)
    assert oblong.width == pytest.approx((blurred_x * blurred_y) ** 0.25, rel=1e-3)
    # all light in one pixel: the sum of squares is 1
    assert cu.GaussianPSF(0.01).width == pytest.approx(1 / np.sqrt(4 * np.pi))
    again = sampled(cu.GaussianPSF(1.5), 2, (41, 41))
    assert again.width == pytest.approx(cu.GaussianPSF(1.5).width, rel=1e-3)


def test_equal_by_value() -> None:
    assert cu.GaussianPSF(0.5) == cu.GaussianPSF(sigma_x=0.5, sigma_y=0.5)
    assert cu.GaussianPSF(0.5, sigma_x=0.7) == cu.GaussianPSF(sigma_x=0.7, sigma_y=0.5)
    assert len({cu.GaussianPSF(0.5), cu.GaussianPSF(np.float32(0.5)), cu.AiryPSF(1)}) == 2


@EVERY_PSF
def test_pickles(psf: PSF) -> None:
    psf.kernel(0.0, 0.0)
    again = pickle.loads(pickle.dumps(psf))
    assert again.kernel(0.2, 0.3) == psf.kernel(0.2, 0.3)


@pytest.mark.parametrize("bad", [0, 0.0, -0.5, np.nan, np.inf])
def test_widths_must_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^sigma must be (above 0|finite), got"):
        cu.GaussianPSF(bad)
    with pytest.raises(ValueError, match=r"^sigma_x must be"):
        cu.GaussianPSF(0.5, sigma_x=bad)
    with pytest.raises(ValueError, match=r"^sigma_y must be"):
        cu.GaussianPSF(sigma_x=0.5, sigma_y=bad)
    with pytest.raises(ValueError, match=r"^radius must be"):
        cu.AiryPSF(bad)
    with pytest.raises(ValueError, match=r"^oversampling must be"):
        cu.SampledPSF(np.ones((5, 5)), oversampling=bad)


@pytest.mark.parametrize("bad", ["0.5", True, 1j, [0.5], None])
def test_widths_must_be_numbers(bad: Any) -> None:
    with pytest.raises(TypeError, match="sigma"):
        cu.GaussianPSF(bad)
    with pytest.raises(TypeError, match="radius must be a real number"):
        cu.AiryPSF(bad)
    with pytest.raises(TypeError, match="oversampling must be a real number"):
        cu.SampledPSF(np.ones((5, 5)), oversampling=bad)


def test_gaussian_needs_both_widths() -> None:
    with pytest.raises(TypeError, match="needs sigma, or both sigma_x and sigma_y"):
        cu.GaussianPSF(sigma_x=0.5)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.ones(25), ValueError, "two axes"),
        (np.ones((2, 5, 5)), ValueError, "2-D array of at least 4 x 4"),
        (np.ones((3, 9)), ValueError, "2-D array of at least 4 x 4"),
        (np.zeros((5, 5)), ValueError, "sum to a positive number"),
        (-np.ones((5, 5)), ValueError, "sum to a positive number"),
        (np.full((5, 5), np.nan), ValueError, "finite"),
        (np.ones((5, 5), complex), TypeError, "real numbers"),
        (np.full((5, 5), "a"), TypeError, "real numbers"),
    ],
)
def test_samples_must_make_a_kernel(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^values must .*{message}"):
        cu.SampledPSF(values)


@EVERY_PSF
def test_positions_and_shape_are_checked(psf: PSF) -> None:
    for draw in (psf.response, psf.gradient):
        with pytest.raises(ValueError, match=r"^y must be finite, got 1 NaN.*\(1,\)"):
            draw([1.0, np.nan], [1.0, 1.0], (5, 5))
        with pytest.raises(ValueError, match=r"^x must be finite"):
            draw(1.0, np.inf, (5, 5))
        with pytest.raises(TypeError, match=r"^x must hold real numbers, got dtype <U1"):
            draw(1.0, "a", (5, 5))
        with pytest.raises(ValueError, match=r"y and x must broadcast, got shapes \(2,\) and \(3,"):
            draw([1.0, 2.0], [1.0, 2.0, 3.0], (5, 5))
        with pytest.raises(ValueError, match=r"^shape must be a pair"):
            draw(1.0, 1.0, (5, 5, 5))
        with pytest.raises(ValueError, match=r"^shape\[1\] must be at least 1"):
            draw(1.0, 1.0, (5, 0))
