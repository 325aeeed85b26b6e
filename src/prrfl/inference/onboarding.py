"""A hospital that took no part: how the federation's networks do there, and how it gets one of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prrfl.algorithms import ALGORITHMS, BASELINE, Algorithm
from prrfl.config import TrainConfig
from prrfl.engine.in_process import read_client
from prrfl.errors import ConfigError, StateMismatchError
from prrfl.evaluation import predictions, score
from prrfl.reports.assessment import Assessment, assess
from prrfl.runs.checkpoint import read_progress
from prrfl.runs.deployed import SavedNetwork, Which, predict_examples, read_network, sites_of
from prrfl.runs.folder import RunFolder
from prrfl.runs.setup import make_recipe
from prrfl.tensors import WeightedMean, norm_keys
from prrfl.training import Recipe, Site, predict, reestimate_norms
from prrfl.types import ClientId, RoundContext, Scores, SiteData, Tensors

PLURALS = {"deputy": "deputies", "meme": "memes"}
"""The networks that travel, of the methods with two at each site."""


@dataclass(frozen=True, eq=False)
class Federation:
    """What a run left behind: its settings, and every site's state after the last round."""

    config: TrainConfig
    algorithm: Algorithm[Any]
    recipe: Recipe
    states: Mapping[ClientId, Any]

    @property
    def one_each(self) -> bool:
        """Whether the method has one network at each site, which is deployed and travels."""
        return all(len(self._networks(state)) == 1 for state in self.states.values())

    @property
    def mean(self) -> Tensors:
        """The plain mean of the networks that travel: PRR-FL's deputies, FML's memes, else the only ones."""
        total = WeightedMean()
        for site, state in self.states.items():
            total.add(self._networks(state)[-1], whose=f"site {site}")
        return total.result()

    @property
    def mean_name(self) -> str:
        """What to call :attr:`mean` in a table."""
        role = list(self.algorithm.models(next(iter(self.states.values()))))[-1]
        return f"mean of {PLURALS.get(role, 'networks')}"

    def _networks(self, state: Any) -> Sequence[Tensors]:
        return list(self.algorithm.models(state).values())


def read_federation(folder: Path) -> Federation:
    """Read a run's last complete round.

    Raises:
        ConfigError: if the folder holds no run, or one over real sites.
        StateMismatchError: if no round of it was completed, or its state is damaged.
    """
    there = RunFolder(folder)
    config = there.settings(device="auto")
    if there.is_federation:
        raise ConfigError(f"{folder} is a run over real sites, whose networks stay with them")
    algorithm, recipe = config.algorithm(), make_recipe(config.model_copy(update={"weights": None}))
    rounds = there.checkpoints()
    if not rounds:
        raise StateMismatchError(f"{folder} holds no complete round; go on with it by `prrfl resume`")
    read_progress(rounds[-1])
    start = algorithm.start(recipe.network.state_dict())
    paths = sorted(rounds[-1].glob("*.safetensors"))
    states = {path.stem: read_client(path, algorithm, start) for path in paths}
    return Federation(config, algorithm, recipe, states)


def read_deployed(folder: Path, which: Which, device: str) -> dict[ClientId, SavedNetwork]:
    """Read each site's network as the run kept it.

    Raises:
        ConfigError: if the folder keeps none of that round.
        StateMismatchError: if a network's file is torn.
    """
    return {name: read_network(folder, name, which, device=device) for name in sites_of(folder)}


def evaluate(
    federation: Federation, deployed: Mapping[ClientId, SavedNetwork], site: SiteData
) -> dict[str, Assessment]:
    """Judge on a site's test images every deployed network, their ensemble, and the last round's mean.

    The ensemble is the mean of the networks' softmax outputs. Where all sites have one and the same network,
    as after a plain average, it is scored once, for the ensemble is that network too. All in float32.
    """
    first, *others = deployed.values()
    if federation.one_each and all(_same(first.weights, other.weights) for other in others):
        return {"network of all sites": assess(predict_examples(first, site.test))}
    found = {f"network of {name}": predict_examples(kept, site.test) for name, kept in deployed.items()}
    ensemble = torch.stack([one.probabilities for one in found.values()]).mean(0)
    (mean,) = predict([federation.mean], site.test, replace(federation.recipe, precision="float32"))
    found["ensemble of all"] = replace(next(iter(found.values())), probabilities=ensemble)
    found[f"{federation.mean_name}, last round"] = predictions(mean, site.test)
    return {name: assess(one) for name, one in found.items()}


def _same(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(other[key], tensor) for key, tensor in one.items())


@dataclass(frozen=True, eq=False)
class Onboarding:
    """A new hospital's own network, and the test scores on the way to it."""

    network: Tensors
    scores: dict[str, Scores]


def onboard(federation: Federation, site: SiteData, epochs: int = 5, seed: int = 0) -> Onboarding:
    """Make a network for a new site: the mean, batch norm re-estimated there, then a short training.

    The training is the run's own method (DET for PRR-FL) with both networks starting from that mean, at the
    learning rate of the first round. Beside it, the same epochs from the run's initial weights alone.
    """
    recipe = federation.recipe
    place = Site(site, recipe)
    adapted = reestimate_norms(federation.mean, site.train, recipe)
    ours = _train(federation.algorithm, adapted, place, epochs, seed)
    start = make_recipe(federation.config).network.state_dict()
    alone = _train(ALGORITHMS[BASELINE](), start, place, epochs, seed)
    length = f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"
    steps = {
        federation.mean_name: federation.mean,
        "with its own batch norm": adapted,
        f"after {length}: its own network": ours,
        f"for comparison: {length} alone": alone,
    }
    outputs = predict(list(steps.values()), site.test, recipe)
    return Onboarding(
        network=ours,
        scores={name: score(logits, site.test.labels) for name, logits in zip(steps, outputs, strict=True)},
    )


def _train(algorithm: Algorithm[Any], weights: Tensors, site: Site, epochs: int, seed: int) -> Tensors:
    state = algorithm.start(weights)
    keys = norm_keys(site.recipe.network)
    for epoch in range(epochs):
        state, _ = algorithm.train(state, site, RoundContext(0, 1, epoch, epochs, seed, keys))
    return next(iter(algorithm.models(state).values()))
