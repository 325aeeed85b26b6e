"""The losses, by name."""

from prrfl.losses.base import Counts, CrossEntropy, Loss
from prrfl.losses.cpa import CPA
from prrfl.losses.rebalanced import Focal, LogitAdjusted, Weighted

__all__ = ["CPA", "LOSSES", "Counts", "CrossEntropy", "Focal", "LogitAdjusted", "Loss", "Weighted"]

LOSSES: dict[str, type] = {
    "cross-entropy": CrossEntropy,
    "weighted": Weighted,
    "focal": Focal,
    "logit-adjusted": LogitAdjusted,
    "cpa": CPA,
}
"""All losses by name. To add one, write its class and name it here."""
