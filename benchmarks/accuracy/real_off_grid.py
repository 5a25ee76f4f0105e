"""The grid-free methods on real and third-party images with independent truth.

    CSUNMIX_DATA=/path/to/data python -m benchmarks.accuracy.real_off_grid

The sets are those of `benchmarks.accuracy.real`. Methods know the PSF, a box that the targets of an
image lie in (WISE blends and singles 7 px, its composites 12 px, Spitzer's 5 px, storm 4 px) and no
fluxes; the background is fitted. `psf_error` is 2 % of a pixel's light for the measured PSFs: with
it chi^2 is 1.1 per pixel where single WISE stars have more than a tenth of their peak, measured on
every fourth of them. The storm crops have shot noise alone.

"Count found" chooses among 1 to 4 targets. A measured PSF errs alike in neighbouring pixels, which
the evidence takes for independent; "calibrated" therefore asks as much log evidence of each further
target as 95 % of the even single WISE stars keep below. The row of single stars holds the odd ones.
"Count known" is told the true number. Blends whose members lie further apart than 7 px are part of
the rows: the box cannot hold them.

photutils' PSFPhotometry is told the true number and starts from the truth moved by 0.2 px (normal),
which no estimator has: its most favourable case. Background: the median of the border.

Distances are those of targets matched within 10 px, the number being known. "Separation" is the
error of the vector from the brightest target to each other one of an image, free of the common
shift between surveys. Pulls are errors over claimed errors, which mean something only where the
noise is known: in the storm crops. The posterior is run on every `every`-th image.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.accuracy.real import Case, cases
from benchmarks.report import to_markdown, write_report
from csunmix.metrics import match

_PSF_ERROR = 0.02
_MOST = 4  # targets looked for
_LEAST = np.finfo(float).tiny
_Unmixer = type[cu.ContinuousUnmixer] | type[cu.PosteriorUnmixer]


def parts(folder: Path) -> list[tuple[Case, float]]:
    """Data sets, the storm crops in three, each with the box that its targets lie in, px."""
    out: list[tuple[Case, float]] = []
    for case in cases(folder):
        if case.shift:
            continue
        if not case.name.startswith("storm"):
            box = {"WISE": 7.0, "wise": 12.0, "spit": 5.0}[case.name[:4]]
            out.append((case, box))
            continue
        case = case._replace(sensor=replace(case.sensor, read_noise=0.0))
        image = case.truth.groupby("frame")["flux"]
        several, bright = image.size() > 1, image.max() > 1000.0
        for name, chosen in {
            "bright singles": bright & ~several,
            "bright multiples": bright & several,
            "faint": ~bright,
        }.items():
            out.append((some(case, np.flatnonzero(chosen), f"storm crops, {name}"), 4.0))
    return out


def some(case: Case, frames: np.ndarray, name: str) -> Case:
    """Some images of a data set."""
    truth = case.truth[case.truth["frame"].isin(frames)]
    truth = cu.targets.make_table(
        np.searchsorted(frames, truth["frame"]),
        *(truth[column].to_numpy() for column in ("y", "x", "flux")),
        n_frames=len(frames),
    )
    return case._replace(name=name, images=case.images[frames], truth=truth)


def unmix(case: Case, box: float, method: _Unmixer, count: tuple[int, int]) -> pd.DataFrame:
    """Answers of a grid-free method that looks for so many targets."""
    measured = isinstance(case.psf, cu.SampledPSF)
    return method(
        case.psf,
        case.sensor,
        cu.Prior(count=count, extent=box),
        background="fit",
        psf_error=_PSF_ERROR if measured else 0.0,
    )(case.images)


def counted(case: Case, answer: Callable[[Case, int], pd.DataFrame]) -> pd.DataFrame:
    """Answers of a method that is told the true count of every image."""
    true, tables = case.truth.groupby("frame").size().to_numpy(), []
    for count in np.unique(true):
        frames = np.flatnonzero(true == count)
        table = answer(some(case, frames, case.name), int(count))
        tables.append(table.assign(frame=frames[table["frame"]]))
    return pd.concat(tables, ignore_index=True)


def photutils(case: Case, count: int) -> pd.DataFrame:
    """PSFPhotometry that starts 0.2 px off the truth."""
    from astropy.table import Table
    from photutils.psf import GaussianPRF, ImagePSF, PSFPhotometry, SourceGrouper

    if isinstance(case.psf, cu.SampledPSF):
        model = ImagePSF(case.psf.values, oversampling=int(case.psf.oversampling))
    else:
        width = 2.0 * np.sqrt(2.0 * np.log(2.0))
        model = GaussianPRF(x_fwhm=width, y_fwhm=width)
        model.x_fwhm.fixed = model.y_fwhm.fixed = model.theta.fixed = True
    shape = case.images.shape[-2:]
    fit = PSFPhotometry(model, shape, grouper=SourceGrouper(max(shape)), aperture_radius=3)
    rng, tables = np.random.default_rng(0), []
    for frame, truth in case.truth.groupby("frame"):
        image = case.images[frame].astype(float) - cu.background.border_level(case.images[frame])
        start = Table()
        for name in ("x", "y"):
            start[name] = truth[name].to_numpy() + 0.2 * rng.normal(size=count)
        start["flux"] = np.full(count, image.sum() / count)
        error = None
        if case.sensor.gain is not None:
            error = np.sqrt(np.maximum(case.images[frame] - case.sensor.offset, 1.0))
        got = fit(image, error=error, init_params=start)
        names = ("y_fit", "x_fit", "flux_fit", "y_err", "x_err", "flux_err")
        tables.append(np.column_stack([np.full(count, frame), *(got[each] for each in names)]))
    frame, y, x, flux, *errors = np.concatenate(tables).T
    lost = ~np.isfinite(y + x + flux)
    y[lost], x[lost], flux[lost] = -99.0, -99.0, 0.0
    named = dict(zip(("y_err", "x_err", "flux_err"), errors, strict=True))
    return cu.targets.make_table(frame.astype(int), y, x, flux, n_frames=len(case.images), **named)


def log_odds(table: pd.DataFrame) -> np.ndarray:
    """Log probability (n_images, n_counts) of every number of targets."""
    return np.log(np.maximum(np.array(table.attrs["count_probability"]), _LEAST))


def count_figures(case: Case, found: pd.DataFrame, asked: float) -> dict[str, float]:
    """How often the count is right, by the evidence, and with `asked` of each further target."""
    true, logs = case.truth.groupby("frame").size().to_numpy(), log_odds(found)
    out: dict[str, float] = {}
    for name, price in {"": 0.0, ", calibrated": asked}.items():
        count = 1 + (logs - price * np.arange(logs.shape[1])).argmax(axis=1)
        out["right %" + name] = 100.0 * float((count == true).mean())
        out["multiple %" + name] = 100.0 * float((count > 1).mean())
    return out


def figures(case: Case, found: pd.DataFrame) -> dict[str, float]:
    """Errors of targets whose number is known."""
    pairs = match(found, case.truth, max_distance=10.0)
    near = found.iloc[pairs.detection].reset_index(drop=True)
    true = case.truth.iloc[pairs.truth].reset_index(drop=True)
    columns = ["y", "x", "flux"]
    error = near[columns] - true[columns]
    frame = true["frame"]
    brightest = true.groupby("frame")["flux"].idxmax()
    relative = error[["y", "x"]] - error.loc[frame.map(brightest), ["y", "x"]].to_numpy()
    others = ~true.index.isin(brightest)
    separation = np.hypot(*relative[others].to_numpy().T)
    distance = np.hypot(error["y"], error["x"])
    out = {
        "median px": float(distance.median()),
        "90 % px": float(distance.quantile(0.9)),
        "separation px": float(np.median(separation)) if others.any() else np.nan,
        "flux error %": 100.0 * float((error["flux"] / true["flux"]).abs().median()),
    }
    if case.sensor.gain is not None:
        pull = error.to_numpy() / near[[f"{name}_err" for name in columns]].to_numpy()
        for name, each in zip(columns, pull.T, strict=True):
            out[f"pull {name}"] = float(each.std())
        out["68 %"] = 100.0 * float((np.abs(pull) < 1.0).mean())
        out["95 %"] = 100.0 * float((np.abs(pull) < 1.96).mean())
    return out


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=20, help="image of which the posterior is run")
    parser.add_argument("--rows", type=int, nargs="*", help="only these data sets, from 0")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    if "CSUNMIX_DATA" not in os.environ:
        raise SystemExit("set CSUNMIX_DATA to the folder with the data")
    sets = parts(Path(os.environ["CSUNMIX_DATA"]))
    singles, box = next(each for each in sets if "single stars" in each[0].name)
    even, odd = np.arange(0, len(singles.images), 2), np.arange(1, len(singles.images), 2)
    calibration = some(singles, even, singles.name)
    logs = log_odds(unmix(calibration, box, cu.ContinuousUnmixer, (1, _MOST)))
    # What a single star gives n further targets, each paying its share.
    gain = ((logs[:, 1:] - logs[:, :1]) / np.arange(1, _MOST)).max(axis=1)
    asked = max(float(np.quantile(gain, 0.95)), 0.0)
    results: list[dict[str, object]] = []

    def run(case: Case, method: str, answer: Callable[[], pd.DataFrame], price: float = -1) -> None:
        start = time.perf_counter()
        found = answer()
        took = 1e3 * (time.perf_counter() - start) / len(case.images)
        told = count_figures(case, found, price) if price >= 0 else figures(case, found)
        head = {"data": case.name, "method": method, "images": len(case.images)}
        results.append({**head, **told, "ms/image": round(took)})
        print(results[-1], flush=True)

    for k, (case, box) in enumerate(sets):
        if options.rows is not None and k not in options.rows:
            continue
        if case.name == singles.name:
            case = some(case, odd, f"{case.name}, odd")
        price = asked if isinstance(case.psf, cu.SampledPSF) else 0.0
        few = some(case, np.arange(0, len(case.images), options.every), case.name)

        def known(method: _Unmixer, box: float = box) -> Callable[[Case, int], pd.DataFrame]:
            return lambda same, n: unmix(same, box, method, (n, n))

        run(
            case,
            "continuous, count found",
            lambda case=case, box=box: unmix(case, box, cu.ContinuousUnmixer, (1, _MOST)),
            price,
        )
        for name, part, answer in (
            ("continuous, count known", case, known(cu.ContinuousUnmixer)),
            ("posterior, count known", few, known(cu.PosteriorUnmixer)),
            ("photutils, count known", case, photutils),
        ):
            run(part, name, lambda part=part, answer=answer: counted(part, answer))
    table = pd.DataFrame(results)
    table = table[[*(name for name in table if name != "ms/image"), "ms/image"]]
    command = f"python -m benchmarks.accuracy.real_off_grid --every {options.every}"
    title = "Grid-free methods on real and third-party images"
    asks = f"Calibrated: {asked:.1f} of log evidence for each further target.\n"
    write_report(options.out, title, command, __doc__, table, [asks])
    table.to_csv(options.out.with_suffix(".csv"), index=False)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
