"""One run from its settings to its folder: train on the sites, and save everything round by round."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prrfl.algorithms import Algorithm, traits_of
from prrfl.capture import on_gpu
from prrfl.config import TrainConfig
from prrfl.data.fingerprint import Fingerprints, fingerprints, short
from prrfl.engine import Engine, Exchange, InProcess, Keeper, Pooled, rounds_from
from prrfl.engine.in_process import POOL
from prrfl.engine.workers import Workers
from prrfl.errors import ConfigError
from prrfl.losses import CPA
from prrfl.machine import gpu, prepared, system
from prrfl.parts import PartError, blamed
from prrfl.reports.summary import best_round, validation_f1
from prrfl.reports.tracking import Results, Tracked, tracking
from prrfl.runs.checkpoint import commit, records_until, restore
from prrfl.runs.deployed import DeployedWriter, Which
from prrfl.runs.folder import RunFolder, first_candidate
from prrfl.runs.position import position_of, reporting
from prrfl.runs.setup import (
    Run,
    make_method,
    make_recipe,
    make_recipe_again,
    resolved,
    share_dtype,
    with_class_counts,
)
from prrfl.storage.atomic import remove_partial
from prrfl.storage.records import append_records
from prrfl.storage.tensor_files import to_bytes, write_tensors
from prrfl.training import ImageCounter
from prrfl.types import ClientId, ExchangeRecord, RoundRecord, SiteData

log = logging.getLogger("prrfl")

SaveDeployed = Callable[[Sequence[Which], int], None]
"""Saves the deployed networks of all sites after a round, given the names to save them as and its index."""


def train(
    config: TrainConfig, sites: Sequence[SiteData], folder: Path, *, resume: bool = False
) -> Generator[RoundRecord]:
    """Run a method on sites whose data is on this machine; yield the records as they arise.

    Args:
        config: the settings.
        sites: the data, from :func:`prrfl.runs.setup.load_data`.
        folder: the run's folder, which is created.
        resume: resume the run in the folder after its last complete round, with the same bits as a run
            without interruption.

    Raises:
        ConfigError: if the folder holds anything and ``resume`` is false.
        StateMismatchError: if the weights to start from cannot be used.
        NonFiniteShareError: if training diverges; the results of earlier rounds stay in the folder.
    """
    config = resolved(config, len(sites))
    there = RunFolder(folder)
    # A run with a checkpoint does not need the weights that it started from, which may be gone.
    has_checkpoint = resume and there.rounds_done > 0
    recipe = make_recipe_again(config, there) if has_checkpoint else make_recipe(config)
    method = make_method(config, recipe)
    counter = ImageCounter(_training_sizes(method, sites))
    run = with_class_counts(Run(config, method, replace(recipe, counter=counter)), sites)
    if not resume:
        there.check_free()
        there.begin(config)
        if run.class_counts:
            there.write_class_counts(run.class_counts)
    if recipe.frozen and not has_checkpoint:
        write_tensors(there.frozen_path, recipe.frozen_tensors())
    writer = DeployedWriter(folder, config, {site.name: site for site in sites})
    with (
        open_engine(run, sites, folder) as engine,
        open_folder(there),
        # After the engine has forked its processes: a thread would not survive that.
        reporting(there, lambda: position_of(counter, there.rounds_done, config)),
    ):

        def save(names: Sequence[Which], index: int) -> None:
            for deployed in engine.deployed():
                writer.write(deployed, names, index)

        yield from remaining_rounds(run, engine, there, save, engine, fingerprints(sites))


def _training_sizes(method: Algorithm[Any], sites: Sequence[SiteData]) -> dict[ClientId, int]:
    """Return the number of training images of each site that trains; pooled images are one site."""
    sizes = {site.name: len(site.train) for site in sorted(sites, key=lambda site: site.name)}
    return {POOL: sum(sizes.values())} if traits_of(method).scope == "pooled" else sizes


def in_time(
    records: Iterator[RoundRecord], rounds: int, seconds: float | None, started: float
) -> Iterator[RoundRecord]:
    """Yield the records of a run, but stop after a complete round if another one would exceed a time limit.

    Args:
        records: from :func:`train`, which has saved a round before it yields the round's last record.
        rounds: number of rounds of the run.
        seconds: the limit; ``None`` for no limit.
        started: when the time began, by ``time.monotonic``.
    """
    before = time.monotonic()
    for record in records:
        yield record
        if seconds is None or not isinstance(record, ExchangeRecord) or record.round + 1 == rounds:
            continue
        now = time.monotonic()
        if now - started + (now - before) > seconds:
            log.info("stopped after round %d because of the time limit", record.round + 1)
            return
        before = now


@contextmanager
def open_folder(folder: RunFolder, patience: float = 0.0) -> Iterator[None]:
    """Lock a run's folder during the block, write the log there, and remove what killed processes left.

    Args:
        folder: the run's folder.
        patience: seconds to wait for another process that uses the folder.

    Raises:
        ConfigError: if another process still uses it after that time.
    """
    with folder.locked(patience), log_file(folder.path / "log.txt"):
        remove_partial(folder.path)
        for path in set(folder.path.glob(".rest-*")) - {states_folder(folder.path, os.getpid())}:
            shutil.rmtree(path)
        yield


def remaining_rounds(
    run: Run,
    exchange: Exchange,
    folder: RunFolder,
    save_deployed: SaveDeployed,
    keeper: Keeper | None = None,
    data: Fingerprints | None = None,
) -> Iterator[RoundRecord]:
    """Do the remaining rounds of a run, write a checkpoint after each, and yield the records as they arise.

    Args:
        run: settings, method and recipe.
        exchange: brings the method to the sites.
        folder: the run's folder, locked by :func:`open_folder`.
        save_deployed: is called after each round.
        keeper: holds the states of the sites; ``None`` if the sites save their states themselves.
        data: fingerprints of the sites' data; ``None`` if it is not on this machine.

    Raises:
        ConfigError: if the run was started with other settings.
        DataError: if the run was started with other data.
        StateMismatchError: if no checkpoint can be used.
    """
    config = run.settings
    started = time.monotonic()
    done = restore(folder, config, keeper, data)
    where = "real sites" if data is None else ", ".join(data)
    start = done.round + 1
    log.info(
        "%s on %s, %s, %s, from round %d", config.method, where, config.device, config.precision, start + 1
    )
    if isinstance(loss := run.recipe.loss, CPA) and loss.init_iter >= config.rounds:
        log.warning(
            "prototypes have no effect: init_iter is %d, and the run has %d rounds",
            loss.init_iter,
            config.rounds,
        )
    if data is not None and start == 0:
        folder.write_data(data)
    folder.write_environment(environment(config, folder.path, data), start)
    history = records_until(folder, done)
    unsaved: list[RoundRecord] = []
    with tracking(config.track, _tracked(run, folder.path, data)) as trackers:
        trackers.add(history)
        for record in rounds_from(run.moment(start), run.method, exchange):
            history.append(record)
            unsaved.append(record)
            if isinstance(record, ExchangeRecord):
                candidate = first_candidate(config.rounds)
                best = record.round >= candidate and best_round(history, candidate) == record.round
                save_deployed(["last", "best"] if best else ["last"], record.round)
                append_records(folder.path / "metrics.jsonl", unsaved)
                seconds = done.seconds + time.monotonic() - started
                commit(folder, config, keeper, record.round, seconds)
                log.info("round %d done: validation macro-F1 %.4f", record.round + 1, validation_f1(unsaved))
                trackers.add(unsaved)
                unsaved = []
            yield record
        # Here, so that training does not wait for what draws: Matplotlib, SciPy, scikit-learn.
        from prrfl.runs.report import finish

        finish(history, config, folder, done.seconds + time.monotonic() - started)
        trackers.close(_results(folder.path))


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Write what the package logs during the block into a file, and errors in own parts with traceback.

    Raises:
        ConfigError: if the file cannot be one.
        PartError: instead of what a part of the user's own raised.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is not a file, so no log can be written to it; remove it")
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except (Exception, SystemExit) as cause:
        error = blamed(cause)
        log.error("%s", error or cause, exc_info=error is not None or isinstance(cause, PartError))
        if error is not None:
            raise error from cause
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _tracked(run: Run, folder: Path, data: Fingerprints | None) -> Tracked:
    """Return what trackers are told about a run."""
    config = run.settings
    tags = {"method": config.method, "seed": str(config.seed), "prrfl": version("prrfl")}
    if data is not None:
        tags["data"] = short(data)
    return Tracked(folder, config.model_dump(mode="json", exclude_none=True), tags)


def _results(folder: Path) -> Results:
    """Return the files of a finished run that trackers keep. A federation's networks are at the sites."""
    models = folder / "models"
    networks = {str(path.relative_to(models)): path for path in sorted(models.glob("*/*.safetensors"))}
    return Results([path for path in [folder / "retrogress.png"] if path.is_file()], networks)


