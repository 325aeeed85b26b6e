"""Manifests: a CSV that lists all images, for data in any layout."""

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
    """Read a manifest with the columns path, label, site, split and, optionally, group.

    Args:
        path: the CSV. Paths in it are absolute, or relative to its folder.
        classes: names of the labels 0, 1, ...; a label is an index or a name.

    Raises:
        DataError: naming the file and line, what was expected, and what to do.
    """
    entries: list[Entry] = []
    lines: dict[tuple[str, Path], int] = {}
    for line, cells in read_rows(path, COLUMNS[:-1], "manifest"):
        where = f"{path}:{line}"
        entry = _entry(cells, where, path.parent, classes)
        if (entry.site, entry.path) in lines:
            first = lines[entry.site, entry.path]
            raise DataError(f"{where}: {entry.path} is already on line {first}; keep one")
        lines[entry.site, entry.path] = line
        entries.append(entry)
    return entries


def _entry(cells: Mapping[str, str], where: str, folder: Path, classes: Sequence[str]) -> Entry:
    label, site = cells["label"], cells["site"]
    known = ", ".join(f"{k} = {name}" for k, name in enumerate(classes))
    index = classes.index(label) if label in classes else index_below(label, len(classes))
    if index is None:
        raise DataError(f"{where}: unknown label '{label}'; expected one of {known}")
    if not is_plain_name(site):
        raise DataError(f"{where}: invalid name of a site '{site}'; expected a name such as hospital-3")
    split = next((name for name in SPLITS if name == cells["split"]), None)
    if split is None:
        raise DataError(
            f"{where}: unknown split '{cells['split']}'; expected one of {', '.join(SPLITS)}"
            f"{nearest(cells['split'], SPLITS)}"
        )
    if not cells["path"] or "\0" in cells["path"]:
        raise DataError(
            f"{where}: the path is empty or invalid; expected the path of an image, relative to {folder}"
        )
    return Entry(_resolved(folder / cells["path"]), index, site, split, cells.get("group") or None)


def manifest_csv(entries: Sequence[Entry], folder: Path) -> str:
    """Return the text of a manifest in a folder, with paths relative to that folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for e in entries:
        path = os.path.relpath(_resolved(e.path), _resolved(folder))
        writer.writerow([path, e.label, e.site, e.split, e.group or ""])
    return text.getvalue()


def _resolved(path: Path) -> Path:
    # Path.resolve raises an error if links form a loop.
    return Path(os.path.realpath(path))
