"""Tables in CSV files with a header, checked as they are read."""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import TextIO

from prrfl.data.columns import NumberedRow, is_one_hot, with_labels
from prrfl.errors import DataError, nearest
from prrfl.storage.reading import opened, why_unreadable

LONGEST_LINE = 1_000_000
"""Characters. Longer lines are not from a table, and parsing them takes many times their length in memory."""

LONGEST_NAME = 200
"""Bytes of the name of a site or image. File names have at most 255, including prefixes and suffixes."""

TABLE_SUFFIXES = {".csv", ".tsv", ".tab", ".txt"}
"""Endings of the names of tables."""

_SEPARATORS = (",", ";", "\t")

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by byte order mark. That of UTF-16 begins one of UTF-32, so it comes later."""

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""The first bytes of .xlsx and .xls."""


def read_rows(
    path: Path,
    needed: Sequence[str],
    what: str = "table",
    optional: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> list[NumberedRow]:
    """Return every row of a table with its line number. Cells are stripped; missing cells are empty.

    The separator is a comma, semicolon or tab: the one that gives most of the columns. Rows without text are
    skipped.

    Args:
        path: the table, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        needed: columns that it must have; all other columns are returned, too.
        what: the kind of table, for messages.
        optional: columns that it may have; like the needed ones, once only.
        classes: names of the labels. If the table has a column for each of them and none called label, the
            column that is 1 in a row becomes its label, and a column image becomes image_id. The ground
            truth of ISIC's challenges is such a table.

    Raises:
        DataError: naming the file, and the column or line.
    """
    with _text(path, what) as file:
        lines = _lines(file, path)
        start = next(lines, "")
        hinted = start.strip("\r\n").casefold() in {f"sep={separator}" for separator in _SEPARATORS}
        start = next(lines, "") if hinted else start  # Excel writes and reads this line
        separator = max(_SEPARATORS, key=lambda s: _known(_columns(start, s), needed, optional, classes))
        content = _cells(chain([start], lines), separator, path)
        _, names = next(content, (0, []))
        columns = [name.strip() for name in names]
        one_hot = "label" in needed and is_one_hot(columns, classes)
        if one_hot:
            columns = ["image_id" if c == "image" and "image_id" not in columns else c for c in columns]
            needed = [c for c in needed if c != "label"]
        _check_columns(columns, path, needed, what, optional)
        rows: list[NumberedRow] = []
        for number, cells in content:
            line = number + hinted
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise DataError(
                    f"{path}:{line} has {len(cells)} cells, but the header has {len(columns)}; put a cell "
                    "that contains the separator in double quotes"
                )
            row = {c: cell.strip() for c, cell in zip_longest(columns, cells[: len(columns)], fillvalue="")}
            if any(row.values()):
                rows.append((line, row))
    if not rows:
        raise DataError(f"{what} {path} is empty; expected a header and at least one image")
    return with_labels(rows, path, [*needed, *optional], classes) if one_hot else rows


@contextmanager
def _text(path: Path, what: str) -> Iterator[TextIO]:
    """Open a table's text; errors in opening and decoding it become a :class:`DataError`."""
    encoding = "utf-8-sig"
    try:
        with opened(path) as file:
            start = file.read(4)
            file.seek(0)
            if start.startswith(_WORKBOOKS):
                raise DataError(
                    f"{what} {path} is an Excel workbook; save it as 'CSV UTF-8' and give that file"
                )
            encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), encoding)
            with io.TextIOWrapper(file, encoding, newline="") as text:
                yield text
    except OSError as cause:
        raise DataError(f"{what} {path} {why_unreadable(cause)}") from None
    except UnicodeError as cause:
        raise DataError(_undecodable(path, encoding, cause)) from None


def _cells(lines: Iterable[str], separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line of each row, and its cells."""
    reader = csv.reader(lines, delimiter=separator)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as cause:
        raise DataError(f"{path}:{reader.line_num} is not valid CSV: {cause}") from None


def _undecodable(path: Path, encoding: str, cause: UnicodeError) -> str:
    """Return a message on bytes that are not text, with the first line that holds such bytes."""
    if encoding != "utf-8-sig":
        return f"{path} is not valid {encoding.upper()} text ({cause}); save it as 'CSV UTF-8'"
    line, byte = 1, ""
    with opened(path) as file:
        for content in iter(lambda: file.readline(4 * LONGEST_LINE), b""):
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as first:
                byte = f"byte 0x{content[first.start]:02X}"
                break
            line += content.endswith(b"\n")
    return (
        f"{path}:{line} is not UTF-8 text ({byte}); programs on Windows often save in cp1252 or another "
        "encoding; save the table as 'CSV UTF-8'"
    )


def _columns(line: str, separator: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
    except csv.Error:  # a cell is too long; reading the rows names the line
        return []


def _known(columns: Sequence[str], *names: Sequence[str]) -> int:
    known = {name.casefold() for name in chain(*names)} | {"image"}
    return sum(column.casefold() in known for column in columns)


def _check_columns(
    columns: Sequence[str], path: Path, needed: Sequence[str], what: str, optional: Sequence[str]
) -> None:
    for column in needed:
        if column not in columns:
            raise DataError(
                f"{what} {path} has no column '{column}'{nearest(column, columns)}; "
                f"its columns are {', '.join(columns) or 'none'}"
            )
    for column in (*needed, *optional):
        if columns.count(column) > 1:
            raise DataError(f"{what} {path} has {columns.count(column)} columns '{column}'; keep one of them")


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
