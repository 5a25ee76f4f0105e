"""Speed of the greedy pursuits: `OMP`, plain and as orthogonal least squares.

    python -m benchmarks.speed.pursuits --n 10000 --out benchmarks/speed/pursuits.md

Five atoms, simulated CSIST-100K images that do not clip, c = 3, no sign constraint, as the rivals
know none. ``omp`` of SPAMS takes the atom that leaves the least residual after refitting, which is
orthogonal least squares: compare it with ``OMP(selection="residual")``; scikit-learn's
``orthogonal_mp_gram`` takes the largest correlation, as plain `OMP` does. Both get all images at
once, on the dense dictionary with normalised columns, and the Gram matrix where they want it.
"Mean residual" shows that like is compared with like. Ratios are medians of interleaved rounds of
times per image; one thread for all. Each row is compared with the first row of its pair.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pandas as pd
import spams
from sklearn.linear_model import orthogonal_mp_gram

import csunmix as cu
from benchmarks.accuracy.protocol import REPORT_SEED, simulate
from benchmarks.report import to_markdown, write_report
from benchmarks.speed.options import command, parser
from benchmarks.speed.pairs import compare

N_ATOMS = 5
SUBSET = 500


def spams_omp(matrix: np.ndarray, images: np.ndarray) -> np.ndarray:
    columns = np.asfortranarray(images.reshape(len(images), -1).T)
    return spams.omp(columns, D=matrix, L=N_ATOMS, eps=0.0, numThreads=1)


def gram_omp(matrix: np.ndarray, gram: np.ndarray, images: np.ndarray) -> np.ndarray:
    columns = images.reshape(len(images), -1).T
    return orthogonal_mp_gram(gram, matrix.T @ columns, n_nonzero_coefs=N_ATOMS)


def main() -> None:
    """Run the comparison and write its table."""
    options = parser(__file__, __doc__, n=10_000).parse_args()
    images = simulate(options.n, REPORT_SEED)[1][1].images
    dictionary = cu.Dictionary(cu.presets.csist_100k().psf, images.shape[-2:], 3)
    dense = dictionary.to_dense()
    matrix = np.asfortranarray(dense / np.linalg.norm(dense, axis=0))
    warnings.simplefilter("ignore")  # scikit-learn warns of atoms that are almost alike
    plain = cu.OMP(n_nonzero=N_ATOMS, positive=False)
    least = cu.OMP(n_nonzero=N_ATOMS, positive=False, selection="residual")
    ours = {
        "OMP": lambda y: plain.solve(dictionary, y),
        "OMP, selection by residual": lambda y: least.solve(dictionary, y),
    }
    rivals = {
        "SPAMS omp": partial(spams_omp, matrix),
        "scikit-learn orthogonal_mp_gram": partial(gram_omp, matrix, matrix.T @ matrix),
    }
    subset = {"scikit-learn orthogonal_mp_gram": SUBSET}
    wanted = {"SPAMS omp": 3.0, "scikit-learn orthogonal_mp_gram": 60.0}
    parts = []
    for name, run in ours.items():
        table = compare(
            {name: run, **rivals}, images, repeats=options.repeats, subset=subset, wanted=wanted
        )
        few = images[:SUBSET].reshape(min(SUBSET, len(images)), -1).T
        fitted = [run(images[:SUBSET]).residual_norm] + [
            np.linalg.norm(few - matrix @ rival(images[:SUBSET]), axis=0)
            for rival in rivals.values()
        ]
        table["mean residual"] = [float(np.mean(norm)) for norm in fitted]
        parts.append(table)
    table = pd.concat(parts)
    write_report(options.out, "Speed of the pursuits", command(__file__, options), __doc__, table)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
