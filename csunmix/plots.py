"""Pictures of images, maps, targets, convergence and scores; needs the extra ``csunmix[plot]``.

Pixels are drawn as users of images expect them: the centre of pixel ``(row, column)`` lies at the
integers ``y = row`` and ``x = column``, row 0 is at the top, and ``y`` grows downwards. A helper
draws into the `matplotlib.axes.Axes` it is given, or into the current ones, and returns them. All
raise ImportError where matplotlib is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from csunmix._validation import (
    BoolArray,
    FloatArray,
    as_images,
    as_instance,
    as_integer,
    as_number,
)
from csunmix.background import border_level
from csunmix.grid import SubpixelGrid
from csunmix.metrics import THRESHOLDS, RankBy, cso_map, match, precision_recall
from csunmix.psf import PSF
from csunmix.sensor import Sensor
from csunmix.simulate import render
from csunmix.solvers.base import SolveResult
from csunmix.targets import check_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe & Ito, Color universal design (2008), then Tol's wine and a grey: the colour-blind tell
# these apart.
_BLUE, _VERMILION = "#0072B2", "#D55E00"
_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999999")
COLOURS = (_BLUE, _VERMILION, *_OTHERS)
DASHES = ("-", "--", "-.", ":")  # lines on top of each other stay visible

_FULL_AREA = 110.0  # of a marker at full flux, points^2
_FLUX_LIMIT = 50.0  # percent, where histograms of flux errors end
_MARGIN = 1  # pixels around those that hold targets
_SMALLEST_EXCESS = 1e-15  # objectives agree no better than this


def plot_image(
    image: npt.ArrayLike, *, ax: Axes | None = None, colorbar: bool = False, **imshow: Any
) -> Axes:
    """Draw an image in grey levels.

    Parameters
    ----------
    image : array_like, shape (n_y, n_x)
        Image, DN; NaN pixels stay empty.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.
    colorbar : bool
        Draw a bar with the grey levels, DN, beside the image.
    **imshow
        Options of `matplotlib.axes.Axes.imshow`, such as ``cmap``, ``vmin`` and ``vmax``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `image` is not one image of real numbers.
    """
    image = _one_image(image, "image")
    return _plot_pixels(image, image.shape, ax, colorbar, {"cmap": "gray", **imshow})


def plot_map(
    coefficients: npt.ArrayLike,
    grid: SubpixelGrid,
    *,
    ax: Axes | None = None,
    colorbar: bool = False,
    **imshow: Any,
) -> Axes:
    """Draw a flux map on the sub-pixel grid in pixel coordinates, with the pixels' boundaries.

    Parameters
    ----------
    coefficients : array_like, shape (m_y, m_x)
        Flux of every cell, DN.
    grid : SubpixelGrid
        Where the cells lie.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.
    colorbar : bool
        Draw a bar with the fluxes, DN, beside the map.
    **imshow
        Options of `matplotlib.axes.Axes.imshow`, such as ``cmap``, ``vmin`` and ``vmax``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `coefficients` is not one map of real numbers or does not fit `grid`.
    """
    grid = as_instance(grid, SubpixelGrid, "grid")
    flux = _one_image(coefficients, "coefficients", grid.map_shape)
    ax = _plot_pixels(flux, grid.shape, ax, colorbar, {"cmap": "viridis", **imshow})
    n_y, n_x = grid.shape
    line: dict[str, Any] = {"color": "white", "linewidth": 0.5, "alpha": 0.5}
    ax.hlines(np.arange(1, n_y) - 0.5, -0.5, n_x - 0.5, **line)
    ax.vlines(np.arange(1, n_x) - 0.5, -0.5, n_y - 0.5, **line)
    return ax


def plot_targets(
    targets: pd.DataFrame,
    *,
    frame: int | None = None,
    ax: Axes | None = None,
    marker: str = "x",
    color: str = _VERMILION,
    label: str | None = None,
    full_flux: float | None = None,
    errors: Literal["bars", "ellipses"] = "bars",
    n_sigma: float = 1.0,
) -> Axes:
    """Draw the positions of targets, with their errors where the table knows them.

    On axes that hold nothing yet, y grows downwards, as in images.

    Parameters
    ----------
    targets : pandas.DataFrame
        Target table.
    frame : int, optional
        Draw this frame only; every row by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.
    marker : str
        Marker of matplotlib, drawn unfilled.
    color : str
        Colour of markers and error bars.
    label : str, optional
        Name in a legend.
    full_flux : float, optional
        Flux of a marker of full area, DN; by default that of the brightest target drawn. The area
        is proportional to the flux, but never below a tenth of the full one.
    errors : {"bars", "ellipses"}
        How ``y_err`` and ``x_err`` are drawn; errors that are not finite are left out.
    n_sigma : float
        Half length of bars, half axes of ellipses, in standard errors. Normal errors are within an
        ellipse of 1 with a probability of 39 %, of 2.45 with 95 %.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If `targets` is not a target table or a parameter is out of range.
    """
    rows = _rows(targets, frame, "targets")
    if full_flux is None:
        full_flux = _largest_flux(rows)
    full_flux = as_number(full_flux, "full_flux", above=0.0)
    n_sigma = as_number(n_sigma, "n_sigma", above=0.0)
    if errors not in ("bars", "ellipses"):
        raise ValueError(f"errors must be 'bars' or 'ellipses', got {errors!r}")
    ax = _current(ax)
    if not ax.has_data() and not ax.yaxis_inverted():
        ax.invert_yaxis()
    from matplotlib.markers import MarkerStyle

    y, x, flux = (rows[name].to_numpy(dtype=np.float64) for name in ("y", "x", "flux"))
    ax.scatter(
        x,
        y,
        s=_FULL_AREA * np.maximum(flux / full_flux, 0.1),
        marker=MarkerStyle(marker, fillstyle="none"),
        color=color,
        linewidths=1.8,
        label=label,
        zorder=3,
        path_effects=_halo(),
    )
    y_err, x_err = (n_sigma * _errors(rows, name) for name in ("y_err", "x_err"))
    if errors == "ellipses":
        _draw_ellipses(ax, y, x, y_err, x_err, color)
    else:
        _draw_bars(ax, y, x, y_err, x_err, color)
    return _label_pixels(ax)


def plot_unmixing(
    image: npt.ArrayLike,
    *,
    targets: pd.DataFrame | None = None,
    truth: pd.DataFrame | None = None,
    frame: int | None = None,
    coefficients: npt.ArrayLike | None = None,
    grid: SubpixelGrid | None = None,
    n_sigma: float = 1.0,
    margin: float | None = None,
    axes: Sequence[Axes] | npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Draw what was seen and what was found, in three panels.

    The image; the flux map on the sub-pixel grid; the image with truth (open circles) and targets
    (crosses). The last two show the pixels that hold targets, or the brightest pixel where there
    are none, and one more on each side, the last just the targets with `margin`; dashed frames mark
    the windows. Ellipses are the errors of the positions, where the tables know them.

    Parameters
    ----------
    image : array_like, shape (n_y, n_x)
        Image, DN.
    targets, truth : pandas.DataFrame, optional
        Target tables: what was found, and what is there.
    frame : int, optional
        The image's frame in the tables; may be left out where they speak of one frame only.
    coefficients : array_like, shape (m_y, m_x), optional
        Flux of every cell, DN; the second panel stays empty without it.
    grid : SubpixelGrid, optional
        Where the cells lie; must come with `coefficients`.
    n_sigma : float
        Half axes of the ellipses in standard errors, see `plot_answer`.
    margin : float, optional
        Show a square with so much around the targets in the last panel, px, whatever the image's
        border.
    axes : sequence of 3 matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    ndarray of matplotlib.axes.Axes, shape (3,)

    Raises
    ------
    TypeError, ValueError
        If an input is malformed, a table has several frames and `frame` is not given, `grid` is
        missing, or there are not three axes.
    """
    image = _one_image(image, "image")
    if margin is not None:
        margin = as_number(margin, "margin", above=0.0)
    if coefficients is not None and grid is None:
        raise ValueError("grid must be given with coefficients: it says where the cells lie")
    tables = {
        name: _one_frame(table, frame, name)
        for name, table in (("truth", truth), ("targets", targets))
        if table is not None
    }
    left, middle, right = axes = _three(axes)
    plot_image(image, ax=left)
    left.set_title("image")
    found, true = tables.get("targets"), tables.get("truth")
    plot_answer(image, targets=found, truth=true, n_sigma=n_sigma, ax=right)
    right.set_title(" and ".join(tables) or "image")
    if len(tables) > 1:
        # Below the panel: inside it would hide targets, which may stand in every corner.
        right.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=len(tables),
            fontsize="small",
            frameon=False,
        )
    if coefficients is None or grid is None:
        middle.set_axis_off()
    else:
        plot_map(coefficients, grid, ax=middle)
        middle.set_title("flux map")
    places = _places(image, list(tables.values()))
    window = _pixels_around(places, image.shape)
    _zoom(left, (middle, right), window)
    if margin is not None:
        framed = left if coefficients is None else middle
        _zoom(framed, (right,), _square_around(places, margin))
    return axes


