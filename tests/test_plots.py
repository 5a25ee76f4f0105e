"""The pictures, by their facts: positions in data coordinates, extents, artists, labels."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import csunmix as cu
from csunmix import plots
from csunmix.metrics import cso_map, precision_recall
from csunmix.targets import make_table

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SHAPE = (7, 12)  # not square: axes that are swapped show


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.figure().add_subplot()


def image_with_peak(y, x, shape=SHAPE):
    image = np.zeros(shape)
    image[y, x] = 100.0
    return image


def shown_at(ax, x, y):
    """Value of the picture in `ax` at a position in data coordinates."""
    (picture,) = ax.images
    left, right, bottom, top = picture.get_extent()
    values = picture.get_array()
    n_y, n_x = values.shape
    row = int((y - top) / (bottom - top) * n_y)
    col = int((x - left) / (right - left) * n_x)
    return values[row, col]


def markers(ax):
    """Positions (x, y) and areas of each group of markers in `ax`."""
    return [(np.asarray(c.get_offsets()), c.get_sizes()) for c in ax.collections if is_markers(c)]


def is_markers(collection):
    return isinstance(collection, matplotlib.collections.PathCollection)


# The image


def test_pixel_centres_lie_at_integers_and_row_0_at_the_top(ax):
    assert plots.plot_image(image_with_peak(y=2, x=9), ax=ax) is ax
    assert shown_at(ax, x=9, y=2) == 100.0
    assert shown_at(ax, x=9.49, y=1.51) == 100.0
    assert shown_at(ax, x=9.51, y=2) == 0.0
    assert ax.get_xlim() == (-0.5, 11.5)
    assert ax.get_ylim() == (6.5, -0.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x [px]", "y [px]")


def test_drawn_pixels_are_where_the_data_coordinates_say():
    """Rendered, not asked: the bright pixel of the canvas maps back to the pixel's centre."""
    figure = plt.figure(figsize=(4, 3), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    plots.plot_image(image_with_peak(y=2, x=9), ax=ax)
    ax.set_axis_off()
    figure.canvas.draw()
    grey = np.asarray(figure.canvas.buffer_rgba())[..., 0].astype(float)
    # Canvas rows count from the top, display coordinates from the bottom.
    x, y = ax.transData.transform((9, 2))
    outside = ax.transData.transform((8, 2))
    assert grey[grey.shape[0] - 1 - int(y), int(x)] == 255
    assert grey[grey.shape[0] - 1 - int(outside[1]), int(outside[0])] == 0


def test_image_keeps_its_values_and_takes_options(ax):
    image = np.arange(84.0).reshape(SHAPE)
    plots.plot_image(image, ax=ax, colorbar=True, cmap="PuOr", vmin=-10, vmax=50)
    (picture,) = ax.images
    np.testing.assert_array_equal(picture.get_array(), image)
    assert picture.get_clim() == (-10, 50)
    assert picture.get_cmap().name == "PuOr"
    assert [a.get_ylabel() for a in ax.figure.axes] == ["y [px]", "DN"]


def test_nan_pixels_stay_empty(ax):
    image = image_with_peak(1, 1)
    image[0, 0] = np.nan
    plots.plot_image(image, ax=ax)
    assert ax.images[0].get_array().mask.sum() == 1


# The map


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_cells_are_drawn_at_their_positions(ax, factor):
    grid = cu.SubpixelGrid(SHAPE, factor)
    i, j = 2 * factor, 9 * factor + factor - 1
    flux = np.zeros(grid.map_shape)
    flux[i, j] = 200.0
    assert plots.plot_map(flux, grid, ax=ax) is ax
    y, x = grid.position(i, j)
    assert shown_at(ax, x=x, y=y) == 200.0
    assert shown_at(ax, x=x + 1 / factor, y=y) == 0.0
    assert tuple(ax.images[0].get_extent()) == (-0.5, 11.5, 6.5, -0.5)


def test_pixel_boundaries_are_drawn_between_the_pixels(ax):
    grid = cu.SubpixelGrid(SHAPE, 2)
    plots.plot_map(np.zeros(grid.map_shape), grid, ax=ax)
    across, along = (np.array(lines.get_segments()) for lines in ax.collections)
    np.testing.assert_array_equal(across[:, 0, 1], np.arange(6) + 0.5)
    np.testing.assert_array_equal(along[:, 0, 0], np.arange(11) + 0.5)


# Targets


def test_targets_lie_at_their_positions_with_area_by_flux(ax):
    targets = make_table([0, 0, 1], [2.25, 3.5, 6.0], [9.1, 8.0, 1.0], [50.0, 200.0, 300.0])
    assert plots.plot_targets(targets, frame=0, ax=ax, label="found") is ax
    ((positions, area),) = markers(ax)
    np.testing.assert_allclose(positions, [[9.1, 2.25], [8.0, 3.5]])
    assert area[1] == pytest.approx(4 * area[0])
    assert ax.collections[0].get_label() == "found"


def test_full_flux_makes_areas_comparable(ax):
    for flux in (100.0, 200.0):
        plots.plot_targets(make_table([0], [1.0], [1.0], [flux]), ax=ax, full_flux=200.0)
    (_, half), (_, full) = markers(ax)
    assert full == pytest.approx(2 * half)


def test_faint_and_negative_targets_stay_visible(ax):
    plots.plot_targets(make_table([0] * 3, [1] * 3, [1, 2, 3], [-5.0, 1e-3, 100.0]), ax=ax)
    ((_, area),) = markers(ax)
    np.testing.assert_allclose(area / area[2], [0.1, 0.1, 1.0])


def test_error_bars_where_errors_are_known(ax):
    targets = make_table(
        [0, 0], [2.0, 3.0], [4.0, 5.0], [1.0, 1.0], x_err=[0.1, np.nan], y_err=[0.2, np.nan]
    )
    plots.plot_targets(targets, ax=ax)
    bars = [c for c in ax.collections if not is_markers(c)]
    (along_x, *_), (along_y, *_) = (bar.get_segments() for bar in bars)
    np.testing.assert_allclose(along_x, [[3.9, 2.0], [4.1, 2.0]])
    np.testing.assert_allclose(along_y, [[4.0, 1.8], [4.0, 2.2]])


def test_no_error_bars_where_no_error_is_known(ax):
    plots.plot_targets(make_table([0], [2.0], [4.0], [1.0]), ax=ax)
    assert len(ax.collections) == 1


def ellipses(ax):
    """Extents (left, top, right, bottom) of the ellipses in `ax`."""
    (group,) = (c for c in ax.collections if not is_markers(c))
    return [path.get_extents().extents.tolist() for path in group.get_paths()]


def test_error_ellipses_where_both_errors_are_known(ax):
    targets = make_table(
        [0] * 4,
        [2.0, 3, 4, 5],
        [4.0, 5, 6, 7],
        1.0,
        x_err=[0.1, np.nan, 1, 1],
        y_err=[0.2, 1, np.inf, 0.5],
    )
    plots.plot_targets(targets, ax=ax, errors="ellipses", n_sigma=2.0)
    np.testing.assert_allclose(ellipses(ax), [[3.8, 1.6, 4.2, 2.4], [5.0, 4.0, 9.0, 6.0]])


def test_bars_are_as_long_as_asked(ax):
    targets = make_table(0, [2.0], [4.0], [1.0], x_err=[0.1], y_err=[0.2])
    plots.plot_targets(targets, ax=ax, n_sigma=2.0)
    along_x, along_y = (c.get_segments()[0] for c in ax.collections if not is_markers(c))
    np.testing.assert_allclose(along_x, [[3.8, 2.0], [4.2, 2.0]])
    np.testing.assert_allclose(along_y, [[4.0, 1.6], [4.0, 2.4]])


def test_ellipses_of_a_table_without_errors(ax):
    targets = make_table(0, [2.0], [4.0], [1.0])[["frame", "y", "x", "flux"]]
    plots.plot_targets(targets, ax=ax, errors="ellipses")
    assert ellipses(ax) == []
    ax.figure.canvas.draw()


def test_empty_table_draws_no_target(ax):
    plots.plot_targets(make_table([], [], [], []), ax=ax)
    ((positions, _),) = markers(ax)
    assert len(positions) == 0
    ax.figure.canvas.draw()


# Three panels


@pytest.fixture
def scene():
    grid = cu.SubpixelGrid(SHAPE, 4)
    truth = make_table([0, 0], [2.2, 2.8], [8.9, 9.2], [200.0, 220.0])
    targets = make_table([0, 0], [2.25, 2.75], [9.0, 9.25], [400.0, 100.0])
    return {
        "image": image_with_peak(2, 9),
        "truth": truth,
        "targets": targets,
        "coefficients": np.eye(*grid.map_shape),
        "grid": grid,
    }


def test_three_panels(scene):
    axes = plots.plot_unmixing(**scene)
    assert axes.shape == (3,)
    left, middle, right = axes
    (truth, true_area), (found, found_area) = markers(right)
    np.testing.assert_allclose(truth, [[8.9, 2.2], [9.2, 2.8]])
    np.testing.assert_allclose(found, [[9.0, 2.25], [9.25, 2.75]])
    np.testing.assert_allclose(true_area / found_area.max(), [0.5, 0.55])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["truth", "targets"]
    np.testing.assert_array_equal(middle.images[0].get_array(), scene["coefficients"])
    assert left.get_xlim() == (-0.5, 11.5)
    axes[0].figure.canvas.draw()


def test_three_panels_show_errors_as_ellipses(scene):
    scene["targets"] = scene["targets"].assign(y_err=0.1, x_err=[0.2, np.nan])
    _, _, right = plots.plot_unmixing(image=scene["image"], targets=scene["targets"])
    np.testing.assert_allclose(ellipses(right), [[8.8, 2.15, 9.2, 2.35]])
    _, _, right = plots.plot_unmixing(scene["image"], targets=scene["targets"], n_sigma=2.0)
    np.testing.assert_allclose(ellipses(right), [[8.6, 2.05, 9.4, 2.45]])


def test_zoom_shows_the_pixels_with_targets_and_their_neighbours(scene):
    left, *zoomed = plots.plot_unmixing(**scene)
    for ax in zoomed:  # targets lie in rows 2 and 3, column 9
        assert ax.get_ylim() == (4.5, 0.5)
        assert ax.get_xlim() == (7.5, 10.5)
    (window,) = left.patches
    assert window.get_bbox().extents.tolist() == [7.5, 0.5, 10.5, 4.5]


def test_a_margin_shows_the_targets_closer_in_the_last_panel(scene):
    _, middle, right = plots.plot_unmixing(**scene, margin=0.2)
    assert middle.get_ylim() == (4.5, 0.5)
    (frame,) = middle.patches  # targets lie at y 2.2 to 2.8 and x 8.9 to 9.25
    np.testing.assert_allclose(frame.get_bbox().extents, [8.575, 2.0, 9.575, 3.0])
    np.testing.assert_allclose(right.get_xlim(), [8.575, 9.575])
    np.testing.assert_allclose(right.get_ylim(), [3.0, 2.0])
    del scene["coefficients"], scene["grid"]
    left, middle, right = plots.plot_unmixing(**scene, margin=0.2)
    assert not middle.patches
    np.testing.assert_allclose(left.patches[1].get_bbox().extents, [8.575, 2.0, 9.575, 3.0])


def test_zoom_takes_columns_of_any_numeric_kind(scene):
    scene["targets"] = scene["targets"].astype({"y": "Float64", "x": "Float64"})
    _, _, right = plots.plot_unmixing(**scene)
    assert right.get_ylim() == (4.5, 0.5)


def test_zoom_is_cut_at_the_image_even_for_targets_outside():
    targets = make_table([0, 0], [-3.0, 0.1], [11.0, 40.0], [1.0, 1.0])
    _, _, ax = plots.plot_unmixing(np.zeros(SHAPE), targets=targets)
    assert ax.get_ylim() == (1.5, -0.5)
    assert ax.get_xlim() == (9.5, 11.5)


def test_zoom_falls_back_to_the_brightest_pixel():
    image = image_with_peak(4, 3)
    image[0, 0] = np.nan
    _, middle, right = plots.plot_unmixing(image)
    assert right.get_xlim() == (1.5, 4.5)
    assert right.get_ylim() == (5.5, 2.5)
    assert not middle.axison
    assert right.get_legend() is None


def test_frame_selects_rows_of_both_tables(scene):
    other = make_table([3, 5], [1.0, 2.0], [9.0, 9.0], [1.0, 1.0])
    scene |= {"truth": other, "targets": other}
    _, _, ax = plots.plot_unmixing(**scene, frame=3)
    for positions, _ in markers(ax):
        np.testing.assert_array_equal(positions, [[9.0, 1.0]])
    with pytest.raises(ValueError, match=r"frame must be given: truth speaks of 2 frames"):
        plots.plot_unmixing(**scene)


def test_given_axes_are_used_and_no_other_figure_is_made(scene):
    figure, rows = plt.subplots(2, 3)
    for row in rows:
        assert list(plots.plot_unmixing(**scene, axes=row)) == list(row)
    assert plots.plot_unmixing(**scene, axes=list(rows[0]))[2] is rows[0, 2]
    assert plt.get_fignums() == [figure.number]


def test_the_unmixer_and_the_picture_agree_on_where_things_are():
    """End to end: a lone target's map, target and brightest pixel coincide in the picture."""
    psf = cu.GaussianPSF(sigma=0.5)
    truth = make_table([0], [2.125], [9.375], [240.0])
    image = cu.render(psf, truth, shape=SHAPE)[0]
    dictionary = cu.Dictionary(psf, SHAPE, factor=4)
    unmix = cu.GridUnmixer(dictionary, solver=cu.ActiveSet(lam=0.1), peaks=cu.MassMerging())
    flux_map = dictionary.to_flux(unmix.solve(image).x)
    _, middle, right = plots.plot_unmixing(
        image, targets=unmix(image), truth=truth, coefficients=flux_map, grid=dictionary.grid
    )
    (true, _), (found, _) = markers(right)
    np.testing.assert_allclose(found, true, atol=0.01)
    x, y = true[0]
    assert shown_at(right, x, y) == image.max()
    assert shown_at(middle, x, y) == flux_map.max()


# What is left


PSF = cu.GaussianPSF(sigma=0.5)
TRUTH = make_table([2, 2], [2.2, 4.8], [8.9, 3.2], [200.0, 220.0])


def hatched(ax):
    """Extents (left, top, right, bottom) of the hatched pixels in `ax`."""
    (group,) = ax.collections
    assert group.get_hatch()
    return [path.get_extents().extents.tolist() for path in group.get_paths()]


@pytest.mark.parametrize("background", [20.0, "border"])
def test_residual_is_less_a_background(ax, background):
    light = cu.render(PSF, TRUTH, shape=SHAPE)[2]
    plots.plot_residual(light + 20.0, TRUTH, PSF, background=background, ax=ax)
    np.testing.assert_allclose(ax.images[0].get_array(), 0.0, atol=1e-3)


def test_targets_alone_grow_downwards_as_images_do(ax):
    plots.plot_targets(TRUTH, ax=ax)
    assert ax.yaxis_inverted()
    plots.plot_targets(TRUTH, ax=ax)
    assert ax.yaxis_inverted()


def test_residual_is_the_image_less_offset_and_light(ax):
    noise = np.random.default_rng(0).normal(0.0, 3.0, SHAPE)
    light = cu.render(PSF, TRUTH, shape=SHAPE)[2]
    sensor = cu.Sensor(offset=20.0)
    assert plots.plot_residual(light + 20.0 + noise, TRUTH, PSF, sensor=sensor, ax=ax) is ax
    (picture,) = ax.images
    np.testing.assert_allclose(picture.get_array(), noise, atol=1e-10)
    assert picture.get_clim() == pytest.approx((-np.abs(noise).max(), np.abs(noise).max()))
    assert hatched(ax) == []


def test_residual_marks_saturated_pixels_and_leaves_bad_ones_empty(ax):
    image = cu.render(PSF, TRUTH, shape=SHAPE)[2]
    bad = np.zeros(SHAPE, dtype=bool)
    bad[0, 0] = True
    image[0, 0], image[6, 11] = np.nan, np.nan
    image[2, 9] = 60.0  # less than the light there
    image[1, 9] += 60.0
    sensor = cu.Sensor(saturation=60.0, bad_pixels=bad)
    plots.plot_residual(np.minimum(image, 60.0), TRUTH, PSF, sensor=sensor, ax=ax)
    residual = ax.images[0].get_array()
    expected = np.zeros(SHAPE)
    expected[1, 9] = 60.0 - cu.render(PSF, TRUTH, shape=SHAPE)[2, 1, 9]
    np.testing.assert_allclose(residual.filled(0.0), expected, atol=1e-10)
    np.testing.assert_array_equal(np.argwhere(residual.mask), [[0, 0], [6, 11]])
    assert [8.5, 1.5, 9.5, 2.5] in hatched(ax)
    assert len(hatched(ax)) == np.sum(image >= 60.0)
    ax.figure.canvas.draw()


def test_residual_of_a_perfect_fit_and_options(ax):
    plots.plot_residual(np.zeros(SHAPE), make_table([], [], [], []), PSF, ax=ax)
    assert ax.images[0].get_clim() == (-1.0, 1.0)
    plots.plot_residual(np.ones(SHAPE), TRUTH, PSF, frame=0, ax=ax, vmax=7.0, cmap="PuOr")
    assert ax.images[1].get_clim() == (-1.0, 7.0)
    assert ax.images[1].get_cmap().name == "PuOr"


# Convergence


def result(objectives, times, gap=1e-9):
    """A SolveResult that only tells the story of two images."""
    stats = [
        cu.solvers.IterationStats(10 * k, t, np.array(o), np.full(2, gap))
        for k, (o, t) in enumerate(zip(objectives, times, strict=True))
    ]
    ones = np.ones(2)
    return cu.solvers.SolveResult(
        coefficients=np.zeros((2, 1, 1)),
        n_iter=ones.astype(np.int64),
        converged=ones.astype(bool),
        gap=stats[-1].gap,
        objective=stats[-1].objective,
        residual_norm=ones,
        history=tuple(stats),
    )


@pytest.fixture
def results():
    return {
        "slow": result([[9.0, 9.0], [4.0, 8.0], [3.0, 6.0]], [0.0, 0.5, 1.0]),
        "fast": result([[9.0, 9.0], [2.0, 4.0]], [0.0, 0.25]),
    }


@pytest.mark.parametrize(
    ("x", "where", "label"),
    [
        ("iteration", ([10, 20], [10]), "iteration"),
        ("time", ([0.5, 1.0], [0.25]), "time [s]"),
    ],
)
def test_convergence_is_the_median_excess_over_the_best(ax, results, x, where, label):
    assert plots.plot_convergence(results, x=x, ax=ax) is ax
    slow, fast = ax.get_lines()
    np.testing.assert_allclose(slow.get_xdata(), where[0])
    np.testing.assert_allclose(slow.get_ydata(), [1.0, 0.5])  # (4-2)/2 and (8-4)/4, then halves
    np.testing.assert_allclose(fast.get_xdata(), where[1])
    np.testing.assert_allclose(fast.get_ydata(), [1e-15])
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", label)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["slow", "fast"]
    ax.figure.canvas.draw()


def test_convergence_towards_a_reference(ax, results):
    plots.plot_convergence(results, reference=[1.0, 2.0], ax=ax)
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), [1.0])


