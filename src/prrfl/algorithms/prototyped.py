"""Any method with the CPA loss (:mod:`prrfl.losses.cpa`): sites also exchange prototypes of their classes.

A prototype is the mean of what a site's network computes for its training images of one class, so it is
personal data in aggregate. The server learns the sums over sites, from which it computes mean and spread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass, replace
from functools import cache
from typing import Any, ClassVar, Generic, cast

import torch
from torch import Tensor

from prrfl.algorithms.base import Aggregator, Algorithm, C, Traits, traits_of, variant_of
from prrfl.losses.cpa import CPA, FACTORS, class_means, factors, global_prototypes
from prrfl.tensors import WeightedMean
from prrfl.training import Epoch, Site, generator
from prrfl.types import ClientId, RoundContext, Share, Tensors

PREFIX = "prototypes/"
"""How the names of the tensors begin that are exchanged for the loss."""
MEAN, SPREAD, PRESENT = (f"{PREFIX}{name}" for name in ("mean", "spread", "present"))


@cache
def state_class(kind: type[Any]) -> type[Any]:
    """Return the class of a site's state, for a method whose own state has the given class.

    Its fields are ``inner``, the method's state; ``own``, the site's prototypes: ``mean`` (C, D) and
    ``present`` (C,), 1 for the classes that the site has; ``everyones``, the global ones: ``mean`` (C, D).
    """
    fields = [("inner", kind), ("own", Tensors), ("everyones", Tensors)]
    return make_dataclass(f"Prototyped{kind.__name__}", fields, frozen=True, eq=False)


@dataclass(frozen=True)
class Prototyped(Generic[C]):
    """A method around another one, which adds prototypes to the other's training and shares.

    Attributes:
        method: the other method.
        loss: the settings of the loss, which is also the recipe's.
        head: name of the weight of the network's last linear layer.
    """

    method: Algorithm[C]
    loss: CPA
    head: str

    @property
    def traits(self) -> Traits:
        """The other method's."""
        return traits_of(self.method)

    @property
    def variant(self) -> str:
        """The other method's."""
        return variant_of(self.method)

    def start(self, initial: Tensors) -> Any:
        """Start with prototypes of ones at every site, so that all factors are 1."""
        inner = self.method.start(initial)
        classes, width = initial[self.head].shape
        ones = torch.ones(classes, width if self.loss.proto_type == "fc" else classes, dtype=torch.float64)
        own = {"mean": ones, "present": torch.ones(classes, dtype=torch.float64)}
        return state_class(cast(Any, type(inner)))(inner, own, {"mean": ones})

    def train(self, client: Any, site: Site, ctx: RoundContext) -> tuple[Any, Mapping[str, float]]:
        """Train for one local epoch with the current prototypes, and compute those of the epoch."""
        if ctx.epoch == 0 and self.meets(ctx):
            client = self._restarted(client, ctx)
        if not self._collects(ctx):
            inner, metrics = self.method.train(client.inner, site, ctx)
            return replace(client, inner=inner), metrics
        seen: list[Epoch] = []
        watched = replace(site, constants=self._factors(client, ctx), watch=seen.append)
        inner, metrics = self.method.train(client.inner, watched, ctx)
        return replace(client, inner=inner, own=self._prototypes(client, seen[-1])), metrics

    def share(self, client: Any, ctx: RoundContext) -> Share:
        """Share what the method shares, and prototypes if they are exchanged once a round."""
        share = self.method.share(client.inner, ctx)
        if not self._shares(ctx):
            return share
        return replace(share, tensors={**share.tensors, **self._sent(client)})

    def aggregator(self, ctx: RoundContext) -> Aggregator:
        """Aggregate as the method does, and prototypes apart."""
        aggregator = self.method.aggregator(ctx)
        return BesidesPrototypes(aggregator) if self._shares(ctx) else aggregator

    def receive(self, client: Any, mean: Tensors, ctx: RoundContext) -> Any:
        """Let the method take its part of the mean; draw the global prototypes of the next round."""
        theirs, ours = taken_apart(mean)
        client = replace(client, inner=self.method.receive(client.inner, theirs, ctx))
        return self._received(client, ours, ctx) if self._shares(ctx) else client

    def models(self, client: Any) -> Mapping[str, Tensors]:
        """Return the networks of the method."""
        return self.method.models(client.inner)

    def meets(self, ctx: RoundContext) -> bool:
        """Return whether prototypes are exchanged after each local epoch of the round."""
        return self.loss.prototypes == "per-epoch" and ctx.round >= self.loss.init_iter

    def epoch_share(self, client: Any, ctx: RoundContext) -> Share:
        """Send the epoch's prototypes."""
        return Share(self._sent(client))

    def epoch_aggregator(self, ctx: RoundContext) -> "PrototypeMean":
        """Average the prototypes of each class over the sites that have it."""
        return PrototypeMean()

    def epoch_receive(self, client: Any, mean: Tensors, ctx: RoundContext) -> Any:
        """Draw the global prototypes of the next epoch."""
        return self._received(client, mean, ctx)

    def _shares(self, ctx: RoundContext) -> bool:
        """Return whether the round's share holds prototypes: those that the next round needs."""
        return self.loss.prototypes == "per-round" and self.loss.init_iter <= ctx.round + 1 < ctx.rounds

    def _collects(self, ctx: RoundContext) -> bool:
        return ctx.round >= self.loss.init_iter or self._shares(ctx)

    def _restarted(self, client: Any, ctx: RoundContext) -> Any:
        """Return the state at the start of a round in which sites meet: all prototypes are ones again."""
        own = {key: torch.ones_like(tensor) for key, tensor in client.own.items()}
        mean = {MEAN: own["mean"], SPREAD: torch.zeros_like(own["mean"])}
        return self._received(replace(client, own=own), mean, ctx, "start")

    def _factors(self, client: Any, ctx: RoundContext) -> Tensors:
        if ctx.round < self.loss.init_iter:
            return {}
        return {FACTORS: factors(client.own["mean"], client.everyones["mean"], self.loss.tau)}

    def _prototypes(self, client: Any, epoch: Epoch) -> Tensors:
        outputs = epoch.features if self.loss.proto_type == "fc" else epoch.logits[0]
        assert outputs is not None, "a watched epoch has features"
        before = client.own["mean"]
        mean, present = class_means(outputs.double(), epoch.labels, len(before))
        # A class that the site does not have keeps its row.
        return {"mean": mean.where(present[:, None] > 0, before), "present": present}

    def _sent(self, client: Any) -> Tensors:
        """Return what the site adds to the sums over sites: nothing in the rows of classes that it lacks."""
        present = client.own["present"]
        mean = client.own["mean"] * present[:, None]
        squares = {SPREAD: mean.square()} if self.loss.global_proto == "gaussian" else {}
        return {MEAN: mean, PRESENT: present, **squares}

    def _received(self, client: Any, mean: Tensors, ctx: RoundContext, when: str = "mean") -> Any:
        """Draw the global prototypes. Their noise depends on the seed and the moment, not on the site."""
        drawn = mean[MEAN].double()
        if self.loss.global_proto == "gaussian":
            draw = generator(ctx.seed, "prototypes", ctx.round, ctx.epoch, when)
            noise = torch.randn(drawn.shape, generator=draw, dtype=torch.float64)
            drawn = global_prototypes(drawn, mean[SPREAD].double().sqrt(), noise)
        return replace(client, everyones={"mean": drawn})


