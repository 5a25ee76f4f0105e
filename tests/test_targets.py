"""The target table: how it is built, checked, read, written, and made of network maps."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from csunmix.peaks import EveryCell, MassMerging
from csunmix.targets import (
    COLUMNS,
    Flag,
    check_table,
    from_grid,
    make_table,
    n_frames,
    read_csv,
    write_csv,
)

DTYPES = {name: np.dtype(np.float64) for name in COLUMNS} | {
    "frame": np.dtype(np.int64),
    "flags": np.dtype(np.int64),
}


def example(n: int = 50) -> pd.DataFrame:
    """A table whose numbers use all their digits."""
    rng = np.random.default_rng(0)
    y, x = rng.uniform(-0.5, 10.5, (2, n))
    flux = np.exp(rng.uniform(-50, 50, n))
    y_err = np.where(rng.random(n) < 0.3, np.nan, rng.random(n) / 3)
    return make_table(
        rng.integers(0, 9, n),
        y,
        x,
        flux,
        y_err=y_err,
        score=rng.random(n),
        flags=rng.integers(0, 128, n),
    )


# Building


def test_flags_are_distinct_bits() -> None:
    values = [flag.value for flag in Flag]
    assert values == [2**k for k in range(len(values))]
    both = Flag.SATURATED | Flag.BORDER
    assert int(both) == 3
    assert Flag.BORDER in Flag(make_table(0, 1, 1, 1, flags=both)["flags"].iloc[0])
    with pytest.raises(TypeError, match="not iterable"):
        iter(both)  # type: ignore[call-overload]
    names = {"SATURATED", "BORDER", "COUNT_AMBIGUOUS", "NOT_CONVERGED", "NOT_FINITE", "NO_TARGET"}
    assert names <= set(Flag.__members__)


def test_flags_of_a_table_by_operators() -> None:
    column = make_table([0, 1, 2], 1, 1, 1, flags=[1, 3, 4])["flags"]
    assert (column & Flag.SATURATED).tolist() == [1, 1, 0]
    assert (Flag.BORDER & column).tolist() == [0, 2, 0]
    assert (column | Flag.BORDER).tolist() == [3, 3, 6]
    assert (column == Flag.SATURATED | Flag.BORDER).tolist() == [False, True, False]
    assert (column != Flag.COUNT_AMBIGUOUS).tolist() == [True, True, False]


def test_columns_dtypes_and_what_is_absent() -> None:
    table = make_table([0, 0, 3], [1, 2, 3], [4, 5, 6], np.array([7, 8, 9], np.float32))
    assert list(table.columns) == list(COLUMNS)
    assert table.dtypes.to_dict() == DTYPES
    assert table[["frame", "y", "x", "flux"]].to_numpy().T.tolist() == [
        [0, 0, 3],
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
    ]
    assert table[["y_err", "x_err", "flux_err", "score"]].isna().all(axis=None)
    assert (table["flags"] == 0).all()
    assert table.attrs == {"n_frames": 4, "frame_flags": {}}
    assert isinstance(table.index, pd.RangeIndex)


def test_everything_given() -> None:
    table = make_table(
        np.array([0.0, 2.0]),  # whole numbers of any dtype
        [1.0, 2.0],
        (3.0, 4.0),
        pd.Series([5.0, 6.0]),
        y_err=[0.1, np.nan],
        score=[1, 0],
        flags=[Flag.SATURATED, 0],
        n_frames=7,
        frame_flags={3: Flag.NOT_FINITE, np.int64(2): 1},
        attrs={"method": "OMP"},
    )
    assert table.dtypes.to_dict() == DTYPES
    assert table["frame"].tolist() == [0, 2]
    assert table["y_err"].iloc[0] == 0.1
    assert table["score"].tolist() == [1.0, 0.0]
    assert table["flags"].tolist() == [1, 0]
    assert table.attrs == {"method": "OMP", "n_frames": 7, "frame_flags": {3: 16, 2: 1}}
    assert n_frames(table) == 7


def test_one_number_stands_for_all_rows() -> None:
    one = make_table(0, 1.5, 2.5, 3.5)
    assert len(one) == 1
    table = make_table(2, [1, 2, 3], 5, [7, 8, 9], score=0.5, flags=4)
    assert table["frame"].tolist() == [2, 2, 2]
    assert table["x"].tolist() == [5, 5, 5]
    assert table["score"].tolist() == [0.5] * 3
    assert table["flags"].tolist() == [4] * 3
    assert len(make_table(0, [], [], [])) == 0


def test_the_table_has_its_own_numbers() -> None:
    y = np.array([1.0, 2.0])
    table = make_table([0, 1], y, y, y)
    y[:] = 9.0
    table.loc[0, "x"] = 5.0
    assert table["y"].tolist() == [1, 2]
    assert y.tolist() == [9, 9]


def test_empty_table_keeps_its_dtypes() -> None:
    table = make_table([], [], [], [], n_frames=3)
    assert len(table) == 0
    assert table.dtypes.to_dict() == DTYPES
    assert n_frames(table) == 3
    assert n_frames(make_table([], [], [], [])) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sigma": [1, 2]}, TypeError, r"unknown column\(s\) \['sigma'\]; the table has \['frame'"),
        ({"y": [1.0]}, ValueError, r"y must have shape \(2,\), got \(1,\)"),
        ({"flags": [1, 2, 3]}, ValueError, r"flags must have shape \(2,\), got \(3,\)"),
        ({"score": []}, ValueError, r"score must have shape \(2,\), got \(0,\)"),
        ({"frame": [[0, 1]]}, ValueError, r"frame must have shape \(1,\), got \(1, 2\)"),
        ({"frame": [0, 0.5]}, ValueError, "table: column 'frame' must be whole numbers.*row 1 has"),
        (
            {"frame": np.array([0, 2**64 - 1], np.uint64)},
            ValueError,
            "table: column 'frame' must be whole numbers.*row 1 has",
        ),
        ({"frame": [-1, 0]}, ValueError, "table: column 'frame' must be whole.* row 0 has -1"),
        ({"frame": [0, np.nan]}, ValueError, "table: column 'frame' must be whole .* has nan"),
        ({"frame": [0, np.inf]}, ValueError, "table: column 'frame' must be whole .* has inf"),
        ({"frame": ["0", "1"]}, TypeError, "frame must hold real numbers, got dtype <U1"),
        ({"y": [1, np.nan]}, ValueError, "table: column 'y' must be finite numbers, row 1 has nan"),
        ({"x": [np.inf, 1]}, ValueError, "table: column 'x' must be finite numbers, row 0"),
        ({"flux": [1, np.nan]}, ValueError, "table: column 'flux' must be finite"),
        ({"flux": [1, 2j]}, TypeError, "flux must hold real numbers, got dtype complex128"),
        ({"flags": [0, -4]}, ValueError, "table: column 'flags' must be whole.*row 1"),
        ({"flags": 0.5}, ValueError, "table: column 'flags' must be whole.*row 0"),
        ({"n_frames": 1}, ValueError, "n_frames must be above the last frame, 1, got 1"),
        ({"n_frames": -1}, ValueError, "n_frames must be at least 0"),
        ({"n_frames": 3.0}, TypeError, "n_frames must be an integer"),
    ],
)
def test_bad_columns(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"frame": [0, 1], "y": [1, 2], "x": [1, 2], "flux": [1, 2]}
    with pytest.raises(error, match=f"^{message}"):
        make_table(**(good | change))


def test_number_of_frames() -> None:
    table = make_table([0, 4], [1, 1], [1, 1], [1, 1], n_frames=9)
    assert n_frames(table) == 9
    assert n_frames(table[table["frame"] == 0]) == 9  # a part of the table knows it too
    # what was appended counts, and so do frames alone
    late = pd.concat([table, table.assign(frame=20)])
    assert n_frames(late) == 21
    assert n_frames(pd.DataFrame({"frame": [2]})) == 3
    assert n_frames(pd.DataFrame({"frame": []})) == 0


# Checking


def test_a_plain_data_frame_is_a_target_table() -> None:
    frame = pd.DataFrame({"frame": [0], "y": [1], "x": [2], "flux": [3], "note": ["a"]})
    assert check_table(frame) is frame
    assert len(check_table(pd.DataFrame(columns=list(COLUMNS)))) == 0
    infinite = make_table(0, 1, 1, 1, y_err=np.inf)
    assert check_table(infinite) is infinite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [1, "a"]}, "column 'y' must be finite numbers, row 1 has a"),
        ({"y": ["1", "2"]}, "column 'y' must be finite numbers, got dtype"),
        ({"x": [None, 2.0]}, "column 'x' must be finite numbers, row 0 has"),
        ({"frame": [0, 1.5]}, "column 'frame' must be whole numbers from 0, row 1 has 1.5"),
        ({"score": [0.5, "high"]}, "column 'score' must be numbers or NaN, row 1 has high"),
        ({"flags": [0, np.nan]}, "column 'flags' must be whole numbers from 0, row 1 has nan"),
    ],
)
def test_bad_values_are_named(change: dict[str, Any], message: str) -> None:
    good = {"frame": [0, 1], "y": [1, 2], "x": [1, 2], "flux": [1, 2]}
    with pytest.raises(ValueError, match=f"^truth: {message}"):
        check_table(pd.DataFrame(good | change), "truth")


@pytest.mark.parametrize("name", ["other", "frame_flags"])
def test_attributes_are_not_copied_with_each_column(name: str) -> None:
    class Large(dict[int, int]):
        def __deepcopy__(self, memo: object) -> object:
            raise AssertionError("copied")

    table = make_table(0, [1.0], [2.0], [3.0])
    table.attrs[name] = Large({0: 1})
    assert check_table(table) is table


def test_a_table_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"^targets must be a pandas.DataFrame, got ndarray"):
        check_table(np.zeros((3, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^targets lacks the column\(s\) \['x', 'flux'\]"):
        check_table(pd.DataFrame({"frame": [0], "y": [1]}))
    table = make_table(0, [1.0], [2.0], [3.0])
    levels = table.set_axis(pd.MultiIndex.from_product([table.columns, ["mean"]]), axis=1)
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['frame', 'y', 'x', 'flux'\]"):
        check_table(levels)
    with pytest.raises(ValueError, match="targets has the column 'y' more than once"):
        check_table(pd.concat([table, table["y"]], axis=1))
    note = pd.Series(["a"], name="note")
    check_table(pd.concat([table, note, note], axis=1))


def test_a_bad_row_is_named_by_its_label() -> None:
    table = make_table([0, 1, 2], 1, 1, 1)
    table.loc[2, "y"] = np.nan
    with pytest.raises(ValueError, match="row 2 has nan"):
        check_table(table[table["frame"] > 0])


# CSV


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    path, table = tmp_path / "targets.csv", example()
    write_csv(table, path)
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    again = read_csv(path)
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert again.attrs == {"n_frames": 9, "frame_flags": {}}


def test_csv_does_not_know_images_without_targets_at_the_end(tmp_path: Path) -> None:
    path, table = tmp_path / "targets.csv", make_table([0, 2], 1, 1, [1, 2], n_frames=5)
    write_csv(table, path)
    assert n_frames(read_csv(path)) == 3
    assert read_csv(path, n_frames=5).attrs == table.attrs
    with pytest.raises(ValueError, match="n_frames must be above the last frame, 2, got 2"):
        read_csv(path, n_frames=2)
    with pytest.raises(TypeError, match="n_frames must be an integer"):
        read_csv(path, n_frames=5.0)  # type: ignore[arg-type]


def test_csv_keeps_more_columns(tmp_path: Path) -> None:
    path, table = tmp_path / "targets.csv", example(5)
    table["image"] = ["image_1.png", "NA", 'a, "b".png', "007", "naïve.png"]
    table["magnitude"] = [1.5, np.nan, -2.0, 0.75, 4.0]
    write_csv(table, path)
    pd.testing.assert_frame_equal(read_csv(path), table, check_exact=True)


def test_empty_table_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "targets.csv"
    write_csv(make_table([], [], [], [], n_frames=3), path)
    again = read_csv(path)
    assert len(again) == 0
    assert again.dtypes.to_dict() == DTYPES


def test_csv_of_others(tmp_path: Path) -> None:
    # columns in another order, some missing, NaN spelled out, blank lines, Windows line ends
    path = tmp_path / "targets.csv"
    path.write_bytes(b"flux,x,y,frame,y_err\r\n230,1.5,2.5,0,nan\r\n\r\n240,3,4,2,0.5\r\n\r\n")
    table = read_csv(path)
    assert list(table.columns) == list(COLUMNS)
    assert table.dtypes.to_dict() == DTYPES
    assert table["frame"].tolist() == [0, 2]
    assert table["y"].tolist() == [2.5, 4.0]
    assert table["y_err"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CSV table"),
        (b"\n", "lacks the column|not a CSV table"),
        (b"frame,y,x\n0,1,2\n", r"lacks the column\(s\) \['flux'\]; it has \['frame', 'y', 'x'\]"),
        (b"a b c\n1 2 3\n", "lacks the column"),
        (b"frame,y,x,flux\n0,1,2,3\n0,1,2,3,4\n", "not a CSV table: .*line 3"),
        (b"frame,y,x,flux\n0,1,2,3,4\n", "not a CSV table: .*more fields than the header"),
        (b"frame,y,x,flux\n0,1,2,3\n0,1,,3\n", "column 'x' must be finite numbers, line 3 has nan"),
        (b"frame,y,x,flux\n0,1,2,3\n\n0,1\n", "column 'x' must be finite numbers, line 4 has nan"),
        (b"frame,y,x,flux\n0,inf,2,3\n", "column 'y' must be finite numbers, line 2 has inf"),
        (b"frame,y,x,flux\n0,one,2,3\n", "column 'y' must be finite numbers, line 2 has one"),
        (b"frame,y,x,flux\n0.5,1,2,3\n", "column 'frame' must be whole .*, line 2 has 0.5"),
        (b"frame,y,x,flux\n-2,1,2,3\n", "column 'frame' must be whole .*, line 2 has -2"),
        (b"frame,y,x,flux,flags\n0,1,2,3,\n", "column 'flags' must be whole .*, line 2 has nan"),
        (b"frame,y,x,flux,score\n0,1,2,3,hi\n", "column 'score' must be numbers or NaN, line 2"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\xff\xfe", "not a CSV table"),
        (gzip.compress(b"frame,y,x,flux\n" * 50, mtime=0), "not a CSV table"),
        (bytes(1000), "not a CSV table|lacks the column"),
        (b'frame,y,x,flux\n0,1,"2,3\n', "not a CSV table"),
        (b"<annotation>\n<size>1,2</size>\n</annotation>\n", "not a CSV table|lacks the column"),
    ],
)
def test_files_that_are_no_target_table(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"odd\.csv:? .*({message})"):
        read_csv(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        read_csv(tmp_path / "gone.csv")
    with pytest.raises(IsADirectoryError):
        read_csv(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        write_csv(example(), tmp_path / "gone" / "targets.csv")


def test_a_bad_table_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "targets.csv"
    write_csv(example(3), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="column 'y' must be finite"):
        write_csv(example(5).assign(y=np.nan), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["targets.csv"]


# Maps of networks


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 7])
def test_cells_lie_where_the_published_maps_put_them(factor: int) -> None:
    side = 11 * factor
    maps = np.zeros((2, side, side))
    cells = [(0, 0, 0), (0, 5, 2), (1, side - 1, 3), (1, side - 1, side - 1)]
    for k, cell in enumerate(cells):
        maps[cell] = 60.0 + k
    table = from_grid(maps, factor=factor, threshold=50)
    assert list(zip(table["frame"], table["flux"], strict=True)) == [
        (0, 60.0),
        (0, 61.0),
        (1, 62.0),
        (1, 63.0),
    ]
    expected = [
        ((i - (factor - 1) / 2) / factor, (j - (factor - 1) / 2) / factor) for _, i, j in cells
    ]
    np.testing.assert_allclose(table[["y", "x"]], expected, atol=1e-14)
    assert n_frames(table) == 2


def test_every_layout_of_the_maps() -> None:
    rng = np.random.default_rng(1)
    maps = rng.uniform(0, 100, (4, 33, 33)).astype(np.float32)
    expected = from_grid(maps, factor=3, threshold=50)
    assert len(expected) > 1000
    flat = maps.reshape(4, -1)
    for layout in (flat, flat.tolist(), np.asfortranarray(maps), maps.astype(">f4")):
        pd.testing.assert_frame_equal(from_grid(layout, factor=3, threshold=50), expected)
        with_shape = from_grid(layout, factor=3, threshold=50, shape=(11, 11))
        pd.testing.assert_frame_equal(with_shape, expected)
    one = from_grid(maps[1], factor=3, threshold=50)
    np.testing.assert_array_equal(
        one[["y", "x", "flux"]], expected.loc[expected["frame"] == 1, ["y", "x", "flux"]]
    )
    assert n_frames(one) == 1


def test_maps_of_oblong_images() -> None:
    maps = np.zeros((5, 6, 8))
    maps[3, 5, 1] = 70.0
    oblong = from_grid(maps, factor=2, threshold=50)
    assert oblong[["frame", "y", "x"]].to_numpy().tolist() == [[3, 2.25, 0.25]]
    flat = from_grid(maps.reshape(5, 48), factor=2, threshold=50, shape=(3, 4))
    pd.testing.assert_frame_equal(flat, oblong)
    one = from_grid(maps[3], factor=2, threshold=50)
    assert one[["frame", "y", "x"]].to_numpy().tolist() == [[0, 2.25, 0.25]]


def test_maps_that_can_be_read_in_two_ways_need_the_shape() -> None:
    # 36 flat maps of 2 x 2 px, or one of 12 x 12 px
    maps = np.zeros((36, 36))
    maps[7, 3] = 100.0
    with pytest.raises(
        ValueError, match=r"36 flat maps of 6 x 6 cells or one map of 36 x 36; give"
    ):
        from_grid(maps, factor=3, threshold=50)
    flat = from_grid(maps, factor=3, threshold=50, shape=(2, 2))
    assert flat[["frame", "y", "x"]].round(6).to_numpy().tolist() == [[7, -0.333333, 0.666667]]
    one = from_grid(maps, factor=3, threshold=50, shape=(12, 12))
    assert one[["frame", "y", "x"]].round(6).to_numpy().tolist() == [[0, 2.0, 0.666667]]


def test_threshold_is_inclusive() -> None:
    maps = np.zeros((1, 33, 33), np.float32)
    maps[0, 0, :3] = np.nextafter(np.float32(50), np.float32([0, 50, 100]))
    assert maps[0, 0, 1] == 50
    table = from_grid(maps, factor=3, threshold=50)
    np.testing.assert_allclose(table["x"], [0.0, 1 / 3], atol=1e-14)
    assert len(from_grid(maps, factor=3, threshold=51)) == 0


def test_maps_without_targets() -> None:
    table = from_grid(np.zeros((6, 1089)), factor=3, threshold=50)
    assert len(table) == 0
    assert table.dtypes.to_dict() == DTYPES
    assert n_frames(table) == 6


def test_maps_are_left_alone() -> None:
    maps = np.full((1, 1089), 60.0)
    maps.flags.writeable = False
    assert len(from_grid(maps, factor=3, threshold=50)) == 1089


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1089,), {}),
        ((), {}),
        ((4, 1088), {}),
        ((4, 34, 33), {}),
        ((4, 2, 33, 33), {}),
        ((4, 1, 1, 33, 33), {}),
        ((2, 4, 1089), {}),
        ((0, 1089), {}),
        ((4, 0), {}),
        ((4, 2, 2), {}),
        ((4, 1089), {"factor": 5}),
        ((4, 1089), {"shape": (11, 10)}),
        ((4, 33, 33), {"shape": (33, 33)}),
        ((33, 30), {"shape": (11, 11)}),
    ],
)
def test_maps_of_the_wrong_size(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^maps of shape .* do not fit factor [35].*: expected"):
        from_grid(np.zeros(shape), **({"factor": 3, "threshold": 50} | options))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"maps": np.full((1, 1089), np.nan)}, ValueError, "maps must be finite, got 1089 NaN"),
        ({"maps": np.full((1, 1089), "a")}, TypeError, "maps must hold real numbers"),
        ({"factor": 0}, ValueError, "factor must be at least 1"),
        ({"factor": 3.0}, TypeError, "factor must be an integer"),
        ({"threshold": np.nan}, ValueError, "threshold must be finite"),
        ({"threshold": "50"}, TypeError, "threshold must be a real number"),
        ({"shape": (11,)}, ValueError, "shape must be a pair"),
        ({"shape": (11, 0)}, ValueError, r"shape\[1\] must be at least 1"),
    ],
)
def test_bad_options(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"maps": np.zeros((1, 1089)), "factor": 3, "threshold": 50}
    with pytest.raises(error, match=f"^{message}"):
        from_grid(**(good | change))


def test_maps_with_one_channel_and_another_peak_rule() -> None:
    maps = np.zeros((2, 33, 33))
    maps[1, 4, 5:7] = 100.0, 120.0
    expected = from_grid(maps, factor=3, threshold=50)
    assert_frame_equal(from_grid(maps[:, None], factor=3, threshold=50), expected)
    assert_frame_equal(from_grid(maps, factor=3, peaks=EveryCell(threshold=50)), expected)
    (merged,) = from_grid(maps, factor=3, peaks=MassMerging(radius=0.5)).itertuples()
    assert (merged.frame, merged.flux) == (1, 220.0)
    assert merged.x == pytest.approx((100 * 4 / 3 + 120 * 5 / 3) / 220)


@pytest.mark.parametrize("options", [{}, {"threshold": 50, "peaks": EveryCell()}])
def test_maps_need_one_rule(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="either threshold or peaks must be given"):
        from_grid(np.zeros((1, 1089)), factor=3, **options)
