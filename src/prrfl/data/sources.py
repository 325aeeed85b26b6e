"""Load data in any supported format: the published layout, a manifest CSV, or MedMNIST-style arrays."""

import logging
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prrfl.data import layout
from prrfl.data.columns import class_indices
from prrfl.data.files import is_hidden, unread_name, warn_of_passed_over
from prrfl.data.images import FORMATS, SPLITS, Entry, check_memory, check_training, load_entries, no_examples
from prrfl.data.manifest import read_manifest
from prrfl.data.own import is_own_data, load_own
from prrfl.data.tables import TABLE_SUFFIXES, is_plain_name
from prrfl.errors import DataError
from prrfl.storage.reading import opened, why_unreadable
from prrfl.types import ClientId, Examples, SiteData, Split

log = logging.getLogger("prrfl")
_T = TypeVar("_T")
STEMS: dict[Split, str] = {"train": "train", "valid": "val", "test": "test"}
"""MedMNIST's names of the splits."""


def load_sites(
    source: Path,
    *,
    image_size: int,
    classes: Sequence[str],
    allow_missing: bool = False,
    needed: Sequence[Split] = SPLITS,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> list[SiteData]:
    """Load every site of a data set, decoding each image once.

    Args:
        source: a folder in the published layout, a manifest (.csv), an .npz file (one site), a folder of .npz
            files (one site each), or a function of the user's own.
        image_size: side in pixels. Images of another size are resized (bilinear, antialiased), with a
            warning if some are smaller.
        classes: names of the labels 0, 1, ...
        allow_missing: leave out images whose files are missing, instead of raising an error.
        needed: the splits that every site must have; the others are not read and are empty, unless a function
            of the user's own gives them.
        settings: of a function of the user's own.

    Raises:
        DataError: naming the file, line or site, what was expected, and what to do.
        PartError: if a function of the user's own cannot be used, or raises.
    """
    if is_own_data(source):
        return load_own(source, image_size, classes, settings, needed)
    if arrays := npz_files(source):
        _check_arrays(source, arrays)
        loaded = [_load_arrays(path, image_size, classes, needed) for path in arrays]
        _warn_of_enlarged([side for _, sides in loaded for side in sides], image_size)
        return [site for site, _ in loaded]
    entries = read_entries(source, image_size=image_size, classes=classes, needed=needed)
    sites = load_entries(
        entries, image_size=image_size, classes=classes, allow_missing=allow_missing, needed=needed
    )
    with ThreadPoolExecutor() as pool:
        sides = list(pool.map(_side, (entry.path for entry in entries if entry.split in needed)))
    _warn_of_enlarged([side for side in sides if side], image_size)
    return sites


def _side(path: Path) -> int:
    """Return the shorter side of an image in pixels from its file's header; 0 if the file is missing."""
    try:
        with opened(path) as file, Image.open(file, formats=FORMATS) as image:
            return min(image.size)
    except OSError:
        return 0


def _warn_of_enlarged(sides: Sequence[int], size: int) -> None:
    if small := [side for side in sides if side < size]:
        log.warning(
            "%d of %d images are smaller than %d px (the smallest: %d px) and are enlarged, which adds no "
            "detail; use a smaller --image-size, or larger images",
            len(small),
            len(sides),
            size,
            min(small),
        )


def load_site(
    source: Path,
    name: ClientId,
    *,
    image_size: int,
    classes: Sequence[str],
    allow_missing: bool = False,
    needed: Sequence[Split] = SPLITS,
) -> SiteData:
    """Load one site: the one of this name, or the only one in the source, which is then given this name.

    Raises:
        DataError: as in :func:`load_sites`; or if there are several sites, and none has this name.
    """
    if is_own_data(source):
        own = {site.name: site for site in load_own(source, image_size, classes, {}, needed)}
        return replace(_the_one(source, name, own), name=name)
    if arrays := npz_files(source):
        _check_arrays(source, arrays)
        path = _the_one(source, name, {path.stem: path for path in arrays})
        return replace(_load_arrays(path, image_size, classes, needed)[0], name=name)
    entries = read_entries(source, image_size=image_size, classes=classes, needed=needed)
    there = _the_one(source, name, {entry.site: entry.site for entry in entries})
    (data,) = load_entries(
        [entry for entry in entries if entry.site == there],
        image_size=image_size,
        classes=classes,
        allow_missing=allow_missing,
        needed=needed,
    )
    return replace(data, name=name)


def _the_one(source: Path, name: ClientId, sites: Mapping[ClientId, _T]) -> _T:
    if name in sites:
        return sites[name]
    if len(sites) == 1:
        return next(iter(sites.values()))
    raise DataError(f"{source} has no site '{name}'; its sites are {', '.join(sorted(sites))}")


def read_entries(
    source: Path,
    *,
    image_size: int,
    classes: Sequence[str],
    needed: Sequence[Split] = SPLITS,
    columns: Sequence[str] = (),
) -> list[Entry]:
    """Return the images that the tables of a folder, or a manifest, name, whether or not their files exist.

    Args:
        source: the folder or manifest.
        image_size: side in pixels, by which the folder of images is chosen.
        classes: names of the labels 0, 1, ...
        needed: the splits whose tables are read. A manifest is read whole.
        columns: other columns that the tables may have, once only.

    Raises:
        DataError: if a table cannot be read, or the source holds arrays instead of image files.
    """
    if npz_files(source):
        raise DataError(f"{source} holds arrays, not image files; give a folder or a manifest CSV")
    if source.suffix.lower() in TABLE_SUFFIXES and not source.is_dir():
        return read_manifest(source, classes, columns)
    return [
        entry
        for site in layout.find_sites(source)
        for entry in layout.site_entries(
            source, site, image_size=image_size, classes=classes, needed=needed, columns=columns
        )
    ]


def npz_files(source: Path) -> list[Path]:
    """Return the .npz files of a source, one for each site; an empty list if it has another format."""
    if source.suffix.lower() == ".npz":
        return [source]
    if not source.is_dir():
        return []
    return sorted(p for p in source.iterdir() if p.suffix.lower() == ".npz" and not is_hidden(p.name))


def _check_arrays(source: Path, arrays: Sequence[Path]) -> None:
    """Check that a folder of arrays is nothing else, and warn of other files in it.

    Raises:
        DataError: if it holds the published layout too, or two files for one site.
    """
    if source in arrays:
        return
    if (source / "csv_folder").exists():
        raise DataError(
            f"{source} holds {arrays[0].name} as well as csv_folder; keep the arrays or the published layout"
        )
    names = Counter(path.stem for path in arrays)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{source} holds more than one .npz file of site {twice[0]}; keep one")
    others = (path for path in source.iterdir() if path not in arrays)
    warn_of_passed_over(
        source, Counter("folders" if p.is_dir() else unread_name(p, {".npz"}) or "links" for p in others)
    )


def _load_arrays(
    path: Path, size: int, classes: Sequence[str], needed: Sequence[Split]
) -> tuple[SiteData, list[int]]:
    """Return a site, and the shorter side of each of its images as stored."""
    if not is_plain_name(path.stem):
        raise DataError(f"{path}: invalid name of a site '{path.stem}'; rename the file")
    parts: dict[Split, Examples] = {}
    sides: list[int] = []
    for split, images, labels in read_arrays(path, needed):
        parts[split] = _examples(f"{path}, {split}", images, labels, size, classes)
        sides += len(images) * [min(images.shape[1:3])]
    if "train" in parts:
        check_training(str(path), parts["train"].labels.tolist(), classes)
    return SiteData(path.stem, *(parts.get(split, no_examples(size)) for split in SPLITS)), sides


def read_arrays(
    path: Path, needed: Sequence[Split] = SPLITS
) -> Iterator[tuple[Split, NDArray[np.uint8], NDArray[Any]]]:
    """Yield images and labels of each split of an .npz file, as they are stored.

    Raises:
        DataError: if the file or an array is missing or damaged, or has another shape or type.
    """
    _check_zip(path)
    for split in needed:
        images = _read_array(path, f"{STEMS[split]}_images")
        labels = _read_array(path, f"{STEMS[split]}_labels")
        _check_shapes(f"{path}, {split}", images, labels)
        yield split, images, labels


def _check_zip(path: Path) -> None:
    try:
        with opened(path) as file:
            whole = zipfile.is_zipfile(file)
    except OSError as cause:
        raise DataError(f"{path} {why_unreadable(cause)}") from None
    if not whole:
        raise DataError(
            f"{path} is not a complete .npz file; expected a zip of arrays, as written by numpy.savez"
        )


def _read_array(path: Path, name: str) -> NDArray[Any]:
    try:
        with opened(path) as file, np.load(file, allow_pickle=False) as arrays:
            if name not in arrays:
                raise DataError(
                    f"{path} has no {name}; expected {{train,val,test}}_images and _labels, as in MedMNIST"
                )
            # Reading stops at the size in the zip's directory, whatever size the array claims.
            members = [m for m in arrays.zip.infolist() if m.filename.removesuffix(".npy") == name]
            check_memory(f"{path}, {name}", max(member.file_size for member in members))
            array = arrays[name]
    except DataError:
        raise
    # Damaged zips and arrays raise many kinds of exceptions; all mean the same to the user.
    except Exception as cause:
        reason = " ".join(str(cause).split()).partition(" when allow_pickle")[0]  # not an option here
        raise DataError(
            f"{path}: {name} cannot be read ({reason}); write it again with numpy.savez"
        ) from None
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{path}: {name} cannot be read (it is not an array); write it again with numpy.savez"
        )
    return array


