"""Networks in evaluation mode: what they predict, and their batch norm's statistics on other images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prrfl.capture import Captured
from prrfl.machine import arithmetic
from prrfl.training.batching import batches, scoring_batch
from prrfl.training.recipe import Recipe, forward
from prrfl.types import Examples, Tensors


def predict(
    models: Sequence[Tensors], data: Examples, recipe: Recipe, draw: torch.Generator | None = None
) -> tuple[Tensor, ...]:
    """Return each model's (N, C) logits on all examples, in file order, in evaluation mode.

    Args:
        models: weights; all see the same batches.
        data: examples.
        recipe: architecture and preparation of inputs.
        draw: source of augmentation; ``None`` for plain images.
    """
    size = scoring_batch(math.prod(data.inputs.shape[2:]), recipe)
    with torch.inference_mode(), arithmetic(recipe.device, recipe.precision):
        scorer = _scorer(recipe, models)
        outputs = [scorer.logits(inputs)[0] for inputs, _ in batches(data, recipe, size, draw)]
    return torch.cat(outputs, dim=1).cpu().clone().unbind()


def _scorer(recipe: Recipe, models: Sequence[Tensors]) -> "_Scorer":
    """Return this thread's networks in evaluation mode, with new weights."""
    scorer: _Scorer = recipe._scorers.get(
        len(models), lambda: _Scorer(recipe, [recipe.make_for_scoring() for _ in models])
    )
    for network, weights in zip(scorer.networks, models, strict=True):
        recipe.refill(network, recipe.for_scoring(weights))
    return scorer


class _Scorer:
    """Networks in evaluation mode that see the same batches."""

    def __init__(self, recipe: Recipe, networks: Sequence[nn.Module]) -> None:
        self.networks = networks
        self.logits = Captured(lambda x: (torch.stack(forward(networks, x, recipe)),), recipe.device)


def reestimate_norms(weights: Tensors, data: Examples, recipe: Recipe) -> Tensors:
    """Return the weights with batch norm's running statistics estimated again on the data, batch by batch.

    Nothing is learnt and no label is used. Other norm layers have no such statistics. Frozen ones stay.
    """
    network = recipe.set_training(recipe.build(weights))
    moving = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    network.eval()
    for module in moving:
        module.train().reset_running_stats()
        module.momentum = None  # a plain mean over batches
    size = scoring_batch(math.prod(data.inputs.shape[2:]), recipe)
    with torch.inference_mode(), arithmetic(recipe.device, recipe.precision):
        for inputs, _ in batches(data, recipe, size):
            forward([network], inputs, recipe)
    return recipe.weights_of(network)
