"""Generated data sets of any number of sites, so that the package runs without a download."""

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prrfl.data.files import check_free
from prrfl.data.images import SPLITS, check_memory
from prrfl.data.layout import CLASSES, image_path, write_table
from prrfl.data.synthetic.drawing import SiteStyle, draw_images
from prrfl.errors import DataError, nearest
from prrfl.storage.atomic import replace_folder
from prrfl.types import Examples, SiteData, Split

MIN_PER_SPLIT = 2
"""Least number of images of each class in each split: a spread needs two, and without any F1 is undefined."""

VALID_SHARE, TEST_SHARE = 0.2, 0.4
"""Shares of validation and test within each class. Training gets only as many images as test: with more of
them a site would learn little from the others, and scores on fewer test images would be mostly chance."""

ENOUGH = 15
"""Least number of images of a class at a site that can afford it: then six of them are for testing."""

_MIN_PER_CLASS = 3 * MIN_PER_SPLIT
_MIN_IMAGES = len(CLASSES) * _MIN_PER_CLASS
_MIN_SIZE = 16
_MAX_SITES, _MAX_IMAGES, _MAX_SIZE = 1000, 100_000, 1024  # a typo should not fill a disk


def _evened(nv: int, bkl: int, mel: int) -> tuple[float, float, float]:
    """Return class shares that are less unequal than the counts: in proportion to their cube roots."""
    return math.cbrt(nv), math.cbrt(bkl), math.cbrt(mel)


# The counts are those of the published split (train, valid and test together). Taken as they are, 240 images
# of B would be 231 nv, 8 bkl and 1 mel, and its network would learn to answer nv to all of them.
STYLES = (
    # A: HAM10000, vidir_modern
    SiteStyle(_evened(1832, 475, 680), (0.93, 0.97, 1.14), 0.03, 0.95, vignette=0.5, hair=0.25, bubbles=0.1),
    # B: HAM10000, vidir_molemax
    SiteStyle(_evened(3720, 124, 24), (1.10, 0.85, 0.93), 0.025, 1.2, vignette=0.03, hair=0.3, bubbles=0.05),
    # C: HAM10000, rosendahl
    SiteStyle(_evened(803, 490, 342), (1.05, 1.04, 1.08), 0.035, 1.3, vignette=0.06, hair=0.1, bubbles=0.25),
    # D: ISIC 2017
    SiteStyle(
        _evened(1372, 254, 374), (1.00, 1.04, 0.93), 0.025, 0.9, 0.25, hair=0.3, bubbles=0.15, ruler=0.4
    ),
)
"""The first four sites, each after the real site of its letter, with classes that are less unequal."""


@dataclass(frozen=True)
class GeneratedData:
    """The specification of a generated data set.

    Attributes:
        sites: number of sites, 1 to 1000.
        images: images per site over all three splits, 18 (2 per class and split) to 100,000.
        size: side of the square images in pixels, 16 to 1024.
        seed: source of all randomness, 0 to 2^63 - 1.

    Raises:
        DataError: if a number is out of bounds.
    """

    sites: int = 4
    images: int = 240
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "sites": (1, _MAX_SITES),
            "images": (_MIN_IMAGES, _MAX_IMAGES),
            "size": (_MIN_SIZE, _MAX_SIZE),
            "seed": (0, 2**63 - 1),
        }
        for name, (least, most) in bounds.items():
            given = getattr(self, name)
            if given < least:
                raise DataError(
                    f"generated data: {name} is {given}, expected at least {least}; set a larger {name}"
                )
            if given > most:
                raise DataError(
                    f"generated data: {name} is {given}, expected at most {most}; set a smaller {name}"
                )

    @property
    def bytes(self) -> int:
        """Upper bound of the images' size on disk; PNG hardly compresses noise."""
        return self.sites * self.images * self.size**2 * 3


def site_name(index: int) -> str:
    """Return the name of a site by its index from 0: clientA ... clientZ, clientAA, clientAB ..."""
    letters = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return f"client{letters}"


def site_style(spec: GeneratedData, index: int) -> SiteStyle:
    """Return a site's style by its index: one of :data:`STYLES`, then styles drawn from the seed."""
    if index < len(STYLES):
        return STYLES[index]
    rng = _site_rng(spec, index, "style")
    nv, bkl, mel = rng.dirichlet((6.0, 2.0, 2.0)).tolist()
    red, green, blue = np.exp(rng.normal(0.0, 0.09, 3)).tolist()
    return SiteStyle(
        shares=(nv, bkl, mel),
        cast=(red, green, blue),
        drift=rng.uniform(0.03, 0.08),
        magnification=rng.uniform(0.85, 1.3),
        vignette=rng.uniform(0.0, 0.7),
        hair=rng.uniform(0.0, 0.5),
        bubbles=rng.uniform(0.0, 0.4),
        ruler=rng.uniform(0.0, 0.5),
    )


