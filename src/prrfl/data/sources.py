"""Every way in for data: the published layout, a manifest CSV, MedMNIST-style arrays."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prrfl.data import dermoscopy
from prrfl.data.images import Entry, load_entries
from prrfl.data.manifest import read_manifest
from prrfl.errors import DataError
from prrfl.types import Examples, SiteData


def load_sites(
    source: Path, *, image_size: int, classes: Sequence[str], allow_missing: bool = False
) -> list[SiteData]:
    """Load every site of a data set, decoding each image once.

    Args:
        source: a folder in the published layout, a manifest (.csv), an .npz file (one site) or a folder of
            them (one site each).
        image_size: side in pixels; images of another size are resized (bilinear, antialiased).
        classes: names of the labels 0, 1, ...
        allow_missing: leave out images that a table names but nobody has, instead of refusing.

    Raises:
        DataError: naming the file, line or site at fault, what was expected and the mend.
    """
    if arrays := _arrays(source):
        return [_load_arrays(path, image_size, classes) for path in arrays]
    entries = read_entries(source, image_size=image_size, classes=classes)
    return load_entries(entries, image_size=image_size, classes=classes, allow_missing=allow_missing)


def read_entries(source: Path, *, image_size: int, classes: Sequence[str]) -> list[Entry]:
    """Return what a folder's tables or a manifest name, whether or not the images are there.

    Raises:
        DataError: if a table cannot be read, or the source holds arrays, whose images have no files.
    """
    if _arrays(source):
        raise DataError(f"{source} holds arrays, not image files; give a folder or a manifest CSV")
    if source.suffix.lower() == ".csv":
        return read_manifest(source, classes)
    return [
        entry
        for site in dermoscopy.find_sites(source)
        for entry in dermoscopy.site_entries(source, site, image_size=image_size, classes=classes)
    ]


def _arrays(source: Path) -> list[Path]:
    if source.suffix.lower() == ".npz":
        return [source]
    return sorted(source.glob("*.npz")) if source.is_dir() else []


def _load_arrays(path: Path, size: int, classes: Sequence[str]) -> SiteData:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parts = {
                split: (arrays[f"{name}_images"], arrays[f"{name}_labels"])
                for split, name in (("train", "train"), ("valid", "val"), ("test", "test"))
            }
    except KeyError as cause:
        raise DataError(
            f"{path}: {cause.args[0]}; expected {{train,val,test}}_images and _labels, as in MedMNIST"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as cause:
        raise DataError(f"{path} cannot be read as arrays: {' '.join(str(cause).split())}") from None
    return SiteData(
        path.stem,
        *(
            _examples(f"{path}, {split}", *parts[split], size, classes)
            for split in ("train", "valid", "test")
        ),
    )


def _examples(
    where: str, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int, classes: Sequence[str]
) -> Examples:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise DataError(
            f"{where}: images are {images.dtype} of shape {images.shape}; "
            "expected uint8 (N, H, W) or (N, H, W, 3)"
        )
    labels = labels.reshape(len(labels), -1)
    if len(labels) != len(images) or labels.shape[1:] != (1,) or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels have shape {labels.shape}; expected one whole number per image")
    if not len(labels) or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{where}: labels run from {labels.min(initial=0)} to {labels.max(initial=0)}, there are "
            f"{len(classes)} classes ({', '.join(classes)}); name them all by --classes"
        )
    pixels = np.stack([_square(image, size) for image in images])
    return Examples(
        inputs=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(labels[:, 0].astype(np.int64)),
        ids=tuple(map(str, range(len(labels)))),
    )


def _square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    rgb = Image.fromarray(image).convert("RGB")
    return np.array(rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.BILINEAR))
