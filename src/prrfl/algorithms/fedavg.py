"""FedAvg (McMahan et al., AISTATS 2017): each site's network is replaced by the mean of all networks.

As in the comparison of the PRR-FL paper, all sites have the same weight, whatever their numbers of images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prrfl.algorithms.base import Aggregator, MeanOfShares
from prrfl.algorithms.single import train_one, without
from prrfl.tensors import detached
from prrfl.training import Learner, Site
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True)
class FedAvg:
    """Federated averaging. Variants that keep some tensors at the site override :meth:`local_keys`."""

    def local_keys(self, ctx: RoundContext) -> frozenset[str]:
        """Return the names of the tensors that never leave the site: none."""
        return frozenset()

    def start(self, initial: Tensors) -> Learner:
        """Start from the common initial network."""
        return Learner(detached(initial))

    def train(self, client: Learner, site: Site, ctx: RoundContext) -> tuple[Learner, Mapping[str, float]]:
        """Train for one local epoch."""
        return train_one(client, site, ctx)

    def share(self, client: Learner, ctx: RoundContext) -> Share:
        """Share all weights except the local ones."""
        return Share(without(client.weights, self.local_keys(ctx)))

    def aggregator(self, ctx: RoundContext) -> Aggregator:
        """Average the weights."""
        return MeanOfShares()

    def receive(self, client: Learner, mean: Tensors, ctx: RoundContext) -> Learner:
        """Replace the shared weights by their mean."""
        return Learner({**client.weights, **detached(mean)})

    def models(self, client: Learner) -> Mapping[str, Tensors]:
        """Return the one network."""
        return {"model": client.weights}
