"""The losses, by name."""

from prrfl.losses.base import Counts, CrossEntropy, Loss
from prrfl.losses.cpa import CPA
from prrfl.losses.rebalanced import Focal, LogitAdjusted, Weighted
from prrfl.parts import Parts

__all__ = ["CPA", "LOSSES", "Counts", "CrossEntropy", "Focal", "LogitAdjusted", "Loss", "Weighted"]

LOSSES: Parts[type] = Parts("loss", "prrfl.losses", {
    "cross-entropy": CrossEntropy,
    "weighted": Weighted,
    "focal": Focal,
    "logit-adjusted": LogitAdjusted,
    "cpa": CPA,
}, needs=("counts", "constants", "__call__"))  # fmt: skip
"""All losses by name. To add one to the package, write its class and name it here."""
