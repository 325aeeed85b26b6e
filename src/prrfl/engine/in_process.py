"""The simulation engine: every site in this process, one after the other."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from prrfl.algorithms.base import Algorithm
from prrfl.engine.rounds import Arrival
from prrfl.engine.site import Visitor
from prrfl.errors import ParticipationError
from prrfl.training import Recipe, Site
from prrfl.types import ClientId, RoundContext, RoundRecord, SiteData, Tensors


class InProcess:
    """Holds the sites' data and states, and visits them in order of name, however they are given."""

    def __init__(
        self,
        algorithm: Algorithm[Any],
        sites: Iterable[SiteData],
        recipe: Recipe,
        present: Callable[[RoundContext], Collection[ClientId]] | None = None,
    ) -> None:
        """Give every site its starting state.

        Args:
            algorithm: the method.
            sites: the sites' data; names must differ.
            recipe: how to train; the network's weights are the common start.
            present: which sites take part in a round; all, if not given.

        Raises:
            ParticipationError: if two sites have the same name, or there is none.
        """
        ordered = sorted(sites, key=lambda data: data.name)
        names = [data.name for data in ordered]
        if not names:
            raise ParticipationError("no site given, expected at least one")
        for name in names:
            if names.count(name) > 1:
                raise ParticipationError(f"two sites are named '{name}'; names must differ")
        self._algorithm = algorithm
        self._present = present
        self._visitors = {data.name: Visitor(algorithm, Site(data, recipe)) for data in ordered}
        self._states = {name: algorithm.start(recipe.network.state_dict()) for name in names}

    def train(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Visit the present sites one by one."""
        for name in self._taking_part(ctx):
            self._states[name], share = yield from self._visitors[name].train(self._states[name], ctx)
            yield Arrival(name, share)

    def receive(self, mean: Tensors, ctx: RoundContext) -> Iterator[RoundRecord]:
        """Hand the mean to the present sites."""
        for name in self._taking_part(ctx):
            self._states[name] = yield from self._visitors[name].receive(self._states[name], mean, ctx)

    def models(self) -> dict[ClientId, Mapping[str, Tensors]]:
        """Return every site's networks as they are now; the first of each is the one deployed."""
        return {name: self._algorithm.models(state) for name, state in self._states.items()}

    def _taking_part(self, ctx: RoundContext) -> list[ClientId]:
        if self._present is None:
            return list(self._visitors)
        present = set(self._present(ctx))
        return [name for name in self._visitors if name in present]
