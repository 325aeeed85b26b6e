"""The federated methods, by name."""

from prrfl.algorithms.base import Aggregator, Algorithm, MeanOfShares
from prrfl.algorithms.prrfl import PRRFL, PRRFLState

__all__ = ["ALGORITHMS", "Aggregator", "Algorithm", "MeanOfShares", "PRRFL", "PRRFLState"]

ALGORITHMS: dict[str, type] = {"prrfl": PRRFL}
"""Adding a method: write its file, name it here."""
