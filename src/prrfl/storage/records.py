"""Records as lines of JSON, summaries as JSON and predictions as CSV, checked as they are read."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from prrfl.errors import DataError
from prrfl.storage.reading import parse_json, read_bytes, read_text
from prrfl.types import ExchangeRecord, Predictions, RoundRecord, ScoreRecord, Scores, TrainRecord

_RECORD: TypeAdapter[RoundRecord] = TypeAdapter(RoundRecord)

_NAMED = ("image_id", "label", "group")
"""Columns of a CSV of predictions before the probabilities."""

_Fraction = Annotated[float, Field(ge=0, le=1)]


class _Figures(BaseModel):
    """One site's scores in a summary."""

    macro_f1: _Fraction
    auc: _Fraction | None
    recall: list[_Fraction | None]
    n: Annotated[int, Field(ge=1)]


class _Mean(BaseModel):
    macro_f1: _Fraction | None
    auc: _Fraction | None


class _Round(BaseModel):
    sites: Annotated[dict[str, _Figures], Field(min_length=1)]
    mean: _Mean


class _Summary(BaseModel):
    """The parts of a summary that are read; it may hold more."""

    model_config = ConfigDict(allow_inf_nan=False)

    rounds: Annotated[int, Field(ge=1)]
    best_round: Annotated[int, Field(ge=0)]
    last: _Round
    best: _Round
    retrogress: dict[str, dict[str, float]]
    seconds: Annotated[float, Field(ge=0)] = 0.0


def to_line(record: RoundRecord) -> str:
    """Return one record as one line of JSON."""
    return json.dumps(asdict(record), allow_nan=False) + "\n"


def append_records(path: Path, records: Iterable[RoundRecord]) -> None:
    """Append records. If that fails, for example on a full disk, the file is restored; a new one is empty."""
    path.touch()
    end = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(to_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        # After the file is closed, which would write the rest of its buffer into the room just freed.
        os.truncate(path, end)
        raise


def from_line(line: str | bytes) -> RoundRecord:
    """Return the record in a line of JSON.

    Raises:
        ValueError: if the line is not a record, or holds impossible numbers.
    """
    try:
        record = _RECORD.validate_json(line)
    except ValidationError as cause:
        raise ValueError(cause.errors()[0]["msg"]) from None
    if record.round < 0:
        raise ValueError("its round is negative")
    if isinstance(record, TrainRecord) and not all(map(math.isfinite, record.metrics.values())):
        raise ValueError("it holds NaN or infinity")
    if isinstance(record, ScoreRecord):
        _check_scores(record.scores)
    return record


def _check_scores(scores: Scores) -> None:
    shares = [scores.macro_f1, scores.accuracy, *(r for r in (scores.auc, *scores.recall) if r is not None)]
    if not (math.isfinite(scores.loss) and all(0 <= share <= 1 for share in shares)):
        raise ValueError("it holds an invalid score")
    cells = [cell for row in scores.confusion for cell in row]
    square = {len(scores.recall)} == {len(scores.confusion), *map(len, scores.confusion)}
    if not square or min(cells) < 0 or sum(cells) != scores.n:
        raise ValueError("its confusion matrix does not match its number of images")


def read_records(path: Path, classes: int | None = None) -> list[RoundRecord]:
    """Read a ``metrics.jsonl``.

    Args:
        path: the file.
        classes: number of classes that its scores must have; any number by default.

    Raises:
        DataError: naming the file, and the line that is not a record or belongs to another round.
    """
    try:
        lines = read_bytes(path).splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; expected the folder of a run") from None
    except OSError as cause:
        raise DataError(f"{path} cannot be read: {cause}") from None
    records: list[RoundRecord] = []
    of_round: list[RoundRecord] = []
    done = 0
    for number, line in enumerate(lines, start=1):
        try:
            record = from_line(line)
            if record.round != done:
                raise ValueError(f"it belongs to round {record.round + 1}; expected round {done + 1}")
            if isinstance(record, ScoreRecord) and classes not in (None, len(record.scores.recall)):
                raise ValueError(f"it has {len(record.scores.recall)} classes; the settings have {classes}")
            if isinstance(record, ExchangeRecord):
                _check_whole(of_round, record)
        except ValueError as cause:
            raise DataError(f"{path}:{number} is not a record of a run: {cause}") from None
        records.append(record)
        of_round.append(record)
        if isinstance(record, ExchangeRecord):
            done, of_round = done + 1, []
    return records


def _check_whole(records: Iterable[RoundRecord], end: ExchangeRecord) -> None:
    """Raise an error unless a round has all scores that a summary needs."""
    deployed = [r for r in records if isinstance(r, ScoreRecord) and r.deployed]
    scored = {
        moment: {r.client for r in deployed if (r.split, r.moment) == ("test", moment)}
        for moment in ("before", "after")
    }
    if not (
        end.bytes_up and scored["before"] & scored["after"] and any(r.split == "valid" for r in deployed)
    ):
        raise ValueError("it ends a round without scores")


def parse_summary(text: bytes) -> dict[str, Any]:
    """Return the summary of a run in JSON.

    Raises:
        ValueError: if it is not a summary.
    """
    try:
        _Summary.model_validate_json(text)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    summary: dict[str, Any] = parse_json(text)
    return summary


def predictions_to_csv(predictions: Predictions, classes: Sequence[str]) -> str:
    """Return predictions as CSV: image_id, label, group, and one column of probabilities per class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_NAMED, *(f"p_{name}" for name in classes)])
    rows = zip(
        predictions.ids,
        predictions.labels.tolist(),
        predictions.groups or [None] * len(predictions.ids),
        predictions.probabilities.tolist(),
        strict=True,
    )
    writer.writerows([*named, *(f"{p:.9g}" for p in row)] for *named, row in rows)
    return text.getvalue()


def read_predictions(path: Path, classes: Sequence[str] | None = None) -> Predictions:
    """Read predictions.

    Args:
        path: a file with the text of :func:`predictions_to_csv`; older files have no column group.
        classes: names of the classes that it must have; any by default.

    Raises:
        DataError: naming the file, if it is missing or damaged.
    """
    try:
        header, *rows = csv.reader(io.StringIO(read_text(path), newline=""))
        named = _NAMED if "group" in header else _NAMED[:2]  # a class's column begins with p_
        first = len(named)
        columns = len(header) - first if classes is None else len(classes)
        expected = [*named, *([f"p_{name}" for name in classes] if classes else header[first:])]
        if header != expected or columns < 1:
            raise ValueError(f"its columns are {', '.join(header)}")
        if not rows:
            raise ValueError("it has no rows")
        labels = [int(row[1]) for row in rows]
        values = [[float(p) for p in row[first:]] for row in rows]
        if not all(0 <= label < columns for label in labels):
            raise ValueError("it has labels outside the classes")
        if not all(len(row) == columns and all(0 <= p <= 1 for p in row) for row in values):
            raise ValueError("not every row has a probability for each class")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; expected the predictions of a finished run") from None
    except (OSError, ValueError, IndexError, csv.Error) as cause:
        raise DataError(f"{path} is not a table of predictions: {' '.join(str(cause).split())}") from None
    return Predictions(
        ids=tuple(row[0] for row in rows),
        labels=torch.tensor(labels),
        probabilities=torch.tensor(values, dtype=torch.float64),
        groups=tuple(row[2] or None for row in rows) if "group" in header else (),
    )
