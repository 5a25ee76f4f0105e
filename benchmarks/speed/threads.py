"""What a second thread gains.

    python -m benchmarks.speed.threads --n 40000

Whole calls of the unmixers, tables included, on simulated CSIST-100K images. Ratios are medians of
interleaved rounds. Each timed call follows a second of calls of the same kind that are not timed:
after a time with one thread, the second processor of a virtual machine may be slow at first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

import csunmix as cu
from benchmarks.report import to_markdown, write_report
from benchmarks.speed.growth import SETUP, csist, solvers
from benchmarks.speed.options import command, parser
from benchmarks.speed.pairs import compare


def unmixers() -> Iterator[tuple[str, Any, int]]:
    """Unmixers by name, and the share of the images that each is given: one in so many."""
    dictionary = cu.Dictionary(SETUP.psf, SETUP.shape, 3)
    for name, (solver, share) in solvers().items():
        yield name, cu.GridUnmixer(dictionary, solver=solver, peaks=cu.MassMerging()), share
    optics: dict[str, Any] = {"psf": SETUP.psf, "sensor": SETUP.sensor, "prior": SETUP.prior}
    yield "MomentUnmixer", cu.MomentUnmixer(**optics), 2
    yield "refined targets", cu.grid_unmixer(**optics, shape=SETUP.shape, refine=True), 4
    yield "ContinuousUnmixer", cu.ContinuousUnmixer(**optics), 50


def main() -> None:
    """Measure, and write the table."""
    options = parser(__file__, __doc__, n=40_000).parse_args()
    images, tables = csist(options.n), []
    for name, unmix, share in unmixers():
        runs = {
            f"{name}, 2 threads": replace(unmix, n_jobs=2),
            f"{name}, 1 thread": replace(unmix, n_jobs=1),
        }
        wanted = {f"{name}, 1 thread": 1.8}
        part = images[: max(10, options.n // share)]
        tables.append(compare(runs, part, repeats=options.repeats, wanted=wanted, warm=1.0))
    table = pd.concat(tables)
    write_report(options.out, "Threads", command(__file__, options), __doc__, table)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
