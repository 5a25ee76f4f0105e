"""A network as an unmixer: with any callable and, where torch is installed, with a module."""

from __future__ import annotations

import doctest
import logging
import subprocess
import sys

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

import csunmix as cu
from csunmix import network
from csunmix.network import NetworkUnmixer
from csunmix.targets import Flag, from_grid, make_table

SETUP = cu.presets.csist_100k()
MIDDLE = np.zeros((3, 3))
MIDDLE[1, 1] = 1.0


@pytest.fixture(scope="module")
def images():
    made = cu.simulate(SETUP.psf, SETUP.sensor, SETUP.scene, shape=(11, 11), n=10, rng=1)
    return made.images


def plain(images):
    """A stand-in for a network: all light of a pixel in its middle cell, factor 3."""
    return np.kron(images, MIDDLE)


def expected(images):
    return from_grid(plain(images), factor=3, threshold=50)


def bare(table):
    return table[["frame", "y", "x", "flux"]]


# Any callable


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_it_equals_the_maps_read_by_hand(images, batch_size):
    unmix = NetworkUnmixer(plain, preprocess=np.asarray)
    table = unmix(images, batch_size=batch_size)
    assert_frame_equal(bare(table), bare(expected(images)))
    assert table.attrs["n_frames"] == 10
    assert table.attrs["seconds"] > 0
    assert "parameters" not in table.attrs
    assert list(table.columns) == list(cu.targets.COLUMNS)


@pytest.mark.parametrize(
    "layout",
    [
        lambda maps: maps.reshape(len(maps), -1),
        lambda maps: maps[:, None],
        lambda maps: (maps, "losses beside it"),
        lambda maps: [maps, maps],
        lambda maps: maps.astype(np.float32),
    ],
)
def test_every_layout_of_maps(images, layout):
    unmix = NetworkUnmixer(lambda a: layout(plain(a)), preprocess=np.asarray)
    assert_frame_equal(bare(unmix(images)), bare(expected(images)))


def test_the_first_axis_of_a_map_is_the_row():
    """The data sets' xc indexes the row of the image and the first axis of the map."""
    image = np.zeros((11, 11))
    image[2, 7] = 200.0
    unmix = NetworkUnmixer(lambda a: plain(a).reshape(len(a), -1), preprocess=np.asarray)
    assert unmix(image)[["y", "x"]].to_numpy().tolist() == [[2.0, 7.0]]
    oblong = np.zeros((1, 4, 9))
    oblong[0, 3, 8] = 200.0
    assert unmix(oblong)[["y", "x"]].to_numpy().tolist() == [[3.0, 8.0]]


def test_what_the_network_is_given(images):
    seen = []

    def watch(given):
        seen.append(given)
        return np.zeros((len(given), 1089))

    table = NetworkUnmixer(watch)(images, batch_size=4)
    assert [a.shape for a in seen] == [(4, 1, 11, 11), (4, 1, 11, 11), (2, 1, 11, 11)]
    assert {a.dtype for a in seen} == {np.dtype(np.float32)}
    assert len(table) == 0
    assert set(table.attrs["frame_flags"].values()) == {int(Flag.NO_TARGET)}
    NetworkUnmixer(watch, preprocess=lambda a: a.reshape(len(a), -1) / 255)(images)
    np.testing.assert_allclose(seen[-1], images.reshape(10, -1) / 255, rtol=1e-6)


def test_peak_rules_and_factors(images):
    unmix = NetworkUnmixer(
        lambda a: np.kron(a, np.ones((2, 2)) / 4),
        factor=2,
        peaks=cu.MassMerging(radius=0.8),
        preprocess=np.asarray,
    )
    grid = cu.SubpixelGrid((11, 11), 2)
    found = cu.MassMerging(radius=0.8).find(np.kron(images, np.ones((2, 2)) / 4), grid)
    assert_frame_equal(bare(unmix(images)), bare(make_table(*found)), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_images_that_are_not_finite_stay_out(images, batch_size, caplog):
    bad = images.astype(float)
    bad[[0, 7]] = np.nan
    bad[1, 2, 3] = np.inf

    def strict(given):
        assert np.isfinite(given).all()
        return plain(given)

    with caplog.at_level(logging.WARNING, "csunmix"):
        table = NetworkUnmixer(strict, preprocess=np.asarray)(bad, batch_size=batch_size)
    whole = expected(images)
    assert_frame_equal(
        bare(table), bare(whole[~whole["frame"].isin([0, 1, 7])]).reset_index(drop=True)
    )
    skipped = {k for k, flag in table.attrs["frame_flags"].items() if flag & Flag.NOT_FINITE}
    assert skipped == {0, 1, 7}
    assert "3 image(s) not finite, first frame 0: skipped" in caplog.text
    with pytest.raises(ValueError, match="images must be finite"):
        NetworkUnmixer(strict)(np.full((2, 11, 11), np.nan))


def test_maps_that_are_not_finite_are_flagged(images, caplog):
    def broken(given):
        maps = plain(given)
        maps[3, 0, 0] = np.nan
        return maps

    with caplog.at_level(logging.WARNING, "csunmix"):
        table = NetworkUnmixer(broken, preprocess=np.asarray)(images)
    assert 3 not in set(table["frame"])
    assert table.attrs["frame_flags"][3] == Flag.NOT_CONVERGED | Flag.NO_TARGET
    assert "1 map(s) of the network not finite, first frame 3" in caplog.text
    with pytest.raises(ValueError, match="maps of the network must be finite"):
        NetworkUnmixer(lambda a: np.full((len(a), 1089), np.nan))(images)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (np.zeros((10, 121)), ValueError, r"must be of shape \(10, 1089\), .* got \(10, 121\)"),
        (np.zeros((9, 1089)), ValueError, r"got \(9, 1089\)"),
        (np.zeros((10, 2, 33, 33)), ValueError, "10 image.s. of 11 x 11 px at factor 3"),
        (np.zeros(1089), ValueError, "must be of shape"),
        ([], ValueError, "must be of shape"),
        ({"maps": 1}, TypeError, "maps of the network must hold real numbers"),
        (None, TypeError, "maps of the network must hold real numbers"),
        (np.zeros((10, 1089), complex), TypeError, "maps of the network must hold real numbers"),
    ],
)
def test_answers_that_are_no_maps(images, answer, error, message):
    with pytest.raises(error, match=message):
        NetworkUnmixer(lambda a: answer)(images)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"network": 3}, TypeError, "network must be a callable, got 3"),
        ({"network": dict}, TypeError, "network must be a callable"),
        ({"factor": 0}, ValueError, "factor must be at least 1"),
        ({"factor": 3.0}, TypeError, "factor must be an integer"),
        ({"peaks": 50.0}, TypeError, r"peaks must have a method find\(\), got 50"),
        ({"preprocess": None}, TypeError, "preprocess must be a callable"),
    ],
)
def test_parts_of_the_wrong_kind(options, error, message):
    with pytest.raises(error, match=message):
        NetworkUnmixer(**({"network": plain} | options))


