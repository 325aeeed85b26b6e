"""The CPA loss for imbalanced classes: Chen et al., IEEE TMI 2022 (doi 10.1109/TMI.2022.3192483).

It changes the cross-entropy in two ways. *Rarity*: an image of a frequent class pushes the logits of rarer
classes down with less than full weight. *Prototypes*: each class counts more at a site where it does not look
like the same class at the other sites. A prototype is the mean, over a site's images of a class, of what its
network computes for them.

:class:`prrfl.algorithms.prototyped.Prototyped` brings prototypes from site to site, for any method.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from prrfl.losses.base import Counts

EPSILON = 1e-6
"""Keeps quotients and logarithms finite. An image's loss is at most -ln(EPSILON) = 13.8, times its factor."""

FACTORS = "factors"
"""Name of the (C,) factors among the constants of the loss, in rounds with prototypes."""


@dataclass(frozen=True)
class CPA:
    """The CPA loss.

    Attributes:
        beta: strength of the rarity weights; 0 is the cross-entropy, but for ``EPSILON``.
        tau: softens the factors of the prototypes.
        init_iter: index of the first round with prototypes.
        proto_type: ``fc``: prototypes of the inputs of the last linear layer; ``logit``: of the logits.
        global_proto: ``avg``: the global prototype is the mean of the sites' prototypes; ``gaussian``: a draw
            from the normal distribution with that mean and their standard deviation, which is at least 1.
        prototypes: when sites exchange them: ``per-epoch``, as published; or ``per-round``, with the share.
    """

    beta: float = 0.8
    tau: float = 3.0
    init_iter: int = 15
    proto_type: Literal["fc", "logit"] = "fc"
    global_proto: Literal["gaussian", "avg"] = "gaussian"
    prototypes: Literal["per-epoch", "per-round"] = "per-epoch"

    counts: ClassVar[Counts] = "federation"

    def constants(self, counts: Tensor) -> Mapping[str, Tensor]:
        """Return the rarity weights, (C, C)."""
        return {"rarity": rarity_weights(counts, self.beta)}

    def __call__(self, logits: Tensor, labels: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Return the mean over the batch: divided by N, not by the sum of the factors."""
        losses = rarity_losses(logits, labels, constants["rarity"].to(logits.dtype))
        if FACTORS in constants:
            losses = constants[FACTORS].to(logits.dtype)[labels] * losses
        return losses.mean()


def rarity_weights(counts: Tensor, beta: float) -> Tensor:
    """Return S, (C, C): S[a, b] = (n_b / n_a)^beta where n_a > n_b, else 1.

    Args:
        counts: (C,) training images of each class at all sites together.
        beta: strength.
    """
    own, rival = counts.double()[:, None], counts.double()
    return torch.where(own > rival, (rival / own.clamp(min=1)) ** beta, 1.0)


def rarity_losses(logits: Tensor, labels: Tensor, rarity: Tensor) -> Tensor:
    """Return -ln(p + ε) of each image, (N,), where p is a softmax whose rivals have weights.

    With e_c = exp(z_c - max z): p = e_y / (e_y + Σ_{c≠y} S[y, c] e_c + ε).

    Args:
        logits: z, (N, C).
        labels: y, (N,).
        rarity: S, (C, C), with ones on its diagonal.
    """
    values = (logits - logits.amax(1, keepdim=True)).exp()
    own = values.gather(1, labels[:, None]).squeeze(1)
    return -(own / ((rarity[labels] * values).sum(1) + EPSILON) + EPSILON).log()


def class_means(outputs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return a site's prototypes, and which classes it has.

    Args:
        outputs: (N, D) features or logits of the site's images.
        labels: (N,).
        classes: C.

    Returns:
        (C, D) mean over the images of each class, 0 for a class without images; (C,) 1 if it has any, or 0.
    """
    members = functional.one_hot(labels, classes).to(outputs.dtype)
    counts = members.sum(0)
    means: Tensor = members.T @ outputs / counts.clamp(min=1)[:, None]
    return means, (counts > 0).to(outputs.dtype)


def global_prototypes(mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """Return a draw around the mean of the sites' prototypes: mean + noise · max(1, deviation), elementwise.

    Args:
        mean: (C, D) over sites.
        deviation: (C, D) standard deviation over sites, with K - 1 in the denominator.
        noise: (C, D) standard normal numbers, the same at all sites; zeros for the plain mean.
    """
    return mean + noise * deviation.clamp(min=1)


def factors(local: Tensor, everyones: Tensor, tau: float) -> Tensor:
    """Return γ, (C,): (1 + τ) / (cos + τ), with the cosine of local and global prototype of each class.

    Args:
        local: L, (C, D), the site's prototypes.
        everyones: G, (C, D), the global ones.
        tau: softens the factors; above 1.
    """
    lengths = torch.linalg.vector_norm(local, dim=1) * torch.linalg.vector_norm(everyones, dim=1)
    cosine = (local * everyones).sum(1) / (lengths + EPSILON)
    gamma: Tensor = (1 + tau) / (cosine + tau)
    return gamma
