"""A manifest: one CSV that names every image, for data of one's own in any layout."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from prrfl.data.images import SPLITS, Entry
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
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"manifest {path} cannot be read as UTF-8 text: {cause}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    entries: list[Entry] = []
    lines: dict[tuple[str, Path], int] = {}
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        for needed in COLUMNS[:-1]:
            if needed not in columns:
                raise DataError(
                    f"manifest {path} has no column '{needed}'{nearest(needed, columns)}; "
                    f"its columns are {', '.join(columns) or 'none'}"
                )
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            entry = _entry({k: (cells.get(k) or "").strip() for k in COLUMNS}, where, path.parent, classes)
            if (entry.site, entry.path) in lines:
                first = lines[entry.site, entry.path]
                raise DataError(f"{where}: {entry.path} stands on line {first} already; keep one of the two")
            lines[entry.site, entry.path] = reader.line_num
            entries.append(entry)
    except csv.Error as cause:
        raise DataError(f"{path}:{reader.line_num} is no CSV: {cause}") from None
    if not entries:
        raise DataError(f"manifest {path} is empty; expected a header and at least one image")
    return entries


def _entry(cells: Mapping[str, str], where: str, folder: Path, classes: Sequence[str]) -> Entry:
    label, site = cells["label"], cells["site"]
    known = ", ".join(f"{k} = {name}" for k, name in enumerate(classes))
    if label in classes:
        index = classes.index(label)
    elif label.isascii() and label.isdigit() and int(label) < len(classes):
        index = int(label)
    else:
        raise DataError(f"{where}: label '{label}' is outside the classes; expected {known}")
    if not site or Path(site).name != site or "\0" in site:
        raise DataError(f"{where}: site '{site}' is no plain name; expected one like hospital-3")
    split = next((name for name in SPLITS if name == cells["split"]), None)
    if split is None:
        raise DataError(
            f"{where}: split '{cells['split']}' is unknown; expected {', '.join(SPLITS)}"
            f"{nearest(cells['split'], SPLITS)}"
        )
    if not cells["path"] or "\0" in cells["path"]:
        raise DataError(f"{where}: no path; expected an image's, relative to {folder}")
    return Entry((folder / cells["path"]).resolve(), index, site, split, cells["group"] or None)


def manifest_csv(entries: Sequence[Entry], folder: Path) -> str:
    """Return entries as a manifest to be written into a folder; paths below or beside it are relative."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for e in entries:
        path = os.path.relpath(e.path.resolve(), folder.resolve())
        writer.writerow([path, e.label, e.site, e.split, e.group or ""])
    return text.getvalue()
