"""Images on disk: one entry for each in any layout, decoded once into a site's examples."""

import io
import logging
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from prrfl.data.files import IMAGE_SUFFIXES, told, walk, warn_of_passed_over
from prrfl.errors import DataError
from prrfl.machine import available_memory
from prrfl.storage.reading import opened
from prrfl.types import ClientId, Examples, SiteData, Split

MAX_PIXELS = 64_000_000
MAX_BYTES = 4 * MAX_PIXELS
"""Largest size of an image file: that of the largest image, uncompressed."""

LARGE = 16_000_000
"""Larger images, in pixels, are decoded one at a time, because decoding takes many bytes per pixel."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
"""Formats that are read: those that Pillow decodes without calling another program."""

SPLITS: tuple[Split, ...] = get_args(Split)

log = logging.getLogger("prrfl")
_one_large = threading.Lock()
# Pillow warns of oddities in images that it decodes. What it cannot decode is an error, below.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Entry:
    """One image of a data set.

    Attributes:
        path: its file, which may be missing.
        label: class index.
        site: name of its site.
        split: its split.
        group: the lesion or patient, whose images must stay in one split; ``None`` if unknown.
        cells: its whole row of the table, by column.
    """

    path: Path
    label: int
    site: ClientId
    split: Split
    group: str | None = None
    cells: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The image's name, without folder and suffix."""
        return self.path.stem


def other_columns(entries: Iterable[Entry], but: Collection[str]) -> list[str]:
    """Return the columns of the tables that name the entries, in their order, but for some."""
    columns = dict.fromkeys(column for entry in entries for column in entry.cells)
    return [column for column in columns if column not in but]


def load_entries(
    entries: Sequence[Entry],
    *,
    image_size: int,
    classes: Sequence[str],
    allow_missing: bool = False,
    needed: Sequence[Split] = SPLITS,
) -> list[SiteData]:
    """Decode every image of the needed splits and return the sites, sorted by name.

    Args:
        entries: images of all sites and splits.
        image_size: side in pixels; images of another size are resized (bilinear, antialiased).
        classes: names of the labels 0, 1, ...
        allow_missing: leave out images whose files are missing, instead of raising an error.
        needed: the splits that every site must have; the others are not read and are empty.

    Raises:
        DataError: naming the site, split or image, what was expected, and what to do.
    """
    return [
        _load_site(site, [e for e in entries if e.site == site], image_size, classes, allow_missing, needed)
        for site in sorted({e.site for e in entries})
    ]


def _load_site(
    site: ClientId,
    entries: Sequence[Entry],
    size: int,
    classes: Sequence[str],
    allow_missing: bool,
    needed: Sequence[Split],
) -> SiteData:
    parts = {split: [e for e in entries if e.split == split] for split in needed}
    for split, part in parts.items():
        if not part:
            raise DataError(
                f"site {site} has no {split} images; expected images for each of {', '.join(needed)}"
            )
    present = {split: _present(site, split, part, allow_missing) for split, part in parts.items()}
    if "train" in present:
        check_training(f"site {site}", (e.label for e in present["train"]), classes)
    return SiteData(site, *(_decode(present.get(split, []), size) for split in SPLITS))


def check_training(whose: str, labels: Iterable[int], classes: Sequence[str]) -> None:
    """Check that training labels are of at least two classes.

    Raises:
        DataError: if they are not.
    """
    shown = Counter(labels)
    if len(shown) < 2:
        counts = ", ".join(f"{name} {shown[k]}" for k, name in enumerate(classes))
        raise DataError(
            f"{whose}: the training images show fewer than two classes ({counts}); add images of another "
            "class, or leave the site out"
        )


