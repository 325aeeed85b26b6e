"""One local epoch: the training step of one or more networks, and the only loop over training batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prrfl.capture import Captured, on_gpu, used_here
from prrfl.errors import ConfigError
from prrfl.machine import arithmetic
from prrfl.tensors import detached, head_keys, head_of, under
from prrfl.training.batching import batches
from prrfl.training.randomness import global_seed, site_generator
from prrfl.training.recipe import Learner, Recipe, Site, forward
from prrfl.types import RoundContext, Tensors


@dataclass(frozen=True, eq=False)
class Epoch:
    """What came out of one training epoch.

    Attributes:
        learners: the networks after it, in the order given.
        losses: mean over batches of each network's own loss, the recipe's, without extra terms.
        logits: per network, (N, C) outputs in training mode, each batch's from just before its update.
        labels: (N,) in the order of the logits.
        features: (N, D) inputs of the first network's last linear layer, when the logits were computed;
            ``None`` if the site does not watch the epoch.
    """

    learners: tuple[Learner, ...]
    losses: tuple[float, ...]
    logits: tuple[Tensor, ...]
    labels: Tensor
    features: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One batch, as all networks in training see it, before any of them has learnt from it.

    Attributes:
        networks: the networks in training.
        inputs: (N, ...) as the networks take them.
        labels: (N,).
        logits: per network, (N, C).
        losses: per network, the recipe's loss of its logits.
        features: per network, (N, D) inputs of its last linear layer; empty if a network has none.
        recipe: how the networks train, for further forward passes.
        given: the tensors that the method gave for this epoch, on the device.
        constants: those of the recipe's loss.
    """

    networks: tuple[nn.Module, ...]
    inputs: Tensor
    labels: Tensor
    logits: tuple[Tensor, ...]
    losses: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    recipe: Recipe
    given: Tensors = field(default_factory=dict)
    constants: Tensors = field(default_factory=dict)

    def loss(self, logits: Tensor) -> Tensor:
        """Return the recipe's loss of other logits of the batch, (N, C)."""
        return self.recipe.loss(logits, self.labels, self.constants)

    def given_under(self, prefix: str) -> dict[str, Tensor]:
        """Return the given tensors whose names begin with a prefix, under the rest of their names."""
        return under(self.given, prefix)


Objective = Callable[[Step], Sequence[Tensor]]
"""Returns the loss that each network minimises. The outputs of a network that teaches must be detached.

On a GPU a step is recorded once for each objective, then replayed. So a number that changes from epoch to
epoch must be one of the ``given`` tensors; a number that the function looks up itself would never change. A
new function in every epoch is correct too, but it is recorded every time, which is slow. It must be hashable,
as functions and methods are.
"""


def train_epoch(
    learners: Sequence[Learner],
    site: Site,
    ctx: RoundContext,
    objective: Objective | None = None,
    given: Tensors | None = None,
    frozen: frozenset[str] = frozenset(),
) -> Epoch:
    """Train one or more networks for one local epoch, all on the same batches.

    Args:
        learners: the networks; their tensors are left as they are.
        site: data and recipe.
        ctx: the current moment, which determines learning rate and randomness. At epoch 0 optimisers restart.
        objective: what each network minimises; by default its own loss.
        given: tensors that the objective reads, by name; of the same shapes in every epoch.
        frozen: names of the parameters that do not learn. Statistics of batch norm are not among them.
    """
    recipe = site.recipe
    trainer, step = _trainer(recipe, len(learners), objective, site.watch is not None, frozen)
    draw = site_generator(site, ctx, "train")
    losses, logits, features, truth = [], [], [], []
    seen = (ctx.round * ctx.epochs + ctx.epoch) * len(site.data.train)
    with (
        arithmetic(recipe.device, recipe.precision),
        global_seed(ctx.seed, site.name, ctx.round, ctx.epoch, device=recipe.device),
    ):
        if not trainer.begin(learners, ctx, given or {}, {**_constants(site, ctx), **site.constants}):
            step.forget()
        for inputs, labels in batches(site.data.train, recipe, recipe.batch, draw, shuffle=recipe.shuffle):
            own, outputs, *watched = step(inputs, labels)
            losses.append(own)
            logits.append(outputs)
            features += watched
            truth.append(labels)
            if recipe.counter is not None:
                seen += len(labels)
                recipe.counter.note(site.name, seen)
    epoch = Epoch(
        learners=trainer.learners(),
        losses=tuple(torch.stack(losses).double().mean(0).tolist()),
        logits=tuple(torch.cat(logits, dim=1).cpu().unbind()),
        labels=torch.cat(truth).cpu(),
        features=torch.cat(features).cpu() if features else None,
    )
    if site.watch is not None:
        site.watch(epoch)
    return epoch


def _constants(site: Site, ctx: RoundContext) -> Tensors:
    """Return the constants of the loss at a site.

    Raises:
        ConfigError: if the loss needs the class counts of all sites, and nobody counted.
    """
    loss = site.recipe.loss
    match loss.counts:
        case "none":
            return loss.constants(torch.empty(0))
        case "site":
            _, head = head_of(site.recipe.network)
            return loss.constants(torch.bincount(site.data.train.labels.cpu(), minlength=head.out_features))
        case "federation" if ctx.class_counts:
            return loss.constants(torch.tensor(ctx.class_counts))
    raise ConfigError(
        f"loss {type(loss).__name__} needs the class counts of all sites; set RoundContext.class_counts"
    )


