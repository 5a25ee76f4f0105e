"""Scan of the settings that the grid methods use by default, on the tuning seed only.

    python -m benchmarks.accuracy.tune --n 500

Prints CSO-mAP and count accuracy for l1 weights, factors and merging radii.
"""

from __future__ import annotations

import argparse
from itertools import product

import csunmix as cu
from benchmarks.accuracy.protocol import TUNING_SEED, simulate


def main() -> None:
    """Print the scan, a row a setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500)
    options = parser.parse_args()
    scenes, protocols = simulate(options.n, TUNING_SEED)
    print("data, factor, lam, radius, CSO-mAP, count accuracy %")
    for protocol, factor, lam in product(
        protocols, (3, 5, 7, 9), (1.0, 0.3, 0.1, 0.05, 0.02, 0.01)
    ):
        dictionary = cu.Dictionary(cu.presets.csist_100k().psf, scenes.images.shape[-2:], factor)
        for radius in (0.25, 0.3, 0.35, 0.4):
            unmix = cu.GridUnmixer(
                dictionary,
                solver=cu.ActiveSet(lam=lam),
                peaks=cu.MassMerging(radius=radius),
                sensor=protocol.sensor,
            )
            scores = cu.compare({"": unmix(protocol.images)}, scenes.truth).iloc[0]
            print(
                f"{protocol.name}, {factor}, {lam:g}, {radius:g}, "
                f"{scores['CSO-mAP']:.2f}, {scores['count accuracy']:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
