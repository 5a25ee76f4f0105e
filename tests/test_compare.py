"""``csunmix compare``: what it reads, what it says, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import csunmix as cu
from csunmix.cli import main
from csunmix.cli.leaderboard import _PEAKS
from csunmix.datasets import write_csist
from csunmix.methods import PEAK_RULES
from csunmix.report import FILES
from csunmix.targets import from_grid, make_table, write_csv

SETUP = cu.presets.csist_100k()
N = 14


@pytest.fixture(scope="module")
def scenes():
    return cu.simulate(SETUP.psf, SETUP.sensor, SETUP.scene, shape=(11, 11), n=N, rng=8)


@pytest.fixture(scope="module")
def maps(scenes):
    """The nearest cell of each target, factor 3: what a perfect network on the grid answers."""
    maps = np.zeros((N, 33, 33), np.float32)
    i, j = cu.SubpixelGrid((11, 11), 3).cell(scenes.truth["y"], scenes.truth["x"])
    maps[scenes.truth["frame"], i, j] = scenes.truth["flux"]
    return maps


@pytest.fixture
def data(tmp_path, scenes):
    write_csist(tmp_path / "data", scenes.images, scenes.truth)
    return tmp_path / "data"


@pytest.fixture
def net(tmp_path, maps):
    np.save(tmp_path / "net.npy", maps.reshape(N, -1))
    return tmp_path / "net.npy"


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.delenv("CSUNMIX_DEBUG", raising=False)

    def run(*argv):
        code = main(["compare", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Run on bad input: exit code 2, one line, and no file more or less than before."""

    def refused(*argv):
        before = sorted(map(str, tmp_path.rglob("*")))
        code, out, err = run(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
        assert err.startswith("csunmix: error: ")
        assert sorted(map(str, tmp_path.rglob("*"))) == before
        return err

    return refused


def rows(out):
    """The printed table: values of each method by row."""
    lines = [line for line in out.splitlines()[3:] if not line.startswith("->")]
    return {line[:20].strip(): line[20:].split() for line in lines}


def test_rules_are_those_of_the_library():
    assert tuple(_PEAKS) == PEAK_RULES == tuple(cu.names.PEAK_RULES)


def test_leaderboard(run, tmp_path, data, net, scenes, maps):
    write_csv(scenes.truth, tmp_path / "perfect.csv")
    out = tmp_path / "board"
    code, text, err = run(
        *("--truth", data, f"the net={net}", f"perfect={tmp_path / 'perfect.csv'}"),
        *("--out", out, "--time", "the net=0.5", "--parameters", "the net=1000"),
    )
    assert (code, err) == (0, "")
    runs = {"the net": from_grid(maps, factor=3, threshold=50), "perfect": scenes.truth}
    report = cu.Report(runs, scenes.truth, seconds={"the net": 0.5}, parameters={"the net": 1000})
    assert text == report.to_text() + "".join(f"-> {out / name}\n" for name in FILES)
    assert (out / "leaderboard.txt").read_text() == report.to_text()
    assert (out / "leaderboard.csv").read_text() == report.to_csv()
    assert (out / "leaderboard.md").read_text() == report.to_markdown()
    page = (out / "leaderboard.html").read_text()
    assert page.count("<img") == 2 * 6  # the data set has the images
    assert "image_" in page


def test_without_a_folder_nothing_is_written(run, tmp_path, data, net):
    before = sorted(map(str, tmp_path.rglob("*")))
    code, text, _ = run("--truth", data, f"net={net}")
    assert code == 0
    assert text.startswith("1 method, 14 images")
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_every_kind_of_answer(run, tmp_path, data, net, scenes):
    """In the axes of the data set, where the first coordinate, xc, is the row."""
    folder = tmp_path / "lines"
    folder.mkdir()
    boxes = []
    for k in range(N):
        targets = scenes.truth[scenes.truth["frame"] == k]
        text = "".join(f"{t.y} {t.x} {t.flux}\n" for t in targets.itertuples())
        (folder / f"image_{k}.txt").write_text(text)
        boxes += [
            {"image_id": f"image_{k}.png", "point": [t.x, t.y], "brightness": t.flux}
            for t in targets.itertuples()
        ]
    (tmp_path / "found.json").write_text(json.dumps(boxes))
    np.savez(tmp_path / "net.npz", maps=np.load(net), other=np.load(net))
    code, text, err = run(
        *("--truth", data, f"net={net}", f"npz={tmp_path / 'net.npz'}:maps"),
        *(f"lines={folder}", f"json={tmp_path / 'found.json'}"),
    )
    assert (code, err) == (0, "")
    values = rows(text)["CSO-mAP [%]"]
    assert values[:2] == ["100.00", "100.00"]
    assert values[2] == values[3]
    assert float(values[2]) < 60


def test_swapped_axes_are_noticed(run, tmp_path, data, net, maps):
    np.save(tmp_path / "turned.npy", maps.transpose(0, 2, 1))
    argv = ("--truth", data, f"net={net}", f"turned={tmp_path / 'turned.npy'}")
    code, _, err = run(*argv)
    assert code == 0
    assert err.startswith("csunmix: warning: turned: CSO-mAP would be ")
    assert err.count("\n") == 1
    code, right, err = run(*argv, "--first", "turned=column")
    assert (code, err) == (0, "")
    one, other = rows(right)["CSO-mAP [%]"]
    assert one == other
    err = run(*argv, "--first", "column")[2]
    assert "warning: net:" in err
    assert "turned:" not in err
    assert run(*argv, "--first", "column", "--first", "net=row")[1:] == (right, "")


def test_threshold_peaks_and_factor(run, tmp_path, data, scenes):
    maps = np.zeros((N, 55, 55))
    i, j = cu.SubpixelGrid((11, 11), 5).cell(scenes.truth["y"], scenes.truth["x"])
    maps[scenes.truth["frame"], i, j - 1] = 55.0
    maps[scenes.truth["frame"], i, j] = 60.0
    np.save(tmp_path / "five.npy", maps.reshape(N, -1))
    argv = ("--truth", data, f"five={tmp_path / 'five.npy'}")
    n = f"{len(scenes.truth) / N:.2f}"
    twice = f"{2 * len(scenes.truth) / N:.2f}"
    assert rows(run(*argv)[1])["targets per frame"] == [twice]  # the factor fits the images
    assert rows(run(*argv, "--threshold", 57)[1])["targets per frame"] == [n]
    text = run(*argv, "--peaks", "local-maxima")[1]
    assert rows(text)["targets per frame"] == [n]


# Which images


def test_other_numbers_of_images(run, refused, tmp_path, data, net, maps):
    np.save(tmp_path / "short.npy", maps[:10])
    argv = ("--truth", data, f"net={net}", f"short={tmp_path / 'short.npy'}")
    err = refused(*argv)
    assert f"short ({tmp_path / 'short.npy'}) has 10 images, the truth ({data}) has 14" in err
    assert "--n-images 10 compares the first ones" in err
    code, text, _ = run(*argv, "--n-images", 10)
    assert code == 0
    assert text.startswith("2 methods, 10 images")
    assert len(set(rows(text)["CSO-mAP [%]"])) == 1
    assert "--n-images 12: short" in refused(*argv, "--n-images", 12)
    assert "--n-images must be at least 1" in refused(*argv, "--n-images", 0)


def test_methods_of_different_sizes_beside_a_table_of_truth(refused, run, tmp_path, scenes, maps):
    write_csv(scenes.truth, tmp_path / "truth.csv")
    np.save(tmp_path / "a.npy", maps)
    np.save(tmp_path / "b.npy", maps[:-1])
    argv = ("--truth", tmp_path / "truth.csv")
    a, b = (f"{name}={tmp_path / name}.npy" for name in "ab")
    err = refused(*argv, a, b)
    assert "b (" in err
    assert "has 13 images, a (" in err
    assert "the truth: has frame 13, b (" in refused(*argv, b)
    assert run(*argv, a)[0] == 0


def test_table_of_truth_with_images(run, refused, tmp_path, data, scenes, net):
    truth = scenes.truth.assign(image=[f"image_{k}.png" for k in scenes.truth["frame"]])
    write_csv(truth, tmp_path / "truth.csv")
    (tmp_path / "found.txt").write_text("image_3.png 5 5 230\nimage_12 5 5 230\n")
    argv = ("--truth", tmp_path / "truth.csv", f"text={tmp_path / 'found.txt'}")
    assert "calls an image 'image_3.png': " in (err := refused(*argv))
    assert "must be given with --images" in err
    out = tmp_path / "board"
    assert run(*argv, "--images", data / "cso_img", "--out", out)[0] == 0
    assert "Hardest images" in (out / "leaderboard.html").read_text()
    np.save(tmp_path / "few.npy", scenes.images[:5])
    err = refused("--truth", tmp_path / "truth.csv", f"n={net}", "--images", tmp_path / "few.npy")
    assert "has 14 images, --images" in err
    truth["image"] = [f"image_{k + 1}.png" for k in truth["frame"]]
    write_csv(truth, tmp_path / "truth.csv")
    err = refused(*argv, "--images", data / "cso_img")
    assert "in the truth it is image_" in err


def test_tables_over_other_images(refused, tmp_path, data, scenes):
    table = make_table([N], [5.0], [5.0], [230.0])
    write_csv(table, tmp_path / "t.csv")
    err = refused("--truth", data, f"t={tmp_path / 't.csv'}")
    assert f"t: has frame {N}, the truth ({data}) has {N} images from 0" in err
    write_csv(scenes.truth.assign(image="image_3.png"), tmp_path / "t.csv")
    assert "image_3.png" in refused("--truth", data, f"t={tmp_path / 't.csv'}")


def test_a_method_without_detections_and_a_truth_with_gaps(run, tmp_path):
    write_csv(make_table([1, 3], [5.0, 5.0], [5.0, 5.0], [230.0, 240.0]), tmp_path / "truth.csv")
    write_csv(make_table([], [], [], []), tmp_path / "none.csv")
    (tmp_path / "none.txt").write_text("")
    code, text, err = run(
        *("--truth", tmp_path / "truth.csv", "--n-images", 6, "--out", tmp_path / "board"),
        *(f"a={tmp_path / 'none.csv'}", f"b={tmp_path / 'none.txt'}"),
    )
    assert (code, err) == (0, "")
    assert text.startswith("2 methods, 6 images, 2 true targets")
    assert rows(text)["CSO-mAP [%]"] == ["0.00", "0.00"]
    assert rows(text)["count accuracy [%]"] == ["66.7", "66.7"]


# Names and options


def test_names_of_any_kind(run, tmp_path, data, net):
    names = ["σ = ½ <b>", "网络", "$x_1$", "_hidden", "a=b"]
    out = tmp_path / "board"
    code, _, err = run("--truth", data, *(f"{name}={net}" for name in names), "--out", out)
    assert (code, err) == (0, "")
    page = (out / "leaderboard.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    for name in ("σ = ½ &lt;b&gt;", "网络", "$x_1$", "_hidden", "a=b"):
        assert name in page
    table = pd.read_csv(out / "leaderboard.csv")
    assert table["method"].tolist() == names


def test_title_cases_and_published(run, tmp_path, data, net):
    (tmp_path / "p.csv").write_text("method,mAP,source\n<i>Net</i>,46.74,ICCV\n")
    out = tmp_path / "board"
    argv = ("--truth", data, f"net={net}", "--out", out, "--cases", 1, "--title", "A & B")
    assert run(*argv, "--published", tmp_path / "p.csv")[0] == 0
    page = (out / "leaderboard.html").read_text()
    assert "<h1>A &amp; B</h1>" in page
    assert page.count("<article") == 1
    assert "&lt;i&gt;Net&lt;/i&gt;" in page
    assert "<td>46.74</td>" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["NET"], "'NET': must be NAME=FILE"),
        (["=f.npy"], "must be NAME=FILE"),
        (["a="], "must be NAME=FILE"),
        (["a\nb=NET"], "must be NAME=FILE"),
        (["net=NET", "net=NET"], "NAME=FILE: 'net' is given twice"),
        (["net=nowhere.npy"], "nowhere.npy: No such file"),
        (["net=NET", "--time", "other=3"], "--time: there is no method 'other', only net"),
        (["net=NET", "--time", "net=soon"], "--time net: must be a number above 0, got 'soon'"),
        (["net=NET", "--time", "net=-1"], "--time net: must be a number above 0"),
        (["net=NET", "--parameters", "net"], "must be --parameters NAME=NUMBER"),
        (["net=NET", "--first", "x"], "must be row or column, got 'x'"),
        (["net=NET", "--first", "b=row"], "--first: there is no method 'b'"),
        (["net=NET", "--factor", "4"], "do not fit factor 4 and image shape (11, 11)"),
        (["net=NET", "--factor", "0"], "--factor must be at least 1"),
        (["net=NET", "--threshold", "-3"], "--threshold must be above 0"),
        (["net=NET", "--cases", "-1"], "--cases must be at least 0"),
        (["net=NET", "--rank-by", "score"], "column 'score' is NaN"),
        (["net=NET", "--out", "NET"], "is a file, must be a folder"),
        (["net=NET", "--published", "nowhere.csv"], "nowhere.csv: No such file"),
        (["net=NET", "--images", "nowhere"], "nowhere: No such file"),
        ([], "the following arguments are required: NAME=FILE"),
    ],
)
def test_bad_usage(refused, data, net, argv, message):
    argv = [arg.replace("NET", str(net)) for arg in argv]
    assert message.replace("NET", str(net)) in refused("--truth", data, *argv)


