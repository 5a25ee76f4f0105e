"""How often the joint fit finds the best optimum.

    python -m benchmarks.accuracy.multistart --n 1000 --seed 2026

The usual search of `csunmix.continuous.fit.fit` beside one of 1,000 random starts, none of which is
left out or cut short: as good is an objective (minus the log likelihood) no more than 0.01 higher.
The number of targets is told. *CSIST*: 8-bit images clipped at 255, 1 to 5 targets as the preset's
prior has them. *Many*: 6 to 10 targets of 150-300 DN at least 0.9 px apart in a box of 5 px, noise
of 1 DN, 13 x 13 pixels, a tenth as many images. "At least" is what the share is with 95 %
confidence (Clopper & Pearson 1934, Biometrika 26, 404).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from scipy import stats

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.report import to_markdown, write_report
from csunmix._kernels.fit import search
from csunmix.continuous.fit import ITERATIONS, fit
from csunmix.continuous.window import Setting

_STARTS = 1000
_AS_GOOD = 0.01  # in log likelihood


def settings() -> dict[str, Setting]:
    """The kinds of data."""
    setup = cu.presets.csist_100k()
    prior = cu.Prior(count=(6, 10), flux=(150.0, 300.0), min_separation=0.9, extent=5.0)
    return {
        "CSIST": Setting(setup.psf, setup.sensor, setup.prior, setup.shape, 0.0),
        "many": Setting(setup.psf, cu.Sensor(read_noise=1.0), prior, (13, 13), 0.0),
    }


def as_good(setting: Setting, n: int, seed: int) -> pd.DataFrame:
    """Whether the usual search is as good as the long one, image by image."""
    made = cu.simulate(
        setting.psf, setting.sensor, setting.prior, shape=setting.shape, n=n, rng=seed, margin=2
    )
    rows = []
    for frame, truth in made.truth.groupby("frame"):
        window = setting.window(made.images[frame])
        found = None if window is None else fit(setting, window, len(truth), int(frame))
        if found is not None:
            longest = ITERATIONS[1]
            best = search(found.model, _STARTS, _STARTS, longest, longest, 10_000 + int(frame))[1]
            rows.append((found.count, found.objective <= best[0] + _AS_GOOD))
    return pd.DataFrame(rows, columns=["targets", "as good"])


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
    for (name, setting), n in zip(settings().items(), (options.n, options.n // 10), strict=True):
        tables.append(summary(name, as_good(setting, n, options.seed)))
        print(to_markdown(tables[-1]), flush=True)
    command = f"python -m benchmarks.accuracy.multistart --n {options.n} --seed {options.seed}"
    write_report(options.out, "Multi-start", command, __doc__, pd.concat(tables))


if __name__ == "__main__":
    main()
