"""The published layout: images in ``data/<site>/img_resize<P>/``, tables in ``csv_folder/<site>/``.

It is read and written here only.
"""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prrfl.data.columns import class_indices, group_ids, warn_of_ignored
from prrfl.data.files import IMAGE_SUFFIXES, is_hidden, warn_of_passed_over
from prrfl.data.images import SPLITS, Entry
from prrfl.data.tables import LONGEST_NAME, is_plain_name, read_rows
from prrfl.errors import DataError
from prrfl.types import Split

CLASSES = ("nv", "bkl", "mel")
"""Names of the labels 0, 1, 2: melanocytic nevus, benign keratosis, melanoma."""

log = logging.getLogger("prrfl")


@dataclass(frozen=True)
class TableRow:
    """One line of a site's table.

    Attributes:
        image_id: name of the image, without the ending of its file.
        label: class index.
        lesion: the cell lesion_id; empty without one.
        ending: that of the file, such as ``.png``; empty if the table names none.
        where: table and line, for messages.
        cells: the whole line, by column.
    """

    image_id: str
    label: int
    lesion: str = ""
    ending: str = ""
    where: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)


def image_path(folder: Path, site: str, size: int, name: str) -> Path:
    """Return the path of an image by its site, size in pixels and name."""
    return folder / "data" / site / f"img_resize{size}" / f"{name}.png"


def table_path(folder: Path, site: str, split: Split) -> Path:
    """Return the path of the table of one split of a site."""
    return folder / "csv_folder" / site / f"{split}_{site}.csv"