def test_inputs_are_not_written_over(run, refused, tmp_path, data, scenes):
    out = tmp_path / "board"
    out.mkdir()
    write_csv(scenes.truth, out / "leaderboard.csv")
    err = refused("--truth", data, f"a={out / 'leaderboard.csv'}", "--out", out)
    assert "is the input" in err


def test_bad_published_table(refused, tmp_path, data, net):
    for content in (b"", b"\xff\xfe\x00", b"a,b\n1,2,3\n"):
        (tmp_path / "p.csv").write_bytes(content)
        err = refused("--truth", data, f"n={net}", "--published", tmp_path / "p.csv")
        assert "p.csv: not a CSV table" in err


def test_ten_thousand_images(run, tmp_path):
    rng = np.random.default_rng(0)
    frame = np.repeat(np.arange(10_000), 3)
    y, x = rng.uniform(4, 6, (2, frame.size))
    flux = rng.uniform(220, 250, frame.size)
    write_csv(make_table(frame, y, x, flux), tmp_path / "truth.csv")
    lines = (f"{f} {a} {b} {c}" for f, a, b, c in zip(frame, y, x, flux, strict=True))
    (tmp_path / "text.txt").write_text("\n".join(lines))
    maps = np.zeros((10_000, 33, 33), np.float32)
    maps[frame, np.rint(3 * y + 1).astype(int), np.rint(3 * x + 1).astype(int)] = flux
    np.save(tmp_path / "maps.npy", maps)
    code, text, err = run(
        *("--truth", tmp_path / "truth.csv", f"text={tmp_path / 'text.txt'}"),
        *(f"maps={tmp_path / 'maps.npy'}", "--out", tmp_path / "board"),
    )
    assert (code, err) == (0, "")
    assert text.startswith("2 methods, 10,000 images, 30,000 true targets")
    assert float(rows(text)["CSO-mAP [%]"][0]) > 99
