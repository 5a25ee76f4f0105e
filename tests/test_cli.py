"""The command line: what scripts rely on, run through `main` or, where it must be, a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from pandas.testing import assert_frame_equal
from PIL import Image

import csunmix as cu
from csunmix import _ahead, demo, methods, names, presets
from csunmix.cli import _FLAG_TEXT, main, output, unmix
from csunmix.cli import run as cli_run
from csunmix.cli import tables as cli_tables
from csunmix.cli.options import default_method, make_parser
from csunmix.datasets import read_csist, read_seq_csist, write_csist, write_seq_csist
from csunmix.io import read_targets
from csunmix.targets import COLUMNS, Flag, make_table, read_csv, write_csv
from csunmix.tracks import simulate_tracks

DATA = os.environ.get("CSUNMIX_DATA")
PRESET = presets.csist_100k()


@pytest.fixture(scope="module")
def scenes():
    """Some images of the main protocol, with truth."""
    return cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=(11, 11), n=12, rng=5)


@pytest.fixture
def stack_file(tmp_path, scenes):
    path = tmp_path / "images.npy"
    np.save(path, scenes.images)
    return path


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(cli_run, "MAX_BATCH", 5)
    monkeypatch.setattr(cli_run, "SECONDS", 0.0)  # they do not grow


@pytest.fixture
def run(capsys, monkeypatch):
    """Run `main`; give the exit code and what stands on standard output and error."""
    monkeypatch.setattr(_ahead, "missing", lambda *_: [])  # whatever the machine has compiled
    monkeypatch.delenv("CSUNMIX_DEBUG", raising=False)

    def run(*argv):
        argv = [str(arg) for arg in argv]
        if argv[:1] == ["unmix"] and "--method" not in argv:
            argv += ["--method", "active-set"]  # a quick one, where the method is not the matter
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Run `main` on bad input: exit code 2, one line, and no file more or less than before."""

    def refused(*argv):
        before = _tree(tmp_path)
        code, out, err = run(*argv)
        assert code == 2
        assert out == ""
        assert err.startswith("csunmix: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert _tree(tmp_path) == before
        return err

    return refused


def _tree(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def _write_pngs(folder, images, numbers=None):
    folder.mkdir()
    for k, image in zip(numbers or range(len(images)), images, strict=True):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"image_{k}.png")


# The program itself


def test_names_are_those_of_the_library():
    assert tuple(presets.PRESETS) == names.PRESETS
    assert set(_FLAG_TEXT) == {flag.name for flag in Flag}


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from csunmix.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "usage: csunmix" in loaded
    assert not {"numpy", "numba", "scipy", "pandas", "cvxpy"} & set(loaded.split())


def test_version_and_module_entry(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"csunmix {cu.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "csunmix", "nonsense"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nonsense" in done.stderr


def test_info(run):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["csunmix"] == cu.__version__
    assert lines["numpy"] == np.__version__
    assert lines["pandas"] == pd.__version__
    assert {"python", "scipy", "numba", "PyWavelets", "cvxpy", "pillow", "platform"} <= set(lines)


def test_info_says_what_is_missing(run, monkeypatch):
    from importlib import metadata

    def version(name):
        if name == "astropy":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    assert "astropy     not installed\n" in run("info")[1]


def test_closed_pipe_is_no_error_message():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "csunmix", "info"], stdout=gone, stderr=subprocess.PIPE
        )
    assert done.returncode == 141
    assert done.stderr == b""


def test_bugs_show_their_traceback(monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(demo, "run", broken)
    with pytest.raises(KeyError, match="a bug"):
        main(["demo", "--out", str(tmp_path / "demo")])


def test_debugging_lets_any_error_through(refused, monkeypatch, tmp_path, stack_file):
    argv = ["unmix", str(stack_file), "--out", str(tmp_path / "t.csv"), "--factor", "0"]
    argv += ["--method", "active-set"]
    refused(*argv)
    monkeypatch.setenv("CSUNMIX_DEBUG", "1")
    with pytest.raises(ValueError, match="factor must be at least 1"):
        main(argv)


@pytest.mark.parametrize("compiled", [False, True])
def test_first_run_says_that_it_compiles(compiled, run, monkeypatch, tmp_path, stack_file):
    ahead = []
    monkeypatch.setattr(_ahead, "missing", lambda *_: [] if compiled else [_ahead.Step(None)])
    monkeypatch.setattr(_ahead, "compile_ahead", ahead.extend)
    code, _, err = run("unmix", stack_file, "--out", tmp_path / "t.csv")
    assert code == 0
    assert ("csunmix: compiling kernels" in err) is not compiled
    assert bool(ahead) is not compiled


def test_library_prints_nothing():
    code = (
        "import csunmix as cu; s = cu.presets.csist_100k();"
        "optics = dict(psf=s.psf, shape=s.shape, sensor=s.sensor);"
        "images = cu.simulate(s.psf, s.sensor, s.scene, shape=s.shape, n=3, rng=0).images;"
        "[cu.grid_unmixer(m, **optics)(images) for m in ('active-set', 'omp')]"
    )
    argv = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["unmix"], "INPUT, --out"),
        (["unmix", "x.npy", "--out", "t.csv", "--method", "magic"], "--method"),
        (["unmix", "x.npy", "--out", "t.csv", "--lam", "much"], "--lam: must be a number or auto"),
        (["unmix", "x.npy", "--out", "t.csv", "--background", "all"], "or border"),
        (["unmix", "x.npy", "--out", "t.csv", "--cell", "--extent", "1"], "not allowed with"),
        (["unmix", "x.npy", "--out", "t.csv", "--psf", "f", "--psf-sigma", "1"], "not allowed"),
        (["unmix", "x.npy", "--out", "t.csv", "--flux", "1"], "--flux: expected 2 arguments"),
        (["unmix", "x.npy", "--out", "t.csv", "--fac", "3"], "unrecognized arguments: --fac"),
        (["simulate", "--preset", "csist-100k", "--n", "3", "--out", "d"], "--seed"),
        (["evaluate", "t.csv"], "--truth"),
        (["evaluate", "t.csv", "--truth", "d", "--rank-by", "size"], "--rank-by"),
    ],
)
def test_bad_usage(refused, argv, message):
    assert message in refused(*argv)


# unmix


def test_unmix_equals_the_library(run, tmp_path, scenes, stack_file):
    out = tmp_path / "targets.csv"
    code, text, err = run("unmix", stack_file, "--out", out)
    assert code == 0
    assert err == "csunmix: preset csist-100k, method active-set, factor 7\n"
    table = read_csv(out)
    assert list(table.columns) == [*COLUMNS, "image"]
    expected = cu.grid_unmixer(
        psf=PRESET.psf, shape=(11, 11), sensor=PRESET.sensor, prior=PRESET.prior
    )(scenes.images)
    pd.testing.assert_frame_equal(
        table[list(COLUMNS)], expected[list(COLUMNS)], check_exact=True, check_dtype=False
    )
    assert set(table["image"]) == {"images.npy"}
    assert text.startswith(f"12 images, {len(expected)} targets -> {out}\n")
    assert _tree(tmp_path) == [str(stack_file), str(out)]


def test_unmix_folder_in_natural_order_with_names(run, tmp_path, scenes):
    _write_pngs(tmp_path / "folder", scenes.images)  # image_10 and image_11 come last
    assert run("unmix", tmp_path / "folder", "--out", tmp_path / "t.csv")[0] == 0
    table = read_csv(tmp_path / "t.csv")
    assert table["frame"].nunique() == 12
    assert (table["image"] == [f"image_{k}.png" for k in table["frame"]]).all()
    np.save(tmp_path / "same.npy", scenes.images)
    assert run("unmix", tmp_path / "same.npy", "--out", tmp_path / "u.csv")[0] == 0
    pd.testing.assert_frame_equal(
        table.drop(columns="image"), read_csv(tmp_path / "u.csv").drop(columns="image")
    )


@pytest.mark.parametrize("as_option", [True, False])
def test_unmix_array_of_npz(run, tmp_path, scenes, as_option):
    path = tmp_path / "many.npz"
    np.savez(path, images=scenes.images[:2], others=scenes.images[2:])
    source = [path, "--array", "images"] if as_option else [f"{path}:images"]
    code, out, _ = run("unmix", *source, "--out", tmp_path / "t.csv")
    assert code == 0
    assert out.startswith("2 images, ")


