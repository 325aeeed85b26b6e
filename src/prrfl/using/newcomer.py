"""A hospital that took no part: how the federation's networks do there, and how it gets one of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prrfl import run, run_folder
from prrfl.algorithms import Algorithm, Local
from prrfl.config import TrainConfig
from prrfl.engine.in_process import read_client
from prrfl.errors import ConfigError, StateMismatchError
from prrfl.evaluation import score
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
    def deployed(self) -> dict[ClientId, Tensors]:
        """Each site's deployed network."""
        return {site: self._networks(state)[0] for site, state in self.states.items()}

    @property
    def agrees(self) -> bool:
        """Whether there is one network, the same at every site, as after a plain average."""
        first, *others = (self._networks(state) for state in self.states.values())
        return len(first) == 1 and all(
            torch.equal(other[0][key], tensor) for other in others for key, tensor in first[0].items()
        )

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
    config = run_folder.settings_of(folder, device="auto")
    if run_folder.is_federation(folder):
        raise ConfigError(f"{folder} is a run over real sites, whose networks stay with them")
    algorithm, recipe = config.algorithm(), run.make_recipe(config.model_copy(update={"weights": None}))
    rounds = run_folder.round_folders(folder)
    if not rounds:
        raise StateMismatchError(f"{folder} holds no complete round; go on with it by `prrfl resume`")
    run_folder.read_progress(rounds[-1])
    start = algorithm.start(recipe.network.state_dict())
    paths = sorted(rounds[-1].glob("*.safetensors"))
    states = {path.stem: read_client(path, algorithm, start) for path in paths}
    return Federation(config, algorithm, recipe, states)


def evaluate(federation: Federation, site: SiteData) -> dict[str, Scores]:
    """Score on a site's test images: every deployed network, their ensemble, and the mean network.

    The ensemble is the mean of the networks' softmax outputs. Where all sites have one and the same network,
    it is scored once, for ensemble and mean are that network too.
    """
    deployed = federation.deployed
    if federation.agrees:
        (logits,) = predict([next(iter(deployed.values()))], site.test, federation.recipe)
        return {"network of all sites": score(logits, site.test.labels)}
    *each, mean = predict([*deployed.values(), federation.mean], site.test, federation.recipe)
    outputs = {f"network of {name}": output for name, output in zip(deployed, each, strict=True)}
    outputs["ensemble of all"] = torch.stack([output.double().softmax(1) for output in each]).mean(0).log()
    outputs[federation.mean_name] = mean
    return {name: score(output, site.test.labels) for name, output in outputs.items()}


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
    start = run.make_recipe(federation.config).network.state_dict()
    alone = _train(Local(), start, place, epochs, seed)
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
