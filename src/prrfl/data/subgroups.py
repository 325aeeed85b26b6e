"""Subgroups of test images, by columns of the data's tables that a user names: ``age:40+60,sex``."""

import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prrfl.data.columns import UNKNOWN
from prrfl.data.images import Entry
from prrfl.data.layout import table_path
from prrfl.data.own import is_own_data
from prrfl.data.sources import npz_files, read_entries
from prrfl.errors import ConfigError, DataError, nearest
from prrfl.types import UNKNOWN_SUBGROUP, ClientId, Partition, Predictions

AGE = (40.0, 60.0)
"""Edges of a column of numbers that is called age, unless others are given. In years."""

MOST_SUBGROUPS = 30
"""Subgroups of a column. More would have few images each, and many tests find nothing."""

log = logging.getLogger("prrfl")


@dataclass(frozen=True)
class SubgroupColumn:
    """A column to divide images by.

    Attributes:
        name: its name in the tables.
        edges: ascending numbers at which its values are divided; each belongs to the subgroup above it. Empty
            if each value is a subgroup.
    """

    name: str
    edges: tuple[float, ...] = ()


def parse_columns(text: str) -> tuple[SubgroupColumn, ...]:
    """Return the columns that a user names, such as ``age:40+60,sex``.

    Raises:
        ConfigError: naming the part that is not a column, or not ascending numbers.
    """
    found: list[SubgroupColumn] = []
    for part in (part.strip() for part in text.split(",")):
        name, colon, rest = part.partition(":")
        try:
            edges = tuple(map(float, rest.split("+"))) if colon else ()
        except ValueError:
            edges = (math.nan,)
        if not name or not all(map(math.isfinite, edges)) or sorted(set(edges)) != list(edges):
            raise ConfigError(
                f"--subgroups: '{part}' is not a column; separate columns by commas, and give those that are "
                "to be divided ascending numbers as edges, as in age:40+60,sex"
            )
        if name in (column.name for column in found):
            raise ConfigError(f"--subgroups: column '{name}' is given twice; give each once")
        found.append(SubgroupColumn(name, edges))
    return tuple(found)


@dataclass(frozen=True)
class TestTables:
    """The rows of the test images of sites.

    Attributes:
        columns: columns to divide images by, which all sites have.
        rows: by site.
    """

    columns: tuple[SubgroupColumn, ...] = ()
    rows: Mapping[ClientId, Sequence[Entry]] = field(default_factory=dict)

    def divide(self, predictions: Mapping[ClientId, Predictions]) -> list[Partition]:
        """Return the subgroups of the predicted images, one partition for each column.

        Rows and predictions are matched by site and name of the image.

        Raises:
            DataError: naming the image that the tables lack or label differently, the cell that is not a
                number, or the column with too many values.
        """
        named = {column.name: _subgroups(column, self.rows) for column in self.columns}
        if not named:
            return []
        matched = {site: _matched(self.rows[site], found, site) for site, found in predictions.items()}
        return [_partition(column, names, matched) for column, names in named.items()]


def read_tables(
    source: Path,
    columns: Sequence[SubgroupColumn],
    sites: Sequence[ClientId],
    *,
    classes: Sequence[str],
    image_size: int,
) -> TestTables:
    """Return the rows of the test images of sites.

    Args:
        source: the data: a folder in the published layout, or a manifest.
        columns: columns that each site must have.
        sites: the sites. A single one may have another name in the data.
        classes: names of the labels 0, 1, ...
        image_size: side of the images in pixels, as in training.

    Raises:
        DataError: naming the table and the column that it lacks, or the site that is missing.
    """
    if is_own_data(source):
        raise DataError(f"--subgroups: data {source} is code, and has no tables with columns; leave it out")
    if npz_files(source):
        raise DataError(
            f"--subgroups: {source} holds arrays, which have no columns; give image files with a manifest CSV"
        )
    names = [column.name for column in columns]
    read = read_entries(source, image_size=image_size, classes=classes, needed=("test",), columns=names)
    entries = [entry for entry in read if entry.split == "test"]
    known = sorted({entry.site for entry in entries})
    elsewhere = {column for entry in entries for column in entry.cells}
    rows: dict[ClientId, list[Entry]] = {}
    for site in sites:
        there = known[0] if len(known) == len(sites) == 1 else site
        if there not in known:
            raise DataError(f"{source} has no test images of site '{site}'; its sites are {', '.join(known)}")
        rows[site] = [entry for entry in entries if entry.site == there]
        table = table_path(source, there, "test") if source.is_dir() else source
        _check_columns(table, rows[site][0].cells, names, elsewhere)
    return TestTables(tuple(columns), rows)