def generate(spec: GeneratedData, site: str) -> SiteData:
    """Generate all data of one site.

    A site's data depends on the seed and the site alone, so a data set with more sites begins with the same
    ones. Classes are as frequent as in the site's style, but each split has at least ``MIN_PER_SPLIT`` images
    of each class, and from 120 images a site on, each class has at least six test images. Within each class
    40 % of the images are for training, 20 % for validation and 40 % for testing.

    Args:
        spec: the data set.
        site: the site's name, as given by :func:`site_name`.

    Returns:
        The site's three splits. Inputs are (N, 3, size, size) uint8, ids are like ``GEN_A_000123``.

    Raises:
        DataError: if the data set has no site of that name, or its images do not fit into memory.
    """
    names = [site_name(index) for index in range(spec.sites)]
    if site not in names:
        raise DataError(
            f"generated data: no site {site!r}{nearest(site, names)}; expected {names[0]} ... {names[-1]}; "
            "choose one of these, or generate more sites"
        )
    check_memory(f"generated data: site {site}", 2 * spec.images * spec.size**2 * 3)
    index = names.index(site)
    style = site_style(spec, index)
    rng = _site_rng(spec, index, "images")
    labels = np.repeat(np.arange(len(CLASSES)), _class_counts(style.shares, spec.images))
    rng.shuffle(labels)  # so that the number of an image does not reveal its class
    images = draw_images(labels, style, spec.size, rng)
    prefix = f"GEN_{site.removeprefix('client')}"
    parts = _stratify(labels)

    def examples(split: Split) -> Examples:
        rows = parts[split]
        inputs = torch.from_numpy(np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2)))
        return Examples(inputs, torch.from_numpy(labels[rows]), tuple(f"{prefix}_{row:06d}" for row in rows))

    return SiteData(site, examples("train"), examples("valid"), examples("test"))


def write_generated(spec: GeneratedData, folder: Path) -> Path:
    """Generate every site, and write the data set in the published layout.

    Tables have the columns image_id, label and dx. The folder appears complete or not at all.

    Args:
        spec: the data set.
        folder: the folder to create, with its parents; it must be absent or empty.

    Returns:
        The folder.

    Raises:
        DataError: if the folder holds anything or cannot be written, or the disk has too little space.
    """
    check_free(folder)
    _check_room(spec, folder)
    try:
        with replace_folder(folder) as temporary:
            for index in range(spec.sites):
                _write_site(generate(spec, site_name(index)), temporary)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror or error}); choose a new folder in a writable "
            "place with enough space"
        ) from error
    return folder


def _check_room(spec: GeneratedData, folder: Path) -> None:
    disk = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(disk).free
    if spec.bytes > free:
        raise DataError(
            f"generated data: {spec.sites} sites of {spec.images} images of {spec.size} px may take "
            f"{spec.bytes / 2**30:,.0f} GiB, but {folder} has {free / 2**30:,.0f} GiB of free space; "
            "generate fewer or smaller images"
        )


def _site_rng(spec: GeneratedData, index: int, purpose: str) -> np.random.Generator:
    """Return a separate random stream for each purpose at each site, independent of the number of sites."""
    stream = ("images", "style").index(purpose)
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(index, stream)))


def _class_counts(shares: Iterable[float], images: int) -> NDArray[np.int64]:
    """Return whole numbers near the shares that sum to ``images``, with enough of each class."""
    wanted = np.array(list(shares), np.float64)
    wanted *= images / wanted.sum()
    least = max(_MIN_PER_CLASS, min(ENOUGH, images // 8))
    counts = np.full(len(wanted), least, np.int64)
    for _ in range(images - counts.sum()):
        counts[np.argmax(wanted - counts)] += 1
    return counts


def _stratify(labels: NDArray[np.int64]) -> dict[Split, NDArray[np.int64]]:
    """Return the rows of each split, in order: shares of each class, at least ``MIN_PER_SPLIT``."""
    train, valid, test = [], [], []
    for label in range(len(CLASSES)):
        rows = np.flatnonzero(labels == label)
        n_valid = max(MIN_PER_SPLIT, round(VALID_SHARE * len(rows)))
        n_test = max(MIN_PER_SPLIT, round(TEST_SHARE * len(rows)))
        valid.append(rows[:n_valid])
        test.append(rows[n_valid : n_valid + n_test])
        train.append(rows[n_valid + n_test :])
    return {
        "train": np.sort(np.concatenate(train)),
        "valid": np.sort(np.concatenate(valid)),
        "test": np.sort(np.concatenate(test)),
    }


def _write_site(data: SiteData, folder: Path) -> None:
    """Write one site's images and tables into a data set's folder."""
    size = data.train.inputs.shape[-1]
    for split in SPLITS:
        examples = data.split(split)
        labels = examples.labels.tolist()
        dx = (CLASSES[label] for label in labels)
        rows = zip(examples.ids, labels, dx, strict=True)
        write_table(folder, data.name, split, ("image_id", "label", "dx"), rows)
        for name, pixels in zip(examples.ids, examples.inputs.permute(0, 2, 3, 1).numpy(), strict=True):
            path = image_path(folder, data.name, size, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
