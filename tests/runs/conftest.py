"""A network of a few kB, by name: these tests are about runs, not about networks."""

import pytest
from torch import nn

from prrfl.models import NETWORKS


def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


@pytest.fixture(scope="package", autouse=True)
def tiny_by_name():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", tiny)
        yield