def test_convergence_of_a_real_solver_ends_at_its_objective(ax):
    setup = cu.presets.csist_100k()
    images = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=3, rng=0).images
    dictionary = cu.Dictionary(setup.psf, setup.shape, factor=2)
    solved = cu.FISTA(lam=5.0, tol=1e-3).solve(dictionary, images)
    plots.plot_convergence({"FISTA": solved}, reference=0.5 * solved.objective, ax=ax)
    (line,) = ax.get_lines()
    assert line.get_ydata()[-1] == pytest.approx(1.0)
    assert line.get_xdata()[-1] == solved.n_iter.max()


def test_zero_images_and_solvers_that_only_looked_once_draw(ax):
    nothing = result([[0.0, 0.0]], [0.0])
    plots.plot_convergence({"nothing": nothing}, ax=ax)
    ax.figure.canvas.draw()
    assert len(ax.get_lines()[0].get_xdata()) == 0


# Scores


@pytest.fixture
def runs():
    truth = make_table([0, 0, 1], [1.0, 2.0, 1.0], [1.0, 2.0, 1.0], [10.0, 20.0, 30.0])
    shifted = truth.copy()
    shifted["x"] += 0.12
    return {"exact": truth.copy(), "shifted": shifted}, truth


def test_ap_is_that_of_the_metric(ax, runs):
    tables, truth = runs
    assert plots.plot_ap(tables, truth, ax=ax) is ax
    exact, shifted = ax.get_lines()
    np.testing.assert_allclose(exact.get_ydata(), 100.0)
    np.testing.assert_allclose(shifted.get_xdata(), [0.05, 0.10, 0.15, 0.20, 0.25])
    np.testing.assert_allclose(shifted.get_ydata(), [0, 0, 100, 100, 100])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["exact (100.0)", f"shifted ({100 * cso_map(tables['shifted'], truth).mean})"]


