"""What ``csunmix compare`` compares: the truth, the answers, and what is known of the methods."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csunmix._validation import Array, as_integer
from csunmix.cli.output import output_file
from csunmix.cli.truth import Truth, check_images, read_truth
from csunmix.datasets import read_answer
from csunmix.datasets.answers import First
from csunmix.io import read_images
from csunmix.metrics import cso_map
from csunmix.peaks import EveryCell, LocalMaxima, MassMerging, PeakRule
from csunmix.report import FILES, Report, count_text
from csunmix.targets import n_frames

if TYPE_CHECKING:
    import pandas as pd

_PEAKS = {"every-cell": EveryCell, "local-maxima": LocalMaxima, "mass-merging": MassMerging}
_PUBLISHED_ROWS = 1000  # more would be no table of figures


def make_report(options: argparse.Namespace, *, progress: bool = False) -> Report:
    """Read what the options of `compare` name.

    Raises
    ------
    OSError
        If a file cannot be opened.
    ValueError
        If an option or a file is not what it must be, or the methods, the truth and the images
        speak of different numbers of images; the message names both.
    """
    files = _pairs(options.runs, "NAME=FILE")
    _check_out(options.out, [*files.values(), options.truth, options.published or ""])
    seconds = _numbers(options.time, "--time")
    parameters = _numbers(options.parameters, "--parameters")
    for option, given in (("--time", seconds), ("--parameters", parameters)):
        _check_names(option, given, files)
    published = None if options.published is None else _read_published(options.published)
    truth = read_truth(options.truth, progress=progress)
    images, names = _images(options.images, truth)
    rule: PeakRule = _PEAKS[options.peaks](threshold=options.threshold)
    first = _first_axes(options.first, files)
    about: dict[str, Any] = {"factor": options.factor, "peaks": rule, "origin": options.origin}
    about["shape"] = None if images is None else images.shape[1:]
    exact = {f"the truth ({options.truth})": n_frames(truth.table)} if truth.is_complete else {}
    if images is not None and options.images is not None:
        exact[f"--images {options.images}"] = int(images.shape[0])
    runs: dict[str, pd.DataFrame] = {}
    for name, file in files.items():
        runs[name] = read_answer(file, names=names, first=first[name], **about)
        check_images(runs[name], truth, file)
        if "n_frames" in runs[name].attrs:
            exact[f"{name} ({file})"] = runs[name].attrs["n_frames"]
    least = {name: n_frames(table) for name, table in (("the truth", truth.table), *runs.items())}
    n = _n_images(exact, least, options.n_images)
    return Report(
        {name: _cut(table, n) for name, table in runs.items()},
        _cut(truth.table, n),
        images=None if images is None else images[:n],
        names=None if names is None else names[:n],
        rank_by=options.rank_by,
        seconds=seconds,
        parameters=parameters,
        published=published,
        n_cases=options.cases,
        title=options.title,
    )


def swapped_axes(report: Report) -> Iterator[str]:
    """Signs that rows and columns of a method were read the wrong way round.

    Exchanged, its CSO-mAP is at least twice as high, and 10 points.
    """
    for name, run in report.runs.items():
        turned = run.rename(columns={"x": "y", "y": "x"})
        as_is = 100 * cso_map(run, report.truth, rank_by=report.rank_by).mean
        other = 100 * cso_map(turned, report.truth, rank_by=report.rank_by).mean
        if other > max(2 * as_is, as_is + 10):
            yield (
                f"{name}: CSO-mAP would be {other:.1f}, not {as_is:.1f}, with rows and columns "
                f"exchanged; --first '{name}=row' or '{name}=column' says which comes first"
            )


def _n_images(exact: Mapping[str, int], least: Mapping[str, int], given: int | None) -> int:
    """How many images are compared: all, or the first ones that are asked for.

    `exact` are numbers of images that are known, `least` those that targets lie in.
    """
    if given is not None:
        given = as_integer(given, "--n-images", minimum=1)
        for what, n in exact.items():
            if n < given:
                raise ValueError(f"--n-images {given}: {what} has {_images_text(n)}")
        return given
    if not exact:
        return max(least.values())
    (first, n), *others = exact.items()
    for what, other in others:
        if other != n:
            raise ValueError(
                f"{what} has {_images_text(other)}, {first} has {n}; "
                f"--n-images {min(n, other)} compares the first ones"
            )
    for what, end in least.items():
        if end > n:
            raise ValueError(f"{what}: has frame {end - 1}, {first} has {_images_text(n)} from 0")
    return n


def _images_text(n: int) -> str:
    return count_text(n, "image")


def _cut(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """The targets in the first `n` images, and in as many."""
    part = table[table["frame"] < n].reset_index(drop=True)
    part.attrs = {**table.attrs, "n_frames": n}
    return part


def _images(given: str | None, truth: Truth) -> tuple[Array | None, Sequence[str] | None]:
    """The images and their names, as far as they are known."""
    names = list(truth.frame_of) if truth.is_complete else None
    if given is None:
        return truth.images, names
    stack = read_images(given)
    if names is None and len(set(stack.names)) == len(stack):
        names = list(stack.names)
        for name, frame in truth.frame_of.items():
            if frame < len(names) and names[frame] != name:
                raise ValueError(
                    f"--images {given}: image {frame} is {names[frame]}, in the truth it is {name}"
                )
    return stack.images, names


def _pairs(texts: Iterable[str], form: str) -> dict[str, str]:
    """What stands on both sides of the last "=" of each text."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name.strip() or not value or not name.isprintable():
            raise ValueError(f"{text!r}: must be {form}")
        if name in pairs:
            raise ValueError(f"{form}: {name!r} is given twice")
        pairs[name] = value
    return pairs


def _numbers(texts: Iterable[str], option: str) -> dict[str, float]:
    """Positive numbers by name."""
    numbers = {}
    for name, text in _pairs(texts, f"{option} NAME=NUMBER").items():
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(f"{option} {name}: must be a number above 0, got {text!r}")
        numbers[name] = value
    return numbers


def _first_axes(texts: Iterable[str], names: Iterable[str]) -> dict[str, First | None]:
    """What comes first in the answer of each method, where it is said: of one, or of all others."""
    axes: dict[str, First] = {"row": "row", "column": "column"}
    given = dict(text.rpartition("=")[::2] for text in texts)
    for name, axis in given.items():
        if axis not in axes:
            raise ValueError(f"--first {name}: must be row or column, got {axis!r}")
    _check_names("--first", given.keys() - {""}, names)
    return {name: axes.get(given.get(name, given.get("", ""))) for name in names}


def _check_names(option: str, given: Iterable[str], names: Iterable[str]) -> None:
    for name in given:
        if name not in names:
            raise ValueError(f"{option}: there is no method {name!r}, only {', '.join(names)}")


def _check_out(out: str | None, inputs: Iterable[str]) -> None:
    """Refuse a folder that cannot be one, or whose files are inputs."""
    if out is None:
        return
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"--out {out}: is a file, must be a folder")
    inputs = list(inputs)
    for name in FILES if Path(out).is_dir() else ():
        output_file(os.path.join(out, name), "--out", inputs=inputs)


def _read_published(path: str) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=_PUBLISHED_ROWS)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV table: {str(error).strip()}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{path}: not a CSV table: rows have more fields than the header")
    return table
