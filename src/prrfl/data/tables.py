"""Tables as people send them: CSV files with a header."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from prrfl.errors import DataError, nearest
from prrfl.storage.reading import opened

LONGEST_LINE = 1_000_000
"""Characters; a line that is longer is of no table, and would take many times its length in memory."""

LONGEST_NAME = 200
"""Bytes of a site's or an image's name, of which file systems take 255, with what is put around it."""


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
        with io.TextIOWrapper(opened(path), "utf-8-sig", newline="") as file:
            rows = _rows(file, path, needed, what)
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{what} {path} cannot be read as UTF-8 text: {cause}") from None
    if not rows:
        raise DataError(f"{what} {path} is empty; expected a header and at least one image")
    return rows


def _rows(file: TextIO, path: Path, needed: Sequence[str], what: str) -> list[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_lines(file, path))
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        for column in needed:
            if column not in columns:
                raise DataError(
                    f"{what} {path} has no column '{column}'{nearest(column, columns)}; "
                    f"its columns are {', '.join(columns) or 'none'}"
                )
            if columns.count(column) > 1:
                raise DataError(
                    f"{what} {path} has {columns.count(column)} columns '{column}'; keep one of them"
                )
        return [
            (reader.line_num, {name: (cells[name] or "").strip() for name in columns}) for cells in reader
        ]
    except csv.Error as cause:
        raise DataError(f"{path}:{reader.line_num} is no CSV: {cause}") from None


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), ""), start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{path}:{number} has more than {LONGEST_LINE:,} characters; expected a table, "
                "one image a line"
            )
        yield line


def is_plain_name(text: str) -> bool:
    """Return whether a cell names a site or an image by characters that a file's name can have."""
    return (
        text not in ("", ".", "..")
        and "/" not in text
        and text.isprintable()
        and len(text.encode()) <= LONGEST_NAME
    )


def index_below(text: str, count: int) -> int | None:
    """Return the whole number that a cell holds if it is below ``count``, else ``None``."""
    digits = text.lstrip("0") or text[:1]
    if not (text.isascii() and text.isdigit()) or len(digits) > len(str(count)):
        return None
    return int(digits) if int(digits) < count else None
