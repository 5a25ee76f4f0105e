"""Whether the sampler mixes and is calibrated, and the fit finds the best optimum.

    python -m benchmarks.accuracy.sampler --n 500 --seed 2026

8-bit images clipped at 255, targets as `presets.csist_100k().prior` has them: 1 to 5 in a box of
1.2 px, the count given.

*Repeat runs*: four runs of every image with other random numbers. R-hat is ``sqrt(1 + B / W)`` of a
position, B the variance between the runs' means and W that within runs; "spread of log evidence" is
its standard deviation between runs.

*Calibration* (Talts et al. 2018, arXiv 1804.06788): the rank of the true value among 19 particles,
in five bins that should be equally full, and the p-value of chi^2. The statistics do not depend on
the order of targets.

*Scores*: how many targets lie within 0.1 px of the answer, beside the score, the count being found.

*Fits*: images in which the usual search ends as low (0.01 in log likelihood) as one with 20 times
the starts.
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
from csunmix._kernels.fit import search
from csunmix._kernels.smc import sample
from csunmix.continuous.fit import fit
from csunmix.continuous.sampling import relabel
from csunmix.continuous.window import Setting
from csunmix.metrics import match
from csunmix.simulate import Simulation

_RUNS, _RANKS, _BINS = 4, 20, 5
_EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_STATISTICS = ("mean y", "mean x", "total flux", "mean squared distance")


def statistics(scenes: np.ndarray) -> np.ndarray:
    """Of scenes (n, K, 3): what does not depend on the order of targets, (n, 4)."""
    centre = scenes.mean(axis=1)
    away = ((scenes[..., :2] - centre[:, None, :2]) ** 2).sum(axis=(1, 2))
    return np.column_stack([centre[:, :2], scenes[..., 2].sum(axis=1), away])


def repeat(setting: Setting, made: Simulation) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of the repeat runs and of the ranks."""
    rows, ranks = [], []
    unmixer = cu.PosteriorUnmixer(setting.psf, setting.sensor, setting.prior)
    for frame, truth in made.truth.groupby("frame"):
        window = setting.window(made.images[frame])
        if window is None:
            continue
        count = len(truth)
        model = window.model(setting.optics, count)
        n_steps = unmixer.n_steps * (4 + 2 * model.precision.size)
        runs, evidence = [], []
        for run in range(_RUNS):
            seed = _RUNS * int(frame) + run
            theta, log_evidence, _ = sample(model, unmixer.n_chains, n_steps, 0.5, 500, seed)
            runs.append(theta.reshape(-1, count, 3))
            evidence.append(log_evidence)
        scenes = relabel(np.concatenate([run[::4] for run in runs]))
        each = scenes.reshape(_RUNS, -1, count, 3)[..., :2]
        rhat = np.sqrt(1.0 + each.mean(axis=1).var(axis=0, ddof=1) / each.var(axis=1).mean(axis=0))
        rows.append((count, np.median(rhat), rhat.max(), np.std(evidence, ddof=1)))
        true = truth[["y", "x", "flux"]].to_numpy() - [*window.origin, 0.0]
        some = runs[0][n_steps - 1 :: 2 * n_steps][: _RANKS - 1]  # the end of every second chain
        rank = (statistics(some) < statistics(true[None])).sum(axis=0)
        ranks.append(rank if count > 1 else [*rank[:3], -1])  # one target has no distance
    table = pd.DataFrame(rows, columns=["targets", "R-hat", "largest R-hat", "evidence"])
    mixing = pd.DataFrame(
        {
            "targets": count,
            "images": len(group),
            "R-hat, median": group["R-hat"].median(),
            "R-hat, 95 % of images below": group["largest R-hat"].quantile(0.95),
            "spread of log evidence": np.sqrt((group["evidence"] ** 2).mean()),
        }
        for count, group in table.groupby("targets")
    )
    return mixing, _histograms(np.array(ranks), min(_RANKS, unmixer.n_chains // 2 + 1))


def _histograms(ranks: np.ndarray, n_ranks: int) -> pd.DataFrame:
    rows = []
    for name, rank in zip(_STATISTICS, ranks.T, strict=True):
        counts = np.bincount(rank[rank >= 0] * _BINS // n_ranks, minlength=_BINS)
        rows.append((name, *counts, float(stats.chisquare(counts).pvalue)))
    return pd.DataFrame(rows, columns=["statistic", *map(str, range(1, _BINS + 1)), "p"])


def scores(setting: Setting, made: Simulation) -> pd.DataFrame:
    """Scores of the posterior mean against what they promise."""
    found = cu.PosteriorUnmixer(setting.psf, setting.sensor, setting.prior)(made.images)
    near = np.zeros(len(found), bool)
    near[match(found, made.truth, max_distance=0.1).detection] = True
    place = pd.cut(found["score"], _EDGES, include_lowest=True)
    rows = []
    for group in place.cat.categories:
        chosen = (place == group).to_numpy()
        if chosen.any():
            said, kept = found["score"][chosen].mean(), near[chosen].mean()
            rows.append((str(group), int(chosen.sum()), 100.0 * said, 100.0 * kept))
    return pd.DataFrame(rows, columns=["score", "targets", "mean score %", "kept %"])


def fits(setting: Setting, made: Simulation) -> pd.DataFrame:
    """How often the usual search is as good as a very long one."""
    rows = []
    for frame, truth in made.truth.groupby("frame"):
        window = setting.window(made.images[frame])
        found = None if window is None else fit(setting, window, len(truth), int(frame))
        if found is not None:
            starts = 20 * (4 + 6 * found.count)
            best = search(found.model, starts, 8, 15, 100, 10_000 + int(frame))[1][0]
            rows.append((found.count, found.objective <= best + 0.01))
    table = pd.DataFrame(rows, columns=["targets", "as good"])
    grouped = table.groupby("targets")["as good"]
    return pd.DataFrame(
        {"targets": n, "images": len(each), "as good %": 100.0 * each.mean()} for n, each in grouped
    )


def main() -> None:
    """Run the benchmark and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    setup = cu.presets.csist_100k()
    setting = Setting(setup.psf, setup.sensor, setup.prior, setup.shape, 0.0)
    made = cu.simulate(
        setup.psf, setup.sensor, setup.prior, shape=setup.shape, n=options.n, rng=options.seed
    )
    mixing, ranks = repeat(setting, made)
    more = ["## Calibration", "", to_markdown(ranks), ""]
    more += ["## Scores", "", to_markdown(scores(setting, made)), ""]
    more += ["## Fits", "", to_markdown(fits(setting, made)), ""]
    command = f"python -m benchmarks.accuracy.sampler --n {options.n} --seed {options.seed}"
    write_report(options.out, "The sampler and the fit", command, __doc__, mixing, more)


if __name__ == "__main__":
    main()
