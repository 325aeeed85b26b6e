"""APFL (Deng et al., 2020, arXiv 2003.13461): a site deploys a mixture of its own network and the global one.

The deployed network is v̄ = α v + (1 − α) w, with the site's own weights v and its copy w of the global
network (Algorithm 1). On every batch w learns as in FedAvg; v learns from the loss of v̄, whose gradient in
v is α ∇f(v̄); and α learns from the same loss, whose gradient is ⟨v − w, ∇f(v̄)⟩ (section on adaptive α). w
alone is averaged.

Differs from the paper: v and α are updated in every step by the recipe's optimiser, at the recipe's
learning rate and with its weight decay; the authors' experiments update α once in a round. α is cut to
0...1 after each local epoch, and as it is used. Statistics of batch norm are those that v̄ itself meets in
training; after a communication, which changes w and so v̄, they stay until the site trains again.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.silobn import STATISTICS
from prrfl.evaluation import macro_f1
from prrfl.tensors import detached, prefixed, under
from prrfl.training import Learner, Recipe, Site, Step, forward, train_epoch
from prrfl.types import RoundContext, Share, Tensors

SHARED, PERSONAL, ALPHA = "shared.", "personal.", "alpha"
"""How the tensors of w, v and α are called in training."""


class Mixture(nn.Module):
    """The networks w and v, and α. Its outputs are those of v̄."""

    def __init__(self, network: nn.Module) -> None:
        """Make both from a network."""
        super().__init__()
        self.shared = network
        self.personal = copy.deepcopy(network)
        self.alpha = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of v̄; nothing flows back into w."""
        alpha, shared = self.alpha.clamp(0, 1), dict(self.shared.named_parameters())
        weights = {
            key: alpha * own + (1 - alpha) * shared[key].detach()
            for key, own in self.personal.named_parameters()
        }
        outputs: Tensor = functional_call(self.personal, weights, (inputs,))
        return outputs


def mixing(recipe: Recipe) -> Recipe:
    """Return the recipe for the mixture of two of its networks."""
    return recipe.around(Mixture(copy.deepcopy(recipe.network)))


@dataclass(frozen=True, eq=False)
class APFLState:
    """The weights v, w, and their mixture v̄; α; and the optimiser's state within a round."""

    personal: Tensors
    shared: Tensors
    mixed: Tensors
    alpha: float
    memory: Tensors


@dataclass(frozen=True)
class APFL:
    """A mixture of personal and global weights.

    Attributes:
        alpha: the weight of the personal network at the start; 0 deploys FedAvg's, 1 trains alone.
        adaptive: whether each site learns its own alpha.
    """

    alpha: float = 0.5
    adaptive: bool = True

    def start(self, initial: Tensors) -> APFLState:
        """Start both networks from the common initial weights."""
        weights = detached(initial)
        return APFLState(weights, weights, weights, self.alpha, {})

    def train(
        self, client: APFLState, site: Site, ctx: RoundContext
    ) -> tuple[APFLState, Mapping[str, float]]:
        """Train w, v and α for one local epoch."""
        weights = {
            **prefixed(client.shared, SHARED),
            **prefixed(client.personal, PERSONAL),
            ALPHA: torch.tensor(client.alpha, dtype=torch.float64),
        }
        learner = Learner(weights, client.memory)
        frozen = frozenset[str]() if self.adaptive else frozenset({ALPHA})
        place = replace(site, recipe=site.recipe.derived(mixing))
        epoch = train_epoch([learner], place, ctx, _objective, frozen=frozen)
        after = epoch.learners[0].weights
        alpha = min(1.0, max(0.0, after[ALPHA].item()))
        personal, shared = under(after, PERSONAL), under(after, SHARED)
        state = APFLState(personal, shared, mixture(personal, shared, alpha), alpha, epoch.learners[0].memory)
        return state, {
            "loss": epoch.losses[0],
            "alpha": alpha,
            "train_f1": macro_f1(epoch.logits[0], epoch.labels),
        }

    def share(self, client: APFLState, ctx: RoundContext) -> Share:
        """Share w; v and α stay at the site."""
        return Share(client.shared)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average the weights."""
        return MeanOfShares()

    def receive(self, client: APFLState, mean: Tensors, ctx: RoundContext) -> APFLState:
        """Replace w by the mean, and mix again."""
        shared = detached(mean)
        return replace(client, shared=shared, mixed=mixture(client.personal, shared, client.alpha), memory={})

    def models(self, client: APFLState) -> Mapping[str, Tensors]:
        """Return v̄, which is deployed, and w."""
        return {"mixed": client.mixed, "global": client.shared}


def mixture(personal: Tensors, shared: Tensors, alpha: float) -> Tensors:
    """Return α v + (1 − α) w.

    Args:
        personal: v, a state_dict. Batch norm's running statistics and all integers are taken from it.
        shared: w.
        alpha: α.
    """
    return {
        key: own.lerp(shared[key], 1 - alpha)
        if own.is_floating_point() and key.rsplit(".", 1)[-1] not in STATISTICS
        else own
        for key, own in personal.items()
    }


def _objective(step: Step) -> list[Tensor]:
    """Return the loss of v̄ plus the loss of w; they share no parameter that learns."""
    mixture = step.networks[0]
    assert isinstance(mixture, Mixture)
    (logits,) = forward([mixture.shared], step.inputs, step.recipe)
    return [step.losses[0] + step.loss(logits)]
