"""What the first call of a method takes on a fresh install, and in the next process.

    python -m benchmarks.speed.first_call --repeats 5

Each row is an interpreter of its own that imports csunmix, simulates 3 images of the main protocol
and unmixes one of them. "Fresh" is with an empty folder for compiled kernels, "next" with what a
fresh one has left there; the import counts apart. Medians of so many runs, seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from benchmarks.report import to_markdown, write_report

METHODS = {
    "grid": "cu.grid_unmixer(**grid)",
    "grid, refined": "cu.grid_unmixer(**grid, refine=True)",
    "continuous": "cu.ContinuousUnmixer(s.psf, s.sensor, s.prior)",
    "posterior": "cu.PosteriorUnmixer(s.psf, s.sensor, s.prior)",
}
WANTED = "<= 15", "<= 1"  # s, fresh and next
SCRIPT = """
import time
start = time.perf_counter()
import csunmix as cu
imported = time.perf_counter()
s = cu.presets.csist_100k()
image = cu.simulate(s.psf, s.sensor, s.scene, shape=s.shape, n=3, rng=1).images[0]
grid = dict(psf=s.psf, shape=s.shape, sensor=s.sensor, prior=s.prior)
unmix = {method}
made = time.perf_counter()
unmix(image)
print(imported - start, time.perf_counter() - made)
"""


def run(method: str, folder: str) -> tuple[float, float]:
    """Seconds that the import and the first call take in a new process."""
    argv = [sys.executable, "-c", SCRIPT.format(method=METHODS[method])]
    environment = os.environ | {"NUMBA_CACHE_DIR": folder}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    imported, called = done.stdout.split()
    return float(imported), float(called)


def measured(method: str, repeats: int) -> dict[str, object]:
    """A row of the table."""
    runs = []
    for _ in range(repeats):
        with TemporaryDirectory() as folder:
            runs.append([*run(method, folder), *run(method, folder)])
    imported, fresh, _, following = np.median(runs, axis=0)
    return {
        "method": method,
        "import": imported,
        "fresh": fresh,
        "wanted": WANTED[0],
        "next": following,
        "wanted ": WANTED[1],
    }


def main() -> None:
    """Run the benchmark and write its table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    told = options.parse_args()
    table = pd.DataFrame([measured(method, told.repeats) for method in METHODS])
    command = f"python -m benchmarks.speed.first_call --repeats {told.repeats}"
    write_report(told.out, "The first call", command, __doc__, table)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
