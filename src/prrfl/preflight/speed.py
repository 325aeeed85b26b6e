"""Checks of speed and memory: a few batches are trained, and the rest is extrapolated."""

import resource
import time
from collections.abc import Iterator

import torch

from prrfl.config import TrainConfig
from prrfl.machine import prepared
from prrfl.preflight.data import DataSet
from prrfl.preflight.findings import Finding, duration, size
from prrfl.reports.formatting import counted
from prrfl.runs.setup import Run, make_method
from prrfl.training import Recipe, Site
from prrfl.types import Examples, SiteData

LEAST_MEMORY = 600 * 2**20
"""Bytes below which no step is tried. Training at the smallest image size took 549 MiB."""

EPOCH = 320
"""Images of the epoch to which the measured steps are extrapolated."""


def check_speed(config: TrainConfig, source: DataSet, memory: int, recipe: Recipe) -> Iterator[Finding]:
    """Train a few batches, and report the time of an epoch and the memory it takes.

    Args:
        config: the settings, with device, precision, workers and threads resolved.
        source: the data set.
        memory: bytes that are available.
        recipe: the recipe of the settings.
    """
    if memory < LEAST_MEMORY:
        message = f"{size(memory)} available, at least {size(LEAST_MEMORY)} needed"
        yield Finding("problem", "memory", message, "close other programs, or give the container more memory")
        return
    try:
        each = seconds_per_image(config, recipe)
    # Any exception here, for example because torch has no code for this GPU, would also end the training.
    except Exception as cause:
        reason = " ".join(str(cause).split())
        yield Finding("problem", "training", f"a training step of {config.network} fails: {reason}")
        return
    yield Finding(
        "ok",
        "speed",
        f"one local epoch of {EPOCH} images: about {duration(EPOCH * each)} "
        f"({config.method}, {config.network}, {config.image_size} px; measured now, on random images, "
        f"in one process of {counted(config.threads, 'thread')})",
    )
    if images := sum(entry.split == "train" for entry in source.entries):
        total = images * config.epochs * config.rounds * each / config.workers
        yield Finding(
            "ok",
            "speed",
            f"{counted(config.rounds, 'round')} of {counted(config.epochs, 'epoch')} on {images:,} training "
            f"images: about {duration(total)} at that speed, without scoring",
        )
    yield check_memory_use(memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, config, source)


def check_memory_use(memory: int, process: int, config: TrainConfig, source: DataSet) -> Finding:
    """Compare the memory that training needs with what is available.

    Args:
        memory: bytes that are available.
        process: peak memory, in bytes, of a process that trained a few batches.
        config: the settings, resolved.
        source: the data set.
    """
    count = len(source.entries) or source.sites * config.images
    pixels = count * 3 * config.image_size**2
    message = (
        f"{size(memory)} available; {counted(config.workers, 'process')} of up to {size(process)} "
        f"(measured now), {count:,} decoded images {size(pixels)}"
    )
    if process + pixels > memory:
        advice = "close other programs, or use a smaller --image-size, --batch or --network"
        return Finding("problem", "memory", message, advice)
    if config.workers * process + pixels > memory:
        return Finding(
            "note", "memory", f"{message}; it may run out", f"use fewer than {config.workers} --workers"
        )
    return Finding("ok", "memory", message)


def seconds_per_image(config: TrainConfig, recipe: Recipe, at_least: float = 0.5) -> float:
    """Return the seconds per image of a local epoch of the method, measured on random images.

    Args:
        config: the settings, resolved.
        recipe: their recipe.
        at_least: seconds to measure for, after a first batch that is not counted, in which memory is
            allocated and kernels are chosen.
    """
    run = Run(config, make_method(config, recipe), recipe, class_counts=(1,) * len(config.classes))
    state = run.method.start(recipe.initial())

    def seconds(count: int) -> float:
        examples = Examples(
            torch.randint(256, (count, 3, config.image_size, config.image_size), dtype=torch.uint8),
            torch.arange(count) % len(config.classes),
        )
        site = Site(SiteData("random", examples, examples, examples).to(recipe.device), recipe)
        started = time.perf_counter()
        run.method.train(state, site, run.moment(0))
        return time.perf_counter() - started

    with prepared(config.threads):
        seconds(config.batch)
        count = config.batch
        while (taken := seconds(count)) < at_least and count < EPOCH:
            count = min(2 * count, EPOCH)
    return taken / count
