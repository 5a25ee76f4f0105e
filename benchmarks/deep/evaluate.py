"""Our estimators beside trained networks, on the same images.

    python -m benchmarks.deep.evaluate --n 1000 --seed 2026 --runs deep-runs

CSIST-100K as simulated: 1 to 5 targets in one pixel cell, at least 0.494 px apart, flux 220-250 DN,
PSF sigma 0.5 px, 11 x 11 pixels. Networks are trained for each row's data on scenes drawn the same
way (see `train.py`), and so learn that the targets share a pixel cell ("scenes"), as our "cell" is
told. "Preset" is told less, `presets.csist_100k().prior`: a cell with a probability of 0.8, else a
box of 1.2 px anywhere, as the published data do not quite keep to the cell; what a box alone would
do is in `benchmarks/accuracy/off_grid.md`. Ours are told PSF, sensor and prior, and not trained;
"GridUnmixer, refined" is `grid_unmixer(refine=True)`; `MomentUnmixer` is the quickest.

The off-grid network is our own and the strongest rival we could build: a perceptron and three
refining stages, each given the residual and a Gauss-Newton step (`off_grid.py`); its first stage is
the perceptron alone, whose share of the training time is not known apart. The network was trained
in two rounds, and for rows other than the first from the network of the row before; CPU minutes are
the sum. The amortised posterior stands on it. The networks with "c = 3" answer with a map on the
sub-pixel grid, every cell at or above 50 DN a detection, as published; narrower than published
where it says so. All see the 5 x 5 pixels around the brightest. learning.png shows how much longer
training would help. "Truth, rounded" is what the grid lets a perfect answer reach, with the true
fluxes: the other limit, what the data allow, is below the oracle of `off_grid.md`, whose chain
starts at the truth. At sigma 5 that is 1.7 times the best network on the grid.

Weights are kept of some networks, trained for the first row. The other lines need their networks
trained first, in the folder that `--runs` names: `weights/README.md` has the commands of all.

CSO-mAP and AP at 0.05 to 0.25 px are ranked by flux, in percent; "by score" ranks by what a method
claims of its accuracy. RMSE (2-D) and flux error (median, relative) are those of pairs within
0.5 px. Pulls are position errors over claimed ones, for images whose count is right: 1 is right,
and 68 and 95 % should lie within 1 and 1.96 claimed errors. Times are CPU times of whole calls,
from images to the target table, on one thread, for the first 64 images one by one, for all in one
call, and 1,024 in one call (those that are quick): medians of rounds for 1 s, of one round at
least, after a call that is not counted.

`--rows` and `--methods` make some lines only, which take their places in the table that is there:
lines may be of several runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.deep import data
from benchmarks.deep.methods import BATCHES, FIRST_STAGE, LABELS, OURS, Method, networks, ours
from benchmarks.deep.on_grid import FACTOR
from benchmarks.report import to_markdown, write_report
from csunmix.metrics import cso_map, match
from csunmix.simulate import Simulation

HERE = Path(__file__).parent
ROWS = {
    "clipped": "8 bit, clipped at 255",
    "rounded": "8 bit, not clipped",
    "sigma-1": "sigma 1 DN",
    "sigma-2": "sigma 2 DN",
    "sigma-5": "sigma 5 DN",
}
CEILING = "(truth, rounded to c = 3)"
ORDER = [*OURS, LABELS["off-grid"], FIRST_STAGE, *LABELS.values(), CEILING]
_LEAST_SECONDS = 1.0  # of a timing


def simulate(setting: data.Setting, n: int, seed: int) -> Simulation:
    """Draw the images of a setting."""
    return cu.simulate(
        setting.psf, setting.sensor, setting.scene, shape=setting.shape, n=n, rng=seed
    )


def measure(found: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """Figures of an answer."""
    row = cu.compare({"": found}, truth).iloc[0]
    by_score = np.nan
    if found["score"].notna().any():  # targets that could not be refined have none
        by_score = 100.0 * cso_map(found.fillna({"score": 0.0}), truth, rank_by="score").mean
    levels = [name for name in row.index if name.startswith("AP")]
    return {
        "CSO-mAP": row["CSO-mAP"],
        "by score": by_score,
        **{name: row[name] for name in levels},
        "count %": row["count accuracy"],
        "RMSE px": row["RMSE"],
        "flux error %": row["flux error"],
        **pulls(found, truth),
    }


def pulls(found: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """How errors of positions compare with those claimed, in images of the right count."""
    names = ("pull, place", "68 %", "95 %")
    count = found.groupby("frame").size()
    right = truth.groupby("frame").size().eq(count).loc[lambda same: same].index
    pairs = match(found, truth, max_distance=10.0)
    found, truth = found.iloc[pairs.detection], truth.iloc[pairs.truth]
    good = truth["frame"].isin(right).to_numpy()
    away = found[["y", "x"]].to_numpy() - truth[["y", "x"]].to_numpy()
    pull = (away / found[["y_err", "x_err"]].to_numpy())[good]
    pull = pull[~np.isnan(pull).any(axis=1)]
    if not pull.size:
        return dict.fromkeys(names, np.nan)
    within = [100.0 * float((np.abs(pull) < limit).mean()) for limit in (1.0, 1.96)]
    return dict(zip(names, (float(pull.std()), *within), strict=True))


def milliseconds(method: Method, images: np.ndarray, batch: int) -> float:
    """Median CPU time an image of the same 64 images (or more), so many a call."""
    n = max(64, batch)
    calls = np.resize(images, (n // batch, batch, *images.shape[1:]))
    took: list[float] = []
    method.run(calls[0][:2])
    while not took or sum(took) < _LEAST_SECONDS:
        start = time.process_time()
        for each in calls:
            method.run(each)
        took.append(time.process_time() - start)
    return 1e3 * float(np.median(took)) / n


def line(row: str, method: Method, made: Simulation) -> dict[str, object]:
    """One line of the table."""
    head = {"data": ROWS[row], "method": method.name, "told": method.told}
    figures = measure(method.run(made.images), made.truth)
    trained = method.parameters is not None
    times = {
        f"ms, {batch} a call": milliseconds(method, made.images, batch)
        if batch in method.batches
        else np.nan
        for batch in BATCHES
    }
    return {
        **head,
        "images": len(made.images),
        **figures,
        "parameters": f"{method.parameters:,}" if trained else "",
        "CPU minutes": method.seconds / 60.0 if method.seconds is not None else np.nan,
        **times,
    }


def ceiling(row: str, made: Simulation) -> dict[str, object]:
    """The line of the truth, its places rounded to the sub-pixels of a grid."""
    frame, y, x, flux = (made.truth[name].to_numpy() for name in ("frame", "y", "x", "flux"))
    grid = cu.SubpixelGrid(made.images.shape[1:], FACTOR)
    y, x = grid.position(*grid.cell(y, x))
    rounded = cu.targets.make_table(frame, y, x, flux, n_frames=len(made.images))
    head = {"data": ROWS[row], "method": CEILING, "told": "truth", "images": len(made.images)}
    return {**head, **measure(rounded, made.truth), "parameters": ""}


def merge(path: Path, new: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """What a table holds with new lines in place of those that have the same keys."""
    if path.exists():
        new = pd.concat([pd.read_csv(path, dtype={"parameters": str}), new], ignore_index=True)
    return new.drop_duplicates(keys, keep="last", ignore_index=True)


def write(options: argparse.Namespace, new: pd.DataFrame) -> None:
    """Put lines into the table: those of earlier runs stay unless they are made anew."""
    path = options.out.with_suffix(".csv")
    keys = ["data", "method", "told"]
    table = merge(path, new, keys)
    table["parameters"] = table["parameters"].fillna("")
    rows, methods = list(ROWS.values()), list(dict.fromkeys(ORDER))
    place = [
        (rows.index(row), methods.index(name), told != "preset")
        for row, name, told in table[keys].itertuples(index=False)
    ]
    table = table.iloc[sorted(range(len(table)), key=place.__getitem__)]
    table.to_csv(path, index=False)
    command = f"python -m benchmarks.deep.evaluate --n {options.n} --seed {options.seed}"
    title = "Our estimators beside trained networks"
    write_report(options.out, title, command, __doc__, table, [*ahead(table), *capped(table)])


def ahead(table: pd.DataFrame) -> list[str]:
    """Say for each kind of data whether the best network is ahead of our best."""
    mine = table["method"].isin(OURS)
    lines = []
    for row, part in table.groupby("data", sort=False):
        if not mine[part.index].any():
            continue
        for figure in ("CSO-mAP", "by score"):
            rivals = part[~mine[part.index] & (part["method"] != CEILING)].dropna(subset=[figure])
            if rivals.empty:
                continue
            best = rivals.loc[rivals[figure].idxmax()]
            said = []
            for told, own in part[mine[part.index]].groupby("told", sort=False):
                gain = best[figure] - own[figure].max()
                side = "ahead of" if gain > 0 else "behind"
                said.append(f"{abs(gain):.2f} {side} ours told the {told}")
            lines.append(
                f"- {row}, {figure}: {best['method']} {best[figure]:.2f}; {', '.join(said)}"
            )
    return _under("The best network against the best of ours, told the preset or the cell:", lines)


def capped(table: pd.DataFrame) -> list[str]:
    """How many times the CSO-mAP of the best network on the grid ours reach."""
    lines = []
    for row, part in table.groupby("data", sort=False):
        own = part.loc[part["method"].isin(OURS) & (part["told"] == "preset"), "CSO-mAP"].max()
        rivals = part[part["method"].str.endswith(", c = 3")]
        if rivals.empty or np.isnan(own):
            continue
        best = rivals.loc[rivals["CSO-mAP"].idxmax()]
        name = best["method"].removesuffix(", c = 3")
        times = own / best["CSO-mAP"]
        lines.append(
            f"- {row}: {name} {best['CSO-mAP']:.2f}, ours {own:.2f}, {times:.2f} times that"
        )
    return _under("The best network on the grid against the best of ours, told the preset:", lines)


def _under(title: str, lines: list[str]) -> list[str]:
    """Lines under what they are, nothing where there are none."""
    return [title, "", *lines, ""] if lines else []


def chosen(name: str, parts: list[str] | None) -> bool:
    """Whether a method's name has one of these parts, where any are given."""
    return not parts or any(part in name for part in parts)


def main() -> None:
    """Evaluate what is trained, and ours, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--methods", nargs="*", help="parts of their names; all by default")
    parser.add_argument("--runs", type=Path, default=Path("deep-runs"))
    parser.add_argument("--out", type=Path, default=HERE / "leaderboard.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for row in options.rows:
        setting = data.settings()[row]
        made = simulate(setting, options.n, options.seed)
        if chosen(CEILING, options.methods):
            write(options, pd.DataFrame([ceiling(row, made)]))
        for method in [*networks(setting, options.runs), *ours(setting)]:
            if not chosen(method.name, options.methods):
                continue
            new = pd.DataFrame([line(row, method, made)])
            print(to_markdown(new).splitlines()[-1], flush=True)
            write(options, new)


if __name__ == "__main__":
    main()
