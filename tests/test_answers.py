"""What networks save, read as target tables: axes, frames, and files that are not what they say."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy.io import savemat

from csunmix import datasets, presets, simulate
from csunmix.datasets import answers, read_answer, read_coco, read_maps, read_points, write_csist
from csunmix.metrics import cso_map
from csunmix.peaks import EveryCell, LocalMaxima
from csunmix.targets import from_grid, make_table, n_frames, write_csv

SETUP = presets.csist_100k()
NAMES = tuple(f"image_{k}.png" for k in range(12))


@pytest.fixture(scope="module")
def scenes():
    return simulate(SETUP.psf, SETUP.sensor, SETUP.scene, shape=(11, 11), n=12, rng=3)


def label_maps(truth, factor=7, shape=(11, 11), n=12):
    """Maps with each target in its nearest cell, by the formula of the published maps.

    `xc` is the row of the stored image and the first index of a map.
    """
    maps = np.zeros((n, shape[0] * factor, shape[1] * factor), np.float32)
    for row in truth.itertuples():
        xc, yc = row.y, row.x
        i, j = (round(v * factor + (factor - 1) / 2) for v in (xc, yc))
        maps[row.frame, i, j] = row.flux
    return maps


def near(table, truth, tolerance):
    """Whether both tables have the same targets, up to a distance along each axis."""
    columns = ["frame", "flux", "y", "x"]
    one, two = (t[columns].sort_values(["frame", "flux"]).to_numpy(float) for t in (table, truth))
    assert one.shape == two.shape
    np.testing.assert_array_equal(one[:, 0], two[:, 0])
    np.testing.assert_allclose(one[:, 1], two[:, 1], rtol=1e-5)
    np.testing.assert_allclose(one[:, 2:], two[:, 2:], atol=tolerance)


# The axis convention, from an image on disk to the score


@pytest.mark.parametrize("kind", ["npy", "npz", "mat", "folder", "txt", "json"])
def test_a_perfect_answer_in_each_form_lies_on_the_truth_of_the_data_set(tmp_path, scenes, kind):
    """Written by hand in the terms of the data set's XML, where xc is the row."""
    write_csist(tmp_path / "set", scenes.images, scenes.truth)
    data = datasets.read_csist(tmp_path / "set")
    objects = [  # xc, yc, brightness as they stand in the annotations
        [
            [float(item.find(f"coordinate/{tag}").text) for tag in ("xc", "yc", "brightness")]
            for item in answers_xml(tmp_path / "set" / "Annotations" / f"CSO{k}.xml")
        ]
        for k in range(12)
    ]
    file, tolerance = tmp_path / f"answer.{kind}", 1e-6
    options = {}
    if kind in ("npy", "npz", "mat"):
        maps = np.zeros((12, 77, 77), np.float32)
        for k, targets in enumerate(objects):
            for xc, yc, brightness in targets:
                maps[k, round(xc * 7 + 3), round(yc * 7 + 3)] = brightness
        maps, tolerance = maps.reshape(12, -1), 0.5 / 7 + 1e-6
        save = {
            "npy": lambda: np.save(file, maps),
            "npz": lambda: np.savez(file, prediction=maps),
            "mat": lambda: savemat(file, {"prediction": maps}),
        }
        save[kind]()
        options = {"factor": 7}
    elif kind == "folder":
        file.mkdir()
        for k, targets in enumerate(objects):
            lines = "".join(f"{xc!r} {yc!r} {b!r}\n" for xc, yc, b in targets)
            (file / f"image_{k}.txt").write_text(lines)
    elif kind == "txt":
        lines = [f"{k} {xc!r} {yc!r} {b!r}" for k in range(12) for xc, yc, b in objects[k]]
        file.write_text("\n".join(lines))
    else:
        found = [
            {"image_id": k, "bbox": [yc - 0.5, xc - 0.5, 1, 1], "score": b}  # COCO: x is the column
            for k in range(12)
            for xc, yc, b in objects[k]
        ]
        file.write_text(json.dumps(found))
    table = read_answer(file, **options, names=data.names)
    assert n_frames(table) == 12
    near(table, data.truth, tolerance)
    swapped = read_answer(
        file, **options, names=data.names, first="row" if kind == "json" else "column"
    )
    near(swapped.rename(columns={"x": "y", "y": "x"}), data.truth, tolerance)
    assert cso_map(swapped, data.truth).mean < 0.2 < 0.9 < cso_map(table, data.truth).ap[-1]


