"""One DET epoch: the package beside bare network calls, and what augmentation takes of it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.bare import bare_epoch, batch_sizes
from benchmarks.figures import Figure, Settings, absolute, ratio
from benchmarks.workload import noise_site, paper_recipe
from prrfl.algorithms import PRRFL
from prrfl.training import Recipe, Site, generator, scoring_batch
from prrfl.types import RoundContext, SiteData

CONTEXT = RoundContext(round=0, rounds=1, epoch=0, epochs=1, seed=0)
"""With one epoch a round its stage is EXCHANGE, in which both networks have a distillation term."""


def det_epoch(data: SiteData, recipe: Recipe) -> None:
    """Run one epoch from the start."""
    algorithm = PRRFL()
    algorithm.train(algorithm.start(recipe.network.state_dict()), Site(data, recipe), CONTEXT)


def augment(data: SiteData, recipe: Recipe) -> None:
    """Augment all that one epoch augments: the training set for scoring, and again for training."""
    if recipe.augment is None:
        return
    for batch in (scoring_batch(data.train.inputs[0, 0].numel(), recipe), recipe.batch):
        drawn = recipe.augment.draw(data.train.inputs.shape, generator(0))
        for rows in torch.split(torch.arange(len(data.train)), batch_sizes(len(data.train), batch)):
            recipe.augment(data.train.inputs[rows], drawn, rows)


def measure_epoch(settings: Settings) -> Iterator[Figure]:
    """Seconds of an epoch as a multiple of the bare calls."""
    data = noise_site("site", settings.images, settings.size)
    for precision in ("float32", "bfloat16"):
        recipe = paper_recipe(precision)
        contenders: dict[str, Callable[[], object]] = {
            "DET epoch": partial(det_epoch, data, recipe),
            "bare calls": bare_epoch(recipe, settings.images, settings.size),
            "augmentation": partial(augment, data, recipe),
        }
        seconds = settings.in_turns(contenders, settings.repeats)
        yield from absolute(seconds, f"{precision}: ")
        yield Figure(f"{precision}: DET epoch / bare calls", ratio(seconds, "DET epoch", "bare calls"))
        yield Figure(f"{precision}: augmentation / DET epoch", ratio(seconds, "augmentation", "DET epoch"))
