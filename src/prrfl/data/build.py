"""Build the four-site data set from the public archives of HAM10000 and ISIC 2017, as folders or zips."""

import io
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from PIL import Image

from prrfl.data.columns import group_ids, whole_number
from prrfl.data.files import IMAGE_SUFFIXES, check_free, is_hidden, unread_name, walk
from prrfl.data.images import MAX_BYTES, SPLITS, Entry, other_columns, read_image
from prrfl.data.layout import CLASSES, image_path, write_table
from prrfl.data.split import Shares, split
from prrfl.data.tables import is_plain_name, read_rows
from prrfl.errors import DataError
from prrfl.storage.atomic import replace_folder
from prrfl.storage.reading import opened, read_bytes

SITES = {"vidir_modern": "clientA", "vidir_molemax": "clientB", "rosendahl": "clientC"}
"""Sites by HAM10000's sources. Its few images of ``vienna_dias`` are not used."""

ISIC = "clientD"


@dataclass(frozen=True)
class Place:
    """Where an image is.

    Attributes:
        path: its file, or a zip.
        member: its name in the zip; empty for a file.
    """

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return str(self.path / self.member)

    def read(self) -> bytes:
        """Return the bytes of the image's file.

        Raises:
            DataError: if it cannot be read, or its zip is damaged.
        """
        if self.member:
            return _unzip(self.path, self.member)
        try:
            return read_bytes(self.path, MAX_BYTES)
        except OSError as cause:
            raise DataError(f"image {self.path} cannot be read: {cause}") from None


@dataclass(frozen=True)
class ImageSource:
    """Images by name, in folders and zips.

    Attributes:
        places: image name to all files of that name.
        passed_over: number of files that were passed over, by kind.
    """

    places: Mapping[str, Sequence[Place]]
    passed_over: Counter[str]

    def read(self, name: str) -> tuple[Path, BinaryIO]:
        """Return an image's path, for messages, and its file.

        Raises:
            DataError: if it cannot be read, or if several files of its name differ.
        """
        first, *others = self.places[name]
        content = first.read()
        for other in others:
            if other.read() != content:
                raise DataError(f"image '{name}' may be {first} or {other}, which differ; keep one of them")
        return first.path / first.member, io.BytesIO(content)


def _unzip(path: Path, member: str) -> bytes:
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            if archive.getinfo(member).file_size > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
            return archive.read(member)
    # Each kind of compression raises its own exceptions on damaged members; all mean the same to the user.
    except Exception as cause:
        reason = " ".join(str(cause).split())
        raise DataError(f"{path}: {member} cannot be read ({reason}); download the archive again") from None


def index_images(places: Sequence[Path]) -> ImageSource:
    """Return all images in folders (and zips within them) and zips, without superpixel masks.

    Raises:
        DataError: if a folder or zip is missing, or a zip is damaged.
    """
    found: defaultdict[str, list[Place]] = defaultdict(list)
    others = Counter[str]()
    for place in dict.fromkeys(Path(os.path.realpath(place)) for place in places):
        if not place.exists():
            raise DataError(f"{place} is missing; expected a folder or a zip of images")
        paths = [place]
        if place.is_dir():
            paths, passed_over = walk(place, IMAGE_SUFFIXES | {".zip"})
            others.update(passed_over)
        for one in (one for path in paths for one in _places(path)):
            if kind := _unread(PurePath(one.member or one.path.name)):
                others[kind] += 1
            else:
                found[PurePath(one.member or one.path).stem].append(one)
    return ImageSource(found, others)


def _places(path: Path) -> list[Place]:
    """Return a file, or what a zip holds except folders."""
    if path.suffix.lower() != ".zip":
        return [Place(path)]
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            return [Place(path, member) for member in archive.namelist() if not member.endswith("/")]
    # A damaged directory raises many kinds of exceptions; all mean the same to the user.
    except Exception as cause:
        raise DataError(f"{path} is not a complete zip: {' '.join(str(cause).split())}") from None


def _unread(path: PurePath) -> str:
    """Return why a file with this path in a zip or folder is passed over; an empty text if it is an image."""
    if any(is_hidden(part) for part in path.parts[:-1]):
        return "hidden files"
    return unread_name(path, IMAGE_SUFFIXES) or (
        "superpixel masks" if path.stem.endswith("_superpixels") else ""
    )