def write_table(
    folder: Path, site: str, split: Split, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Write the table of one split of a site; the first columns are image_id and label."""
    path = table_path(folder, site, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def find_sites(folder: Path) -> list[str]:
    """Return the sorted names of the sites: the folders in ``csv_folder``.

    Raises:
        DataError: naming the folder that is missing, or the site with an invalid name.
    """
    for part in (folder, folder / "csv_folder", folder / "data"):
        if not part.is_dir():
            raise DataError(
                f"folder {part} is missing; expected data/<site>/img_resize<P>/ and csv_folder/<site>/ in "
                f"{folder}"
            )
    tables, images = folder / "csv_folder", folder / "data"
    sites = sorted(path.name for path in tables.iterdir() if path.is_dir() and not is_hidden(path.name))
    others = [path for path in (*tables.iterdir(), *images.iterdir()) if path.name not in sites]
    if not sites:
        raise DataError(f"{folder / 'csv_folder'} holds no site; expected one folder of tables for each")
    for site in sites:
        if not is_plain_name(site):
            raise DataError(
                f"{folder / 'csv_folder' / site}: invalid name of a site; use printable characters, and "
                f"at most {LONGEST_NAME} bytes"
            )
        if not (folder / "data" / site).is_dir():
            raise DataError(f"site {site} has tables but no images: {folder / 'data' / site} is missing")
    warn_of_passed_over(folder, Counter(_kind_of_other(path) for path in others))
    return sites


def _kind_of_other(path: Path) -> str:
    """Return the kind of a file or folder that is no site, though it is where sites are."""
    if is_hidden(path.name):
        return "hidden folders" if path.is_dir() else "hidden files"
    return f"folders of images without tables ({path.name})" if path.is_dir() else f"file {path.name}"


def site_entries(
    folder: Path,
    site: str,
    *,
    image_size: int,
    classes: Sequence[str] = CLASSES,
    needed: Sequence[Split] = SPLITS,
    columns: Sequence[str] = (),
) -> list[Entry]:
    """Return the images that one site's tables name, whether or not their files exist.

    The group of an image is its lesion_id. The tables of site D have none, or flags 0 and 1 in its place.

    Args:
        folder: the data set.
        site: the site's name.
        image_size: size in pixels; the best stored size is chosen.
        classes: names of the labels 0, 1, ...
        needed: the splits to read.
        columns: other columns that the tables may have, once only.

    Raises:
        DataError: naming the file, and the line if there is one.
    """
    images = _image_folder(folder / "data" / site, image_size)
    tables = {split: read_table(table_path(folder, site, split), classes, columns) for split in needed}
    rows = [(split, row) for split, table in tables.items() for row in table]
    paths = _find_files([row for _, row in rows], images, site)
    groups = group_ids([row.lesion for _, row in rows], f"site {site}, lesion_id", flags=True)
    return [
        Entry(path, row.label, site, split, group, row.cells)
        for (split, row), path, group in zip(rows, paths, groups, strict=True)
    ]


def _find_files(rows: Sequence[TableRow], folder: Path, site: str) -> list[Path]:
    """Return the file of each row, whether or not it exists.

    A name with an ending is the file of that type. If no row of the site has a file of the type that it
    names, the images were converted, and files are found by their names without endings.
    """
    stems: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name):
            stems[path.stem].append(path)
    converted = not any(_of_type(stems[row.image_id], row.ending) for row in rows if row.ending)
    paths: list[Path] = []
    others: list[str] = []
    for row in rows:
        found = stems[row.image_id]
        if row.ending and not converted:
            found = _of_type(found, row.ending)
            found = [path for path in found if path.suffix == row.ending] or found
        if len(found) > 1:
            raise DataError(
                f"{row.where}: image '{row.image_id}' may be {' or '.join(path.name for path in found)} in "
                f"{folder}; keep one file of the name, or write the ending in the table"
            )
        if row.ending and found and converted:
            others.append(found[0].name)
        paths.append(found[0] if found else folder / f"{row.image_id}{row.ending or '.png'}")
    if others:
        log.warning(
            "site %s: %d images are files of another type than the tables name, such as %s",
            site,
            len(others),
            others[0],
        )
    return paths


def _of_type(paths: Sequence[Path], ending: str) -> list[Path]:
    return [path for path in paths if _type(path.suffix) == _type(ending)]


def _type(ending: str) -> str:
    return {".jpeg": ".jpg", ".tiff": ".tif"}.get(ending.lower(), ending.lower())


def read_table(path: Path, classes: Sequence[str] = CLASSES, columns: Sequence[str] = ()) -> list[TableRow]:
    """Read a table with the columns image_id and label, and perhaps lesion_id. Others have no meaning here.

    Args:
        path: the table.
        classes: names of the labels 0, 1, ...
        columns: other columns that it may have, once only.

    Raises:
        DataError: naming the file and the line.
    """
    if not path.exists():
        raise DataError(
            f"table {path} is missing; expected one for each split that is used; for validation, hold out "
            "about 10 % of the training rows"
        )
    found = read_rows(path, ("image_id", "label"), optional=("lesion_id", *columns), classes=classes)
    warn_of_ignored(found[0][1], "lesion_id", path)
    labels = class_indices([(f"{path}:{line}", cells["label"]) for line, cells in found], classes)
    rows: list[TableRow] = []
    seen: dict[str, int] = {}
    for (line, cells), label in zip(found, labels, strict=True):
        image_id, where = cells["image_id"], f"{path}:{line}"
        if not is_plain_name(image_id):
            raise DataError(
                f"{where}: invalid image_id '{image_id}'; expected a file name such as ISIC_0024310"
            )
        name = Path(image_id)
        ending = name.suffix if name.suffix.lower() in IMAGE_SUFFIXES else ""
        row = TableRow(image_id.removesuffix(ending), label, cells.get("lesion_id", ""), ending, where, cells)
        if row.image_id in seen:
            raise DataError(
                f"{where}: image '{row.image_id}' is already on line {seen[row.image_id]}; keep one"
            )
        seen[row.image_id] = line
        rows.append(row)
    return rows


def _image_folder(site: Path, image_size: int) -> Path:
    """Return the folder of the smallest size that is large enough, or of the largest size."""
    sizes: dict[int, Path] = {}
    for path in sorted(site.iterdir()):
        size = path.name.removeprefix("img_resize")
        if not (path.is_dir() and size.isdecimal() and path.name.isascii()):
            continue
        if (other := sizes.setdefault(int(size), path)) != path:
            raise DataError(f"{site} holds {other.name} and {path.name}, which are one size; keep one")
    if not sizes:
        raise DataError(
            f"{site} holds no folder img_resize<P>; expected one with the images, such as img_resize128"
        )
    enough = [size for size in sizes if size >= image_size]
    return sizes[min(enough) if enough else max(sizes)]
