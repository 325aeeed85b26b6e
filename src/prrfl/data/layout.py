"""The published layout: images in ``data/<site>/img_resize<P>/``, tables in ``csv_folder/<site>/``.

It is read and written here only.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prrfl.data.images import SPLITS, Entry
from prrfl.data.tables import LONGEST_NAME, index_below, is_plain_name, read_rows
from prrfl.errors import DataError
from prrfl.types import Split

CLASSES = ("nv", "bkl", "mel")
"""Names of the labels 0, 1, 2: melanocytic nevus, benign keratosis, melanoma."""

_SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class TableRow:
    """One line of a site's table."""

    image_id: str
    label: int
    lesion: str | None = None


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
    sites = sorted(path.name for path in (folder / "csv_folder").iterdir() if path.is_dir())
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
    return sites


def site_entries(
    folder: Path,
    site: str,
    *,
    image_size: int,
    classes: Sequence[str] = CLASSES,
    needed: Sequence[Split] = SPLITS,
) -> list[Entry]:
    """Return the images that one site's tables name, whether or not their files exist.

    The group of an image is its lesion_id. The tables of site D have none, or flags 0 and 1 in its place.

    Args:
        folder: the data set.
        site: the site's name.
        image_size: size in pixels; the best stored size is chosen.
        classes: names of the labels 0, 1, ...
        needed: the splits to read.

    Raises:
        DataError: naming the file, and the line if there is one.
    """
    images = _image_folder(folder / "data" / site, image_size)
    files = {path.stem: path for path in images.iterdir() if path.suffix.lower() in _SUFFIXES}
    tables = {split: read_table(table_path(folder, site, split), classes) for split in needed}
    return [
        Entry(files.get(row.image_id, images / f"{row.image_id}.png"), row.label, site, split, row.lesion)
        for split, rows in tables.items()
        for row in rows
    ]


def read_table(path: Path, classes: Sequence[str] = CLASSES) -> list[TableRow]:
    """Read a table with the columns image_id and label. A column lesion_id is read, others are ignored.

    Raises:
        DataError: naming the file and the line.
    """
    if not path.exists():
        raise DataError(
            f"table {path} is missing; expected one for each split that is used; for validation, hold out "
            "about 10 % of the training rows"
        )
    rows: list[TableRow] = []
    seen: dict[str, int] = {}
    for line, cells in read_rows(path, ("image_id", "label")):
        row = _row(cells, f"{path}:{line}", classes)
        if row.image_id in seen:
            raise DataError(
                f"{path}:{line}: image '{row.image_id}' is already on line {seen[row.image_id]}; keep one"
            )
        seen[row.image_id] = line
        rows.append(row)
    return rows


def _row(cells: Mapping[str, str], where: str, classes: Sequence[str]) -> TableRow:
    image_id, label, lesion = cells["image_id"], cells["label"], cells.get("lesion_id", "")
    known = ", ".join(f"{k} = {name}" for k, name in enumerate(classes))
    index = index_below(label, len(classes))
    if index is None:
        raise DataError(f"{where}: unknown label '{label}'; expected one of {known}")
    if not is_plain_name(image_id):
        raise DataError(f"{where}: invalid image_id '{image_id}'; expected a file name such as ISIC_0024310")
    name = Path(image_id)
    return TableRow(
        image_id=name.stem if name.suffix.lower() in _SUFFIXES else image_id,
        label=index,
        lesion=lesion if lesion not in ("", "0", "1") else None,
    )


def _image_folder(site: Path, image_size: int) -> Path:
    """Return the folder of the smallest size that is large enough, or of the largest size."""
    sizes = {
        int(path.name.removeprefix("img_resize")): path
        for path in site.iterdir()
        if path.is_dir() and path.name.removeprefix("img_resize").isdecimal() and path.name.isascii()
    }
    if not sizes:
        raise DataError(
            f"{site} holds no folder img_resize<P>; expected one with the images, such as img_resize128"
        )
    enough = [size for size in sizes if size >= image_size]
    return sizes[min(enough) if enough else max(sizes)]