def plot_residual(
    image: npt.ArrayLike,
    targets: pd.DataFrame,
    psf: PSF,
    *,
    sensor: Sensor | None = None,
    background: float | Literal["border"] = 0.0,
    frame: int | None = None,
    ax: Axes | None = None,
    colorbar: bool = False,
    **imshow: Any,
) -> Axes:
    """Draw what the targets leave unexplained: the image less offset, background and their light.

    Colours are symmetric about 0. Saturated pixels are hatched, and show no more than what the
    targets lack to saturate them; bad pixels stay empty.

    Parameters
    ----------
    image : array_like, shape (n_y, n_x)
        Image, DN; NaN pixels stay empty.
    targets : pandas.DataFrame
        Target table: what was found.
    psf : PSF
        The optics.
    sensor : Sensor, optional
        The detector; by default one without offset, saturation and bad pixels.
    background : float or "border"
        Level beside the sensor's offset, DN; "border" takes the median of the image's outermost
        ring of pixels instead of both.
    frame : int, optional
        The image's frame in the table; may be left out where that speaks of one frame only.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.
    colorbar : bool
        Draw a bar with the residuals, DN, beside the image.
    **imshow
        Options of `matplotlib.axes.Axes.imshow`, such as ``cmap``, ``vmin`` and ``vmax``.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an input is malformed, the table has several frames and `frame` is not given, or the
        sensor's bad pixels do not fit the image.
    """
    image = _one_image(image, "image")
    sensor = as_instance(Sensor() if sensor is None else sensor, Sensor, "sensor")
    rows = _one_frame(targets, frame, "targets").assign(frame=0)
    (light,) = render(psf, rows, shape=(image.shape[0], image.shape[1]), n=1)
    known = np.where(np.isnan(image), 0.0, image)
    saturated = sensor.censored(known)
    if isinstance(background, str):
        if background != "border":
            raise ValueError(f"background must be a number or 'border', got {background!r}")
        good = sensor.valid(known) & ~np.isnan(image)
        median = np.median(image[good]) if good.any() else 0.0
        level = float(border_level(np.where(good, image, median)))
    else:
        level = sensor.offset + as_number(background, "background")
    residual = image - level - light
    residual[saturated] = np.maximum(residual[saturated], 0.0)
    residual[~sensor.valid(known)] = np.nan
    limit = np.nanmax(np.abs(residual), initial=0.0) or 1.0
    colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    ax = _plot_pixels(residual, image.shape, ax, colorbar, {**colours, **imshow})
    _hatch(ax, saturated)
    return ax


