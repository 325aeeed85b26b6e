"""FedProx (Li et al., MLSys 2020): FedAvg with local training that stays near the weights last received."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.single import squared_distance, train_one
from prrfl.tensors import detached
from prrfl.training import Learner, Site, Step
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True, eq=False)
class FedProxState:
    """The network, and the weights that it last received, near which the proximal term keeps it."""

    learner: Learner
    anchor: Tensors


@dataclass(frozen=True)
class FedProx:
    """Federated averaging with the proximal term mu/2 · ‖w − w_received‖² in the local loss.

    Attributes:
        mu: strength of the pull; 0 is FedAvg.
    """

    mu: float = 0.01

    def start(self, initial: Tensors) -> FedProxState:
        """Start from the common initial network, which is also the first anchor."""
        weights = detached(initial)
        return FedProxState(Learner(weights), weights)

    def train(
        self, client: FedProxState, site: Site, ctx: RoundContext
    ) -> tuple[FedProxState, Mapping[str, float]]:
        """Train for one local epoch with the proximal term."""
        learner, metrics = train_one(client.learner, site, ctx, self._objective, client.anchor)
        return FedProxState(learner, client.anchor), metrics

    def _objective(self, step: Step) -> list[Tensor]:
        return [step.losses[0] + self.mu / 2 * squared_distance(step.networks[0], step.given)]

    def share(self, client: FedProxState, ctx: RoundContext) -> Share:
        """Share all weights."""
        return Share(client.learner.weights)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the weights."""
        return MeanOfShares()

    def receive(self, client: FedProxState, mean: Tensors, ctx: RoundContext) -> FedProxState:
        """Replace the network by the mean, which becomes the anchor of the next round."""
        weights = detached(mean)
        return FedProxState(Learner(weights), weights)

    def models(self, client: FedProxState) -> Mapping[str, Tensors]:
        """Return the one network."""
        return {"model": client.learner.weights}
