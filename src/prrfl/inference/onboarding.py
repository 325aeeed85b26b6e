"""A new site: how the networks of a finished run perform there, and how it gets its own network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prrfl.algorithms import ALGORITHMS, BASELINE, Algorithm
from prrfl.engine.in_process import read_client
from prrfl.errors import ConfigError, StateMismatchError
from prrfl.evaluation import predictions, score
from prrfl.reports.assessment import Assessment, assess
from prrfl.runs.checkpoint import read_progress
from prrfl.runs.deployed import SavedNetwork, Which, predict_examples, read_network, sites_of
from prrfl.runs.folder import RunFolder
from prrfl.runs.setup import Run, make_method, make_recipe, make_recipe_again
from prrfl.tensors import WeightedMean
from prrfl.training import Site, predict, reestimate_norms
from prrfl.types import ClientId, RoundContext, Scores, SiteData, Tensors


@dataclass(frozen=True, eq=False)
class LastRound:
    """A run, and the state of each site after its last complete round."""

    run: Run
    states: Mapping[ClientId, Any]

    @property
    def one_each(self) -> bool:
        """Whether each site has one network, which is both deployed and shared."""
        return all(len(self._networks(state)) == 1 for state in self.states.values())

    @property
    def mean(self) -> Tensors:
        """The unweighted mean of the shared networks, for example of PRR-FL's deputies."""
        total = WeightedMean()
        for site, state in self.states.items():
            total.add(self._networks(state)[-1], whose=f"site {site}")
        return total.result()

    @property
    def mean_name(self) -> str:
        """The name of :attr:`mean` in a table, such as ``mean of deputies``."""
        if self.one_each:
            return "mean of networks"
        shared = list(self.run.method.models(next(iter(self.states.values()))))[-1]
        return f"mean of {shared[:-1]}ies" if shared.endswith("y") else f"mean of {shared}s"

    def _networks(self, state: Any) -> Sequence[Tensors]:
        return list(self.run.method.models(state).values())


def read_last_round(folder: Path) -> LastRound:
    """Read the last complete round of a run.

    Raises:
        ConfigError: if the folder does not hold a run, or holds a federation over real sites.
        StateMismatchError: if no round is complete, or its state is damaged.
    """
    there = RunFolder(folder)
    config = there.settings(device="auto")
    if there.is_federation:
        raise ConfigError(f"{folder} is a federation over real sites; the networks are in the sites' folders")
    recipe = make_recipe_again(config, there)
    run = Run(config, make_method(config, recipe), recipe, there.class_counts())
    rounds = there.checkpoints()
    if not rounds:
        raise StateMismatchError(f"{folder} has no complete round; continue the run with `prrfl resume`")
    read_progress(rounds[-1])
    start = run.method.start(recipe.initial())
    paths = sorted(rounds[-1].glob("*.safetensors"))
    states = {path.stem: read_client(path, run.method, start) for path in paths}
    return LastRound(run, states)


def read_deployed(folder: Path, which: Which, device: str) -> dict[ClientId, SavedNetwork]:
    """Read the deployed network of each site.

    Raises:
        ConfigError: if the folder holds no networks of that round.
        StateMismatchError: if the file of a network is damaged.
    """
    return {name: read_network(folder, name, which, device=device) for name in sites_of(folder)}


def evaluate_at_new_site(
    last: LastRound, deployed: Mapping[ClientId, SavedNetwork], site: SiteData
) -> dict[str, Assessment]:
    """Score all deployed networks, their ensemble, and the mean of the last round, on a site's test images.

    The ensemble is the mean of the networks' softmax outputs. If all sites have the same network, as in
    FedAvg, it is scored once. Scoring uses float32.
    """
    first, *others = deployed.values()
    if last.one_each and all(_same(first.weights, other.weights) for other in others):
        return {"network of all sites": assess(predict_examples(first, site.test))}
    found = {f"network of {name}": predict_examples(network, site.test) for name, network in deployed.items()}
    ensemble = torch.stack([one.probabilities for one in found.values()]).mean(0)
    (mean,) = predict([last.mean], site.test, replace(last.run.recipe, precision="float32"))
    found["ensemble of all"] = replace(next(iter(found.values())), probabilities=ensemble)
    found[f"{last.mean_name}, last round"] = predictions(mean, site.test)
    return {name: assess(one) for name, one in found.items()}


def _same(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(other[key], tensor) for key, tensor in one.items())


@dataclass(frozen=True, eq=False)
class Onboarding:
    """A new site's own network, and the test scores of each step towards it.

    Attributes:
        network: its state_dict.
        scores: step to scores: the mean, with adapted batch norm, after training, and after training alone.
    """

    network: Tensors
    scores: dict[str, Scores]


def onboard(last: LastRound, site: SiteData, epochs: int = 5, seed: int = 0) -> Onboarding:
    """Make a network for a new site from the mean of a run.

    The statistics of batch norm are re-estimated on the site's training images. Then the site trains by the
    run's method, at the learning rate of the first round; for PRR-FL, both networks start from the mean. For
    comparison, the site also trains alone for as many epochs, from the run's initial weights.

    Args:
        last: the run.
        site: the new site.
        epochs: local epochs of training.
        seed: source of all randomness.

    Raises:
        StateMismatchError: if the weights that the run started from cannot be used.
    """
    run, recipe = last.run, last.run.recipe
    start = make_recipe(run.settings).initial()  # needs the file of weights: an error comes before training
    place = Site(site, recipe)
    moment = replace(run.moment(0), rounds=1, epochs=epochs, seed=seed)
    adapted = reestimate_norms(last.mean, site.train, recipe)
    ours = _train(run.method, adapted, place, moment)
    alone = _train(ALGORITHMS[BASELINE](), start, place, moment)
    length = f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"
    steps = {
        last.mean_name: last.mean,
        "with its own batch norm": adapted,
        f"after {length}: its own network": ours,
        f"for comparison: {length} alone": alone,
    }
    outputs = predict(list(steps.values()), site.test, recipe)
    return Onboarding(
        network=recipe.whole(ours),
        scores={name: score(logits, site.test.labels) for name, logits in zip(steps, outputs, strict=True)},
    )


def _train(algorithm: Algorithm[Any], weights: Tensors, site: Site, moment: RoundContext) -> Tensors:
    state = algorithm.start(weights)
    for epoch in range(moment.epochs):
        state, _ = algorithm.train(state, site, replace(moment, epoch=epoch))
    return next(iter(algorithm.models(state).values()))
