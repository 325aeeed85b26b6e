"""The simulation engine: every site in this process, one after the other."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prrfl.algorithms.base import Algorithm
from prrfl.engine.rounds import Arrival
from prrfl.engine.site import Visitor
from prrfl.errors import ParticipationError
from prrfl.training import Recipe, Site
from prrfl.types import ClientId, Examples, RoundContext, RoundRecord, SiteData, Split, Tensors

POOL = "all sites"
"""The name under which pooled sites train."""


class InProcess:
    """Holds the sites' data and states, and visits them in order of name, however they are given."""

    def __init__(
        self,
        algorithm: Algorithm[Any],
        sites: Iterable[SiteData],
        recipe: Recipe,
        present: Callable[[RoundContext], Collection[ClientId]] | None = None,
        pooled: bool = False,
    ) -> None:
        """Give every site its starting state.

        Args:
            algorithm: the method.
            sites: the sites' data; names must differ.
            recipe: how to train; the network's weights are the common start.
            present: which sites take part in a round; all, if not given.
            pooled: train one network on the images of all sites together, and score it at each of them.

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
        if pooled:
            self._visitors = {POOL: Visitor(algorithm, Site(pool(ordered), recipe), ordered)}
        else:
            self._visitors = {data.name: Visitor(algorithm, Site(data, recipe)) for data in ordered}
        self._states = {name: algorithm.start(recipe.network.state_dict()) for name in self._visitors}

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

    def outputs(self, split: Split) -> dict[ClientId, Tensor]:
        """Return, for each site, the (N, C) logits that the network deployed there gives on one split."""
        return {
            site: logits
            for name, visitor in self._visitors.items()
            for site, logits in visitor.outputs(self._states[name], split).items()
        }

    @property
    def states(self) -> Mapping[ClientId, Any]:
        """Each site's state as it is now."""
        return dict(self._states)

    def restore(self, states: Mapping[ClientId, Any]) -> None:
        """Go on from states of an earlier time, one for each site."""
        self._states = {name: states[name] for name in self._visitors}

    def _taking_part(self, ctx: RoundContext) -> list[ClientId]:
        if self._present is None:
            return list(self._visitors)
        present = set(self._present(ctx))
        return [name for name in self._visitors if name in present]


def pool(sites: Sequence[SiteData]) -> SiteData:
    """Return the images of all sites as if they were one site's."""

    def joined(split: Split) -> Examples:
        parts = [site.split(split) for site in sites]
        return Examples(
            inputs=torch.cat([part.inputs for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            ids=tuple(name for part in parts for name in part.ids),
        )

    return SiteData(POOL, joined("train"), joined("valid"), joined("test"))
