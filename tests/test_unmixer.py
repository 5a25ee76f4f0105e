"""Images to target tables: the whole pipeline, and the methods by name."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.sparse import coo_array

import csunmix as cu
from csunmix.methods import DEFAULT_GRID_METHOD, GRID_METHODS, PEAK_RULES
from csunmix.peaks import Candidates
from csunmix.solvers import SolveResult
from csunmix.solvers.base import universal_lam
from csunmix.targets import COLUMNS, Flag

Floats = npt.NDArray[np.floating[Any]]

PRESET = cu.presets.csist_100k()
SHAPE = PRESET.shape
DICTIONARY = cu.Dictionary(PRESET.psf, SHAPE, 3)


@functools.cache
def simulated(n: int = 12, seed: int = 41) -> Any:
    made = cu.simulate(PRESET.psf, PRESET.sensor, PRESET.scene, shape=SHAPE, n=n, rng=seed)
    made.images.flags.writeable = False
    return made


def unmixer(**given: Any) -> cu.GridUnmixer:
    parts: dict[str, Any] = {
        "solver": cu.ActiveSet(lam=0.5),
        "peaks": cu.MassMerging(threshold=40.0, radius=0.35),
        "sensor": PRESET.sensor,
    }
    return cu.GridUnmixer(given.pop("dictionary", DICTIONARY), **(parts | given))


def rows(table: pd.DataFrame) -> Floats:
    """Rows (frame, y, x, flux, flags), sorted."""
    values = table[["frame", "y", "x", "flux", "flags"]].to_numpy(float)
    return values[np.lexsort(np.round(values, 5).T[::-1])]


def lone_target(y: float = 5.0, x: float = 5.0, flux: float = 230.0) -> Floats:
    return cu.render(PRESET.psf, cu.targets.make_table(0, y, x, flux), shape=SHAPE)[0]


# --- the answer ---------------------------------------------------------------------------------


def test_a_lone_target_on_the_grid_in_closed_form() -> None:
    lam, y, x = 3.0, 5.0 + 1 / 3, 4.0
    unmix = unmixer(solver=cu.ActiveSet(lam=lam), sensor=None)
    table = unmix(lone_target(y, x))
    norm2 = np.sum(lone_target(y, x, 1.0) ** 2)
    assert len(table) == 1
    row = table.iloc[0]
    assert row["flux"] == pytest.approx(230.0 - lam / norm2, rel=1e-9)
    assert (row["y"], row["x"]) == pytest.approx((y, x), abs=1e-9)


def test_form_of_the_table() -> None:
    unmix = unmixer()
    table = unmix(simulated().images)
    assert tuple(table.columns) == COLUMNS
    assert table["frame"].is_monotonic_increasing
    assert table[["y_err", "x_err", "flux_err", "score"]].isna().all(axis=None)
    assert table.attrs["n_frames"] == 12
    assert table.attrs["image_shape"] == SHAPE
    assert "ActiveSet(lam=0.5" in table.attrs["method"]
    cu.targets.check_table(table)


def test_targets_are_found() -> None:
    made = simulated(100, 7)
    table = cu.grid_unmixer(psf=PRESET.psf, shape=SHAPE, sensor=PRESET.sensor, prior=PRESET.prior)(
        made.images
    )
    scores = cu.compare({"active-set": table}, made.truth).iloc[0]
    assert scores["CSO-mAP"] > 45
    assert scores["count accuracy"] > 65


def test_normalised_dictionaries_answer_in_flux() -> None:
    unmix = unmixer(
        dictionary=cu.Dictionary(PRESET.psf, SHAPE, 3, normalised=True),
        solver=cu.OMP(n_nonzero=1),
        peaks=cu.EveryCell(),
    )
    assert unmix(lone_target(5, 4 / 3)).iloc[0]["flux"] == pytest.approx(230.0)


# --- what must not change the answer ------------------------------------------------------------

TURNS: dict[str, tuple[Callable[[Floats], Floats], Callable[[pd.DataFrame], dict[str, Any]]]] = {
    "up-down": (lambda a: a[..., ::-1, :], lambda t: {"y": 10 - t["y"]}),
    "left-right": (lambda a: a[..., ::-1], lambda t: {"x": 10 - t["x"]}),
    "transpose": (lambda a: a.swapaxes(-1, -2), lambda t: {"y": t["x"], "x": t["y"]}),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("factor", [3, 4])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"background": "border", "peaks": cu.LocalMaxima(threshold=30.0)},
        {
            "solver": cu.OMP(bounds=(220, 250), locally_optimised=True, exclusion_radius=0.3),
            "peaks": cu.EveryCell(),
        },
    ],
    ids=["merging", "maxima", "omp"],
)
def test_flips_and_transposition(turn: str, factor: int, given: dict[str, Any]) -> None:
    turned, back = TURNS[turn]
    unmix = unmixer(dictionary=cu.Dictionary(PRESET.psf, SHAPE, factor), **given)
    # Noise breaks the ties that whole numbers would leave to rounding.
    images = simulated().images + np.random.default_rng(0).normal(0, 0.1, (12, *SHAPE))
    first, second = unmix(images), unmix(turned(images))
    assert len(first) > 15
    moved = second.assign(**back(second))
    np.testing.assert_allclose(rows(moved), rows(first), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 1000])
def test_batches_are_loops(batch_size: int) -> None:
    images = simulated().images
    batch = unmixer()(images, batch_size=batch_size)
    loop = pd.concat(
        [unmixer()(image).assign(frame=k) for k, image in enumerate(images)], ignore_index=True
    )
    pd.testing.assert_frame_equal(batch, loop, rtol=1e-10)


def test_frames_count_leading_axes_in_row_major_order() -> None:
    images = simulated().images
    flat = unmixer()(images)
    for lead in [(2, 6), (12, 1), (3, 2, 2)]:
        table = unmixer()(images.reshape(*lead, *SHAPE))
        pd.testing.assert_frame_equal(table, flat)
        assert table.attrs == flat.attrs
    order = np.array([5, 3, 0, 11, 1, 2, 10, 4, 9, 8, 7, 6])
    permuted = unmixer()(images[order])
    moved = permuted.assign(frame=order[permuted["frame"]])
    np.testing.assert_allclose(rows(moved), rows(flat), rtol=1e-10)


def test_data_types_and_memory_layout(tmp_path: Path) -> None:
    images = simulated().images
    twin = unmixer()(images)
    np.save(tmp_path / "images.npy", images)
    wide = np.zeros((12, 22, 33))
    wide[:, ::2, ::3] = images
    for other in (
        images.astype(np.uint8),
        images.astype(np.uint16),
        images.astype(">i4"),
        np.load(tmp_path / "images.npy", mmap_mode="r"),
        np.asfortranarray(images),
        wide[:, ::2, ::3],
        images.tolist(),
    ):
        pd.testing.assert_frame_equal(unmixer()(other), twin)
    single = unmixer()(images.astype(np.float32))
    np.testing.assert_allclose(rows(single), rows(twin), atol=2e-3)
    assert unmixer().solve(images.astype(np.float32)).x.dtype == np.float32


def test_progress_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    images = simulated().images
    shown = unmixer()(images, progress=True, batch_size=4)
    assert "12/12" in capsys.readouterr().err
    silent = unmixer()(images)
    assert capsys.readouterr() == ("", "")
    pd.testing.assert_frame_equal(shown, silent)


# --- detector and background --------------------------------------------------------------------


def test_offset_and_background_come_off() -> None:
    images = np.stack([lone_target(5, 5), lone_target(4, 6)])
    truth = unmixer(sensor=None)(images)
    for given, level in (
        ({"sensor": cu.Sensor(offset=100.0)}, 100.0),
        ({"sensor": None, "background": 12.5}, 12.5),
        ({"sensor": cu.Sensor(offset=100.0), "background": -30}, 70.0),
    ):
        np.testing.assert_allclose(rows(unmixer(**given)(images + level)), rows(truth), rtol=1e-8)
    # The ring holds next to nothing of targets in the middle.
    levels = np.array([-40.0, 1e3])[:, None, None]
    found = unmixer(sensor=cu.Sensor(offset=7.0), background="border")(images + levels)
    np.testing.assert_allclose(rows(found), rows(truth), rtol=1e-6)


def test_saturated_pixels_are_bounds_after_the_level_is_off() -> None:
    made = simulated()
    twin = unmixer()(made.images)
    sensor = cu.Sensor(rounding=True, saturation=355.0, offset=100.0)
    raised = unmixer(sensor=sensor)(made.images + 100.0)
    np.testing.assert_allclose(rows(raised), rows(twin), rtol=1e-7)
    believed = unmixer(sensor=None)(made.images)
    clipped = np.flatnonzero((made.images == 255).any(axis=(1, 2)))
    flux = twin.groupby("frame")["flux"].sum() - believed.groupby("frame")["flux"].sum()
    assert (flux[clipped] > 1).all()


@pytest.mark.parametrize("background", [0.0, "border"])
@pytest.mark.parametrize("lam", [0.5, "auto"])
def test_bad_pixels_are_ignored_whatever_they_hold(background: Any, lam: Any) -> None:
    rng = np.random.default_rng(3)
    images = simulated().images + rng.normal(0, 1, (12, *SHAPE)) + 50.0
    bad = np.zeros(SHAPE, bool)
    bad[0, ::2] = bad[5, 5] = bad[10, 3:9] = True
    sensor = cu.Sensor(bad_pixels=bad, offset=50.0)
    unmix = unmixer(sensor=sensor, background=background, solver=cu.ActiveSet(lam=lam))
    first = unmix(images)
    for junk in (0.0, 1e6, -1e6, np.nan, np.inf):
        pd.testing.assert_frame_equal(unmix(np.where(bad, junk, images)), first)
        x = unmix.solve(np.where(bad, junk, images)).x
        np.testing.assert_array_equal(x, unmix.solve(images).x)
    assert len(first) > 12
    assert (first["flags"] & int(Flag.BAD_PIXELS)).all()


def test_all_pixels_bad() -> None:
    unmix = unmixer(sensor=cu.Sensor(bad_pixels=np.ones(SHAPE, bool)))
    table = unmix(simulated().images)
    assert len(table) == 0
    assert set(table.attrs["frame_flags"].values()) == {Flag.BAD_PIXELS | Flag.NO_TARGET}


def test_auto_lam_takes_the_noise_of_the_sensor() -> None:
    images = simulated().images
    sensor = cu.Sensor(read_noise=4.0, saturation=255.0)
    lam = float(universal_lam(DICTIONARY, 4.0))
    for make in (cu.ActiveSet, cu.SplitBregman):
        auto = unmixer(sensor=sensor, solver=make(lam="auto"))(images[:3])
        fixed = unmixer(sensor=sensor, solver=make(lam=lam))(images[:3])
        np.testing.assert_allclose(rows(auto), rows(fixed), rtol=1e-12)


# --- flags --------------------------------------------------------------------------------------


def test_nothing_to_see() -> None:
    table = unmixer()(np.zeros((2, *SHAPE)))
    assert len(table) == 0
    assert tuple(table.columns) == COLUMNS
    assert table.attrs["n_frames"] == 2
    assert table.attrs["frame_flags"] == {0: Flag.NO_TARGET, 1: Flag.NO_TARGET}


@pytest.mark.parametrize("method", ["active-set", "omp", "matching-pursuit", "fista"])
def test_every_pixel_saturated_is_a_valid_answer(method: str) -> None:
    unmix = cu.grid_unmixer(
        method,
        psf=PRESET.psf,
        shape=SHAPE,
        sensor=PRESET.sensor,
        prior=PRESET.prior,
        factor=2,
        lam=5.0,
    )
    table = unmix(np.full(SHAPE, 255.0))
    cu.targets.check_table(table)
    assert table.attrs["frame_flags"][0] & Flag.SATURATED
    assert (table["flags"] & int(Flag.SATURATED)).all()
    if method in ("active-set", "fista"):  # the least light that saturates every pixel
        assert table["flux"].sum() == pytest.approx(255 * 11 * 11, rel=0.2)


def test_flags_of_targets() -> None:
    clipped = np.minimum(lone_target(5, 5, 900.0), 255.0)
    edge = lone_target(0.4, 5.0)
    table = unmixer()(np.stack([lone_target(), clipped, edge]))
    flags = table.groupby("frame")["flags"].unique()
    assert [f.tolist() for f in flags] == [[0], [Flag.SATURATED], [Flag.BORDER]]
    assert table.attrs["frame_flags"] == {1: Flag.SATURATED, 2: Flag.BORDER}
    inside = lone_target(0.67, 5.0)
    assert unmixer()(inside)["flags"].tolist() == [0]
    for y, x in ((5.0, 0.0), (10.0, 5.0), (5.0, 10.0)):
        assert unmixer()(lone_target(y, x))["flags"].tolist() == [Flag.BORDER]


def test_solvers_that_stop_early_are_flagged() -> None:
    unmix = unmixer(solver=cu.FISTA(lam=0.5, max_iter=5), peaks=cu.EveryCell(threshold=1.0))
    table = unmix(simulated().images)
    assert (table["flags"] & int(Flag.NOT_CONVERGED)).all()
    assert set(table.attrs["frame_flags"]) == set(range(12))


def test_one_image_that_is_not_finite_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    images = simulated().images.copy()
    twin = unmixer()(images)
    images[4, 2, 3], images[7, 0, 0] = np.nan, np.inf
    with caplog.at_level(logging.WARNING, logger="csunmix"):
        table = unmixer()(images)
    others = twin[~twin["frame"].isin([4, 7])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, others)
    expected = Flag.NOT_FINITE | Flag.NO_TARGET
    assert table.attrs["frame_flags"][4] == table.attrs["frame_flags"][7] == expected
    assert table.attrs["n_frames"] == 12
    (record,) = caplog.records
    assert record.name == "csunmix"
    assert "2 image(s) not finite, first frame 4" in record.message
    pd.testing.assert_frame_equal(unmixer()(images, batch_size=1), table)


def test_nothing_but_images_that_are_not_finite() -> None:
    image = lone_target()
    image[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"images must be finite.*\(2, 3\)"):
        unmixer()(image)
    with pytest.raises(ValueError, match=r"images must be finite.*\(1, 2, 3\)"):
        unmixer().solve(np.stack([lone_target(), image]))


# --- parts of one's own -------------------------------------------------------------------------


class MatchedFilter:
    """A user's own solver: inherits from nothing, and is no dataclass."""

    lam = "auto"  # a name that means something to others

    def solve(
        self,
        dictionary: cu.Dictionary,
        images: npt.ArrayLike,
        *,
        weights: npt.ArrayLike | None = None,
        censored: npt.ArrayLike | None = None,
        x0: npt.ArrayLike | None = None,
        callback: Any = None,
    ) -> SolveResult:
        x = np.maximum(dictionary.adjoint(images), 0) / dictionary.norms**2
        lead = x.shape[:-2]
        nothing = np.full(lead, np.nan)
        return SolveResult(
            coefficients=x,
            n_iter=np.zeros(lead, np.int64),
            converged=np.ones(lead, bool),
            gap=nothing,
            objective=nothing,
            residual_norm=nothing,
            history=(),
        )


