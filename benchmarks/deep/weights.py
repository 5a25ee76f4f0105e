"""Trained weights as they are kept: one .npz a network, in half precision.

    python -m benchmarks.deep.weights --runs deep-runs

takes the checkpoints of the runs that are named and writes `weights/` and, beside them, what made
them and the other runs, `weights/README.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.deep import data
from benchmarks.deep.networks import NETWORKS
from benchmarks.report import to_markdown

FOLDER = Path(__file__).parent / "weights"
KEPT = tuple(
    f"{name}-clipped" for name in ("off-grid", "perceptron", "focus", "ista-net", "dista-net")
)


class Trained(NamedTuple):
    """A network and what its training took."""

    network: nn.Module
    parameters: int
    seconds: float  # CPU time, that of the runs it started from included


def load(name: str, setting: str, runs: Path | None = None) -> Trained | None:
    """Load a network from its run, or else from the weights that are kept; None if in neither.

    Parameters
    ----------
    name, setting : str
        Of `NETWORKS` and `data.settings()`.
    runs : Path, optional
        Folder of runs.
    """
    checkpoint = runs / f"{name}-{setting}" / "checkpoint.pt" if runs else None
    kept = FOLDER / f"{name}-{setting}.npz"
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        weights, seconds = state["average"], total_seconds(state, checkpoint.parents[1])
    elif kept.exists():
        with np.load(kept, allow_pickle=False) as file:
            seconds = float(file["CPU s"])
            weights = {
                key: torch.from_numpy(file[key].astype(np.float32))
                for key in file.files
                if key != "CPU s"
            }
    else:
        return None
    network = NETWORKS[name](data.settings()[setting])
    network.load_state_dict(weights)
    size = sum(each.numel() for each in network.parameters())
    return Trained(network.eval(), size, seconds)


def total_seconds(state: dict[str, Any], runs: Path) -> float:
    """CPU time of a run and of those it started from."""
    first = state["run"]["first"]
    if not first:
        return float(state["seconds"])
    before = torch.load(runs / first / "checkpoint.pt", weights_only=True)
    return float(state["seconds"]) + total_seconds(before, runs)


def commands(run: dict[str, Any], runs: Path) -> str:
    """The commands that made a run, those of the runs it started from first."""
    names = ("setting", "steps", "batch", "rate", "seed", "first", "label")
    told = " ".join(f"--{name} {run[name]}" for name in names if run.get(name, "") != "")
    last = f"`python -m benchmarks.deep.train {run['name']} {told}`"
    if not run["first"]:
        return last
    before = torch.load(runs / run["first"] / "checkpoint.pt", weights_only=True)
    return f"{commands(before['run'], runs)}, then {last}"


def made_by(state: dict[str, Any], runs: Path) -> dict[str, object]:
    """What made a network, and how good it was on the validation images."""
    return {
        "made by": commands(state["run"], runs),
        "CPU minutes": total_seconds(state, runs) / 60.0,
        "CSO-mAP, seed 100": state["log"][-1]["CSO-mAP"],
    }


def main() -> None:
    """Write the weights that are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=KEPT, help="NAME-SETTING, without labels")
    parser.add_argument("--runs", type=Path, default=Path("deep-runs"))
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    kept = []
    for name in options.names:
        state = torch.load(options.runs / name / "checkpoint.pt", weights_only=True)
        arrays = {key: value.half().numpy() for key, value in state["average"].items()}
        path, seconds = FOLDER / f"{name}.npz", total_seconds(state, options.runs)
        np.savez_compressed(path, **arrays, **{"CPU s": np.array(seconds)})
        size = path.stat().st_size / 1e6
        kept.append({"file": path.name, **made_by(state, options.runs), "MB": size})
    others = []
    for path in sorted(options.runs.glob("*/checkpoint.pt")):
        state = torch.load(path, weights_only=True)
        if path.parent.name not in options.names and not state["run"].get("label"):
            others.append({"run": path.parent.name, **made_by(state, options.runs)})
    text = [
        "# Trained weights",
        "",
        "Running averages of the weights at the end of training, in half precision;",
        "`benchmarks.deep.weights.load` reads them. CPU time is that of training, on one thread.",
        "",
        to_markdown(pd.DataFrame(kept)),
        "",
        "Networks of the leaderboard and of robustness.md whose weights are not kept:",
        "",
        to_markdown(pd.DataFrame(others)),
        "",
    ]
    (FOLDER / "README.md").write_text("\n".join(text))
    print(*text, sep="\n")


if __name__ == "__main__":
    main()
