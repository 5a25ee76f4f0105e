"""Speed of CSO-mAP, against a plain Python implementation.

    python -m benchmarks.speed.metrics --n 10000 --out benchmarks/speed/metrics.md

Truth and detections are of simulated CSIST-100K scenes, the detections displaced by 0.1 px with
one in ten left out and one in ten invented. The rival is the definition written as loops over
images, detections and truths, on lists that are made beforehand; its value is the same. `cso_map`
gets the tables.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from benchmarks.accuracy.protocol import REPORT_SEED, simulate
from benchmarks.report import to_markdown, write_report
from benchmarks.speed.options import command, parser
from benchmarks.speed.pairs import compare
from csunmix.metrics import THRESHOLDS, cso_map
from csunmix.targets import make_table

Points = list[list[tuple[float, float, float]]]  # x, y, flux of each target of each image


def detect(truth: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Displace the true targets, leave some out and invent others."""
    rng = np.random.default_rng(seed)
    seen = truth[rng.random(len(truth)) > 0.1]
    parts = [seen, truth[rng.random(len(truth)) < 0.1]]
    frame, y, x, flux = (np.concatenate([p[c] for p in parts]) for c in ("frame", "y", "x", "flux"))
    y, x = (a + rng.normal(0.0, 0.1, a.size) for a in (y, x))
    return make_table(frame, y, x, flux + rng.normal(0.0, 5.0, flux.size), n_frames=n)


def as_lists(table: pd.DataFrame, n: int) -> Points:
    """Targets of each image, positions rounded to float32 as in the protocol."""
    out: Points = [[] for _ in range(n)]
    x, y = (table[c].to_numpy(np.float32).tolist() for c in ("x", "y"))
    for frame, *target in zip(table["frame"], x, y, table["flux"], strict=True):
        out[int(frame)].append(tuple(target))
    return out


def plain(found: Points, true: Points) -> float:
    """CSO-mAP, in loops."""
    return sum(average_precision(found, true, limit) for limit in THRESHOLDS) / len(THRESHOLDS)


def average_precision(found: Points, true: Points, limit: float) -> float:
    """Area under the envelope of precision against recall, at one distance."""
    hits = []
    for detections, targets in zip(found, true, strict=True):
        taken = [False] * len(targets)
        for x, y, flux in sorted(detections, key=lambda target: -target[2]):
            nearest, least = -1, math.inf
            for k, (x0, y0, _) in enumerate(targets):
                distance = math.sqrt((x - x0) ** 2 + (y - y0) ** 2)
                if distance < least:
                    nearest, least = k, distance
            hit = least <= limit and not taken[nearest]
            if hit:
                taken[nearest] = True
            hits.append((flux, hit))
    hits.sort(key=lambda entry: -entry[0])
    n_true, tp, precision = sum(map(len, true)), 0, []
    for rank, (_, hit) in enumerate(hits, 1):
        tp += hit
        precision.append(tp / rank)
    area, envelope = 0.0, 0.0
    for (_, hit), value in zip(reversed(hits), reversed(precision), strict=True):
        envelope = max(envelope, value)
        area += envelope * hit
    return area / n_true


def main() -> None:
    """Run the comparison and write its table."""
    options = parser(__file__, __doc__, n=10_000, repeats=7).parse_args()
    truth = simulate(options.n, REPORT_SEED)[0].truth
    found = detect(truth, options.n, REPORT_SEED)
    lists = as_lists(found, options.n), as_lists(truth, options.n)
    runs = {
        "cso_map": lambda _: cso_map(found, truth).mean,
        "plain Python": lambda _: plain(*lists),
    }
    values = [float(run(None)) for run in runs.values()]
    table = compare(
        runs, np.arange(options.n), repeats=options.repeats, wanted={"plain Python": 100.0}
    )
    table["CSO-mAP"] = [f"{100 * value:.6f}" for value in values]
    write_report(options.out, "Speed of CSO-mAP", command(__file__, options), __doc__, table)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
