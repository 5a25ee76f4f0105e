"""Accuracy of the grid-free methods, beside the Cramer-Rao bound and an oracle.

    python -m benchmarks.accuracy.off_grid --n 1000 --seed 2026

Targets lie in one pixel cell (or in a window of 1.2 px, where the row says so), 1 to 5 of them,
at least 0.494 px apart, flux 220-250 DN, PSF sigma 0.5 px, 11 x 11 pixels. "Cell" tells a method
that the targets share an unknown pixel cell; "extent" no more than that they lie in a box of 1.2 px
anywhere; "preset" is `presets.csist_100k().prior`: a cell with a probability of 0.8, else such a
box. The row of sigma 1 px has 15 x 15 pixels, targets at least 0.988 px apart in a window of
2.4 px. With no fluxes told, those of 220-250 DN are one corner of all that a method reckons with.
In the rows of fluxes of 50-500 DN and of "scenes as told", scenes are drawn from the prior that is
told: claimed errors can be asked to be right on the mean there, and only there.

The oracle is no method: it is told the true count, and its Monte Carlo chain of 2,400 paths starts
at the truth. It shows what the data allow, and more where the chain does not forget the truth: far
more where posteriors are wide or have several optima (noise of 1 DN and above, no flux prior).
There the samplers of `PosteriorUnmixer`, which agree (sampler.md), tell better what the data allow.
Where a method is above it, by up to 0.1, or 0.4 ranked by score, both are at the limit, and the
oracle's chain is short. Wanted were 84 with noise of 1 DN, told the extent alone: 0.06 to 0.1 are
missing there.

"Moments" is `MomentUnmixer`, a few fits of an image, in a fifth of the time of "refined". Its
errors are too small where an optimum was missed: of four and five targets that little noise blurs,
whose pulls of places have wide tails for that. It needs a flux prior, and a cell that is likely but
not sure makes no difference to it: "preset" and "extent" are the same. How many starts there are,
how far they go and how the light is read was chosen on images of seeds 100 and 777.

"Refined" is `grid_unmixer(refine=True)`: the exact l1 optimum on a grid of 1/7 px, made the start
of joint fits, and the means and errors of the normal distributions around the optima that they end
in. Its errors are a little too small, pulls of places 1.0 to 1.3, where several targets stand close
together or no narrow flux range is told; targets without a flag, a fifth on the main protocol and
fewer with more noise (a handful with 5 DN), have pulls of 0.94 to 1.03 where one is told. How it
splits and merges what the grid has, and what shapes fits begin in, was chosen on images of seeds 3
to 5, 7, 13, 14, 31, 41, 42, 60, 61 and 902 to 904.

"posterior-30" is `PosteriorUnmixer(n_effective=30)`: 30 scenes that count in place of 500, and a
shorter search for where to draw them, in a seventh of the time where little but rounding is. With
noise, its means err more and its errors are too small. How it searches was chosen on seeds 3 to 8.

RMSE / bound compares the position errors of targets whose image was given the right count with
their Cramer-Rao bounds (flux range included by van Trees' inequality), for targets whose bound is
below 0.02 px: above, the prior tells more than the image and an estimator with a prior beats the
bound. It takes rounding as a normal error: where little other noise is, the intervals say more than
that, and below 1 is no error.

Pulls are errors over claimed errors, of images given the right count: their standard deviation
should be 1, and 68 and 95 % of them lie within 1 and 1.96 claimed errors. The claimed errors are
standard deviations of the posterior, which is not normal where the prior cuts it off (58 % of a
uniform one lie within one): "unflagged" are targets without `Flag.AT_BOUND` and `Flag.FLAT`. With
fluxes known to 220-250 DN and targets in one pixel's cell, few or none are: the prior tells much.

`--rows` and `--methods` make some rows only, which then take their places in the table that is
there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.report import to_markdown, write_report
from csunmix._kernels.smc import explore
from csunmix.continuous.sampling import relabel
from csunmix.continuous.window import Setting
from csunmix.metrics import count_accuracy, cso_map, match, position_rmse
from csunmix.simulate import Simulation
from csunmix.targets import Flag

HERE = Path(__file__).parent
METHODS = ("moments", "refined", "continuous", "posterior", "posterior-30", "oracle")
_BOUND_HOLDS = 0.02  # px
_PRIOR_SPEAKS = int(Flag.AT_BOUND) | int(Flag.FLAT)
_ORACLE_BLOCKS, _ORACLE_STEPS = 24, 100


@dataclass(frozen=True)
class Row:
    """One kind of data and what the methods are told of it."""

    name: str
    told: str
    psf: cu.PSF
    sensor: cu.Sensor
    scene: cu.Prior
    prior: cu.Prior
    shape: tuple[int, int]


def rows() -> list[Row]:
    """The rows of the table."""
    setup = cu.presets.csist_100k()
    rounded = replace(setup.sensor, saturation=None)
    cell = replace(setup.prior, extent=None, cell=True)
    extent = replace(setup.prior, cell=False)
    wide = replace(extent, min_separation=0.988, extent=2.4)
    out = []
    others = {"extent": extent, "cell": cell}
    for name, sensor in {
        "8 bit, clipped at 255": setup.sensor,
        "8 bit, not clipped": rounded,
        "sigma 1 DN": cu.Sensor(read_noise=1.0),
        "sigma 2 DN": cu.Sensor(read_noise=2.0),
        "sigma 5 DN": cu.Sensor(read_noise=5.0),
    }.items():
        base = Row(name, "preset", setup.psf, sensor, setup.scene, setup.prior, setup.shape)
        out += [base, *(replace(base, told=told, prior=prior) for told, prior in others.items())]
    windows = replace(out[0], name="8 bit, clipped, windows of 1.2 px", scene=extent)
    out[3:3] = [windows, replace(windows, told="extent", prior=extent)]
    free = replace(extent, flux=None)
    any_flux = replace(out[5], name="8 bit, not clipped, no flux prior", told="extent", prior=free)
    broad = replace(extent, flux=(50.0, 500.0))
    name = "8 bit, not clipped, flux 50-500, windows of 1.2 px"
    out += [any_flux, replace(any_flux, name=name, prior=broad, scene=broad)]
    noisy = next(each for each in out if each.name == "sigma 5 DN")
    for row in (out[0], noisy):
        out.append(replace(row, name=f"{row.name}, scenes as told", scene=setup.prior))
    out.append(
        Row(
            "PSF sigma 1 px, 8 bit, clipped",
            "extent",
            cu.GaussianPSF(sigma=1.0),
            setup.sensor,
            wide,
            wide,
            (15, 15),
        )
    )
    return out


def oracle(row: Row, made: Simulation) -> pd.DataFrame:
    """Posterior mean and error by a chain that starts at the truth."""
    setting = Setting(row.psf, row.sensor, row.prior, row.shape, 0.0)
    tables = []
    for frame, truth in made.truth.groupby("frame"):
        window = setting.window(made.images[frame])
        if window is None:
            continue
        scene = truth[["y", "x", "flux"]].to_numpy() - [*window.origin, 0.0]
        model = window.model(setting.optics, len(scene))
        states = explore(model, scene.ravel(), _ORACLE_BLOCKS, _ORACLE_STEPS, int(frame))
        states = states[4 * _ORACLE_STEPS :]  # the first blocks adapt the steps
        scenes = relabel(states.reshape(len(states), -1, 3))
        mean, error = scenes.mean(axis=0), scenes.std(axis=0)
        score = (np.hypot(*(scenes - mean).transpose(2, 0, 1)[:2]) <= 0.1).mean(axis=0)
        tables.append(np.column_stack([np.full(len(mean), frame), mean, error, score]))
        tables[-1][:, 1:3] += window.origin
    frame, y, x, flux, y_err, x_err, flux_err, score = np.concatenate(tables).T
    return cu.targets.make_table(
        frame.astype(int),
        y,
        x,
        flux,
        y_err=y_err,
        x_err=x_err,
        flux_err=flux_err,
        score=score,
        n_frames=len(made.images),
    )


def bounds(row: Row, truth: pd.DataFrame) -> np.ndarray:
    """Cramer-Rao bound (n, 2) of the position of every true target, px."""
    from csunmix.continuous.bound import cramer_rao

    parts = []
    for _, targets in truth.groupby("frame"):
        place = (targets[name].to_numpy() for name in ("y", "x", "flux"))
        bound = cramer_rao(row.psf, row.sensor, *place, row.shape, flux_range=row.prior.flux)
        parts.append(np.column_stack([bound.y, bound.x]))
    return np.concatenate(parts)


def measure(row: Row, made: Simulation, found: pd.DataFrame) -> dict[str, float]:
    """The figures of one method on one kind of data."""
    right = _right_frames(found, made.truth)
    pairs = match(found, made.truth, max_distance=10.0)
    near = found.iloc[pairs.detection].reset_index(drop=True)
    true = made.truth.iloc[pairs.truth].reset_index(drop=True)
    bound = bounds(row, made.truth)[pairs.truth]
    good = true["frame"].isin(right).to_numpy()
    error = np.column_stack([near[name] - true[name] for name in ("y", "x", "flux")])[good]
    claimed = near[["y_err", "x_err", "flux_err"]].to_numpy()[good]
    pull = error / claimed
    held = (bound[good] < _BOUND_HOLDS).all(axis=1)
    ratio = np.nan
    if held.any():
        ratio = np.sqrt((error[held, :2] ** 2).mean() / (bound[good][held] ** 2).mean())
    scored = found.fillna({"score": 0.0})  # refined targets may have none
    free = ((near["flags"].to_numpy()[good] & _PRIOR_SPEAKS) == 0) & ~np.isnan(claimed).any(axis=1)
    return {
        "CSO-mAP": 100 * cso_map(found, made.truth).mean,
        "by score": 100 * cso_map(scored, made.truth, rank_by="score").mean,
        "count %": 100 * count_accuracy(found, made.truth),
        "RMSE px": position_rmse(found, made.truth),
        "RMSE / bound": float(ratio),
        **{f"{name}, all": value for name, value in claims(pull).items()},
        **{f"{name}, unflagged": value for name, value in claims(pull[free]).items()},
    }


def claims(pull: np.ndarray) -> dict[str, float]:
    """How pulls (n, 3) are spread."""
    pull = pull[~np.isnan(pull).any(axis=1)]  # refined targets may have no errors
    out: dict[str, float] = {"targets": len(pull)}
    for name, part in ("place", pull[:, :2]), ("flux", pull[:, 2]):
        few = part.size == 0
        out[f"pull, {name}"] = np.nan if few else float(part.std())
        for percent, limit in (68, 1.0), (95, 1.96):
            inside = np.nan if few else float((np.abs(part) < limit).mean())
            out[f"{percent} %, {name}"] = 100.0 * inside
    return out


def claims_table(table: pd.DataFrame) -> pd.DataFrame:
    """Figures of `claims` from those of all rows: a line for all targets, one for the unflagged."""
    parts = []
    for k, which in enumerate(("all", "unflagged")):
        names = [name for name in table.columns if name.endswith(f", {which}")]
        part = table[["data", "told", "method", *names]].copy()
        part.columns = [name.removesuffix(f", {which}") for name in part.columns]
        part.insert(3, "which", which)
        parts.append(part.assign(order=2 * np.arange(len(part)) + k))
    lines = pd.concat(parts).sort_values("order").drop(columns="order")
    lines = lines.dropna(subset="pull, place")  # none are unflagged, or an older run did not look
    lines["targets"] = ["" if np.isnan(n) else f"{n:.0f}" for n in lines["targets"]]
    oracle = (lines["method"] == "(oracle)") & (lines["which"] == "unflagged")  # it flags nothing
    return lines[~oracle]


def pooled(lines: pd.DataFrame) -> pd.DataFrame:
    """Lines of `claims_table`, of all rows that tell fluxes together, targets counting alike."""
    sampled = lines["method"].isin(["continuous", "posterior", "posterior-30"])
    told = lines[~lines["data"].str.contains("no flux prior") & sampled]
    told = told[told["targets"] != ""]  # of an older run
    out = []
    for (method, which), part in told.groupby(["method", "which"], sort=False):
        n = part["targets"].astype(int)
        line = {"method": method, "which": which, "rows": len(part), "targets": str(n.sum())}
        for name in part.columns[5:]:
            if name.startswith("pull"):
                line[name] = float(np.sqrt(np.average(part[name] ** 2, weights=n)))
            else:
                line[name] = float(np.average(part[name], weights=n))
        out.append(line)
    return pd.DataFrame(out)


def _right_frames(found: pd.DataFrame, truth: pd.DataFrame) -> list[int]:
    count = found.groupby("frame").size()
    return [f for f, n in truth.groupby("frame").size().items() if count.get(f, 0) == n]


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--rows", type=int, nargs="*", help="only these, from 0")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--jobs", type=int, default=1, help="images at a time")
    parser.add_argument("--out", type=Path, default=HERE / "off_grid.md")
    options = parser.parse_args()
    chosen = rows() if options.rows is None else [rows()[k] for k in options.rows]
    for row in chosen:
        write(options, pd.DataFrame(answers(row, options)))


def answers(row: Row, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Figures of every method on one kind of data."""
    made = cu.simulate(
        row.psf, row.sensor, row.scene, shape=row.shape, n=options.n, rng=options.seed
    )
    parts = row.psf, row.sensor, row.prior
    on_grid = cu.grid_unmixer(
        psf=row.psf, shape=row.shape, sensor=row.sensor, prior=row.prior, refine=True
    )
    methods: dict[str, Callable[[], pd.DataFrame]] = {
        "moments": lambda: cu.MomentUnmixer(*parts, n_jobs=options.jobs)(made.images),
        "refined": lambda: replace(on_grid, n_jobs=options.jobs)(made.images),
        "continuous": lambda: cu.ContinuousUnmixer(*parts, n_jobs=options.jobs)(made.images),
        "posterior": lambda: cu.PosteriorUnmixer(*parts, n_jobs=options.jobs)(made.images),
        "posterior-30": lambda: cu.PosteriorUnmixer(*parts, n_jobs=options.jobs, n_effective=30)(
            made.images
        ),
        "oracle": lambda: oracle(row, made),
    }
    for name in options.methods:
        if name == "moments" and row.prior.flux is None:
            continue
        start = time.perf_counter()
        found = methods[name]()
        seconds = time.perf_counter() - start
        shown = f"({name})" if name == "oracle" else name  # no method
        head = {"data": row.name, "told": row.told, "images": options.n, "method": shown}
        figures = {**head, **measure(row, made, found), "ms/image": 1e3 * seconds / options.n}
        print(to_markdown(pd.DataFrame([figures])).splitlines()[-1], flush=True)
        yield figures


