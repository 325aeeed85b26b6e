"""Tiny sites and a tiny network, on which a method runs in a fraction of a second."""

import torch
from torch import nn

from prrfl.types import Examples, SiteData

SIZE = 8
"""Width and height of the images, in pixels."""

TINY_CLASSES = 3


def tiny_network() -> nn.Module:
    """Return a network with convolution, batch norm, dropout and linear layer; always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, TINY_CLASSES),
        )


def tiny_examples(n: int, seed: int, size: int = SIZE) -> Examples:
    """Return n random images of three classes, which differ in colour."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % TINY_CLASSES
    images = torch.randint(0, 120, (n, 3, size, size), generator=draw, dtype=torch.uint8)
    for k in range(TINY_CLASSES):
        images[labels == k, k] += 70
    return Examples(images, labels)


def tiny_sites(count: int = 3, n: int = 21) -> list[SiteData]:
    """Return sites ``s0``, ``s1``, ... with n training images each."""
    return [
        SiteData(
            f"s{k}", tiny_examples(n, 10 * k), tiny_examples(9, 10 * k + 1), tiny_examples(12, 10 * k + 2)
        )
        for k in range(count)
    ]