def plot_convergence(
    results: Mapping[str, SolveResult],
    *,
    reference: npt.ArrayLike | None = None,
    x: Literal["iteration", "time"] = "iteration",
    ax: Axes | None = None,
) -> Axes:
    """Draw how solvers of the same problem approach its optimum, on logarithmic axes.

    The height is ``(P - P_ref)/P_ref``, the relative excess of the objective ``P``, as the median
    over the images; what is below 1e-15 is rounding and drawn there. A dot marks the end. The
    start, at iteration 0, has no place on a logarithmic axis.

    Parameters
    ----------
    results : mapping of str to SolveResult
        The result of each solver, all for the same images, dictionary and ``lam``. A solver that
        reports its history only when watched needs a `callback`.
    reference : array_like, shape (...), optional
        Objective ``P_ref`` of each image; by default the lowest that any of the results reached.
    x : {"iteration", "time"}
        What stands below: iterations, or seconds since the start.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `results` is empty, a solver is greedy (its objective is another one), `x` is unknown, or
        `reference` does not fit the images.
    """
    if x not in ("iteration", "time"):
        raise ValueError(f"x must be 'iteration' or 'time', got {x!r}")
    reached = _objectives(results)
    best = np.min(reached, axis=0) if reference is None else np.asarray(reference, dtype=np.float64)
    if best.size != reached.shape[1]:
        raise ValueError(
            f"reference must hold the objective of {reached.shape[1]} image(s), got {best.size}"
        )
    best = best.ravel()
    scale = np.where(best > 0, best, 1.0)
    ax = _current(ax)
    for (name, result), style in styled(results):
        steps = [stats for stats in result.history if stats.iteration > 0]
        excess = [np.median((stats.objective - best) / scale) for stats in steps]
        ax.loglog(
            [getattr(stats, x) for stats in steps],
            np.maximum(excess, _SMALLEST_EXCESS),
            marker="o",
            markersize=4,
            markevery=slice(-1, None),
            label=name,
            **style,
        )
    ax.set_xlabel("iteration" if x == "iteration" else "time [s]")
    ax.set_ylabel("relative excess of the objective, median")
    return _legend(ax)


