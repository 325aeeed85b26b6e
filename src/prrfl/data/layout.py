"""The published layout: images in ``data/<site>/img_resize<P>/``, tables in ``csv_folder/<site>/``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prrfl.data.images import SPLITS, Entry
from prrfl.data.tables import index_below, is_plain_name, read_rows
from prrfl.errors import DataError
from prrfl.types import Split

CLASSES = ("nv", "bkl", "mel")
SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Row:
    """One line of a site's table."""

    image_id: str
    label: int
    lesion: str | None = None


def find_sites(folder: Path) -> list[str]:
    """Return the names of the sites, sorted: the folders under ``csv_folder``."""
    for part in (folder, folder / "csv_folder", folder / "data"):
        if not part.is_dir():
            raise DataError(
                f"folder {part} is not there; expected data/<site>/img_resize<P>/ and csv_folder/<site>/ "
                f"below {folder}"
            )
    sites = sorted(path.name for path in (folder / "csv_folder").iterdir() if path.is_dir())
    if not sites:
        raise DataError(f"{folder / 'csv_folder'} holds no site; expected one folder a site, with its tables")
    for site in sites:
        if not is_plain_name(site):
            raise DataError(
                f"{folder / 'csv_folder' / site}: this is no plain name of a site; rename the folder"
            )
        if not (folder / "data" / site).is_dir():
            raise DataError(f"site {site} has tables but no images: {folder / 'data' / site} is not there")
    return sites


def site_entries(
    folder: Path,
    site: str,
    *,
    image_size: int,
    classes: Sequence[str] = CLASSES,
    needed: Sequence[Split] = SPLITS,
) -> list[Entry]:
    """Return what one site's tables of the needed splits name, whether or not the images are there.

    The group is the lesion_id, where a table has one; D's tables have none, or flags 0 and 1 in its place.
    """
    images = _image_folder(folder / "data" / site, image_size)
    files = {path.stem: path for path in images.iterdir() if path.suffix.lower() in SUFFIXES}
    tables = {
        split: read_table(folder / "csv_folder" / site / f"{split}_{site}.csv", classes) for split in needed
    }
    return [
        Entry(files.get(row.image_id, images / f"{row.image_id}.png"), row.label, site, split, row.lesion)
        for split, rows in tables.items()
        for row in rows
    ]


def read_table(path: Path, classes: Sequence[str] = CLASSES) -> list[Row]:
    """Read a table with the columns image_id and label; further columns are left alone.

    Raises:
        DataError: naming the file and line.
    """
    if not path.exists():
        raise DataError(
            f"table {path} is not there; expected one for each split that is used: for validation, "
            "hold out about 10 % of the training rows"
        )
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for line, cells in read_rows(path, ("image_id", "label")):
        row = _row(cells, f"{path}:{line}", classes)
        if row.image_id in seen:
            raise DataError(
                f"{path}:{line}: image '{row.image_id}' stands on line {seen[row.image_id]} "
                "already; keep one of the two"
            )
        seen[row.image_id] = line
        rows.append(row)
    return rows


def _row(cells: Mapping[str, str], where: str, classes: Sequence[str]) -> Row:
    image_id, label, lesion = cells["image_id"], cells["label"], cells.get("lesion_id", "")
    known = ", ".join(f"{k} = {name}" for k, name in enumerate(classes))
    index = index_below(label, len(classes))
    if index is None:
        raise DataError(f"{where}: label '{label}' is outside the classes; expected {known}")
    if not is_plain_name(image_id):
        raise DataError(f"{where}: image_id '{image_id}' is no plain name; expected one like ISIC_0024310")
    name = Path(image_id)
    return Row(
        image_id=name.stem if name.suffix.lower() in SUFFIXES else image_id,
        label=index,
        lesion=lesion if lesion not in ("", "0", "1") else None,
    )


def _image_folder(site: Path, image_size: int) -> Path:
    """Return the smallest stored size that is no smaller than asked for, or else the largest."""
    sizes = {
        int(path.name.removeprefix("img_resize")): path
        for path in site.iterdir()
        if path.is_dir() and path.name.removeprefix("img_resize").isdecimal() and path.name.isascii()
    }
    if not sizes:
        raise DataError(f"{site} holds no folder img_resize<P>; expected img_resize128, say, with the images")
    enough = [size for size in sizes if size >= image_size]
    return sizes[min(enough) if enough else max(sizes)]