class Brightest:
    """A user's own rule: the brightest cell of every map."""

    def find(self, maps: npt.ArrayLike, grid: cu.SubpixelGrid) -> Candidates:
        stack = np.asarray(maps).reshape(-1, *grid.map_shape)
        i, j = np.unravel_index(stack.reshape(len(stack), -1).argmax(axis=1), grid.map_shape)
        frame = np.arange(len(stack))
        return Candidates(frame, *grid.position(i, j), stack[frame, i, j])


def test_parts_of_ones_own_need_no_inheritance() -> None:
    unmix = unmixer(solver=MatchedFilter(), peaks=Brightest())
    table = unmix(np.stack([lone_target(4 + 1 / 3, 6.0), lone_target(5, 5)]))
    np.testing.assert_allclose(table["y"], [4 + 1 / 3, 5])
    np.testing.assert_allclose(table["x"], [6, 5])
    np.testing.assert_allclose(table["flux"], 230.0)
    mixed = unmixer(solver=cu.OMP(n_nonzero=1), peaks=Brightest())(lone_target())
    assert mixed["flux"].tolist() == pytest.approx([230.0])


@pytest.mark.parametrize("accepts", [True, False])
def test_a_rule_that_accepts_sparse_maps_is_given_them(accepts: bool) -> None:
    given = []

    class Listener(Brightest):
        accepts_sparse = accepts

        def find(self, maps: Any, grid: cu.SubpixelGrid) -> Candidates:
            given.append(type(maps))
            return super().find(maps.toarray() if accepts else maps, grid)

    table = unmixer(solver=cu.OMP(n_nonzero=1), peaks=Listener())(lone_target())
    assert table["flux"].tolist() == pytest.approx([230.0])
    assert given == [coo_array if accepts else np.ndarray]


