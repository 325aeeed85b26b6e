"""Tables as people send them: CSV files with a header."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from prrfl.errors import DataError, nearest


def read_rows(path: Path, needed: Sequence[str], what: str = "table") -> list[tuple[int, dict[str, str]]]:
    """Return every row of a table with its line number; cells are stripped, absent ones empty.

    Args:
        path: the CSV, UTF-8 with or without a byte order mark.
        needed: columns that it must have; all others are returned as well.
        what: how to call it in messages.

    Raises:
        DataError: naming the file, and the column or line at fault.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{what} {path} cannot be read as UTF-8 text: {cause}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        for column in needed:
            if column not in columns:
                raise DataError(
                    f"{what} {path} has no column '{column}'{nearest(column, columns)}; "
                    f"its columns are {', '.join(columns) or 'none'}"
                )
        rows = [
            (reader.line_num, {name: (cells[name] or "").strip() for name in columns}) for cells in reader
        ]
    except csv.Error as cause:
        raise DataError(f"{path}:{reader.line_num} is no CSV: {cause}") from None
    if not rows:
        raise DataError(f"{what} {path} is empty; expected a header and at least one image")
    return rows
