"""The package on a GPU: is it right there, how long does each part take, and the paper's run?

Needs PyTorch with CUDA, NumPy, SciPy, scikit-learn, safetensors and pydantic; no network. Without a GPU,
``--quick`` rehearses all of it on the processor.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.figures import Figure, Settings
from benchmarks.workload import noise_site, paper_recipe
from prrfl import capture
from prrfl.algorithms import ALGORITHMS, PRRFL, FedAvg
from prrfl.algorithms.base import Algorithm
from prrfl.algorithms.prototyped import Prototyped
from prrfl.capture import on_gpu
from prrfl.data.sources import load_sites
from prrfl.det import Stage, learning, objective
from prrfl.engine import InProcess, run_rounds
from prrfl.engine.workers import Workers
from prrfl.evaluation import macro_f1
from prrfl.losses import CPA
from prrfl.machine import arithmetic, gpu
from prrfl.models import vgg16_slim
from prrfl.models.adapters import add_adapters
from prrfl.models.freezing import frozen_keys
from prrfl.testing.contract import run, same_bits
from prrfl.testing.sites import tiny_sites
from prrfl.training import Learner, Recipe, Site, batches, generator, predict, train_epoch
from prrfl.training.epoch import _trainer
from prrfl.types import Examples, ExchangeRecord, RoundContext, RoundRecord, SiteData, TrainRecord

TRAINING_IMAGES = {"A": 2091, "B": 2708, "C": 1144, "D": 1400}
"""Of the paper's four sites."""

ROUNDS, EPOCHS = 50, 5
FLOPS_PER_IMAGE = 15.6e9
"""Of an epoch of PRR-FL at 128 px: two networks, each scored once and trained once."""

CONTEXT = RoundContext(round=0, rounds=2, epoch=0, epochs=5, seed=0)
EXCHANGING = {"learns": learning(Stage.EXCHANGE)}
VECTORS = Path(__file__).parents[1] / "tests" / "paper" / "vectors"


def measure_gpu(settings: Settings) -> Iterator[Figure]:
    """Check and time everything on the first GPU."""
    found = gpu()
    if found is not None:
        print(f"gpu       {found.name}, {found.memory[1] / 2**30:.0f} GiB, PyTorch {torch.__version__}")
    elif settings.quick:
        print("gpu       no GPU here: a rehearsal on the processor, which replays nothing")
    else:
        print(f"gpu       no GPU that PyTorch {torch.__version__} can use; nothing to measure")
        return
    recipe = replace(paper_recipe("bfloat16"), device="cuda" if found else "cpu")
    sites = paper_sites(settings)
    few, epochs = settings.pick(150, 18), settings.pick(EPOCHS, 1)
    small = [replace(site, train=head(site.train, few), test=head(site.test, 40)) for site in sites]
    # First of all, because no process can be forked once this one has touched the GPU.
    with Workers(partial(InProcess, PRRFL(), recipe=recipe), small, workers=4) as workers:
        spread = fingerprint(workers, recipe)
    with Workers(partial(InProcess, PRRFL(), recipe=recipe), sites, workers=4) as workers:
        in_processes = seconds_of_round(workers, recipe, epochs)
    yield from checks(small, recipe, spread)
    yield from checks_of_methods(settings.pick(None, 2), recipe.device)
    yield from trajectory(recipe.device, settings.pick(3, 1))
    yield from timings(sites, recipe, settings.pick(30, 1))
    taken = dict(ways_to_run(sites, recipe, epochs))
    yield from rates({**taken, "replayed, four processes": in_processes}, sites)
    if found:
        yield from of_card()


