"""How long single images take off the grid, of which the slowest counts.

    python -m benchmarks.speed.single --n 100 --repeats 1

Rows of `benchmarks.accuracy.off_grid`, one call an image after one that is not timed, one thread:
the main protocol, and one without a flux prior, the hardest. Each image's time is the median of
its `--repeats` calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.accuracy.off_grid import rows
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.report import to_markdown, write_report
from benchmarks.speed.options import command, parser

METHODS = {"continuous": cu.ContinuousUnmixer, "posterior": cu.PosteriorUnmixer}
_KINDS = (("8 bit, clipped at 255", "preset"), ("8 bit, not clipped, no flux prior", "extent"))


def measured(n: int, repeats: int) -> Iterator[dict[str, object]]:
    """Times of every kind of data and method, ms."""
    for row in rows():
        if (row.name, row.told) not in _KINDS:
            continue
        made = cu.simulate(row.psf, row.sensor, row.scene, shape=row.shape, n=n, rng=REPORT_SEED)
        for name, method in METHODS.items():
            unmix = method(row.psf, row.sensor, row.prior)
            unmix(made.images[:3])
            ms = np.array([1e3 * median(unmix, image, repeats) for image in made.images])
            yield {
                "data": row.name,
                "method": name,
                "images": n,
                "mean, ms": ms.mean(),
                "median, ms": np.median(ms),
                "95 %, ms": np.quantile(ms, 0.95),
                "slowest, ms": ms.max(),
            }


def median(unmix: Callable[[np.ndarray], pd.DataFrame], image: np.ndarray, repeats: int) -> float:
    """Median time of one call, s."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        unmix(image)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Run the benchmark and write its table."""
    options = parser(__file__, __doc__, n=100, repeats=1).parse_args()
    table = pd.DataFrame(measured(options.n, options.repeats))
    write_report(options.out, "Single images", command(__file__, options), __doc__, table)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
