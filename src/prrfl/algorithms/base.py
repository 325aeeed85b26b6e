"""A federated method: a frozen dataclass of hyper-parameters, with pure functions of states."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

from torch import Tensor, nn

from prrfl.tensors import WeightedMean
from prrfl.training import Site
from prrfl.types import ClientId, RoundContext, Share, Tensors

C = TypeVar("C")


class Aggregator(Protocol):
    """Takes the shares of sites one by one, in order of name, and returns their aggregate.

    Attributes:
        only_adds: whether the sum of the shares is enough, which is all that secure summation reveals.
    """

    @property
    def only_adds(self) -> bool:
        """Whether the sum of the shares is enough."""

    def add(self, client: ClientId, share: Share) -> None:
        """Take one site's share."""

    def result(self) -> dict[str, Tensor]:
        """Return the aggregate of all shares taken."""


class MeanOfShares:
    """The default aggregate: the weighted mean."""

    only_adds: ClassVar[bool] = True

    def __init__(self) -> None:
        self._mean = WeightedMean()

    def add(self, client: ClientId, share: Share) -> None:
        """Add one share to the running sum."""
        self._mean.add(share.tensors, share.weight, whose=f"site {client}")

    def result(self) -> dict[str, Tensor]:
        """Return the weighted mean."""
        return self._mean.result()


def _itself(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Traits:
    """What the rest of the package must know about a method. The defaults suit most methods.

    A method that differs sets the class attribute ``traits``; read it with :func:`traits_of`.

    Attributes:
        scope: ``federated``: it needs at least two sites, which exchange shares. ``alone``: one site is
            enough, and nothing leaves it. ``pooled``: it trains one network on the images of all sites,
            which only the simulation can do.
        variants: names of the settings of the method that a site must agree to separately, because they
            send more than the method does by default; see :func:`variant_of`.
        stages: names of the training stages 1, 2, ... that its metric ``stage`` counts; empty without stages.
        loss: name of the loss that it is published with.
        network: makes the network that the method trains and deploys from the one that the settings name;
            by default it is the same.
    """

    scope: Literal["federated", "alone", "pooled"] = "federated"
    variants: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    loss: str = "cross-entropy"
    network: Callable[[nn.Module], nn.Module] = _itself


def traits_of(method: object) -> Traits:
    """Return the traits of a method or of its class: the defaults if it sets none."""
    traits: Traits = getattr(method, "traits", Traits())
    return traits


def variant_of(method: object) -> str:
    """Return which of its :attr:`Traits.variants` a method is with its hyper-parameters; empty if none.

    A method with variants has a property ``variant``.
    """
    variant: str = getattr(method, "variant", "")
    return variant


class Meeting(Protocol[C]):
    """What a method provides besides :class:`Algorithm` if its sites also meet after each local epoch.

    The simulation can bring sites together so often. Over real sites, where a round is one visit, such a
    method cannot run.
    """

    def meets(self, ctx: RoundContext) -> bool:
        """Return whether the sites meet after each local epoch of a round."""

    def epoch_share(self, client: C, ctx: RoundContext) -> Share:
        """Return what the site sends after the local epoch ``ctx.epoch``."""

    def epoch_aggregator(self, ctx: RoundContext) -> Aggregator:
        """Return a new aggregator for what the sites send after an epoch."""

    def epoch_receive(self, client: C, mean: Tensors, ctx: RoundContext) -> C:
        """Return the site's state after the aggregate has come back."""


def meets(method: object, ctx: RoundContext) -> bool:
    """Return whether a method's sites meet after each local epoch of a round; most never do."""
    return hasattr(method, "meets") and meeting(method).meets(ctx)


def meeting(method: object) -> Meeting[Any]:
    """Return a method whose sites meet after each local epoch, as one."""
    return cast(Meeting[Any], method)


class Algorithm(Protocol[C]):
    """A federated method. ``C`` is its state at one site: a frozen dataclass of learners and numbers.

    No method changes its arguments, and all randomness comes from the context's seed. A method may also have
    ``traits`` and ``variant``, see :class:`Traits` and :func:`variant_of`.
    """

    def start(self, initial: Tensors) -> C:
        """Return a site's state before the first round, from the common initial weights."""

    def train(self, client: C, site: Site, ctx: RoundContext) -> tuple[C, Mapping[str, float]]:
        """Train for one local epoch; return the new state and measurements by name."""

    def share(self, client: C, ctx: RoundContext) -> Share:
        """Return everything of the state that leaves the site in this round."""

    def aggregator(self, ctx: RoundContext) -> Aggregator:
        """Return a new aggregator for a round: :class:`MeanOfShares`, unless the method needs another one."""

    def receive(self, client: C, mean: Tensors, ctx: RoundContext) -> C:
        """Return the site's state after the round's aggregate has come back."""

    def models(self, client: C) -> Mapping[str, Tensors]:
        """Return the networks to score, by name: first the one that is deployed, last the one that is shared.

        A method with a single network returns only that.
        """
