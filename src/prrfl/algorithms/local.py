"""Local training alone: nothing is sent, nothing comes back. What a federation has to beat."""

from dataclasses import dataclass

from prrfl.algorithms.fedavg import FedAvg
from prrfl.training import Learner
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True)
class Local(FedAvg):
    """Every site on its own, with the rounds' learning-rate schedule and optimiser restarts."""

    def share(self, client: Learner, ctx: RoundContext) -> Share:
        """Send nothing."""
        return Share({})

    def receive(self, client: Learner, mean: Tensors, ctx: RoundContext) -> Learner:
        """Keep the network."""
        return client
