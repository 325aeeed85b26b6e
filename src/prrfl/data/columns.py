"""What the cells of a table mean: labels, and groups, which are evaluated by the whole column."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from prrfl.errors import DataError, nearest

NumberedRow = tuple[int, dict[str, str]]
"""The number of a row's line, and its cells by column."""

UNKNOWN = frozenset(
    {
        "",
        "-",
        "--",
        "?",
        ".",
        "n/a",
        "#n/a",
        "na",
        "<na>",
        "nan",
        "nat",
        "nil",
        "none",
        "null",
        "unknown",
        "unk",
    }
    | {
        "missing",
        "not available",
        "not known",
        "undefined",
        "unspecified",
        "#value!",
        "#ref!",
        "(null)",
        "\\n",
    }
)
"""Groups that are unknown, in lower case: what people write, and what pandas, R, Excel and SQL write."""

_GROUPS = frozenset({"group", "patient", "lesion", "subject"})
"""Names of columns, in lower case and without ``_id``, that probably hold groups."""

_WHOLE = re.compile(r"0*(\d{1,18})(\.0*)?", re.ASCII)

log = logging.getLogger("prrfl")


def whole_number(text: str) -> int | None:
    """Return the whole number that a cell holds, written ``3`` or ``3.0``, else ``None``."""
    found = _WHOLE.fullmatch(text)
    return int(found[1]) if found else None


def class_indices(cells: Sequence[tuple[str, str]], classes: Sequence[str]) -> list[int]:
    """Return the class index of each label of a column: the one rule for labels, in all forms of data.

    A label is the name of a class, or its index. If names are numbers themselves, a label must be a name
    whose index reading does not name another class.

    Args:
        cells: where each label is, for messages, and its text.
        classes: names of the labels 0, 1, ...

    Raises:
        DataError: naming the place of a label that is unknown or ambiguous.
    """
    found = [_class_index(where, label, classes) for where, label in cells]
    for (where, label), index in zip(cells, found, strict=True):
        if index is None:
            raise DataError(
                f"{where}: unknown label '{label}'; expected one of {_choices(classes)}, or other classes by "
                "--classes"
                f"{nearest(label, classes)}{_range([text for _, text in cells], len(classes))}"
            )
    return [index for index in found if index is not None]


def _class_index(where: str, label: str, classes: Sequence[str]) -> int | None:
    number = whole_number(label)
    named = [k for k, name in enumerate(classes) if name == label]
    if number is None or not (named or _renumbered(classes)):
        return named[0] if named else number if number in range(len(classes)) else None
    named = named or [k for k, name in enumerate(classes) if whole_number(name) == number]
    readings = {*named, number} if named and number < len(classes) else set(named)
    if len(readings) > 1:
        first, *_, last = sorted(readings)
        raise DataError(
            f"{where}: label '{label}' is ambiguous: it may mean class {classes[first]} or {classes[last]}, "
            "by name or by index; write names that are not numbers in the table and in --classes"
        )
    return next(iter(readings), None)


def _renumbered(classes: Sequence[str]) -> bool:
    """Return whether the name of a class is a number other than its index."""
    return any(whole_number(name) not in (None, k) for k, name in enumerate(classes))


def _choices(classes: Sequence[str]) -> str:
    if _renumbered(classes):
        return ", ".join(classes)  # in such tables, indices are not accepted
    return ", ".join(f"{k} = {name}" for k, name in enumerate(classes))


def _range(labels: Sequence[str], count: int) -> str:
    """Return a hint if the numbers in a column do not run from 0 to the last class, else an empty text."""
    numbers = [number for number in map(whole_number, labels) if number is not None]
    if not numbers or max(numbers) < count:
        return ""
    hint = f"; labels run from {min(numbers)} to {max(numbers)}, but there are {count} classes"
    if min(numbers) > 0 and max(numbers) == count:
        return f"{hint}, counted from 0: the labels begin at 1; subtract 1 from each, or write class names"
    return f"{hint}; name all classes with --classes"


def group_ids(cells: Sequence[str], where: str, flags: bool = False) -> list[str | None]:
    """Return the group of each row of a column, ``None`` if it is unknown.

    Unknown is an empty cell, or one of the words in ``UNKNOWN``; a warning counts the words. If all groups
    are whole numbers, ``17.0`` is ``17``: pandas writes the first if another cell is empty.

    Args:
        cells: the column of all images of one table or site.
        where: its name for messages.
        flags: whether a column that holds only 0 and 1 has flags in it, not groups.
    """
    known = [None if cell.casefold() in UNKNOWN else cell for cell in cells]
    words = Counter(cell for cell, group in zip(cells, known, strict=True) if cell and group is None)
    if words:
        named = ", ".join(f"'{word}'" for word in sorted(words))
        log.warning("%s: %d groups are %s, which is read as unknown", where, words.total(), named)
    numbers = {group: whole_number(group) for group in known if group is not None}
    if None in numbers.values():
        return known
    if flags and set(numbers.values()) <= {0, 1}:
        return [None] * len(known)
    return [None if group is None else group.partition(".")[0] for group in known]


def warn_of_ignored(columns: Iterable[str], group: str, path: Path) -> None:
    """Warn of columns that seem to hold groups, but are not read because of their names.

    Args:
        columns: the table's columns.
        group: name of the column that is read.
        path: the table.
    """
    columns = list(columns)
    ignored = [c for c in columns if re.sub(r"(id)?s?$", "", re.sub(r"[\W_]", "", c.casefold())) in _GROUPS]
    if ignored and group not in columns:
        log.warning(
            "%s: column %s is not read; if images of one patient or lesion must stay together, call it %s",
            path,
            ", ".join(ignored),
            group,
        )


def is_one_hot(columns: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether a table has one column for each class, without regard to case, and no column label."""
    lower = [column.casefold() for column in columns]
    named = {name.casefold() for name in classes}
    return (
        0 < len(named) == len(classes)
        and "label" not in columns
        and all(lower.count(name) == 1 for name in named)
    )


def with_labels(
    rows: Sequence[NumberedRow], path: Path, other: Sequence[str], classes: Sequence[str]
) -> list[NumberedRow]:
    """Return the rows of a one-hot table with a label: the name of the column that is 1.

    Args:
        rows: the rows.
        path: the table, for messages.
        other: columns with another meaning.
        classes: names of the labels; columns may be named like them in upper or lower case.

    Raises:
        DataError: naming the row that is not 1 in exactly one column and 0 in the others.
    """
    names = {name.casefold(): name for name in classes}
    flags = [
        column
        for column in rows[0][1]
        if column.casefold() in names
        or (column not in other and all(whole_number(row[column]) in (0, 1) for _, row in rows))
    ]
    labelled = []
    for line, row in rows:
        marked = [column for column in flags if whole_number(row[column]) == 1]
        if len(marked) != 1 or any(whole_number(row[column]) not in (0, 1) for column in flags):
            cells = ", ".join(f"{column} {row[column] or 'empty'}" for column in flags)
            raise DataError(f"{path}:{line}: expected 1 in one column and 0 in the others; found {cells}")
        labelled.append((line, {**row, "label": names.get(marked[0].casefold(), marked[0])}))
    return labelled
