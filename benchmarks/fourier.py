"""Progressive Fourier Aggregation: the split form beside the server's in NumPy, and the bytes that travel."""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.figures import Figure, Settings, absolute, ratio
from benchmarks.paper_form import aggregate
from benchmarks.workload import SITES
from prrfl.models import build_network
from prrfl.pfa import low_band_amplitudes, mean_of_amplitudes, rebuild
from prrfl.tensors import count_bytes, norm_keys
from prrfl.types import Tensors


def measure_pfa(settings: Settings) -> Iterator[Figure]:
    """Seconds of PFA for four clients, and what each sends and receives."""
    for name in settings.pick(("vgg16_slim", "resnet50"), ("vgg16_slim",)):
        local = norm_keys(build_network(name))
        states = [build_network(name, seed=seed).state_dict() for seed in range(SITES)]
        for share in (0.7, 0.95):
            contenders = {
                "paper form": lambda s=states, r=share, k=local: aggregate(s, r, k),
                "split form": lambda s=states, r=share, k=local: split_form(s, r, k),
            }
            seconds = settings.in_turns(contenders, settings.repeats)
            label = f"{name}, {SITES} clients, r = {share}: "
            yield from absolute(seconds, label)
            yield Figure(f"{label}paper form / split form", ratio(seconds, "paper form", "split form"))
        yield from measure_bytes(name, states[0], local)


def split_form(
    states: Sequence[Tensors], share: float, local: frozenset[str]
) -> list[dict[str, torch.Tensor]]:
    """Run PFA as it runs in a federation: amplitudes at every client, their mean, every client rebuilt."""
    mean = mean_of_amplitudes([low_band_amplitudes(state, share, local) for state in states])
    return [rebuild(state, mean, share, local) for state in states]


def measure_bytes(name: str, state: Tensors, local: frozenset[str]) -> Iterator[Figure]:
    """Bytes of a share and of the mean, which has the same layout, beside those of all weights."""
    whole = count_bytes(state)
    for share in (0.7, 0.95, 1.0):
        sent = low_band_amplitudes(state, share, local)
        half = {key: tensor.half() for key, tensor in sent.items()}
        yield Figure(f"{name}, r = {share}: bytes each way / all weights", count_bytes(sent) / whole)
        yield Figure(f"{name}, r = {share}: the same in float16", count_bytes(half) / whole)
