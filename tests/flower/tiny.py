"""A network for tests of everything but the networks: it has all kinds of tensors, in 12 kB."""

from torch import nn

FEATURES = 16 * 7 * 7


def tiny(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(FEATURES, num_classes),
    )
