"""Summary of a run: scores of each site, their mean, and the mean drop at communications."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from prrfl.reports.meter import Drop, mean_drop, measure
from prrfl.types import AbsenceRecord, ExchangeRecord, RoundRecord, ScoreRecord, Scores, TrainRecord


def summarise(records: Sequence[RoundRecord], first_candidate: int = 0) -> dict[str, Any]:
    """Return the summary of a run's records.

    Args:
        records: all of them, in order.
        first_candidate: the first round that can be the best one on validation.

    Returns:
        ``rounds`` done; ``best_round``; for ``last`` and ``best``, the test scores of each site's deployed
        network, the ``round`` that they are of, and their unweighted mean with its ``rounds``; per network,
        the mean ``retrogress`` (score before the mean was received minus score after it, mean of the sites'
        means over rounds); bytes sent per site and round; ``absent``: per site, the rounds without it.
        Fractions, not percent; rounds count from 0. A site that was absent at the end has ``last`` scores of
        its own last round; one that was absent in the best round has no ``best`` scores.
    """
    scores = [r for r in records if isinstance(r, ScoreRecord) and _is_result(r)]
    exchanges = [r for r in records if isinstance(r, ExchangeRecord)]
    best = best_round(records, first_candidate)
    return {
        "rounds": exchanges[-1].round + 1,
        "best_round": best,
        "last": _sites(scores),
        "best": _sites(r for r in scores if r.round == best),
        "retrogress": _retrogress(records),
        "bytes_up_per_site_and_round": fmean(b for r in exchanges for b in r.bytes_up.values()),
        "bytes_down_per_site_and_round": fmean(r.bytes_down for r in exchanges),
        "absent": _absent(records),
        "local_epochs": sum(isinstance(r, TrainRecord) for r in records),
    }


def best_round(records: Iterable[RoundRecord], first_candidate: int) -> int:
    """Return the round with the highest mean macro-F1 on validation; the earliest of equal ones.

    Only rounds with the largest number of sites compete: a mean is not better for lacking a weak site.

    Args:
        records: records of one or more rounds.
        first_candidate: the first round that can be the best one. If all rounds are earlier, the last one is.
    """
    found: dict[int, list[float]] = {}
    for r in records:
        if isinstance(r, ScoreRecord) and r.split == "valid" and r.deployed:
            found.setdefault(r.round, []).append(r.scores.macro_f1)
    candidates = [t for t in found if t >= min(first_candidate, max(found))]
    return max(candidates, key=lambda t: (len(found[t]), fmean(found[t]), -t))


def validation_f1(records: Iterable[RoundRecord]) -> float:
    """Return the mean over sites of the deployed networks' macro-F1 on validation, from a round's records."""
    return fmean(
        r.scores.macro_f1 for r in records if isinstance(r, ScoreRecord) and r.split == "valid" and r.deployed
    )


def _absent(records: Iterable[RoundRecord]) -> dict[str, list[int]]:
    absent: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record, AbsenceRecord) and record.round not in absent.setdefault(record.client, []):
            absent[record.client].append(record.round)
    return absent


def _is_result(record: ScoreRecord) -> bool:
    """Return whether a record has the test scores of a deployed network at the end of a round."""
    return record.split == "test" and record.deployed and record.moment == "after"


def _sites(results: Iterable[ScoreRecord]) -> dict[str, Any]:
    """Return each site's last scores among results, in order of rounds, and their mean."""
    latest = {r.client: r for r in results}
    sites = {client: {"round": r.round, **_figures(r.scores)} for client, r in sorted(latest.items())}
    rounds = sorted({r.round for r in latest.values()})
    return {"sites": sites, "mean": {**_mean(sites.values()), "rounds": rounds}}


def _figures(scores: Scores) -> dict[str, Any]:
    return {
        "macro_f1": scores.macro_f1,
        "auc": scores.auc,
        "accuracy": scores.accuracy,
        "recall": list(scores.recall),
        "n": scores.n,
    }


def _mean(sites: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    listed = list(sites)
    return {
        name: fmean(values) if (values := [s[name] for s in listed if s[name] is not None]) else None
        for name in ("macro_f1", "auc")
    }


def _retrogress(records: Sequence[RoundRecord]) -> dict[str, dict[str, float]]:
    drops: dict[str, list[Drop]] = {}
    for drop in measure(records):
        drops.setdefault(drop.model, []).append(drop)
    return {model: _mean_drop(of_model) for model, of_model in drops.items()}


def _mean_drop(drops: Sequence[Drop]) -> dict[str, float]:
    found = {"macro_f1": mean_drop(drops, "f1"), "auc": mean_drop(drops, "auc")}
    return {name: drop for name, drop in found.items() if drop is not None}
