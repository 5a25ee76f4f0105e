"""How often the joint fit finds the best optimum.

    python -m benchmarks.accuracy.multistart --n 1000 --seed 2026

The usual search of `csunmix.continuous.fit.fit` beside one of 1,000 starts, and beside a fit that
starts at the truth: as good is an objective (minus the log likelihood) no more than 0.01 above the
better of these. The number of targets is told. *CSIST*: 8-bit images clipped at 255, 1 to 5 targets
as the preset's prior has them. *Many*: 6 to 10 targets of 150-300 DN at least 0.9 px apart in a box
of 5 px, noise of 1 DN, 13 x 13 pixels. *Wide*: 2 to 8 targets of 200-600 DN at least 1 px apart
anywhere in 31 x 31 pixels, noise of 2 DN, of which the fit is told nothing. A tenth as many images
of either. "At least" is what the share is with 95 % confidence (Clopper & Pearson 1934, Biometrika
26, 404).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.report import to_markdown, write_report
from csunmix._kernels.fit import EXACT, descend
from csunmix._kernels.scene import new_room
from csunmix._kernels.search import THOROUGH, search
from csunmix.continuous.fit import Fit, fit
from csunmix.continuous.window import Setting

_STARTS = 1000
_LONG = THOROUGH._replace(rough_iter=THOROUGH.max_iter)
_AS_GOOD = 0.01  # in log likelihood


def settings() -> dict[str, tuple[Setting, cu.Prior]]:
    """The kinds of data, and what scenes are drawn from."""
    setup = cu.presets.csist_100k()
    many = cu.Prior(count=(6, 10), flux=(150.0, 300.0), min_separation=0.9, extent=5.0)
    wide = cu.Prior(count=(2, 8), flux=(200.0, 600.0), min_separation=1.0)
    low, high = cu.Sensor(read_noise=1.0), cu.Sensor(read_noise=2.0)
    csist = Setting(setup.psf, setup.sensor, setup.prior, setup.shape, 0.0)
    return {
        "CSIST": (csist, setup.prior),
        "many": (Setting(setup.psf, low, many, (13, 13), 0.0), many),
        "wide": (Setting(setup.psf, high, cu.Prior(count=(1, 8)), (31, 31), 0.0), wide),
    }


def as_good(setting: Setting, scene: cu.Prior, n: int, seed: int) -> pd.DataFrame:
    """Whether the usual search is as good as the long one, image by image."""
    made = cu.simulate(
        setting.psf, setting.sensor, scene, shape=setting.shape, n=n, rng=seed, margin=2
    )
    rows = []
    for frame, truth in made.truth.groupby("frame"):
        window = setting.window(made.images[frame])
        found = None if window is None else fit(setting, window, len(truth), int(frame))
        if found is not None:
            best = search(found.model, _STARTS, _STARTS, np.inf, _LONG, 10_000 + int(frame))[1]
            least = min(best[0], from_truth(found, truth))
            rows.append((found.count, found.objective <= least + _AS_GOOD))
    return pd.DataFrame(rows, columns=["targets", "as good"])


def from_truth(found: Fit, truth: pd.DataFrame) -> float:
    """Objective of the fit that starts at the truth."""
    theta = truth[["y", "x", "flux"]].to_numpy() - [*found.window.origin, 0.0]
    theta = theta.ravel()
    room = new_room(found.model.optics, found.count, theta.size, *found.model.pixels.low.shape)
    return float(descend(found.model, theta, 2 * THOROUGH.max_iter, EXACT, room))


def summary(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Shares by the number of targets, and of all."""
    parts = {str(n): part["as good"] for n, part in table.groupby("targets")}
    rows = []
    for targets, good in {**parts, "all": table["as good"]}.items():
        least = stats.binomtest(int(good.sum()), len(good), alternative="greater").proportion_ci()
        rows.append((name, targets, len(good), 100.0 * good.mean(), 100.0 * least.low))
    return pd.DataFrame(rows, columns=["data", "targets", "images", "as good %", "at least %"])


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    tables = []
    for name, (setting, scene) in settings().items():
        n = options.n if name == "CSIST" else options.n // 10
        tables.append(summary(name, as_good(setting, scene, n, options.seed)))
        print(to_markdown(tables[-1]), flush=True)
    command = f"python -m benchmarks.accuracy.multistart --n {options.n} --seed {options.seed}"
    write_report(options.out, "Multi-start", command, __doc__, pd.concat(tables))


if __name__ == "__main__":
    main()