def no_examples(size: int) -> Examples:
    """Return a split without images."""
    return Examples(torch.empty(0, 3, size, size, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def _present(site: ClientId, split: Split, entries: list[Entry], allow_missing: bool) -> list[Entry]:
    # One system call per folder instead of one per image.
    there = {path for folder in {e.path.parent for e in entries} for path in _files(folder)}
    missing = [e for e in entries if e.path not in there]
    if not missing:
        return entries
    named = ", ".join(e.name for e in missing[:5]) + (", ..." if len(missing) > 5 else "")
    folder = missing[0].path.parent
    what = f"site {site}, {split}: {len(missing)} of {len(entries)} images missing in {folder}: {named}"
    stems = {e.path.stem for e in missing if e.path.parent == folder}
    if other := min(
        (path.name for path in there if path.parent == folder and path.stem in stems), default=""
    ):
        what += f" (there is a file {other})"
    if not allow_missing:
        raise DataError(f"{what}; add them, or continue without them with allow_missing (--allow-missing)")
    if len(missing) == len(entries):
        raise DataError(f"{what}; no image is left")
    log.warning("%s; continuing without them", what)
    return [e for e in entries if e.path in there]


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # missing, not a folder, or an invalid name
        return []


def check_memory(whose: str, needed: int) -> None:
    """Check that data fits into memory.

    Args:
        whose: what needs the memory, for messages.
        needed: bytes.

    Raises:
        DataError: naming the bytes that are needed and those that are free.
    """
    free = available_memory()
    if needed > free:
        raise DataError(
            f"{whose} needs {needed / 2**30:,.1f} GiB of memory, but {free / 2**30:,.1f} GiB are free; use "
            "fewer images, a smaller --image-size, or a larger machine"
        )


def _decode(entries: Sequence[Entry], size: int) -> Examples:
    if not entries:
        return no_examples(size)
    check_memory(f"site {entries[0].site}, {entries[0].split}", len(entries) * size * size * 3)
    pixels = torch.empty(len(entries), size, size, 3, dtype=torch.uint8)

    def fill(index: int) -> None:
        pixels[index] = torch.from_numpy(read_image(entries[index].path, size))

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(len(entries))))
    return Examples(
        inputs=pixels.permute(0, 3, 1, 2),
        labels=torch.tensor([e.label for e in entries]),
        ids=tuple(e.name for e in entries),
        groups=tuple(e.group for e in entries),
    )


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and the images in the given folders at any depth, sorted by name.

    Raises:
        DataError: if a path does not exist, or a folder holds no image.
    """
    return [image for path in paths for image in _images_at(path)]


def _images_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"image {path} does not exist; expected image files, or folders of them")
    found, others = walk(path, IMAGE_SUFFIXES)
    if not found:
        there = f", but {told(others)}" if others else ""
        dicom = "; DICOM is not read: use `prrfl data convert`" if "files ending in .dcm" in others else ""
        raise DataError(
            f"folder {path} holds no image{there}; expected files ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}{dicom}"
        )
    warn_of_passed_over(path, others)
    return found


def read_image(path: Path, size: int | None = None, file: BinaryIO | None = None) -> NDArray[np.uint8]:
    """Return an image as (size, size, 3) RGB pixels, turned upright if its EXIF data says how it was taken.

    Args:
        path: the file, or its path in an archive.
        size: side in pixels; by default, the image is not resized.
        file: the opened image, if it is in an archive.

    Raises:
        DataError: if the file is not an image, is broken or too large, or has more than 8 bits per channel,
            which would be clipped to white.
    """
    try:
        with (
            nullcontext(file) if file else opened(path) as content,
            Image.open(_bounded(content, path), formats=FORMATS) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"image {path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read"
                )
            if has_deep_colours(image):
                raise DataError(
                    f"image {path} is a colour image of 16 bits per channel, which is not read; use 8"
                )
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"image {path} has pixels of mode {image.mode}; expected 8 bits per channel; convert it "
                    "with `prrfl data convert`, with a suitable intensity window"
                )
            with _one_large if image.width * image.height > LARGE else nullcontext():
                rgb = upright(image).convert("RGB")
                if size is not None and rgb.size != (size, size):
                    rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
                return np.array(rgb)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"image {path} cannot be decoded (it is no {', '.join(FORMATS)}); replace it, or remove its row"
        ) from None
    # Pillow's decoders raise many kinds of exceptions on broken files; all mean the same to the user.
    except Exception as cause:
        reason = " ".join(str(cause).split())
        raise DataError(f"image {path} cannot be decoded ({reason}); replace it, or remove its row") from None


def has_deep_colours(image: Image.Image) -> bool:
    """Return whether an opened image has colours of 16 bits, of which Pillow would read the upper 8 only."""
    return not image.mode.startswith("I") and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )


def upright(image: Image.Image) -> Image.Image:
    """Return an image as viewers show it, turned and mirrored as its EXIF orientation says."""
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Damaged EXIF data raises many kinds of exceptions; viewers show such an image as it is stored.
    except Exception:
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _bounded(content: BinaryIO, path: Path) -> BinaryIO:
    size = content.seek(0, io.SEEK_END)
    if size > MAX_BYTES:
        raise DataError(f"image {path} has {size:,} bytes; at most {MAX_BYTES:,} are read")
    content.seek(0)
    if content.read(132).endswith(b"DICM") or path.suffix.lower() in (".dcm", ".dicom"):
        raise DataError(
            f"image {path} is DICOM, which is not read; convert it to PNG with `prrfl data convert`, with a "
            "suitable intensity window"
        )
    content.seek(0)
    return content
