"""Tiny sites and a tiny network for tests of everything but the paper's own network."""

import torch
from torch import nn

from prrfl import Examples, SiteData


def tiny_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 3),
        )


def tiny_examples(n: int, seed: int) -> Examples:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 120, (n, 3, 8, 8), generator=draw, dtype=torch.uint8)
    for k in range(3):
        images[labels == k, k] += 70
    return Examples(images, labels)


def tiny_sites(count: int = 3, n: int = 21) -> list[SiteData]:
    return [
        SiteData(
            f"s{k}", tiny_examples(n, 10 * k), tiny_examples(9, 10 * k + 1), tiny_examples(12, 10 * k + 2)
        )
        for k in range(count)
    ]
