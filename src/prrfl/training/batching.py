"""Batches of inputs as networks take them: in what order, augmented and normalised how."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from prrfl.capture import on_gpu
from prrfl.training.recipe import Recipe
from prrfl.types import Examples

SPAN = 2**26
"""How many numbers (images x channels x height x width) are prepared for a GPU at a time, at most."""


def batches(
    data: Examples,
    recipe: Recipe,
    size: int,
    draw: torch.Generator | None = None,
    *,
    shuffle: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield prepared inputs and labels on the recipe's device.

    All random numbers of an epoch are drawn at once, on the CPU and image by image in file order. So they
    depend neither on the device nor on the batch size. Neither this function nor a step waits for a GPU:
    losses and outputs stay there until the end of the epoch.

    Args:
        data: examples; a last batch of one example joins the batch before it.
        recipe: device, precision, augmentation and normalisation.
        size: examples per batch.
        draw: source of order and augmentation; ``None`` for plain inputs in file order.
        shuffle: whether to draw an order.
    """
    order = torch.randperm(len(data), generator=draw) if shuffle else torch.arange(len(data))
    augment = recipe.augment if draw is not None else None
    drawn = augment.draw(data.inputs.shape, draw) if augment is not None and draw is not None else None
    chunks = list(torch.split(order, size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    # A CPU prepares one batch, which is then still in its cache. A GPU prepares hundreds at once.
    together = max(1, SPAN // math.prod([size, *data.inputs.shape[1:]])) if on_gpu(recipe.device) else 1
    for first in range(0, len(chunks), together):
        span = chunks[first : first + together]
        rows = torch.cat(span)
        there = rows.to(data.inputs.device, non_blocking=True)
        inputs = data.inputs[there].to(recipe.device, non_blocking=True)
        labels = data.labels[there].to(recipe.device, non_blocking=True)
        if augment is not None:
            inputs = augment(inputs, drawn, rows)
        sizes = [len(chunk) for chunk in span]
        yield from zip(torch.split(prepare(inputs, recipe), sizes), torch.split(labels, sizes), strict=True)


def prepare(inputs: Tensor, recipe: Recipe) -> Tensor:
    """Return raw inputs as a network takes them: normalised, in its type, images channels-last."""
    inputs = recipe.normalise(inputs).to(recipe.dtype)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def scoring_batch(pixels: int, recipe: Recipe) -> int:
    """Return how many images of so many pixels (or voxels) to score at a time.

    On a CPU as many as keep activations within its cache, which is measurably faster than more. On a GPU as
    many as fill it, but not its memory.
    """
    pixels = max(1, pixels)
    if torch.device(recipe.device).type == "cpu":
        return min(64, max(min(16, recipe.batch), 2**18 // pixels))
    return min(256, max(recipe.batch, 2**22 // pixels))
