"""FedRep (Collins et al., ICML 2021): a shared body, and local heads that are trained before it.

In every round a site first trains its head with the body frozen, then the body with the head frozen
(Algorithm 1). The server averages bodies. As in the authors' code, both share the local epochs of a round:
the last ``body_epochs`` train the body, all before them the head. Its default is one epoch of the body; its
scripts for CIFAR also have five, after ten of the head.

Differs from the authors' code, which trains all heads once more after the last round. The first epoch always
trains the head; with a single local epoch both learn in it, as in FedPer. The optimiser starts again between
head and body. Norm layers belong to the body; their statistics follow the images in all epochs. The head is
the last linear layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from prrfl.algorithms.fedper import FedPer
from prrfl.algorithms.single import train_one
from prrfl.training import Learner, Site
from prrfl.types import RoundContext


@dataclass(frozen=True)
class FedRep(FedPer):
    """FedPer that trains head and body in turn.

    Attributes:
        body_epochs: last local epochs of a round, in which the body learns.
    """

    body_epochs: int = 1

    def train(self, client: Learner, site: Site, ctx: RoundContext) -> tuple[Learner, Mapping[str, float]]:
        """Train the head or the body for one local epoch."""
        if ctx.epochs == 1:
            return train_one(client, site, ctx)
        first_of_body = max(1, ctx.epochs - self.body_epochs)
        if ctx.epoch < first_of_body:
            return train_one(client, site, ctx, frozen=frozenset(client.weights) - ctx.head_keys)
        if ctx.epoch == first_of_body:
            client = Learner(client.weights)  # without the memory of the head's optimiser
        return train_one(client, site, ctx, frozen=ctx.head_keys)
