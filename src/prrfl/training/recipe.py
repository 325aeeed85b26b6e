"""The recipe of local training, and what a method is given: a site, and learners to train there."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from prrfl.capture import ThreadCache, on_gpu, side_by_side
from prrfl.errors import StateMismatchError
from prrfl.folding import Pairs, foldable, folded, without_adapters, without_norms
from prrfl.losses import CrossEntropy, Loss
from prrfl.tensors import detached, head_keys, name_of
from prrfl.training.counter import ImageCounter
from prrfl.types import ClientId, SiteData, Tensors

if TYPE_CHECKING:
    from prrfl.training.epoch import Epoch

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

    Examples:
        >>> from prrfl import Recipe
        >>> from prrfl.testing.sites import tiny_network
        >>> recipe = Recipe(tiny_network(), batch=8, lr=0.02)
        >>> [recipe.learning_rate(round_index) for round_index in (0, 4, 5, 10)]
        [0.02, 0.02, 0.01, 0.005]
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
        kept = {torch.float32, self.dtype}
        for key, tensor in (*self.network.named_parameters(), *self.network.named_buffers()):
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in kept:
                raise StateMismatchError(
                    f"network: '{key}' is {name_of(tensor.dtype)}, which training in {self.precision} cannot "
                    f"keep; expected {' or '.join(sorted(map(name_of, kept)))}: convert it, complex numbers "
                    "by torch.view_as_real"
                )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and inputs."""
        return torch.float64 if self.precision == "float64" else torch.float32

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
        network = self.make_network()
        # Only now that the type is set: a network of a narrower type would round the weights.
        self.load(network, weights)
        return network

    def load(self, network: nn.Module, weights: Tensors) -> None:
        """Load weights into a network of :meth:`make_network`, which has the frozen tensors already."""
        missing, unexpected = network.load_state_dict(dict(weights), strict=False)
        if wrong := [*unexpected, *(key for key in missing if key not in self.frozen)]:
            raise StateMismatchError(f"the weights do not fit the network: '{wrong[0]}'")

    def refill(self, network: nn.Module, weights: Tensors) -> None:
        """Reset a network of :meth:`make_network` to the given weights, in its own memory."""
        self.load(network, weights)
        for name, buffer in network.named_buffers():
            if name not in weights and name not in self.frozen:  # a buffer that a state_dict leaves out
                buffer.copy_(self.network.get_buffer(name))

    def weights_of(self, network: nn.Module) -> dict[str, Tensor]:
        """Return a copy of a network's weights as a method holds them: on the CPU, without frozen tensors."""
        return detached({key: t for key, t in network.state_dict().items() if key not in self.frozen})

    def make_network(self) -> nn.Module:
        """Return a new network on the device, in its type; its weights are still to be loaded."""
        network = copy.deepcopy(self.network).to(device=self.device, dtype=self.dtype)
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

    def make_for_scoring(self) -> nn.Module:
        """Return a new network in evaluation mode, without the batch norm that is folded into convolutions.

        Its weights, of :meth:`for_scoring`, are still to be loaded.
        """
        return without_norms(self.make_network().eval(), self._foldable)

    def for_scoring(self, weights: Tensors) -> Tensors:
        """Return weights for a network of :meth:`make_for_scoring`. The given ones need no frozen tensors."""
        if not self._foldable:
            return weights
        whole = {**self.frozen_tensors(), **weights} if self.frozen else weights
        exact = {key: t.to(self.dtype) if t.is_floating_point() else t for key, t in whole.items()}
        return folded(exact, self.network, self._foldable)

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
        # On a GPU, scoring would be 3 % faster, and folding would take longer than that.
        return () if on_gpu(self.device) else foldable(self.network)

    # What the two loops keep from epoch to epoch: networks in memory that steps recorded for a GPU read.

    @cached_property
    def _trainers(self) -> ThreadCache[object, Any]:
        return ThreadCache()

    @cached_property
    def _scorers(self) -> ThreadCache[int, Any]:
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
