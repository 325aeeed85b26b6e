"""The source of all randomness in training."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from prrfl.capture import on_gpu
from prrfl.training.batching import prepare
from prrfl.training.recipe import Recipe, Site, forward
from prrfl.types import RoundContext


def generator(seed: int, *labels: object) -> torch.Generator:
    """Return a generator that depends on the seed and the labels alone (client, round, epoch, purpose).

    Only dropout draws from a global generator, which is then seeded in the same way. So neither the order of
    sites nor the engine changes a result.
    """
    digest = hashlib.blake2b(repr((seed, *labels)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") & (2**63 - 1))


def site_generator(site: Site, ctx: RoundContext, purpose: str) -> torch.Generator:
    """Return the generator for one purpose in one local epoch at one site."""
    return generator(ctx.seed, site.name, ctx.round, ctx.epoch, purpose)


@contextmanager
def global_seed(*labels: object, device: str) -> Iterator[None]:
    """Within the block, seed PyTorch's global generators, which dropout uses; then restore them."""
    seed = generator(*labels).initial_seed()  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[device] if on_gpu(device) else []):
        # Not torch.manual_seed, which also looks for every other kind of device.
        torch.default_generator.manual_seed(seed)
        if on_gpu(device):
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def draws_numbers(recipe: Recipe, inputs: Tensor) -> bool:
    """Return whether the network itself draws random numbers in training, as dropout does.

    Args:
        recipe: the network, and its device.
        inputs: at least two raw inputs to try it on.
    """
    with global_seed(0, device=recipe.device):
        before = _global_states(recipe.device)
        forward([recipe.set_training(recipe.build(recipe.initial()))], prepare(inputs, recipe), recipe)
        return any(not torch.equal(a, b) for a, b in zip(before, _global_states(recipe.device), strict=True))


def _global_states(device: str) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if on_gpu(device) else [])]
