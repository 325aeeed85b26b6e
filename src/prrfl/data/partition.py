"""One data set divided among several sites: at random with skewed classes, or by a column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prrfl.data.images import SPLITS
from prrfl.data.sources import STEMS, read_arrays
from prrfl.data.tables import is_plain_name
from prrfl.errors import DataError
from prrfl.storage.atomic import replace_folder
from prrfl.types import Split

DIVISIONS = 100
"""Random divisions that are tried until each site has enough images."""


@dataclass(frozen=True)
class Skew:
    """A division of a data set among sites whose classes differ (Hsu et al., arXiv 1909.06335).

    For each class, the shares of the sites are drawn from a symmetric Dirichlet distribution, and hold for
    all splits.

    Attributes:
        sites: number of sites.
        alpha: concentration: large values give all sites the same classes, 0.1 very different ones.
        least: images that each site must get in each split that the data set has.
        seed: same seed, same division.
    """

    sites: int
    alpha: float
    least: int = 5
    seed: int = 0


def by_skew(labels: Sequence[str], splits: Sequence[Split], groups: Sequence[str], skew: Skew) -> list[str]:
    """Return the site of each image, ``site1``, ``site2``, ...; groups stay whole.

    Args:
        labels: class of each image.
        splits: split of each image.
        groups: lesion or patient of each image; empty if unknown.
        skew: how to divide.

    Raises:
        DataError: if no division gives each site enough images and two classes to train on.
    """
    draw = np.random.default_rng(skew.seed)
    units = _units(labels, splits, groups)
    for _ in range(DIVISIONS):
        place = _divided(units, skew, draw)
        if not (lack := _lack(units, place, skew)):
            break
    else:
        raise DataError(
            f"no division among {skew.sites} sites was found in {DIVISIONS} draws; the last one gives {lack};"
            " use a larger --dirichlet, or fewer --sites"
        )
    width = len(str(skew.sites))
    site_of = {image: place[k] for k, unit in enumerate(units) for image in unit.images}
    return [f"site{site_of[image] + 1:0{width}d}" for image in range(len(labels))]


@dataclass(frozen=True)
class _Unit:
    """Images that stay together: their indices, most frequent class, and split."""

    images: tuple[int, ...]
    label: str
    split: Split


def _units(labels: Sequence[str], splits: Sequence[Split], groups: Sequence[str]) -> list[_Unit]:
    members: dict[object, list[int]] = {}
    for image, group in enumerate(groups):
        members.setdefault(group or image, []).append(image)
    units = []
    for images in members.values():
        shown = [labels[image] for image in images]
        units.append(_Unit(tuple(images), max(sorted(set(shown)), key=shown.count), splits[images[0]]))
    return units


def _divided(units: Sequence[_Unit], skew: Skew, draw: np.random.Generator) -> NDArray[np.int64]:
    """Return the site of each unit."""
    place = np.empty(len(units), dtype=np.int64)
    for label in sorted({unit.label for unit in units}):
        shares = draw.dirichlet(np.full(skew.sites, skew.alpha))
        for split in SPLITS:
            chosen = [k for k, unit in enumerate(units) if (unit.label, unit.split) == (label, split)]
            ends = np.rint(np.cumsum(shares)[:-1] * len(chosen)).astype(int)
            for site, part in enumerate(np.split(draw.permutation(chosen).astype(int), ends)):
                place[part] = site
    return place


def _lack(units: Sequence[_Unit], place: NDArray[np.int64], skew: Skew) -> str:
    """Return what a site lacks; an empty text if nothing."""
    for site in range(skew.sites):
        own = [unit for unit, there in zip(units, place, strict=True) if there == site]
        for split in (name for name in SPLITS if any(unit.split == name for unit in units)):
            images = sum(len(unit.images) for unit in own if unit.split == split)
            if images < skew.least:
                return f"site {site + 1} {images} {split} images, fewer than {skew.least}"
        if len({unit.label for unit in own if unit.split == "train"}) < 2:
            return f"site {site + 1} training images of one class"
    return ""


def divide_arrays(source: Path, out: Path, skew: Skew) -> tuple[list[str], list[str]]:
    """Divide an .npz file in MedMNIST's form into a folder of one such file for each site.

    Args:
        source: the file.
        out: the folder, which is absent or empty.
        skew: how to divide.

    Returns:
        The label of each image, and its site.

    Raises:
        DataError: if the file cannot be used, or as :func:`by_skew`.
    """
    read = list(read_arrays(source))
    labels = [str(label) for _, _, of in read for label in of.reshape(-1).tolist()]
    splits = [split for split, images, _ in read for _ in range(len(images))]
    placed = by_skew(labels, splits, [""] * len(labels), skew)
    ends = np.cumsum([len(images) for _, images, _ in read])[:-1]
    places = np.split(np.array(placed), ends)
    with replace_folder(out) as folder:
        for site in sorted(set(placed)):
            own: dict[str, NDArray[Any]] = {}
            for (split, images, of), there in zip(read, places, strict=True):
                own[f"{STEMS[split]}_images"] = images[there == site]
                own[f"{STEMS[split]}_labels"] = of[there == site]
            np.savez_compressed(folder / f"{site}.npz", **own)  # type: ignore[arg-type]
    return labels, placed


def by_column(rows: Sequence[Mapping[str, str]], column: str, where: str) -> list[str]:
    """Return the site of each row: its cell in a column.

    Args:
        rows: cells by column.
        column: its name.
        where: the table, for messages.

    Raises:
        DataError: if a cell cannot be the name of a site.
    """
    for k, row in enumerate(rows):
        if not is_plain_name(row[column]):
            raise DataError(
                f"{where}: row {k + 1} of the images has '{row[column]}' in column {column}; expected the "
                "name of a site"
            )
    return [row[column] for row in rows]
