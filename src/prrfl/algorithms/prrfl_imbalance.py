"""PRR-FL for imbalanced classes (Chen et al., IEEE TMI 2022): PFA averages phases too, the loss is CPA."""

from dataclasses import dataclass
from typing import ClassVar

from prrfl.algorithms.base import Traits
from prrfl.algorithms.prrfl import PRRFL, Aggregation


@dataclass(frozen=True)
class PRRFLImbalance(PRRFL):
    """PRR-FL with the changes of the follow-up; :mod:`prrfl.algorithms.prototyped` adds the prototypes.

    Attributes:
        aggregation: see :class:`prrfl.algorithms.prrfl.PRRFL`.
    """

    aggregation: Aggregation = "pfa-phase"

    traits: ClassVar[Traits] = Traits(variants=("ablated",), stages=PRRFL.traits.stages, loss="cpa")

    @property
    def variant(self) -> str:
        """As PRR-FL's; a site that agrees to this method agrees to phases."""
        return super().variant.replace("phases", "")
