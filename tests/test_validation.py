"""Every kind of input that users pass by mistake: a clear error, or the right conversion."""

import ast
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import csunmix as cu
from csunmix._validation import (
    as_bool,
    as_finite,
    as_images,
    as_instance,
    as_integer,
    as_mask,
    as_number,
    as_range,
    as_real,
    as_rng,
    as_shape,
    as_weights,
    refuse_colours,
)

IMAGE = np.arange(12.0).reshape(3, 4)


# Arrays


@pytest.mark.parametrize(
    "value",
    [
        IMAGE,
        IMAGE.tolist(),
        tuple(map(tuple, IMAGE.tolist())),
        IMAGE.astype(int),
        IMAGE.astype(np.uint8),
        IMAGE.astype(">i2"),
        IMAGE.astype(np.float16),
        IMAGE.astype(np.longdouble),
        IMAGE.astype(">f8"),
        np.asfortranarray(IMAGE),
        np.repeat(IMAGE, 2, axis=1)[:, ::2],
        IMAGE[::-1, ::-1][::-1, ::-1],
        np.ma.masked_array(IMAGE),
        np.ma.masked_array(IMAGE, mask=np.zeros((3, 4), bool)),
        np.matrix(IMAGE),
        pd.DataFrame(IMAGE),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_images_of_any_real_kind_become_float64(value: Any) -> None:
    images = as_images(value)
    assert type(images) is np.ndarray
    assert images.dtype == np.float64
    assert images.dtype.isnative
    np.testing.assert_array_equal(images, IMAGE)


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_float32_stays_float32(dtype: str) -> None:
    images = as_images(IMAGE.astype(dtype))
    assert images.dtype == np.float32
    assert images.dtype.isnative
    np.testing.assert_array_equal(images, IMAGE)


@pytest.mark.parametrize("shape", [(11, 11, 3), (9, 7, 4), (2, 11, 11, 3)])
def test_colours_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """By every way off the grid; a dictionary knows the shape of its images."""
    with pytest.raises(ValueError, match=r"are these colours\?"):
        cu.ContinuousUnmixer(cu.GaussianPSF(sigma=0.5))(np.zeros(shape))
    with pytest.raises(ValueError, match=r"are these colours\?"):
        cu.count_test(np.zeros(shape), cu.GaussianPSF(sigma=0.5))
    if len(shape) == 3:
        np.save(tmp_path / "c.npy", np.zeros(shape))
        with pytest.raises(ValueError, match=r"c\.npy must end in .* are these colours\?"):
            cu.io.read_images(tmp_path / "c.npy")


@pytest.mark.parametrize("shape", [(11, 3), (1, 11, 3), (20, 1, 11, 4), (20, 4, 4), (3, 11, 11)])
def test_narrow_images_are_no_colours(shape: tuple[int, ...]) -> None:
    refuse_colours(shape)


def test_masks_are_no_images() -> None:
    with pytest.raises(TypeError, match=r"^images must hold real numbers, got dtype bool"):
        as_images(IMAGE > 5)
    np.testing.assert_array_equal(as_real(IMAGE > 5, "weights"), (IMAGE > 5).astype(float))


def test_nothing_is_copied_without_need() -> None:
    read_only = IMAGE.copy()
    read_only.flags.writeable = False
    assert as_images(read_only) is read_only
    assert not as_images(read_only).flags.writeable


def test_memory_mapped_images(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.stack([IMAGE, IMAGE]))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    images = as_images(mapped)
    assert np.shares_memory(images, mapped)
    np.testing.assert_array_equal(images[1], IMAGE)
    d = cu.Dictionary(cu.GaussianPSF(0.5), (3, 4), 2)
    np.testing.assert_array_equal(d.adjoint(mapped), d.adjoint(np.array(mapped)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (IMAGE.astype(complex), "must hold real numbers, got dtype complex128"),
        (IMAGE.astype(object), "must hold real numbers, got dtype object"),
        (IMAGE.astype(str), "must hold real numbers, got dtype <U"),
        (IMAGE.astype(bytes), "must hold real numbers, got dtype .S"),
        (IMAGE.astype("datetime64[s]"), "must hold real numbers, got dtype datetime64"),
        (IMAGE.astype("timedelta64[s]"), "must hold real numbers, got dtype timedelta64"),
        (np.zeros((3, 4), [("y", float)]), "must hold real numbers, got dtype"),
        ("image.png", "must hold real numbers, got dtype <U9"),
        (None, "must hold real numbers, got dtype object"),
        ({"image": IMAGE}, "must hold real numbers, got dtype object"),
        ([[1.0, None]], "must hold real numbers, got dtype object"),
        ([[2**70, 1]], "must hold real numbers, got dtype object"),
        ([[1.0, 2.0], [3.0]], "cannot be made into an array: .*inhomogeneous"),
        (sparse.eye_array(3), r"is a sparse array; give \w+\.toarray\(\)"),
        (np.ma.masked_less(IMAGE, 1), "is a masked array with masked entries; declare bad pixels"),
    ],
)
def test_what_is_no_array_of_real_numbers(value: Any, message: str) -> None:
    for check in (as_real, as_finite, as_images):
        with pytest.raises(TypeError, match=f"^background {message}"):
            check(value, "background")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    images = np.stack([IMAGE, IMAGE])
    images[1, 2, 0] = images[1, 2, 3] = bad
    message = r"must be finite, got 2 NaN or infinite value\(s\), the first at index \(1, 2, 0\)"
    with pytest.raises(ValueError, match=f"^images {message}"):
        as_images(images)
    with pytest.raises(ValueError, match=f"^flux {message}"):
        as_finite(images, "flux")
    np.testing.assert_array_equal(as_images(images, finite=False), images)
    np.testing.assert_array_equal(as_real(images, "images"), images)
    with pytest.raises(ValueError, match=r"^y must be finite, got 1 NaN or infinite value\(s\)$"):
        as_finite(bad, "y")


@pytest.mark.skipif(
    np.finfo(np.longdouble).max <= np.finfo(np.float64).max, reason="long double is double here"
)
def test_long_double_beyond_double_is_not_finite() -> None:
    with pytest.raises(ValueError, match=r"^images must be finite, got 1 NaN or infinite"):
        as_images(np.array([[1, np.finfo(np.longdouble).max]], np.longdouble))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5.0, r"must have at least two axes \(\.\.\., y, x\), got an array of shape \(\)"),
        (np.ones(9), r"must have at least two axes .* shape \(9,\)"),
        ([], r"must have at least two axes .* shape \(0,\)"),
        (np.ones((0, 3, 4)), r"must not be empty, got shape \(0, 3, 4\)"),
        (np.ones((3, 0)), r"must not be empty, got shape \(3, 0\)"),
        ([[]], r"must not be empty, got shape \(1, 0\)"),
        (np.ones((4, 3)), r"must end in the image shape \(3, 4\), got shape \(4, 3\)"),
        (np.ones((3, 4, 2)), r"must end in the image shape \(3, 4\), got shape \(3, 4, 2\)"),
    ],
)
def test_arrays_that_are_no_images(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^light {message}"):
        as_images(value, "light", shape=(3, 4))


def test_leading_axes_are_free() -> None:
    for shape in ((3, 4), (1, 3, 4), (5, 2, 3, 4)):
        assert as_images(np.ones(shape), shape=(3, 4)).shape == shape


# Numbers


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        np.float32(2),
        np.float16(2),
        np.longdouble(2),
        np.int8(2),
        np.uint64(2),
        np.array(2.0),  # what `numpy.load` makes of a number
        Fraction(2),
    ],
)
def test_numbers_of_any_real_kind(value: Any) -> None:
    number = as_number(value, "lam", minimum=2, above=1)
    assert type(number) is float
    assert number == 2.0