def answers_xml(path):
    from xml.etree import ElementTree

    return ElementTree.parse(path).getroot().findall("object")


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_the_grid_answer_is_that_of_from_grid(tmp_path, scenes, factor):
    maps = label_maps(scenes.truth, factor)
    expected = from_grid(maps, factor=factor, threshold=50)
    for layout in (maps, maps[:, None], maps.reshape(12, -1)):
        np.save(tmp_path / "maps.npy", layout)
        for options in ({"factor": factor}, {"shape": (11, 11)}):
            assert_frame_equal(read_maps(tmp_path / "maps.npy", **options), expected)


def test_images_that_are_not_square(tmp_path):
    truth = make_table([0, 1], [2.0, 1.0], [7.0, 0.0], [200.0, 230.0])
    maps = label_maps(truth, 3, (4, 9), 2)
    np.save(tmp_path / "flat.npy", maps.reshape(2, -1))
    near(read_maps(tmp_path / "flat.npy", shape=(4, 9)), truth, 1e-9)
    np.save(tmp_path / "column_major.npy", maps.transpose(0, 2, 1).reshape(2, -1))
    table = read_maps(tmp_path / "column_major.npy", shape=(4, 9), first="column")
    near(table, truth, 1e-9)


def test_maps_that_matlab_made_flat(tmp_path):
    truth = make_table(0, [2.0], [7.0], [200.0])
    maps = label_maps(truth, 3, (11, 11), 1)
    savemat(tmp_path / "m.mat", {"maps": np.stack([m.ravel(order="F") for m in maps])})
    near(read_maps(tmp_path / "m.mat", first="column"), truth, 1e-9)


def test_threshold_and_peak_rule(tmp_path):
    maps = np.zeros((1, 33, 33))
    maps[0, 3, 3:6] = 50.0, 60.0, 49.9
    maps[0, 9, 9] = -300.0  # networks answer with such, too
    np.save(tmp_path / "m.npy", maps)
    assert read_maps(tmp_path / "m.npy")["flux"].tolist() == [50.0, 60.0]
    for rule, flux in ((EveryCell(threshold=55.0), [60.0]), (LocalMaxima(), [60.0])):
        assert read_maps(tmp_path / "m.npy", peaks=rule)["flux"].tolist() == flux


def test_origin(tmp_path):
    (tmp_path / "matlab.txt").write_text("0 1 1 200\n")
    table = read_points(tmp_path / "matlab.txt", origin=1)
    assert table[["y", "x"]].to_numpy().tolist() == [[0.0, 0.0]]
    found = [{"image_id": 0, "bbox": [0, 1, 1, 1], "score": 0.5}]
    (tmp_path / "corner.json").write_text(json.dumps(found))
    table = read_coco(tmp_path / "corner.json", origin=0.5)
    assert table[["y", "x"]].to_numpy().tolist() == [[1.0, 0.0]]


# Which array


def test_arrays_of_a_file(tmp_path, scenes):
    maps = label_maps(scenes.truth, 3)
    noise = np.ones((12, 121))
    for save, file in ((np.savez, "m.npz"), (lambda f, **a: savemat(f, a), "m.mat")):
        path = tmp_path / file
        save(path, maps=maps, images=noise, words="abc")
        expected = from_grid(maps, factor=3, threshold=50)
        assert_frame_equal(read_maps(path, array="maps"), expected)
        assert_frame_equal(read_answer(f"{path}:maps"), expected)
        with pytest.raises(ValueError, match=rf"{file}: several arrays may be meant.*maps \(12,"):
            read_maps(path)
        with pytest.raises(ValueError, match=rf"{file}: has no array 'flux', it has maps"):
            read_maps(path, array="flux")
        save(path, maps=maps, words="abc", scale=3.0)
        only = [] if file.endswith("npz") else ["maps"]  # MATLAB has no numbers without axes
        assert_frame_equal(read_maps(path, array=next(iter(only), None)), expected)


# Frames


