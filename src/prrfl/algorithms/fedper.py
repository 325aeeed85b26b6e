"""FedPer (Arivazhagan et al., 2019, arXiv 1912.00818): the base is shared, the last layer stays at the site.

Base and personalisation layer learn together at the site, and the server averages the base. The paper weighs
sites by images; here that is ``weighting=images``.

Differs from the paper, which tries one to four blocks of a network as personalisation layers, and starts
them differently at each site: here it is the last linear layer alone, and all sites start alike. Everything
else is base, also normalisation layers with their statistics.
"""

from dataclasses import dataclass

from prrfl.algorithms.fedavg import FedAvg
from prrfl.errors import ConfigError
from prrfl.types import RoundContext


@dataclass(frozen=True)
class FedPer(FedAvg):
    """Federated averaging with a local last layer."""

    def local_keys(self, ctx: RoundContext) -> frozenset[str]:
        """Return the names of the tensors of the last linear layer."""
        if not ctx.head_keys:
            raise ConfigError(
                "the network has no linear layer, so methods fedper and fedrep have no last layer to keep at "
                "the site; choose another network or method"
            )
        return ctx.head_keys
