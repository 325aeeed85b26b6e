"""All scores of runs as tidy CSV, from which the tests can be repeated."""

import csv
import io
from collections.abc import Iterable, Sequence

from prrfl.types import RoundRecord, ScoreRecord

HEADS = ["method", "seed", "round", "epoch", "moment", "site", "split", "model", "deployed", "n"]
HEADS += ["macro_f1", "auc", "accuracy", "loss"]


def scores_to_csv(runs: Iterable[tuple[str, int, Sequence[RoundRecord]]], classes: Sequence[str]) -> str:
    """Return one line per scoring of a network. Fractions; rounds and epochs count from 1.

    Args:
        runs: method, seed and records of each.
        classes: names of the labels 0, 1, ...; each gets a column of recall.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEADS, *(f"recall_{name}" for name in classes)])
    for method, seed, records in runs:
        for r in records:
            if isinstance(r, ScoreRecord):
                s = r.scores
                where = (r.round + 1, r.epoch + 1, r.moment, r.client, r.split, r.model, r.deployed)
                scores = (s.n, s.macro_f1, s.auc, s.accuracy, s.loss, *s.recall)
                writer.writerow([method, seed, *where, *scores])
    return text.getvalue()