def _check_columns(
    table: Path, cells: Mapping[str, str], names: Iterable[str], elsewhere: Collection[str]
) -> None:
    for name in names:
        if name not in cells:
            hint = "" if name in elsewhere else nearest(name, cells)  # a column of other sites is no typo
            raise DataError(
                f"--subgroups: {table} has no column '{name}'{hint}; its columns are "
                f"{', '.join(cells)}; name another one, or add it (an empty cell is read as unknown)"
            )


def _matched(entries: Sequence[Entry], predictions: Predictions, site: ClientId) -> list[Entry]:
    """Return the row of each predicted image.

    Images in several folders may have the same name; the first in the table is the first in the predictions.
    """
    rows = dict(zip(_numbered([entry.name for entry in entries]), entries, strict=True))
    found: list[Entry] = []
    for key, label in zip(_numbered(predictions.ids), predictions.labels.tolist(), strict=True):
        row = rows.get(key)
        if row is None or row.label != label:
            what = "is missing in" if row is None else "has another label in"
            raise DataError(
                f"--subgroups: test image '{key[0]}' of site {site} {what} the data's tables; give the data "
                "that the network was tested on"
            )
        found.append(row)
    return found


def _numbered(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return each name with the number of times that it occurred before."""
    before: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, before[name]))
        before[name] += 1
    return numbered


def _partition(
    column: str, names: Mapping[str, str], matched: Mapping[ClientId, Sequence[Entry]]
) -> Partition:
    members = {
        site: tuple(names.get(row.cells[column], UNKNOWN_SUBGROUP) for row in rows)
        for site, rows in matched.items()
    }
    shown = {name for of_site in members.values() for name in of_site}
    order = [name for name in dict.fromkeys([*names.values(), UNKNOWN_SUBGROUP]) if name in shown]
    return Partition(column, tuple(order), members)


def _subgroups(column: SubgroupColumn, rows: Mapping[ClientId, Sequence[Entry]]) -> dict[str, str]:
    """Return the subgroup of each text in a column that is not unknown, in the order of the subgroups.

    Whether a column holds numbers is decided by all its cells.
    """
    cells = [(site, row.name, row.cells[column.name]) for site, found in rows.items() for row in found]
    known = [cell for cell in cells if cell[2].casefold() not in UNKNOWN]
    numbers = {text: number for _, _, text in known if (number := _number(text)) is not None}
    of_texts = [cell for cell in known if cell[2] not in numbers]
    if column.edges and of_texts:
        site, image, text = of_texts[0]
        raise DataError(
            f"--subgroups {column.name}: site {site}, image '{image}': '{text}' is not a number; leave out "
            "the edges, or correct the cell (an empty one is read as unknown)"
        )
    if of_texts:
        named = {text: " ".join(text.split()) for text in sorted({text for _, _, text in known})}
        _warn_of_variants(column.name, list(named))
        advice = "name a coarser one"
    else:
        ordered = sorted(numbers.items(), key=lambda item: item[1])
        edges = column.edges or (AGE if column.name.casefold() == "age" else ())
        # 17 and 17.0 are one value.
        named = {text: _bin(number, edges) if edges else f"{number:.15g}" for text, number in ordered}
        middle = f"{ordered[len(ordered) // 2][1]:.15g}" if ordered else ""
        advice = f"divide its numbers, for instance in the middle: {column.name}:{middle}"
    if (count := len(set(named.values()))) > MOST_SUBGROUPS:
        raise DataError(
            f"--subgroups: column '{column.name}' has {count} different values; at most {MOST_SUBGROUPS} can "
            f"be subgroups; {advice}"
        )
    return named


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _bin(number: float, edges: Sequence[float]) -> str:
    """Return the name of the subgroup between edges that a number is in."""
    above = bisect_right(edges, number)
    if above == 0:
        return f"<{edges[0]:.15g}"
    if above == len(edges):
        return f">={edges[-1]:.15g}"
    return f"{edges[above - 1]:.15g} to <{edges[above]:.15g}"


def _warn_of_variants(column: str, values: Sequence[str]) -> None:
    """Warn of values that differ in upper and lower case only."""
    first: dict[str, str] = {}
    for value in values:
        if (other := first.setdefault(value.casefold(), value)) != value:
            log.warning(
                "--subgroups: column %s holds '%s' and '%s', which are read as different; write them alike "
                "if they mean the same",
                column,
                other,
                value,
            )