def plot_precision_recall(
    runs: Mapping[str, pd.DataFrame],
    truth: pd.DataFrame,
    threshold: float,
    *,
    rank_by: RankBy = "flux",
    ax: Axes | None = None,
) -> Axes:
    """Draw precision against recall of each method.

    Parameters
    ----------
    runs : mapping of str to pandas.DataFrame
        The target table of each method.
    truth : pandas.DataFrame
        The true targets.
    threshold : float
        Largest distance of a hit, px.
    rank_by : {"flux", "score"}
        The column that ranks the detections.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        As in `csunmix.metrics.precision_recall`, or if `runs` is empty.
    """
    _require_entries(runs, "runs")
    curves = {
        name: precision_recall(run, truth, threshold, rank_by=rank_by) for name, run in runs.items()
    }
    ax = _current(ax)
    for (name, (recall, precision)), style in styled(curves):
        ax.plot(recall, precision, label=name, **style)
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.05)
    ax.set_xlabel("recall")
    ax.set_ylabel("precision")
    ax.set_title(f"hits within {threshold:g} px")
    return _legend(ax)


def plot_ap(
    runs: Mapping[str, pd.DataFrame],
    truth: pd.DataFrame,
    *,
    rank_by: RankBy = "flux",
    ax: Axes | None = None,
) -> Axes:
    """Draw the average precision of each method against the distance that counts as a hit.

    The distances are those of CSO-mAP, `csunmix.metrics.THRESHOLDS`; the legend gives CSO-mAP,
    the mean over them, in percent.

    Parameters
    ----------
    runs : mapping of str to pandas.DataFrame
        The target table of each method.
    truth : pandas.DataFrame
        The true targets.
    rank_by : {"flux", "score"}
        The column that ranks the detections.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        As in `csunmix.metrics.cso_map`, or if `runs` is empty.
    """
    _require_entries(runs, "runs")
    scores = {name: cso_map(run, truth, rank_by=rank_by) for name, run in runs.items()}
    ax = _current(ax)
    for (name, score), style in styled(scores):
        label = f"{name} ({100 * score.mean:.1f})"
        ax.plot(score.thresholds, 100 * score.ap, marker="o", markersize=4, label=label, **style)
    ax.set_xticks(THRESHOLDS)
    ax.set_ylim(0.0, 105.0)
    ax.set_xlabel("distance of a hit [px]")
    ax.set_ylabel("average precision [%]")
    return _legend(ax, title="method (CSO-mAP)")


