"""How cost grows: with the size of an image, the factor of the grid and the targets.

    python -m benchmarks.speed.growth --n 1000

Medians of repeats (FISTA once from 1024 px on); sigma = 0.5 px, one thread. Size: one frame with a
target for every 200 pixels and noise of 1 DN, c = 3; ``A^T A x`` of a map that is nowhere 0, and 50
iterations of FISTA at lam = 5 DN, gaps included. Peak memory is that of a process of its own with
everything in it, Python, data and answer. Factor: simulated CSIST-100K images, lam = 1 DN;
ActiveSet to its optimum, FISTA to a relative gap of 1e-3, OMP with 5 atoms. Targets:
`ContinuousUnmixer` told how many there are, K in a box of 1.2 sqrt(K) px with noise of 1 DN, with
draws and without (``n_effective=0``).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.report import to_markdown, write_report
from benchmarks.speed.options import command, parser
from csunmix.solvers import Solver

SIZES = (11, 32, 64, 128, 256, 512, 1024, 2048)
FACTORS = (3, 5, 7, 9, 11, 13, 15)
COUNTS = tuple(range(1, 13))
N_ITER = 50
MEMORY = 4.0  # GiB
SETUP = cu.presets.csist_100k()
Runs = Mapping[Hashable, Callable[[], object]]


def seconds(runs: Runs, repeats: int) -> dict[Hashable, float]:
    """Median time of each run, interleaved, after one that is not timed."""
    times = np.empty((repeats + 1, len(runs)))
    for row in times:
        for column, run in enumerate(runs.values()):
            start = time.perf_counter()
            run()
            row[column] = time.perf_counter() - start
    return dict(zip(runs, np.median(times[1:], axis=0), strict=True))


def frame(size: int) -> tuple[cu.Dictionary, np.ndarray]:
    """A dictionary, and a frame of scattered targets."""
    dictionary = cu.Dictionary(SETUP.psf, (size, size), 3)
    rng = np.random.default_rng(REPORT_SEED)
    x = np.zeros(dictionary.map_shape)
    n_targets = max(1, size**2 // 200)
    x.ravel()[rng.integers(0, x.size, n_targets)] = rng.uniform(220, 250, n_targets)
    return dictionary, dictionary.forward(x) + rng.normal(0, 1, (size, size))


def fista(dictionary: cu.Dictionary, image: np.ndarray, n_iter: int = N_ITER) -> object:
    """A fixed number of iterations."""
    return cu.FISTA(lam=5.0, tol=0.0, max_iter=n_iter).solve(dictionary, image)


def peak_memory(size: int) -> float:
    """Peak memory of a process that solves one frame, GiB."""
    command = [sys.executable, "-m", "benchmarks.speed.growth", "--frame", str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def by_size(repeats: int) -> pd.DataFrame:
    """Time and memory against the size of a frame."""
    rows = []
    for size in SIZES:
        dictionary, image = frame(size)
        x = np.ones(dictionary.map_shape)
        calls = max(1, 300_000 // size**2)  # enough of them to be timed

        def product(d: cu.Dictionary = dictionary, x: np.ndarray = x, n: int = calls) -> None:
            for _ in range(n):
                d.adjoint(d.forward(x))

        took = seconds({"product": product}, repeats)
        took |= seconds({"fista": partial(fista, dictionary, image)}, repeats if size < 1024 else 1)
        both = 1e3 * took["product"] / calls, 1e3 * took["fista"]
        rows.append(
            {
                "pixels a side": size,
                "A^T A x, ms": both[0],
                "ns a pixel": 1e6 * both[0] / size**2,
                f"FISTA, {N_ITER} iterations, ms": both[1],
                "ns a pixel and iteration": 1e6 * both[1] / size**2 / N_ITER,
                "peak memory, GiB": peak_memory(size),
            }
        )
    return pd.DataFrame(rows)


def largest_frame(memory: pd.DataFrame) -> str:
    """The side of the largest frame that fits, by the two largest that were measured, and tried."""
    sides, peaks = (memory[name].to_numpy()[-2:] for name in ("pixels a side", "peak memory, GiB"))
    slope = (peaks[1] - peaks[0]) / (sides[1] ** 2 - sides[0] ** 2)
    side = int(np.sqrt(sides[1] ** 2 + (0.98 * MEMORY - peaks[1]) / slope)) // 64 * 64
    return (
        f"Largest frame for FISTA in {MEMORY:g} GiB: {side} x {side} px at c = 3, "
        f"which took {peak_memory(side):.2f} GiB."
    )


def csist(n: int) -> np.ndarray:
    """Simulated images of the benchmark."""
    scenes = cu.simulate(
        SETUP.psf, SETUP.sensor, SETUP.scene, shape=SETUP.shape, n=n, rng=REPORT_SEED
    )
    return scenes.images.astype(np.float64)


def solvers() -> dict[str, tuple[Solver, int]]:
    """Solvers, and the share of the images that each is given: one in so many."""
    return {
        "ActiveSet": (cu.ActiveSet(lam=1.0), 1),
        "FISTA": (cu.FISTA(lam=1.0, tol=1e-3), 10),
        "OMP": (cu.OMP(n_nonzero=5), 1),
    }


def by_factor(n: int, repeats: int) -> pd.DataFrame:
    """Milliseconds an image against the factor of the grid."""
    images = csist(n)
    runs: dict[Hashable, Callable[[], object]] = {}
    for factor in FACTORS:
        dictionary = cu.Dictionary(SETUP.psf, SETUP.shape, factor)
        for name, (solver, share) in solvers().items():
            part = images[: max(10, n // share)]
            runs[factor, name, len(part)] = lambda d=dictionary, s=solver, y=part: s.solve(d, y)
    rows: dict[int, dict[str, float]] = {factor: {"factor": factor} for factor in FACTORS}
    for (factor, name, count), took in seconds(runs, repeats).items():  # type: ignore[misc]
        rows[factor][f"{name}, ms/image"] = 1e3 * took / count
    return pd.DataFrame(rows.values())


def by_targets(n: int, repeats: int) -> pd.DataFrame:
    """Milliseconds an image of the joint fit against the number of targets."""
    sensor, flux = cu.Sensor(read_noise=1.0), SETUP.prior.flux
    runs: dict[Hashable, Callable[[], object]] = {}
    for count in COUNTS:
        prior = cu.Prior(
            count=(count, count), flux=flux, min_separation=0.494, extent=1.2 * count**0.5
        )
        images = cu.simulate(
            SETUP.psf, sensor, prior, shape=(17, 17), n=n, rng=REPORT_SEED, margin=4
        ).images
        for name, given in {"with draws": {}, "without": {"n_effective": 0}}.items():
            unmix = cu.ContinuousUnmixer(SETUP.psf, sensor, prior, **given)
            runs[count, name] = lambda unmix=unmix, y=images: unmix(y)
    rows: dict[int, dict[str, float]] = {count: {"targets": count} for count in COUNTS}
    for (count, name), took in seconds(runs, repeats).items():  # type: ignore[misc]
        rows[count][f"{name}, ms/image"] = 1e3 * took / n
    return pd.DataFrame(rows.values())


def draw(size: pd.DataFrame, factor: pd.DataFrame, targets: pd.DataFrame, path: Path) -> None:
    """All curves, on logarithmic axes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    side = size["pixels a side"]
    for name in (column for column in size if str(column).endswith(", ms")):
        (line,) = axes[0].loglog(side, size[name], "o-", label=name.removesuffix(", ms"))
        linear = size[name].iloc[-1] * (side / side.iloc[-1]) ** 2
        axes[0].loglog(side, linear, ":", color=line.get_color(), label="as the pixels")
    axes[0].set(xlabel="pixels a side", ylabel="ms", title="one frame, c = 3")
    for name in factor.columns[1:]:
        axes[1].loglog(factor["factor"], factor[name], "o-", label=name.removesuffix(", ms/image"))
    axes[1].set(xlabel="factor c", ylabel="ms an image", title="11 x 11 px")
    axes[1].set_xticks(FACTORS, [str(c) for c in FACTORS], minor=False)
    axes[1].tick_params(axis="x", which="minor", labelbottom=False)
    for name in targets.columns[1:]:
        axes[2].semilogy(targets["targets"], targets[name], "o-", label=name.partition(",")[0])
    axes[2].set(xlabel="targets", ylabel="ms an image", title="ContinuousUnmixer")
    for axis in axes:
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def sections(tables: Iterable[tuple[str, pd.DataFrame]]) -> list[str]:
    """Titles and tables as Markdown."""
    return [line for title, table in tables for line in (f"## {title}", "", to_markdown(table), "")]


def main() -> None:
    """Measure, and write the tables and the figure."""
    given = parser(__file__, __doc__, n=1000)
    given.add_argument("--frame", type=int, help="solve one frame only and print the peak memory")
    options = given.parse_args()
    if options.frame is not None:
        fista(*frame(options.frame), n_iter=12)  # two looks at the gap: all that is ever held
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    size = by_size(options.repeats)
    factor = by_factor(options.n, options.repeats)
    targets = by_targets(max(2, options.n // 50), options.repeats)
    picture = options.out.with_suffix(".png")
    draw(size, factor, targets, picture)
    more = [
        largest_frame(size),
        "",
        *sections([("Factor", factor), ("Targets", targets)]),
        f"![Time against size, factor and targets]({picture.name})",
        "",
    ]
    write_report(options.out, "How cost grows", command(__file__, options), __doc__, size, more)
    print(options.out.read_text())


if __name__ == "__main__":
    main()