@pytest.mark.parametrize("value", [True, np.True_, "2", b"2", None, 2j, [2.0], Decimal(2), IMAGE])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^lam must be a real number, got "):
        as_number(value, "lam")
    with pytest.raises(TypeError, match=r"^n must be an integer, got "):
        as_integer(value, "n")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "must be finite, got nan"),
        (-np.inf, "must be finite, got -inf"),
        (10**400, "must be finite, got 1000"),
        (-0.25, "must be at least 0, got -0.25"),
    ],
)
def test_numbers_out_of_range(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^lam {message}"):
        as_number(value, "lam", minimum=0)
    with pytest.raises(ValueError, match=r"^sigma must be above 0, got 0"):
        as_number(0, "sigma", above=0)


def test_integers() -> None:
    for value in (3, np.int32(3), np.uint8(3), np.array(3)):
        assert type(as_integer(value, "n", minimum=3)) is int
    with pytest.raises(ValueError, match=r"^n must be at least 1, got 0"):
        as_integer(0, "n", minimum=1)
    for bad in (3.0, np.float64(3), np.array(3.0), np.array([3])):
        with pytest.raises(TypeError, match=r"^n must be an integer, got .*3"):
            as_integer(bad, "n")


def test_bools() -> None:
    for good in (True, np.True_, np.array(True)):
        assert as_bool(good, "rounding") is True
    for bad in (1, 0, "yes", None, np.array([True])):
        with pytest.raises(TypeError, match=r"^rounding must be True or False, got"):
            as_bool(bad, "rounding")


def test_sources_of_randomness() -> None:
    generator = np.random.default_rng(7)
    assert as_rng(generator) is generator
    for seed in (7, np.int64(7), np.array(7)):
        assert as_rng(seed).random() == np.random.default_rng(7).random()
    with pytest.raises(ValueError, match=r"^rng must be at least 0, got -1"):
        as_rng(-1)


@pytest.mark.parametrize("bad", ["a", None, 1.5, True, [1, 2], np.random.RandomState(0)])
def test_what_is_no_source_of_randomness(bad: Any) -> None:
    setup = cu.presets.seq_csist()
    parts, shape = (setup.psf, setup.sensor, setup.scene), setup.shape
    d = cu.Dictionary(setup.psf, shape, 2)
    for draw in (
        lambda: cu.simulate(*parts, shape=shape, n=1, rng=bad),
        lambda: cu.simulate_tracks(setup, 1, bad),
        lambda: setup.sensor.expose(IMAGE, bad),
        lambda: cu.dot_test(d.forward, d.adjoint, d.map_shape, shape, rng=bad),
    ):
        with pytest.raises(TypeError, match=r"^rng must be a numpy.random.Generator or an integer"):
            draw()


def test_weights_and_masks() -> None:
    assert as_weights(None, (2, 2)).tolist() == [[1, 1], [1, 1]]
    assert as_weights([True, False], (2, 2)).tolist() == [[1, 0], [1, 0]]
    assert as_mask(None, (2,), "censored").tolist() == [False, False]
    with pytest.raises(ValueError, match=r"^weights must not be negative, got -1"):
        as_weights([1, -1], (2,))
    with pytest.raises(ValueError, match=r"^weights of shape \(3,\) does not fit \(2,\)"):
        as_weights([1, 1, 1], (2,))
    with pytest.raises(TypeError, match=r"^censored must be an array of bool, got dtype int64"):
        as_mask([0, 1], (2,), "censored")


def test_instances() -> None:
    psf = cu.GaussianPSF(0.5)
    assert as_instance(psf, cu.PSF, "psf") is psf
    with pytest.raises(TypeError, match=r"^psf must be of type PSF, got 'gaussian'"):
        as_instance("gaussian", cu.PSF, "psf")


def test_pairs() -> None:
    assert as_shape([3, np.int64(4)]) == as_shape(np.ones((3, 4)).shape) == (3, 4)
    assert as_range((1, 2), "flux", minimum=1) == as_range(np.array([1, 2]), "flux", minimum=0)
    assert as_range((2, 2), "flux", minimum=0) == (2.0, 2.0)
    with pytest.raises(ValueError, match=r"^flux must be ordered \(low, high\), got \[2, 1\]"):
        as_range([2, 1], "flux", minimum=0)
    for bad in (5, None):
        with pytest.raises(TypeError, match=r"^shape must be a pair \(n_y, n_x\), got"):
            as_shape(bad)
        with pytest.raises(TypeError, match=r"^flux must be a pair \(low, high\), got"):
            as_range(bad, "flux", minimum=0)
    for short in ((), (1,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"^shape must be a pair"):
            as_shape(short)
        with pytest.raises(ValueError, match=r"^flux must be a pair"):
            as_range(short, "flux", minimum=0)


# The public faces name their own argument


@pytest.mark.parametrize(
    "bad",
    [
        np.full((11, 11), np.nan),
        np.ones((11, 11), complex),
        np.ones((11, 11), bool),
        np.full((11, 11), "a"),
        [1.0],
    ],
)
def test_public_functions_refuse_bad_images_by_name(bad: Any) -> None:
    d = cu.Dictionary(cu.GaussianPSF(0.5), (11, 11), 3)
    sensor = cu.Sensor(saturation=255)
    for function in (d.lam_max, sensor.variance, sensor.censored, sensor.valid):
        with pytest.raises((TypeError, ValueError), match=r"^images must"):
            function(bad)
    with pytest.raises((TypeError, ValueError), match=r"^light must"):
        sensor.expose(bad, 0)
    with pytest.raises((TypeError, ValueError), match=r"^values must"):
        cu.SampledPSF(bad)


def test_validation_stands_alone() -> None:
    import csunmix._validation as module

    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"__future__", "numbers", "typing", "numpy", "numpy.typing"}
