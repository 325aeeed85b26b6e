"""Training of the one network of a site, and parts that several methods share."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from prrfl.evaluation import macro_f1
from prrfl.training import Learner, Objective, Site, train_epoch
from prrfl.types import Examples, RoundContext, Tensors


def train_one(
    client: Learner,
    site: Site,
    ctx: RoundContext,
    objective: Objective | None = None,
    given: Tensors | None = None,
    frozen: frozenset[str] = frozenset(),
) -> tuple[Learner, Mapping[str, float]]:
    """Train one network for one local epoch; measure its loss and its macro-F1 during the epoch."""
    epoch = train_epoch([client], site, ctx, objective, given, frozen)
    return epoch.learners[0], {
        "loss": epoch.losses[0],
        "train_f1": macro_f1(epoch.logits[0], epoch.labels),
    }


def some(examples: Examples, count: int, draw: torch.Generator) -> Examples:
    """Return so many random examples, but at least two, because batch norm needs them."""
    rows = torch.randperm(len(examples), generator=draw)[: max(2, count)].to(examples.labels.device)
    return Examples(examples.inputs[rows.to(examples.inputs.device)], examples.labels[rows])


def without(tensors: Tensors, keys: Collection[str]) -> Tensors:
    """Return the tensors whose names are not among the keys."""
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def squared_distance(network: nn.Module, anchor: Tensors) -> Tensor:
    """Return ‖w − anchor‖², the sum over all parameters of a network that train."""
    terms = [
        (weight - anchor[key].to(weight.dtype)).square().sum()
        for key, weight in network.named_parameters()
        if weight.requires_grad
    ]
    return torch.stack(terms).sum()