class Plain(MatchedFilter):
    """A solver that knows of images only."""

    def solve(  # type: ignore[override]
        self,
        dictionary: cu.Dictionary,
        images: npt.ArrayLike,
        *,
        x0: Any = None,
        callback: Any = None,
    ) -> SolveResult:
        return super().solve(dictionary, images)


BAD_PIXELS = cu.Sensor(bad_pixels=np.eye(11) > 0)


def test_a_solver_is_told_of_pixels_only_where_the_sensor_has_to_say_something() -> None:
    one = lone_target()
    for sensor in (None, cu.Sensor(read_noise=1.0, offset=3.0)):
        table = unmixer(solver=Plain(), peaks=Brightest(), sensor=sensor)(one)
        assert (table["y"][0], table["x"][0]) == pytest.approx((5, 5))
    told: list[set[str]] = []

    class Listener(MatchedFilter):
        def solve(self, dictionary: cu.Dictionary, images: npt.ArrayLike, **given: Any) -> Any:
            told.append(set(given))
            return super().solve(dictionary, images)

    for sensor in (None, PRESET.sensor, BAD_PIXELS):
        unmixer(solver=Listener(), peaks=Brightest(), sensor=sensor)(one)
    assert told == [set(), {"censored"}, {"weights"}]


@pytest.mark.parametrize(
    ("sensor", "message"),
    [
        (PRESET.sensor, r"solve\(..., censored=...\) since the sensor saturates, got .*Plain"),
        (BAD_PIXELS, r"solve\(..., weights=...\) since the sensor has bad pixels, got .*Plain"),
    ],
)
def test_a_solver_that_can_not_be_told_is_refused(sensor: cu.Sensor, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        unmixer(solver=Plain(), sensor=sensor)


def test_batches_bound_the_memory() -> None:
    stack = np.ones((2000, 64, 64), np.uint8)
    unmix = unmixer(
        dictionary=cu.Dictionary(PRESET.psf, (64, 64), 1),
        solver=MatchedFilter(),
        peaks=Brightest(),
        sensor=cu.Sensor(bad_pixels=np.eye(64) > 0),
    )
    unmix(stack[:10])
    tracemalloc.start()
    unmix(stack, batch_size=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * stack.nbytes  # the stack in double precision takes eight times as much


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dictionary": "A"}, TypeError, "dictionary must be of type Dictionary"),
        ({"solver": cu.MassMerging()}, TypeError, r"solver must have a method solve\(\)"),
        ({"solver": cu.ActiveSet}, TypeError, r"solver must have a method solve\(\), got <class"),
        ({"peaks": cu.MassMerging}, TypeError, r"peaks must have a method find\(\), got <class"),
        ({"peaks": cu.OMP()}, TypeError, r"peaks must have a method find\(\)"),
        ({"sensor": PRESET.prior}, TypeError, "sensor must be of type Sensor"),
        (
            {"sensor": cu.Sensor(bad_pixels=np.zeros((3, 3), bool))},
            ValueError,
            r"bad_pixels has shape \(3, 3\), the images \(11, 11\)",
        ),
        ({"background": "mean"}, ValueError, "background must be a number or 'border'"),
        ({"background": np.nan}, ValueError, "background must be finite"),
        ({"background": None}, TypeError, "background must be a real number"),
    ],
)
def test_wrong_parts(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unmixer(**given)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((0, 11, 11)), ValueError, r"images must not be empty, got shape \(0, 11, 11\)"),
        (np.zeros((11, 12)), ValueError, r"images must end in the image shape \(11, 11\)"),
        (np.zeros(11), ValueError, "images must have at least two axes"),
        (np.zeros(SHAPE, complex), TypeError, "images must hold real numbers"),
        (np.full(SHAPE, "1"), TypeError, "images must hold real numbers"),
        (np.full(SHAPE, None), TypeError, "images must hold real numbers"),
        (
            np.ma.masked_equal(np.arange(2)[:, None, None] + np.zeros(SHAPE), 1),
            TypeError,
            "images is a masked array",
        ),
    ],
)
def test_wrong_images(images: Any, error: type[Exception], message: str) -> None:
    for unmix in (unmixer(), unmixer(sensor=cu.Sensor(bad_pixels=np.eye(11) > 0))):
        with pytest.raises(error, match=message):
            unmix(images)
        with pytest.raises(error, match=message):
            unmix.solve(images)


