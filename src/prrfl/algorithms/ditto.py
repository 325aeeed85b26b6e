"""Ditto (Li et al., ICML 2021): a personalised network that stays near the mean of FedAvg.

A site trains two networks (Algorithm 1). The global one, w, is FedAvg's. The personalised one, v, minimises
its own loss plus lam/2 · ‖v − w_received‖², with the weights that the site received at the start of the
round. v never leaves the site, and is deployed. As in the authors' code, v and w take the same number of
steps, on the same batches. The norm runs over parameters, so statistics of batch norm are not pulled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.single import squared_distance
from prrfl.evaluation import macro_f1
from prrfl.tensors import detached
from prrfl.training import Learner, Site, Step, train_epoch
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True, eq=False)
class DittoState:
    """The personalised network v, the global one w, and the weights that w started the round with."""

    personalised: Learner
    shared: Learner
    received: Tensors


@dataclass(frozen=True)
class Ditto:
    """FedAvg, and beside it a personalised network that is pulled to the mean.

    Attributes:
        lam: strength of the pull; 0 is training alone. Without strong attacks each site of the paper chooses
            it by validation among 0.1, 1 and 2, and takes 1 if it has too few images for that.
    """

    lam: float = 1.0

    def start(self, initial: Tensors) -> DittoState:
        """Start both networks from the common initial weights."""
        weights = detached(initial)
        return DittoState(Learner(weights), Learner(weights), weights)

    def train(
        self, client: DittoState, site: Site, ctx: RoundContext
    ) -> tuple[DittoState, Mapping[str, float]]:
        """Train both networks for one local epoch."""
        learners = [client.personalised, client.shared]
        epoch = train_epoch(learners, site, ctx, self._objective, client.received)
        personalised, shared = epoch.learners
        return DittoState(personalised, shared, client.received), {
            "loss_personalised": epoch.losses[0],
            "loss_global": epoch.losses[1],
            "train_f1": macro_f1(epoch.logits[0], epoch.labels),
        }

    def _objective(self, step: Step) -> list[Tensor]:
        pull = self.lam / 2 * squared_distance(step.networks[0], step.given)
        return [step.losses[0] + pull, step.losses[1]]

    def share(self, client: DittoState, ctx: RoundContext) -> Share:
        """Share the global network; the personalised one never leaves the site."""
        return Share(client.shared.weights)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the weights."""
        return MeanOfShares()

    def receive(self, client: DittoState, mean: Tensors, ctx: RoundContext) -> DittoState:
        """Replace the global network by the mean, to which the personalised one is pulled from now on."""
        weights = detached(mean)
        return replace(client, shared=Learner(weights), received=weights)

    def models(self, client: DittoState) -> Mapping[str, Tensors]:
        """Return both networks; the personalised one is deployed."""
        return {"personalised": client.personalised.weights, "global": client.shared.weights}
