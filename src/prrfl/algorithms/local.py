"""Local training: each site trains alone and sends nothing. A federation has to beat this baseline."""

from dataclasses import dataclass
from typing import ClassVar

from prrfl.algorithms.base import Traits
from prrfl.algorithms.fedavg import FedAvg
from prrfl.training import Learner
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True)
class Local(FedAvg):
    """Each site trains alone, with the learning-rate schedule and optimiser restarts of the rounds."""

    traits: ClassVar[Traits] = Traits(scope="alone")

    def share(self, client: Learner, ctx: RoundContext) -> Share:
        """Share nothing."""
        return Share({})

    def receive(self, client: Learner, mean: Tensors, ctx: RoundContext) -> Learner:
        """Keep the network."""
        return client