def test_wrong_batch_size_and_progress() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        unmixer()(lone_target(), batch_size=0)
    with pytest.raises(TypeError, match="progress must be True or False"):
        unmixer()(lone_target(), progress=1)  # type: ignore[arg-type]


# --- methods by name ----------------------------------------------------------------------------


def named(method: str = DEFAULT_GRID_METHOD, **given: Any) -> cu.GridUnmixer:
    settings: dict[str, Any] = {
        "psf": PRESET.psf,
        "shape": SHAPE,
        "sensor": PRESET.sensor,
        "prior": PRESET.prior,
    }
    return cu.grid_unmixer(method, **(settings | given))


@pytest.mark.parametrize("method", GRID_METHODS)
def test_every_method_works(method: str) -> None:
    truth = cu.targets.make_table([0, 1, 1], [5.1, 4.0, 4.0], [4.9, 5.0, 7.6], [230.0, 240, 225])
    images = np.rint(cu.render(PRESET.psf, truth, shape=SHAPE))
    unmix = named(method, factor=3, lam=1.0)
    table = unmix(images)
    assert set(table["frame"]) == {0, 1}
    for frame, y, x in truth[["frame", "y", "x"]].itertuples(index=False):
        found = table[table["frame"] == frame]
        assert np.hypot(found["y"] - y, found["x"] - x).min() < 0.35  # a cell
    pursuit = method in ("omp", "matching-pursuit")
    assert isinstance(unmix.peaks, cu.EveryCell if pursuit else cu.MassMerging)


