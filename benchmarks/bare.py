"""The bare network calls of one DET epoch on random tensors: nothing can be faster in the same forms."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional

from prrfl.training import Recipe, scoring_batch


def bare_epoch(recipe: Recipe, images: int, size: int) -> Callable[[], None]:
    """Return a call that scores with two networks and trains two, batch by batch, and does nothing else.

    Everything that can be done beforehand is done here: networks, optimisers, inputs, folded batch norm.
    """
    weights = recipe.network.state_dict()
    learners = [recipe.build(weights).train() for _ in range(2)]
    scorers = [folded(recipe.build(weights)) for _ in range(2)]
    optimisers = [torch.optim.SGD(n.parameters(), lr=recipe.lr, weight_decay=1e-6) for n in learners]
    to_score = [random_batch(n, size) for n in batch_sizes(images, scoring_batch(size**2, recipe))]
    to_learn = [random_batch(n, size) for n in batch_sizes(images, recipe.batch)]
    labels = torch.arange(recipe.batch + 1) % 3

    def epoch() -> None:
        for inputs in to_score:
            with torch.inference_mode(), in_precision(recipe):
                for network in scorers:
                    network(inputs)
        for inputs in to_learn:
            for network, optimiser in zip(learners, optimisers, strict=True):
                optimiser.zero_grad(set_to_none=True)
                with in_precision(recipe):
                    logits = network(inputs)
                functional.cross_entropy(logits.float(), labels[: len(inputs)]).backward()
                optimiser.step()

    return epoch


def folded(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode with batch norm folded into convolutions."""
    whole: nn.Module = fuse(network.eval())
    return whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def in_precision(recipe: Recipe) -> AbstractContextManager[object]:
    """Compute in the recipe's precision."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16")


def batch_sizes(images: int, batch: int) -> list[int]:
    """Return the sizes of an epoch's batches; a lone last image joins the batch before."""
    sizes = [len(chunk) for chunk in torch.split(torch.arange(images), batch)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def random_batch(n: int, size: int) -> Tensor:
    """Return (n, 3, size, size) normal numbers in channels-last memory."""
    return torch.randn(n, 3, size, size).contiguous(memory_format=torch.channels_last)
