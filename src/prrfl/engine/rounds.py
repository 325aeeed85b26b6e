"""The only round loop. It knows no algorithm's inside, and an engine only as an exchange of shares."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prrfl.algorithms.base import Algorithm
from prrfl.errors import ParticipationError
from prrfl.tensors import count_bytes
from prrfl.types import ClientId, ExchangeRecord, RoundContext, RoundRecord, Share, Tensors


@dataclass(frozen=True)
class Arrival:
    """A share on its way to the aggregate.

    Attributes:
        share: one site's share; or the mean of several sites', its weight being the sum of theirs, where
            nobody sees a single one.
        bytes_up: for each site in it, how many bytes it sent.
    """

    share: Share
    bytes_up: Mapping[ClientId, int]

    @property
    def whose(self) -> str:
        """The site's name, or the names of all."""
        return ", ".join(self.bytes_up)


@dataclass(frozen=True, eq=False)
class Deployed:
    """What one site would take home now.

    Attributes:
        client: the site.
        model: the network's name in the algorithm.
        weights: its state_dict.
        valid: for each site that judges it, (N, C) logits on its validation images.
        test: the same on its test images.
    """

    client: ClientId
    model: str
    weights: Tensors
    valid: Tensors
    test: Tensors


class Exchange(Protocol):
    """What the round loop needs of an engine, which brings the algorithm to the sites, near or far."""

    def train(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Let every present site train for one round; its records first, then its share."""

    def receive(self, mean: Tensors, ctx: RoundContext) -> Iterator[RoundRecord]:
        """Hand the mean to every site that shared in this round."""


class Engine(Exchange, Protocol):
    """An engine in whole: what a run needs to be kept and gone on with, too."""

    def deployed(self) -> Iterator[Deployed]:
        """Yield what each site would take home now."""

    def save(self, folder: Path) -> None:
        """Write every site's state as ``<site>.safetensors``."""

    def load(self, folder: Path) -> None:
        """Go on from states that were saved.

        Raises:
            StateMismatchError: if one is absent, torn, or of another method.
        """


def run_rounds(
    algorithm: Algorithm[Any],
    exchange: Exchange,
    *,
    rounds: int,
    epochs: int,
    norm_keys: frozenset[str],
    seed: int = 0,
    first: int = 0,
) -> Iterator[RoundRecord]:
    """Run a federation and yield its records as they arise.

    Args:
        algorithm: the method.
        exchange: the engine.
        rounds: number T of communication rounds.
        epochs: number E of local epochs in each.
        norm_keys: names of the network's normalisation tensors, :func:`prrfl.tensors.norm_keys` of it. There
            is no default: without them PRR-FL and FedBN would average what they must not, and not say so.
        seed: source of all randomness.
        first: the round to begin with, when earlier ones are done.

    Raises:
        ParticipationError: if no site shares anything in a round.
    """
    for index in range(first, rounds):
        ctx = RoundContext(index, rounds, 0, epochs, seed, norm_keys)
        aggregator = algorithm.aggregator(ctx)
        bytes_up: dict[ClientId, int] = {}
        for event in exchange.train(ctx):
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