def plot_errors(
    runs: Mapping[str, pd.DataFrame],
    truth: pd.DataFrame,
    *,
    quantity: Literal["position", "flux"] = "position",
    max_distance: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many of the true targets are found with which error, as a histogram of each method.

    Pairs are those of the optimal `csunmix.metrics.match`; heights are shares of all true
    targets, so that what a method misses is missing in its histogram.

    Parameters
    ----------
    runs : mapping of str to pandas.DataFrame
        The target table of each method.
    truth : pandas.DataFrame
        The true targets.
    quantity : {"position", "flux"}
        The Euclidean distance of a pair, px; or ``flux/true flux - 1`` in percent, where what
        lies beyond +-50 % is counted at the ends.
    max_distance : float
        Largest distance of a pair, px.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        As in `csunmix.metrics.match`, or if `runs` is empty or `quantity` unknown.
    """
    _require_entries(runs, "runs")
    if quantity not in ("position", "flux"):
        raise ValueError(f"quantity must be 'position' or 'flux', got {quantity!r}")
    errors = {name: _pair_errors(run, truth, quantity, max_distance) for name, run in runs.items()}
    low, high = (0.0, max_distance) if quantity == "position" else (-_FLUX_LIMIT, _FLUX_LIMIT)
    edges = np.linspace(low, high, 41)
    ax = _current(ax)
    for (name, each), style in styled(errors):
        count, _ = np.histogram(np.clip(each, low, high), edges)
        ax.stairs(100 * count / max(len(truth), 1), edges, label=name, linewidth=1.5, **style)
    ax.set_xlim(low, high)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("position error [px]" if quantity == "position" else "flux error [%]")
    ax.set_ylabel("share of the targets [%]")
    return _legend(ax)


def plot_answer(
    image: npt.ArrayLike,
    *,
    targets: pd.DataFrame | None = None,
    truth: pd.DataFrame | None = None,
    frame: int | None = None,
    window: tuple[float, ...] | None = None,
    n_sigma: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw an image with the truth (open circles) and the targets found (crosses).

    Ellipses are the errors of the positions, where the tables know them. The area of a marker goes
    with the flux.

    Parameters
    ----------
    image : array_like, shape (n_y, n_x)
        Image, DN.
    targets, truth : pandas.DataFrame, optional
        Target tables: what was found, and what is there.
    frame : int, optional
        The image's frame in the tables; may be left out where they speak of one frame only.
    window : tuple of float, optional
        What to show: edges ``(top, bottom, left, right)``, px; the whole image by default.
    n_sigma : float
        Half axes of the ellipses in standard errors, see `plot_targets`: 1 holds 39 % of normal
        errors, 2.45 holds 95 %.
    ax : matplotlib.axes.Axes, optional
        Where to draw; the current axes by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If an input is malformed, or a table has several frames and `frame` is not given.
    """
    tables = {
        name: _one_frame(table, frame, name)
        for name, table in (("truth", truth), ("targets", targets))
        if table is not None
    }
    ax = plot_image(image, ax=ax)
    full_flux = max(map(_largest_flux, tables.values()), default=1.0)
    for name, marker, color in (("truth", "o", _BLUE), ("targets", "x", _VERMILION)):
        if name in tables:
            plot_targets(
                tables[name],
                ax=ax,
                marker=marker,
                color=color,
                label=name,
                full_flux=full_flux,
                errors="ellipses",
                n_sigma=n_sigma,
            )
    if window is not None:
        _show(ax, window)
    return ax


# Style


def styled(items: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], dict[str, Any]]]:
    """Items with a line style each; colours and dashes come round again, not together."""
    styles = ({"color": c, "linestyle": d} for c, d in zip(cycle(COLOURS), cycle(DASHES)))
    return zip(items.items(), styles, strict=False)