def test_unmix_reads_mapped_input_batch_by_batch(
    run, tmp_path, stack_file, small_batches, monkeypatch
):
    seen = []

    def spy(self, images, **kwargs):
        seen.append((type(images), len(images)))
        return original(self, images, **kwargs)

    original = cu.GridUnmixer.__call__
    assert run("unmix", stack_file, "--out", tmp_path / "small.csv")[0] == 0
    monkeypatch.setattr(cu.GridUnmixer, "__call__", spy)
    assert run("unmix", stack_file, "--out", tmp_path / "spied.csv")[0] == 0
    assert seen == [(np.ndarray, 5), (np.ndarray, 5), (np.ndarray, 2)]


@pytest.mark.parametrize("method", ["active-set", "omp", "fista"])
def test_unmix_does_not_depend_on_the_batches(run, tmp_path, stack_file, monkeypatch, method):
    tables = []
    for batch in (100, 5, 1):
        monkeypatch.setattr(cli_run, "MAX_BATCH", batch)
        argv = ("unmix", stack_file, "--out", tmp_path / "t.csv", "--method", method)
        assert run(*argv, "--factor", 3)[0] == 0
        tables.append((tmp_path / "t.csv").read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_quick_batches_grow(run, tmp_path, stack_file, monkeypatch):
    seen, original = [], cli_run.State.add

    def add(self, table, attrs, size):
        seen.append(attrs["n_frames"])
        original(self, table, attrs, size)

    monkeypatch.setattr(cli_run, "MAX_BATCH", 2)
    monkeypatch.setattr(cli_run, "SECONDS", 1e9)
    monkeypatch.setattr(cli_run.State, "add", add)
    assert run("unmix", stack_file, "--out", tmp_path / "t.csv")[0] == 0
    assert seen == [2, 4, 6]


@pytest.mark.parametrize(
    ("size", "took", "following"),
    [(20, 0.1, 40), (20, 0.7, 20), (20, 5.0, 20), (1280, 0.1, 1280), (1280, 5.0, 640)],
)
def test_batches_are_of_about_a_second(size, took, following):
    assert cli_run._next_size(size, 20, took) == following


def test_large_images_come_in_small_batches(tmp_path):
    images = np.zeros((3, 100, 100))
    unmixer = cu.grid_unmixer(psf=PRESET.psf, shape=(100, 100), factor=15)
    stack = cu.io.ImageStack(images, ("a",) * 3)
    assert cli_run.Run(unmixer, stack, tmp_path / "t.csv", resume=False).batch == 1


def test_frames_without_targets_are_reported(run, tmp_path, scenes, small_batches):
    images = scenes.images.copy()
    images[0, 3, 4] = np.nan  # one bad image in a batch
    images[5:10, 0, 0] = np.inf  # a batch without a good one
    images[11] = 0.0  # nothing to see
    np.save(tmp_path / "images.npy", images)
    code, out, err = run("unmix", tmp_path / "images.npy", "--out", tmp_path / "t.csv")
    assert code == 0
    assert err.count("\n") == 1  # the log does not speak in between
    skipped = "NOT_FINITE: 6 images with NaN or infinite pixels, not unmixed"
    assert f"  {skipped}, frames 0, 5, 6, 7, 8, 9\n" in out
    assert "  NO_TARGET: 7 images without a target, first frame 0\n" in out
    assert set(read_csv(tmp_path / "t.csv")["frame"]) == {1, 2, 3, 4, 10}


def test_skipped_frames_are_named(run, tmp_path, small_batches):
    folder = tmp_path / "folder"
    folder.mkdir()
    for k in range(13):
        pixels = np.full((11, 11), 0.0 if k == 3 else np.nan, np.float32)
        Image.fromarray(pixels).save(folder / f"image_{k}.tif")
    out = run("unmix", folder, "--out", tmp_path / "t.csv")[1]
    first = [k for k in range(13) if k != 3][:10]
    listed = ", ".join(f"{k} (image_{k}.tif)" for k in first)
    assert f"not unmixed, frames {listed} and 2 more\n" in out


def test_zero_and_saturated_images_are_valid(run, tmp_path):
    np.save(tmp_path / "zero.npy", np.zeros((2, 11, 11)))
    code, out, _ = run("unmix", tmp_path / "zero.npy", "--out", tmp_path / "t.csv")
    assert code == 0
    assert out == (
        f"2 images, 0 targets -> {tmp_path / 't.csv'}\n"
        "  NO_TARGET: 2 images without a target, first frame 0\n"
    )
    assert (tmp_path / "t.csv").read_text() == ",".join([*COLUMNS, "image"]) + "\n"
    np.save(tmp_path / "full.npy", np.full((11, 11), 255.0))
    code, out, _ = run("unmix", tmp_path / "full.npy", "--out", tmp_path / "t.csv")
    assert code == 0
    assert "SATURATED: 1 image with saturated pixels, first frame 0" in out


def test_border_flag_is_counted_by_image(run, tmp_path):
    image = 200 * PRESET.psf.response([0.0, 6.0], [4.0, 6.0], (11, 11)).sum(axis=0)
    np.save(tmp_path / "i.npy", image)
    options = ["--psf-sigma", "0.5", "--threshold", "100"]
    code, out, _ = run("unmix", tmp_path / "i.npy", "--out", tmp_path / "t.csv", *options)
    assert code == 0
    assert "BORDER: 1 image with a target in the outermost ring of pixels" in out
    table = read_csv(tmp_path / "t.csv")
    np.testing.assert_allclose(table[["y", "x"]], [[0, 4], [6, 6]], atol=0.02)
    assert table["flags"].tolist() == [int(Flag.BORDER), 0]


@pytest.mark.parametrize("method", methods.GRID_METHODS)
def test_every_method_runs(run, tmp_path, method):
    image = 240 * PRESET.psf.response(5.0, 6.0, (11, 11))  # on the grid at every odd factor
    np.save(tmp_path / "i.npy", np.rint(image))
    code, _, err = run(
        *("unmix", tmp_path / "i.npy", "--out", tmp_path / "t.csv"),
        *("--method", method, "--factor", 3, "--n-nonzero", 1),
    )
    assert code == 0
    assert f"method {method}, factor 3" in err
    brightest = read_csv(tmp_path / "t.csv").nlargest(1, "flux")
    np.testing.assert_allclose(brightest[["y", "x"]], [[5, 6]], atol=0.05)
    np.testing.assert_allclose(brightest["flux"], 240, rtol=0.05)


def test_background_border(run, tmp_path):
    image = 240 * PRESET.psf.response(5.2, 5.9, (11, 11))
    np.save(tmp_path / "flat.npy", image)
    np.save(tmp_path / "raised.npy", image + 1000.0)
    options = ["--psf-sigma", 0.5]
    tables = []
    for name, level in (("flat", "border"), ("raised", "border"), ("raised", 1000)):
        out = tmp_path / "t.csv"
        argv = ["unmix", tmp_path / f"{name}.npy", "--out", out, *options, "--background", level]
        assert run(*argv)[0] == 0
        tables.append(read_csv(out))
    assert len(tables[0]) > 0
    for table in tables[1:]:
        np.testing.assert_allclose(table["flux"], tables[0]["flux"], rtol=1e-6)
        np.testing.assert_allclose(table[["y", "x"]], tables[0][["y", "x"]], atol=1e-6)


@pytest.mark.parametrize(
    ("assumed", "argv"),
    [(True, []), (False, ["--preset", "seq-csist", "--psf-sigma", 0.6])],
)
def test_images_brighter_than_the_preset_are_refused(run, refused, tmp_path, assumed, argv):
    path = tmp_path / "i.npy"
    np.save(path, 4000 * PRESET.psf.response([5.0, 6.0], [5.2, 4.0], (11, 11)))
    command = ["unmix", path, "--out", tmp_path / "t.csv"]
    err = refused(*command, *argv)
    assert f"{path}: its largest value, 1" in err
    assert "is above the saturation of preset" in err
    assert ("csist-100k, assumed for want of a PSF (255)" in err) is assumed
    assert ("--psf-sigma" in err) is assumed
    for mend in (["--no-saturation"], ["--saturation", 1000]):
        assert run(*command, *argv, *mend)[0] == 0
    assert run(*command, "--psf-sigma", 0.5)[0] == 0


@pytest.fixture
def warnings(run, tmp_path):
    """Run `unmix` on images; give its lines that warn."""

    def warnings(images, *argv):
        np.save(tmp_path / "i.npy", images)
        code, _, err = run("unmix", tmp_path / "i.npy", "--out", tmp_path / "t.csv", *argv)
        assert code == 0
        return [line for line in err.splitlines() if "warning" in line]

    return warnings


def test_wide_psf_and_background_are_warned_of(warnings):
    noise = np.random.default_rng(1).normal(0.0, 2.0, (5, 11, 11))
    images = 200 * cu.GaussianPSF(sigma=1.2).response(5.2, 4.8, (11, 11)) + noise
    sigma = ("--psf-sigma", 1.2)
    assert warnings(images, *sigma) == []
    assert warnings(images - noise, *sigma) == []  # the PSF's own tails, without noise
    assert warnings(images, "--psf-sigma", 5)[0].endswith("or --psf-oversampling, right?")
    images[:3] += 100.0
    images[4] = np.nan
    (line,) = warnings(images, *sigma)
    level = float(line.removeprefix("csunmix: warning: a background of ").split()[0])
    assert level == pytest.approx(100, abs=2)
    assert warnings(images, *sigma, "--background", "border") == []
    assert warnings(images, *sigma, "--background", 100) == []
    images[1:] = np.nan  # sampled are frames that are not finite, too
    assert len(warnings(images, *sigma)) == 1


def test_what_is_taken_for_granted_is_warned_of(warnings, scenes):
    larger = np.pad(scenes.images[:2], ((0, 0), (2, 2), (2, 2)))
    assert warnings(scenes.images[:2]) == []
    assert "11 x 11 px, these images have 15 x 15" in warnings(larger)[0]
    assert warnings(larger, "--preset", "csist-100k") == []
    assert warnings(larger, "--psf-sigma", 0.5) == []
    assert warnings(scenes.images[:2], "--count", 0, 2) == []  # on a grid
    none = ("--method", "continuous", "--count", 0, 2)
    assert "a count of 0 is not weighed" in warnings(scenes.images[:2], *none)[0]


@pytest.mark.parametrize(
    ("method", "kind"),
    [("continuous", cu.ContinuousUnmixer), ("posterior", cu.PosteriorUnmixer)],
)
def test_grid_free_methods_equal_the_library(run, tmp_path, scenes, method, kind):
    images = scenes.images[:3]
    np.save(tmp_path / "few.npy", images)
    out = tmp_path / "t.csv"
    argv = ("--method", method, "--seed", 3, "--factor", 5, "--count", 1, 4, "--psf-error", 0.02)
    argv += ("--n-effective", 20)
    code, _, err = run("unmix", tmp_path / "few.npy", "--out", out, *argv)
    assert code == 0
    assert f"method {method} does not use --factor\n" in err
    prior = replace(PRESET.prior, count=(1, 4))
    expected = kind(PRESET.psf, PRESET.sensor, prior, seed=3, psf_error=0.02, n_effective=20)(
        images
    )
    columns = list(cu.targets.COLUMNS)
    assert_frame_equal(cu.targets.read_csv(out)[columns], expected[columns], check_exact=True)


def test_refined_targets_equal_the_library(run, tmp_path, scenes, stack_file):
    out = tmp_path / "t.csv"
    argv = ("unmix", stack_file, "--out", out, "--min-separation", 0.4)
    code, _, err = run(*argv, "--refine")
    assert code == 0
    assert "does not use" not in err
    prior = replace(PRESET.prior, min_separation=0.4)
    expected = cu.grid_unmixer(
        psf=PRESET.psf, shape=(11, 11), sensor=PRESET.sensor, prior=prior, refine=True
    )(scenes.images)
    assert expected["y_err"].notna().any()
    columns = list(cu.targets.COLUMNS)
    assert_frame_equal(read_csv(out)[columns], expected[columns], check_exact=True)
    assert "does not use --min-separation\n" in run(*argv)[2]


@pytest.mark.parametrize(
    ("argv", "method"),
    [
        ([], "posterior"),
        (["--psf-sigma", "1"], "active-set"),
        (["--psf-sigma", "1", "--flux", "1", "2"], "posterior"),
        (["--no-flux-prior"], "active-set"),
        (["--method", "continuous"], "continuous"),
    ],
)
def test_the_most_accurate_method_is_the_default(argv, method):
    options = make_parser([unmix]).parse_args(["unmix", "a.npy", "--out", "b.csv", *argv])
    assert (options.method or default_method(options)) == method


def test_progress_bar_on_a_terminal_only(run, tmp_path, stack_file, monkeypatch):
    argv = ("unmix", stack_file, "--out", tmp_path / "t.csv")
    assert "12/12" not in run(*argv)[2]
    monkeypatch.setattr("csunmix.cli._on_terminal", lambda: True)
    assert "12/12" in run(*argv)[2]
    assert "12/12" not in run(*argv, "--no-progress")[2]


# Options to settings


@pytest.fixture
def asked(monkeypatch, run, tmp_path, stack_file):
    """What `unmix` with some options asks `grid_unmixer` for, and its first line."""

    def asked(*argv):
        seen = {}

        def spy(method, **settings):
            seen.update(settings, method=method)
            return original(method, **settings)

        original = methods.grid_unmixer
        with monkeypatch.context() as patch:
            patch.setattr(cu, "grid_unmixer", spy)
            code, _, err = run("unmix", stack_file, "--out", tmp_path / "t.csv", *argv)
        assert code == 0, err
        return seen, err

    return asked


def _fields(sensor):
    return sensor.read_noise, sensor.rounding, sensor.saturation


def test_default_is_the_preset(asked):
    settings, _ = asked()
    assert settings["psf"] == PRESET.psf
    assert settings["prior"] == PRESET.prior
    assert _fields(settings["sensor"]) == (0.0, True, 255.0)
    assert settings["method"] == "active-set"
    assert settings["background"] == 0.0
    left_open = ("factor", "lam", "n_nonzero", "peaks", "threshold")
    assert [settings[name] for name in left_open] == [None] * 5


def test_preset_by_name(asked):
    settings, err = asked("--preset", "seq-csist")
    assert settings["prior"] == presets.seq_csist().prior
    assert err.startswith("csunmix: preset seq-csist, method")


def test_options_override_the_preset(asked):
    settings, err = asked(
        *("--preset", "csist-100k", "--psf-sigma", 0.6, "--read-noise", 2, "--saturation", 200),
        *("--count", 1, 3, "--flux", 100, 300, "--min-separation", 0.3, "--cell"),
        *("--method", "omp", "--factor", 4, "--lam", 0.5, "--n-nonzero", 2),
        *("--peaks", "local-maxima", "--threshold", 70, "--background", 3, "--seed", 1),
    )
    assert settings["psf"] == cu.GaussianPSF(sigma=0.6)
    assert _fields(settings["sensor"]) == (2.0, True, 200.0)
    assert settings["prior"] == cu.Prior(
        count=(1, 3), flux=(100, 300), min_separation=0.3, cell=True
    )
    names = ("method", "factor", "lam", "n_nonzero", "peaks", "threshold", "background")
    assert [settings[k] for k in names] == ["omp", 4, 0.5, 2, "local-maxima", 70, 3]
    assert err.endswith("csunmix: preset csist-100k, PSF sigma 0.6 px, method omp, factor 4\n")


@pytest.mark.parametrize(
    ("argv", "idle"),
    [
        ("", ""),
        ("--lam 0 --threshold 40 --flux 100 300 --no-saturation --read-noise 0", "--read-noise"),
        ("--count 1 3 --n-nonzero 3 --cell", "--cell, --count, --n-nonzero"),
        ("--extent 2 --min-separation 0 --seed 0", "--extent, --min-separation, --seed"),
        ("--gain 2 --offset 3", "--gain"),
        ("--gain 2 --refine", ""),
        ("--offset 3 --background border", "--offset"),
        ("--gain 2 --offset 3 --background border --refine", ""),
        ("--method omp --gain 1 --offset 3 --background border", "--gain, --offset"),
        ("--psf-error 0.01 --refine --extent 2 --count 1 3", "--psf-error"),
        ("--n-effective 50", "--n-effective"),
        ("--lam 0 --threshold 40 --min-share 0 --flux 1 300 --read-noise 0 --refine", ""),
        ("--threshold 40 --min-share 0 --flux 100 300", "--flux"),
        ("--lam 1 --no-flux-prior --read-noise 1", ""),
        ("--lam auto --threshold 40 --read-noise 1", ""),
        ("--method omp --lam 1 --n-nonzero 3 --count 1 3", "--count, --lam"),
        ("--method omp --threshold 40 --min-share 0 --flux 100 300 --count 1 3", ""),
        ("--method matching-pursuit --n-nonzero 3 --read-noise 1", ""),
    ],
)
def test_options_without_effect_are_named(asked, argv, idle):
    method = "omp" if "omp" in argv else "active-set"
    line = f"csunmix: method {method} does not use {idle}\n" if idle else ""
    assert asked(*argv.split())[1].startswith(f"{line}csunmix: preset csist-100k, method ")


def test_parts_of_the_preset_can_be_taken_away(asked):
    settings, _ = asked("--no-saturation", "--no-flux-prior", "--extent", 2, "--lam", "auto")
    assert _fields(settings["sensor"]) == (0.0, True, None)
    assert settings["prior"] == cu.Prior(count=(1, 5), min_separation=0.494, extent=2.0)
    assert settings["lam"] == "auto"


def test_the_detector_counts_electrons_above_its_offset(asked):
    settings, _ = asked("--gain", 4, "--offset", 20)
    assert (settings["sensor"].gain, settings["sensor"].offset) == (4.0, 20.0)


def test_a_psf_alone_starts_from_a_neutral_setting(asked):
    settings, err = asked("--psf-sigma", 0.7, "--read-noise", 1.5)
    assert settings["psf"] == cu.GaussianPSF(sigma=0.7)
    assert _fields(settings["sensor"]) == (1.5, False, None)
    assert settings["prior"] == cu.Prior()
    assert err.startswith("csunmix: PSF sigma 0.7 px, method active-set")


def test_sampled_psf(asked, tmp_path):
    d = np.arange(-12, 13) / 4
    values = 3.0 * PRESET.psf.kernel(d[:, None], d)
    np.savez(tmp_path / "psf.npz", psf_os=values, images=np.zeros((4, 5)))
    settings, err = asked("--psf", tmp_path / "psf.npz", "--psf-oversampling", 4)
    assert isinstance(settings["psf"], cu.SampledPSF)
    y, x = 5.3, 4.8
    expected = PRESET.psf.response(y, x, (11, 11))
    np.testing.assert_allclose(settings["psf"].response(y, x, (11, 11)), expected, atol=2e-3)
    assert f"PSF {tmp_path / 'psf.npz'}, " in err
    assert asked("--psf", f"{tmp_path / 'psf.npz'}:psf_os")[0]["psf"].oversampling == 1


# Bad input of unmix


def _bad_array(tmp_path, values):
    path = tmp_path / "bad.npy"
    np.save(path, values)
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((11, 11), np.nan), "NaN or infinite pixels, the first in image 0 at row 0, col"),
        (np.where(np.eye(11) > 0, np.inf, 1.0)[::-1], "image 0 at row 0, column 10"),
        (np.full((3, 11, 11), np.nan), "and so has every other image"),
        (np.zeros((0, 11, 11)), "must not be empty, got shape (0, 11, 11)"),
        (np.zeros(11), "must have two axes (y, x) or three (n, y, x), got shape (11,)"),
        (np.zeros((11, 11), complex), "must hold real numbers, got dtype complex128"),
        (np.full((11, 11), "a"), "must hold real numbers, got dtype <U1"),
        (np.full((11, 11), None), "NPY file"),
    ],
)
def test_bad_arrays(refused, tmp_path, values, message):
    path = _bad_array(tmp_path, values)
    err = refused("unmix", path, "--out", tmp_path / "t.csv")
    assert message in err
    assert "bad.npy" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--psf-sigma", "-1"], "--psf-sigma must be above 0, got -1.0"),
        (["--psf-sigma", "nan"], "--psf-sigma must be finite"),
        (["--factor", "0"], "error: --factor must be at least 1, got 0"),
        (["--factor", "-3"], "error: --factor must be at least 1, got -3"),
        (["--lam", "-1"], "error: --lam must be at least 0, got -1.0"),
        (["--lam", "nan"], "error: --lam must be finite"),
        (["--read-noise", "-1"], "error: --read-noise must be at least 0"),
        (["--gain", "0"], "error: --gain must be above 0"),
        (["--offset", "300"], "error: --offset must be below the saturation 255, got 300"),
        (["--saturation", "0"], "error: --saturation must be above 0"),
        (["--threshold", "0"], "error: --threshold must be above 0"),
        (["--count", "3", "1"], "error: --count must be ordered"),
        (["--flux", "250", "220"], "error: --flux must be ordered"),
        (["--min-separation", "-1"], "error: --min-separation must be at least 0"),
        (["--extent", "0"], "error: --extent must be above 0"),
        (["--method", "omp", "--n-nonzero", "0"], "error: --n-nonzero must be at least 1"),
        (["--background", "nan"], "error: --background must be finite"),
        (["--psf-oversampling", "4"], "--psf-oversampling needs --psf"),
        (["--psf", "nowhere.npy"], "nowhere.npy: No such file"),
        (["--array", "images"], "images.npy: --array images is given"),
        (["--n-nonzero", "-3"], "error: --n-nonzero must be at least 1"),
        (["--method", "omp", "--lam", "-1"], "error: --lam must be at least 0"),
        (["--seed", "-3"], "error: --seed must be at least 0"),
        (["--factor", "100000"], "error: --factor must be at most"),
        (["--count", "-1", "2"], "error: --count must be at least 0"),
        (["--psf-error", "-1"], "error must be at least 0, got -1.0"),
        (["--n-effective", "-1"], "error: --n-effective must be at least 0, got -1"),
        (
            ["--method", "posterior", "--n-effective", "0"],
            "error: --n-effective must be at least 1",
        ),
        (["--method", "continuous", "--psf-error", "-1"], "error must be at least 0, got -1.0"),
        *(
            (["--method", method, *argv], message)
            for method in names.OFF_GRID_METHODS
            for argv, message in [
                (["--factor", "0"], "error: --factor must be at least 1, got 0"),
                (["--lam", "-1"], "error: --lam must be at least 0, got -1.0"),
                (["--n-nonzero", "0"], "error: --n-nonzero must be at least 1, got 0"),
                (["--threshold", "0"], "error: --threshold must be above 0, got 0.0"),
                (["--min-share", "2"], "error: --min-share must be at most 1, got 2.0"),
                (["--seed", "-3"], "error: --seed must be at least 0, got -3"),
            ]
        ),
    ],
)
def test_bad_options(refused, tmp_path, stack_file, argv, message):
    assert message in refused("unmix", stack_file, "--out", tmp_path / "t.csv", *argv)