def test_precision_recall_is_that_of_the_metric(ax, runs):
    tables, truth = runs
    tables["exact"].loc[1, "x"] += 1.0
    assert plots.plot_precision_recall(tables, truth, 0.1, ax=ax) is ax
    for line, table in zip(ax.get_lines(), tables.values(), strict=True):
        recall, precision = precision_recall(table, truth, 0.1)
        np.testing.assert_array_equal(line.get_xdata(), recall)
        np.testing.assert_array_equal(line.get_ydata(), precision)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("recall", "precision")
    assert "0.1 px" in ax.get_title()


def test_curves_ranked_by_score_are_those_of_the_metric(ax, runs):
    tables, truth = runs
    wrong = make_table([0], [9.0], [9.0], [1.0], score=[0.95])
    scored = pd.concat([tables["exact"].assign(score=[0.9, 0.8, 0.7]), wrong], ignore_index=True)
    plots.plot_precision_recall({"scored": scored}, truth, 0.1, rank_by="score", ax=ax)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [0, 1 / 2, 2 / 3, 3 / 4])
    plots.plot_ap({"scored": scored}, truth, rank_by="score", ax=ax)
    expected = cso_map(scored, truth, rank_by="score").ap
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), 100 * expected)


def test_error_histograms_count_the_targets_found(ax, runs):
    tables, truth = runs
    tables["shifted"]["flux"] *= [1.1, 0.9, 3.0]
    tables["few"] = tables["exact"][:1]
    assert plots.plot_errors(tables, truth, ax=ax) is ax
    exact, shifted, few = (patch.get_data() for patch in ax.patches)
    for heights, edges, _ in (exact, shifted, few):
        assert (edges[0], edges[-1], len(heights)) == (0.0, 0.5, 40)
    assert exact.values[0] == pytest.approx(100)
    assert few.values.sum() == pytest.approx(100 / 3)  # what is missed is missing
    (k,) = np.flatnonzero(shifted.values)
    assert shifted.edges[k] <= 0.12 <= shifted.edges[k + 1]
    ax.clear()
    plots.plot_errors({"shifted": tables["shifted"]}, truth, quantity="flux", ax=ax)
    heights, edges, _ = ax.patches[0].get_data()
    found = [edges[k] for k in np.flatnonzero(heights)]
    np.testing.assert_allclose(found, [-10.0, 10.0, 47.5])  # 200 % stands at the end
    assert heights.sum() == pytest.approx(100)