def test_bad_calls(images):
    unmix = NetworkUnmixer(plain, preprocess=np.asarray)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        unmix(images, batch_size=0)
    with pytest.raises(TypeError, match="progress must be True or False"):
        unmix(images, progress=1)
    with pytest.raises(ValueError, match="images must not be empty"):
        unmix(np.zeros((0, 11, 11)))
    with pytest.raises(TypeError, match="images must hold real numbers"):
        unmix(np.zeros((2, 11, 11), bool))


def test_mapped_stacks_and_many_axes(images, tmp_path):
    np.save(tmp_path / "i.npy", images.astype(np.uint8))
    mapped = np.load(tmp_path / "i.npy", mmap_mode="r").reshape(2, 5, 11, 11)
    unmix = NetworkUnmixer(plain, preprocess=np.asarray)
    assert_frame_equal(bare(unmix(mapped)), bare(expected(images)))


def test_progress_is_shown_when_asked(images, capsys):
    NetworkUnmixer(plain, preprocess=np.asarray)(images, progress=True)
    assert "10/10" in capsys.readouterr().err


def test_targets_at_the_border_are_flagged():
    image = np.zeros((11, 11))
    image[0, 4] = image[5, 5] = 100.0
    table = NetworkUnmixer(plain, preprocess=np.asarray)(image)
    assert table["flags"].tolist() == [int(Flag.BORDER), 0]


def test_torch_stays_out_without_a_module():
    code = (
        "import sys, numpy as np, csunmix as cu;"
        "cu.NetworkUnmixer(lambda a: np.zeros((len(a), 1089)))(np.zeros((2, 11, 11)));"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_examples_in_docstrings():
    assert doctest.testmod(network).failed == 0


# A module of torch


@pytest.fixture
def torch():
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture
def module(torch):
    """A small network with parts that behave otherwise in training."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 9, 3, padding=1),
        torch.nn.BatchNorm2d(9),
        torch.nn.Dropout(0.5),
        torch.nn.PixelShuffle(3),
        torch.nn.Flatten(),
    )


def test_module_equals_its_maps(torch, module, images):
    module.eval()
    with torch.no_grad():
        maps = module(torch.as_tensor(images, dtype=torch.float32)[:, None]).numpy()
    threshold = float(np.quantile(maps, 0.99))
    table = NetworkUnmixer(module, peaks=cu.EveryCell(threshold=threshold))(images, batch_size=3)
    wanted = from_grid(maps, factor=3, threshold=threshold)
    assert_frame_equal(bare(table), bare(wanted), rtol=1e-5)
    assert table.attrs["parameters"] == 1 * 9 * 9 + 9 + 9 + 9


def test_module_keeps_its_modes_and_learns_nothing(torch, module, images):
    module.train()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    unmix = NetworkUnmixer(module)
    first, second = unmix(images), unmix(images)
    assert_frame_equal(first, second)  # no dropout
    assert [part.training for part in module] == [True, False, True, True, True]
    assert module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(ValueError, match="images must be finite"):
        unmix(np.full((11, 11), np.nan))
    assert module.training


def test_module_is_given_what_its_parameters_are(torch, module, images):
    single = NetworkUnmixer(module, peaks=cu.EveryCell(threshold=5.0))
    double = NetworkUnmixer(module.double(), peaks=cu.EveryCell(threshold=5.0))
    assert_frame_equal(bare(double(images)), bare(single(images)))
    half = NetworkUnmixer(module.bfloat16(), peaks=cu.EveryCell(threshold=5.0))
    assert len(half(images)) > 0
    assert "parameters" in half(images).attrs


def test_module_without_parameters(torch, images):
    class Plain(torch.nn.Module):
        def forward(self, given):
            assert given.dtype == torch.float32
            assert torch.is_inference_mode_enabled()
            maps = torch.zeros(len(given), 11, 3, 11, 3)
            maps[:, :, 1, :, 1] = given[:, 0]
            return maps.reshape(len(given), -1), torch.zeros(1)

    table = NetworkUnmixer(Plain())(images)
    assert_frame_equal(bare(table), bare(expected(images)))
    assert table.attrs["parameters"] == 0


def test_function_that_answers_with_tensors(torch, images):
    weight = torch.tensor(1.0, requires_grad=True)
    unmix = NetworkUnmixer(lambda a: torch.as_tensor(plain(a)) * weight, preprocess=np.asarray)
    assert_frame_equal(bare(unmix(images)), bare(expected(images)))
