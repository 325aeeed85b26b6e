"""What an algorithm is: a frozen dataclass of hyper-parameters whose methods are pure functions of states."""

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from prrfl.tensors import WeightedMean
from prrfl.training import Site
from prrfl.types import ClientId, RoundContext, Share, Tensors

C = TypeVar("C")


class Aggregator(Protocol):
    """Takes the sites' shares one by one, in order of site name, and gives their aggregate.

    Attributes:
        only_adds: whether the sum of the shares would do in their place, as secure summation gives it.
    """

    only_adds: ClassVar[bool]

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


class Algorithm(Protocol[C]):
    """A federated method. ``C`` is its state at one site: a frozen dataclass of learners and numbers.

    No method changes what it is given; randomness comes from the context's seed alone.
    """

    def start(self, initial: Tensors) -> C:
        """Return a site's state before the first round, from the common initial weights."""

    def train(self, client: C, site: Site, ctx: RoundContext) -> tuple[C, Mapping[str, float]]:
        """Train for one local epoch; return the new state and whatever was measured."""

    def share(self, client: C, ctx: RoundContext) -> Share:
        """Return all that leaves the site in this round."""

    def aggregator(self, ctx: RoundContext) -> Aggregator:
        """Return a fresh aggregator for one round: :class:`MeanOfShares` unless the method needs more."""

    def receive(self, client: C, mean: Tensors, ctx: RoundContext) -> C:
        """Return the site's state after the round's aggregate has come back."""

    def models(self, client: C) -> Mapping[str, Tensors]:
        """Return the networks worth scoring, by name. The first is the one that the method deploys."""