def ham_entries(table: Path) -> tuple[list[Entry], Counter[str]]:
    """Return HAM10000's images of the three classes and sites, and counts of the others by reason.

    Raises:
        DataError: if the table cannot be read.
    """
    columns = ("lesion_id", "image_id", "dx", "dataset")
    if "dataset" not in read_rows(table, columns[:-1])[0][1]:
        raise DataError(
            f"{table} has no column 'dataset', which names the sites and which Kaggle's copy "
            "lacks; the whole table is HAM10000_metadata at https://doi.org/10.7910/DVN/DBW86T"
        )
    used, left_out = [], Counter[str]()
    rows = _read(table, columns)
    groups = group_ids([row["lesion_id"] for row in rows], f"{table}, lesion_id")
    for row, group in zip(rows, groups, strict=True):
        if row["dataset"] not in SITES:
            left_out[f"source {row['dataset']}"] += 1
        elif row["dx"] not in CLASSES:
            left_out[f"diagnosis {row['dx']}"] += 1
        else:
            label = CLASSES.index(row["dx"])
            site = SITES[row["dataset"]]
            used.append(Entry(Path(row["image_id"]), label, site, "train", group, row))
    return used, left_out


def isic_entries(table: Path) -> list[Entry]:
    """Return ISIC 2017's images: melanoma is mel, seborrheic keratosis bkl, everything else nv.

    Raises:
        DataError: if the table cannot be read, or a cell is not 0 or 1, or both are 1.
    """
    entries = []
    for row in _read(table, ("image_id", "melanoma", "seborrheic_keratosis")):
        melanoma, keratosis = (whole_number(row[name]) for name in ("melanoma", "seborrheic_keratosis"))
        if {melanoma, keratosis} - {0, 1} or melanoma == keratosis == 1:
            raise DataError(
                f"{table}: image {row['image_id']}: melanoma '{row['melanoma']}' and seborrheic_keratosis "
                f"'{row['seborrheic_keratosis']}'; expected 0 or 1, and at most one 1"
            )
        label = 2 if melanoma else keratosis or 0
        entries.append(Entry(Path(row["image_id"]), label, ISIC, "train", cells=row))
    return entries


def _read(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return a table's rows, checked: one for each image, and no cell empty but the lesion's."""
    rows = read_rows(table, columns)
    seen: dict[str, int] = {}
    for line, row in rows:
        for column in columns:
            if column != "lesion_id" and not row[column]:  # only the lesion may be unknown
                raise DataError(f"{table}:{line}: {column} is empty; complete the row, or remove it")
        name = row["image_id"]
        if not is_plain_name(name):
            raise DataError(
                f"{table}:{line}: invalid image_id '{name}'; expected a file name such as ISIC_0024310"
            )
        if (before := seen.setdefault(name, line)) != line:
            raise DataError(f"{table}:{line}: image '{name}' is already on line {before}; keep one")
    return [row for _, row in rows]


def build(
    entries: Sequence[Entry],
    source: ImageSource,
    out: Path,
    image_size: int = 128,
    seed: int = 0,
    seen: Callable[[int], None] | None = None,
) -> list[str]:
    """Write a data set in the published layout, with new splits of 70, 10 and 20 %, complete or not at all.

    Args:
        entries: the images, from :func:`ham_entries` and :func:`isic_entries`.
        source: their files.
        out: the folder to create.
        image_size: side in pixels.
        seed: seed of the splits.
        seen: called with the number of images written so far.

    Returns:
        Names of the images that are missing from the source; they are left out.

    Raises:
        DataError: if the folder is not empty, all images are missing, one is damaged, or a class of a site
            has too few groups for three splits.
    """
    check_free(out)
    missing = [e.name for e in entries if e.name not in source.places]
    present = [e for e in entries if e.name in source.places]
    if not present:
        raise DataError("none of the images in the tables is in the folders and zips; check their paths")
    placed = split(present, Shares(0.1, 0.2), seed, classes=CLASSES)
    columns = ("image_id", "label", "lesion_id")
    others = other_columns(placed, columns)  # the same at all sites, such as age and sex
    with replace_folder(out) as temporary:
        for count, entry in enumerate(placed, start=1):
            target = image_path(temporary, entry.site, image_size, entry.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            path, file = source.read(entry.name)
            Image.fromarray(read_image(path, image_size, file)).save(target)
            if seen:
                seen(count)
        for site in sorted({e.site for e in placed}):
            for part in SPLITS:
                rows = [
                    (e.name, e.label, e.group or "", *(e.cells.get(c, "") for c in others))
                    for e in placed
                    if (e.site, e.split) == (site, part)
                ]
                write_table(temporary, site, part, (*columns, *others), rows)
    return missing