STATES_IN_MEMORY = 2**30
"""Largest size of the states of all sites, in bytes, that stays in memory; larger ones are stored on disk."""


def states_folder(folder: Path, process: int | None) -> Path:
    """Return where a process, by its id, stores states that are not in use."""
    return folder / f".rest-{process}"


@contextmanager
def open_engine(run: Run, sites: Sequence[SiteData], folder: Path) -> Iterator[Engine]:
    """Yield the engine that the settings ask for; end its processes and remove its files after the block."""
    config, stored = run.settings, states_folder(folder, os.getpid())
    state = run.method.start(run.recipe.initial())
    large = len(sites) * len(to_bytes(state)) > STATES_IN_MEMORY
    kind = Pooled if traits_of(run.method).scope == "pooled" else InProcess

    def make(some: Sequence[SiteData]) -> InProcess:
        return kind(
            run.method,
            some,
            run.recipe,
            rest_in=stored if large else None,
            share_dtype=share_dtype(config),
        )

    try:
        # Each worker sets its own threads. This process then needs only one: a team of threads would not
        # survive the fork.
        with prepared(config.threads if config.workers == 1 else 1):
            if config.workers == 1:
                yield make(sites)
            else:
                if not on_gpu(config.device):  # where nothing may touch the driver before the fork
                    # PyTorch's first optimiser imports 800 modules, which takes 1.5 s and 70 MB: once here,
                    # and not in each worker.
                    torch.optim.SGD([torch.zeros(1)])
                with Workers(make, sites, config.workers, config.threads) as engine:
                    yield engine
    finally:
        shutil.rmtree(stored, ignore_errors=True)


def environment(config: TrainConfig, folder: Path, data: Fingerprints | None = None) -> dict[str, Any]:
    """Return what is needed to understand or repeat a run: machine, versions, command, own parts and data.

    Args:
        config: the run's settings.
        folder: the run's folder, which exists.
        data: fingerprints of the sites' data; ``None`` if it is not on this machine.
    """
    names = ("prrfl", "torch", "numpy", "scikit-learn", "monai", "safetensors")
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "platform": system(),
        "threads": torch.get_num_threads(),
        "device": config.device,
        "gpu": found.name if (found := gpu()) else None,
        "free_disk_bytes": shutil.disk_usage(folder).free,
        "versions": {name: version(name) for name in names},
        "command": _without_secrets(sys.argv),
        "parts": config.own_parts(),
        "data": None if data is None else short(data),
    }


def _without_secrets(command: Sequence[str]) -> list[str]:
    """Return a command line without the token that Flower passes to the programs that it starts."""
    secret = {k + 1 for k, word in enumerate(command) if word == "--token"}
    return ["..." if k in secret else word for k, word in enumerate(command)]
