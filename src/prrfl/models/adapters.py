"""Low-rank adapters (LoRA; Hu et al., ICLR 2022): a weight W trains as W + alpha / rank · B A.

Only the thin matrices A and B train. They are a parametrisation, as PyTorch calls it: the layer uses the sum.
So an adapter fits any weight, also those of convolutions and attention, and a network whose weights are the
sums computes the same outputs without adapters. The package peft renames the tensors of the network that it
adapts, which saved and published weights must not depend on, and needs transformers and accelerate.
"""

import math
from collections import Counter
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prrfl.errors import ConfigError, nearest
from prrfl.tensors import head_keys, norm_keys


class LowRank(nn.Module):
    """Adds alpha / rank · B A to a weight; A is ``down``, B is ``up``, which starts at 0."""

    is_adapter: ClassVar[bool] = True

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        """Draw ``down`` as PyTorch draws the weight of a linear layer, from its global generator.

        Args:
            weight: (out, ...) the weight that is adapted.
            rank: number of rows of ``down``.
            alpha: strength, together with the rank.
        """
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the sum, in the precision of the weight."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down).view_as(weight)


def add_adapters(network: nn.Module, targets: Collection[str], rank: int, alpha: float, seed: int) -> None:
    """Give weights of a network adapters, and let nothing else train but the last layer.

    Freeze the rest with :func:`prrfl.models.freezing.frozen_keys`. PyTorch's global generator is not changed.

    Args:
        network: is changed.
        targets: patterns of full names of weights. Those that match the last layer, norm layers, weights
            that several layers share, or tensors that are not of rank 2 or 4 are passed over.
        rank: of each adapter.
        alpha: strength of each adapter, together with the rank.
        seed: of the adapters' weights.

    Raises:
        ConfigError: if a pattern matches no weight.
    """
    head, kept = head_keys(network), head_keys(network) | norm_keys(network)
    everywhere = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    weights = {
        key: p
        for key, p in network.named_parameters()
        # An adapter changes the weight of one layer. Networks that are saved have no place for a second one.
        if p.ndim in (2, 4) and key not in kept and ".parametrizations." not in key and everywhere[id(p)] == 1
    }
    chosen: set[str] = set()
    for pattern in targets:
        matched = {key for key in weights if fnmatchcase(key, pattern)}
        if not matched:
            hint = nearest(pattern.strip("*."), sorted(weights))
            raise ConfigError(f"lora_targets '{pattern}' matches no weight that can be adapted{hint}")
        chosen |= matched
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key in head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key in sorted(chosen):
            place, _, name = key.rpartition(".")
            adapter = LowRank(weights[key], rank, alpha)
            parametrize.register_parametrization(network.get_submodule(place), name, adapter)
