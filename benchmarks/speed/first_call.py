"""What the first call of a method takes on a fresh install, and in the next process.

    python -m benchmarks.speed.first_call --repeats 5

Each figure is an interpreter of its own. "Fresh" is with an empty folder for compiled kernels,
"next" with what a fresh one has left there. Two processes compile where they can. In a script: the
call that unmixes the first image, a simulated one of the main protocol; "import" is that of csunmix
before. On the command line: all of `csunmix unmix` with that image, start and import included.
Medians of so many runs, seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.report import to_markdown, write_report

METHODS = {
    "grid": ("cu.grid_unmixer(**grid)", "--method active-set"),
    "grid, refined": ("cu.grid_unmixer(**grid, refine=True)", "--method active-set --refine"),
    "moments": ("cu.MomentUnmixer(s.psf, s.sensor, s.prior)", "--method moments"),
    "continuous": ("cu.ContinuousUnmixer(s.psf, s.sensor, s.prior)", "--method continuous"),
    "posterior": ("cu.PosteriorUnmixer(s.psf, s.sensor, s.prior)", "--method posterior"),
}
SCRIPT = """
import time
start = time.perf_counter()
import csunmix as cu
imported = time.perf_counter()
import numpy as np
s = cu.presets.csist_100k()
grid = dict(psf=s.psf, shape=s.shape, sensor=s.sensor, prior=s.prior)
image, unmix = np.load("image.npy")[0], {method}
made = time.perf_counter()
unmix(image)
print(imported - start, time.perf_counter() - made)
"""
COMMAND = """
import sys
sys.argv[1:] = {argv!r}.split()
from csunmix.cli import program
raise SystemExit(program())
"""
UNMIX = "unmix image.npy --out targets.csv --preset csist-100k {options}"


def run(code: str, folder: str) -> str:
    """What a new interpreter prints that has its compiled kernels in a folder."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(Path(folder) / "kernels")}
    argv, told = [sys.executable, "-c", code], {"cwd": folder, "env": environment}
    return subprocess.run(argv, capture_output=True, text=True, check=True, **told).stdout


def script(method: str, folder: str) -> tuple[float, float]:
    """Seconds that the import and the first call take."""
    imported, called = run(SCRIPT.format(method=METHODS[method][0]), folder).split()
    return float(imported), float(called)


def command_line(method: str, folder: str) -> float:
    """Seconds that `csunmix unmix` takes."""
    argv = UNMIX.format(options=METHODS[method][1])
    start = time.perf_counter()
    run(COMMAND.format(argv=argv), folder)
    return time.perf_counter() - start


def measured(method: str, repeats: int) -> dict[str, object]:
    """A row of the table."""
    setup = cu.presets.csist_100k()
    optics = (setup.psf, setup.sensor, setup.scene)
    images = cu.simulate(*optics, shape=setup.shape, n=1, rng=1).images
    runs = []
    for _ in range(repeats):
        times: list[float] = []
        for timed in (script, command_line):
            with TemporaryDirectory() as folder:
                np.save(Path(folder) / "image.npy", images)
                times += np.ravel([timed(method, folder), timed(method, folder)]).tolist()
        runs.append(times)
    imported, fresh, _, following, *commands = np.median(runs, axis=0)
    return {
        "method": method,
        "import": imported,
        "first call, fresh (wanted 15)": fresh,
        "next (wanted 1)": following,
        "command line, fresh": commands[0],
        "command line, next": commands[1],
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