@pytest.mark.parametrize("method", ["active-set", "omp"])
def test_every_peak_rule_works(method: str) -> None:
    kinds = (cu.EveryCell, cu.LocalMaxima, cu.MassMerging)
    for name, kind in zip(PEAK_RULES, kinds, strict=True):
        unmix = named(method, peaks=name, factor=3)
        assert isinstance(unmix.peaks, kind)
        table = unmix(lone_target(5.0, 4.0))
        assert table[["y", "x"]].to_numpy().tolist() == [pytest.approx([5.0, 4.0], abs=1e-9)]


def test_settings_that_are_chosen() -> None:
    unmix = named()
    noise = np.sqrt(1 / 12)
    assert DEFAULT_GRID_METHOD == "active-set"
    assert unmix.dictionary.grid.factor == 7
    assert unmix.solver == cu.ActiveSet(lam=0.07 * noise)
    lam = 0.35 * float(universal_lam(unmix.dictionary, noise))
    assert named(refine=True).solver == cu.ActiveSet(lam=lam)
    assert named(refine=True, sensor=cu.Sensor()).solver == cu.ActiveSet(lam="auto")
    assert isinstance(unmix.peaks, cu.MassMerging)
    assert unmix.peaks.threshold == pytest.approx(44.0)
    assert unmix.peaks.min_share == 0
    assert unmix.sensor is PRESET.sensor

    omp = named("omp").solver
    assert isinstance(omp, cu.OMP)
    assert (omp.n_nonzero, omp.bounds, omp.locally_optimised) == (5, (220, 250), True)
    assert omp.residual_tol == pytest.approx(noise * 11)
    assert omp.exclusion_radius < PRESET.prior.min_separation

    bare = cu.grid_unmixer(psf=cu.GaussianPSF(2.0), shape=(21, 21))
    assert bare.dictionary.grid.factor == 2
    assert bare.solver == cu.ActiveSet(lam="auto")
    assert isinstance(bare.peaks, cu.MassMerging)
    # Five times the error of a lone target's flux: noise over the norm of its response.
    norm = np.linalg.norm(cu.GaussianPSF(2.0).response(10, 10, (21, 21)))
    assert bare.peaks.threshold == pytest.approx(5 * noise / norm, rel=1e-6)
    assert bare.peaks.min_share > 0


