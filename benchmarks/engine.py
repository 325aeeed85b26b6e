"""What the round loop and the engine take beside the sites' own work."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.figures import Figure, Settings
from benchmarks.workload import SITES, paper_recipe, tiny_sites
from prrfl.algorithms.base import MeanOfShares
from prrfl.engine import InProcess, run_rounds
from prrfl.pfa import low_band_amplitudes
from prrfl.tensors import norm_keys
from prrfl.training import Learner, Site
from prrfl.types import ExchangeRecord, RoundContext, Share, Tensors


@dataclass(frozen=True, eq=False)
class Idle:
    """A site's state that never changes."""

    learner: Learner


@dataclass(frozen=True, eq=False)
class Nothing:
    """A method that learns nothing and has no network to be scored: what is left is the engine.

    Attributes:
        sent: what each site shares.
    """

    sent: Tensors

    def start(self, initial: Tensors) -> Idle:
        return Idle(Learner(initial))

    def train(self, client: Idle, site: Site, ctx: RoundContext) -> tuple[Idle, Mapping[str, float]]:
        return client, {}

    def share(self, client: Idle, ctx: RoundContext) -> Share:
        return Share(self.sent)

    def aggregator(self, ctx: RoundContext) -> MeanOfShares:
        return MeanOfShares()

    def receive(self, client: Idle, mean: Tensors, ctx: RoundContext) -> Idle:
        return client

    def models(self, client: Idle) -> Mapping[str, Tensors]:
        return {}


def measure_engine(settings: Settings) -> Iterator[Figure]:
    """Milliseconds of a round in which nothing is learnt: with nothing to send, and with real shares."""
    recipe = paper_recipe()
    local = norm_keys(recipe.network)
    amplitudes = low_band_amplitudes(recipe.network.state_dict(), 0.95, local)
    smallest = min(amplitudes, key=lambda key: amplitudes[key].numel())
    for what, sent in {
        "one tensor": {smallest: amplitudes[smallest]},
        "vgg16_slim, r = 0.95": amplitudes,
    }.items():
        engine = InProcess(Nothing(sent), tiny_sites(SITES), recipe)
        taken = per_round(Nothing(sent), engine, settings)
        yield Figure(f"round of {SITES} idle sites, share: {what}", 1000 * taken, "ms (this run)")


def per_round(algorithm: Nothing, engine: InProcess, settings: Settings) -> float:
    """Return the median seconds of a round."""
    rounds = settings.pick(50, 5)
    records = run_rounds(algorithm, engine, rounds=rounds + 1, epochs=5, network=paper_recipe().network)
    ends = (record for record in records if isinstance(record, ExchangeRecord))
    next(ends)
    return statistics.median(settings.stopwatch(partial(next, ends)) for _ in range(rounds))
