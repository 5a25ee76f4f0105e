"""How far each l1 solver's objective is from that of CVXPY: random, border, zero, saturated.

    python -m benchmarks.accuracy.l1_agreement --out benchmarks/accuracy/l1_agreement.md

Largest relative difference of the objective to `CvxpyLasso` over the images of each kind, at
sigma = 0.5 px, 11 x 11 px, factor 3, each solver run to a relative gap of 1e-7, with the largest
number of iterations. "ISTA, fixed" is the textbook method with steps of 1/L: at lam = 1 DN the
problem is so ill-conditioned that it is not there after 100,000 iterations.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED, simulate
from benchmarks.report import to_markdown, write_report
from csunmix.solvers import Solver

LAMS = (20.0, 1.0)


def images(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and censored pixels of each kind."""
    _, (clipped, free) = simulate(n, REPORT_SEED)
    border = cu.targets.make_table(
        np.arange(n), np.linspace(-0.4, 10.4, n), np.full(n, -0.3), np.full(n, 235.0)
    )
    edge = cu.render(cu.presets.csist_100k().psf, border, shape=(11, 11))
    none = np.zeros(free.images.shape, bool)
    return {
        "random": (free.images, none),
        "border": (edge, none),
        "zero": (np.zeros((2, 11, 11)), none[:2]),
        "saturated": (clipped.images, clipped.sensor.censored(clipped.images)),
    }


def solvers(lam: float) -> dict[str, Solver]:
    """The l1 solvers, run to a small gap."""
    return {
        "ActiveSet": cu.ActiveSet(lam=lam),
        "FISTA": cu.FISTA(lam=lam, tol=1e-7, max_iter=50_000),
        "SplitBregman": cu.SplitBregman(lam=lam, tol=1e-7, max_iter=50_000),
        "ISTA": cu.ISTA(lam=lam, tol=1e-7, max_iter=50_000),
        "ISTA, fixed": cu.ISTA(lam=lam, step="fixed", tol=1e-7, max_iter=100_000),
    }


def main() -> None:
    """Run the comparison and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    dictionary = cu.Dictionary(cu.presets.csist_100k().psf, (11, 11), 3)
    out = []
    for lam, (kind, (stack, censored)) in product(LAMS, images(options.n).items()):
        oracle = cu.CvxpyLasso(lam=lam).solve(dictionary, stack, censored=censored).objective
        for name, solver in solvers(lam).items():
            result = solver.solve(dictionary, stack, censored=censored)
            difference = np.abs(result.objective - oracle) / np.where(oracle > 0, oracle, 1.0)
            out.append(
                {
                    "lam": f"{lam:g}",
                    "images": kind,
                    "solver": name,
                    "largest relative difference": float(difference.max()),
                    "iterations": int(result.n_iter.max()),
                }
            )
    table = pd.DataFrame(out)
    command = f"python -m benchmarks.accuracy.l1_agreement --n {options.n}"
    write_report(options.out, "Objectives against CVXPY", command, __doc__, table)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
