"""The federated methods, by name."""

from prrfl.algorithms.base import Aggregator, Algorithm, MeanOfShares
from prrfl.algorithms.centralised import Centralised
from prrfl.algorithms.fedavg import FedAvg
from prrfl.algorithms.fedbn import FedBN
from prrfl.algorithms.fedprox import FedProx
from prrfl.algorithms.fml import FML
from prrfl.algorithms.ida import IDA
from prrfl.algorithms.local import Local
from prrfl.algorithms.prrfl import PRRFL
from prrfl.algorithms.silobn import SiloBN

__all__ = [
    "ALGORITHMS",
    "Aggregator",
    "Algorithm",
    "Centralised",
    "FML",
    "FedAvg",
    "FedBN",
    "FedProx",
    "IDA",
    "Local",
    "MeanOfShares",
    "PRRFL",
    "SiloBN",
]

ALGORITHMS: dict[str, type] = {
    "prrfl": PRRFL,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedbn": FedBN,
    "silobn": SiloBN,
    "ida": IDA,
    "fml": FML,
    "local": Local,
    "centralised": Centralised,
}
"""Adding a method: write its file, name it here."""
