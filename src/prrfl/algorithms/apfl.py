"""APFL (Deng et al., 2020, arXiv 2003.13461): a site deploys a mixture of its own network and the global one.

The deployed network is v̄ = α v + (1 − α) w, with the site's own weights v and its copy w of the global
network (Algorithm 1). On every batch w learns as in FedAvg, and v learns from the loss of v̄, whose gradient
in v is α ∇f(v̄). w alone is averaged. α learns from the same loss, whose gradient in α is ⟨v − w, ∇f(v̄)⟩
(section 4.2). As in the authors' code it takes one step a round, on one batch.

Differs from the authors' code, which mixes the logits of v and w instead of weights, takes α's step after
the first of v and w, and adds 0.02 α to its gradient: here α's step is the first of the round, on random
images, by plain gradient descent. Statistics of batch norm are those that v̄ itself meets in training; after
a communication, which changes w and so v̄, they stay until the site trains again.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.silobn import STATISTICS
from prrfl.algorithms.single import some
from prrfl.evaluation import macro_f1
from prrfl.tensors import detached, prefixed, under
from prrfl.training import Learner, Recipe, Site, Step, forward, site_generator, train_epoch
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
        shared = dict(self.shared.named_parameters())
        weights = {
            key: self.alpha * own + (1 - self.alpha) * shared[key].detach()
            for key, own in self.personal.named_parameters()
        }
        outputs: Tensor = functional_call(self.personal, weights, (inputs,))
        return outputs


def mixing(recipe: Recipe) -> Recipe:
    """Return the recipe for the mixture of two of its networks."""
    return recipe.around(Mixture(copy.deepcopy(recipe.network)))


def adapting(recipe: Recipe) -> Recipe:
    """Return the recipe for the mixture, by which α learns: plain gradient steps."""
    return replace(mixing(recipe), optimizer="sgd", weight_decay=0.0, counter=None)


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
        alpha: the weight of the personal network at the start; 0 deploys FedAvg's, 1 trains alone. 0.5 is
            the default of the authors' code.
        adaptive: whether each site learns its own alpha. In the authors' code it does so only on request.
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
        """Train w and v for one local epoch; before the first one of a round, adapt α."""
        alpha = adapted(client, site, ctx) if self.adaptive and ctx.epoch == 0 else client.alpha
        learner = Learner(together(client, alpha), client.memory)
        place = replace(site, recipe=site.recipe.derived(mixing))
        epoch = train_epoch([learner], place, ctx, _objective, frozen=frozenset({ALPHA}))
        after = epoch.learners[0].weights
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


def together(client: APFLState, alpha: float) -> Tensors:
    """Return w, v and α as the weights of a :class:`Mixture`."""
    return {
        **prefixed(client.shared, SHARED),
        **prefixed(client.personal, PERSONAL),
        ALPHA: torch.tensor(alpha, dtype=torch.float64),
    }


def adapted(client: APFLState, site: Site, ctx: RoundContext) -> float:
    """Return α after a gradient step on one batch of random images, cut to 0...1."""
    draw = site_generator(site, ctx, "alpha")
    batch = replace(site.data, train=some(site.data.train, site.recipe.batch, draw))
    place = replace(site, data=batch, recipe=site.recipe.derived(adapting), watch=None)
    weights = together(client, client.alpha)
    epoch = train_epoch([Learner(weights)], place, ctx, frozen=frozenset(weights) - {ALPHA})
    return min(1.0, max(0.0, epoch.learners[0].weights[ALPHA].item()))


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