def test_errors_without_truth_or_pairs(ax):
    empty = make_table([], [], [], [], n_frames=1)
    for quantity in ("position", "flux"):
        plots.plot_errors({"none": empty}, empty, quantity=quantity, ax=ax)
    ax.figure.canvas.draw()


def test_answer_shows_truth_and_targets_in_a_window(ax):
    truth = make_table([0, 1], [4.0, 1.0], [5.0, 1.0], [200.0, 100.0])
    found = make_table([0, 0], [4.1, 4.5], [5.2, 5.0], [100.0, 50.0])
    window = (2.5, 5.5, 3.5, 6.5)
    plots.plot_answer(np.ones(SHAPE), targets=found, truth=truth, frame=0, window=window, ax=ax)
    circles, crosses = (c for c in ax.collections if hasattr(c, "get_sizes"))
    np.testing.assert_allclose(circles.get_offsets(), [[5.0, 4.0]])
    np.testing.assert_allclose(crosses.get_offsets(), [[5.2, 4.1], [5.0, 4.5]])
    assert crosses.get_sizes()[0] == pytest.approx(circles.get_sizes()[0] / 2)  # one scale
    assert (ax.get_xlim(), ax.get_ylim()) == ((3.5, 6.5), (5.5, 2.5))


def test_answer_shows_errors_as_large_as_asked_for(ax):
    found = make_table([0], [4.1], [5.2], [100.0], y_err=[0.1], x_err=[0.2])
    plots.plot_answer(np.ones(SHAPE), targets=found, n_sigma=2.45, ax=ax)
    (ellipses,) = (c for c in ax.collections if not hasattr(c, "get_sizes"))
    box = ellipses.get_paths()[0].get_extents()
    np.testing.assert_allclose([box.height / 2, box.width / 2], [0.245, 0.49], rtol=1e-3)


