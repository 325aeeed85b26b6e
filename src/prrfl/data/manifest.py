"""A manifest: one CSV that names every image, for data of one's own in any layout."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from prrfl.data.images import SPLITS, Entry
from prrfl.data.tables import index_below, is_plain_name, read_rows
from prrfl.errors import DataError, nearest

COLUMNS = ("path", "label", "site", "split", "group")


def read_manifest(path: Path, classes: Sequence[str]) -> list[Entry]:
    """Read a manifest: columns path, label, site, split and, if known, group.

    Args:
        path: the CSV. Paths in it are absolute, or relative to its folder.
        classes: names of the labels 0, 1, ...; a label is an index or a name.

    Raises:
        DataError: naming the file and line, what was expected and the mend.
    """
    entries: list[Entry] = []
    lines: dict[tuple[str, Path], int] = {}
    for line, cells in read_rows(path, COLUMNS[:-1], "manifest"):
        where = f"{path}:{line}"
        entry = _entry(cells, where, path.parent, classes)
        if (entry.site, entry.path) in lines:
            first = lines[entry.site, entry.path]
            raise DataError(f"{where}: {entry.path} stands on line {first} already; keep one of the two")
        lines[entry.site, entry.path] = line
        entries.append(entry)
    return entries


def _entry(cells: Mapping[str, str], where: str, folder: Path, classes: Sequence[str]) -> Entry:
    label, site = cells["label"], cells["site"]
    known = ", ".join(f"{k} = {name}" for k, name in enumerate(classes))
    index = classes.index(label) if label in classes else index_below(label, len(classes))
    if index is None:
        raise DataError(f"{where}: label '{label}' is outside the classes; expected {known}")
    if not is_plain_name(site):
        raise DataError(f"{where}: site '{site}' is no plain name; expected one like hospital-3")
    split = next((name for name in SPLITS if name == cells["split"]), None)
    if split is None:
        raise DataError(
            f"{where}: split '{cells['split']}' is unknown; expected {', '.join(SPLITS)}"
            f"{nearest(cells['split'], SPLITS)}"
        )
    if not cells["path"] or "\0" in cells["path"]:
        raise DataError(f"{where}: no path; expected an image's, relative to {folder}")
    return Entry(_resolved(folder / cells["path"]), index, site, split, cells.get("group") or None)


def manifest_csv(entries: Sequence[Entry], folder: Path) -> str:
    """Return entries as a manifest to be written into a folder; paths below or beside it are relative."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for e in entries:
        path = os.path.relpath(_resolved(e.path), _resolved(folder))
        writer.writerow([path, e.label, e.site, e.split, e.group or ""])
    return text.getvalue()


def _resolved(path: Path) -> Path:
    # Not by Path.resolve, to which a loop of links is an error.
    return Path(os.path.realpath(path))
