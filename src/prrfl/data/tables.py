"""Tables in CSV files with a header, checked as they are read."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from prrfl.errors import DataError, nearest
from prrfl.storage.reading import opened

LONGEST_LINE = 1_000_000
"""Characters. Longer lines are not from a table, and parsing them takes many times their length in memory."""

LONGEST_NAME = 200
"""Bytes of the name of a site or image. File names have at most 255, including prefixes and suffixes."""


def read_rows(path: Path, needed: Sequence[str], what: str = "table") -> list[tuple[int, dict[str, str]]]:
    """Return every row of a table with its line number. Cells are stripped; missing cells are empty.

    Args:
        path: the CSV, in UTF-8 with or without a byte order mark.
        needed: columns that it must have; all other columns are returned, too.
        what: the kind of table, for messages.

    Raises:
        DataError: naming the file, and the column or line.
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
        raise DataError(f"{path}:{reader.line_num} is not valid CSV: {cause}") from None


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), ""), start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{path}:{number} has more than {LONGEST_LINE:,} characters; expected a table with one image "
                "per line"
            )
        yield line


def is_plain_name(text: str) -> bool:
    """Return whether a text can be the name of a site or an image, that is, part of a file name."""
    return (
        text not in ("", ".", "..")
        and "/" not in text
        and text.isprintable()
        and len(text.encode()) <= LONGEST_NAME
    )


def index_below(text: str, count: int) -> int | None:
    """Return the integer in a cell if it is in 0 ... ``count`` - 1, else ``None``."""
    digits = text.lstrip("0") or text[:1]
    if not (text.isascii() and text.isdigit()) or len(digits) > len(str(count)):
        return None
    return int(digits) if int(digits) < count else None
