"""Data sets that the user's own code reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prrfl.data.images import SPLITS
from prrfl.data.tables import is_plain_name
from prrfl.errors import DataError
from prrfl.parts import PartError, Parts, construct, placed
from prrfl.types import Examples, SiteData, Split

DATA_SETS: Parts[Any] = Parts("data", "prrfl.data", {})
"""Functions ``load(image_size, classes, **settings) -> Sequence[SiteData]``. The package has none of its own:
it recognises formats by their files."""


def is_own_data(source: Path) -> bool:
    """Return whether a source of data is a function, and not a file or folder."""
    return str(source) in DATA_SETS and not source.exists()


def absolute(source: Path) -> Path:
    """Return a source of data with an absolute path, unless it is a name."""
    return Path(placed(str(source))) if is_own_data(source) else source.absolute()


def load_own(
    source: Path,
    image_size: int,
    classes: Sequence[str],
    settings: Mapping[str, object],
    needed: Sequence[Split] = SPLITS,
) -> list[SiteData]:
    """Return the sites that a function of the user's own loads, checked.

    Args:
        source: a reference such as ``my_pkg.mod:load``, or the name of an entry point.
        image_size: width and height of the images, in pixels.
        classes: names of the labels 0, 1, ...
        settings: of the function.
        needed: the splits that every site must have; the others are not checked.

    Raises:
        DataError: naming the site and what is wrong with what the function returned.
        PartError: if the function cannot be used, or raises.
    """
    whole = f"data {source}"
    sites = construct(DATA_SETS[str(source)], settings, whole, (image_size, tuple(classes)))
    if not isinstance(sites, Sequence) or not all(isinstance(site, SiteData) for site in sites):
        raise PartError(f"{whole}: expected a list of prrfl.SiteData, got {type(sites).__name__}")
    if not sites:
        raise DataError(f"{whole}: it returned no site; expected at least one")
    names = [site.name for site in sites]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{whole}: it returned site {twice[0]} twice; give each site once")
    for site in sites:
        if not is_plain_name(site.name):
            raise DataError(
                f"{whole}: invalid name of a site '{site.name}'; expected a name such as hospital-3, because "
                "files get it"
            )
        for split in needed:
            _check(site.split(split), f"{whole}: site {site.name}, split {split}", image_size, len(classes))
    return list(sites)


def _check(examples: Examples, where: str, image_size: int, classes: int) -> None:
    images, labels, n = examples.inputs, examples.labels, len(examples)
    expected = (n, 3, image_size, image_size)
    if not n:
        raise DataError(f"{where}: no images; every site needs some in this split")
    if images.dtype != torch.uint8 or tuple(images.shape) != expected:
        raise DataError(
            f"{where}: inputs are {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}; "
            f"expected uint8 of shape {expected}"
        )
    if labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"{where}: expected int64 labels from 0 to {classes - 1}")
    for what, values in (("ids", examples.ids), ("groups", examples.groups)):
        if values and len(values) != n:
            raise DataError(f"{where}: {len(values)} {what} for {n} images; expected one each, or none")