# Axes


def _current(ax: Axes | None) -> Axes:
    """The given axes, or the current ones."""
    current: Axes = _pyplot().gca() if ax is None else ax
    return current


def _three(axes: Sequence[Axes] | npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """The given three axes, or those of a new figure."""
    if axes is None:
        axes = _pyplot().subplots(1, 3, figsize=(9.5, 3.4), layout="constrained")[1]
    array = np.asarray(axes, dtype=object).ravel()
    if array.size != 3:
        raise ValueError(f"axes must be three, got {array.size}")
    return array


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib; install it with: pip install 'csunmix[plot]'"
        ) from error
    return plt


def _plot_pixels(
    values: FloatArray,
    shape: tuple[int, ...],
    ax: Axes | None,
    colorbar: bool,
    imshow: dict[str, Any],
) -> Axes:
    """Draw values over an image of `shape` pixels, the centre of pixel (0, 0) at the origin."""
    n_y, n_x = shape
    ax = _current(ax)
    extent = (-0.5, n_x - 0.5, n_y - 0.5, -0.5)
    picture = ax.imshow(values, **{"origin": "upper", "extent": extent, **imshow})
    if colorbar:
        ax.figure.colorbar(picture, ax=ax, label="DN", fraction=0.046, pad=0.04)
    return _label_pixels(ax)


def _draw_bars(
    ax: Axes, y: FloatArray, x: FloatArray, y_err: FloatArray, x_err: FloatArray, color: str
) -> None:
    bars = {"yerr": y_err, "xerr": x_err}
    known: dict[str, Any] = {name: err for name, err in bars.items() if not np.isnan(err).all()}
    if known:
        ax.errorbar(x, y, **known, fmt="none", ecolor=color, elinewidth=1.2, capsize=3)


def _draw_ellipses(
    ax: Axes, y: FloatArray, x: FloatArray, y_err: FloatArray, x_err: FloatArray, color: str
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Ellipse

    known = ~np.isnan(y_err) & ~np.isnan(x_err)
    places = zip(*(each[known] for each in (y, x, y_err, x_err)), strict=True)
    ellipses = [Ellipse((b, a), 2 * b_err, 2 * a_err) for a, b, a_err, b_err in places]
    face = (*to_rgb(color), 0.25)
    ax.add_collection(PatchCollection(ellipses, facecolor=face, edgecolor=color, linewidth=1.4))


def _hatch(ax: Axes, marked: BoolArray) -> None:
    """Hatch the pixels `marked`."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    pixels = [Rectangle((c - 0.5, r - 0.5), 1.0, 1.0) for r, c in np.argwhere(marked)]
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": "black", "linewidth": 0.8}
    ax.add_collection(PatchCollection(pixels, hatch="////", **style))


def _label_pixels(ax: Axes) -> Axes:
    """Name the axes, keep pixels square, put ticks on pixel centres."""
    from matplotlib.ticker import MaxNLocator

    ax.set_aspect("equal")
    ax.set_xlabel("x [px]")
    ax.set_ylabel("y [px]")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return ax


def _legend(ax: Axes, title: str | None = None) -> Axes:
    ax.grid(alpha=0.3)
    ax.legend(title=title, fontsize="small", title_fontsize="small")
    return ax


def _halo() -> list[Any]:
    """A white rim that lifts a marker off dark and bright pixels alike."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3.4, foreground="white")]


# The window of a zoom: (top, bottom, left, right), px


def _places(image: FloatArray, tables: Sequence[pd.DataFrame]) -> FloatArray:
    """(y, x) of the targets, or of the brightest pixel."""
    places = np.concatenate(
        [np.empty((0, 2)), *(t[["y", "x"]].to_numpy(np.float64) for t in tables)]
    )
    if len(places):
        return places
    brightest = np.argmax(np.where(np.isnan(image), -np.inf, image))
    return np.array([np.unravel_index(brightest, image.shape)], dtype=np.float64)


def _pixels_around(places: FloatArray, shape: tuple[int, ...]) -> tuple[float, ...]:
    """Pixels of the image that hold the places, and one more on each side."""
    last = np.array(shape) - 1
    pixels = np.clip(np.rint(places), 0, last)
    low = np.maximum(pixels.min(axis=0) - _MARGIN, 0) - 0.5
    high = np.minimum(pixels.max(axis=0) + _MARGIN, last) + 0.5
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _square_around(places: FloatArray, margin: float) -> tuple[float, ...]:
    """The square about the places, `margin` away from the outermost."""
    low, high = places.min(axis=0), places.max(axis=0)
    y, x = (low + high) / 2.0
    half = float((high - low).max()) / 2.0 + margin
    return y - half, y + half, x - half, x + half


def _show(ax: Axes, window: tuple[float, ...]) -> None:
    top, bottom, left, right = window
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def _zoom(framed: Axes, zoomed: Sequence[Axes], window: tuple[float, ...]) -> None:
    """Show `window` in some panels and frame it in another."""
    from matplotlib.patches import Rectangle

    for ax in zoomed:
        _show(ax, window)
    top, bottom, left, right = window
    framed.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", ls="--")
    )


