"""Records as lines of JSON: how a run's history is kept and read back."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from prrfl.errors import DataError
from prrfl.types import RoundRecord

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
