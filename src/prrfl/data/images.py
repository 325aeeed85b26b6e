"""Images on disk: one entry each, whatever the layout, decoded once into a site's examples."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prrfl.errors import DataError
from prrfl.types import ClientId, Examples, SiteData, Split

MAX_PIXELS = 64_000_000
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
"""What is taken for an image where a folder is searched."""
SPLITS: tuple[Split, ...] = get_args(Split)

log = logging.getLogger("prrfl")


@dataclass(frozen=True)
class Entry:
    """One image of a data set.

    Attributes:
        path: its file, which need not be there.
        label: class index.
        group: what must not be torn apart by splits, a lesion or a patient; ``None`` where unknown.
    """

    path: Path
    label: int
    site: ClientId
    split: Split
    group: str | None = None

    @property
    def name(self) -> str:
        """The image's name, without folder and ending."""
        return self.path.stem


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
        entries: of all sites and splits.
        image_size: side in pixels; images of another size are resized (bilinear, antialiased).
        classes: names of the labels 0, 1, ...
        allow_missing: leave out images that are not there, instead of refusing.
        needed: the splits that every site must have; the others are not looked at and come out empty.

    Raises:
        DataError: naming the site, split or image at fault, what was expected and the mend.
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
    """Refuse training labels from which no network could learn to tell anything apart.

    Raises:
        DataError: if they show fewer than two classes.
    """
    shown = Counter(labels)
    if len(shown) < 2:
        counts = ", ".join(f"{name} {shown[k]}" for k, name in enumerate(classes))
        raise DataError(
            f"{whose}: its training images show fewer than two classes ({counts}); "
            "add images of another class, or leave the site out"
        )


def no_examples(size: int) -> Examples:
    """Return a split without images."""
    return Examples(torch.empty(0, 3, size, size, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def _present(site: ClientId, split: Split, entries: list[Entry], allow_missing: bool) -> list[Entry]:
    # One look at each folder instead of one look per image.
    there = {
        path for folder in {e.path.parent for e in entries} if folder.is_dir() for path in folder.iterdir()
    }
    missing = [e for e in entries if e.path not in there]
    if not missing:
        return entries
    named = ", ".join(e.name for e in missing[:5]) + (", ..." if len(missing) > 5 else "")
    folder = missing[0].path.parent
    what = f"site {site}, {split}: {len(missing)} of {len(entries)} images missing in {folder}: {named}"
    if not allow_missing:
        raise DataError(f"{what}; add them, or go on without them by allow_missing (--allow-missing)")
    if len(missing) == len(entries):
        raise DataError(f"{what}; none is left to go on with")
    log.warning("%s; going on without", what)
    return [e for e in entries if e.path in there]


def _decode(entries: Sequence[Entry], size: int) -> Examples:
    if not entries:
        return no_examples(size)
    pixels = torch.empty(len(entries), size, size, 3, dtype=torch.uint8)

    def fill(index: int) -> None:
        pixels[index] = torch.from_numpy(read_image(entries[index].path, size))

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(len(entries))))
    return Examples(
        inputs=pixels.permute(0, 3, 1, 2),
        labels=torch.tensor([e.label for e in entries]),
        ids=tuple(e.name for e in entries),
    )


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the files among some paths, and the images in those that are folders, at any depth, by name.

    Raises:
        DataError: if a path is not there, or a folder holds no image.
    """
    return [image for path in paths for image in _images_at(path)]


def _images_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"image {path} is not there; give image files, or folders of them")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(
            f"folder {path} holds no image; expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return found


def read_image(path: Path, size: int | None = None, file: BinaryIO | None = None) -> NDArray[np.uint8]:
    """Return an image as (size, size, 3) RGB pixels.

    Args:
        path: the file, or the archive that an opened file is in.
        size: side in pixels; as large as it is, if not given.
        file: the opened image, where it is not a file of its own.

    Raises:
        DataError: if the file is no image, broken, or absurdly large.
    """
    try:
        with Image.open(file or path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"image {path} has {image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read"
                )
            rgb = image.convert("RGB")
            if size is not None and rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.array(rgb)
    except DataError:
        raise
    # Pillow's decoders raise many kinds of exceptions on broken files; each means the same to the user.
    except Exception as cause:
        reason = " ".join(str(cause).split())
        raise DataError(f"image {path} cannot be decoded ({reason}); replace it, or drop its row") from None
