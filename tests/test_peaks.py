"""Peak rules, by hand and by what must not change: flips, order of frames, batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import coo_array

import csunmix as cu
from csunmix.peaks import Candidates, PeakRule

Floats = npt.NDArray[np.floating[Any]]

GRID = cu.SubpixelGrid((4, 5), 3)
RULES: dict[str, Any] = {
    "every-cell": cu.EveryCell(threshold=2.0),
    "local-maxima": cu.LocalMaxima(threshold=2.0),
    "local-maxima-5": cu.LocalMaxima(threshold=2.0, size=5, min_share=0.3),
    "mass-merging": cu.MassMerging(threshold=2.0, radius=0.5),
    "mass-merging-share": cu.MassMerging(threshold=2.0, radius=0.4, min_share=0.4),
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def maps_of(*cells: tuple[int, int, int, float], n: int = 1, grid: Any = GRID) -> Floats:
    """Maps that are zero but for cells (frame, i, j, value)."""
    maps = np.zeros((n, *grid.map_shape))
    for frame, i, j, value in cells:
        maps[frame, i, j] = value
    return maps


def random_maps(n: int = 6, share: float = 0.3) -> Floats:
    rng = np.random.default_rng(12)
    shape = (n, *GRID.map_shape)
    maps: Floats = rng.uniform(0, 10, shape) * (rng.random(shape) < share)
    maps[2] = 0
    return maps


def rows(found: Candidates) -> Floats:
    """All targets as sorted rows (frame, y, x, flux)."""
    table = np.column_stack(found)
    return table[np.lexsort(np.round(table, 9).T[::-1])]


# --- every rule ---------------------------------------------------------------------------------


@EVERY_RULE
def test_rules_satisfy_the_protocol(rule: Any) -> None:
    assert isinstance(rule, PeakRule)
    assert not isinstance(object(), PeakRule)


@EVERY_RULE
def test_form_of_the_answer(rule: Any) -> None:
    found = rule.find(random_maps(), GRID)
    assert isinstance(found, Candidates)
    assert len({column.shape for column in found}) == 1
    assert found.frame.dtype == np.int64
    assert found.flux.dtype == np.float64
    assert (np.diff(found.frame) >= 0).all()
    assert set(found.frame) == {0, 1, 3, 4, 5}  # nothing in the empty map
    assert (found.flux >= rule.threshold).all()


@EVERY_RULE
@pytest.mark.parametrize("n", [1, 3])
def test_empty_maps(rule: Any, n: int) -> None:
    found = rule.find(np.zeros((n, *GRID.map_shape)), GRID)
    assert all(column.shape == (0,) for column in found)
    found = rule.find(np.full((n, *GRID.map_shape), -3.0), GRID)
    assert all(column.shape == (0,) for column in found)


@EVERY_RULE
def test_one_map_or_many(rule: Any) -> None:
    maps = random_maps()
    batch = rule.find(maps, GRID)
    for b in range(len(maps)):
        alone = rule.find(maps[b], GRID)
        assert (alone.frame == 0).all()
        for one, column in zip(alone[1:], batch[1:], strict=True):
            np.testing.assert_array_equal(one, column[batch.frame == b])


@EVERY_RULE
def test_order_of_frames(rule: Any) -> None:
    maps, order = random_maps(), np.array([3, 5, 1, 0, 4, 2])
    first, second = rule.find(maps, GRID), rule.find(maps[order], GRID)
    moved = second._replace(frame=order[second.frame])
    np.testing.assert_allclose(rows(moved), rows(first), rtol=1e-12)


@EVERY_RULE
@pytest.mark.parametrize("grid", [GRID, cu.SubpixelGrid((4, 5), 4)], ids=["odd", "even"])
def test_flips_and_transposition(rule: Any, grid: cu.SubpixelGrid) -> None:
    rng = np.random.default_rng(5)
    shape = (20, *grid.map_shape)
    maps = rng.uniform(0, 10, shape) * (rng.random(shape) < 0.3)
    found = rule.find(maps, grid)
    assert found.frame.size > 40
    n_y, n_x = grid.shape
    flipped = rule.find(maps[:, ::-1], grid)
    back = flipped._replace(y=n_y - 1 - flipped.y)
    np.testing.assert_allclose(rows(back), rows(found), atol=1e-9)
    flipped = rule.find(maps[:, :, ::-1], grid)
    back = flipped._replace(x=n_x - 1 - flipped.x)
    np.testing.assert_allclose(rows(back), rows(found), atol=1e-9)
    turned = rule.find(maps.swapaxes(1, 2), cu.SubpixelGrid((n_x, n_y), grid.factor))
    back = turned._replace(y=turned.x, x=turned.y)
    np.testing.assert_allclose(rows(back), rows(found), atol=1e-9)


@EVERY_RULE
def test_precision_and_memory_layout(rule: Any) -> None:
    maps = np.round(random_maps(), 2).astype(np.float32)
    twin = rule.find(maps.astype(np.float64), GRID)
    frozen = maps.copy()
    frozen.flags.writeable = False
    for other in (maps, frozen, np.asfortranarray(maps), maps.astype(">f4")):
        np.testing.assert_allclose(rows(rule.find(other, GRID)), rows(twin), rtol=1e-6)
    np.testing.assert_array_equal(frozen, maps)


SPARSE = {name: rule for name, rule in RULES.items() if not isinstance(rule, cu.LocalMaxima)}


@pytest.mark.parametrize("rule", SPARSE.values(), ids=SPARSE.keys())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 12, 15), (2, 3, 12, 15), (72, 15)])
def test_sparse_maps(rule: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    assert rule.accepts_sparse
    maps = (random_maps() - 0.5).astype(dtype).reshape(shape)
    grid = cu.SubpixelGrid((shape[-2] // 3, 5), 3)
    dense, sparse = rule.find(maps, grid), coo_array(maps)
    order = np.random.default_rng(3).permutation(sparse.nnz)
    shuffled = coo_array((sparse.data[order], [c[order] for c in sparse.coords]), shape=shape)
    twice = coo_array(
        (np.tile(maps[maps != 0] / 2, 2), np.tile(sparse.coords, 2)), shape=shape
    )  # halves add up exactly
    for other in (sparse, shuffled, twice):
        for column, twin in zip(rule.find(other, grid), dense, strict=True):
            np.testing.assert_array_equal(column, twin)
            assert column.dtype == twin.dtype


@pytest.mark.parametrize("rule", SPARSE.values(), ids=SPARSE.keys())
def test_sparse_maps_without_entries_and_wrong_ones(rule: Any) -> None:
    found = rule.find(coo_array((3, *GRID.map_shape)), GRID)
    assert all(column.shape == (0,) for column in found)
    with pytest.raises(ValueError, match=r"maps must end in the image shape \(12, 15\)"):
        rule.find(coo_array((3, 12, 12)), GRID)
    with pytest.raises(TypeError, match="maps must hold real numbers"):
        rule.find(coo_array(np.full(GRID.map_shape, 1j)), GRID)
    huge = coo_array(([1e308, 1e308], [[1, 1], [2, 2], [3, 3]]), shape=(2, *GRID.map_shape))
    for wrong in (coo_array(maps_of((1, 2, 3, np.nan), n=2)), huge):
        with pytest.raises(ValueError, match=r"maps must be finite, .* index \(1, 2, 3\)"):
            rule.find(wrong, GRID)
    whole = coo_array(maps_of((0, 2, 3, 7)).astype(int))
    assert rule.find(whole, GRID).flux.tolist() == [7.0]


@EVERY_RULE
def test_wrong_maps(rule: Any) -> None:
    with pytest.raises(ValueError, match=r"maps must end in the image shape \(12, 15\)"):
        rule.find(np.zeros((3, 12, 12)), GRID)
    with pytest.raises(ValueError, match="maps must be finite"):
        rule.find(np.full(GRID.map_shape, np.nan), GRID)


@pytest.mark.parametrize("make", [cu.EveryCell, cu.LocalMaxima, cu.MassMerging])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"threshold": 0}, ValueError, "threshold must be above 0"),
        ({"threshold": np.nan}, ValueError, "threshold must be finite"),
        ({"threshold": "high"}, TypeError, "threshold must be a real number"),
        ({"min_share": -0.1}, ValueError, "min_share must be at least 0"),
        ({"min_share": 1.5}, ValueError, "min_share must be at most 1"),
    ],
)
def test_wrong_limits(
    make: Callable[..., Any], given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**given)


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="size must be odd, got 4"):
        cu.LocalMaxima(size=4)
    with pytest.raises(ValueError, match="size must be at least 1"):
        cu.LocalMaxima(size=0)
    with pytest.raises(ValueError, match="radius must be above 0"):
        cu.MassMerging(radius=0)


# --- every cell ---------------------------------------------------------------------------------


def test_every_cell_includes_the_threshold_and_keeps_the_order_of_cells() -> None:
    below = np.nextafter(50.0, 0)
    maps = maps_of(
        (0, 7, 2, 50.0), (0, 3, 14, 60.0), (0, 3, 1, below), (1, 0, 0, 55.0), (0, 3, 9, 51.0), n=2
    )
    found = cu.EveryCell(threshold=50.0).find(maps, GRID)
    assert found.frame.tolist() == [0, 0, 0, 1]
    assert found.flux.tolist() == [51.0, 60.0, 50.0, 55.0]
    np.testing.assert_allclose(found.y, [2 / 3, 2 / 3, 2.0, -1 / 3])
    np.testing.assert_allclose(found.x, [8 / 3, 13 / 3, 1 / 3, -1 / 3])


def test_every_cell_is_the_published_protocol() -> None:
    maps = random_maps() * 20
    found = cu.EveryCell(threshold=50.0).find(maps, GRID)
    table = cu.targets.from_grid(maps, factor=3, threshold=50.0, shape=GRID.shape)
    np.testing.assert_array_equal(np.column_stack(found), table[["frame", "y", "x", "flux"]])


def test_min_share_is_of_the_brightest_in_the_frame() -> None:
    maps = maps_of((0, 1, 1, 100.0), (0, 5, 5, 30.0), (0, 9, 9, 29.0), (1, 1, 1, 10.0), n=2)
    found = cu.EveryCell(threshold=2.0, min_share=0.3).find(maps, GRID)
    assert found.flux.tolist() == [100.0, 30.0, 10.0]


# --- local maxima -------------------------------------------------------------------------------


def naive_maxima(image: Floats, size: int, threshold: float) -> list[tuple[int, int]]:
    """Cells that no neighbour exceeds; of those that neighbour each other the first."""
    half, found = size // 2, []

    def near(i: int, j: int) -> list[tuple[int, int]]:
        rows = range(max(0, i - half), min(image.shape[0], i + half + 1))
        columns = range(max(0, j - half), min(image.shape[1], j + half + 1))
        return [(a, b) for a in rows for b in columns]

    left = {
        cell
        for cell in np.ndindex(*image.shape)
        if image[cell] >= threshold and image[cell] == max(image[c] for c in near(*cell))
    }
    while left:
        found.append(min(left))
        plateau = [found[-1]]
        while plateau:
            cell = plateau.pop()
            left.discard(cell)
            plateau += left.intersection(near(*cell))
    return found


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_maxima_equal_a_naive_search(size: int) -> None:
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 6, (8, *GRID.map_shape)).astype(float)  # many plateaus
    found = cu.LocalMaxima(threshold=2.0, size=size).find(maps, GRID)
    i, j = GRID.cell(found.y, found.x)
    for b in range(8):
        mine = list(zip(i[found.frame == b], j[found.frame == b], strict=True))
        assert mine == naive_maxima(maps[b], size, 2.0)


def test_plateaus_and_borders() -> None:
    maps = maps_of(
        (0, 0, 0, 9.0),  # a corner
        (0, 11, 14, 8.0),  # the other
        *((0, i, j, 7.0) for i in (5, 6) for j in (5, 6, 7)),  # a plateau
    )
    found = cu.LocalMaxima(threshold=2.0).find(maps, GRID)
    assert found.flux.tolist() == [9.0, 7.0, 8.0]
    np.testing.assert_allclose(found.y, [-1 / 3, 4 / 3, 10 / 3])
    np.testing.assert_allclose(found.x, [-1 / 3, 4 / 3, 13 / 3])


@pytest.mark.parametrize("turns", range(4))
def test_a_plateau_of_any_form_is_one_target(turns: int) -> None:
    v, bridge = [(5, 5), (6, 6), (5, 7)], [(9, 1), (9, 3)]  # two apart: neighbours at size 5 only
    maps = np.rot90(maps_of(*((0, i, j, 7.0) for i, j in v + bridge)), turns, axes=(1, 2))
    grid = GRID if turns % 2 == 0 else cu.SubpixelGrid(GRID.shape[::-1], GRID.factor)
    for size, count in ((1, 5), (3, 3), (5, 2)):
        assert cu.LocalMaxima(threshold=2.0, size=size).find(maps, grid).flux.size == count


# --- merging ------------------------------------------------------------------------------------


def test_centroid_by_hand() -> None:
    maps = maps_of((0, 4, 4, 30.0), (0, 4, 5, 10.0), (1, 7, 7, 20.0), (1, 8, 7, 20.0), n=2)
    found = cu.MassMerging(threshold=2.0, radius=0.34).find(maps, GRID)
    assert found.flux.tolist() == [40.0, 40.0]
    np.testing.assert_allclose(found.y, [1.0, (2 + 7 / 3) / 2])  # equal cells: midway
    np.testing.assert_allclose(found.x, [1 + 0.25 / 3, 2.0])


def test_merging_conserves_flux_and_its_centre() -> None:
    maps = random_maps()
    for radius in (0.1, 0.4, 0.8, 10.0):
        found = cu.MassMerging(threshold=1e-9, radius=radius).find(maps, GRID)
        for b in range(len(maps)):
            mine = found.frame == b
            flux = maps[b].sum()
            assert found.flux[mine].sum() == pytest.approx(flux)
            for position, axis in ((found.y, GRID.y[:, None]), (found.x, GRID.x[None, :])):
                centre = (maps[b] * axis).sum()
                assert (position * found.flux)[mine].sum() == pytest.approx(centre, abs=1e-9)
            if radius == 10.0:
                assert mine.sum() == (flux > 0)
            y, x = found.y[mine], found.x[mine]
            distance = np.hypot(y[:, None] - y, x[:, None] - x)[~np.eye(y.size, dtype=bool)]
            assert (distance > radius).all()


@pytest.mark.parametrize("factor", [3, 4, 5, 7])
def test_the_radius_itself_merges(factor: int) -> None:
    grid = cu.SubpixelGrid((4, 5), factor)
    maps = maps_of((0, 4, 4, 30.0), (0, 4, 6, 30.0), grid=grid)  # two cells apart
    for radius, count in ((2 / factor, 1), (2 / factor * 0.999, 2)):
        found = cu.MassMerging(threshold=2.0, radius=radius).find(maps, grid)
        assert found.flux.size == count


def test_the_most_unequal_of_equally_close_pairs_merges_first() -> None:
    maps = maps_of((0, 4, 4, 20.0), (0, 4, 5, 1.0), (0, 4, 6, 15.0))
    found = cu.MassMerging(threshold=2.0, radius=0.34).find(maps, GRID)
    assert found.flux.tolist() == [21.0, 15.0]  # not 20 and 16


def merge_plainly(y: Floats, x: Floats, flux: Floats, radius: float) -> Floats:
    """The closest pair of all, of equally close ones the most unequal, again and again."""
    while True:
        gap = np.hypot(y[:, None] - y, x[:, None] - x) + np.diag(np.full(y.size, np.inf))
        if gap.min() > radius * (1 + 1e-9):
            return np.column_stack([y, x, flux])
        share = np.minimum(flux[:, None], flux) / (flux[:, None] + flux)
        tied = gap <= gap.min() * (1 + 1e-9)
        a, b = np.unravel_index(np.where(tied, share, np.inf).argmin(), gap.shape)
        total = flux[a] + flux[b]
        y[a], x[a] = (
            (flux[a] * y[a] + flux[b] * y[b]) / total,
            (flux[a] * x[a] + flux[b] * x[b]) / total,
        )
        flux[a] = total
        y, x, flux = (np.delete(values, b) for values in (y, x, flux))


@pytest.mark.parametrize("radius", [0.4, 0.7])
def test_dense_maps_merge_by_the_rule(radius: float) -> None:
    full = np.random.default_rng(4).uniform(1, 10, GRID.map_shape)
    y, x = np.meshgrid(GRID.y, GRID.x, indexing="ij")
    expected = merge_plainly(y.ravel(), x.ravel(), full.ravel().copy(), radius)
    found = cu.MassMerging(threshold=1e-9, radius=radius).find(full, GRID)
    assert 5 < found.flux.size < 100
    np.testing.assert_allclose(np.column_stack(found[1:]), expected, rtol=1e-9)


def test_frames_never_merge() -> None:
    maps = maps_of((0, 11, 14, 30.0), (1, 0, 0, 30.0), (2, 0, 0, 30.0), n=3)
    found = cu.MassMerging(threshold=2.0, radius=5.0).find(maps, GRID)
    assert found.frame.tolist() == [0, 1, 2]
    assert found.flux.tolist() == [30.0, 30.0, 30.0]


def test_the_limits_are_those_of_merged_targets() -> None:
    maps = maps_of((0, 2, 2, 30.0), (0, 2, 3, 25.0), (0, 9, 9, 49.0), (0, 9, 2, 5.0))
    found = cu.MassMerging(threshold=50.0, radius=0.4).find(maps, GRID)
    assert found.flux.tolist() == [55.0]
    found = cu.MassMerging(threshold=4.0, radius=0.4, min_share=0.5).find(maps, GRID)
    assert sorted(found.flux) == [49.0, 55.0]


def test_negative_cells_are_no_mass() -> None:
    maps = maps_of((0, 4, 4, 30.0), (0, 4, 5, -10.0))
    found = cu.MassMerging(threshold=2.0, radius=0.4).find(maps, GRID)
    assert found.flux.tolist() == [30.0]
    np.testing.assert_allclose(found.x, [1.0])


def test_rules_are_values() -> None:
    for rule in RULES.values():
        assert rule == dataclasses.replace(rule)
        assert hash(rule) == hash(dataclasses.replace(rule))
        with pytest.raises(dataclasses.FrozenInstanceError):
            rule.threshold = 3.0
