"""Manifests from data sets as people have them: a folder per class, or a table with other columns."""

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prrfl.data.columns import is_one_hot, whole_number
from prrfl.data.files import IMAGE_SUFFIXES, walk
from prrfl.data.manifest import COLUMNS
from prrfl.data.tables import is_plain_name, read_rows
from prrfl.errors import DataError, nearest
from prrfl.types import Split

SPLIT_NAMES: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits, in lower case."""


@dataclass(frozen=True)
class Imported:
    """A manifest's rows, and what was found on the way.

    Attributes:
        rows: cells by column, of which ``path`` is absolute; columns of the source that a manifest does not
            need follow.
        classes: names of the labels 0, 1, ...
        passed_over: numbers of files and rows that were left out, by reason.
    """

    rows: list[dict[str, str]]
    classes: tuple[str, ...]
    passed_over: Counter[str]


def from_folders(folder: Path, classes: Sequence[str] = (), site: str = "all") -> Imported:
    """Return the images of a folder with a folder per class, or with one for each split, then class.

    Args:
        folder: ``<class>/*.png``, or ``train/<class>/*.png`` and so on, at any depth below the class.
        classes: names of the labels; by default all classes, sorted. Images of others are left out.
        site: name of the site.

    Raises:
        DataError: if the folder does not look like that, or the site cannot have that name.
    """
    _check_site(site, "--site")
    images, passed_over = walk(folder, IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"folder {folder} holds no image; expected a folder for each class")
    splits = {path.relative_to(folder).parts[0].casefold() in SPLIT_NAMES for path in images}
    if len(splits) > 1:
        raise DataError(
            f"folder {folder} holds folders of splits, such as train, beside others; expected either splits "
            "or classes"
        )
    depth = 1 if splits == {True} else 0
    found = []
    for path in images:
        parts = path.relative_to(folder).parts
        if len(parts) < depth + 2:
            raise DataError(f"image {path} is in no folder of a class; expected {folder}/CLASS/IMAGE")
        split = SPLIT_NAMES[parts[0].casefold()] if depth else "train"
        found.append((path, parts[depth], split))
    names = tuple(classes) or tuple(sorted({name for _, name, _ in found}))
    for name in names:
        if name not in {label for _, label, _ in found}:
            raise DataError(
                f"folder {folder} has no images of class {name}{nearest(name, {c for _, c, _ in found})}"
            )
    rows = []
    for path, name, split in found:
        if name in names:
            rows.append(
                {"path": str(path.absolute()), "label": name, "site": site, "split": split, "group": ""}
            )
        else:
            passed_over[f"images of class {name}"] += 1
    return Imported(rows, names, +passed_over)


def from_table(
    table: Path,
    columns: Mapping[str, str],
    images: Path | None = None,
    classes: Sequence[str] = (),
    site: str = "all",
) -> Imported:
    """Return the rows of a table as those of a manifest.

    Args:
        table: a CSV, with any columns. For a one-hot table, such as the ground truth of ISIC's challenges,
            name the classes, and no column of labels.
        columns: the table's column for each of path, label, site, split, group; by default the same name.
        images: folder of the images, searched at any depth; by default that of the table.
        classes: names of the labels; by default all labels, sorted. Rows of others are left out.
        site: name of the site, if the table has no column of sites.

    Raises:
        DataError: naming the table, and the column, row or image at fault.
    """
    if unknown := sorted(columns.keys() - set(COLUMNS)):
        raise DataError(
            f"--columns: unknown column '{unknown[0]}'{nearest(unknown[0], COLUMNS)}; expected some of "
            f"{', '.join(COLUMNS)}"
        )
    given = {name: columns.get(name, name) for name in COLUMNS}
    numbered = read_rows(table, [*columns.values()])
    if "label" not in columns and is_one_hot(list(numbered[0][1]), classes):
        numbered = read_rows(table, ["label"], classes=classes)
    header = numbered[0][1]
    if "path" not in columns and "path" not in header:
        given["path"] = "image_id" if "image_id" in header else "image"
    for name in ("path", "label"):
        if given[name] not in header:
            raise DataError(
                f"{table} has no column {given[name]}; name its column of {name}s with --columns "
                f"{name}=COLUMN; its columns are {', '.join(header)}"
            )
    files = _Files.below(images or table.parent)
    labels = {row[given["label"]] for _, row in numbered}
    names = tuple(classes) or tuple(sorted(labels, key=in_order))
    missing = [name for name in names if name not in labels]
    by_index = bool(missing) and all(whole_number(label) is not None for label in labels)
    passed_over = Counter[str]()
    rows = []
    for line, row in numbered:
        where = f"{table}:{line}"
        label = row[given["label"]]
        if not by_index and label not in names:
            passed_over[f"rows of class {label or '(empty)'}"] += 1
            continue
        place = row[given["site"]] if given["site"] in header else site
        _check_site(place, where)
        rows.append({
            "path": str(files.find(row[given["path"]], where)),
            "label": label,
            "site": place,
            "split": _split(row[given["split"]], where) if given["split"] in header else "train",
            "group": row.get(given["group"], ""),
            **{name: cell for name, cell in row.items() if name not in {*given.values(), *COLUMNS}},
        })  # fmt: skip
    if not rows:
        raise DataError(f"{table}: no row has one of the labels {', '.join(names)}")
    return Imported(rows, names, passed_over)


def _check_site(name: str, where: str) -> None:
    if not is_plain_name(name):
        raise DataError(f"{where}: invalid name of a site '{name}'; expected a name such as hospital-3")


def in_order(label: str) -> tuple[int, str]:
    """Return a key that sorts numbers by their value."""
    number = whole_number(label)
    return (-1 if number is None else number, label)


def _split(text: str, where: str) -> Split:
    """Return the split that a cell names: ``train``, ``Validation``, or as FLamby writes it, ``test_3``."""
    word = text.casefold().partition("_")[0]
    if word not in SPLIT_NAMES:
        raise DataError(
            f"{where}: unknown split '{text}'{nearest(word, SPLIT_NAMES)}; expected one of "
            f"{', '.join(SPLIT_NAMES)}"
        )
    return SPLIT_NAMES[word]


@dataclass(frozen=True)
class _Files:
    """The images below a folder, by relative path, by name, and by name without ending."""

    folder: Path
    by_name: Mapping[str, Sequence[Path]]

    @classmethod
    def below(cls, folder: Path) -> "_Files":
        if not folder.is_dir():
            raise DataError(f"folder {folder} of the images does not exist; give it with --images")
        found: dict[str, list[Path]] = {}
        for path in walk(folder, IMAGE_SUFFIXES)[0]:
            for name in {path.name, path.stem}:
                found.setdefault(name, []).append(path.absolute())
        return cls(folder, found)

    def find(self, name: str, where: str) -> Path:
        direct = self.folder / name
        if name and direct.is_file():
            return direct.absolute()
        places = self.by_name.get(name.replace("\\", "/").rpartition("/")[2], [])
        if len(places) == 1:
            return places[0]
        if not places:
            raise DataError(
                f"{where}: there is no image '{name}' below {self.folder}; give their folder with --images"
            )
        raise DataError(
            f"{where}: image '{name}' may be {places[0]} or {places[1]}; name it with its folder or ending"
        )


def manifest_of(rows: Sequence[Mapping[str, str]], folder: Path) -> str:
    """Return the text of a manifest in a folder: paths are relative to it, further columns stay."""
    text = io.StringIO()
    heads = [*COLUMNS, *(name for name in rows[0] if name not in COLUMNS)]
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    here = os.path.realpath(folder)
    for row in rows:
        writer.writerow({**row, "path": os.path.relpath(os.path.realpath(row["path"]), here)})
    return text.getvalue()
