"""A network of a few kB, by the name ``tiny``, for tests of everything but the networks."""

from torch import nn

FEATURES = 16


def tiny(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(FEATURES, classes),
    )
