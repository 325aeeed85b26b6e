"""How networks train and predict: the recipe, the only batch loop, and the source of all randomness."""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from mmap import mmap
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prrfl.capture import Captured, ThreadCache, on_gpu, side_by_side, used_here
from prrfl.errors import ConfigError, StateMismatchError
from prrfl.folding import Pairs, fold, foldable, without_adapters
from prrfl.losses import CrossEntropy, Loss
from prrfl.machine import arithmetic
from prrfl.tensors import head_keys, head_of, name_of, under
from prrfl.types import ClientId, Examples, RoundContext, SiteData, Tensors

D = TypeVar("D")


class Augment(Protocol[D]):
    """An augmentation in two steps: draw all random numbers on the CPU, then compute without any."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> D:
        """Draw, on the CPU, what happens to each image of a data set of shape (N, ...) in one epoch."""

    def __call__(self, images: Tensor, drawn: D, rows: Tensor) -> Tensor:
        """Return changed copies of some images.

        Args:
            images: (M, ...) on any device.
            drawn: what was drawn for all images.
            rows: (M,) their indices in the data set, on the CPU.
        """


Precision = Literal["float32", "bfloat16", "float64"]

Weighting = Literal["uniform", "images"]
"""How much each site counts in a mean."""


def normalise(images: Tensor) -> Tensor:
    """Map pixels from 0...255 to [-1, 1]: (x/255 - 0.5) / 0.5."""
    return images.float() / 127.5 - 1.0


class ImageCounter:
    """How many images each site has trained on since the first round, for anyone who shows progress.

    The counts are in memory that forked processes share: whichever process trains a site counts, and any
    process or thread can read at any time. On a GPU, steps are counted when they are launched.
    """

    def __init__(self, sizes: Mapping[ClientId, int]) -> None:
        """Start at 0.

        Args:
            sizes: number of training images of each site that trains.
        """
        self.sizes = dict(sizes)
        self._places = {name: place for place, name in enumerate(sizes)}
        self._counts = memoryview(mmap(-1, 8 * max(1, len(sizes)))).cast("q")

    def note(self, site: ClientId, images: int) -> None:
        """Set the count of a site; ignore a site that is not counted."""
        # One store of eight aligned bytes: who reads meanwhile sees the old number or the new one.
        if (place := self._places.get(site)) is not None:
            self._counts[place] = images

    def read(self) -> dict[ClientId, int]:
        """Return the counts of all sites."""
        return {name: self._counts[place] for name, place in self._places.items()}


@dataclass(frozen=True)
class Recipe:
    """Everything about local training that is the same at every site and for every algorithm.

    Attributes:
        network: the architecture, and in its weights the common start.
        batch: images per step. A last batch of one image joins the batch before it: batch norm needs two.
        optimizer: ``sgd`` (no momentum) or ``adam``; restarted in every round.
        lr: learning rate of the first rounds, multiplied by ``lr_gamma`` every ``lr_step`` rounds.
        weight_decay: L2 penalty of the optimiser.
        augment: changes training inputs at random; ``None`` leaves them as they are.
        normalise: prepares raw inputs for the network.
        loss: what networks minimise, unless the method adds to it.
        shuffle: whether each epoch draws its own order.
        device: where networks run: ``cpu``, ``cuda``, ``cuda:1``.
        precision: ``bfloat16`` computes the network under autocast; weights stay float32.
        frozen: names of the network's tensors that do not train, from
            :func:`prrfl.models.freezing.frozen_keys`. They are part of the recipe, not of a site's state:
            methods do not see them, and they are neither sent nor saved with each state.
        counter: counts the images of each step; ``None`` counts nothing.
        weighting: how much each site counts in a mean: all the same (``uniform``), or by its number of
            training images (``images``).
    """

    network: nn.Module
    batch: int = 16
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 1e-2
    lr_step: int = 5
    lr_gamma: float = 0.5
    weight_decay: float = 1e-6
    augment: Augment[Any] | None = None
    normalise: Callable[[Tensor], Tensor] = normalise
    loss: Loss = field(default_factory=CrossEntropy)
    shuffle: bool = True
    device: str = "cpu"
    precision: Precision = "float32"
    frozen: frozenset[str] = frozenset()
    counter: ImageCounter | None = None
    weighting: Weighting = "uniform"

    def __post_init__(self) -> None:
        """Check that training can keep every number of the network.

        Raises:
            StateMismatchError: naming a parameter or buffer that is neither an integer nor of the precision.
        """
        kept = {torch.float32, *({torch.float64} if self.precision == "float64" else {})}
        for key, tensor in (*self.network.named_parameters(), *self.network.named_buffers()):
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in kept:
                raise StateMismatchError(
                    f"network: '{key}' is {name_of(tensor.dtype)}, which training in {self.precision} cannot "
                    f"keep; expected {' or '.join(sorted(map(name_of, kept)))}: convert it, complex numbers "
                    "by torch.view_as_real"
                )

    def learning_rate(self, round_index: int) -> float:
        """Return the learning rate of a round: lr · gamma^(t // step)."""
        return self.lr * self.lr_gamma ** (round_index // self.lr_step)

    def initial(self) -> Tensors:
        """Return the weights that a method starts with: the network's tensors, without the frozen ones."""
        return {key: tensor for key, tensor in self.network.state_dict().items() if key not in self.frozen}

    def around(self, network: nn.Module) -> "Recipe":
        """Return the recipe for a network that holds this recipe's network, whole or without its last layer.

        It may hold it several times. What is frozen here is frozen there, in each of them.
        """
        own, head = self.network.state_dict().keys(), head_keys(self.network)
        frozen = [
            f"{name}.{key}" if name else key
            for name, module in network.named_modules()
            if (held := module.state_dict().keys()) | head == own
            for key in self.frozen & held
        ]
        return replace(self, network=network, frozen=frozenset(frozen))

    def frozen_tensors(self) -> Tensors:
        """Return the tensors that do not train."""
        return {key: tensor for key, tensor in self.network.state_dict().items() if key in self.frozen}

    def whole(self, weights: Tensors) -> Tensors:
        """Return the state_dict with which a network is used: with frozen tensors, without adapters."""
        if not self.frozen:
            return weights
        return without_adapters(self.network, {**self.network.state_dict(), **weights})

    def build(self, weights: Tensors) -> nn.Module:
        """Return a new network with the given weights, on the device. They need not hold frozen tensors."""
        network = self._make_network()
        # Only now that the type is set: a network of a narrower type would round the weights.
        self._load(network, weights)
        return network

    def _load(self, network: nn.Module, weights: Tensors) -> None:
        """Load weights into a network of :meth:`_make_network`, which has the frozen tensors already."""
        missing, unexpected = network.load_state_dict(dict(weights), strict=False)
        if wrong := [*unexpected, *(key for key in missing if key not in self.frozen)]:
            raise StateMismatchError(f"the weights do not fit the network: '{wrong[0]}'")

    def _make_network(self) -> nn.Module:
        """Return a new network on the device, in its type; weights are still to be loaded."""
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        network = copy.deepcopy(self.network).to(device=self.device, dtype=dtype)
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        for key, parameter in network.named_parameters():
            if key in self.frozen:
                # No gradient is computed for it then, nor for any layer before the first one that trains.
                parameter.requires_grad_(False)
        return network

    def set_training(self, network: nn.Module) -> nn.Module:
        """Set a network to training mode, but for layers with frozen statistics; return it.

        Such a layer, batch norm for instance, normalises with its statistics and leaves them as they are.
        """
        network.train()
        for name, module in network.named_modules():
            prefix = f"{name}." if name else ""
            if any(f"{prefix}{key}" in self.frozen for key, _ in module.named_buffers(recurse=False)):
                module.training = False
        return network

    def build_for_scoring(self, weights: Tensors) -> nn.Module:
        """Return a network in evaluation mode, its batch norm folded into convolutions where it can be."""
        return fold(self.build(weights).eval(), self._foldable)

    def derived(self, make: "Callable[[Recipe], Recipe]") -> "Recipe":
        """Return ``make(self)``, the same object in every epoch, so that steps recorded for a GPU are kept.

        Args:
            make: returns the recipe with a network or optimiser of the method's own. A function of a module,
                or a method of the method.
        """
        if make not in self._derived:
            self._derived.setdefault(make, make(self))
        return self._derived[make]

    @cached_property
    def _derived(self) -> "dict[Callable[[Recipe], Recipe], Recipe]":
        return {}

    @cached_property
    def _foldable(self) -> Pairs:
        return foldable(self.network)

    @cached_property
    def _trainers(self) -> "ThreadCache[object, tuple[_Trainer, Captured]]":
        return ThreadCache()

    @cached_property
    def _scorers(self) -> "ThreadCache[int, _Scorer]":
        return ThreadCache()


@dataclass(frozen=True)
class Site:
    """What an algorithm is given to train on: a site's data, and the recipe.

    A method around another one, such as :class:`prrfl.algorithms.prototyped.Prototyped`, sets the rest.

    Attributes:
        data: the site's images.
        recipe: how to train.
        constants: tensors for the loss, besides those that it computes from class counts.
        watch: takes each epoch that is trained, with the features of its first network.
    """

    data: SiteData
    recipe: Recipe
    constants: Tensors = field(default_factory=dict)
    watch: "Callable[[Epoch], None] | None" = None

    @property
    def name(self) -> ClientId:
        """The site's name."""
        return self.data.name


@dataclass(frozen=True, eq=False)
class Learner:
    """One network in training at a site: its weights, and its optimiser's state within a round."""

    weights: Tensors
    memory: Tensors = field(default_factory=dict)


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
    inputs = recipe.normalise(inputs).to(torch.float64 if recipe.precision == "float64" else torch.float32)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


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
new function in every epoch is correct too, but it is recorded every time, which is slow.
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
        _global_seed(ctx.seed, site.name, ctx.round, ctx.epoch, device=recipe.device),
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
    """Return networks to train and their step: new ones, or on a GPU those of this thread with recordings."""

    def make() -> tuple[_Trainer, Captured]:
        trainer = _Trainer(recipe, networks, objective, watched, frozen)
        return trainer, Captured(trainer.step, recipe.device)

    key = (networks, objective, watched, frozen)
    return recipe._trainers.get(key, make) if on_gpu(recipe.device) else make()


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
        self._networks = tuple(recipe.set_training(recipe._make_network()) for _ in range(networks))
        self._optimisers = [_optimiser(network, recipe) for network in self._networks]
        self._given: dict[str, Tensor] = {}
        self._constants: dict[str, Tensor] = {}
        self._features: list[Tensor] = []
        for network in self._networks:
            if head_keys(network) or watched:
                _, head = head_of(network)
                # Not self: a cycle of references would keep the memory of every epoch for a while.
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
            _refill(network, learner.weights, self._recipe)
            _recall(optimiser, learner.memory if ctx.epoch > 0 else {})
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
            Learner(weights=_weights(network, self._recipe), memory=_memory(optimiser))
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
        scorer = _scorer(recipe, models)
        outputs = [scorer.logits(inputs)[0] for inputs, _ in batches(data, recipe, size, draw)]
    return torch.cat(outputs, dim=1).cpu().clone().unbind()


def _scorer(recipe: Recipe, models: Sequence[Tensors]) -> "_Scorer":
    """Return networks in evaluation mode: new ones, or on a GPU those of this thread with new weights."""
    if not on_gpu(recipe.device):
        return _Scorer(recipe, [recipe.build_for_scoring(weights) for weights in models])
    # Not folded: on a GPU that is hardly faster, and folding takes longer than copying weights.
    scorer = recipe._scorers.get(
        len(models), lambda: _Scorer(recipe, [recipe._make_network().eval() for _ in models])
    )
    for network, weights in zip(scorer.networks, models, strict=True):
        _refill(network, weights, recipe)
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
    return _weights(network, recipe)


def forward(
    networks: Sequence[Callable[[Tensor], Tensor]], inputs: Tensor, recipe: Recipe
) -> tuple[Tensor, ...]:
    """Return each network's (N, C) logits: computed in the recipe's precision, returned as float32 or 64."""
    kind = torch.device(recipe.device).type

    def output(network: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = network(inputs)
        return logits if logits.dtype == torch.float64 else logits.float()

    return tuple(side_by_side([partial(output, network) for network in networks], recipe.device))


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    lr, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer == "adam":
        # The count of steps must be on the GPU, or a recorded step would not count.
        return torch.optim.Adam(
            network.parameters(), lr, weight_decay=decay, capturable=on_gpu(recipe.device)
        )
    return torch.optim.SGD(network.parameters(), lr, weight_decay=decay)


def _refill(network: nn.Module, weights: Tensors, recipe: Recipe) -> None:
    """Reset a network to the given weights, in its own memory."""
    recipe._load(network, weights)
    for name, buffer in network.named_buffers():
        if name not in weights and name not in recipe.frozen:  # a buffer that a state_dict leaves out
            buffer.copy_(recipe.network.get_buffer(name))


def _weights(network: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    return {
        key: tensor.detach().to("cpu").contiguous()
        for key, tensor in network.state_dict().items()
        if key not in recipe.frozen
    }


def _memory(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors: ``<parameter index>.<name>``."""
    return {
        f"{index}.{name}": value.detach().to("cpu").contiguous()
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _recall(optimiser: torch.optim.Optimizer, memory: Tensors) -> None:
    """Set an optimiser to the memory that :func:`_memory` returned, or to its initial state without one."""
    held = optimiser.state_dict()["state"]
    if not held and memory:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in memory.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value.clone()
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    # In place, because a recorded step reads and writes this memory. SGD and Adam start with zeros.
    for index, values in held.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                value.copy_(memory[f"{index}.{name}"]) if memory else value.zero_()


def draws_numbers(recipe: Recipe, inputs: Tensor) -> bool:
    """Return whether the network itself draws random numbers in training, as dropout does.

    Args:
        recipe: the network, and its device.
        inputs: at least two raw inputs to try it on.
    """
    with _global_seed(0, device=recipe.device):
        before = _global_states(recipe.device)
        forward([recipe.set_training(recipe.build(recipe.initial()))], prepare(inputs, recipe), recipe)
        return any(not torch.equal(a, b) for a, b in zip(before, _global_states(recipe.device), strict=True))


def _global_states(device: str) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if on_gpu(device) else [])]


@contextmanager
def _global_seed(*labels: object, device: str) -> Iterator[None]:
    """Within the block, seed PyTorch's global generators, which dropout uses; then restore them."""
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(generator(*labels).initial_seed())  # type: ignore[arg-type]
        yield