def test_files_of_a_folder_belong_to_the_images_of_their_names(tmp_path):
    folder = tmp_path / "found"
    folder.mkdir()
    for k in (10, 2):  # the others have no targets and no file
        (folder / f"image_{k}.txt").write_text(f"{k} 1 200 # a comment\n\n")
    (folder / "image_3.txt").write_text("# nothing\n")
    (folder / "notes.md").write_text("not an answer")
    table = read_points(folder, names=NAMES)
    assert table[["frame", "y"]].to_numpy().tolist() == [[2, 2.0], [10, 10.0]]
    assert n_frames(table) == 12
    by_order = read_points(folder)
    assert by_order["frame"].tolist() == [0, 2]  # image_2, image_3, image_10
    assert by_order.attrs["n_frames"] == 3


def test_files_called_otherwise_are_in_natural_order(tmp_path):
    folder = tmp_path / "found"
    folder.mkdir()
    for k in range(12):
        (folder / f"CSO{k + 1}.txt").write_text(f"{k}, 1, 200, 0.5")
    table = read_points(folder, names=NAMES)
    assert table["frame"].tolist() == table["y"].tolist() == list(range(12))
    assert (table["score"] == 0.5).all()
    (folder / "CSO5.txt").unlink()
    with pytest.raises(ValueError, match=r"found: speaks of 11 images, but there are 12, and none"):
        read_points(folder, names=NAMES)


def test_two_files_of_one_image_are_refused(tmp_path):
    for name in ("image_3.txt", "image_3.dat", "image_4.txt"):
        (tmp_path / name).write_text("1 2 200")
    with pytest.raises(ValueError, match="speaks twice of one image"):
        read_points(tmp_path, names=NAMES)


def test_a_single_file_names_or_numbers_its_images(tmp_path):
    path = tmp_path / "found.txt"
    path.write_text("11 1 2 200\n3 4 5 210\n")
    table = read_points(path)
    assert table["frame"].tolist() == [3, 11]
    assert "n_frames" not in table.attrs
    assert n_frames(table) == 12
    assert read_points(path, names=NAMES).attrs["n_frames"] == 12
    with pytest.raises(ValueError, match="image '11' is not one of the 11 images"):
        read_points(path, names=NAMES[:11])
    path.write_text("0000000011 1 2 200\n")
    assert read_points(path)["frame"].tolist() == [11]
    path.write_text("image_11.png 1 2 200\nimage_3 4 5 210\n")
    assert read_points(path, names=NAMES)["frame"].tolist() == [3, 11]
    with pytest.raises(ValueError, match=r"found.txt: calls an image 'image_11.png': the order"):
        read_points(path)
    with pytest.raises(ValueError, match=r"image 'image_11.png' is not one of the 11 images"):
        read_points(path, names=NAMES[:11])


def test_no_detection_at_all(tmp_path, scenes):
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "none.json").write_text("[]")
    np.save(tmp_path / "none.npy", np.zeros((12, 1089)))
    for name in ("none.txt", "none.json", "none.npy"):
        table = read_answer(tmp_path / name, names=NAMES)
        assert len(table) == 0
        assert table.attrs["n_frames"] == 12
        assert cso_map(table, scenes.truth).mean == 0


def test_coco_images(tmp_path):
    images = [{"id": 7, "file_name": "image_10.png"}, {"id": 4, "file_name": "image_2.png"}]
    found = [{"image_id": 7, "point": [1, 2], "brightness": 200, "score": 0.5}]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"images": images, "annotations": found}))
    assert read_coco(path, names=NAMES)["frame"].tolist() == [10]
    table = read_coco(path)
    assert (table["frame"].tolist(), table.attrs["n_frames"]) == ([1], 2)  # natural order
    assert read_coco(path, names=["a.png", "b.png"])["frame"].tolist() == [1]
    with pytest.raises(ValueError, match="speaks of 2 images, but there are 3"):
        read_coco(path, names=["a.png", "b.png", "c.png"])
    del images[0]["file_name"], images[1]["file_name"]
    path.write_text(json.dumps({"images": images, "annotations": found}))
    assert read_coco(path)["frame"].tolist() == [0]  # order of the list
    path.write_text(json.dumps([{**found[0], "image_id": "image_2.png"}]))
    assert read_coco(path, names=NAMES)["frame"].tolist() == [2]


