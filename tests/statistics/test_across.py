"""Ranks over data sets, against scipy and a published example."""

import numpy as np
import pytest
from scipy.stats import f, friedmanchisquare

from prrfl.reports.across import standing, standings_table


def test_ranks_are_friedmans_and_nemenyis():
    rng = np.random.default_rng(0)
    values = rng.random((10, 4)) + np.array([0.0, 0.1, 0.2, 0.3])
    found = standing("F1", [dict(zip("abcd", row, strict=True)) for row in values])
    assert list(found.ranks) == list("abcd")
    assert found.ranks["a"] == np.mean([1 + (row > row[0]).sum() for row in values])
    assert sum(found.ranks.values()) == pytest.approx(10)
    square = friedmanchisquare(*values.T).statistic
    # Iman and Davenport: (N - 1) X / (N (k - 1) - X).
    assert found.p == pytest.approx(f.sf(9 * square / (30 - square), 3, 27))
    # Demšar (2006): q of four methods is 2.569.
    assert found.critical == pytest.approx(2.569 * (4 * 5 / 60) ** 0.5, abs=1e-3)


def test_equal_scores_share_ranks_and_marks_follow_the_critical_difference():
    tied = standing("AUC", [{"x": 0.5, "y": 0.5}] * 6)
    assert tied.ranks == {"x": 1.5, "y": 1.5}
    assert tied.p == 1.0
    always = standing("F1", [{"x": 0.6, "y": 0.5}] * 6)
    assert always.ranks == {"x": 1.0, "y": 2.0}
    assert always.p == 0.0
    # 1.960 * (2 * 3 / 36) ** 0.5 = 0.80.
    table = standings_table([always, tied], 6)
    assert table.body == [
        ["x", "1.00*", "1.50*"],
        ["y", "2.00", "1.50*"],
        ["critical difference", "0.80", "0.80"],
        ["p of Friedman's test", "< 0.001", "1.000"],
    ]
    assert table.title == "Mean ranks over 6 data sets"


def test_ten_equal_methods_seldom_differ():
    rng, errors, claims = np.random.default_rng(1), 0, 0
    for _ in range(200):
        found = standing("F1", [dict(enumerate(row)) for row in rng.random((8, 10))])
        errors += found.p < 0.05
        claims += max(found.ranks.values()) - min(found.ranks.values()) > found.critical
    for count in (errors, claims):
        assert count <= 0.05 * 200 + 3 * (0.05 * 0.95 * 200) ** 0.5