def write(options: argparse.Namespace, new: pd.DataFrame) -> None:
    """Put rows into the table: those of earlier runs stay unless they are made anew."""
    path = options.out.with_suffix(".csv")
    table = pd.concat([pd.read_csv(path), new]) if path.exists() else new
    table = table.drop_duplicates(["data", "told", "method"], keep="last")
    order = [(row.name, row.told) for row in rows()]
    place = [order.index(each) for each in zip(table["data"], table["told"], strict=True)]
    method = [METHODS.index(name.strip("()")) for name in table["method"]]
    table = table.iloc[np.lexsort((method, place))]
    table.to_csv(path, index=False)
    claimed = claims_table(table)
    plain = [name for name in table.columns if not name.endswith((", all", ", unflagged"))]
    write_report(
        options.out,
        "Grid-free methods on simulated images",
        f"python -m benchmarks.accuracy.off_grid --n {options.n} --seed {options.seed}",
        __doc__,
        table[plain],
        [
            "Times are of one image at a time on a machine that did other work too: rough.",
            "",
            "## Claimed errors",
            "",
            to_markdown(claimed),
            "",
            "All rows with a flux prior, of methods that draw, together; three of them may be of",
            "the same scenes, told more or less, and all are of one seed, so that single rows may",
            "lie further off:",
            "",
            to_markdown(pooled(claimed)),
            "",
        ],
    )


if __name__ == "__main__":
    main()
