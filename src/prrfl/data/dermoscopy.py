"""The published layout: images in ``data/<site>/img_resize<P>/``, tables in ``csv_folder/<site>/``."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prrfl.data.images import SPLITS, Entry, load_entries
from prrfl.errors import DataError, nearest
from prrfl.types import SiteData, Split

CLASSES = ("nv", "bkl", "mel")
SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Row:
    """One line of a site's table."""

    image_id: str
    label: int
    lesion: str | None = None


def load_sites(
    folder: Path, *, image_size: int, classes: Sequence[str] = CLASSES, allow_missing: bool = False
) -> list[SiteData]:
    """Load every site of a folder, decoding each image once.

    Args:
        folder: holds ``data/`` and ``csv_folder/``.
        image_size: side in pixels; images of another size are resized (bilinear, antialiased).
        classes: names of the labels 0, 1, ...
        allow_missing: leave out images that a table names but nobody has, instead of refusing.

    Raises:
        DataError: naming the file, line or site at fault, what was expected and the mend.
    """
    return [
        load_site(folder, site, image_size=image_size, classes=classes, allow_missing=allow_missing)
        for site in find_sites(folder)
    ]


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
        if not (folder / "data" / site).is_dir():
            raise DataError(f"site {site} has tables but no images: {folder / 'data' / site} is not there")
    return sites


def load_site(
    folder: Path,
    site: str,
    *,
    image_size: int,
    classes: Sequence[str] = CLASSES,
    allow_missing: bool = False,
) -> SiteData:
    """Load one site; see :func:`load_sites`."""
    entries = site_entries(folder, site, image_size=image_size, classes=classes)
    (data,) = load_entries(entries, image_size=image_size, classes=classes, allow_missing=allow_missing)
    return data


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
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"table {path} is not there; expected one for each split that is used: for validation, "
            "hold out about 10 % of the training rows"
        ) from None
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"table {path} cannot be read as UTF-8 text: {cause}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[Row] = []
    seen: dict[str, int] = {}
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        for needed in ("image_id", "label"):
            if needed not in columns:
                raise DataError(
                    f"table {path} has no column '{needed}'{nearest(needed, columns)}; "
                    f"its columns are {', '.join(columns) or 'none'}"
                )
        for cells in reader:
            row = _row(cells, f"{path}:{reader.line_num}", classes)
            if row.image_id in seen:
                raise DataError(
                    f"{path}:{reader.line_num}: image '{row.image_id}' stands on line {seen[row.image_id]} "
                    "already; keep one of the two"
                )
            seen[row.image_id] = reader.line_num
            rows.append(row)
    except csv.Error as cause:
        raise DataError(f"{path}:{reader.line_num} is no CSV: {cause}") from None
    if not rows:
        raise DataError(f"table {path} is empty; expected a header and at least one image")
    return rows


def _row(cells: Mapping[str | None, str | None], where: str, classes: Sequence[str]) -> Row:
    image_id, label = (cells["image_id"] or "").strip(), (cells["label"] or "").strip()
    known = ", ".join(f"{k} = {name}" for k, name in enumerate(classes))
    if not (label.isascii() and label.isdigit() and int(label) < len(classes)):
        raise DataError(f"{where}: label '{label}' is outside the classes; expected {known}")
    if not image_id or Path(image_id).name != image_id or "\0" in image_id:
        raise DataError(f"{where}: image_id '{image_id}' is no plain name; expected one like ISIC_0024310")
    name = Path(image_id)
    lesion = (cells.get("lesion_id") or "").strip()
    return Row(
        image_id=name.stem if name.suffix.lower() in SUFFIXES else image_id,
        label=int(label),
        lesion=lesion if lesion not in ("", "0", "1") else None,
    )


def _image_folder(site: Path, image_size: int) -> Path:
    """Return the smallest stored size that is no smaller than asked for, or else the largest."""
    sizes = {
        int(path.name.removeprefix("img_resize")): path
        for path in site.iterdir()
        if path.is_dir() and path.name.removeprefix("img_resize").isdigit()
    }
    if not sizes:
        raise DataError(f"{site} holds no folder img_resize<P>; expected img_resize128, say, with the images")
    enough = [size for size in sizes if size >= image_size]
    return sizes[min(enough) if enough else max(sizes)]