def test_lines_differ_in_style_for_many_methods(ax):
    truth = make_table([0], [1.0], [1.0], [1.0])
    plots.plot_ap({str(k): truth for k in range(36)}, truth, ax=ax)
    styles = [(line.get_color(), line.get_linestyle()) for line in ax.get_lines()]
    assert len(set(styles)) == 36
    assert len({colour for colour, _ in styles[:8]}) == 8  # as many methods as notebook 2 compares


# Axes, errors, imports


def every_plot():
    grid = cu.SubpixelGrid(SHAPE, 2)
    table = make_table([0], [1.0], [1.0], [1.0])
    story = result([[9.0, 9.0], [4.0, 8.0]], [0.0, 0.5])
    return {
        "image": lambda ax: plots.plot_image(np.ones(SHAPE), ax=ax),
        "map": lambda ax: plots.plot_map(np.ones(grid.map_shape), grid, ax=ax),
        "targets": lambda ax: plots.plot_targets(table, ax=ax),
        "residual": lambda ax: plots.plot_residual(np.ones(SHAPE), table, PSF, ax=ax),
        "convergence": lambda ax: plots.plot_convergence({"a": story}, ax=ax),
        "precision-recall": lambda ax: plots.plot_precision_recall({"a": table}, table, 0.1, ax=ax),
        "ap": lambda ax: plots.plot_ap({"a": table}, table, ax=ax),
    }