def paper_sites(settings: Settings) -> list[SiteData]:
    """Return four sites of the paper's size: real ones if there are, else noise."""
    if settings.data is not None:
        return load_sites(
            settings.data, image_size=settings.size, classes=("nv", "bkl", "mel"), allow_missing=True
        )
    shrink = settings.pick(1, 128)
    return [noise_site(name, n // shrink, settings.size) for name, n in TRAINING_IMAGES.items()]


def head(examples: Examples, n: int) -> Examples:
    """Return the first examples."""
    return replace(examples, inputs=examples.inputs[:n], labels=examples.labels[:n], ids=examples.ids[:n])


# Checks


def right(name: str, holds: bool) -> Figure:
    """Return one check."""
    return Figure(name, float(holds), "ok" if holds else "WRONG")


def checks(sites: Sequence[SiteData], recipe: Recipe, spread: str) -> Iterator[Figure]:
    """Compare all ways to run, bit for bit."""
    engine = InProcess(PRRFL(), sites, recipe)
    beside = fingerprint(engine, recipe)
    yield right("same seed, same bits", beside == fingerprint(InProcess(PRRFL(), sites, recipe), recipe))
    yield right("four processes give the bits of one", beside == spread)
    with one_by_one():
        apart = fingerprint(InProcess(PRRFL(), sites, replace(recipe)), recipe)
    yield right("sites one after the other give the bits of sites side by side", beside == apart)
    with eagerly():
        eager = fingerprint(InProcess(PRRFL(), sites, replace(recipe)), recipe)
    yield right("steps that are launched give the bits of steps that are replayed", beside == eager)
    for name, other in variants(recipe).items():
        captured = epochs(sites[0], other)
        with eagerly():
            yield right(f"the same with {name}", captured == epochs(sites[0], replace(other)))
    yield right("nothing in an epoch waits for the GPU", not waits(sites[0], recipe))


class Waits(nn.Module):
    """A network whose forward pass asks the GPU for a number, which no graph can record."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits * (1.0 if x.mean().item() > -9 else 2.0)


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """Return other ways to train."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drops = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
        waiting = Waits()
    adapted = vgg16_slim()
    add_adapters(adapted, ["*"], rank=4, alpha=8.0, seed=0)
    return {
        "float32": replace(recipe, precision="float32"),
        "float64": replace(recipe, network=vgg16_slim().double(), precision="float64"),
        "Adam": replace(recipe, optimizer="adam"),
        "dropout": replace(recipe, network=drops, precision="float32"),
        "frozen layers": replace(recipe, frozen=frozen_keys(recipe.network, ["layer1.*"])),
        "adapters": replace(recipe, network=adapted, frozen=frozen_keys(adapted)),
        "a network that cannot be recorded": replace(recipe, network=waiting, precision="float32"),
        "two networks side by side after that": replace(recipe, network=vgg16_slim(), precision="float32"),
    }


def checks_of_methods(most: int | None, device: str) -> Iterator[Figure]:
    """Compare launched and replayed steps of methods, bit for bit, on two tiny sites."""
    for name, method in islice(methods().items(), most):
        replayed = run(method, tiny_sites(2), device=device)
        with eagerly():
            launched = run(method, tiny_sites(2), device=device)
        same = replayed[0] == launched[0] and same_bits(replayed[1], launched[1])
        yield right(f"the same with the method {name}", same)


def methods() -> dict[str, Algorithm[Any]]:
    """Return all methods, and one with the prototypes of a loss."""
    prototypes = {
        f"fedavg with cpa {when}": Prototyped(FedAvg(), CPA(init_iter=0, prototypes=when), "6.weight")
        for when in ("per-epoch", "per-round")
    }
    return {**{name: kind() for name, kind in ALGORITHMS.builtin.items()}, **prototypes}


@contextmanager
def eagerly() -> Iterator[None]:
    """Launch every step instead of replaying it."""
    with mock.patch.object(capture, "MOST", 0):
        yield


@contextmanager
def one_by_one() -> Iterator[None]:
    """Visit one site at a time."""
    with mock.patch.object(
        InProcess, "_visit", lambda self, visit, ctx: (e for name in self.names for e in visit(name, ctx))
    ):
        yield


def fingerprint(engine: InProcess | Workers, recipe: Recipe) -> str:
    """Run two short rounds; return a digest of everything measured."""
    records = rounds(engine, recipe, 2, 2)
    return hashlib.sha256(repr(list(records)).encode()).hexdigest()


def rounds(engine: InProcess | Workers, recipe: Recipe, number: int, epochs: int) -> Iterator[RoundRecord]:
    """Run rounds of PRR-FL."""
    return run_rounds(PRRFL(), engine, rounds=number, epochs=epochs, network=recipe.network)


def epochs(site: SiteData, recipe: Recipe) -> list[bytes]:
    """Train one network for three epochs over two learning rates; return its tensors' bytes."""
    here = Site(site.to(recipe.device), recipe)
    learner = Learner(recipe.initial())
    for t, epoch in ((0, 0), (0, 1), (5, 0)):
        (learner,) = train_epoch([learner], here, RoundContext(t, 9, epoch, 2, 0)).learners
    logits = predict([learner.weights], here.data.test, recipe)[0]
    return [tensor.numpy().tobytes() for tensor in (*learner.weights.values(), logits)]


def waits(site: SiteData, recipe: Recipe) -> bool:
    """Return whether an operation of two epochs waits for the GPU, before their ends."""
    data, step = site.to(recipe.device), step_of_both(recipe)
    modes = torch.cuda.set_sync_debug_mode if on_gpu(recipe.device) else lambda _: None
    with arithmetic(recipe.device, recipe.precision):
        for epoch in range(2):
            wait_for(recipe.device)
            for inputs, labels in batches(data.train, recipe, 16, generator(epoch), shuffle=True):
                modes("error" if epoch else "default")
                try:
                    step(inputs, labels)
                except RuntimeError as cause:
                    print(f"gpu       {cause}")
                    return True
                finally:
                    modes("default")
    return False


def trajectory(device: str, number: int) -> Iterator[Figure]:
    """Follow the authors' code for the first rounds of three, of five epochs, in float64."""
    if not VECTORS.is_dir():
        print(f"gpu       {VECTORS} is missing: the authors' trajectory is not checked")
        return
    from tests.reference import reference_sites, reference_weights

    network = vgg16_slim().double()
    network.load_state_dict(reference_weights())
    recipe = Recipe(network, shuffle=False, normalise=lambda x: x, precision="float64", device=device)
    found = {
        (r.round, r.epoch, r.client): r.metrics
        for r in takewhile(
            lambda record: record.round < number,
            rounds(InProcess(PRRFL(), reference_sites(), recipe), recipe, 3, 5),
        )
        if isinstance(r, TrainRecord)
    }
    apart = []
    for row in json.loads((VECTORS / "trajectory_log.json").read_text()):
        if row["round"] >= number:
            break
        ours = found[row["round"], row["epoch"], str(row["client"])]
        apart += [
            abs(ours[f"loss_{a}"] - row[f"loss_{b}"])
            for a, b in (("personalised", "personal"), ("deputy",) * 2)
        ]
        apart.append(abs(ours["stage"] - row["stage"]))
    yield right("the authors' trajectory in float64, to 1e-9", max(apart) < 1e-9)
    yield Figure("largest difference to it in stages and losses", max(apart), "")


# Seconds


def timings(sites: Sequence[SiteData], recipe: Recipe, times: int) -> Iterator[Figure]:
    """Time a step of both networks, and the parts of an epoch."""
    device, augment = recipe.device, recipe.augment
    assert augment is not None
    watch = partial(stopwatch, device)
    data = sites[2].to(device)
    per_step = {}
    for name, how in {"launched": eagerly, "replayed": one_by_one}.items():
        with how():
            per_step[name] = seconds_of_step(data, replace(recipe), times)
        yield Figure(f"a step of both networks, {name}", 1e3 * per_step[name], "ms (this run)")
    n = len(data.train)
    draw = generator(0)
    steps = -(-n // recipe.batch)
    drawing = watch(lambda: augment.draw(data.train.inputs.shape, draw))
    yield Figure("drawing an epoch's random numbers, per batch", 1e3 * drawing / steps, "ms (this run)")
    batch = watch(lambda: list(batches(data.train, recipe, 16, draw, shuffle=True))) / steps
    yield Figure("preparing a batch, all of it", 1e3 * batch, "ms (this run)")
    start = [recipe.initial()] * 2
    augmented = watch(lambda: predict(start, data.train, recipe, draw))
    plain = watch(lambda: predict(start, data.train, recipe))
    for name, taken in (("augmented", augmented), ("plain", plain)):
        yield Figure(f"scoring both networks, {name}", 2 * n / taken, "images/s (this run)")
    labels, logits = data.train.labels.cpu(), torch.randn(n, 3)
    scoring = watch(lambda: macro_f1(logits, labels))
    yield Figure("macro-F1 of an epoch's outputs", 1e3 * scoring, "ms (this run)")
    site, learners = Site(data, recipe), [Learner(s) for s in start]
    epoch = watch(lambda: train_epoch(learners, site, CONTEXT, objective, EXCHANGING))
    yield Figure(f"an epoch's training, {n} images", epoch, "s (this run)")
    yield Figure("its steps alone", per_step["replayed"] * steps, "s (this run)")


def ways_to_run(sites: Sequence[SiteData], recipe: Recipe, epochs: int) -> Iterator[tuple[str, float]]:
    """Give the seconds of a round for each way to run it in this process."""

    def seconds(epochs: int) -> float:
        return seconds_of_round(InProcess(PRRFL(), sites, replace(recipe)), recipe, epochs)

    with eagerly(), one_by_one():
        yield "launched, one site at a time, from one epoch", epochs * seconds(1)
    with one_by_one():
        yield "replayed, one site at a time", seconds(epochs)
    yield "replayed, sites side by side", seconds(epochs)


def rates(taken: Mapping[str, float], sites: Sequence[SiteData]) -> Iterator[Figure]:
    """Say what a round takes in each way, and the paper's run in the best."""
    for name, seconds in taken.items():
        yield Figure(f"a round of {EPOCHS} epochs, {name}", seconds, "s (this run)")
    images, best = sum(len(site.train) for site in sites), min(taken.values())
    yield Figure("the paper's run of 50 rounds at the best rate", ROUNDS * best / 60, "min (this run)")
    yield Figure("arithmetic", FLOPS_PER_IMAGE * images * EPOCHS / best / 1e12, "TFLOP/s (this run)")


def of_card() -> Iterator[Figure]:
    """Measure the GPU itself."""
    yield Figure("a matrix product of 8192 in bfloat16", product(), "TFLOP/s (this run)")
    yield Figure("peak of memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def wait_for(device: str) -> None:
    """Wait until a GPU has done its work."""
    if on_gpu(device):
        torch.cuda.synchronize()


def stopwatch(device: str, call: Callable[[], object], times: int = 3) -> float:
    """Return the mean seconds of a call, after two that are not counted."""
    for _ in range(2):
        call()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait_for(device)
    return (time.perf_counter() - start) / times


def step_of_both(recipe: Recipe) -> capture.Captured:
    """Return the training step of both networks, in the stage in which both learn from each other."""
    trainer, step = _trainer(recipe, 2, objective, False, frozenset())
    trainer.begin([Learner(recipe.initial())] * 2, CONTEXT, EXCHANGING, {})
    return step


def seconds_of_step(site: SiteData, recipe: Recipe, times: int) -> float:
    """Return the seconds of one step of both networks."""
    step = step_of_both(recipe)
    inputs, labels = next(batches(site.train, recipe, 16))
    with arithmetic(recipe.device, recipe.precision):
        return stopwatch(recipe.device, lambda: step(inputs, labels), times)


def seconds_of_round(engine: InProcess | Workers, recipe: Recipe, epochs: int) -> float:
    """Return the seconds of the second round of PRR-FL; steps are recorded in the first."""
    ends = [time.perf_counter()]
    for record in rounds(engine, recipe, 2, epochs):
        if isinstance(record, ExchangeRecord):
            ends.append(time.perf_counter())
    return ends[-1] - ends[-2]


def product(n: int = 8192) -> float:
    """Return the TFLOP/s of a matrix product."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / stopwatch("cuda", lambda: a @ b, 10) / 1e12
