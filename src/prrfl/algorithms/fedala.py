"""FedALA (Zhang et al., AAAI 2023): each site takes in the mean by weights that it learns, number by number.

When a round starts, the site's network Θ_local and the mean Θ_mean that it received become

    Θ = Θ_local + (Θ_mean − Θ_local) ⊙ W        with W in 0...1, as large as the last layers

(lines 6 to 16 of Algorithm 1). All layers before the last ones are the mean's. The site learns W by gradient
steps on a random part of its training images, all else frozen: until the loss has converged when it first
does so, for one pass in every later round. Then it trains Θ. W starts with ones and stays at the site. In the
first round the mean is the site's own start, and nothing is learnt.

As in the authors' code, the loss has converged when the standard deviation of its last ten values is below
0.1, and the last layers are by default the classifier alone. The values here are means over a pass, and 100
passes are the most; in the authors' code they are the loss of a pass's last batch, without a limit.

Differs from the authors' code, which scores networks before they train, when they have taken in the mean:
here a site meets the mean when it next trains, because a communication brings no images. So the deployed
network is the one just trained, and a communication does not change it. Statistics of batch norm are the
mean's; the authors' code leaves each site its own. Layers are modules that have parameters of their own.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import pstdev

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prrfl.algorithms.base import MeanOfShares
from prrfl.algorithms.single import some, train_one
from prrfl.tensors import detached, prefixed
from prrfl.training import Learner, Recipe, Site, site_generator, train_epoch
from prrfl.types import RoundContext, Share, Tensors

CONVERGED, LAST, MOST = 0.1, 10, 100
"""Largest standard deviation of the loss over the last passes when it has converged; most passes."""


def last_layers(recipe: Recipe, layers: int) -> list[str]:
    """Return the names of the parameters of the last modules that have parameters of their own that train."""
    found = [
        [
            name
            for key, _ in module.named_parameters(recurse=False)
            if (name := f"{prefix}.{key}" if prefix else key) not in recipe.frozen
        ]
        for prefix, module in recipe.network.named_modules()
    ]
    return [name for names in [names for names in found if names][-layers:] for name in names]


class WeightedSum(nn.Module):
    """A frozen network between Θ_local and Θ_mean. Only the weights W learn."""

    def __init__(self, network: nn.Module, keys: list[str]) -> None:
        """Put weights on some parameters.

        Args:
            network: it holds Θ_local in these parameters, and Θ_mean in all other tensors.
            keys: names of the parameters.
        """
        super().__init__()
        self.network, self.keys = network.requires_grad_(False), keys
        for index, key in enumerate(keys):
            own = network.get_parameter(key)
            self.register_buffer(f"step{index}", torch.zeros_like(own))
            self.register_parameter(f"weight{index}", nn.Parameter(torch.ones_like(own)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits; first cut the weights, which the last step may have moved out of 0...1."""
        mixed = {}
        for index, key in enumerate(self.keys):
            weight = self.get_parameter(f"weight{index}")
            with torch.no_grad():
                weight.clamp_(0, 1)
            mixed[key] = self.network.get_parameter(key) + self.get_buffer(f"step{index}") * weight
        logits: Tensor = functional_call(self.network, mixed, (inputs,))
        return logits


@dataclass(frozen=True, eq=False)
class FedALAState:
    """The network; the mean that the site received, until it has taken it in; and the weights W by name."""

    learner: Learner
    received: Tensors
    weights: Tensors


@dataclass(frozen=True)
class FedALA:
    """Federated averaging whose mean each site takes in by learnt weights; the defaults are the authors'.

    Attributes:
        adapt_layers: number of last layers that get weights (p in the paper).
        adapt_images: fraction of the training images on which they are learnt (s).
        adapt_lr: learning rate of the weights (η).
    """

    adapt_layers: int = 1
    adapt_images: float = 0.8
    adapt_lr: float = 1.0

    def start(self, initial: Tensors) -> FedALAState:
        """Start from the common initial network, without weights."""
        return FedALAState(Learner(detached(initial)), {}, {})

    def train(
        self, client: FedALAState, site: Site, ctx: RoundContext
    ) -> tuple[FedALAState, Mapping[str, float]]:
        """Train for one local epoch; before the first one of a round, take in the mean."""
        if client.received:
            client = self._taken_in(client, site, ctx)
        learner, metrics = train_one(client.learner, site, ctx)
        return replace(client, learner=learner), metrics

    def share(self, client: FedALAState, ctx: RoundContext) -> Share:
        """Share all weights of the network."""
        return Share(client.learner.weights)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        """Average them."""
        return MeanOfShares()

    def receive(self, client: FedALAState, mean: Tensors, ctx: RoundContext) -> FedALAState:
        """Keep the mean until the next round starts; the network stays as it is."""
        return replace(client, received=detached(mean))

    def models(self, client: FedALAState) -> Mapping[str, Tensors]:
        """Return the one network."""
        return {"model": client.learner.weights}

    def _weighted(self, recipe: Recipe) -> Recipe:
        """Return the recipe by which the weights learn: plain gradient steps."""
        keys = last_layers(recipe, self.adapt_layers)
        around = recipe.around(WeightedSum(copy.deepcopy(recipe.network), keys))
        return replace(
            around, optimizer="sgd", lr=self.adapt_lr, lr_gamma=1.0, weight_decay=0.0, counter=None
        )

    def _taken_in(self, client: FedALAState, site: Site, ctx: RoundContext) -> FedALAState:
        """Learn the weights, and put the network between itself and the mean."""
        recipe = site.recipe.derived(self._weighted)
        keys = last_layers(site.recipe, self.adapt_layers)
        own, mean = client.learner.weights, client.received
        steps = {key: mean[key] - own[key] for key in keys}
        weights = client.weights or {key: torch.ones_like(own[key]) for key in keys}
        learner = Learner(
            {
                **prefixed({**mean, **{key: own[key] for key in keys}}, "network."),
                **{f"step{index}": steps[key] for index, key in enumerate(keys)},
                **{f"weight{index}": weights[key] for index, key in enumerate(keys)},
            }
        )
        count = round(self.adapt_images * len(site.data.train))
        part = some(site.data.train, count, site_generator(site, ctx, "adapt"))
        place = replace(site, data=replace(site.data, train=part), recipe=recipe, watch=None)
        losses: list[float] = []
        while not (losses and (client.weights or has_converged(losses))):
            # A seed of its own for each pass: all belong to the same epoch of the same round.
            seed = site_generator(site, ctx, f"adapt {len(losses)}").initial_seed()
            epoch = train_epoch([learner], place, replace(ctx, seed=seed))
            learner = Learner(epoch.learners[0].weights)
            losses.append(epoch.losses[0])
        weights = {key: learner.weights[f"weight{index}"].clamp(0, 1) for index, key in enumerate(keys)}
        between = {**mean, **{key: own[key] + steps[key] * weights[key] for key in keys}}
        return FedALAState(Learner(between), {}, weights)


def has_converged(losses: list[float]) -> bool:
    """Return whether the losses of so many passes have converged."""
    return len(losses) >= MOST or (len(losses) > LAST and pstdev(losses[-LAST:]) < CONVERGED)
