"""Manifests: a CSV that lists all images, for data in any layout."""

import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from prrfl.data.columns import NumberedRow, class_indices, group_ids, warn_of_ignored
from prrfl.data.files import is_file
from prrfl.data.images import SPLITS, Entry, other_columns
from prrfl.data.tables import is_plain_name, read_rows
from prrfl.errors import DataError, nearest
from prrfl.types import ClientId, Split

log = logging.getLogger("prrfl")
COLUMNS = ("path", "label", "site", "split", "group")


def read_manifest(path: Path, classes: Sequence[str], columns: Sequence[str] = ()) -> list[Entry]:
    """Read a manifest with the columns path, label, site, split and, optionally, group.

    Args:
        path: the CSV. Paths in it are absolute, or relative to its folder.
        classes: names of the labels 0, 1, ...; a label is an index or a name.
        columns: other columns that it may have, once only.

    Raises:
        DataError: naming the file and line, what was expected, and what to do.
    """
    rows = read_rows(path, COLUMNS[:-1], "manifest", (*COLUMNS[-1:], *columns), classes)
    cells = [row for _, row in rows]
    where = [f"{path}:{line}" for line, _ in rows]
    labels = class_indices([(at, row["label"]) for at, row in zip(where, cells, strict=True)], classes)
    warn_of_ignored(cells[0], "group", path)
    groups = group_ids([row.get("group", "") for row in cells], str(path))
    paths = _paths(rows, path)
    entries = [
        Entry(image, label, *_site_and_split(row, at), group, row)
        for image, label, row, at, group in zip(paths, labels, cells, where, groups, strict=True)
    ]
    first: dict[tuple[str, Path], int] = {}
    for entry, (line, _) in zip(entries, rows, strict=True):
        if (before := first.setdefault((entry.site, entry.path), line)) != line:
            raise DataError(f"{path}:{line}: {entry.path} is already on line {before}; keep one")
    return entries


def _site_and_split(cells: Mapping[str, str], where: str) -> tuple[ClientId, Split]:
    site = cells["site"]
    if not is_plain_name(site):
        raise DataError(f"{where}: invalid name of a site '{site}'; expected a name such as hospital-3")
    return site, split_of(cells["split"], where)


def split_of(text: str, where: str) -> Split:
    """Return the split that a manifest's cell names.

    Raises:
        DataError: if it names none.
    """
    for name in SPLITS:
        if name == text:
            return name
    raise DataError(
        f"{where}: unknown split '{text}'; expected one of {', '.join(SPLITS)}{nearest(text, SPLITS)}"
    )


def _paths(rows: Sequence[NumberedRow], manifest: Path) -> list[Path]:
    """Return the resolved paths of all images.

    Backslashes are read as slashes if no file has the name as it stands, but one has it with slashes.
    """
    paths: list[Path] = []
    replaced = 0
    for line, cells in rows:
        text = cells["path"]
        if not text or "\0" in text:
            raise DataError(
                f"{manifest}:{line}: the path is empty or invalid; expected the path of an image, "
                f"relative to {manifest.parent}"
            )
        if "\\" in text and not os.path.lexists(manifest.parent / text):
            if not is_file(manifest.parent / (slashed := text.replace("\\", "/"))):
                raise DataError(
                    f"{manifest}:{line}: there is no file {text}, which is written with backslashes, as on "
                    f"Windows, nor {slashed}; write paths with slashes, relative to {manifest.parent}"
                )
            text, replaced = slashed, replaced + 1
        paths.append(_resolved(manifest.parent / text))
    if replaced:
        log.warning("%s: %d paths have backslashes, which are read as slashes", manifest, replaced)
    return paths


def manifest_csv(entries: Sequence[Entry], folder: Path) -> str:
    """Return the text of a manifest in a folder, with paths relative to that folder.

    Other columns of the images' tables follow. A column that is called like one of the manifest's own is left
    out, with a warning.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if taken := {
        c for e in entries for c in COLUMNS if c != "label" and c in e.cells and "path" not in e.cells
    }:
        log.warning(
            "column %s of the tables is left out: in a manifest, its name has another meaning",
            ", ".join(sorted(taken)),
        )
    others = other_columns(entries, {*COLUMNS, "image_id", "lesion_id"})
    writer.writerow([*COLUMNS, *others])
    for e in entries:
        path = os.path.relpath(_resolved(e.path), _resolved(folder))
        writer.writerow(
            [path, e.label, e.site, e.split, e.group or "", *(e.cells.get(c, "") for c in others)]
        )
    return text.getvalue()


def _resolved(path: Path) -> Path:
    # Path.resolve raises an error if links form a loop.
    return Path(os.path.realpath(path))
