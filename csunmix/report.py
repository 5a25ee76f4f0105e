"""The leaderboard: several methods on the same images, as text, CSV, Markdown and a page."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from csunmix._validation import Array, as_images, as_instance, as_integer, as_number
from csunmix.io import atomic_write
from csunmix.metrics import RankBy, compare, frame_gospa
from csunmix.targets import n_frames

if TYPE_CHECKING:
    import pandas as pd

FILES = ("leaderboard.txt", "leaderboard.csv", "leaderboard.md", "leaderboard.html")
"""What `Report.write` writes."""

_USED = ("n_frames", "seconds", "parameters", "flux_known")  # of a table's attributes


class Column(NamedTuple):
    """How a column of the leaderboard is shown."""

    name: str
    unit: str
    show: Callable[[float], str]
    best: Literal["largest", "smallest", ""]
    about: str

    @property
    def heading(self) -> str:
        """Name with its unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_TWO, _ONE = "{:.2f}".format, "{:.1f}".format
_AP = "average precision: a hit lies within {} px of its target"
COLUMNS = (
    Column("CSO-mAP", "%", _TWO, "largest", "mean of the five average precisions"),
    *(
        Column(f"AP{n:02d}", "%", _TWO, "largest", _AP.format(f"{n / 100:.2f}"))
        for n in (5, 10, 15, 20, 25)
    ),
    Column("count accuracy", "%", _ONE, "largest", "images with the right number of targets"),
    Column("RMSE", "px", "{:.4f}".format, "smallest", "position error of the targets found"),
    Column("flux error", "%", _TWO, "smallest", "median relative error of the targets found"),
    Column("GOSPA", "px", "{:.4f}".format, "smallest", "positions, misses and false alarms in one"),
    Column("targets per frame", "", _TWO, "", "how many targets are found in an image"),
    Column("images/s", "", _rate, "largest", "throughput, where the time is known"),
    Column("parameters", "", "{:,.0f}".format, "", "numbers that were trained, where known"),
)
"""The columns of the leaderboard, in order."""


