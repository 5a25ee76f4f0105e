"""Whether the samplers mix, agree and are calibrated.

    python -m benchmarks.accuracy.sampler --n 500 --seed 2026

Two kinds of data, 1 to 5 targets in a box of 1.2 px, the count given: *clear*, 8-bit images clipped
at 255 with targets as `presets.csist_100k().prior` has them; *blurred*, noise of 5 DN and fluxes of
100-300 DN, where it is hardly known which target is which.

*Samplers* of `PosteriorUnmixer`: "importance" (draws around the optima of the fit, and on from
there; its default), "hops" (chains from these optima) and "smc" (sequential Monte Carlo from the
prior). The last two have no more in common than the paths they take, the first has nothing in
common with "smc". Four runs of every image with other random numbers. R-hat is ``sqrt(1 + B / W)``
of a position, B the variance between the runs' means and W that within runs: 95 % of the images are
below the second number. "Apart" is the distance of a sampler's mean of a position from that of
"smc", all runs together, in its standard deviations.

*Calibration* (Talts et al. 2018, arXiv 1804.06788): the rank of the true value among 19 scenes, in
five bins that should be equally full, and the p-value of chi^2. The statistics do not depend on the
order of targets.

*Evidence*, of 3 to 5 targets without a flux prior in images rounded to 8 bits, a tenth as many and
the count given: what draws and what volumes give less the log mean of four long runs of sequential
Monte Carlo (150 chains), whose own standard deviation stands beside; mean and standard deviation
over the images. `csunmix.continuous.fit.Fit.log_evidence` takes draws where 200 of them count, else
volumes if they say more.

*Scores*: how many targets of the clear images lie within 0.1 px of the answer, beside the score,
the count being found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import logsumexp

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.report import to_markdown, write_report
from csunmix._kernels.smc import sample
from csunmix.continuous.fit import COUNTED, fit
from csunmix.continuous.sampling import Sample, cool, hop, relabel, weigh
from csunmix.continuous.window import Setting
from csunmix.metrics import match
from csunmix.simulate import Simulation

_RUNS, _RANKS, _BINS = 4, 20, 5
_THIN = 1000  # scenes of a run
_EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_STATISTICS = ("mean y", "mean x", "total flux", "mean squared distance")
_SAMPLERS = ("importance", "hops", "smc")
_ENOUGH = float(cu.PosteriorUnmixer.n_effective)  # scenes that count


def settings() -> dict[str, Setting]:
    """The kinds of data."""
    setup = cu.presets.csist_100k()
    clear = Setting(setup.psf, setup.sensor, setup.prior, setup.shape, 0.0)
    wide = replace(setup.prior, flux=(100.0, 300.0))
    return {"clear": clear, "blurred": replace(clear, sensor=cu.Sensor(read_noise=5.0), prior=wide)}


def simulated(setting: Setting, n: int, seed: int) -> Simulation:
    """Images whose targets are drawn from the prior."""
    return cu.simulate(
        setting.psf, setting.sensor, setting.prior, shape=setting.shape, n=n, rng=seed, margin=2
    )


def statistics(scenes: np.ndarray) -> np.ndarray:
    """Of scenes (n, K, 3): what does not depend on the order of targets, (n, 4)."""
    centre = scenes.mean(axis=1)
    away = ((scenes[..., :2] - centre[:, None, :2]) ** 2).sum(axis=(1, 2))
    return np.column_stack([centre[:, :2], scenes[..., 2].sum(axis=1), away])


def samples(setting: Setting, made: Simulation) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Truth (K, 3) of every image, and runs of the samplers (3, n_runs, n, K, 3)."""
    unmixer = cu.PosteriorUnmixer(setting.psf, setting.sensor, setting.prior)
    for frame, truth in made.truth.groupby("frame"):
        window = setting.window(made.images[frame])
        if window is None:
            continue
        runs: dict[str, list[np.ndarray]] = {name: [] for name in _SAMPLERS}
        chains = unmixer.n_chains, unmixer.n_steps
        for seed in range(_RUNS * int(frame), _RUNS * (int(frame) + 1)):
            best = fit(setting, window, len(truth), seed)
            assert best is not None  # the prior has room
            drawn = weigh(best, _ENOUGH, seed)
            if not drawn.theta.size:
                raise RuntimeError(f"hardly any draw of image {frame} counts with seed {seed}")
            runs["importance"].append(even(drawn))
            runs["hops"].append(even(hop(setting, best, *chains, seed)))
            runs["smc"].append(even(cool(setting, window, len(truth), seed)[0]))
        shape = (len(_SAMPLERS), _RUNS, _THIN, len(truth), 3)
        true = truth[["y", "x", "flux"]].to_numpy() - [*window.origin, 0.0]
        yield true, np.reshape([runs[name] for name in _SAMPLERS], shape)


def even(found: Sample) -> np.ndarray:
    """Scenes (n, d) that are worth as much as each other, chain after chain."""
    d = found.theta.shape[2]
    total = np.cumsum(found.weight)
    goal = (np.arange(_THIN) + 0.5) / _THIN * total[-1]
    return found.theta.reshape(-1, d)[np.searchsorted(total, goal)]