def _check_shapes(where: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise DataError(
            f"{where}: images are {images.dtype} of shape {images.shape}; "
            "expected uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if images.size == 0:
        raise DataError(
            f"{where}: images of shape {images.shape} have no pixels; expected at least one image"
        )
    if labels.dtype.kind not in "iufU":
        raise DataError(f"{where}: labels are {labels.dtype}; expected integers, or names of classes")
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise DataError(
            f"{where}: labels have shape {labels.shape}; expected one label per image, ({len(images)},) or "
            f"({len(images)}, 1)"
        )


def _examples(
    where: str, images: NDArray[np.uint8], labels: NDArray[Any], size: int, classes: Sequence[str]
) -> Examples:
    values, first, inverse = np.unique(labels.reshape(-1), return_index=True, return_inverse=True)
    cells = [(f"{where}, image {k}", str(v)) for k, v in zip(first.tolist(), values.tolist(), strict=True)]
    indices = np.array(class_indices(cells, classes), dtype=np.int64)[inverse]
    check_memory(where, len(images) * size * size * 3)
    pixels = np.stack([_square(image, size) for image in images])
    return Examples(
        inputs=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(indices),
        ids=tuple(map(str, range(len(labels)))),
    )


def _square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    rgb = Image.fromarray(image.squeeze(2) if image.shape[2:] == (1,) else image).convert("RGB")
    return np.array(rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.BILINEAR))
