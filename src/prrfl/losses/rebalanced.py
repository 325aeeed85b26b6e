"""The usual remedies for imbalanced classes: weights, a focus on hard images, and adjusted logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from prrfl.losses.base import Counts


@dataclass(frozen=True)
class Weighted:
    """The cross-entropy with weights: each class weighs as much as any other, whatever its number of images.

    The weight of class c is N / (C · n_c), as scikit-learn's ``class_weight="balanced"``, and 0 for a class
    without images. The mean over a batch is weighted too.

    Attributes:
        counts: whose images are counted.
    """

    counts: Counts = "site"

    def constants(self, counts: Tensor) -> Mapping[str, Tensor]:
        """Return the weights, (C,)."""
        weights = counts.sum() / (len(counts) * counts.clamp(min=1))
        return {"weights": weights.where(counts > 0, 0.0)}

    def __call__(self, logits: Tensor, labels: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted mean over the batch."""
        return functional.cross_entropy(logits, labels, constants["weights"].to(logits.dtype))


@dataclass(frozen=True)
class Focal:
    """The focal loss (Lin et al., ICCV 2017, equation 4, without alpha): easy images count less.

    Attributes:
        focusing: gamma. An image's loss is multiplied by (1 - p)^gamma, where p is the probability of its
            class; 0 is the cross-entropy.
    """

    focusing: float = 2.0

    counts: ClassVar[Counts] = "none"

    def constants(self, counts: Tensor) -> Mapping[str, Tensor]:
        """Return nothing."""
        return {}

    def __call__(self, logits: Tensor, labels: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over the batch."""
        from monai.losses.focal_loss import FocalLoss  # importing MONAI takes seconds

        by_class = FocalLoss(gamma=self.focusing, to_onehot_y=True, use_softmax=True, reduction="none")
        loss: Tensor = by_class(logits, labels[:, None]).sum(1).mean()
        return loss


@dataclass(frozen=True)
class LogitAdjusted:
    """The cross-entropy of logits to which the classes' log-frequencies are added during training.

    The network then learns what it would learn from balanced classes. With strength 1 this is the balanced
    softmax (Ren et al., NeurIPS 2020, equation 4), with others the logit-adjusted loss (Menon et al., ICLR
    2021, equation 10). A class without images counts as having one.

    Attributes:
        counts: whose images are counted.
        adjustment: strength of the adjustment; 0 is the cross-entropy.
    """

    counts: Counts = "site"
    adjustment: float = 1.0

    def constants(self, counts: Tensor) -> Mapping[str, Tensor]:
        """Return what is added to the logits, (C,)."""
        counts = counts.clamp(min=1)
        return {"added": self.adjustment * (counts / counts.sum()).log()}

    def __call__(self, logits: Tensor, labels: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over the batch."""
        return functional.cross_entropy(logits + constants["added"].to(logits.dtype), labels)
