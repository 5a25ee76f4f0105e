"""What benchmarks make of their figures; the figures themselves are no matter of tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.accuracy.off_grid import claims, claims_table, pooled
from benchmarks.report import to_markdown


def figures(data: str, method: str, pull: Any, free: Any) -> dict[str, Any]:
    """A row of the off-grid table, as far as claims go."""
    named = {f"{name}, all": value for name, value in claims(pull).items()}
    named |= {f"{name}, unflagged": value for name, value in claims(pull[free]).items()}
    return {"data": data, "told": "preset", "method": method, **named}


def test_claims_of_normal_pulls_are_those_of_a_normal_distribution() -> None:
    pull = np.random.default_rng(0).normal(size=(20_000, 3))
    found = claims(pull)
    assert found["targets"] == 20_000
    assert found["pull, place"] == pytest.approx(1.0, abs=0.02)
    assert found["68 %, flux"] == pytest.approx(68.3, abs=1.0)
    assert found["95 %, place"] == pytest.approx(95.0, abs=0.5)
    assert np.isnan(claims(pull[:0])["95 %, flux"])


def test_claims_have_a_line_for_all_and_one_for_the_unflagged() -> None:
    pull = np.array([[0.5, 0.5, 0.5], [2.5, -2.5, 0.2]])
    table = pd.DataFrame(
        [
            figures("clipped", "continuous", pull, np.array([True, False])),
            figures("clipped", "posterior", pull, np.array([False, False])),
            figures("clipped", "(oracle)", pull, np.array([True, True])),
        ]
    )
    lines = claims_table(table)
    assert list(zip(lines["method"], lines["which"], lines["targets"], strict=True)) == [
        ("continuous", "all", "2"),
        ("continuous", "unflagged", "1"),
        ("posterior", "all", "2"),
        ("(oracle)", "all", "2"),
    ]
    assert lines["68 %, place"].tolist() == [50.0, 100.0, 50.0, 50.0]


def test_pooled_claims_are_those_of_all_targets_at_once() -> None:
    """Of rows of different sizes; the oracle and the row without fluxes are left out."""
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(300, 3)), 1.5 * rng.normal(size=(700, 3))
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)  # so that spreads add up
    every = [np.ones(len(pull), bool) for pull in (one, two)]
    table = pd.DataFrame(
        [
            figures("clipped", "continuous", one, every[0]),
            figures("sigma 1", "continuous", two, every[1]),
            figures("8 bit, no flux prior", "continuous", 9.0 * two, every[1]),
            figures("clipped", "(oracle)", 9.0 * one, every[0]),
        ]
    )
    both = pooled(claims_table(table))
    expected = claims(np.concatenate([one, two]))
    assert both["rows"].tolist() == [2, 2]
    assert both["targets"].tolist() == ["1000", "1000"]
    for name in ("pull, place", "pull, flux", "68 %, place", "95 %, flux"):
        assert both.loc[0, name] == pytest.approx(expected[name], rel=1e-3)


def test_the_lead_is_by_the_best_of_each_side() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed (the extra [bench])")
    from benchmarks.deep.evaluate import ahead, capped
    from benchmarks.deep.methods import OURS

    first, second = OURS[2:]
    table = pd.DataFrame(
        [
            ("clipped", first, "preset", 92.0, 95.0),
            ("clipped", second, "preset", 90.0, 96.0),
            ("clipped", "off-grid network", "scenes", 91.0, 97.5),
            ("clipped", "perceptron, c = 3", "scenes", 46.0, np.nan),
            ("clipped", "LISTA, c = 3", "scenes", 45.0, np.nan),
        ],
        columns=["data", "method", "told", "CSO-mAP", "by score"],
    )
    lead = [line for line in ahead(table) if line.startswith("- ")]
    assert lead == [
        "- clipped, CSO-mAP: off-grid network 91.00; 1.00 behind ours told the preset",
        "- clipped, by score: off-grid network 97.50; 1.50 ahead of ours told the preset",
    ]
    times = [line for line in capped(table) if line.startswith("- ")]
    assert times == ["- clipped: perceptron 46.00, ours 92.00, 2.00 times that"]
    rivals = table[~table["method"].isin(OURS)]
    assert ahead(rivals) == capped(rivals) == []


def test_a_cell_without_a_number_is_empty() -> None:
    table = pd.DataFrame({"RMSE px": [0.1234, np.nan], "n": [1, 2]})
    assert to_markdown(table).splitlines()[2:] == ["| 0.123 | 1 |", "|  | 2 |"]
