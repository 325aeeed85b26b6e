"""Folded batch norm: the same outputs as the network's own evaluation mode."""

import pytest
import torch
from torch import nn

from prrfl.folding import fold, foldable
from prrfl.models import build_network


def worn(network):
    """Give batch norms statistics and scales that a fold would get wrong if it ignored them."""
    draw = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.running_mean, -0.3), (module.running_var, 0.5)):
                tensor.uniform_(low, low + 1, generator=draw)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.uniform_(-0.3, 0.3, generator=draw)
    return network.double().eval()


@pytest.mark.parametrize(("name", "pairs"), [("vgg16_slim", 13), ("resnet18", 20), ("densenet121", 59)])
def test_outputs_stay(name, pairs):
    network = worn(build_network(name))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(images)
        found = foldable(network)
        assert len(found) == pairs
        torch.testing.assert_close(fold(network, found)(images), expected, rtol=1e-9, atol=1e-9)


class Reused(nn.Module):
    """One convolution whose outputs go two ways, and one that is called twice: neither may be folded."""

    def __init__(self):
        super().__init__()
        self.split, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.split(x)
        return self.second(self.twice(self.twice(self.norm(x) + x)))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_folded_is_left_alone():
    assert foldable(Reused()) == ()
    assert foldable(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))) == ()
    assert foldable(Branching()) == ()