@dataclass(frozen=True, eq=False)
class Report:
    """Compare methods on the same images.

    Parameters
    ----------
    runs : mapping of str to pandas.DataFrame
        The target table of each method. ``attrs["seconds"]`` (time for all images) and
        ``attrs["parameters"]``, or columns of these names, are used where they are there; with
        ``attrs["flux_known"]`` False no flux error is given.
    truth : pandas.DataFrame
        The true targets.
    images : array_like, shape (n, n_y, n_x), optional
        The images, DN: the page shows the hardest of them.
    names : sequence of str, optional
        Name of each image.
    rank_by : {"flux", "score"}
        The column that ranks detections.
    max_distance : float
        Largest distance of a pair for RMSE and flux error, and the cutoff of GOSPA, px.
    seconds : mapping of str to float, optional
        Time that a method took for all images, s; comes before what its table says.
    parameters : mapping of str to float, optional
        Number of parameters of a method; comes before what its table says.
    published : pandas.DataFrame, optional
        Published figures to be shown beside, as they are; columns of your choice.
    n_cases : int
        How many of the hardest images the page shows.
    title : str
        Heading of the page.

    Raises
    ------
    TypeError, ValueError
        As in `csunmix.compare`; or if the images are not as many as the truth has, `seconds` or
        `parameters` names no method or is not positive.

    Examples
    --------
    >>> import csunmix as cu
    >>> truth = cu.targets.make_table([0, 0, 1], [5.0, 5.3, 4.0], [6.0, 6.5, 4.0], [230, 240, 225])
    >>> runs = {"network": truth.assign(x=truth["x"] + 0.12), "ours": truth[:2]}
    >>> report = cu.Report(runs, truth, seconds={"ours": 0.5})
    >>> report.table[["CSO-mAP", "count accuracy", "images/s"]].loc["ours"].round(1).to_dict()
    {'CSO-mAP': 66.7, 'count accuracy': 50.0, 'images/s': 4.0}
    >>> print(report.to_text().splitlines()[0])
    2 methods, 2 images, 3 true targets; ranked by flux
    """

    runs: Mapping[str, pd.DataFrame]
    truth: pd.DataFrame
    _: KW_ONLY
    images: Array | None = None
    names: Sequence[str] | None = None
    rank_by: RankBy = "flux"
    max_distance: float = 0.5
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)
    published: pd.DataFrame | None = None
    n_cases: int = 6
    title: str = "Comparison of methods"

    def __post_init__(self) -> None:
        as_integer(self.n_cases, "n_cases", minimum=0)
        if not isinstance(self.runs, Mapping):
            raise TypeError(f"runs must be a mapping of name to table, got {self.runs!r}")
        light = {name: _light(run, f"runs[{name!r}]") for name, run in self.runs.items()}
        object.__setattr__(self, "runs", light)
        object.__setattr__(self, "truth", _light(self.truth, "truth"))
        self._metrics  # noqa: B018  (refuses bad tables)
        for what, values in (("seconds", self.seconds), ("parameters", self.parameters)):
            for name, value in values.items():
                if name not in self.runs:
                    raise ValueError(f"{what} must be of the methods {[*self.runs]}, got {name!r}")
                as_number(value, f"{what}[{name!r}]", above=0.0)
        n = self.n_frames
        if self.images is not None:
            shape = np.shape(self.images)
            if len(shape) != 3 or shape[0] != n:
                raise ValueError(
                    f"images must be the {n} of the truth (n, n_y, n_x), got shape {shape}"
                )
            as_images(self.images[:1], finite=False)
        if self.names is not None and len(self.names) != n:
            raise ValueError(f"names must be those of {n} images, got {len(self.names)}")

    @property
    def n_frames(self) -> int:
        """Number of images."""
        return n_frames(self.truth)

    @cached_property
    def _metrics(self) -> pd.DataFrame:
        return compare(self.runs, self.truth, rank_by=self.rank_by, max_distance=self.max_distance)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The leaderboard: one row a method, the largest CSO-mAP first.

        The columns of `csunmix.compare`, and ``images/s`` and ``parameters``, NaN where unknown.
        """
        table = self._metrics.copy()
        seconds = [self._known("seconds", name) for name in self.runs]
        table["images/s"] = self.n_frames / np.array(seconds)
        table["parameters"] = [self._known("parameters", name) for name in self.runs]
        blind = [name for name, run in self.runs.items() if not run.attrs.get("flux_known", True)]
        table.loc[blind, "flux error"] = np.nan
        return table.sort_values("CSO-mAP", ascending=False, kind="stable")

    @cached_property
    def hardest(self) -> list[int]:
        """The frames with the largest GOSPA, in the mean over the methods; at most `n_cases`."""
        mean = np.mean(list(self.gospa.values()), axis=0)
        order = np.argsort(-mean, kind="stable")[: self.n_cases]
        return [int(frame) for frame in order if mean[frame] > 0]

    @cached_property
    def gospa(self) -> dict[str, Array]:
        """`csunmix.metrics.frame_gospa` of each method, in the order of `table`."""
        return {
            name: frame_gospa(self.runs[name], self.truth, cutoff=self.max_distance)[
                : self.n_frames
            ]
            for name in self.table.index
        }

    def _known(self, what: Literal["seconds", "parameters"], name: str) -> float:
        """What was given of a method, or stands in its table; NaN where nothing does."""
        given: Mapping[str, float] = getattr(self, what)
        run = self.runs[name]
        value: Any = given.get(name, run.attrs.get(what))
        if value is None and what in run and len(run):
            value = run[what].iloc[0]
        try:
            known = float(value)
        except (TypeError, ValueError):
            return math.nan
        return known if 0 < known < math.inf else math.nan

    # Forms

    def cells(self) -> list[list[str]]:
        """The numbers of `table` in words, one row a method; nothing where there is no number."""
        return [
            [
                "" if math.isnan(value) else column.show(value)
                for value, column in zip(row, COLUMNS, strict=True)
            ]
            for row in self.table[[column.name for column in COLUMNS]].to_numpy().tolist()
        ]

    def best(self) -> list[list[bool]]:
        """Which cells are the best of their column, where there is something to choose from."""
        marks = np.zeros((len(self.table), len(COLUMNS)), np.bool_)
        shown = np.array(self.cells())
        for k, column in enumerate(COLUMNS):
            values = self.table[column.name].to_numpy()
            if column.best and np.isfinite(values).sum() > 1:
                pick = np.nanargmax if column.best == "largest" else np.nanargmin
                marks[:, k] = shown[:, k] == shown[pick(values), k]
        rows: list[list[bool]] = marks.tolist()
        return rows

    def summary(self) -> str:
        """What was compared, in one line."""
        return (
            f"{count_text(len(self.runs), 'method')}, {count_text(self.n_frames, 'image')}, "
            f"{count_text(len(self.truth), 'true target')}; ranked by {self.rank_by}"
        )

    def to_text(self) -> str:
        """Return the leaderboard as a table in plain text."""
        head = ["method", *(column.heading for column in COLUMNS)]
        names = list(self.table.index)
        body = [[name, *row] for name, row in zip(names, self.cells(), strict=True)]
        rows = [head, *([cell or "-" for cell in row] for row in body)]
        # Turned round: a method a column, as its names are shorter than 13 headings.
        return "\n".join([self.summary(), "", *_aligned([*zip(*rows, strict=True)])]) + "\n"

    def to_csv(self) -> str:
        """Return the leaderboard as CSV, numbers with every digit."""
        return self.table.to_csv(lineterminator="\n")

    def to_markdown(self) -> str:
        """Return the leaderboard as a table in Markdown, the best of each column in bold."""
        names = list(self.table.index)
        lines = [
            "| method | " + " | ".join(column.heading for column in COLUMNS) + " |",
            "| --- |" + " ---: |" * len(COLUMNS),
        ]
        for name, row, marks in zip(names, self.cells(), self.best(), strict=True):
            cells = [f"**{cell}**" if best else cell for cell, best in zip(row, marks, strict=True)]
            lines.append(" | ".join([f"| {_escaped(name)}", *cells]) + " |")
        return "\n".join([*lines, "", self.summary() + "."]) + "\n"

    def to_html(self) -> str:
        """Return the leaderboard as a page with plots, whole in itself.

        Plots need matplotlib (``csunmix[plot]``); without it the page says so in their place.
        """
        from csunmix.page import render

        return render(self)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the leaderboard in all forms, `FILES`; each file whole or not at all.

        Parameters
        ----------
        folder : path-like
            Where to write; made where it does not exist. Files of these names are replaced.

        Returns
        -------
        list of Path
            The files.

        Raises
        ------
        OSError
            If a file cannot be written.
        """
        folder = Path(folder)
        made = (self.to_text(), self.to_csv(), self.to_markdown(), self.to_html())
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in FILES]
        for path, content in zip(paths, made, strict=True):
            with atomic_write(path) as temporary:
                temporary.write_text(content, encoding="utf-8", newline="\n")
        return paths


def _light(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """`table` with what is used of its attributes: pandas copies them at every step."""
    import pandas as pd

    part = as_instance(table, pd.DataFrame, name).copy(deep=False)
    part.attrs = {key: table.attrs[key] for key in _USED if key in table.attrs}
    return part


def count_text(n: int, noun: str) -> str:
    """A number of things in words."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def _escaped(name: str) -> str:
    """A name that means itself in Markdown."""
    for mark in "\\`*_{}[]<>#|~&":
        name = name.replace(mark, f"\\{mark}")
    return " ".join(name.split())
