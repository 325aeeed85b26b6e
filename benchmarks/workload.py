"""The work to be timed: sites of images on disk, sites of noise, recipes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.figures import Settings
from prrfl.data.augment import Augmentation
from prrfl.data.images import SPLITS, Entry
from prrfl.data.layout import CLASSES
from prrfl.data.manifest import manifest_csv
from prrfl.data.sources import read_entries
from prrfl.data.synthetic import GeneratedData, write_generated
from prrfl.models import build_network
from prrfl.training import Precision, Recipe
from prrfl.types import Examples, SiteData

SITES = 4


@contextmanager
def pictures(settings: Settings, size: int, images: int) -> Iterator[tuple[Path, list[Entry]]]:
    """Give a few images of each site on disk, real or generated, for as long as the block lasts.

    They come as the folder of a data set and as its entries.
    """
    with TemporaryDirectory() as scratch:
        source = settings.data
        if source is None:
            # Two of five are for training.
            spec = GeneratedData(sites=SITES, images=max(24, images * 5 // 2), size=size)
            source = write_generated(spec, Path(scratch) / "generated")
        entries = few(read_entries(source, image_size=size, classes=CLASSES), images)
        manifest = Path(scratch) / "few.csv"
        manifest.write_text(manifest_csv(entries, manifest.parent), encoding="utf-8")
        yield manifest, entries


def few(entries: Sequence[Entry], images: int) -> list[Entry]:
    """Return entries spread evenly over each split of each site, as many of each as wanted, if there are."""
    wanted = {"train": images, "valid": max(6, images // 6), "test": max(6, images // 2)}
    kept: list[Entry] = []
    for site in sorted({entry.site for entry in entries}):
        for split in SPLITS:
            # A file that tables name but nobody has is passed over.
            there = [e for e in entries if e.site == site and e.split == split and e.path.is_file()]
            n = min(wanted[split], len(there))
            # In order of class, and from the first to the last: a rare class may not be missed.
            there.sort(key=lambda entry: entry.label)
            kept += [there[index * (len(there) - 1) // max(1, n - 1)] for index in range(n)]
    return kept


def noise(n: int, size: int) -> Examples:
    """Return pixels without meaning, in the memory format of decoded images."""
    draw = torch.Generator().manual_seed(n)
    pixels = torch.randint(256, (n, size, size, 3), dtype=torch.uint8, generator=draw)
    return Examples(pixels.permute(0, 3, 1, 2), torch.arange(n) % len(CLASSES))


def noise_site(name: str, train: int, size: int) -> SiteData:
    """Return a site of noise with half as many test and a sixth as many valid images."""
    return SiteData(
        name, noise(train, size), noise(max(4, train // 6), size), noise(max(4, train // 2), size)
    )


def tiny_sites(n: int) -> list[SiteData]:
    """Return n sites of a single training batch each."""
    return [noise_site(f"site{index:04d}", train=8, size=32) for index in range(n)]


def paper_recipe(precision: Precision = "float32", network: str = "vgg16_slim") -> Recipe:
    """Return the paper's local training, always from the same weights."""
    return Recipe(build_network(network), augment=Augmentation(), precision=precision)
