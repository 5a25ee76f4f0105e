"""Real and third-party images with independent truth: the target lists must be sane.

The figures are those of ``python -m benchmarks.accuracy.real``; the margins here are wider.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = os.environ.get("CSUNMIX_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="CSUNMIX_DATA is not set")

# name: least count right %, recall %, precision %, largest median distance px
LIMITS = {
    "WISE blends (real)": (60, 85, 80, 0.25),
    "WISE blends (real), shift removed": (60, 85, 80, 0.18),
    "WISE single stars (real)": (98, 99, 98, 0.01),
    "wise composites of real stars": (97, 98, 97, 0.08),
    "spitzer composites of real stars": (55, 97, 75, 0.09),
    "storm-analysis crops (simulated)": (96, 98, 96, 0.06),
}


@pytest.fixture(scope="module")
def figures():
    from benchmarks.accuracy.real import cases, row

    return {figures["data"]: figures for figures in map(row, cases(Path(str(DATA))))}


@pytest.mark.parametrize("name", LIMITS)
def test_targets_are_sane(figures, name):
    count, recall, precision, distance = LIMITS[name]
    found = figures[name]
    assert found["count right %"] >= count
    assert found["recall %"] >= recall
    assert found["precision %"] >= precision
    assert found["median distance px"] <= distance


def test_single_stars_are_not_called_multiple_and_blends_are(figures):
    assert figures["WISE single stars (real)"]["called multiple %"] <= 5
    assert figures["WISE blends (real)"]["called multiple %"] >= 80
