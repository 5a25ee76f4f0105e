"""The leaderboard as one HTML page that loads nothing: table, plots, hardest images."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from csunmix import __version__
from csunmix._validation import FloatArray
from csunmix.metrics import THRESHOLDS
from csunmix.plots import (
    COLOURS,
    plot_answer,
    plot_ap,
    plot_errors,
    plot_precision_recall,
    styled,
)
from csunmix.report import COLUMNS, Report, count_text

if TYPE_CHECKING:
    import pandas as pd

_ON_DARK = (
    *("#4fa8e8", "#ff8442", "#33c79c", "#e89ac7", "#f5b82e"),
    *("#a4dcff", "#f0f2f5", "#d97a9e", "#9aa4ae"),
)
"""The colours of `COLOURS` as they are legible on a dark page."""
_AROUND = 1.0  # px around the true targets in a picture
_INK = "#010203"  # stands for the colour of the page's text in a plot
_DASH_ARRAYS = {"-": "", "--": "7 3", "-.": "8 2 2 2", ":": "2 2"}
_HEADINGS = {
    "precision": (
        "Precision against recall",
        "Detections are taken in descending {rank_by}; the distance says how near a hit must be.",
    ),
    "errors": (
        "Accuracy",
        "Average precision depends on the distance that counts as a hit; CSO-mAP is the mean over "
        "the five. Histograms count the true targets that are found within "
        "{max_distance:g} px; flux errors beyond 50 % stand at the ends.",
    ),
    "cases": (
        "Hardest images",
        "Those with the largest GOSPA, in the mean over the methods. Circles are the true targets, "
        "crosses the answers, both with areas that follow the flux; ellipses are errors of one "
        "sigma.",
    ),
    "published": (
        "Published figures",
        "As published, on the data named there: not necessarily the images above.",
    ),
}


def render(report: Report) -> str:
    """The page of `report`; names and all other text are escaped."""
    parts = [_leaderboard(report)]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        parts.append("<p>No plots: they need matplotlib (pip install 'csunmix[plot]').</p>")
    else:
        parts += [*_charts(report), *_cases(report)]
    if report.published is not None:
        parts.append(_published(report.published))
    template = Template(files("csunmix").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(report.title),
        summary=escape(report.summary()),
        version=escape(__version__),
        light=_variables(COLOURS),
        dark=_variables(_ON_DARK),
        body="\n".join(parts),
    )


# Tables


def _leaderboard(report: Report) -> str:
    heads = [_head("method", "", "the name that was given", "")]
    for column in COLUMNS:
        sort = "descending" if column.name == "CSO-mAP" else ""
        heads.append(_head(column.name, column.unit, column.about, sort))
    swatches = _swatches(report)
    rows = []
    numbers = report.table[[column.name for column in COLUMNS]].to_numpy().tolist()
    for name, values, cells, best in zip(
        report.table.index, numbers, report.cells(), report.best(), strict=True
    ):
        row = [_name_cell(str(name), swatches[name])]
        row += [_cell(*each) for each in zip(values, cells, best, strict=True)]
        rows.append(f"<tr>{''.join(row)}</tr>")
    about = "".join(
        f"<dt>{escape(column.name)}</dt><dd>{escape(column.about)}</dd>" for column in COLUMNS
    )
    return (
        f'<div class="card scroll"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f"<details><summary>What the columns are</summary><dl>{about}</dl></details>"
    )


def _head(name: str, unit: str, about: str, sort: str) -> str:
    small = f"<small>{escape(unit)}</small>" if unit else ""
    order = f' aria-sort="{sort}"' if sort else ""
    return (
        f'<th scope="col"{order} title="{escape(about)}">'
        f'<button type="button">{escape(name)}{small}</button></th>'
    )


def _name_cell(name: str, swatch: str) -> str:
    return f'<th scope="row" data-value="{escape(name)}"><span>{swatch}{escape(name)}</span></th>'


def _cell(value: float, text: str, best: bool) -> str:
    if not text:
        return '<td class="none" data-value="">&ndash;</td>'
    return f'<td{" class=best" if best else ""} data-value="{value!r}">{escape(text)}</td>'


def _published(table: pd.DataFrame) -> str:
    heads = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in table.columns)
    rows = []
    for name, *values in table.fillna("").itertuples(index=False):
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{escape(str(name))}</th>{cells}</tr>')
    return _section(
        "published",
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


# Plots


def _charts(report: Report) -> Iterator[str]:
    """Sections of plots; methods have numbers there, so that no name is drawn."""
    runs = {str(k): report.runs[name] for k, name in enumerate(report.table.index)}
    truth = report.truth
    about = {"rank_by": report.rank_by, "max_distance": report.max_distance}
    items = "".join(
        f"<li>{swatch}{escape(str(name))}</li>" for name, swatch in _swatches(report).items()
    )
    legend = f'<ul class="legend">{items}</ul>'
    by_pairs = partial(plot_errors, runs, truth, max_distance=report.max_distance)
    errors = [
        _chart("average precision", partial(plot_ap, runs, truth, rank_by=report.rank_by)),
        _chart("errors of position", partial(by_pairs, quantity="position")),
    ]
    if all(run.attrs.get("flux_known", True) for run in runs.values()):
        errors.append(_chart("errors of flux", partial(by_pairs, quantity="flux")))
    curves = [
        _chart(
            f"hits within {limit:.2f} px",
            partial(plot_precision_recall, runs, truth, limit, rank_by=report.rank_by),
        )
        for limit in THRESHOLDS
    ]
    yield _section("errors", legend + _grid("charts", errors), **about)
    yield _section("precision", legend + _grid("charts", curves), **about)


def _cases(report: Report) -> Iterator[str]:
    """The hardest images with the answer of each method."""
    if report.images is None or not report.hardest:
        return
    cases = []
    for number, frame in enumerate(report.hardest):
        image = np.asarray(report.images[frame], dtype=np.float64)
        truth = report.truth[report.truth["frame"] == frame]
        answers = {
            name: report.runs[name][report.runs[name]["frame"] == frame]
            for name in report.table.index
        }
        window = _square(image, truth)
        panels = [
            _panel(
                _picture(image, targets, truth, window),
                str(name),
                f"{count_text(len(targets), 'target')} found",
                f"GOSPA {report.gospa[name][frame]:.3f} px",
            )
            for name, targets in answers.items()
        ]
        heading = f"Frame {frame}" if report.names is None else f"{report.names[frame]}"
        cases.append(
            f'<article class="card case" id="case-{number}">'
            f"<h3>{escape(heading)}: {count_text(len(truth), 'target')}</h3>"
            f"{_grid('panels', panels)}</article>"
        )
    many = f'<div class="cases" style="--methods: {len(report.runs)}">{"".join(cases)}</div>'
    yield _section("cases", many)


def _section(key: str, content: str, **about: Any) -> str:
    heading, text = _HEADINGS[key]
    return (
        f'<section id="{key}"><h2>{escape(heading)}</h2>'
        f"<p>{escape(text.format(**about))}</p>{content}</section>"
    )


def _grid(kind: str, figures: Iterable[str]) -> str:
    return f'<div class="{kind}">{"".join(figures)}</div>'


def _chart(caption: str, draw: Callable[..., Any]) -> str:
    text = escape(caption)
    return f'<figure class="card"><figcaption>{text}</figcaption>{_svg(caption, draw)}</figure>'


def _panel(picture: str, name: str, *lines: str) -> str:
    alt = escape(f"answer of {name}")
    text = "".join(f"<span>{escape(line)}</span>" for line in lines)
    return (
        f'<figure><img alt="{alt}" src="{picture}">'
        f"<figcaption>{escape(name)}{text}</figcaption></figure>"
    )


def _svg(caption: str, draw: Callable[..., Any]) -> str:
    """A plot that takes the colours of the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = {**dict.fromkeys(inks, _INK), "grid.color": _INK, "svg.fonttype": "none"}
    # Names of parts are made of this, so that they differ between the plots of a page.
    style |= {"svg.hashsalt": caption, "axes.spines.top": False, "axes.spines.right": False}
    buffer = io.StringIO()
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.4, 3.2), layout="constrained")
        ax = figure.subplots()
        draw(ax=ax)
        ax.set_title("")
        if (legend := ax.get_legend()) is not None:
            legend.remove()
        ax.grid(alpha=0.18)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    prefix = re.sub(r"\W+", "-", caption)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for k, colour in enumerate(COLOURS):
        svg = svg.replace(colour.lower(), f"var(--m{k})")
    return svg.replace(_INK, "currentColor")


