"""A small network, and a third of the training images, for comparisons on a processor.

    python docs/third.py DIR third.csv

This writes a manifest of the data set in DIR (published layout) with all validation and test images, and a
third of the training images of each class and site, drawn at random.
"""

import random
import sys
from dataclasses import replace
from pathlib import Path

from torch import nn

from prrfl.data.images import SPLITS
from prrfl.data.layout import CLASSES
from prrfl.data.manifest import manifest_csv
from prrfl.data.sources import read_entries


def small(num_classes: int, width: int = 8) -> nn.Module:
    """Return four convolutions with batch norm and pooling, and a linear layer."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(3, width),
        *block(width, 2 * width),
        *block(2 * width, 4 * width),
        *block(4 * width, 8 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, num_classes),
    )


def main(folder: Path, manifest: Path) -> None:
    """Write the manifest."""
    entries = [
        replace(entry, site=entry.site.removeprefix("client"))
        for entry in read_entries(folder, image_size=32, classes=CLASSES)
        if entry.path.is_file()
    ]
    draw, kept = random.Random(0), []
    for site in sorted({entry.site for entry in entries}):
        for split in SPLITS:
            for label in range(len(CLASSES)):
                some = [e for e in entries if (e.site, e.split, e.label) == (site, split, label)]
                if split == "train":
                    some = sorted(draw.sample(some, round(len(some) / 3)), key=lambda entry: entry.path)
                kept += some
    manifest.write_text(manifest_csv(kept, manifest.parent), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
