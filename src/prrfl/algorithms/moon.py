"""MOON (Li, He and Song, CVPR 2021): FedAvg whose local features stay near those of the received network.

To the loss of each image, the paper (equations 3 and 4) adds

    −log( exp(cos(z, z_global)/τ) / (exp(cos(z, z_global)/τ) + exp(cos(z, z_previous)/τ)) )

times ``contrast`` (μ in the paper). z are the features of the network in training, z_global those of the
network that the site received, and z_previous those of its own network at the end of its previous round. In
a site's first round these two are the same network, and the term has no gradient. As in the authors' code,
both compared networks are frozen and run in evaluation mode.

Differs from the paper, which puts a projection head of two layers before the output layer, in MOON and in
the methods that it is compared with: here the network stays as it is, and features are the inputs of its
last linear layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.single import train_one
from prrfl.tensors import detached, prefixed
from prrfl.training import Learner, Site, Step, features_of
from prrfl.types import RoundContext, Share, Tensors


@dataclass(frozen=True, eq=False)
class MOONState:
    """The network, the weights that it received, and those at the end of the site's previous round."""

    learner: Learner
    received: Tensors
    previous: Tensors


@dataclass(frozen=True)
class MOON:
    """Federated averaging with a contrast between received and previous features.

    Attributes:
        contrast: weight of the contrast; 0 is FedAvg. The paper tunes it among 0.1, 1, 5 and 10, and takes 5
            for CIFAR-10, 1 for CIFAR-100 and Tiny-ImageNet. 1 is the default of the authors' code.
        temperature: divides the cosines; 0.5 in the paper.
    """

    contrast: float = 1.0
    temperature: float = 0.5

    def start(self, initial: Tensors) -> MOONState:
        """Start from the common initial network."""
        weights = detached(initial)
        return MOONState(Learner(weights), weights, weights)

    def train(
        self, client: MOONState, site: Site, ctx: RoundContext
    ) -> tuple[MOONState, Mapping[str, float]]:
        """Train for one local epoch with the contrast."""
        given = {**prefixed(client.received, "global/"), **prefixed(client.previous, "previous/")}
        learner, metrics = train_one(client.learner, site, ctx, self._objective, given)
        return MOONState(learner, client.received, client.previous), metrics

    def _objective(self, step: Step) -> list[Tensor]:
        received, previous = (
            features_of(step, step.given_under(f"{name}/")) for name in ("global", "previous")
        )
        term = contrastive(step.features[0], received, previous, self.temperature)
        return [step.losses[0] + self.contrast * term]

    def share(self, client: MOONState, ctx: RoundContext) -> Share:
        """Share all weights."""
        return Share(client.learner.weights)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the weights."""
        return MeanOfShares()

    def receive(self, client: MOONState, mean: Tensors, ctx: RoundContext) -> MOONState:
        """Replace the network by the mean; the next round is compared with both."""
        weights = detached(mean)
        return MOONState(Learner(weights), weights, client.learner.weights)

    def models(self, client: MOONState) -> Mapping[str, Tensors]:
        """Return the one network."""
        return {"model": client.learner.weights}


def contrastive(features: Tensor, near: Tensor, far: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of features, mean over the batch.

    Args:
        features: (N, D).
        near: (N, D) features that should be similar.
        far: (N, D) features that should not.
        temperature: divides the cosines.
    """
    exact = torch.promote_types(features.dtype, torch.float32)  # bfloat16 has 8 bits for a cosine
    cosines = [
        functional.cosine_similarity(features.to(exact), other.to(exact), dim=1) for other in (near, far)
    ]
    # -log of the first of a softmax over two.
    return (torch.stack(cosines, 1) / temperature).log_softmax(1)[:, 0].neg().mean()