def _square(image: FloatArray, truth: pd.DataFrame) -> tuple[float, ...]:
    """A square around the true targets of an image, or its brightest pixel, and inside of it."""
    n = np.array(image.shape)
    if len(truth):
        positions = truth[["y", "x"]].to_numpy(np.float64)
    else:
        brightest = np.argmax(np.nan_to_num(image, nan=-np.inf))
        positions = np.array([np.unravel_index(brightest, image.shape)], np.float64)
    low, high = positions.min(axis=0), positions.max(axis=0)
    size = min(float((high - low).max()) + 2 * _AROUND, *n)
    top, left = np.clip((low + high - size) / 2, -0.5, n - 0.5 - size).tolist()
    return top, top + size, left, left + size


def _picture(
    image: FloatArray, targets: pd.DataFrame, truth: pd.DataFrame, window: tuple[float, ...]
) -> str:
    """A PNG image, as a link that holds it, of a part of an image with truth and answer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.0, 2.0))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    plot_answer(image, targets=targets, truth=truth, window=window, ax=ax)
    ax.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# Style


def _swatches(report: Report) -> dict[str, str]:
    """A piece of each method's line."""
    swatches = {}
    for (name, _), style in styled(dict.fromkeys(report.table.index)):
        colour = f"var(--m{COLOURS.index(style['color'])})"
        dashes = _DASH_ARRAYS[style["linestyle"]]
        swatches[name] = (
            '<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true"><line x1="1" y1="5" x2="27"'
            f' y2="5" style="stroke: {colour}; stroke-width: 3" stroke-dasharray="{dashes}"/></svg>'
        )
    return swatches


def _variables(colours: Iterable[str]) -> str:
    return " ".join(f"--m{k}: {colour};" for k, colour in enumerate(colours))
