"""A run in a few numbers: each site's scores, the mean over sites, and the depth of retrogress."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from prrfl.types import AbsenceRecord, ExchangeRecord, RoundRecord, ScoreRecord, Scores, TrainRecord


def summarise(records: Sequence[RoundRecord], first_candidate: int = 0) -> dict[str, Any]:
    """Return the summary of a run's records.

    Args:
        records: all of them, in order.
        first_candidate: the first round that competes for the best model on validation.

    Returns:
        ``rounds`` done; ``best_round``; for ``last`` and ``best`` each site's test scores of the deployed
        network and their unweighted mean; per network the mean ``retrogress`` (score before minus after the
        mean was received, over rounds and sites); bytes sent per site and round; ``absent``: per site, the
        rounds that went on without it. Fractions, not percent.
    """
    scores = [r for r in records if isinstance(r, ScoreRecord)]
    exchanges = [r for r in records if isinstance(r, ExchangeRecord)]
    last = exchanges[-1].round
    best = max(
        range(min(first_candidate, last), last + 1),
        key=lambda t: (validation_f1(r for r in scores if r.round == t), -t),
    )
    return {
        "rounds": last + 1,
        "best_round": best,
        "last": _sites(scores, last),
        "best": _sites(scores, best),
        "retrogress": _retrogress(scores),
        "bytes_up_per_site_and_round": fmean(b for r in exchanges for b in r.bytes_up.values()),
        "bytes_down_per_site_and_round": fmean(r.bytes_down for r in exchanges),
        "absent": _absent(records),
        "local_epochs": sum(isinstance(r, TrainRecord) for r in records),
    }


def validation_f1(records: Iterable[RoundRecord]) -> float:
    """Return the deployed networks' macro-F1 on validation, mean over sites, in a round's records."""
    return fmean(
        r.scores.macro_f1 for r in records if isinstance(r, ScoreRecord) and r.split == "valid" and r.deployed
    )


def _absent(records: Iterable[RoundRecord]) -> dict[str, list[int]]:
    absent: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record, AbsenceRecord) and record.round not in absent.setdefault(record.client, []):
            absent[record.client].append(record.round)
    return absent


def _sites(scores: Iterable[ScoreRecord], index: int) -> dict[str, Any]:
    chosen = {
        r.client: r.scores
        for r in scores
        if r.round == index and r.split == "test" and r.deployed and r.moment == "after"
    }
    sites = {client: _figures(scores) for client, scores in sorted(chosen.items())}
    return {"sites": sites, "mean": _mean(sites.values())}


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


def _retrogress(scores: Sequence[ScoreRecord]) -> dict[str, dict[str, float]]:
    moments = {
        (r.model, r.round, r.client, r.moment): r.scores
        for r in scores
        if r.split == "test" and r.moment != "epoch"
    }
    drops: dict[str, dict[str, list[float]]] = {}
    for (model, index, client, moment), before in moments.items():
        after = moments.get((model, index, client, "after"))
        if moment != "before" or after is None:
            continue
        listed = drops.setdefault(model, {"macro_f1": [], "auc": []})
        listed["macro_f1"].append(before.macro_f1 - after.macro_f1)
        if before.auc is not None and after.auc is not None:
            listed["auc"].append(before.auc - after.auc)
    return {
        model: {name: fmean(values) for name, values in listed.items() if values}
        for model, listed in drops.items()
    }
