"""Is it one target or two? False alarms of `count_test`, and what it detects.

    python -m benchmarks.accuracy.count

Single targets and pairs lie anywhere in the central pixel of 11 x 11 images: Gaussian PSF of sigma
0.5 px and normal noise of 2 DN where nothing else is said. First the share of singles that are
called more than one, in % and with its standard error, at rates of 1, 5 and 10 % asked for (the
p-values of one run at 1 %, whose simulations begin with those of the others), and beside it what a
chi^2 with three degrees of freedom would call at 5 %. Then the share of pairs detected at 5 %, by
separation and flux ratio, the brighter target of 235 DN.

Places and noise are of one seed in all rows, which therefore err alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED
from benchmarks.report import to_markdown, write_report
from csunmix.continuous.count import count_test

SHAPE, CENTRE, FLUX = (11, 11), 5.0, 235.0
PSF, NOISY, FREE = cu.GaussianPSF(sigma=0.5), cu.Sensor(read_noise=2), cu.Prior()
FLUX_PRIOR = cu.Prior(flux=(220, 250), extent=1.2)
SEPARATIONS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.9, 1.2)
ASKED = (1, 5, 10)


class Case(NamedTuple):
    """Single targets, and what the test is told of them."""

    name: str
    flux: float = FLUX
    psf: cu.PSF = PSF
    sensor: cu.Sensor = NOISY
    told: cu.Sensor = NOISY
    prior: cu.Prior = FREE


CASES = (
    Case("no prior, flux 235"),
    Case("no prior, flux 80", flux=80.0),
    Case("no prior, flux 40", flux=40.0),
    Case("no prior, noise estimated", told=cu.Sensor()),
    Case("flux prior 220-250, extent 1.2", prior=FLUX_PRIOR),
    Case("8-bit rounding alone", sensor=cu.Sensor(rounding=True), told=cu.Sensor(rounding=True)),
    Case("Airy PSF of radius 0.95", psf=cu.AiryPSF(radius=0.95)),
)


def pairs(
    n: int, case: Case, separation: float, ratio: float, rng: np.random.Generator
) -> np.ndarray:
    """Images of pairs with their middle in the central pixel; of singles where `ratio` is 0."""
    middle = rng.uniform(CENTRE - 0.5, CENTRE + 0.5, (n, 2))
    angle = rng.uniform(0.0, 2.0 * np.pi, n)
    half = 0.5 * separation * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    light = case.flux * case.psf.response(*(middle + half).T, SHAPE)
    light += ratio * case.flux * case.psf.response(*(middle - half).T, SHAPE)
    return case.sensor.expose(light, rng)


def false_alarms(case: Case, n: int, seed: int) -> dict[str, object]:
    """Row of the first table."""
    rng = np.random.default_rng(seed)
    images = pairs(n, case, 0.0, 0.0, rng)
    test = count_test(images, case.psf, case.told, case.prior, false_alarm=0.01, rng=rng)
    row: dict[str, object] = {"single targets": case.name, "images": n}
    for asked in ASKED:
        rate = float((test.p_value <= asked / 100).mean())
        error = np.sqrt(asked / 100 * (1 - asked / 100) / n)
        row[f"asked {asked} %"] = f"{100 * rate:.1f} ± {100 * error:.1f}"
    return row | {
        "chi^2, 5 %": 100.0 * float((stats.chi2.sf(test.statistic, 3) <= 0.05).mean()),
    }


def detected(separation: float, n: int, seed: int) -> dict[str, object]:
    """Row of the second table."""
    row: dict[str, object] = {"separation px": separation}
    columns = [(f"ratio {ratio}", FREE, ratio) for ratio in (1.0, 0.5, 0.2)]
    for name, prior, ratio in [*columns, ("ratio 1.0, flux prior 220-250", FLUX_PRIOR, 1.0)]:
        rng = np.random.default_rng(seed)
        images = pairs(n, Case(name), separation, ratio, rng)
        test = count_test(images, PSF, NOISY, prior, false_alarm=0.05, n_simulations=39, rng=rng)
        row[name] = 100.0 * float(test.reject.mean())
    return row


def _table(rows: Iterator[dict[str, object]]) -> pd.DataFrame:
    """Rows as a table, each printed as soon as it is there."""
    made = []
    for row in rows:
        made.append(row)
        print(to_markdown(pd.DataFrame([row])).splitlines()[-1], flush=True)
    return pd.DataFrame(made)


def main() -> None:
    """Run the benchmark and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="single targets a row")
    parser.add_argument("--pairs", type=int, default=30, help="pairs a cell")
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    singles = _table(false_alarms(case, options.n, options.seed) for case in CASES)
    rows = (detected(each, options.pairs, options.seed) for each in SEPARATIONS)
    found = to_markdown(_table(rows))
    more = [f"Pairs detected at 5 %, {options.pairs} a cell, %:", "", found, ""]
    command = f"python -m benchmarks.accuracy.count --n {options.n} --pairs {options.pairs}"
    command += f" --seed {options.seed}"
    write_report(options.out, "One target or two", command, __doc__, singles, more)


if __name__ == "__main__":
    main()
