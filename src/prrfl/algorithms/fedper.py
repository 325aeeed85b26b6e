"""FedPer (Arivazhagan et al., 2019, arXiv 1912.00818): the base is shared, the last layer stays at the site.

Base and personalisation layer learn together (Algorithm 1); the server averages the base (Algorithm 2). The
paper leaves the number of personalisation layers open, and in its ResNets lets blocks before the classifier
stay too. Here it is the last linear layer alone. Everything else of a network is base, also its
normalisation layers with their statistics. The paper weighs sites by images; here that is
``weighting=images``.
"""

from dataclasses import dataclass

from prrfl.algorithms.fedavg import FedAvg
from prrfl.types import RoundContext


@dataclass(frozen=True)
class FedPer(FedAvg):
    """Federated averaging with a local last layer."""

    def local_keys(self, ctx: RoundContext) -> frozenset[str]:
        """Return the names of the tensors of the last linear layer."""
        return ctx.head_keys