@pytest.mark.parametrize("name", every_plot())
def test_ax_is_used_and_the_current_axes_by_default(name):
    draw = every_plot()[name]
    figure = matplotlib.figure.Figure()  # unknown to pyplot
    given = figure.add_subplot()
    assert draw(given) is given
    assert plt.get_fignums() == []
    current = plt.figure().add_subplot()
    assert draw(None) is current
    assert len(plt.get_fignums()) == 1


def test_given_axes_of_three_panels_need_no_pyplot(scene):
    axes = matplotlib.figure.Figure().subplots(1, 3)
    plots.plot_unmixing(**scene, axes=axes)
    assert plt.get_fignums() == []


TABLE = make_table([0], [1.0], [1.0], [1.0])
GRID = cu.SubpixelGrid(SHAPE, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.plot_image(np.ones((2, 3, 4))), ValueError, "image must be one image"),
        (lambda: plots.plot_image(np.ones(3)), ValueError, "image must have at least two axes"),
        (lambda: plots.plot_image([["a"]]), TypeError, "image must hold real numbers"),
        (lambda: plots.plot_map(np.ones(SHAPE), GRID), ValueError, r"coefficients .*\(14, 24\)"),
        (lambda: plots.plot_map(np.ones(SHAPE), 2), TypeError, "grid must be .*SubpixelGrid"),
        (lambda: plots.plot_targets([1]), TypeError, "targets must be a pandas.DataFrame"),
        (lambda: plots.plot_targets(TABLE, full_flux=0), ValueError, "full_flux must be above 0"),
        (lambda: plots.plot_targets(TABLE, frame=0.5), TypeError, "frame must be an integer"),
        (lambda: plots.plot_targets(TABLE, errors="box"), ValueError, "errors must be 'bars' or"),
        (lambda: plots.plot_targets(TABLE, n_sigma=0), ValueError, "n_sigma must be above 0"),
        (lambda: plots.plot_residual(np.ones(3), TABLE, PSF), ValueError, "image must have at"),
        (lambda: plots.plot_residual(np.ones(SHAPE), 3, PSF), TypeError, "targets must be a pand"),
        (lambda: plots.plot_residual(np.ones(SHAPE), TABLE, 3), TypeError, "psf must be of type"),
        (
            lambda: plots.plot_residual(np.ones(SHAPE), TABLE, PSF, background="ring"),
            ValueError,
            "background must be a number or 'border'",
        ),
        (
            lambda: plots.plot_residual(np.ones(SHAPE), TABLE, PSF, sensor=1),
            TypeError,
            "sensor must be of type Sensor",
        ),
        (
            lambda: plots.plot_residual(np.ones(SHAPE), make_table([0, 1], 1, 1, 1), PSF),
            ValueError,
            "frame must be given: targets speaks of 2 frames",
        ),
        (
            lambda: plots.plot_unmixing(np.ones(SHAPE), coefficients=np.ones((14, 24))),
            ValueError,
            "grid must be given",
        ),
        (
            lambda: plots.plot_unmixing(np.ones(SHAPE), margin=0.0),
            ValueError,
            "margin must be above 0",
        ),
        (
            lambda: plots.plot_unmixing(np.ones(SHAPE), axes=[None, None]),
            ValueError,
            "axes must be three, got 2",
        ),
        (lambda: plots.plot_unmixing(np.ones(SHAPE), truth=3), TypeError, "truth must be a pandas"),
        (lambda: plots.plot_convergence({}), ValueError, "results must name at least one"),
        (lambda: plots.plot_ap({}, TABLE), ValueError, "runs must name at least one"),
        (lambda: plots.plot_precision_recall({}, TABLE, 0.1), ValueError, "runs must name"),
        (lambda: plots.plot_errors({}, TABLE), ValueError, "runs must name"),
        (
            lambda: plots.plot_errors({"a": TABLE}, TABLE, quantity="count"),
            ValueError,
            "quantity must be 'position' or 'flux', got 'count'",
        ),
        (lambda: plots.plot_answer(np.ones(SHAPE), targets=3), TypeError, "targets must be"),
        (lambda: plots.plot_convergence({}, x="y"), ValueError, "x must be 'iteration' or 'time'"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert plt.get_fignums() == []


def test_results_that_cannot_be_compared_are_refused(results):
    greedy = result([[1.0, 1.0]], [0.0], gap=np.nan)
    with pytest.raises(ValueError, match=r"greedy ones too: OMP"):
        plots.plot_convergence({**results, "OMP": greedy})
    with pytest.raises(ValueError, match=r"objective of 2 image\(s\), got 3"):
        plots.plot_convergence(results, reference=[1.0, 2.0, 3.0])
    single = replace(results["fast"], objective=np.ones(1))
    with pytest.raises(ValueError, match="same images"):
        plots.plot_convergence({**results, "single": single})


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_matplotlib_is_loaded_by_drawing_only():
    code = "import sys, csunmix.plots; assert not {'matplotlib', 'pandas'} & set(sys.modules)"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (lambda: plots.plot_image(np.ones(SHAPE)), lambda: plots.plot_unmixing(np.eye(3))):
        with pytest.raises(ImportError, match=r"csunmix\[plot\]"):
            draw()