def test_settings_that_are_given() -> None:
    unmix = named(
        "split-bregman",
        factor=4,
        lam=2.5,
        peaks="local-maxima",
        threshold=33.0,
        min_share=0.25,
        background="border",
    )
    assert unmix.dictionary.grid.factor == 4
    assert unmix.solver == cu.SplitBregman(lam=2.5, tol=1e-3)
    assert unmix.peaks == cu.LocalMaxima(threshold=33.0, min_share=0.25)
    assert unmix.background == "border"
    pursuit = named("matching-pursuit", n_nonzero=3).solver
    assert isinstance(pursuit, cu.MatchingPursuit)
    assert pursuit.n_nonzero == 3


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"method": "lasso"}, ValueError, "method must be one of " + ", ".join(GRID_METHODS)),
        ({"peaks": "max"}, ValueError, "peaks must be one of " + ", ".join(PEAK_RULES)),
        ({"psf": 0.5}, TypeError, "psf must be of type PSF"),
        ({"shape": (11, 0)}, ValueError, r"shape\[1\] must be at least 1"),
        ({"shape": 11}, TypeError, "shape must be a pair"),
        ({"sensor": 255}, TypeError, "sensor must be of type Sensor"),
        ({"prior": (1, 5)}, TypeError, "prior must be of type Prior"),
        ({"factor": 2.5}, TypeError, "factor must be an integer"),
        ({"lam": -1.0}, ValueError, "lam must be at least 0"),
        ({"method": "omp", "n_nonzero": 0}, ValueError, "n_nonzero must be at least 1"),
        ({"threshold": 0.0}, ValueError, "threshold must be above 0"),
        ({"min_share": 2.0}, ValueError, "min_share must be at most 1"),
        ({"background": "median"}, ValueError, "background must be a number or 'border'"),
    ],
)
def test_wrong_settings(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        named(**given)


# --- threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        cu.ActiveSet(lam=0.5),
        cu.FISTA(lam=0.5, tol=1e-3),
        cu.ISTA(lam=5.0, tol=1e-2),
        cu.SplitBregman(lam=5.0, tol=1e-2),
        cu.OMP(n_nonzero=3),
        cu.MatchingPursuit(n_nonzero=3),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("refine", [None, PRESET.prior], ids=["grid", "refined"])
def test_any_number_of_threads_gives_the_same_to_the_bit(solver: Any, refine: Any) -> None:
    images = simulated().images.astype(float)
    images[3, 2, 2] = np.nan
    one = unmixer(solver=solver, refine=refine)(images)
    for n_jobs, batch_size in ((2, 1000), (3, 5), (20, 4)):
        several = unmixer(solver=solver, refine=refine, n_jobs=n_jobs)
        table = several(images, batch_size=batch_size)
        pd.testing.assert_frame_equal(table, one, check_exact=True)
        assert table.attrs == one.attrs


def test_threads_get_parts_alike() -> None:
    given: list[tuple[int, int]] = []

    @dataclasses.dataclass(frozen=True)
    class Watching:
        def solve(self, dictionary: Any, images: Any, **given_too: Any) -> SolveResult:
            given.append((len(images), threading.get_ident()))
            time.sleep(0.02)
            return cu.ActiveSet(lam=0.5).solve(dictionary, images, **given_too)

    unmixer(solver=Watching(), n_jobs=2)(simulated().images, batch_size=5)
    assert [n for n, _ in given] == [3] * 4  # not five, five, two
    assert len({thread for _, thread in given}) == 2


@pytest.mark.parametrize(("shape", "size"), [((11, 11), 3673), ((128, 100), 34), ((800, 800), 1)])
def test_images_at_a_time_bound_the_memory(shape: tuple[int, int], size: int) -> None:
    grid = dataclasses.replace(unmixer(), dictionary=cu.Dictionary(PRESET.psf, shape, 3))
    assert grid.batch_size == size


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError)])
def test_number_of_threads_is_checked(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^n_jobs must be"):
        unmixer(n_jobs=value)
