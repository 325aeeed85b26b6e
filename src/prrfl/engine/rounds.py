"""The round loop. It sees a method as its protocol, and an engine as an exchange of shares."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from prrfl.algorithms.base import Algorithm, meeting, meets
from prrfl.errors import ParticipationError
from prrfl.tensors import count_bytes, head_keys, norm_keys
from prrfl.types import ClientId, ExchangeRecord, RoundContext, RoundRecord, Share, Tensors


@dataclass(frozen=True)
class Arrival:
    """A share that an exchange hands to the aggregator.

    Attributes:
        share: the share of one site. Under secure summation, where the server sees no single share: the mean
            of the shares of several sites, with the sum of their weights.
        bytes_up: bytes sent, for each site that contributed.
    """

    share: Share
    bytes_up: Mapping[ClientId, int]

    @property
    def whose(self) -> str:
        """Names of the sites that contributed, separated by commas."""
        return ", ".join(self.bytes_up)


@dataclass(frozen=True, eq=False)
class Deployed:
    """The network that a site would deploy now.

    Attributes:
        client: the site.
        model: the network's name in the method.
        weights: its state_dict.
        valid: per site on which it is scored, (N, C) logits of the validation images.
        test: the same for the test images.
    """

    client: ClientId
    model: str
    weights: Tensors
    valid: Tensors
    test: Tensors


class Exchange(Protocol):
    """Brings a method to its sites, in this process or elsewhere. The round loop needs no more than this."""

    def train(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Train every present site for one round; yield each site's records, then its share."""

    def receive(self, mean: Tensors, ctx: RoundContext) -> Iterator[RoundRecord]:
        """Send the mean to every site that shared in this round; yield their records."""


class Keeper(Protocol):
    """Holds the states of all sites, so that a run can be saved and resumed."""

    def save(self, folder: Path) -> None:
        """Write every site's state as ``<site>.safetensors`` into a folder."""

    def load(self, folder: Path) -> None:
        """Replace every site's state by one that was saved.

        Raises:
            StateMismatchError: if a state is missing, damaged, or of another method or network.
        """

    def deployed(self) -> Iterator[Deployed]:
        """Yield the network that each site would deploy now."""


class InStep(Protocol):
    """Brings sites together after each local epoch, for a method that asks for it (``Meeting``)."""

    def train_epoch(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Train every present site for one local epoch; yield each site's records, then what it sends."""

    def meet(self, mean: Tensors, ctx: RoundContext) -> None:
        """Give the epoch's aggregate to every site that sent something."""

    def share(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Let every present site end its round; yield each site's records, then its share."""


class Engine(Exchange, InStep, Keeper, Protocol):
    """A simulation engine: an exchange that also holds the states of its sites."""


def run_rounds(
    algorithm: Algorithm[Any],
    exchange: Exchange,
    *,
    rounds: int,
    epochs: int,
    network: nn.Module,
    seed: int = 0,
) -> Iterator[RoundRecord]:
    """Run a federation from its first round; yield the records as they arise.

    Args:
        algorithm: the method.
        exchange: the engine.
        rounds: number T of communication rounds.
        epochs: number E of local epochs per round.
        network: the network that is trained. Its layers tell the method which tensors belong to norm layers
            and to the last layer. Its weights do not matter here.
        seed: seed of all randomness.

    Raises:
        ParticipationError: if no site shares anything in a round.

    Examples:
        >>> from prrfl import InProcess, Recipe, run_rounds
        >>> from prrfl.algorithms import FedAvg
        >>> from prrfl.testing.sites import tiny_network, tiny_sites
        >>> network = tiny_network()
        >>> engine = InProcess(FedAvg(), tiny_sites(2), Recipe(network, batch=8))
        >>> for record in run_rounds(FedAvg(), engine, rounds=2, epochs=1, network=network):
        ...     if record.kind == "exchange":
        ...         print(f"round {record.round + 1}: {record.bytes_up['s0']} bytes from s0")
        round 1: 1052 bytes from s0
        round 2: 1052 bytes from s0
    """
    start = RoundContext(0, rounds, 0, epochs, seed, norm_keys(network), head_keys(network))
    return rounds_from(start, algorithm, exchange)


def rounds_from(start: RoundContext, algorithm: Algorithm[Any], exchange: Exchange) -> Iterator[RoundRecord]:
    """Run the rounds of a federation from one of them to the last; yield the records as they arise.

    Args:
        start: the round to start with, at its first epoch.
        algorithm: the method.
        exchange: the engine; its sites have the states that the previous round left.

    Raises:
        ParticipationError: if no site shares anything in a round.
    """
    for index in range(start.round, start.rounds):
        ctx = replace(start, round=index)
        aggregator = algorithm.aggregator(ctx)
        bytes_up: dict[ClientId, int] = {}
        for event in _trained(algorithm, exchange, ctx):
            if isinstance(event, Arrival):
                aggregator.add(event.whose, event.share)
                bytes_up |= event.bytes_up
            else:
                yield event
        if not bytes_up:
            raise ParticipationError(f"round {index + 1}: no site took part, expected at least one share")
        mean = aggregator.result()
        yield from exchange.receive(mean, ctx)
        yield ExchangeRecord(index, bytes_up, count_bytes(mean))


def _trained(
    algorithm: Algorithm[Any], exchange: Exchange, ctx: RoundContext
) -> Iterator[RoundRecord | Arrival]:
    """Train every present site for one round, in one visit; or in one per epoch if sites meet after it."""
    if not meets(algorithm, ctx):
        yield from exchange.train(ctx)
        return
    in_step = cast(InStep, exchange)
    for epoch in range(ctx.epochs):
        now = replace(ctx, epoch=epoch)
        aggregator = meeting(algorithm).epoch_aggregator(now)
        for event in in_step.train_epoch(now):
            if isinstance(event, Arrival):
                aggregator.add(event.whose, event.share)
            else:
                yield event
        in_step.meet(aggregator.result(), now)
    yield from in_step.share(ctx)
