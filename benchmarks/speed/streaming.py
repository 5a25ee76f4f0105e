"""Stacks that are larger than the memory should be: time and peak memory of ``csunmix unmix``.

Run as ``python -m benchmarks.speed.streaming [--n 200000 2000000]``.

Every row but the first is one run of the program in a process of its own, on images of the main
protocol (11 x 11, 8 bit, c = 3): 20,000 simulated ones, over and over, on all processors. The first
row is one call of the library with these, in memory, after it has compiled. *Peak* is the largest
resident set that the kernel saw (VmHWM), pages of mapped files and libraries included; *own* is the
largest of what are no pages of files (RssAnon, looked at every 0.1 s). Seconds are those of the
whole program: its start, two passes over the images before the work, the work, and making the
Parquet file.

The Zarr array has chunks of 5,000 images. The run that goes on was killed by SIGKILL after half the
time of the row above it; its images/s count what was left, and its table is compared with that of
the row above, byte for byte.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.report import write_report

_SIMULATED = 20_000
_STEP = 20_000
_MIB = 1024.0  # KiB


@dataclass
class Usage:
    """What a run of the program took: seconds, and peaks in KiB."""

    seconds: float = 0.0
    peak: int = 0
    own: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--n", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--method", default="active-set")
    options = parser.parse_args()
    setup = cu.presets.csist_100k()
    optics = (setup.psf, setup.sensor, setup.scene)
    made = cu.simulate(*optics, shape=setup.shape, n=_SIMULATED, rng=1).images.astype(np.uint8)
    library = cu.grid_unmixer(
        options.method,
        psf=setup.psf,
        shape=setup.shape,
        sensor=setup.sensor,
        prior=setup.prior,
        factor=3,
    )
    library = replace(library, n_jobs=len(os.sched_getaffinity(0)))  # as the program does
    library(made[:1000])
    start = perf_counter()
    library(made)
    alone = _row("in memory", _SIMULATED, Usage(perf_counter() - start))
    rows = [alone | {"peak, MiB": "", "own, MiB": ""}]
    first, *others = sorted(options.n)
    with tempfile.TemporaryDirectory() as folder:
        npy, zarr, out = (Path(folder, name) for name in ("i.npy", "i.zarr", "zarr.parquet"))
        _write_npy(npy, made, first)
        rows.append(_row(".npy", first, _unmix(npy, out.with_stem("npy"), options.method)))
        _write_zarr(zarr, made, first)
        whole = _unmix(zarr, out, options.method)
        rows.append(_row(".zarr", first, whole))
        killed = out.with_stem("killed")
        _unmix(zarr, killed, options.method, seconds=whole.seconds / 2)
        done = json.loads(Path(f"{killed}.state.json").read_text())["frames"]
        rest = _unmix(zarr, killed, options.method, "--resume")
        same = "equal" if filecmp.cmp(out, killed, shallow=False) else "DIFFERENT"
        rows.append(_row(f".zarr, going on at {done}: {same}", first, rest, first - done))
        for n in others:
            _write_npy(npy, made, n)
            rows.append(_row(".npy", n, _unmix(npy, out.with_stem("npy"), options.method)))
    command = f"python -m benchmarks.speed.streaming --n {' '.join(map(str, options.n))}"
    path = Path(__file__).with_suffix(".md")
    write_report(path, "Streaming", command, __doc__ or "", pd.DataFrame(rows))


def _write_npy(path: Path, made: np.ndarray, n: int) -> None:
    images = np.lib.format.open_memmap(path, "w+", made.dtype, (n, *made.shape[1:]))
    for start in range(0, n, _STEP):
        images[start : start + _STEP] = made[: n - start]
    images.flush()


def _write_zarr(path: Path, made: np.ndarray, n: int) -> None:
    import zarr

    shape = made.shape[1:]
    images = zarr.create_array(
        path, shape=(n, *shape), chunks=(5000, *shape), dtype=made.dtype, overwrite=True
    )
    for start in range(0, n, _STEP):
        images[start : start + _STEP] = made[: n - start]


def _unmix(path: Path, out: Path, method: str, *argv: str, seconds: float | None = None) -> Usage:
    """Run the program, killed after some `seconds` where they are given."""
    command = [sys.executable, "-m", "csunmix", "unmix", str(path), "--out", str(out)]
    command += ["--method", method, "--factor", "3", *argv]
    start, used = perf_counter(), Usage()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as program:
        while program.poll() is None:
            status = Path(f"/proc/{program.pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            if "VmHWM" in fields:  # else it has just ended
                used.peak = max(used.peak, int(fields["VmHWM"].split()[0]))
                used.own = max(used.own, int(fields["RssAnon"].split()[0]))
            if seconds is not None and perf_counter() - start > seconds:
                program.kill()
            sleep(0.1)
    if seconds is None and program.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {program.returncode}")
    used.seconds = perf_counter() - start
    return used


def _row(what: str, n: int, used: Usage, done: int | None = None) -> dict[str, object]:
    return {
        "input": what,
        "images": n,
        "seconds": used.seconds,
        "images/s": round((n if done is None else done) / used.seconds),
        "peak, MiB": round(used.peak / _MIB),
        "own, MiB": round(used.own / _MIB),
    }


if __name__ == "__main__":
    main()