def compare(setting: Setting, made: Simulation) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of the repeat runs and of the ranks."""
    rows, ranks = [], []
    for true, runs in samples(setting, made):
        place = relabel(runs.reshape(-1, *true.shape)).reshape(runs.shape)[..., :2]
        within, means = place.var(axis=2).mean(axis=1), place.mean(axis=2)
        rhat = np.sqrt(1.0 + means.var(axis=1, ddof=1) / within)
        middle, spread = means.mean(axis=1), np.sqrt(within.mean(axis=0))
        apart = np.median(np.abs(middle[:-1] - middle[-1]) / spread, axis=(1, 2))
        rows.append((len(true), *rhat.max(axis=(1, 2)), *apart))
        every = _THIN // (_RANKS - 1)
        for name, run in zip(_SAMPLERS, runs[:, 0], strict=True):
            rank = (statistics(run[every // 2 :: every]) < statistics(true[None])).sum(axis=0)
            # One target has no distance.
            ranks.append((name, *(rank if len(true) > 1 else [*rank[:3], -1])))
    names = [*_SAMPLERS, *(f"{name} apart" for name in _SAMPLERS[:-1])]
    table = pd.DataFrame(rows, columns=["targets", *names])
    lines = []
    for count, group in table.groupby("targets"):
        line: dict[str, object] = {"targets": count, "images": len(group)}
        for name in _SAMPLERS:
            low, high = group[name].quantile([0.5, 0.95])
            line[f"R-hat {name}, median, 95 %"] = f"{low:.3f}, {high:.3f}"
        for name in _SAMPLERS[:-1]:
            line[f"{name} apart, median"] = group[f"{name} apart"].median()
        lines.append(line)
    mixing = pd.DataFrame(lines)
    return mixing, _histograms(pd.DataFrame(ranks, columns=["sampler", *_STATISTICS]))


def _histograms(ranks: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for sampler, group in ranks.groupby("sampler"):
        for name in _STATISTICS:
            rank = group[name].to_numpy()
            counts = np.bincount(rank[rank >= 0] * _BINS // _RANKS, minlength=_BINS)
            rows.append((sampler, name, *counts, float(stats.chisquare(counts).pvalue)))
    return pd.DataFrame(rows, columns=["sampler", "statistic", *map(str, range(1, _BINS + 1)), "p"])


def evidence(n: int, seed: int) -> pd.DataFrame:
    """Log evidence by draws and by volumes against sequential Monte Carlo."""
    setup = cu.presets.csist_100k()
    prior = replace(setup.prior, flux=None, cell=0.0)
    setting = Setting(setup.psf, cu.Sensor(rounding=True), prior, setup.shape, 0.0)
    scene = replace(setup.scene, count=(3, 5))
    made = cu.simulate(setup.psf, setting.sensor, scene, shape=setup.shape, n=n, rng=seed)
    rows = []
    for frame, truth in made.truth.groupby("frame"):
        window = setting.window(made.images[frame])
        found = None if window is None else fit(setting, window, len(truth), int(frame))
        if found is None:
            continue
        logs = np.array([sample(found.model, 150, 48, 0.5, 500, run)[1] for run in range(_RUNS)])
        expected = float(logsumexp(logs)) - np.log(_RUNS)
        kind = "yes" if found.draws.effective >= COUNTED else "no"
        away = found.drawn_evidence - expected, found.likely_evidence - expected
        rows.append((len(truth), kind, *away, logs.std(ddof=1)))
    keys = ["targets", "200 draws count"]
    table = pd.DataFrame(rows, columns=[*keys, "draws", "volumes", "sequential"])
    lines = {
        "images": ("draws", "size"),
        "draws, mean": ("draws", "mean"),
        "draws, sd": ("draws", "std"),
        "volumes, mean": ("volumes", "mean"),
        "volumes, sd": ("volumes", "std"),
        "sd of sequential": ("sequential", "median"),
    }
    return table.groupby(keys, as_index=False).agg(**lines)


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


def main() -> None:
    """Run the benchmark and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    tables: dict[str, pd.DataFrame] = {}
    for name, setting in settings().items():
        mixing, ranks = compare(setting, simulated(setting, options.n, options.seed))
        tables |= {f"Samplers, {name}": mixing, f"Calibration, {name}": ranks}
    clear = settings()["clear"]
    made = simulated(clear, options.n, options.seed)
    tables["Evidence"] = evidence(max(1, options.n // 10), options.seed)
    tables["Scores"] = scores(clear, made)
    first, *others = tables
    more = [line for name in others for line in (f"## {name}", "", to_markdown(tables[name]), "")]
    command = f"python -m benchmarks.accuracy.sampler --n {options.n} --seed {options.seed}"
    write_report(options.out, "The samplers", command, __doc__, tables[first], more)


if __name__ == "__main__":
    main()
