"""SiloBN (Andreux et al., DART 2020): FedAvg that leaves batch-norm statistics at the site."""

from dataclasses import dataclass

from prrfl.algorithms.fedavg import FedAvg
from prrfl.types import RoundContext

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class SiloBN(FedAvg):
    """Federated averaging with local batch-norm statistics; scales and shifts are shared."""

    def local_keys(self, ctx: RoundContext) -> frozenset[str]:
        """Return the names of the running statistics of normalisation layers."""
        return frozenset(key for key in ctx.norm_keys if key.rsplit(".", 1)[-1] in STATISTICS)
