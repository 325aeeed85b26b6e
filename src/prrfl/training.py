"""How networks are trained and read out: the recipe, the only batch loop, and where randomness comes from."""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from prrfl.folding import Pairs, fold, foldable
from prrfl.machine import arithmetic
from prrfl.types import ClientId, Examples, RoundContext, SiteData, Tensors

Augment = Callable[[Tensor, torch.Generator], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Precision = Literal["float32", "bfloat16", "float64"]


def normalise(images: Tensor) -> Tensor:
    """Map pixels from 0...255 to [-1, 1]: (x/255 - 0.5) / 0.5."""
    return images.float() / 127.5 - 1.0


@dataclass(frozen=True)
class Recipe:
    """Everything about local training that is the same at every site and for every algorithm.

    Attributes:
        network: the architecture, and in its weights the common start.
        batch: images per step. A last batch of one image joins the one before: batch norm needs two.
        optimizer: ``sgd`` (no momentum) or ``adam``; started afresh in every round.
        lr: learning rate of the first rounds, multiplied by ``lr_gamma`` every ``lr_step`` rounds.
        weight_decay: L2 penalty of the optimiser.
        augment: changes a batch of raw inputs with the given generator; ``None`` leaves them as they are.
        normalise: prepares raw inputs for the network.
        loss: (N, C) logits and (N,) labels to a scalar.
        shuffle: whether each epoch draws its own order.
        device: where networks run: ``cpu``, ``cuda``, ``cuda:1``.
        precision: ``bfloat16`` computes the network under autocast; weights stay float32.
    """

    network: nn.Module
    batch: int = 16
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 1e-2
    lr_step: int = 5
    lr_gamma: float = 0.5
    weight_decay: float = 1e-6
    augment: Augment | None = None
    normalise: Callable[[Tensor], Tensor] = normalise
    loss: Loss = functional.cross_entropy
    shuffle: bool = True
    device: str = "cpu"
    precision: Precision = "float32"

    def learning_rate(self, round_index: int) -> float:
        """Return the learning rate of a round: lr · gamma^(t // step)."""
        return self.lr * self.lr_gamma ** (round_index // self.lr_step)

    def build(self, weights: Tensors) -> nn.Module:
        """Return a network of its own with the given weights, on the device."""
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        network = copy.deepcopy(self.network).to(device=self.device, dtype=dtype)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        # Last, for a network of another type would round the weights.
        network.load_state_dict(dict(weights))
        return network

    def build_for_scoring(self, weights: Tensors) -> nn.Module:
        """Return a network in evaluation mode, its batch norm folded into convolutions where it can be."""
        return fold(self.build(weights).eval(), self._foldable)

    @cached_property
    def _foldable(self) -> Pairs:
        return foldable(self.network)


@dataclass(frozen=True)
class Site:
    """What an algorithm is given to train on: a site's data, and the recipe."""

    data: SiteData
    recipe: Recipe

    @property
    def name(self) -> ClientId:
        """The site's name."""
        return self.data.name


@dataclass(frozen=True, eq=False)
class Learner:
    """One network in training at a site: its weights, and its optimiser's memory within a round."""

    weights: Tensors
    memory: Tensors = field(default_factory=dict)


def generator(seed: int, *labels: object) -> torch.Generator:
    """Return a generator that depends on the seed and the labels alone (client, round, epoch, purpose).

    Nothing draws from a global generator, so neither the order of sites nor the engine changes a result.
    """
    digest = hashlib.blake2b(repr((seed, *labels)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") & (2**63 - 1))


def site_generator(site: Site, ctx: RoundContext, purpose: str) -> torch.Generator:
    """Return the generator for one purpose in one local epoch at one site."""
    return generator(ctx.seed, site.name, ctx.round, ctx.epoch, purpose)


def batches(
    data: Examples,
    recipe: Recipe,
    size: int,
    draw: torch.Generator | None = None,
    *,
    shuffle: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield prepared inputs and labels on the recipe's device.

    Args:
        data: examples; the last batch takes a lone remaining example along.
        recipe: device, precision, augmentation and normalisation.
        size: examples per batch.
        draw: source of order and augmentation; ``None`` for plain inputs in file order.
        shuffle: whether to draw an order.
    """
    order = torch.randperm(len(data), generator=draw) if shuffle else torch.arange(len(data))
    chunks = list(torch.split(order, size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    for chunk in chunks:
        # The order is drawn on the CPU, so that it is the same on every device. Nothing here, nor in a step,
        # waits for a GPU: losses and outputs stay there until the epoch is over.
        chunk = chunk.to(data.inputs.device, non_blocking=True)
        inputs = data.inputs[chunk].to(recipe.device, non_blocking=True)
        if recipe.augment is not None and draw is not None:
            inputs = recipe.augment(inputs, draw)
        yield prepare(inputs, recipe), data.labels[chunk].to(recipe.device, non_blocking=True)


def prepare(inputs: Tensor, recipe: Recipe) -> Tensor:
    """Return raw inputs as a network takes them: normalised, in its type, images channels-last."""
    inputs = recipe.normalise(inputs).to(torch.float64 if recipe.precision == "float64" else torch.float32)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


@dataclass(frozen=True, eq=False)
class Epoch:
    """What came out of one training epoch.

    Attributes:
        learners: the networks after it, in the order given.
        losses: mean over batches of each network's own loss (cross-entropy), without extra terms.
        logits: per network, (N, C) outputs in train mode, as they were when each batch was learnt.
        labels: (N,) in the order of the logits.
    """

    learners: tuple[Learner, ...]
    losses: tuple[float, ...]
    logits: tuple[Tensor, ...]
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """One batch, as all networks in training see it, before any of them has learnt from it.

    Attributes:
        networks: the networks in training.
        inputs: (N, ...) as the networks take them.
        labels: (N,).
        logits: per network, (N, C).
        losses: per network, the recipe's loss of its logits.
    """

    networks: tuple[nn.Module, ...]
    inputs: Tensor
    labels: Tensor
    logits: tuple[Tensor, ...]
    losses: tuple[Tensor, ...]


Objective = Callable[[Step], Sequence[Tensor]]
"""Returns the loss that each network descends. Who teaches another must be detached."""


def train_epoch(
    learners: Sequence[Learner],
    site: Site,
    ctx: RoundContext,
    objective: Objective | None = None,
) -> Epoch:
    """Train one or more networks for one local epoch, all on the same batches.

    Args:
        learners: the networks; their tensors are left as they are.
        site: data and recipe.
        ctx: the moment, which fixes learning rate and randomness. At epoch 0 optimisers start afresh.
        objective: what each network descends, if not its own loss.
    """
    recipe = site.recipe
    networks = tuple(recipe.build(learner.weights).train() for learner in learners)
    optimisers = [_optimiser(network, recipe, ctx.round) for network in networks]
    if ctx.epoch > 0:
        for optimiser, learner in zip(optimisers, learners, strict=True):
            _restore(optimiser, learner.memory)
    draw = site_generator(site, ctx, "train")
    losses, outputs, truth = [], [], []
    with (
        arithmetic(recipe.device, recipe.precision),
        _global_seed(ctx.seed, site.name, ctx.round, ctx.epoch, device=recipe.device),
    ):
        for inputs, labels in batches(site.data.train, recipe, recipe.batch, draw, shuffle=recipe.shuffle):
            logits = forward(networks, inputs, recipe)
            own = tuple(recipe.loss(output, labels) for output in logits)
            goals = objective(Step(networks, inputs, labels, logits, own)) if objective else own
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            # Teachers are detached, so the sum's gradient is each network's own.
            torch.stack(list(goals)).sum().backward()  # type: ignore[no-untyped-call]
            for optimiser in optimisers:
                optimiser.step()
            losses.append(torch.stack(own).detach())
            outputs.append(torch.stack(logits).detach())
            truth.append(labels)
    return Epoch(
        learners=tuple(
            Learner(weights=_weights(network), memory=_memory(optimiser))
            for network, optimiser in zip(networks, optimisers, strict=True)
        ),
        losses=tuple(torch.stack(losses).double().mean(0).tolist()),
        logits=tuple(torch.cat(outputs, dim=1).cpu().unbind()),
        labels=torch.cat(truth).cpu(),
    )


def scoring_batch(pixels: int, recipe: Recipe) -> int:
    """Return how many images of so many pixels (or voxels) to score at a time.

    On a CPU as many as keep activations within its cache, which is measurably faster than more. On a GPU as
    many as fill it, but not its memory.
    """
    pixels = max(1, pixels)
    if torch.device(recipe.device).type == "cpu":
        return min(64, max(min(16, recipe.batch), 2**18 // pixels))
    return min(256, max(recipe.batch, 2**22 // pixels))


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
        networks = [recipe.build_for_scoring(weights) for weights in models]
        outputs = [
            torch.stack(forward(networks, inputs, recipe)) for inputs, _ in batches(data, recipe, size, draw)
        ]
    return torch.cat(outputs, dim=1).cpu().clone().unbind()


def reestimate_norms(weights: Tensors, data: Examples, recipe: Recipe) -> Tensors:
    """Return the weights with batch norm's running statistics taken anew, as the mean over batches of data.

    Nothing is learnt, no label is looked at. Other norm layers have no such statistics.
    """
    network = recipe.build(weights).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train().reset_running_stats()
            module.momentum = None  # a plain mean over batches
    size = scoring_batch(math.prod(data.inputs.shape[2:]), recipe)
    with torch.inference_mode(), arithmetic(recipe.device, recipe.precision):
        for inputs, _ in batches(data, recipe, size):
            forward([network], inputs, recipe)
    return _weights(network)


def forward(networks: Sequence[nn.Module], inputs: Tensor, recipe: Recipe) -> tuple[Tensor, ...]:
    """Return each network's (N, C) logits, computed in the recipe's precision, in float32 or better."""
    kind = torch.device(recipe.device).type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        logits = [network(inputs) for network in networks]
    return tuple(output if output.dtype == torch.float64 else output.float() for output in logits)


def _optimiser(network: nn.Module, recipe: Recipe, round_index: int) -> torch.optim.Optimizer:
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[recipe.optimizer]
    optimiser: torch.optim.Optimizer = kind(
        network.parameters(), lr=recipe.learning_rate(round_index), weight_decay=recipe.weight_decay
    )
    return optimiser


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in network.state_dict().items()}


def _memory(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors: ``<parameter index>.<name>``."""
    return {
        f"{index}.{name}": value.detach().to("cpu").contiguous()
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _restore(optimiser: torch.optim.Optimizer, memory: Tensors) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in memory.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value.clone()
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


@contextmanager
def _global_seed(*labels: object, device: str) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) for a while, then put them back."""
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator(*labels).initial_seed())  # type: ignore[arg-type]
        yield