# Inputs


def _one_image(value: npt.ArrayLike, name: str, shape: tuple[int, int] | None = None) -> FloatArray:
    array = as_images(value, name, shape=shape, finite=False)
    if array.ndim != 2:
        raise ValueError(f"{name} must be one image (n_y, n_x), got shape {array.shape}")
    return array


def _rows(table: pd.DataFrame, frame: int | None, name: str) -> pd.DataFrame:
    """Rows of one frame, or all of them."""
    check_table(table, name)
    return table if frame is None else table[table["frame"] == as_integer(frame, "frame")]


def _one_frame(table: pd.DataFrame, frame: int | None, name: str) -> pd.DataFrame:
    rows = _rows(table, frame, name)
    n = rows["frame"].nunique()
    if n > 1:
        raise ValueError(f"frame must be given: {name} speaks of {n} frames")
    return rows


def _errors(rows: pd.DataFrame, name: str) -> FloatArray:
    """A column of errors; NaN where the table has none, or none that is finite."""
    found = rows[name].to_numpy(np.float64) if name in rows else np.full(len(rows), np.nan)
    return np.where(np.isfinite(found), found, np.nan)


def _largest_flux(rows: pd.DataFrame) -> float:
    """Flux of the brightest target; 1 where none has a positive flux."""
    largest = float(rows["flux"].max()) if len(rows) else 0.0
    return largest if largest > 0 else 1.0


def _pair_errors(
    run: pd.DataFrame, truth: pd.DataFrame, quantity: str, max_distance: float
) -> FloatArray:
    """Errors of the pairs: px, or percent of the true flux where that is positive."""
    pairs = match(run, truth, max_distance=max_distance)
    if quantity == "position":
        return pairs.distance
    found = run["flux"].to_numpy(np.float64)[pairs.detection]
    true = truth["flux"].to_numpy(np.float64)[pairs.truth]
    error: FloatArray = 100 * (found[true > 0] / true[true > 0] - 1)
    return error


def _require_entries(items: Mapping[str, Any], name: str) -> None:
    if not items:
        raise ValueError(f"{name} must name at least one method, got an empty mapping")


def _objectives(results: Mapping[str, SolveResult]) -> FloatArray:
    """Objective that each solver reached for each image, shape (n_solvers, n_images)."""
    _require_entries(results, "results")
    greedy = [name for name, result in results.items() if np.isnan(result.gap).all()]
    if greedy:
        raise ValueError(
            f"results must come from l1 solvers, got greedy ones too: {', '.join(greedy)}"
        )
    reached = [np.ravel(result.objective) for result in results.values()]
    if len({objective.size for objective in reached}) > 1:
        raise ValueError("results must be for the same images, got different numbers of them")
    return np.array(reached, dtype=np.float64)
