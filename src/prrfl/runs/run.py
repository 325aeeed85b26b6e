"""One run from settings to folder: load the sites, choose the engine, train, and keep all that came of it."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from prrfl.algorithms import ALGORITHMS, Algorithm, traits_of
from prrfl.config import TrainConfig
from prrfl.data.augment import Augmentation
from prrfl.data.fingerprint import Fingerprints, fingerprints, short
from prrfl.data.images import SPLITS
from prrfl.data.sources import load_sites
from prrfl.data.synthetic import GeneratedData, cached
from prrfl.engine import Engine, InProcess, Workers, run_rounds
from prrfl.errors import ConfigError, ParticipationError
from prrfl.machine import prepared, system, usable_cores
from prrfl.models import build_network
from prrfl.models.weights import load_weights
from prrfl.reports.summary import best_round, validation_f1
from prrfl.runs.folder import (
    alone,
    begin,
    check_data,
    check_folder_is_free,
    commit,
    finish,
    first_candidate,
    last_complete_round,
    note_environment,
    records_until,
    rounds_done,
    save_deployed,
    write_data,
)
from prrfl.storage.atomic import remove_partial
from prrfl.storage.records import append_records
from prrfl.storage.tensor_files import to_bytes
from prrfl.tensors import norm_keys
from prrfl.training import Precision, Recipe
from prrfl.types import ClientId, ExchangeRecord, RoundRecord, SiteData, Split

log = logging.getLogger("prrfl")


def load_data(config: TrainConfig, needed: Sequence[Split] = SPLITS) -> list[SiteData]:
    """Return the sites that the settings ask for: a folder's, or generated ones.

    Args:
        config: the settings.
        needed: the splits that every site must have; the others come out empty.

    Raises:
        DataError: if the data cannot be used.
        ParticipationError: if there is a single site.
    """
    folder = config.data
    if folder is None:
        folder = cached(GeneratedData(config.sites, config.images, config.image_size, config.seed))
    sites = load_sites(
        folder,
        image_size=config.image_size,
        classes=config.classes,
        allow_missing=config.allow_missing,
        needed=needed,
    )
    if len(sites) < 2 and traits_of(ALGORITHMS[config.method]).scope != "alone":
        alone = [name for name, kind in ALGORITHMS.items() if traits_of(kind).scope == "alone"]
        raise ParticipationError(
            f"{folder} holds one site, {sites[0].name}; federated training needs at least 2 "
            f"(only method {' or '.join(alone)} trains one alone)"
        )
    return sites


def make_recipe(config: TrainConfig) -> Recipe:
    """Return the recipe of local training that the settings describe.

    Raises:
        StateMismatchError: if the weights to start from cannot be used.
    """
    network = build_network(config.network, len(config.classes), config.seed)
    if config.weights is not None:
        load_weights(network, str(config.weights))
    if config.precision == "float64":
        network.double()  # so that what a site starts from has the type of all that follows
    return Recipe(
        network=network,
        batch=config.batch,
        optimizer=config.optimizer,
        lr=config.lr,
        lr_step=config.lr_step,
        lr_gamma=config.lr_gamma,
        weight_decay=config.weight_decay,
        augment=Augmentation() if config.augment else None,
        device=config.device,
        precision=cast(Precision, config.precision),  # auto is resolved by the settings
    )


def share_dtype(config: TrainConfig) -> torch.dtype | None:
    """Return the type in which real-valued tensors travel; ``None``: as they are."""
    return torch.float16 if config.share_bits == 16 else None


def train(
    config: TrainConfig, sites: Sequence[SiteData], folder: Path, *, resume: bool = False
) -> Iterator[RoundRecord]:
    """Run the method on the sites, keep everything in the folder, and yield the records as they arise.

    Args:
        config: the settings.
        sites: data, as :func:`load_data` returns it.
        folder: the run's folder, made here.
        resume: go on in a folder after its last complete round; same bits as without a stop.

    Raises:
        ConfigError: if the folder holds anything and the run is not to be resumed.
        StateMismatchError: if the weights to start from cannot be used.
        NonFiniteShareError: if training breaks down; what earlier rounds gave stays in the folder.
    """
    config = resolved(config, len(sites))
    begun = resume and rounds_done(folder) > 0
    # Whoever goes on has a state, and does not need the weights of the start any more.
    recipe = make_recipe(config.model_copy(update={"weights": None}) if begun else config)
    algorithm = config.algorithm()
    if not resume:
        check_folder_is_free(folder)
        begin(config, folder)
    data = {site.name: site for site in sites}
    with open_engine(config, algorithm, recipe, sites, folder) as engine:
        keep = partial(save_deployed, engine, data, config, folder)
        prints = fingerprints(sites)
        yield from run_engine(config, algorithm, recipe, engine, list(data), keep, folder, prints)


def run_engine(
    config: TrainConfig,
    algorithm: Algorithm[Any],
    recipe: Recipe,
    engine: Engine,
    names: Sequence[ClientId],
    keep: Callable[[Sequence[str], int], None],
    folder: Path,
    data: Fingerprints | None = None,
    patience: float = 0.0,
) -> Iterator[RoundRecord]:
    """Run what is left of a run, commit each round in its folder, and yield the records as they arise.

    Args:
        config: the settings.
        algorithm: the method that they describe.
        recipe: the recipe that they describe.
        engine: brings the method to the sites.
        names: the sites.
        keep: is told, after each round, under which names the sites' deployed networks are to be kept.
        folder: the run's folder.
        data: the sites' fingerprints, where their data is seen here.
        patience: seconds to wait for another process that works in the folder.

    Raises:
        ConfigError: if it is still there then.
        DataError: if the data is not what the run was begun with.
    """
    with alone(folder, patience), _log_file(folder), _events(config, folder) as add:
        remove_partial(folder)
        for path in set(folder.glob(".rest-*")) - {_rest(folder)}:  # of runs that were killed
            shutil.rmtree(path)
        for record in _rounds(config, algorithm, recipe, engine, names, keep, folder, data):
            add(record)
            yield record


@contextmanager
def _log_file(folder: Path) -> Iterator[None]:
    path = folder / "log.txt"
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is no file to write a log into; remove it")
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except Exception as cause:
        log.error("%s", cause)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _nothing(_: RoundRecord) -> None:
    pass


@contextmanager
def _events(config: TrainConfig, folder: Path) -> Iterator[Callable[[RoundRecord], None]]:
    if not config.tensorboard:
        yield _nothing
        return
    from prrfl.reports.tensorboard import EventLog

    with EventLog(folder / "tensorboard", config.epochs) as events:
        yield events.add


def _rounds(
    config: TrainConfig,
    algorithm: Algorithm[Any],
    recipe: Recipe,
    engine: Engine,
    names: Sequence[ClientId],
    keep: Callable[[Sequence[str], int], None],
    folder: Path,
    data: Fingerprints | None,
) -> Iterator[RoundRecord]:
    started = time.monotonic()
    done = last_complete_round(folder, engine, config)
    log.info(
        "%s on %s, %s, %s, from round %d",
        config.method,
        ", ".join(names),
        config.device,
        config.precision,
        done.round + 2,
    )
    if data is not None and done.round < 0:
        write_data(folder, data)
    elif data is not None:
        check_data(folder, data)
    note_environment(folder, environment(config.device, data), done.round + 1)
    history = records_until(folder, done)
    fresh: list[RoundRecord] = []
    for record in run_rounds(
        algorithm,
        engine,
        rounds=config.rounds,
        epochs=config.epochs,
        seed=config.seed,
        norm_keys=norm_keys(recipe.network),
        first=done.round + 1,
    ):
        history.append(record)
        fresh.append(record)
        if isinstance(record, ExchangeRecord):
            first = first_candidate(config.rounds)
            best = record.round >= first and best_round(history, first) == record.round
            keep(["last", "best"] if best else ["last"], record.round)
            append_records(folder / "metrics.jsonl", fresh)
            seconds = done.seconds + time.monotonic() - started
            commit(engine, config, folder, record.round, seconds)
            log.info("round %d done: validation macro-F1 %.4f", record.round + 1, validation_f1(fresh))
            fresh = []
        yield record
    finish(history, config, folder, done.seconds + time.monotonic() - started)


REST_ABOVE = 2**30
"""Bytes of all sites' states together from which on they rest on disk while they are not in use."""


