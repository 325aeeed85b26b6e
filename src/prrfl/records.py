"""Records as lines of JSON and predictions as CSV: how what a run gave is kept and read back."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from prrfl.errors import DataError
from prrfl.types import Predictions, RoundRecord

_RECORD: TypeAdapter[RoundRecord] = TypeAdapter(RoundRecord)


def to_line(record: RoundRecord) -> str:
    """Return one record as one line of JSON."""
    return json.dumps(asdict(record), allow_nan=False) + "\n"


def append_records(path: Path, records: Iterable[RoundRecord]) -> None:
    """Append records; on failure (a full disk) the file is left as it was."""
    with path.open("a", encoding="utf-8") as file:
        end = file.tell()
        try:
            file.write("".join(to_line(record) for record in records))
            file.flush()
        except OSError:
            os.truncate(path, end)
            raise


def read_records(path: Path) -> list[RoundRecord]:
    """Read a ``metrics.jsonl``.

    Raises:
        DataError: naming the file and the line that is no record.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} is not there; expected the folder of a run") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path} cannot be read: {cause}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_RECORD.validate_json(line))
        except ValidationError as cause:
            raise DataError(f"{path}:{number} is no record of a run: {cause.errors()[0]['msg']}") from None
    return records


def predictions_to_csv(predictions: Predictions, classes: Sequence[str]) -> str:
    """Return predictions as CSV: image_id, label, and one column of probabilities per class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "label", *(f"p_{name}" for name in classes)])
    rows = zip(predictions.ids, predictions.labels.tolist(), predictions.probabilities.tolist(), strict=True)
    writer.writerows([name, label, *(f"{p:.9g}" for p in row)] for name, label, row in rows)
    return text.getvalue()


def read_predictions(path: Path) -> Predictions:
    """Read predictions back.

    Raises:
        DataError: naming the file that is absent or damaged.
    """
    try:
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8"), newline="")))[1:]
        return Predictions(
            ids=tuple(row[0] for row in rows),
            labels=torch.tensor([int(row[1]) for row in rows]),
            probabilities=torch.tensor([[float(p) for p in row[2:]] for row in rows], dtype=torch.float64),
        )
    except FileNotFoundError:
        raise DataError(f"{path} is not there; expected the predictions of a finished run") from None
    except (OSError, ValueError, IndexError, csv.Error) as cause:
        raise DataError(f"{path} holds no predictions: {' '.join(str(cause).split())}") from None