def _trainer(
    recipe: Recipe, networks: int, objective: Objective | None, watched: bool, frozen: frozenset[str]
) -> tuple["_Trainer", Captured]:
    """Return this thread's networks to train, and their step with what was recorded of it."""

    def make() -> tuple[_Trainer, Captured]:
        trainer = _Trainer(recipe, networks, objective, watched, frozen)
        return trainer, Captured(trainer.step, recipe.device)

    key = (networks, objective, watched, frozen)
    kept: tuple[_Trainer, Captured] = recipe._trainers.get(key, make)
    return kept


class _Trainer:
    """Networks that train on the same batches, their optimisers, and the step that they take together."""

    def __init__(
        self,
        recipe: Recipe,
        networks: int,
        objective: Objective | None,
        watched: bool,
        frozen: frozenset[str],
    ) -> None:
        self._recipe, self._objective, self._watched = recipe, objective, watched
        self._networks = tuple(recipe.set_training(recipe.make_network()) for _ in range(networks))
        self._optimisers = [_optimiser(network, recipe) for network in self._networks]
        self._given: dict[str, Tensor] = {}
        self._constants: dict[str, Tensor] = {}
        self._features: list[Tensor] = []
        for network in self._networks:
            if head_keys(network) or watched:
                _, head = head_of(network)
                head.register_forward_pre_hook(partial(_note, self._features))
            for key, parameter in network.named_parameters():
                if key in frozen:
                    # The optimiser skips a parameter without a gradient; weight decay would move it.
                    parameter.requires_grad_(False)

    def begin(
        self, learners: Sequence[Learner], ctx: RoundContext, given: Tensors, constants: Tensors
    ) -> bool:
        """Copy the start of an epoch into the memory that a recorded step reads.

        Returns:
            Whether a step that was recorded before still fits.
        """
        fits = True
        for network, optimiser, learner in zip(self._networks, self._optimisers, learners, strict=True):
            self._recipe.refill(network, learner.weights)
            fits &= _recall(optimiser, learner.memory if ctx.epoch > 0 else {})
        lr = self._recipe.learning_rate(ctx.round)
        if any(group["lr"] != lr for optimiser in self._optimisers for group in optimiser.param_groups):
            fits = False  # a recording contains the old number
            for optimiser in self._optimisers:
                optimiser.param_groups[0]["lr"] = lr
        for held, now in ((self._given, given), (self._constants, constants)):
            if held.keys() != now.keys():
                fits = False
                held.clear()
                held.update({key: torch.empty_like(t, device=self._recipe.device) for key, t in now.items()})
            for key, tensor in now.items():
                held[key].copy_(tensor, non_blocking=True)
        return fits

    def step(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Train on one batch; return the losses (K,) and the logits (K, N, C) before the update.

        If the epoch is watched, also return the features of the first network, (N, D).
        """
        networks, recipe = self._networks, self._recipe
        logits = forward(networks, inputs, recipe)
        features = tuple(used_here(seen, recipe.device) for seen in self._features)
        own = tuple(recipe.loss(output, labels, self._constants) for output in logits)
        step = Step(networks, inputs, labels, logits, own, features, recipe, self._given, self._constants)
        goals = self._objective(step) if self._objective else own
        self._features.clear()  # also what the objective's own forward passes left
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        # Teachers are detached, so the sum's gradient is each network's own.
        total = torch.stack(list(goals)).sum()
        if total.requires_grad:  # unless all that the method would train now is frozen
            total.backward()  # type: ignore[no-untyped-call]
        for optimiser in self._optimisers:
            optimiser.step()
        watched = [features[0].detach()] if self._watched else []
        return torch.stack(own).detach(), torch.stack(logits).detach(), *watched

    def learners(self) -> tuple[Learner, ...]:
        """Return the networks as they are now."""
        return tuple(
            Learner(weights=self._recipe.weights_of(network), memory=_memory(optimiser))
            for network, optimiser in zip(self._networks, self._optimisers, strict=True)
        )


def features_of(step: Step, weights: Tensors) -> Tensor:
    """Return the (N, D) features of a batch in a network that does not learn, in evaluation mode.

    Args:
        step: the batch; the network has the architecture of its first one.
        weights: the network's state_dict, of ``given`` tensors.
    """
    network, seen = step.networks[0], list[Tensor]()
    handle = head_of(network)[1].register_forward_pre_hook(partial(_note, seen))
    network.eval()
    with torch.no_grad():
        fixed = partial(functional_call, network, dict(weights), tie_weights=False)
        forward([fixed], step.inputs, step.recipe)
    step.recipe.set_training(network)
    handle.remove()
    return seen[0]


def with_features(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return a network's logits, (N, C), and the inputs of its last linear layer, (N, D)."""
    seen: list[Tensor] = []
    handle = head_of(network)[1].register_forward_pre_hook(partial(_note, seen))
    logits: Tensor = network(inputs)
    handle.remove()
    return logits, seen[0]


def _note(seen: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(inputs[0])


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    lr, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer == "adam":
        # The count of steps must be on the GPU, or a recorded step would not count.
        return torch.optim.Adam(
            network.parameters(), lr, weight_decay=decay, capturable=on_gpu(recipe.device)
        )
    return torch.optim.SGD(network.parameters(), lr, weight_decay=decay)


def _memory(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a copy of an optimiser's state on the CPU, as :func:`_held` names it."""
    return detached(_held(optimiser))


def _recall(optimiser: torch.optim.Optimizer, memory: Tensors) -> bool:
    """Set an optimiser to the memory that :func:`_memory` returned, or to its initial state without one.

    Returns:
        Whether the state stayed in its place, where a recorded step reads and writes it.
    """
    held = _held(optimiser)
    if memory and memory.keys() != held.keys():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in memory.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value.clone()
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        return False
    for key, value in held.items():
        value.copy_(memory[key]) if memory else value.zero_()  # SGD and Adam start with zeros
    return True


def _held(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state, by ``<parameter index>.<name>``."""
    return {
        f"{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