@pytest.mark.parametrize(
    ("values", "oversampling", "message"),
    [
        (np.zeros((5, 5)), 4, "must sum to a positive number"),
        (np.full((5, 5), np.nan), 4, "must be finite"),
        (np.ones((3, 3)), 4, "at least 4 x 4 samples"),
        (np.ones((9, 9)), 0, "psf.npy: --psf-oversampling must be above 0"),
        (np.ones(9), 4, "must have two axes"),
    ],
)
def test_bad_psf(refused, tmp_path, stack_file, values, oversampling, message):
    np.save(tmp_path / "psf.npy", values)
    err = refused(
        *("unmix", stack_file, "--out", tmp_path / "t.csv"),
        *("--psf", tmp_path / "psf.npy", "--psf-oversampling", oversampling),
    )
    assert message in err
    assert "psf.npy" in err


def test_bad_files(refused, tmp_path, scenes):
    out = tmp_path / "t.csv"
    assert "nowhere: No such file" in refused("unmix", tmp_path / "nowhere", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "has no images" in refused("unmix", tmp_path / "empty", "--out", out)
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png" in refused("unmix", tmp_path / "text.png", "--out", out)
    (tmp_path / "words.txt").write_text("no picture")
    assert "unknown kind of file" in refused("unmix", tmp_path / "words.txt", "--out", out)

    folder = tmp_path / "folder"
    _write_pngs(folder, scenes.images[:3])
    whole = (folder / "image_2.png").read_bytes()
    (folder / "image_2.png").write_bytes(whole[: len(whole) // 2])
    assert "image_2.png" in refused("unmix", folder, "--out", out)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "image_2.png")
    assert "image_2.png" in refused("unmix", folder, "--out", out)
    np.savez(tmp_path / "two.npz", a=np.zeros((5, 5)), b=np.zeros((5, 5)))
    err = refused("unmix", tmp_path / "two.npz", "--out", out)
    assert "several arrays may be meant, name one with --array: " in err

    (tmp_path / "nan").mkdir()
    Image.fromarray(np.full((5, 5), np.nan, np.float32)).save(tmp_path / "nan" / "a.tif")
    assert f"{tmp_path / 'nan' / 'a.tif'}: has NaN" in refused(
        "unmix", tmp_path / "nan", "--out", out
    )


def test_bad_output_is_refused_before_the_work(refused, tmp_path, stack_file, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("must not read or unmix anything")

    monkeypatch.setattr(cu.io, "read_images", never)
    nowhere = tmp_path / "nowhere" / "t.csv"
    assert "there is no folder" in refused("unmix", stack_file, "--out", nowhere)
    assert "is a folder" in refused("unmix", stack_file, "--out", tmp_path)
    assert "there is no folder" in refused("unmix", stack_file, "--out", stack_file / "t.csv")
    assert "must end in .csv or .parquet" in refused(
        "unmix", stack_file, "--out", tmp_path / "t.xlsx"
    )
    assert "is a device" in refused("unmix", stack_file, "--out", os.devnull)
    assert "is the input" in refused("unmix", stack_file, "--out", stack_file)
    assert "is the input" in refused("unmix", f"{stack_file}:images", "--out", stack_file)
    psf = tmp_path / "psf.npy"
    psf.touch()
    assert "is the input" in refused("unmix", stack_file, "--out", psf, "--psf", psf)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written to" in refused("unmix", stack_file, "--out", tmp_path / "t.csv")


def test_a_failing_run_leaves_an_older_table_alone(refused, tmp_path, stack_file):
    (tmp_path / "t.csv").write_text("older")
    refused("unmix", stack_file, "--out", tmp_path / "t.csv", "--lam", "-1")
    assert (tmp_path / "t.csv").read_text() == "older"


def test_failure_in_the_first_batch_leaves_nothing(run, tmp_path, stack_file, stop_in_batch):
    stop_in_batch(1, MemoryError())
    code, _, err = run("unmix", stack_file, "--out", tmp_path / "t.csv")
    assert code == 2
    assert err.splitlines()[1:] == ["csunmix: error: MemoryError"]
    assert _tree(tmp_path) == [str(stack_file)]


# Runs that are stopped


@pytest.fixture
def stop_in_batch(monkeypatch):
    """Let the unmixer stop the program in the batch of that number."""

    def stop_in_batch(number, error=KeyboardInterrupt):
        calls = []

        def stopping(self, images, **kwargs):
            calls.append(len(images))
            if len(calls) == number:
                raise error
            return original(self, images, **kwargs)

        monkeypatch.setattr(cu.GridUnmixer, "__call__", stopping)

    original = cu.GridUnmixer.__call__
    return stop_in_batch


@pytest.fixture
def stopped(run, tmp_path, stack_file, small_batches, monkeypatch):
    """A whole run's table, and a run to other.csv that was stopped in its last of three batches."""
    assert run("unmix", stack_file, "--out", tmp_path / "whole.csv")[0] == 0
    original = cu.GridUnmixer.__call__

    def stopping(self, images, **kwargs):
        if len(images) == 2:
            raise KeyboardInterrupt
        return original(self, images, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cu.GridUnmixer, "__call__", stopping)
        code, out, err = run("unmix", stack_file, "--out", tmp_path / "other.csv")
    assert code == 130
    assert out == ""
    assert err.splitlines()[1:] == [
        "csunmix: interrupted: 10 of 12 images are done; the same command with --resume goes on"
    ]
    return tmp_path / "other.csv"


def test_interrupted_run_goes_on(run, tmp_path, stack_file, stopped, monkeypatch):
    assert not stopped.exists()
    seen = []
    original = cu.GridUnmixer.__call__

    def spy(self, images, **kwargs):
        seen.append(len(images))
        return original(self, images, **kwargs)

    monkeypatch.setattr(cu.GridUnmixer, "__call__", spy)
    code, out, err = run("unmix", stack_file, "--out", stopped, "--resume")
    assert code == 0
    assert seen == [2]
    assert err.endswith(", going on at image 10\n")
    assert stopped.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert _tree(tmp_path) == sorted(map(str, [stack_file, tmp_path / "whole.csv", stopped]))
    whole = run("unmix", stack_file, "--out", tmp_path / "whole.csv")[1]
    assert out == whole.replace("whole.csv", "other.csv")  # the summary counts all batches


def test_half_a_batch_is_cut_off(run, tmp_path, stack_file, stopped):
    with stopped.with_name("other.csv.part").open("ab") as part:
        part.write(b"11,5.5,5." * 1000)  # written, but not noted before the kill
    assert run("unmix", stack_file, "--out", stopped, "--resume")[0] == 0
    assert stopped.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_resume_may_be_stopped_again(run, tmp_path, stack_file, small_batches, stop_in_batch):
    out = tmp_path / "t.csv"
    for batch in (2, 2):
        stop_in_batch(batch)
        assert run("unmix", stack_file, "--out", out, "--resume")[0] == 130
    stop_in_batch(99)
    assert run("unmix", stack_file, "--out", out, "--resume")[0] == 0
    first = out.read_bytes()
    assert run("unmix", stack_file, "--out", out)[0] == 0
    assert out.read_bytes() == first


def test_without_resume_a_part_is_kept(run, refused, tmp_path, stack_file, stopped):
    part = stopped.with_name("other.csv.part")
    before = part.read_bytes()
    err = refused("unmix", stack_file, "--out", stopped)
    assert f"{part}: is of a stopped run; --resume goes on with it, remove it to start anew" in err
    assert part.read_bytes() == before
    stopped.with_name("other.csv.state.json").unlink()
    assert "remove it to start anew" in refused("unmix", stack_file, "--out", stopped)
    part.unlink()
    assert run("unmix", stack_file, "--out", stopped)[0] == 0
    assert stopped.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob("other.csv.*"))


def test_a_file_of_the_input_folder_is_not_replaced(run, refused, tmp_path, scenes):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(scenes.images[0].astype(np.uint8)).save(folder / "a.png")
    err = refused("unmix", folder, "--out", folder / "a.png")
    assert "is a file of the input" in err
    for _ in range(2):
        assert run("unmix", folder, "--out", folder / "new.csv")[0] == 0


def test_no_file_of_a_zarr_input_is_replaced(refused, tmp_path, scenes):
    zarr.create_group(str(tmp_path / "z.zarr")).create_array("images", data=scenes.images)
    for name in ("z.zarr/zarr.json", "z.zarr/images/zarr.json"):
        for given in ("z.zarr", "z.zarr:images"):
            err = refused("unmix", tmp_path / given, "--out", tmp_path / name)
            assert "is a file of the input" in err


def test_resume_without_a_part_is_a_plain_run(run, tmp_path, stack_file):
    assert run("unmix", stack_file, "--out", tmp_path / "t.csv", "--resume")[0] == 0
    assert (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["--lam", "0.5"],
        ["--no-saturation"],
        ["--factor", "5"],
        ["--psf-sigma", "0.5"],
        ["--background", "1"],
        ["--threshold", "45"],
    ],
)
def test_resume_refuses_other_settings(refused, stack_file, stopped, argv):
    err = refused("unmix", stack_file, "--out", stopped, "--resume", *argv)
    assert "other.csv.part: was begun with other settings" in err


def test_resume_refuses_another_psf_file(run, refused, tmp_path, stack_file, stop_in_batch):
    d = np.arange(-12, 13) / 4
    argv = ["unmix", stack_file, "--out", tmp_path / "t.csv", "--psf", tmp_path / "psf.npy"]
    argv += ["--psf-oversampling", 4, "--resume"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_run, "MAX_BATCH", 5)
        np.save(tmp_path / "psf.npy", cu.GaussianPSF(sigma=0.5).kernel(d[:, None], d))
        stop_in_batch(2)
        assert run(*argv)[0] == 130
        np.save(tmp_path / "psf.npy", cu.GaussianPSF(sigma=0.51).kernel(d[:, None], d))
        assert "other settings" in refused(*argv)


def test_resume_refuses_other_images(refused, stack_file, scenes, stopped):
    images = scenes.images.copy()
    images[3, 2, 2] += 1.0
    np.save(stack_file, images)
    err = refused("unmix", stack_file, "--out", stopped, "--resume")
    assert "was begun with other images" in err


@pytest.mark.parametrize("n", [3, 13])
def test_resume_refuses_another_number_of_images(refused, stack_file, scenes, stopped, n):
    np.save(stack_file, np.resize(scenes.images, (n, 11, 11)))
    err = refused("unmix", stack_file, "--out", stopped, "--resume")
    assert "was begun with other images" in err


def test_resume_knows_moved_images(run, tmp_path, stack_file, stopped):
    (tmp_path / "elsewhere").mkdir()
    moved = stack_file.rename(tmp_path / "elsewhere" / stack_file.name)
    assert run("unmix", moved, "--out", stopped, "--resume")[0] == 0
    assert stopped.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"frames": 10', '{"a": 1}', {"frames": 13}, {"frames": "10"}]
)
def test_resume_refuses_a_damaged_state(refused, stack_file, stopped, content):
    state = stopped.with_name("other.csv.state.json")
    if isinstance(content, dict):
        content = json.dumps(json.loads(state.read_text()) | content)
    state.write_text(content)
    assert "state.json: is damaged" in refused("unmix", stack_file, "--out", stopped, "--resume")


