"""Folded batch norm: the same outputs as the network's own evaluation mode."""

import pytest
import torch
from torch import nn

from prrfl.folding import foldable, folded, without_norms
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
        weights = folded(network.state_dict(), network, found)
        fewer = without_norms(network, found)
        fewer.load_state_dict(weights)
        torch.testing.assert_close(fewer(images), expected, rtol=1e-9, atol=1e-9)


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


class TwoNames(nn.Module):
    """Layers that have a second name: only one of them would be replaced."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.stem = nn.Sequential(self.conv, self.norm)

    def forward(self, x):
        return self.stem(x)


class WeightUsedTwice(nn.Module):
    """A convolution whose weight serves elsewhere too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return nn.functional.conv_transpose2d(self.norm(self.conv(x)), self.conv.weight)


class TiedWeight(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


class OtherwiseInTraining(nn.Module):
    """A network that does something else in evaluation than in training."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) if self.training else self.norm(x) + x


def spectral():
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3))


@pytest.mark.parametrize(
    "make",
    [
        Reused,
        TwoNames,
        WeightUsedTwice,
        TiedWeight,
        OtherwiseInTraining,
        Branching,
        spectral,
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ],
)
def test_what_cannot_be_folded_is_left_alone(make):
    network = make().train()
    assert foldable(network) == ()
    assert network.training


class Counting(nn.Module):
    """A network with a memory of how often it was called, and one with another name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.conv(x)


def test_looking_for_pairs_leaves_the_network_as_it_is():
    network = Counting()
    foldable(network)
    assert network.calls.item() == 0
