"""FedRoD (Chen and Chao, ICLR 2022): a shared network for balanced classes, and a personal head on top of it.

Body and generic head minimise a balanced risk, and are averaged. Here it is the balanced softmax (Ren et
al., NeurIPS 2020) with the site's class frequencies. The personal head h minimises the ordinary, empirical
risk of the sum of both heads' logits, g(z) + h(z), where neither the features z nor g learn from it. The sum
of two linear heads is one linear head, so the deployed network is the shared one with the weights of h added
to those of its last layer.

The authors' repository holds no code. Our choices: h starts at zero, so that the deployed network starts as
the shared one. The empirical risk is the recipe's loss; the balanced one is always the balanced softmax, in
which a class without images counts as having one. Of the paper's personal heads this is the linear one,
without a hypernetwork.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from prrfl.algorithms.base import MeanOfShares
from prrfl.errors import ConfigError
from prrfl.evaluation import macro_f1
from prrfl.tensors import detached, head_of, prefixed, under
from prrfl.training import Learner, Recipe, Site, Step, forward, train_epoch, with_features
from prrfl.types import RoundContext, Share, Tensors

GENERIC, PERSONAL = "generic.", "personal."
"""How the names of the tensors of the shared network and of the personal head begin in training."""


class TwoHeads(nn.Module):
    """A network and a personal head. Its outputs are the sum of both heads' logits."""

    def __init__(self, network: nn.Module) -> None:
        """Give a network a personal head of the shape of its own."""
        super().__init__()
        _, head = head_of(network)
        self.personal = copy.deepcopy(head)
        self.generic = network  # the last, so that its head is the last linear layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sum of logits, (N, C); nothing flows back into the network."""
        generic, features = with_features(self.generic, inputs)
        personal: Tensor = self.personal(features.detach())
        return generic.detach() + personal


def two_headed(recipe: Recipe) -> Recipe:
    """Return the recipe for its network with two heads."""
    return recipe.around(TwoHeads(copy.deepcopy(recipe.network)))


@dataclass(frozen=True, eq=False)
class FedRoDState:
    """The shared network, the personal head, their sum, and the optimiser's state within a round.

    The head's tensors have their names in the network. Before the first epoch it is empty.
    """

    generic: Tensors
    head: Tensors
    deployed: Tensors
    memory: Tensors


@dataclass(frozen=True)
class FedRoD:
    """Federated averaging of balanced networks, with a personal head at each site."""

    def start(self, initial: Tensors) -> FedRoDState:
        """Start from the common initial network."""
        weights = detached(initial)
        return FedRoDState(weights, {}, weights, {})

    def train(
        self, client: FedRoDState, site: Site, ctx: RoundContext
    ) -> tuple[FedRoDState, Mapping[str, float]]:
        """Train the shared network and the personal head for one local epoch."""
        if fixed := ctx.head_keys - client.generic.keys():
            raise ConfigError(f"method fedrod needs a last layer that trains; do not freeze '{min(fixed)}'")
        head = client.head or {key: torch.zeros_like(client.generic[key]) for key in sorted(ctx.head_keys)}
        named = {key.rsplit(".", 1)[-1]: key for key in head}
        weights = {
            **prefixed(client.generic, GENERIC),
            **{f"{PERSONAL}{short}": head[key] for short, key in named.items()},
        }
        place = replace(site, recipe=site.recipe.derived(two_headed))
        given = {"prior": prior(site)}
        epoch = train_epoch([Learner(weights, client.memory)], place, ctx, _objective, given)
        learner = epoch.learners[0]
        generic = under(learner.weights, GENERIC)
        head = {named[short]: tensor for short, tensor in under(learner.weights, PERSONAL).items()}
        return FedRoDState(generic, head, summed(generic, head), learner.memory), {
            "loss": epoch.losses[0],
            "train_f1": macro_f1(epoch.logits[0], epoch.labels),
        }

    def share(self, client: FedRoDState, ctx: RoundContext) -> Share:
        """Share body and generic head; the personal head stays at the site."""
        return Share(client.generic)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the weights."""
        return MeanOfShares()

    def receive(self, client: FedRoDState, mean: Tensors, ctx: RoundContext) -> FedRoDState:
        """Replace the shared network by the mean, and put the personal head on it."""
        generic = detached(mean)
        return FedRoDState(generic, client.head, summed(generic, client.head), {})

    def models(self, client: FedRoDState) -> Mapping[str, Tensors]:
        """Return the network with both heads, which is deployed, and the shared one."""
        return {"personalised": client.deployed, "global": client.generic}


def prior(site: Site) -> Tensor:
    """Return the log-frequencies of a site's classes, (C,); a class without images counts as having one."""
    _, head = head_of(site.recipe.network)
    counts = torch.bincount(site.data.train.labels.cpu(), minlength=head.out_features).clamp(min=1)
    return (counts / counts.sum()).log()


def summed(network: Tensors, head: Tensors) -> Tensors:
    """Return a network with a head's weights added to its own."""
    return {**network, **{key: network[key] + tensor for key, tensor in head.items()}}


def _objective(step: Step) -> list[Tensor]:
    """Return the empirical risk, from which the personal head learns, plus the balanced risk of the rest."""
    _, head = head_of(step.networks[0])
    (generic,) = forward([head], step.features[0], step.recipe)
    balanced = generic + step.given["prior"].to(generic.dtype)
    return [step.losses[0] + functional.cross_entropy(balanced, step.labels)]
