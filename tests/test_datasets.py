"""The data sets on disk: both layouts, the row/column swap, and everything that may be wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from csunmix.datasets import (
    Dataset,
    read_annotation,
    read_csist,
    read_seq_csist,
    write_annotation,
    write_csist,
    write_seq_csist,
)
from csunmix.targets import COLUMNS, make_table, n_frames

# row 2.25, column 7.5: a swap or a transposition cannot go unseen
BY_HAND = """<annotation>
  <filename>image_0.png</filename>
  <size><width>11</width><height>11</height><depth>1</depth></size>
  <sigma>0.5</sigma>
  <object>
    <name>Target</name>
    <coordinate><xc>2.25</xc><yc>7.5</yc><brightness>231.5</brightness></coordinate>
  </object>
</annotation>
"""


def random_data(n: int, shape: tuple[int, int] = (11, 13)) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 4, n)
    counts[-1] = 0  # the last frame has no target and must not get lost
    frame = np.repeat(np.arange(n), counts)
    y, x = rng.uniform(0, shape[0] - 1, frame.size), rng.uniform(0, shape[1] - 1, frame.size)
    truth = make_table(frame, y, x, rng.uniform(220, 250, frame.size), n_frames=n)
    return rng.integers(0, 256, (n, *shape)), truth


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- one annotation


def test_xc_is_the_row(tmp_path: Path) -> None:
    path = tmp_path / "CSO0.xml"
    path.write_text(BY_HAND)
    table = read_annotation(path)
    assert tuple(table.columns) == COLUMNS
    assert table[["frame", "y", "x", "flux"]].to_numpy().tolist() == [[0, 2.25, 7.5, 231.5]]
    assert n_frames(table) == 1


def test_one_based_takes_one_pixel_off_both(tmp_path: Path) -> None:
    path = tmp_path / "CSO0.xml"
    path.write_text(BY_HAND)
    table = read_annotation(path, one_based=True)
    assert table[["y", "x", "flux"]].to_numpy().tolist() == [[1.25, 6.5, 231.5]]
    write_annotation(path, table, shape=(11, 11), filename="a.png", one_based=True)
    assert "<xc>2.25</xc>" in path.read_text()
    assert "<yc>7.5</yc>" in path.read_text()
    assert "<brightness>231.5</brightness>" in path.read_text()


def test_written_annotation_is_the_published_form(tmp_path: Path) -> None:
    table = make_table(0, 2.25, 7.5, 231.5)
    path = tmp_path / "CSO0.xml"
    write_annotation(path, table, shape=(11, 11), filename="image_0.png", sigma=0.5)
    assert "".join(path.read_text().split()) == "".join(BY_HAND.split())
    write_annotation(path, table, shape=(9, 12), filename="image_0.png")
    text = path.read_text()
    assert "<width>12</width>" in text
    assert "<height>9</height>" in text
    assert "sigma" not in text


def test_numbers_come_back_to_the_last_digit(tmp_path: Path) -> None:
    y, x, flux = np.array([[1 / 3, 5e-324], [np.nextafter(7, 8), -0.1], [1e300, 2 / 3]])
    path = tmp_path / "a.xml"
    write_annotation(path, make_table([4, 4], y, x, flux), shape=(9, 9), filename="<&>.png")
    table = read_annotation(path)
    np.testing.assert_array_equal(table[["y", "x", "flux"]].to_numpy().T, [y, x, flux])


def test_no_object_is_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    write_annotation(path, make_table([], [], [], []), shape=(9, 9), filename="a.png")
    table = read_annotation(path)
    assert len(table) == 0
    assert n_frames(table) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xc>2.25</xc>", "", "object 1: must have one <xc>, has none"),
        ("<xc>2.25</xc>", "<xc>1</xc><xc>2</xc>", "object 1: must have one <xc>, has 2"),
        ("<yc>7.5</yc>", "<yc>NaN</yc>", "object 1: <yc> must be a finite number, got 'NaN'"),
        ("7.5", "-inf", "object 1: <yc> must be a finite number, got '-inf'"),
        ("7.5", "seven", "object 1: <yc> must be a finite number, got 'seven'"),
        ("231.5", "", "object 1: <brightness> must be a finite number, got None"),
        ("231.5", "-5", "object 1: <brightness> must not be negative, got -5"),
        ("2.25", "1e9", r"object 1: <xc> must be within 1 px of the image of 11 px, got 1e\+09"),
        ("7.5", "-1.6", "object 1: <yc> must be within 1 px of the image"),
        ("coordinate>", "position>", "object 1: must have one <coordinate>"),
        ("annotation>", "scene>", "root must be <annotation>, got <scene>"),
        ("</annotation>", "", "not well-formed XML"),
        (BY_HAND, "not XML at all", "not well-formed XML"),
        (BY_HAND, "", "not well-formed XML"),
        ("<annotation>", '<?xml version="1.0" encoding="no"?><annotation>', "not well-formed"),
    ],
)
def test_bad_annotation_names_file_object_and_tag(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "CSO7.xml"
    path.write_text(BY_HAND.replace(old, new))
    with pytest.raises(ValueError, match=rf"CSO7\.xml: .*{message}"):
        read_annotation(path)


def test_second_bad_object_is_counted(tmp_path: Path) -> None:
    start, end = BY_HAND.index("  <object>"), BY_HAND.index("</annotation>")
    second = BY_HAND[start:end].replace("7.5", "nan")
    path = tmp_path / "CSO7.xml"
    path.write_text(BY_HAND[:end] + second + "</annotation>")
    with pytest.raises(ValueError, match="object 2: <yc>"):
        read_annotation(path)


def test_hostile_xml_is_refused(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    secret = tmp_path / "secret.txt"
    secret.write_text("2.25")
    declarations = [
        f'[<!ENTITY l0 "lol">{laughs}]',
        f'[<!ENTITY l9 SYSTEM "{secret.as_uri()}">]',
        f'SYSTEM "{secret.as_uri()}"',
    ]
    path = tmp_path / "CSO0.xml"
    for declaration in declarations:
        path.write_text(f"<!DOCTYPE annotation {declaration}>" + BY_HAND.replace("2.25", "&l9;"))
        with pytest.raises(ValueError, match=r"CSO0\.xml: has .*entity declarations, refused"):
            read_annotation(path)


def test_write_annotation_checks_before_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    two_frames = make_table([0, 1], [1, 1], [2, 2], [3, 3])
    with pytest.raises(ValueError, match="one frame"):
        write_annotation(path, two_frames, shape=(9, 9), filename="a.png")
    with pytest.raises(ValueError, match="'x' must be finite"):
        write_annotation(path, make_table(0, 1, np.nan, 3), shape=(9, 9), filename="a.png")
    with pytest.raises(ValueError, match="sigma"):
        write_annotation(path, two_frames[:1], shape=(9, 9), filename="a.png", sigma=0.0)
    assert not files_in(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_annotation(path)


# ---- whole data sets

Writer = Callable[..., None]
Reader = Callable[..., Dataset]
BOTH = pytest.mark.parametrize(
    ("write", "read", "folders"),
    [
        (write_csist, read_csist, ("cso_img", "Annotations")),
        (write_seq_csist, read_seq_csist, ("image", "annotation")),
    ],
    ids=["csist", "seq_csist"],
)


@BOTH
@pytest.mark.parametrize("prefix", ["CSO", "COS"])
@pytest.mark.parametrize("one_based", [False, True])
def test_what_is_written_is_read(
    tmp_path: Path,
    write: Writer,
    read: Reader,
    folders: tuple[str, str],
    prefix: str,
    one_based: bool,
) -> None:
    images, truth = random_data(20)
    shuffled = truth.sample(frac=1.0, random_state=1)  # rows need not be in order of frames
    options: dict[str, Any] = {"split": "test", "one_based": one_based}
    write(tmp_path, images, shuffled, prefix=prefix, sigma=0.5, start=95, **options)
    assert files_in(tmp_path) == {
        f"test/{name}"
        for k in range(95, 115)
        for name in (f"{folders[0]}/image_{k}.png", f"{folders[1]}/{prefix}{k}.xml")
    }
    data = read(tmp_path, **options)
    np.testing.assert_array_equal(data.images, images)
    assert data.images.dtype == np.uint8
    assert data.names == tuple(f"image_{k}.png" for k in range(95, 115))
    assert n_frames(data.truth) == 20
    expected = shuffled.sort_values("frame", kind="stable")[["frame", "y", "x", "flux"]]
    found = data.truth[["frame", "y", "x", "flux"]]
    tolerance = 1e-14 if one_based else 0.0  # 1 px added and taken off may round
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=0, atol=tolerance)


def test_image_and_annotation_are_one_frame_in_one_orientation(tmp_path: Path) -> None:
    # a data set made by hand, with numbers whose order as text is wrong
    (tmp_path / "cso_img").mkdir()
    (tmp_path / "Annotations").mkdir()
    for k, prefix, column in ((10, "CSO", 7), (2, "COS", 3)):
        image = np.zeros((9, 12), dtype=np.uint8)
        image[2, column] = 200
        Image.fromarray(image).save(tmp_path / "cso_img" / f"image_{k}.png")
        text = BY_HAND.replace("2.25", "2").replace("7.5", str(column))
        (tmp_path / "Annotations" / f"{prefix}{k}.xml").write_text(text)
    (tmp_path / "cso_img" / "Thumbs.db").write_text("")
    data = read_csist(tmp_path)
    assert data.names == ("image_2.png", "image_10.png")
    assert data.truth["frame"].tolist() == [0, 1]
    row, column = (data.truth[name].to_numpy(dtype=int) for name in ("y", "x"))
    assert column.tolist() == [3, 7]
    assert data.images[[0, 1], row, column].tolist() == [200, 200]


def test_tracks(tmp_path: Path) -> None:
    images, truth = random_data(12)
    write_seq_csist(tmp_path, images, truth, frames_per_track=4, start=1)
    data = read_seq_csist(tmp_path, frames_per_track=4, progress=False)
    assert data.frames_per_track == 4
    np.testing.assert_array_equal(data.images.reshape(3, 4, 11, 13), images.reshape(3, 4, 11, 13))
    assert set(data.truth["track"]) <= {0, 1, 2}
    for track, part in data.truth.groupby("track"):
        assert part["frame"].between(4 * track, 4 * track + 3).all()
    with pytest.raises(ValueError, match=r"multiple of frames_per_track=5, got 12"):
        read_seq_csist(tmp_path, frames_per_track=5)
    with pytest.raises(ValueError, match=r"multiple of frames_per_track=20, got 12"):
        write_seq_csist(tmp_path / "new", images, truth)
    assert not (tmp_path / "new").exists()
    # a whole track may be missing, a frame inside one may not
    for k in range(5, 9):
        (tmp_path / "image" / f"image_{k}.png").unlink()
        (tmp_path / "annotation" / f"COS{k}.xml").unlink()
    assert len(read_seq_csist(tmp_path, frames_per_track=4).images) == 8
    (tmp_path / "image/image_12.png").rename(tmp_path / "image/image_13.png")
    (tmp_path / "annotation/COS12.xml").rename(tmp_path / "annotation/COS13.xml")
    with pytest.raises(ValueError, match=r"image_12\.png is missing in track 1"):
        read_seq_csist(tmp_path, frames_per_track=4)


@pytest.fixture
def csist(tmp_path: Path) -> Path:
    images, truth = random_data(4)
    write_csist(tmp_path, images, truth)
    return tmp_path


def test_pairs_must_be_complete(csist: Path) -> None:
    annotation = csist / "Annotations" / "CSO2.xml"
    twin = annotation.with_name("COS2.xml")
    twin.write_bytes(annotation.read_bytes())
    with pytest.raises(ValueError, match=r"CSO2\.xml: has the same number as COS2\.xml"):
        read_csist(csist)
    twin.unlink()
    content = annotation.read_bytes()
    annotation.unlink()
    with pytest.raises(ValueError, match=r"image_2\.png: has no annotation CSO2\.xml or COS2\.xml"):
        read_csist(csist)
    annotation.write_bytes(content)
    (csist / "cso_img" / "image_2.png").unlink()
    with pytest.raises(ValueError, match=r"CSO2\.xml: has no image image_2\.png"):
        read_csist(csist)


def test_folders_that_are_no_data_set(csist: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train"):
        read_csist(csist, split="train")
    with pytest.raises(ValueError, match="image: has no images"):
        read_seq_csist(csist)
    (csist / "test" / "cso_img").mkdir(parents=True)
    with pytest.raises(ValueError, match="cso_img: has no images"):
        read_csist(csist, split="test")


def test_bad_images_are_named(csist: Path) -> None:
    path = csist / "cso_img" / "image_3.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"image_3\.png: not a readable"):
        read_csist(csist)
    Image.fromarray(np.zeros((11, 11), dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"image_3\.png: .*\(11, 11\).*\(11, 13\)"):
        read_csist(csist)
    Image.fromarray(np.zeros((11, 13), dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"image_3\.png: must be an 8-bit image"):
        read_csist(csist)


def test_bad_arguments_write_nothing(tmp_path: Path) -> None:
    images, truth = random_data(4)

    def refused(message: str, images: Any = images, truth: Any = truth, **options: Any) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            write_csist(tmp_path / "new", images, truth, **options)

    refused("images must be integers within 0..255", images=images + 0.5)
    refused("images must be integers within 0..255", images=images + 200)
    refused("images must be finite", images=np.where(images > 9, np.nan, 0))
    refused("three axes", images=images[0])
    refused("images must hold real numbers", images=images * 1j)
    refused(
        r"'frame' must be within 0..2, got 3",
        images=images[:3],
        truth=truth.assign(frame=3),
    )
    refused("'frame' must be whole numbers", truth=truth.assign(frame=truth["frame"] + 0.5))
    refused("truth: column 'y' must be finite", truth=truth.assign(y=np.inf))
    refused(r"truth lacks the column\(s\) \['flux'\]", truth=truth.drop(columns="flux"))
    refused("truth must be a pandas.DataFrame", truth=[1, 2])
    refused("prefix", prefix="SCO")
    refused("start", start=-1)
    refused("sigma", sigma=np.nan)
    assert not (tmp_path / "new").exists()


def test_existing_data_set_is_replaced_only_when_asked(csist: Path) -> None:
    before = {path: path.read_bytes() for path in csist.rglob("*.*")}
    images, truth = random_data(2, (5, 6))
    with pytest.raises(ValueError, match="overwrite=True"):
        write_csist(csist, images, truth, prefix="COS")
    assert {path: path.read_bytes() for path in csist.rglob("*.*")} == before
    (csist / "cso_img" / "notes.txt").write_text("mine")
    write_csist(csist, images, truth, prefix="COS", overwrite=True)
    np.testing.assert_array_equal(read_csist(csist).images, images)
    assert files_in(csist) == {
        "cso_img/notes.txt",
        "cso_img/image_0.png",
        "cso_img/image_1.png",
        "Annotations/COS0.xml",
        "Annotations/COS1.xml",
    }


def test_interrupted_write_leaves_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth = random_data(4)
    save = Image.Image.save

    def disk_full(self: Image.Image, file: Any, **options: Any) -> None:
        save(self, file, **options)
        if len(list(tmp_path.rglob("image_*.png"))) > 2:
            Path(file).write_bytes(Path(file).read_bytes()[:20])
            raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_csist(tmp_path, images, truth)
    whole = read_csist(tmp_path)
    assert 0 < len(whole.images) < 4
    np.testing.assert_array_equal(whole.images, images[: len(whole.images)])