class PrototypeMean:
    """Mean and variance of the prototypes of each class over the sites that have it."""

    only_adds: ClassVar[bool] = True

    def __init__(self) -> None:
        self._mean = WeightedMean()
        self._sites = 0.0

    def add(self, client: ClientId, share: Share) -> None:
        """Add the prototypes of one site, or their mean over as many sites as the share weighs."""
        self._mean.add(share.tensors, share.weight, whose=f"site {client}")
        self._sites += share.weight

    def result(self) -> dict[str, Tensor]:
        """Return mean and variance, (C, D), and the fraction of sites that have the class, (C,).

        The variance has K - 1 in the denominator; it is 0 for a class of one site. The mean is 0 for a class
        of none.
        """
        sums = {key: tensor.double() * self._sites for key, tensor in self._mean.result().items()}
        sites = sums[PRESENT].round()[:, None]
        mean = sums[MEAN] / sites.clamp(min=1)
        result = {MEAN: mean, PRESENT: sums[PRESENT] / self._sites}
        if SPREAD in sums:
            variance = (sums[SPREAD] - sites * mean.square()) / (sites - 1).clamp(min=1)
            result[SPREAD] = variance.clamp(min=0)
        return result


class BesidesPrototypes:
    """Takes shares apart: prototypes are averaged here, the rest goes to the aggregator of the method."""

    def __init__(self, method: Aggregator) -> None:
        self._method = method
        self._prototypes = PrototypeMean()

    @property
    def only_adds(self) -> bool:
        """Whether the method's aggregator only adds."""
        return self._method.only_adds

    def add(self, client: ClientId, share: Share) -> None:
        """Take one site's share."""
        theirs, ours = taken_apart(share.tensors)
        self._method.add(client, replace(share, tensors=theirs))
        self._prototypes.add(client, replace(share, tensors=ours))

    def result(self) -> dict[str, Tensor]:
        """Return both aggregates."""
        return {**self._method.result(), **self._prototypes.result()}


def taken_apart(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the method sends or receives, and the prototypes."""
    ours = {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    return {key: tensor for key, tensor in tensors.items() if key not in ours}, ours
