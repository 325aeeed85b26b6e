"""The simulation engine: all sites in this process, one after the other; on a GPU, side by side."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from prrfl.algorithms.base import Algorithm, C
from prrfl.capture import on_gpu
from prrfl.engine.lanes import Lanes
from prrfl.engine.rounds import Arrival, Deployed
from prrfl.engine.site import Visitor
from prrfl.errors import ParticipationError
from prrfl.storage.tensor_files import StatesOnDisk, read_state, write_state
from prrfl.tensors import check_same_layout, count_bytes
from prrfl.training import Recipe, Site, draws_numbers
from prrfl.types import ClientId, Examples, RoundContext, RoundRecord, SiteData, Split, Tensors

E = TypeVar("E")

POOL = "all sites"
"""Name of the site that holds the images of all sites, for a method that pools them."""

Present = Callable[[RoundContext], Collection[ClientId]]
"""Returns the sites that take part in a round."""


class InProcess:
    """Holds the data and states of all sites, and visits them in order of name.

    On a GPU it visits a few at a time; records and shares still come in order of name.

    Examples:
        >>> from prrfl import PRRFL, InProcess, Recipe, run_rounds
        >>> from prrfl.testing.sites import tiny_network, tiny_sites
        >>> network = tiny_network()
        >>> engine = InProcess(PRRFL(), tiny_sites(2), Recipe(network, batch=8))
        >>> records = list(run_rounds(PRRFL(), engine, rounds=1, epochs=1, network=network))
        >>> {site: sorted(networks) for site, networks in engine.models().items()}
        {'s0': ['deputy', 'personalised'], 's1': ['deputy', 'personalised']}
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        sites: Iterable[SiteData],
        recipe: Recipe,
        present: Present | None = None,
        rest_in: Path | None = None,
        share_dtype: torch.dtype | None = None,
    ) -> None:
        """Give every site its first state.

        Args:
            algorithm: the method.
            sites: the data of each site; names must differ.
            recipe: how to train; the weights of its network are the common start.
            present: returns the sites that take part in a round; by default all of them.
            rest_in: an empty folder that stores the states that are not in use; by default they stay in
                memory.
            share_dtype: see :class:`prrfl.engine.site.Visitor`.

        Raises:
            ParticipationError: if there is no site, or two sites have the same name.
        """
        ordered = sorted((data.to(recipe.device) for data in sites), key=lambda data: data.name)
        names = [data.name for data in ordered]
        if not names:
            raise ParticipationError("no site given, expected at least one")
        for name in names:
            if names.count(name) > 1:
                raise ParticipationError(f"two sites are named '{name}'; names must differ")
        self._algorithm = algorithm
        self._present = present
        self._visitors = {
            visitor.site.name: visitor
            for visitor in self._make_visitors(ordered, algorithm, recipe, share_dtype)
        }
        # Side by side, networks that draw random numbers would draw each other's.
        alone = not on_gpu(recipe.device) or draws_numbers(recipe, ordered[0].train.inputs[:2])
        self._lanes: Lanes[Any] | None = None if alone else Lanes(recipe)
        self._start = partial(algorithm.start, recipe.initial())
        self._states: MutableMapping[ClientId, Any] = (
            {} if rest_in is None else StatesOnDisk(rest_in, type(self._start()))
        )

    def _make_visitors(
        self,
        sites: Sequence[SiteData],
        algorithm: Algorithm[Any],
        recipe: Recipe,
        share_dtype: torch.dtype | None,
    ) -> list[Visitor[Any]]:
        """Return a visitor for each site that trains."""
        return [Visitor(algorithm, Site(data, recipe), share_dtype) for data in sites]

    @property
    def names(self) -> list[ClientId]:
        """The sites, in the order in which they are visited."""
        return list(self._visitors)

    def train(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Visit the present sites one by one."""
        yield from self._visit(self.train_at, ctx)

    def train_at(self, name: ClientId, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Train one site for one round."""
        self._states[name], share = yield from self._visitors[name].train(self._state(name), ctx)
        yield Arrival(share, {name: count_bytes(share.tensors)})

    def receive(self, mean: Tensors, ctx: RoundContext) -> Iterator[RoundRecord]:
        """Hand the mean to the present sites."""
        yield from self._visit(partial(self.receive_at, mean=mean), ctx)

    def receive_at(self, name: ClientId, ctx: RoundContext, mean: Tensors) -> Iterator[RoundRecord]:
        """Give the mean to one site."""
        self._states[name] = yield from self._visitors[name].receive(self._state(name), mean, ctx)

    def train_epoch(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Visit the present sites for one local epoch."""
        yield from self._visit(self.train_epoch_at, ctx)

    def train_epoch_at(self, name: ClientId, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Train one site for one local epoch."""
        self._states[name], sent = yield from self._visitors[name].epoch(self._state(name), ctx)
        yield Arrival(sent, {name: count_bytes(sent.tensors)})

    def meet(self, mean: Tensors, ctx: RoundContext) -> None:
        """Hand an epoch's mean to the present sites."""
        for name in taking_part(self.names, self._present, ctx):
            self.meet_at(name, ctx, mean)

    def meet_at(self, name: ClientId, ctx: RoundContext, mean: Tensors) -> None:
        """Give an epoch's mean to one site."""
        self._states[name] = self._visitors[name].meet(self._state(name), mean, ctx)

    def share(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Let the present sites end their round."""
        yield from self._visit(self.share_at, ctx)

    def share_at(self, name: ClientId, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Let one site end its round."""
        share = yield from self._visitors[name].share(self._state(name), ctx)
        yield Arrival(share, {name: count_bytes(share.tensors)})

    def _visit(
        self, visit: Callable[[ClientId, RoundContext], Iterator[E]], ctx: RoundContext
    ) -> Iterator[E]:
        """Visit the present sites; yield the events of the first, then of the second, and so on."""
        names = taking_part(self.names, self._present, ctx)
        if self._lanes is not None and len(names) > 1:
            yield from self._lanes.run({name: partial(visit, name, ctx) for name in names})
        else:
            for name in names:
                yield from visit(name, ctx)

    def models(self) -> dict[ClientId, Mapping[str, Tensors]]:
        """Return the current networks of every site; the first of each is the deployed one."""
        return {
            name: {
                model: visitor.site.recipe.whole(weights)
                for model, weights in self._algorithm.models(self._state(name)).items()
            }
            for name, visitor in self._visitors.items()
        }

    def deployed(self) -> Iterator[Deployed]:
        """Yield the network that each site would deploy now."""
        for name in self._visitors:
            yield self.deployed_at(name)

    def deployed_at(self, name: ClientId) -> Deployed:
        """Return the network that one site would deploy now."""
        return self._visitors[name].deployed(self._state(name))

    def save(self, folder: Path) -> None:
        """Write every site's state as ``<site>.safetensors``."""
        for name in self._visitors:
            self.save_at(name, folder)

    def save_at(self, name: ClientId, folder: Path) -> None:
        """Write one site's state."""
        path = folder / f"{name}.safetensors"
        if isinstance(self._states, StatesOnDisk) and name in self._states:
            folder.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(self._states.path(name))
        else:
            write_state(path, self._state(name))

    def load(self, folder: Path) -> None:
        """Replace every site's state by the one saved in a folder."""
        for name in self._visitors:
            self.load_at(name, folder)

    def load_at(self, name: ClientId, folder: Path) -> None:
        """Replace one site's state by the one saved in a folder."""
        self._states[name] = read_client(folder / f"{name}.safetensors", self._algorithm, self._start())
        self._visitors[name].forget()

    def _state(self, name: ClientId) -> Any:
        try:
            return self._states[name]
        except KeyError:
            return self._start()


class Pooled(InProcess):
    """Trains one network on the images of all sites together, and scores it at each of them."""

    def _make_visitors(
        self,
        sites: Sequence[SiteData],
        algorithm: Algorithm[Any],
        recipe: Recipe,
        share_dtype: torch.dtype | None,
    ) -> list[Visitor[Any]]:
        return [Visitor(algorithm, Site(pool(sites), recipe), share_dtype, sites)]


def read_client(path: Path, algorithm: Algorithm[C], start: C) -> C:
    """Read the state of a site, and check it against the state that the method starts with.

    Raises:
        StateMismatchError: if the file is missing, damaged, or of another method or network.
    """
    state = read_state(path, type(start))
    for name, weights in algorithm.models(state).items():
        check_same_layout(algorithm.models(start)[name], weights, f"{path}: its {name} network")
    return state


def taking_part(names: Sequence[ClientId], present: Present | None, ctx: RoundContext) -> Sequence[ClientId]:
    """Return the names of the sites that take part in a round, in the given order."""
    if present is None:
        return names
    there = set(present(ctx))
    return [name for name in names if name in there]


def pool(sites: Sequence[SiteData]) -> SiteData:
    """Return the images of all sites as the data of one site."""

    def joined(split: Split) -> Examples:
        parts = [site.split(split) for site in sites]
        return Examples(
            inputs=torch.cat([part.inputs for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            ids=tuple(name for part in parts for name in part.ids),
        )

    return SiteData(POOL, joined("train"), joined("valid"), joined("test"))
