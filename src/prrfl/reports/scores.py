"""All scores of runs as tidy CSV, from which anybody can redo the tests."""

import csv
import io
from collections.abc import Iterable, Sequence

from prrfl.types import RoundRecord, ScoreRecord

HEADS = ["method", "seed", "round", "epoch", "moment", "site", "split", "model", "deployed", "n"]
HEADS += ["macro_f1", "auc", "accuracy", "loss"]


def to_csv(runs: Iterable[tuple[str, int, Sequence[RoundRecord]]], classes: Sequence[str]) -> str:
    """Return a line for each time that a network was scored. Fractions; rounds and epochs count from 1.

    Args:
        runs: of each the method's name, the seed and the records.
        classes: names of the labels 0, 1, ...; each has a column for its recall.
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
