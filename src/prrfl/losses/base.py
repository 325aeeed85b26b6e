"""What every loss provides, and the plain cross-entropy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor
from torch.nn import functional

Counts = Literal["none", "site", "federation"]
"""Whose training images a loss counts by class: nobody's, those of its own site, or those of all sites."""


class Loss(Protocol):
    """What networks minimise: a frozen dataclass of settings.

    Attributes:
        counts: which class counts it needs. Those of the federation are sums over all sites, so each site
            sends its own.
    """

    @property
    def counts(self) -> Counts:
        """Whose training images it counts."""

    def constants(self, counts: Tensor) -> Mapping[str, Tensor]:
        """Return the tensors that do not change during training, by name.

        Args:
            counts: (C,) training images of each class; empty if the loss needs none.
        """

    def __call__(self, logits: Tensor, labels: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch.

        A tensor from the constants may be replaced between epochs, but none of its values may be read in
        Python: on a GPU the function is recorded once and replayed.

        Args:
            logits: (N, C).
            labels: (N,).
            constants: those of :meth:`constants`, and what the method adds (:class:`prrfl.training.Site`).
        """


@dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy, as in the paper."""

    counts: ClassVar[Counts] = "none"

    def constants(self, counts: Tensor) -> Mapping[str, Tensor]:
        """Return nothing."""
        return {}

    def __call__(self, logits: Tensor, labels: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over the batch."""
        return functional.cross_entropy(logits, labels)