def test_coco_keypoints_and_fluxes(tmp_path):
    path = tmp_path / "found.json"

    def read(**detection):
        path.write_text(json.dumps([{"image_id": 0, **detection}]))
        return read_coco(path)

    table = read(keypoints=[1, 2, 2, 3, 4, 0, 5, 6, 1], flux=230.0)
    assert table[["y", "x", "flux"]].to_numpy().tolist() == [[2, 1, 230], [6, 5, 230]]
    assert table["score"].isna().all()
    table = read(point=[1, 2], score=0.25)
    assert (table["flux"][0], table["score"][0], table.attrs["flux_known"]) == (0.25, 0.25, False)
    table = read(point=[1, 2], score=231.0)  # the published protocol: the score is the brightness
    assert (table["flux"][0], table.attrs["flux_known"]) == (231.0, True)
    assert table["score"].isna().all()


def test_tables_of_the_command_line_are_answers_too(tmp_path, scenes):
    write_csv(scenes.truth, tmp_path / "t.csv")
    table = read_answer(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(table, scenes.truth, check_dtype=False)
    assert "n_frames" not in table.attrs


# Files that are not what they should be


def _truncated(path, content):
    path.write_bytes(content[: len(content) // 2])


BAD_MAPS = {
    "nan": (np.full((2, 1089), np.nan), "maps must be finite, got 2178 NaN"),
    "inf": (np.full((2, 1089), np.inf), "maps must be finite"),
    "shape": (np.zeros((2, 1000)), "do not fit factor 3"),
    "axes": (np.zeros((2, 2, 33, 33)), "do not fit factor 3"),
    "one": (np.zeros(1089), r"must have two axes .* got shape \(1089,\)"),
    "empty": (np.zeros((0, 1089)), "must not be empty"),
    "objects": (np.array([[1, None]], object), "not a readable NPY file: .*(object|pickle)"),
    "complex": (np.zeros((2, 1089), complex), "must hold real numbers, got dtype complex"),
    "bool": (np.zeros((2, 1089), bool), "must hold real numbers"),
    "text": (np.full((2, 1089), "a"), "must hold real numbers"),
}


@pytest.mark.parametrize("name", BAD_MAPS)
def test_bad_maps(tmp_path, name):
    values, message = BAD_MAPS[name]
    path = tmp_path / "net.npy"
    np.save(path, values, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as caught:
        read_answer(path, names=("a.png", "b.png"))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("suffix", ["npy", "npz", "mat"])
def test_truncated_and_foreign_files(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    maps = np.random.default_rng(0).normal(size=(2, 1089))
    {
        "npy": lambda: np.save(path, maps),
        "npz": lambda: np.savez(path, maps=maps),
        "mat": lambda: savemat(path, {"maps": maps}),
    }[suffix]()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:60], b"", b"hello\n" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"net.{suffix}: (not a readable|has no array)") as it:
            read_answer(path)
        assert "\n" not in str(it.value)


def test_a_header_that_promises_too_much(tmp_path):
    path = tmp_path / "net.npy"
    np.save(path, np.zeros((2, 1089)))
    path.write_bytes(path.read_bytes().replace(b"(2, 1089)", b"(2000000000, 1089)"))
    with pytest.raises(ValueError, match=r"net.npy: not a readable NPY file"):
        read_answer(path)


def test_matlab_7_3_says_what_to_do(tmp_path):
    path = tmp_path / "net.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"net.mat: is a MATLAB v7.3 .* save\(..., '-v7'\)"):
        read_answer(path)


def test_matlab_cells_are_no_numbers(tmp_path):
    savemat(tmp_path / "net.mat", {"cells": np.array([[1, "a"]], object)})
    with pytest.raises(ValueError, match="has no array of numbers"):
        read_answer(tmp_path / "net.mat")
    with pytest.raises(ValueError, match="must hold real numbers, got dtype object"):
        read_answer(tmp_path / "net.mat", array="cells")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 1 2", r"line 2: must be 'image x y brightness \[score\]', has 3 field"),
        ("0 1 2 3 0.5 6", "line 2: must be .* has 6 field"),
        ("0 1 x 200", "line 2: must be finite numbers, got 'x'"),
        ("0 1 nan 200", "line 2: must be finite numbers, got 'nan'"),
        ("0 1 1e999 200", "line 2: must be finite numbers"),
        ("0 1 2 -200", "line 2: brightness must not be negative, got -200"),
        ("0 1 2 200 1.5", r"line 2: score must be in 0..1, got 1.5"),
        ("-1 1 2 200", "calls an image '-1'"),
        ("99999999999 1 2 200", "image '99999999999' is not an index below"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = tmp_path / "net.txt"
    path.write_text(f"0 1 2 200\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_answer(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", bytes(range(128, 256))])
def test_binary_is_no_text(tmp_path, content):
    (tmp_path / "net.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"net.txt: is no text"):
        read_answer(tmp_path / "net.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON file"),
        ('[{"image_id": 0, "point": [1', "is no JSON file"),
        ("[" * 100_000, "is no JSON file"),
        ("3", "must hold a list of detections"),
        ('{"detections": []}', "must hold a list of detections"),
        ("[3]", "detection 0: must be an object, got 3"),
        ('[{"point": [1, 2], "score": 1}]', "detection 0: 'image_id' must be an index"),
        ('[{"image_id": -1, "point": [1, 2], "score": 1}]', "'image_id' must be an index"),
        ('[{"image_id": 1e3, "point": [1, 2], "score": 1}]', "'image_id' must be an index"),
        ('[{"image_id": true, "point": [1, 2], "score": 1}]', "'image_id' must be an index"),
        ('[{"image_id": 1%s, "point": [1, 2], "score": 1}]' % ("0" * 30), "is not an index below"),
        ('[{"image_id": 0, "score": 1}]', "must have 'point', 'keypoints' or 'bbox'"),
        ('[{"image_id": 0, "bbox": [1, 2, 3], "score": 1}]', "'bbox' must be a list of 4 numbers"),
        ('[{"image_id": 0, "bbox": [1, 2, -3, 1], "score": 1}]', "negative size"),
        ('[{"image_id": 0, "point": "ab", "score": 1}]', "'point' must be a list of 2 numbers"),
        ('[{"image_id": 0, "point": [1, NaN], "score": 1}]', "must be finite numbers, got nan"),
        ('[{"image_id": 0, "point": [1, [2]], "score": 1}]', "must be finite numbers"),
        ('[{"image_id": 0, "keypoints": [1, 2], "score": 1}]', "triples x, y, v"),
        ('[{"image_id": 0, "point": [1, 2]}]', "detection 0: has no 'score'"),
        ('[{"image_id": 0, "point": [1, 2], "score": -1}]', "'score' must not be negative"),
        (
            '[{"image_id": 0, "point": [1, 2], "flux": 1}, {"image_id": 0, "point": [1, 2]}]',
            "detection 1: has no 'brightness'",
        ),
        ('{"images": [3], "annotations": []}', "image 0: must be an object with an 'id'"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": []}', "that of another image"),
        (
            '{"images": [{"id": 1}], "annotations": [{"image_id": 2, "point": [1, 2]}]}',
            "'image_id' must be one of 'images', got 2",
        ),
    ],
)
def test_bad_json(tmp_path, content, message):
    path = tmp_path / "net.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_answer(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 300 + len(str(path))


def test_other_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_answer(tmp_path / "nowhere.npy")
    for reader in (read_maps, read_points, read_coco):
        with pytest.raises(FileNotFoundError):
            reader(tmp_path / "nowhere.txt")
    (tmp_path / "a.doc").write_text("")
    with pytest.raises(ValueError, match=r"a.doc: unknown kind of answer"):
        read_answer(tmp_path / "a.doc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: the folder has no text files"):
        read_answer(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("0 1 2 3")
    with pytest.raises(ValueError, match="first must be 'row' or 'column', got 'x'"):
        read_points(tmp_path / "a.txt", first="x")
    with pytest.raises(ValueError, match="origin must be finite"):
        read_points(tmp_path / "a.txt", origin=np.nan)
    with pytest.raises(ValueError, match="names must differ"):
        read_points(tmp_path / "a.txt", names=["a", "a"])


def test_examples_in_docstrings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(answers)
    assert (results.attempted > 10, results.failed) == (True, 0)
