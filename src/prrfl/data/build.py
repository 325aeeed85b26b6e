"""Build the four-site data set from the public archives of HAM10000 and ISIC 2017, as folders or zips."""

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from prrfl.data.images import MAX_BYTES, SPLITS, Entry, read_image
from prrfl.data.layout import CLASSES, image_path, write_table
from prrfl.data.split import split
from prrfl.data.tables import is_plain_name, read_rows
from prrfl.errors import DataError
from prrfl.storage.atomic import replace_folder
from prrfl.storage.reading import opened

SITES = {"vidir_modern": "clientA", "vidir_molemax": "clientB", "rosendahl": "clientC"}
"""Sites by HAM10000's sources. Its few images of ``vienna_dias`` are not used."""

ISIC = "clientD"


@dataclass(frozen=True)
class ImageSource:
    """Images by name, in folders and zips.

    Attributes:
        files: image name to its file, or to its zip and the name in it.
    """

    files: Mapping[str, tuple[Path, str | None]]

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one image for reading.

        Raises:
            DataError: if the file cannot be read, or its zip is damaged.
        """
        path, member = self.files[name]
        if member is None:
            try:
                file = opened(path)
            except OSError as cause:
                raise DataError(f"image {path} cannot be read: {cause}") from None
            with file:
                yield file
        else:
            yield io.BytesIO(_unzip(path, member))

    def where(self, name: str) -> Path:
        """Return the path of an image for messages: its file, or its name within its zip."""
        path, member = self.files[name]
        return path if member is None else path / member


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
    files: dict[str, tuple[Path, str | None]] = {}
    for place in places:
        if not place.exists():
            raise DataError(f"{place} is missing; expected a folder or a zip of images")
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix.lower() == ".zip":
                try:
                    with opened(path) as file, zipfile.ZipFile(file) as archive:
                        members = archive.namelist()
                # A damaged directory raises many kinds of exceptions; all mean the same to the user.
                except Exception as cause:
                    raise DataError(f"{path} is not a complete zip: {' '.join(str(cause).split())}") from None
                files |= {Path(m).stem: (path, m) for m in members if _is_image(m)}
            elif _is_image(path.name):
                files[path.stem] = (path, None)
    return ImageSource(files)


def _is_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in {".jpg", ".jpeg", ".png"} and not path.stem.endswith("_superpixels")


def ham_entries(table: Path) -> tuple[list[Entry], Counter[str]]:
    """Return HAM10000's images of the three classes and sites, and counts of the others by reason.

    Raises:
        DataError: if the table cannot be read.
    """
    used, left_out = [], Counter[str]()
    for row in _read(table, ("lesion_id", "image_id", "dx", "dataset")):
        if row["dataset"] not in SITES:
            left_out[f"source {row['dataset']}"] += 1
        elif row["dx"] not in CLASSES:
            left_out[f"diagnosis {row['dx']}"] += 1
        else:
            label = CLASSES.index(row["dx"])
            site = SITES[row["dataset"]]
            used.append(Entry(Path(row["image_id"]), label, site, "train", row["lesion_id"] or None))
    return used, left_out


def isic_entries(table: Path) -> list[Entry]:
    """Return ISIC 2017's images: melanoma is mel, seborrheic keratosis bkl, everything else nv.

    Raises:
        DataError: if the table cannot be read.
    """
    return [
        Entry(
            Path(row["image_id"]),
            2 if is_positive(row["melanoma"]) else int(is_positive(row["seborrheic_keratosis"])),
            ISIC,
            "train",
        )
        for row in _read(table, ("image_id", "melanoma", "seborrheic_keratosis"))
    ]


def is_positive(text: str) -> bool:
    """Return whether a cell of ISIC's table is 1, written ``1`` or ``1.0``."""
    return text in ("1", "1.0")


def _read(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    rows = read_rows(table, columns)
    for line, row in rows:
        for column in columns:
            if column != "lesion_id" and not row[column]:  # only the lesion may be unknown
                raise DataError(f"{table}:{line}: {column} is empty; complete the row, or remove it")
        name = row["image_id"]
        if not is_plain_name(name):
            raise DataError(
                f"{table}:{line}: invalid image_id '{name}'; expected a file name such as ISIC_0024310"
            )
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
        DataError: if the folder is not empty, all images are missing, or one is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already; choose another folder, or remove it")
    missing = [e.name for e in entries if e.name not in source.files]
    present = [e for e in entries if e.name in source.files]
    if not present:
        raise DataError("none of the images in the tables is in the folders and zips; check their paths")
    placed = split(present, valid=0.1, test=0.2, seed=seed)
    with replace_folder(out) as temporary:
        for count, entry in enumerate(placed, start=1):
            target = image_path(temporary, entry.site, image_size, entry.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open(entry.name) as file:
                pixels = read_image(source.where(entry.name), image_size, file)
            Image.fromarray(pixels).save(target)
            if seen:
                seen(count)
        for site in sorted({e.site for e in placed}):
            for part in SPLITS:
                rows = [(e.name, e.label, e.group or "") for e in placed if (e.site, e.split) == (site, part)]
                write_table(temporary, site, part, ("image_id", "label", "lesion_id"), rows)
    return missing