def test_resume_refuses_a_part_that_is_too_short(refused, stack_file, stopped):
    part = stopped.with_name("other.csv.part")
    part.write_bytes(part.read_bytes()[:-1])
    assert "is damaged" in refused("unmix", stack_file, "--out", stopped, "--resume")


def test_interrupt_in_the_first_batch_leaves_nothing(run, tmp_path, stack_file, stop_in_batch):
    stop_in_batch(1)
    code, _, err = run("unmix", stack_file, "--out", tmp_path / "t.csv")
    assert code == 130
    assert err.splitlines()[-1] == "csunmix: interrupted"
    assert _tree(tmp_path) == [str(stack_file)]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("moment", "noted"),
    [
        ("State.add", 5),  # in the second batch, which is written but not noted
        ("Run._write_state", 5),  # the same, one step on
        ("os.replace", 12),  # all is done but to give the table its name
    ],
)
def test_killed_run_goes_on(run, tmp_path, stack_file, small_batches, suffix, moment, noted):
    out = tmp_path / f"killed.{suffix}"
    script = f"""
import os, signal
from csunmix.cli import main, run
run.MAX_BATCH, run.SECONDS = 5, 0.0
owner, name = {moment!r}.split(".")
owner = getattr(run, owner)
original, calls = getattr(owner, name), []
def killed(*args):
    calls.append(args)
    if len(calls) == 2 if name != "replace" else args[1] == run.Path({str(out)!r}):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
setattr(owner, name, killed)
main(["unmix", {str(stack_file)!r}, "--out", {str(out)!r}, "--method", "active-set"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    state = json.loads((tmp_path / f"killed.{suffix}.state.json").read_text())
    part = (tmp_path / f"killed.{suffix}.part").read_bytes()
    assert state["frames"] == noted
    assert (0 < state["size"] < len(part)) is (noted == 5)
    code, _, err = run("unmix", stack_file, "--out", out, "--resume")
    assert code == 0
    assert err.endswith(f", going on at image {noted}\n")
    whole = tmp_path / f"whole.{suffix}"
    assert run("unmix", stack_file, "--out", whole)[0] == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("killed.*.*"))


# Parquet, Zarr


def test_parquet_holds_what_csv_holds(run, tmp_path, stack_file, small_batches, monkeypatch):
    monkeypatch.setattr(cli_tables, "_ROWS", 7)  # of several groups
    for suffix in ("csv", "parquet"):
        assert run("unmix", stack_file, "--out", tmp_path / f"t.{suffix}")[0] == 0
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups > 2
    from_csv, table = read_csv(tmp_path / "t.csv"), read_targets(tmp_path / "t.parquet")
    assert_frame_equal(table, from_csv, check_exact=True, check_dtype=False)
    assert table.attrs["n_frames"] == 12
    assert table.attrs["method"].startswith("GridUnmixer")
    assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table, check_dtype=False)


def test_parquet_does_not_depend_on_the_batches(run, tmp_path, stack_file, monkeypatch):
    monkeypatch.setattr(cli_tables, "_ROWS", 7)
    run("unmix", stack_file, "--out", tmp_path / "one.parquet")
    monkeypatch.setattr(cli_run, "MAX_BATCH", 5)
    run("unmix", stack_file, "--out", tmp_path / "many.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()


def test_parquet_without_targets(run, tmp_path, scenes):
    np.save(tmp_path / "zero.npy", np.zeros((3, 11, 11)))
    assert run("unmix", tmp_path / "zero.npy", "--out", tmp_path / "t.parquet")[0] == 0
    table = read_targets(tmp_path / "t.parquet")
    assert (len(table), table.attrs["n_frames"]) == (0, 3)
    assert list(table.columns) == [*COLUMNS, "image"]


def test_parquet_without_pyarrow_names_the_extra(refused, monkeypatch, tmp_path, stack_file):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    err = refused("unmix", stack_file, "--out", tmp_path / "t.parquet")
    assert "csunmix[parquet]" in err
    assert "t.parquet" in err


def test_cluster_without_distributed_names_the_extra(run, monkeypatch, tmp_path, stack_file):
    monkeypatch.setitem(sys.modules, "distributed", None)
    argv = ("unmix", stack_file, "--out", tmp_path / "t.csv", "--scheduler", "tcp://nowhere:1")
    code, _, err = run(*argv)
    assert code == 2
    assert "csunmix[dask]" in err.splitlines()[-1]
    assert _tree(tmp_path) == [str(stack_file)]


@pytest.mark.parametrize("group", [False, True])
def test_zarr_is_unmixed_as_it_lies(run, tmp_path, scenes, stack_file, small_batches, group):
    path = tmp_path / "images.zarr"
    create = zarr.create_group(path).create_array if group else partial(zarr.create_array, path)
    create(**{"name": "a"} if group else {}, data=scenes.images, chunks=(5, 11, 11))
    assert run("unmix", path, "--out", tmp_path / "z.csv")[0] == 0
    assert run("unmix", stack_file, "--out", tmp_path / "n.csv")[0] == 0
    z, n = read_csv(tmp_path / "z.csv"), read_csv(tmp_path / "n.csv")
    assert_frame_equal(z.drop(columns="image"), n.drop(columns="image"))
    assert set(z["image"]) == {path.name}


# simulate


def test_simulate_csist(run, tmp_path):
    argv = ("simulate", "--preset", "csist-100k", "--n", 30, "--seed", 3, "--out")
    code, out, _ = run(*argv, tmp_path / "new" / "a")
    assert code == 0
    data = read_csist(tmp_path / "new" / "a")
    assert out == f"30 images, {len(data.truth)} targets -> {tmp_path / 'new' / 'a'}\n"
    assert data.images.shape == (30, 11, 11)
    light = cu.render(PRESET.psf, data.truth, shape=(11, 11))
    np.testing.assert_array_equal(data.images, np.clip(np.rint(light), 0, 255))
    assert set(np.bincount(data.truth["frame"])) <= {1, 2, 3, 4, 5}
    assert data.truth["flux"].between(220, 250).all()
    assert b"<sigma>0.5</sigma>" in (tmp_path / "new/a/Annotations/CSO0.xml").read_bytes()

    run(*argv, tmp_path / "again")
    np.testing.assert_array_equal(read_csist(tmp_path / "again").images, data.images)
    run(*argv[:6], 4, "--out", tmp_path / "other")
    assert (read_csist(tmp_path / "other").images != data.images).any()


def test_simulate_count_model(run, tmp_path):
    argv = ("simulate", "--preset", "csist-100k", "--n", 300, "--seed", 3, "--count-model")
    ends = {}
    for model in ("uniform", "normal"):
        assert run(*argv, model, "--out", tmp_path / model)[0] == 0
        counts = np.bincount(read_csist(tmp_path / model).truth["frame"])
        ends[model] = np.isin(counts, [1, 5]).mean()
    assert 0.3 < ends["uniform"] < 0.5  # 2/5
    assert 0.07 < ends["normal"] < 0.2  # P(|N| > 1.5) = 0.134


def test_simulate_seq_csist(run, tmp_path):
    code, out, _ = run(
        *("simulate", "--preset", "seq-csist", "--n", 8, "--seed", 3, "--out", tmp_path / "seq")
    )
    assert code == 0
    assert out.startswith("160 images, ")
    data = read_seq_csist(tmp_path / "seq")
    assert data.frames_per_track == 20
    light = cu.render(PRESET.psf, data.truth, shape=(11, 11))
    np.testing.assert_array_equal(data.images, np.clip(np.rint(light), 0, 255))
    for _, track in data.truth.groupby("track"):
        paths = track[["y", "x", "flux"]].to_numpy().reshape(20, -1, 3)
        assert 2 <= paths.shape[1] <= 4
        step = np.diff(paths, axis=0)
        np.testing.assert_allclose(step, step[:1, :1].repeat(19, 0).repeat(paths.shape[1], 1))
        assert np.hypot(*step[0, 0, :2]) <= 0.3
        assert (step[..., 2] == 0).all()
        assert (paths[..., :2] >= 0.5).all()
        assert (paths[..., :2] <= 9.5).all()


def test_tracks_move_in_all_directions_at_all_speeds():
    preset = presets.seq_csist()
    truth = simulate_tracks(preset, 200, 0).truth
    first, last = truth[truth["frame"] % 20 == 0], truth[truth["frame"] % 20 == 19]
    travel = (last[["y", "x"]].to_numpy() - first[["y", "x"]].to_numpy()) / 19
    speed = np.hypot(*travel.T)
    assert speed.min() < 0.03
    assert speed.max() > 0.24
    quadrants = np.unique(np.sign(travel), axis=0)
    assert len(quadrants) == 4
    with pytest.raises(ValueError, match="n_tracks"):
        simulate_tracks(preset, 0, 0)


def test_simulate_refuses(refused, tmp_path):
    argv = ["simulate", "--preset", "csist-100k", "--n", "2", "--seed", "1", "--out"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "full: the folder is not empty" in refused(*argv, tmp_path / "full")
    assert "is a file" in refused(*argv, tmp_path / "full" / "mine.txt")
    assert "--n must be at least 1" in refused(*argv, tmp_path / "d", "--n", "0")
    assert "error: --seed must be at least 0" in refused(*argv, tmp_path / "d", "--seed", "-1")


@pytest.mark.parametrize("is_new", [True, False])
def test_new_folder_is_whole_or_not_there(tmp_path, is_new):
    path = tmp_path / "data"
    if not is_new:
        path.mkdir()
    before = _tree(tmp_path)

    def fill():
        with output.new_folder(path) as folder:
            (folder / "half.txt").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert _tree(tmp_path) == before
    with output.new_folder(path) as folder:
        (folder / "whole.txt").write_text("whole")
        assert not (path / "whole.txt").exists()
    assert _tree(tmp_path) == [str(path), str(path / "whole.txt")]


# evaluate


@pytest.fixture
def data_set(tmp_path, scenes):
    write_csist(tmp_path / "set", scenes.images, scenes.truth)
    return tmp_path / "set"


@pytest.fixture
def found(run, tmp_path, data_set):
    """Targets that `unmix` finds in `data_set`."""
    assert run("unmix", data_set / "cso_img", "--out", tmp_path / "targets.csv")[0] == 0
    return tmp_path / "targets.csv"


def test_compare_replaces_its_leaderboard(run, tmp_path, data_set, found, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder above the leaderboard is none of its inputs
    for _ in range(2):
        code, _, err = run("compare", "--truth", data_set, f"ours={found}", "--out", "lb")
        assert (code, err) == (0, "")
    assert (tmp_path / "lb" / "leaderboard.txt").exists()


def test_evaluate_equals_compare(run, tmp_path, data_set, found, scenes):
    report = tmp_path / "report.json"
    code, out, err = run("evaluate", found, "--truth", data_set, "--json", report)
    assert (code, err) == (0, "")
    expected = cu.compare({"x": read_csv(found)}, scenes.truth).iloc[0]
    content = json.loads(report.read_text())
    assert content["metrics"] == pytest.approx(expected.to_dict())
    assert content["n_images"] == 12
    assert content["n_targets"] == len(read_csv(found))
    assert content["n_true_targets"] == len(scenes.truth)
    for name, value in expected.items():
        assert any(
            line.startswith(name) and line.split()[-1] == f"{value:.3f}"
            for line in out.splitlines()
        )


def test_evaluate_truth_in_all_forms(run, tmp_path, data_set, found, scenes):
    write_csv(scenes.truth, tmp_path / "truth.csv")
    write_csist(tmp_path / "splits", scenes.images, scenes.truth, split="test")
    outputs = {
        run("evaluate", found, "--truth", truth)
        for truth in (data_set, tmp_path / "truth.csv", tmp_path / "splits")
    }
    assert len(outputs) == 1
    assert outputs.pop()[0] == 0


def test_evaluate_reads_parquet(run, tmp_path, data_set, found, scenes):
    parquet = tmp_path / "targets.parquet"
    assert run("unmix", data_set / "cso_img", "--out", parquet)[0] == 0
    scenes.truth.to_parquet(tmp_path / "truth.parquet")
    expected = run("evaluate", found, "--truth", data_set)[1].split()[2:]
    for truth in (data_set, tmp_path / "truth.parquet"):
        code, out, _ = run("evaluate", parquet, "--truth", truth)
        assert (code, out.split()[2:]) == (0, expected)


def test_evaluate_sequence(run, tmp_path):
    scenes = simulate_tracks(presets.seq_csist(), 1, 0)
    write_seq_csist(tmp_path / "seq", scenes.images, scenes.truth)
    truth = scenes.truth.assign(image=[f"image_{k}.png" for k in scenes.truth["frame"]])
    write_csv(truth, tmp_path / "perfect.csv")
    code, out, _ = run("evaluate", tmp_path / "perfect.csv", "--truth", tmp_path / "seq")
    assert code == 0
    assert out.splitlines()[1].split() == ["CSO-mAP", "100.000"]


def test_evaluate_without_targets_and_rank_by(run, tmp_path, scenes):
    write_csv(scenes.truth, tmp_path / "truth.csv")
    write_csv(make_table([], [], [], []), tmp_path / "none.csv")
    report = tmp_path / "r.json"
    argv = ("evaluate", tmp_path / "none.csv", "--truth", tmp_path / "truth.csv")
    assert run(*argv, "--json", report)[0] == 0
    metrics = json.loads(report.read_text())["metrics"]
    assert metrics["CSO-mAP"] == 0
    assert metrics["RMSE"] is None  # NaN is no JSON

    detections = scenes.truth.assign(score=np.linspace(0, 1, len(scenes.truth)))
    wrong = detections.assign(x=detections["x"] + 3.0, score=2.0, flux=1.0)
    write_csv(pd.concat([detections, wrong]), tmp_path / "scored.csv")
    argv = ("evaluate", tmp_path / "scored.csv", "--truth", tmp_path / "truth.csv")
    assert run(*argv, "--json", report)[0] == 0
    assert json.loads(report.read_text())["metrics"]["CSO-mAP"] == pytest.approx(100)
    assert run(*argv, "--json", report, "--rank-by", "score")[0] == 0
    ranked = json.loads(report.read_text())
    assert ranked["metrics"]["CSO-mAP"] < 60
    assert ranked["rank_by"] == "score"


@pytest.mark.parametrize(("argv", "n"), [([], 5), (["--n-images", 10], 10)])
def test_evaluate_counts_images_beyond_a_truth_table(run, refused, tmp_path, argv, n):
    write_csv(make_table([0, 2], [5.0, 5.0], [5.0, 5.0], [1.0, 1.0]), tmp_path / "truth.csv")
    found = make_table([0, 2, 4], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0], [1.0, 1.0, 2.0])
    write_csv(found, tmp_path / "found.csv")
    command = ("evaluate", tmp_path / "found.csv", "--truth", tmp_path / "truth.csv")
    assert run(*command, *argv, "--json", tmp_path / "r.json")[0] == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["n_images"] == n
    assert report["metrics"]["targets per frame"] == pytest.approx(3 / n)
    assert report["metrics"]["count accuracy"] == pytest.approx(100 * (n - 1) / n)
    assert report["metrics"]["CSO-mAP"] == pytest.approx(100 * 2 / 3)  # the false alarm is first
    assert "error: --n-images must be at least 5, got 4" in refused(*command, "--n-images", 4)


def test_evaluate_refuses_another_order_of_images(refused, run, tmp_path, data_set, scenes):
    order = sorted(range(12), key=str)  # image_10 before image_2: not the natural order
    images = scenes.images[order]
    np.save(tmp_path / "images.npy", images)
    assert run("unmix", tmp_path / "images.npy", "--out", tmp_path / "t.csv")[0] == 0
    assert run("evaluate", tmp_path / "t.csv", "--truth", data_set)[0] == 0  # names tell nothing
    table = read_csv(tmp_path / "t.csv")
    table["image"] = [f"image_{order[k]}.png" for k in table["frame"]]
    write_csv(table, tmp_path / "t.csv")
    err = refused("evaluate", tmp_path / "t.csv", "--truth", data_set)
    assert "frame 2 is image_10.png, which is frame 10 of the truth" in err
    truth = scenes.truth.assign(image=[f"image_{k}.png" for k in scenes.truth["frame"]])
    write_csv(truth, tmp_path / "truth.csv")
    assert "which is frame 10" in refused(
        "evaluate", tmp_path / "t.csv", "--truth", tmp_path / "truth.csv"
    )


def test_evaluate_refuses_images_of_another_set(refused, tmp_path, data_set, found):
    table = read_csv(found)
    table["image"] = [f"image_{k + 500}.png" for k in table["frame"]]
    write_csv(table, found)
    err = refused("evaluate", found, "--truth", data_set)
    assert "the truth has no image_500.png (frame 0)" in err


def test_evaluate_refuses(refused, run, tmp_path, data_set, found, scenes):
    assert "nowhere: No such file" in refused("evaluate", found, "--truth", tmp_path / "nowhere")
    assert "No such file" in refused("evaluate", tmp_path / "nowhere", "--truth", data_set)
    assert "is no data set" in refused("evaluate", found, "--truth", data_set / "cso_img")
    err = refused("evaluate", found, "--truth", data_set, "--rank-by", "score")
    assert err.startswith("csunmix: error: targets.csv: column 'score' is NaN")
    assert err.endswith("use --rank-by flux\n")
    assert "--n-images" in refused("evaluate", found, "--truth", data_set, "--n-images", 20)
    assert "is the input" in refused("evaluate", found, "--truth", data_set, "--json", found)
    no_folder = tmp_path / "no" / "r.json"
    assert "--json" in refused("evaluate", found, "--truth", data_set, "--json", no_folder)
    (tmp_path / "words.csv").write_text("a,b\n1,2\n")
    assert "words.csv" in refused("evaluate", tmp_path / "words.csv", "--truth", data_set)
    table = read_csv(found).drop(columns="image")
    table.loc[len(table) - 1, "frame"] = 12
    write_csv(table, tmp_path / "beyond.csv")
    report = tmp_path / "r.json"
    err = refused("evaluate", tmp_path / "beyond.csv", "--truth", data_set, "--json", report)
    assert "beyond.csv: has frame 12, the truth has 12 images" in err
    for split in ("train", "test"):
        write_csist(tmp_path / "splits", scenes.images, scenes.truth, split=split)
    assert "several data sets" in refused("evaluate", found, "--truth", tmp_path / "splits")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><object><name>Target</name></object></annotation>", "<coordinate>"),
        ("<annotation><object>", "not well-formed XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "refused"),
        ("", "not well-formed XML"),
    ],
)
def test_evaluate_refuses_bad_annotations(refused, data_set, found, content, message):
    (data_set / "Annotations" / "CSO7.xml").write_text(content)
    err = refused("evaluate", found, "--truth", data_set)
    assert message in err
    assert "CSO7.xml" in err


def test_evaluate_refuses_unpaired_files(refused, data_set, found):
    (data_set / "Annotations" / "CSO99.xml").write_text("<annotation/>")
    assert "CSO99.xml: has no image" in refused("evaluate", found, "--truth", data_set)
    (data_set / "Annotations" / "CSO99.xml").unlink()
    (data_set / "Annotations" / "CSO7.xml").unlink()
    assert "image_7.png: has no annotation" in refused("evaluate", found, "--truth", data_set)


# demo


@pytest.fixture
def short_demo(monkeypatch):
    monkeypatch.setattr(demo, "N_IMAGES", 25)


def test_demo(run, tmp_path, short_demo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    folder = Path("csunmix-demo")
    data, targets = read_csist(folder / "data"), read_csv(folder / "targets.csv")
    assert len(data.images) == 25
    expected = cu.compare({"x": targets}, data.truth).iloc[0]
    assert f"{expected['CSO-mAP']:.3f}" in out
    assert "DISTA-Net, ICCV 2025): DISTA-Net 46.74, ISTA 7.46" in out
    assert "not" not in out.split("picture")[1]
    with Image.open(folder / "demo.png") as picture:
        assert min(picture.size) > 600
    assert run("demo")[:2] == (0, out)  # again, over its own files
    report = folder / "r.json"
    assert run("evaluate", folder / "targets.csv", "--truth", folder, "--json", report)[0] == 0


def test_demo_without_matplotlib(run, tmp_path, short_demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, _ = run("demo", "--out", tmp_path / "demo")
    assert code == 0
    assert "no picture: it needs matplotlib" in out
    assert (tmp_path / "demo" / "targets.csv").exists()
    assert not (tmp_path / "demo" / "demo.png").exists()


def test_demo_leaves_other_folders_alone(refused, tmp_path, data_set):
    assert "not of an earlier demo" in refused("demo", "--out", tmp_path)
    (tmp_path / "README.txt").write_text("mine")
    assert "not of an earlier demo" in refused("demo", "--out", tmp_path)
    assert len(read_csist(data_set).images) == 12


# Real images


@pytest.mark.skipif(DATA is None, reason="CSUNMIX_DATA is not set: third-party data is not there")
@pytest.mark.parametrize(
    ("file", "options", "n"),
    [
        ("wise_2mass_blends/blends.npz", ["--psf", "FILE", "--psf-oversampling", 4], 20),
        ("composites_spitzer/composites.npz", ["--psf", "FILE", "--psf-oversampling", 4], 15),
        ("storm_analysis_sim/crops.npz", ["--psf-sigma", 1], 200),
    ],
)
def test_real_images(run, tmp_path, file, options, n):
    with np.load(Path(DATA) / file) as data:
        arrays = {name: data[name] for name in data.files if data[name].dtype.kind in "iuf"}
    pick = np.linspace(0, len(arrays["images"]) - 1, n).astype(int)
    arrays["images"] = arrays["images"][pick]
    path = tmp_path / Path(file).name
    np.savez(path, **arrays)
    options = [path if option == "FILE" else option for option in options]
    code, out, err = run(
        *("unmix", path, "--array", "images", "--background", "border"),
        *("--out", tmp_path / "t.csv", *options),
    )
    assert code == 0, err
    assert out.startswith(f"{n} images, ")
    table = read_csv(tmp_path / "t.csv")
    counts = np.bincount(table["frame"], minlength=n)
    assert (counts > 0).mean() > 0.9
    true = arrays["gt_count"][pick]
    assert 0.5 * true.mean() < counts.mean() < 2.5 * true.mean()
    assert (table["flux"] > 0).all()
    size = arrays["images"].shape[-1]
    assert table[["x", "y"]].min().min() > -0.5
    assert table[["x", "y"]].max().max() < size - 0.5
