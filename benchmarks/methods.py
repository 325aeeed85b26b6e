"""A round of every federated method beside a round of FedAvg: its time, and the bytes that it sends."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks.figures import Figure, Settings, absolute, ratio
from benchmarks.workload import noise_site, paper_recipe
from prrfl.algorithms import ALGORITHMS, traits_of
from prrfl.engine import InProcess, rounds_from
from prrfl.tensors import head_keys, norm_keys
from prrfl.types import ExchangeRecord, RoundContext

BESIDE = "fedavg"


def measure_methods(settings: Settings) -> Iterator[Figure]:
    """How many times as long a round takes as FedAvg's, and what share of its bytes a site sends.

    Rounds are those of a simulation, with all scorings. Two rounds before the first timing fill caches, and
    let FedALA's weights converge, which it does once.
    """
    # Without those published with a loss that needs all sites' class counts: by themselves they are PRR-FL.
    names = [
        name
        for name, kind in ALGORITHMS.builtin.items()
        if (traits_of(kind).scope, traits_of(kind).loss) == ("federated", "cross-entropy")
    ]
    rounds = settings.repeats + 3
    running = {name: ends_of_rounds(name, rounds, settings) for name in names}
    first = {name: next(ends) for name, ends in running.items()}
    for ends in running.values():
        next(ends)
    seconds = settings.in_turns(
        {name: partial(next, ends) for name, ends in running.items()}, settings.repeats
    )
    yield from absolute({BESIDE: seconds[BESIDE]}, "a round: ")
    for name in names:
        if name != BESIDE:
            yield Figure(f"a round: {name} / {BESIDE}", ratio(seconds, name, BESIDE))
            sent = sum(first[name].bytes_up.values()) / sum(first[BESIDE].bytes_up.values())
            yield Figure(f"bytes of the first round: {name} / {BESIDE}", sent)


def ends_of_rounds(name: str, rounds: int, settings: Settings) -> Iterator[ExchangeRecord]:
    """Run a method on two sites of noise; every step is one round."""
    method = ALGORITHMS[name]()
    plain = paper_recipe()
    recipe = replace(plain, network=traits_of(method).network(plain.network))
    sites = [noise_site(f"site{k}", settings.images, settings.size) for k in range(2)]
    engine = InProcess(method, sites, recipe)
    keys = norm_keys(recipe.network), head_keys(recipe.network)
    start = RoundContext(0, rounds, 0, settings.epochs, 0, *keys)
    return (r for r in rounds_from(start, method, engine) if isinstance(r, ExchangeRecord))
