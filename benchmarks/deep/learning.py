"""Learning curves: CSO-mAP on validation images against the CPU time of training.

    python -m benchmarks.deep.learning --runs deep-runs

Validation images are those of seed 100, on which nothing is reported but how training went. A run
that started from the weights of another begins at its time. A labelled run is shown where a run of
the same network for the same data went on from it, as part of that one's curve.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.deep.methods import LABELS
from benchmarks.deep.weights import total_seconds

HERE = Path(__file__).parent


def read(runs: Path) -> pd.DataFrame:
    """The logs of all runs that count, and of those that they went on from."""
    paths = sorted(runs.glob("*/checkpoint.pt"))
    states = {path.parent.name: torch.load(path, weights_only=True) for path in paths}
    tables = []
    for name in sorted(shown({name: state["run"] for name, state in states.items()})):
        state = states[name]
        before = total_seconds(state, runs) - state["seconds"]
        table = pd.DataFrame(state["log"])
        table["CPU s"] += before
        table.insert(0, "setting", state["run"]["setting"])
        table.insert(0, "network", LABELS[state["run"]["name"]])
        tables.append(table)
    return pd.concat(tables).sort_values(["network", "setting", "CPU s"]).round(3)


def shown(runs: dict[str, dict[str, Any]]) -> set[str]:
    """Runs without a label, and those of the same network and data that they went on from."""
    out = set()
    for name, run in runs.items():
        if run.get("label"):
            continue
        kind = run["name"], run["setting"]
        while name and (runs[name]["name"], runs[name]["setting"]) == kind:
            out.add(name)
            name = runs[name]["first"]
    return out


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the curves: networks for the main protocol, and the off-grid network for all data."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    main = table[table["setting"] == "clipped"]
    alone = table[table["network"] == LABELS["off-grid"]]
    panels = (main, "network", "lower right"), (alone, "setting", "lower left")
    for axis, (part, by, place) in zip(axes, panels, strict=True):
        for name, curve in part.groupby(by, sort=False):
            axis.plot(curve["CPU s"] / 60.0, curve["CSO-mAP"], marker=".", label=name)
        axis.set(xlabel="CPU minutes of training", ylim=(0.0, 100.0))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc=place)
    axes[0].set(xscale="log", ylabel="CSO-mAP by flux, %", title="8 bit, clipped at 255")
    axes[1].set(title=LABELS["off-grid"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write curves as a table and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("deep-runs"))
    parser.add_argument("--out", type=Path, default=HERE / "learning.png")
    options = parser.parse_args()
    table = read(options.runs)
    table.to_csv(options.out.with_suffix(".csv"), index=False)
    draw(table, options.out)


if __name__ == "__main__":
    main()
