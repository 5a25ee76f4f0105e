"""How methods bear data that they were not trained for, or not told of.

    python -m benchmarks.deep.robustness --n 80 --seed 2026 --runs deep-runs

The main protocol (8 bit, clipped at 255), and one thing about it changed at a time: the width of
the PSF; the noise, rounding included, by more read noise; the flux range; the least separation,
down to 0.3 Rayleigh units (0.285 px); six targets in every image, at least 0.45 px apart, as hardly
any six fit into a pixel at 0.494 px. Networks are those of `evaluate.py`, trained for the protocol
unchanged. A network that is told of a change is one that was trained on for it, with all weights:
shown for the off-grid network and a PSF 1.2 times as wide (`train.py off-grid --setting psf-1.2
--steps 1000 --batch 1024 --rate 0.001 --seed 17 --first off-grid-clipped`).
`ContinuousUnmixer` knows that targets share a pixel cell, which is what the networks learned, and
is either told the setting unchanged ("not told") or as it is ("told"). No method has had its
settings chosen on these data. `PosteriorUnmixer`, which costs several times as much, is left out.
Methods see the same images at a point; from one point of a curve to the next, differences of 3 or
so are chance with so few images.

Told, ours is ahead of every method that is not; the off-grid network that was trained on for four
minutes is level with it. Not told, ours bears a wrong PSF and four times the noise better than the
off-grid networks do, and wrong fluxes (all but the faintest) and smaller separations worse, as it
holds what it is told of fluxes and separations for certain.

`--methods` makes some lines only, which take their places in the table that is there.

CSO-mAP in percent, ranked by flux; "count %" is the share of images whose count is right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.deep.data import Setting, settings
from benchmarks.deep.evaluate import ORDER, chosen, merge, simulate
from benchmarks.deep.methods import FIRST_STAGE, LABELS, Method, networks
from benchmarks.report import write_report
from csunmix.metrics import count_accuracy, cso_map, position_rmse

HERE = Path(__file__).parent
BASE = settings()["clipped"]
OURS = "ContinuousUnmixer"
NOT_TOLD, TOLD = "not told", "told"
_KEYS = ["change", "value"]


@dataclass(frozen=True)
class Case:
    """One point of a curve."""

    change: str
    value: float
    setting: Setting


def cases() -> Iterator[Case]:
    """All changes."""
    for factor in (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2):
        psf = cu.GaussianPSF(sigma=factor * BASE.psf.sigma_x)
        yield Case("PSF sigma, times", factor, replace(BASE, name=f"psf-{factor}", psf=psf))
    for factor in (1.0, 1.5, 2.0, 4.0):
        more = BASE.sensor.noise * (factor**2 - 1.0) ** 0.5
        yield Case(
            "noise, times", factor, replace(BASE, sensor=replace(BASE.sensor, read_noise=more))
        )
    low, high = BASE.scene.flux
    for factor in (0.8, 0.9, 1.0, 1.1, 1.2):
        flux = factor * low, factor * high
        yield Case("flux range, times", factor, changed(flux=flux))
    for apart in (BASE.scene.min_separation, 0.45, 0.4, 0.35, 0.285):
        yield Case("least separation, px", apart, changed(min_separation=apart))
    yield Case("targets in every image", 6.0, changed(count=(6, 6), min_separation=0.45))


def changed(**parts: object) -> Setting:
    """The protocol with other scenes."""
    return replace(BASE, scene=replace(BASE.scene, **parts))


def ours(case: Case) -> Iterator[Method]:
    """Our estimator, not told and told."""
    prior = case.setting.scene
    told = replace(case.setting, scene=replace(prior, count=(1, prior.count[1])))
    for name, setting in ((NOT_TOLD, BASE), (TOLD, told)):
        run = cu.ContinuousUnmixer(setting.psf, setting.sensor, setting.scene)
        yield Method(OURS, name, run)


def measure(case: Case, methods: list[Method], n: int, seed: int) -> Iterator[dict[str, object]]:
    """Figures of methods at one point."""
    made = simulate(case.setting, n, seed)
    for method in methods:
        found = method.run(made.images)
        yield {
            "change": case.change,
            "value": case.value,
            "method": method.name,
            "told": method.told,
            "CSO-mAP": 100.0 * cso_map(found, made.truth).mean,
            "count %": 100.0 * count_accuracy(found, made.truth),
            "RMSE px": position_rmse(found, made.truth),
        }


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the curves, a panel for each change; side by side where it has one value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    styles = {method: f"C{k}" for k, method in enumerate(table["method"].unique())}
    changes = list(table["change"].unique())
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained", sharey=True)
    for axis, change in zip(axes.flat, changes, strict=False):
        part = table[table["change"] == change]
        single = part["value"].nunique() == 1
        for k, ((method, told), curve) in enumerate(part.groupby(["method", "told"], sort=False)):
            mine, under = method == OURS, method == LABELS["posterior"]  # as good as the network
            axis.plot(
                [k] if single else curve["value"],
                curve["CSO-mAP"],
                marker="o" if mine or told == NOT_TOLD else "*",
                markersize=14 if not mine and told == TOLD else 10 if under else None,
                markerfacecolor="w" if mine and told == NOT_TOLD else None,
                color="k" if mine else styles[method],
                linestyle="--" if mine and told == NOT_TOLD else "-",
                label=f"{method}, {told}" if mine or told == TOLD else method,
                linewidth=5.0 if under else 2.0 if mine else 1.2,
                alpha=0.4 if under else 1.0,
                zorder=1.0 if under else 2.0,
            )
        axis.set(xlabel=change, ylim=(0.0, 100.0))
        axis.grid(alpha=0.3)
        if single:
            axis.set(xticks=[], xlabel=f"{change}: {part['value'].iloc[0]:g}")
        if change == "least separation, px":
            axis.invert_xaxis()
    for axis in axes[:, 0]:
        axis.set_ylabel("CSO-mAP, %")
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(options: argparse.Namespace, new: pd.DataFrame) -> None:
    """Put lines into the table, and draw it anew."""
    path = options.out.with_suffix(".csv")
    table = merge(path, new, [*_KEYS, "method", "told"])
    methods, points = list(dict.fromkeys(ORDER)), [(each.change, each.value) for each in cases()]
    place = [
        (methods.index(name), told, points.index((change, value)))
        for name, told, change, value in table[["method", "told", *_KEYS]].itertuples(index=False)
    ]
    table = table.iloc[sorted(range(len(table)), key=place.__getitem__)]
    table.to_csv(path, index=False)
    draw(table, options.out.with_suffix(".png"))
    said = (table["method"] == OURS) | (table["told"] == TOLD)
    told = np.where(said, ", " + table["told"], "")
    wide = table.assign(method=table["method"] + told)
    parts = []
    for figure in ("CSO-mAP", "count %"):
        part = wide.pivot_table(figure, _KEYS, "method", sort=False).reset_index()
        part.insert(0, "figure", figure)
        parts.append(part)
    command = f"python -m benchmarks.deep.robustness --n {options.n} --seed {options.seed}"
    more = ["", "![CSO-mAP against each change](robustness.png)", ""]
    write_report(options.out, "Data not trained for", command, __doc__, pd.concat(parts), more)


def main() -> None:
    """Run every method at every point, and write table and curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=80)
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--methods", nargs="*", help="parts of their names; all by default")
    parser.add_argument("--runs", type=Path, default=Path("deep-runs"))
    parser.add_argument("--out", type=Path, default=HERE / "robustness.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = networks(BASE, options.runs)
    trained = [replace(each, told=NOT_TOLD) for each in every if each.name != FIRST_STAGE]
    for case in cases():
        again = [] if case.setting.name == BASE.name else networks(case.setting, options.runs)
        again = [replace(each, told=TOLD) for each in again if each.name != FIRST_STAGE]
        methods = [*trained, *again, *ours(case)]
        methods = [each for each in methods if chosen(each.name, options.methods)]
        write(options, pd.DataFrame(measure(case, methods, options.n, options.seed)))
        print(f"{case.change} {case.value:g}: done", flush=True)


if __name__ == "__main__":
    main()