def _rest(folder: Path) -> Path:
    """Return where this process's states rest; one that is refused the folder must not touch another's."""
    return folder / f".rest-{os.getpid()}"


@contextmanager
def open_engine(
    config: TrainConfig,
    algorithm: Algorithm[Any],
    recipe: Recipe,
    sites: Sequence[SiteData],
    folder: Path,
) -> Iterator[Engine]:
    """Give the engine that the settings ask for; end its processes and remove its files afterwards."""
    rest = _rest(folder)
    state = algorithm.start(recipe.network.state_dict())
    large = len(sites) * len(to_bytes(state)) > REST_ABOVE

    def make(some: Sequence[SiteData]) -> InProcess:
        return InProcess(
            algorithm,
            some,
            recipe,
            pooled=traits_of(algorithm).scope == "pooled",
            rest_in=rest if large else None,
            share_dtype=share_dtype(config),
        )

    try:
        # Processes set their own threads; this one needs none beside them, and a team of them would not
        # survive the fork.
        with prepared(config.threads if config.workers == 1 else 1):
            if config.workers == 1:
                yield make(sites)
            else:
                with Workers(make, sites, config.workers, config.threads) as engine:
                    yield engine
    finally:
        shutil.rmtree(rest, ignore_errors=True)


def resolved(config: TrainConfig, sites: int) -> TrainConfig:
    """Return the settings with workers and threads chosen where they are left to choose.

    Sites share nothing while they train, so that a process for each of them wastes less than threads, which
    wait for each other at every layer; what cores are left then go to threads. On a GPU and for one network
    there is one process. Threads do not follow from ``workers``, because bits depend on them.

    Raises:
        ConfigError: if several processes are asked for where there can only be one.
    """
    cores = usable_cores()
    alone = {
        "a GPU cannot be shared out over processes": config.device.startswith("cuda"),
        f"{config.method} training has one network": traits_of(config.algorithm()).scope == "pooled",
    }
    for reason, holds in alone.items():
        if holds and config.workers > 1:
            raise ConfigError(f"workers is {config.workers}, but {reason}; leave it out, or give 1")
    most = 1 if any(alone.values()) else sites
    workers = min(most, config.workers or max(1, cores // (config.threads or 1)))
    threads = config.threads or max(1, cores // most)
    # Absolute, so that a run can be gone on with from any folder.
    paths = {
        "data": config.data and config.data.absolute(),
        "weights": config.weights and config.weights.absolute(),
    }
    return config.model_copy(update={"workers": workers, "threads": threads, **paths})


def environment(device: str, data: Fingerprints | None = None) -> dict[str, Any]:
    """Return what a reader needs to know of time, machine, versions and data to understand a run."""
    names = ("prrfl", "torch", "numpy", "scikit-learn", "monai", "safetensors")
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "platform": system(),
        "threads": torch.get_num_threads(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "versions": {name: version(name) for name in names},
        "command": _without_secrets(sys.argv),
        "data": None if data is None else short(data),
    }


def _without_secrets(command: Sequence[str]) -> list[str]:
    """Return a command line without the token that Flower gives to the programs it starts."""
    secret = {k + 1 for k, word in enumerate(command) if word == "--token"}
    return ["..." if k in secret else word for k, word in enumerate(command)]
