"""IDA (Yeganeh et al., DCL 2020, arXiv 2008.07665): a mean weighted by the inverse distance from the mean."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prrfl.algorithms.fedavg import FedAvg
from prrfl.tensors import WeightedMean
from prrfl.types import ClientId, RoundContext, Share, Tensors

SMALLEST = 1e-12
"""Smallest distance, so that identical networks have the same finite weight."""


class InverseDistanceMean:
    """Weights each network by one over its L1 distance from the plain mean of the round's networks.

    A share's own weight is a further factor, also in the plain mean. The distance runs over all that is
    shared, batch norm's running statistics included; see :func:`distance`. It needs all shares at once.
    Therefore it cannot run under secure summation, and its memory grows with the number of sites.
    """

    only_adds: ClassVar[bool] = False

    def __init__(self) -> None:
        self._shares: dict[ClientId, Share] = {}

    def add(self, client: ClientId, share: Share) -> None:
        """Store one share."""
        self._shares[client] = share

    def result(self) -> dict[str, Tensor]:
        """Return the mean with inverse-distance weights."""
        plain = WeightedMean()
        for client, share in self._shares.items():
            plain.add(share.tensors, share.weight, whose=f"site {client}")
        centre = plain.result()
        weighted = WeightedMean()
        for client, share in self._shares.items():
            weight = share.weight / max(distance(share.tensors, centre), SMALLEST)
            weighted.add(share.tensors, weight, whose=f"site {client}")
        return weighted.result()


def distance(first: Tensors, second: Tensors) -> float:
    """Return the L1 distance between two sets of named tensors, over all floating-point ones.

    Of a network's state_dict these are weights, biases, the scales and shifts of norm layers, and also batch
    norm's running means and variances, all entries with the same weight. Integers (its number of batches)
    do not count.
    """
    return sum(
        (tensor.double() - second[key].double()).abs().sum().item()
        for key, tensor in first.items()
        if tensor.is_floating_point()
    )


@dataclass(frozen=True)
class IDA(FedAvg):
    """Federated averaging with inverse-distance weights."""

    def aggregator(self, ctx: RoundContext) -> InverseDistanceMean:
        """Average with weights that depend on all shares."""
        return InverseDistanceMean()
