"""FedBN (Li et al., ICLR 2021): FedAvg that leaves normalisation layers at the site."""

from dataclasses import dataclass

from prrfl.algorithms.fedavg import FedAvg
from prrfl.types import RoundContext


@dataclass(frozen=True)
class FedBN(FedAvg):
    """Federated averaging with local normalisation layers: weights, biases and statistics."""

    def local_keys(self, ctx: RoundContext) -> frozenset[str]:
        """Return the names of all normalisation tensors."""
        return ctx.norm_keys
