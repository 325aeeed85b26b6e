"""Methods over several data sets: mean ranks, Friedman's test, and Nemenyi's critical difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prrfl.reports.formatting import p_value
from prrfl.reports.tables import Table
from prrfl.reports.uncertainty import LEVEL

FEWEST_SETS = 5
"""Data sets that a comparison of ranks needs; with fewer, the test finds next to nothing."""


@dataclass(frozen=True)
class Standing:
    """Ranks of methods in one measure over data sets (Demšar, Journal of Machine Learning Research 2006).

    Attributes:
        measure: its name in tables.
        ranks: mean rank of each method; 1 is the best. Equal scores share the mean of their ranks.
        p: that all methods rank alike, by Friedman's test with the correction of Iman and Davenport (1980).
        critical: difference of mean ranks above which two methods differ (Nemenyi, 1963), for all pairs.
    """

    measure: str
    ranks: Mapping[str, float]
    p: float
    critical: float


def standing(measure: str, scores: Sequence[Mapping[str, float]]) -> Standing:
    """Return the ranks of at least two methods.

    Args:
        measure: its name in tables.
        scores: per data set, the score of each method; the same methods in all. Higher is better.
    """
    methods = list(scores[0])
    sets, count = len(scores), len(methods)
    ranks = np.array([stats.rankdata([-of_set[method] for method in methods]) for of_set in scores])
    mean = ranks.mean(0)
    # An analysis of variance of the ranks is the statistic of Iman and Davenport, also with ties.
    between = sets * ((mean - mean.mean()) ** 2).sum() / (count - 1)
    within = ((ranks - mean) ** 2).sum() / ((count - 1) * (sets - 1))
    if within > 0:
        p = float(stats.f.sf(between / within, count - 1, (count - 1) * (sets - 1)))
    else:
        p = 0.0 if between > 0 else 1.0
    quantile = stats.studentized_range.ppf(1 - LEVEL, count, np.inf) / 2**0.5
    critical = float(quantile * (count * (count + 1) / (6 * sets)) ** 0.5)
    return Standing(measure, dict(zip(methods, map(float, mean), strict=True)), p, critical)


def standings_table(standings: Sequence[Standing], sets: int) -> Table:
    """Return the table of mean ranks; ``*`` marks the best, ``=`` those within the critical difference.

    Args:
        standings: in each measure, of the same methods.
        sets: number of data sets.
    """
    heads = ["method", *(f"{one.measure} rank" for one in standings)]
    body = [[method, *(_rank(one, method) for one in standings)] for method in standings[0].ranks]
    body.append(["critical difference", *(f"{one.critical:.2f}" for one in standings)])
    body.append(["p of Friedman's test", *(p_value(one.p) for one in standings)])
    return Table(f"Mean ranks over {sets} data sets", heads, body)


def _rank(one: Standing, method: str) -> str:
    best = min(one.ranks.values())
    mark = "*" if one.ranks[method] == best else "=" if one.ranks[method] - best < one.critical else ""
    return f"{one.ranks[method]:.2f}{mark}"
