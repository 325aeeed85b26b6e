"""FENDA-FL (Tavakoli et al., 2023, arXiv 2309.16825): two feature extractors, of which one stays at the site.

Every image passes through both extractors, and the head sees their features side by side. The global
extractor alone is averaged; the local one and the head stay at the site. All parts learn together, from the
loss alone: FENDA-FL is PerFCL without its contrastive terms.

Both extractors are the recipe's network without its last linear layer, so the network of this method has
twice the size: ``FENDA.traits.network`` makes it.

Differs from the authors' experiments, whose extractors are small or partly frozen, and whose heads have one
or two layers with dropout: here the head is one linear layer. Extractors start alike, from the common
weights. The head starts with the network's last layer for the local features and with the same columns in
reverse order for the global ones, so that the extractors do not learn alike; both are divided by √2, which
is what PyTorch's initial weights are for twice as many inputs.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from prrfl.algorithms.base import Traits
from prrfl.algorithms.fedavg import FedAvg
from prrfl.tensors import head_of
from prrfl.training import Learner
from prrfl.types import RoundContext, Share

SHARED = "shared."
"""How the names of the tensors of the global extractor begin."""


class Parallel(nn.Module):
    """Maps (N, ...) inputs to (N, C) logits by two extractors and a head on both."""

    def __init__(self, network: nn.Module) -> None:
        """Make extractors and head from a network whose last linear layer computes its logits."""
        super().__init__()
        name, last = head_of(network)
        self.local = _without_head(network, name)
        self.shared = _without_head(network, name)
        self.head = nn.Linear(2 * last.in_features, last.out_features, last.bias is not None)
        with torch.no_grad():
            own = last.weight / 2**0.5
            self.head.weight.copy_(torch.cat([own, own.flip(1)], dim=1))
            if last.bias is not None:
                self.head.bias.copy_(last.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(torch.cat([self.local(inputs), self.shared(inputs)], dim=1))
        return logits


def _without_head(network: nn.Module, name: str) -> nn.Module:
    if not name:
        return nn.Identity()
    network = copy.deepcopy(network)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


@dataclass(frozen=True)
class FENDA(FedAvg):
    """Federated averaging of one of two feature extractors."""

    traits: ClassVar[Traits] = Traits(network=Parallel)

    def share(self, client: Learner, ctx: RoundContext) -> Share:
        """Share the global extractor."""
        return Share({key: tensor for key, tensor in client.weights.items() if key.startswith(SHARED)})
