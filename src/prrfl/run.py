"""One run from settings to folder: load the sites, train, and keep all that came of it.

A run folder holds ``config.toml`` (resolved), ``environment.json``, ``metrics.jsonl`` (one record a line),
``summary.json``, ``retrogress.png``, ``log.txt``, for each site ``models/<site>/{best,last}.safetensors`` and
``predictions/<site>/{best,last}.csv``, and in ``state/`` all that is needed to go on after the last round.
"""

import hashlib
import io
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from pydantic import TypeAdapter

from prrfl.algorithms import Algorithm, Centralised
from prrfl.config import TrainConfig, load_config
from prrfl.data.augment import Augmentation
from prrfl.data.sources import load_sites
from prrfl.data.synthetic import GeneratedData, cached
from prrfl.engine import Engine, InProcess, Workers, run_rounds
from prrfl.engine.store import to_bytes, write_json, write_tensors, write_text
from prrfl.errors import ConfigError, DataError, ParticipationError, StateMismatchError
from prrfl.machine import prepared
from prrfl.models import build_network
from prrfl.records import append_records, predictions_to_csv, read_predictions, read_records
from prrfl.reports.page import Sample, run_page
from prrfl.reports.retrogress import draw_retrogress
from prrfl.reports.summary import summarise, validation_f1
from prrfl.tensors import norm_keys
from prrfl.training import Precision, Recipe
from prrfl.types import ClientId, Examples, ExchangeRecord, Predictions, RoundRecord, SiteData, Split

log = logging.getLogger("prrfl")


def load_data(config: TrainConfig) -> list[SiteData]:
    """Return the sites that the settings ask for: a folder's, or generated ones.

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
    )
    if len(sites) < 2 and config.method != "local":
        raise ParticipationError(
            f"{folder} holds one site, {sites[0].name}; federated training needs at least 2 "
            "(only method local trains one alone)"
        )
    return sites


def make_recipe(config: TrainConfig) -> Recipe:
    """Return the recipe of local training that the settings describe."""
    return Recipe(
        network=build_network(config.network, len(config.classes), config.seed),
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
        NonFiniteShareError: if training breaks down; what earlier rounds gave stays in the folder.
    """
    config = resolved(config, len(sites))
    if not resume:
        check_folder_is_free(folder)
        begin(config, folder)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with _events(config, folder) as add:
            for record in _train(config, sites, folder):
                add(record)
                yield record
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


def begin(config: TrainConfig, folder: Path) -> None:
    """Make a run's folder, from which it can be resumed even before its first round."""
    write_text(folder / "config.toml", config.to_toml())


def _train(config: TrainConfig, sites: Sequence[SiteData], folder: Path) -> Iterator[RoundRecord]:
    algorithm, recipe = config.algorithm(), make_recipe(config)
    with open_engine(config, algorithm, recipe, sites, folder) as engine:
        yield from _rounds(config, algorithm, recipe, engine, sites, folder)


def _rounds(
    config: TrainConfig,
    algorithm: Algorithm[Any],
    recipe: Recipe,
    engine: Engine,
    sites: Sequence[SiteData],
    folder: Path,
) -> Iterator[RoundRecord]:
    started = time.monotonic()
    tests = {site.name: site.test for site in sites}
    done = last_complete_round(folder, engine)
    log.info(
        "%s on %s, %s, %s, from round %d",
        config.method,
        ", ".join(s.name for s in sites),
        config.device,
        config.precision,
        done.round + 1,
    )
    if done.round < 0:
        write_json(folder / "environment.json", environment())
    best = done.best
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
            candidate = validation_f1(fresh)
            names = ["last"]
            if in_last_fifth(record.round, config.rounds) and candidate > best:
                best = candidate
                names.append("best")
            save_deployed(engine, tests, config.classes, folder, names, record.round)
            append_records(folder / "metrics.jsonl", fresh)
            seconds = done.seconds + time.monotonic() - started
            size = (folder / "metrics.jsonl").stat().st_size
            commit(engine, folder, Progress(record.round, size, best, seconds))
            log.info("round %d done: validation macro-F1 %.4f", record.round, candidate)
            fresh = []
        yield record
    finish(history, config, folder, done.seconds + time.monotonic() - started)


REST_ABOVE = 2**30
"""Bytes of all sites' states together from which on they rest on disk while they are not in use."""


@contextmanager
def open_engine(
    config: TrainConfig,
    algorithm: Algorithm[Any],
    recipe: Recipe,
    sites: Sequence[SiteData],
    folder: Path,
) -> Iterator[Engine]:
    """Give the engine that the settings ask for; end its processes and remove its files afterwards."""
    rest = folder / "state" / ".rest"
    shutil.rmtree(rest, ignore_errors=True)  # of a run that was killed
    state = algorithm.start(recipe.network.state_dict())
    large = len(sites) * len(to_bytes(state)) > REST_ABOVE

    def make(some: Sequence[SiteData]) -> InProcess:
        return InProcess(
            algorithm,
            some,
            recipe,
            pooled=isinstance(algorithm, Centralised),
            rest_in=rest if large else None,
            share_dtype=torch.float16 if config.share_bits == 16 else None,
        )

    try:
        # Processes set their own threads; this one needs none beside them, and a team of them would not
        # survive the fork.
        with prepared(config.threads if config.workers == 1 else 1, config.device):
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
    there is one process.
    """
    cores = len(os.sched_getaffinity(0))
    alone = config.device.startswith("cuda") or config.method == "centralised"
    workers = config.workers or (1 if alone else min(sites, max(1, cores // (config.threads or 1))))
    threads = config.threads or max(1, cores // workers)
    return config.model_copy(update={"workers": workers, "threads": threads})


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        round: the last complete round; -1 before the first.
        metrics_bytes: size of ``metrics.jsonl`` at its end.
        best: the best mean macro-F1 on validation among the rounds that compete; -1 before them.
        seconds: wall time until then.
        checksums: SHA-256 of each site's state, by file name.
    """

    round: int = -1
    metrics_bytes: int = 0
    best: float = -1.0
    seconds: float = 0.0
    checksums: Mapping[str, str] = field(default_factory=dict)


def commit(engine: Engine, folder: Path, progress: Progress) -> None:
    """Write every site's state and the progress as ``state/round-<n>``, whole or not at all."""
    states = folder / "state"
    final = states / f"round-{progress.round:04d}"
    temporary = states / f".{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    engine.save(temporary)
    progress = replace(progress, checksums={path.name: _checksum(path) for path in temporary.iterdir()})
    write_json(temporary / "progress.json", asdict(progress))
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    for path in states.iterdir():
        if path != final:
            shutil.rmtree(path)


def last_complete_round(folder: Path, engine: Engine) -> Progress:
    """Give the engine the states of the last complete round of a run's folder, and return how far it came.

    A damaged state is named in a warning and the one before it used, if there is one.
    """
    for path in sorted((folder / "state").glob("round-*"), reverse=True):
        try:
            progress = TypeAdapter(Progress).validate_json((path / "progress.json").read_bytes())
            for name, expected in progress.checksums.items():
                if _checksum(path / name) != expected:
                    raise StateMismatchError(f"{path / name} is not as it was written")
            engine.load(path)
        except (OSError, ValueError, StateMismatchError) as cause:
            log.warning("%s cannot be used: %s", path, " ".join(str(cause).split()))
            continue
        return progress
    return Progress()


def records_until(folder: Path, progress: Progress) -> list[RoundRecord]:
    """Cut the records of an unfinished round off, and return the others."""
    path = folder / "metrics.jsonl"
    if not path.exists() or progress.metrics_bytes == 0:
        path.unlink(missing_ok=True)
        return []
    os.truncate(path, progress.metrics_bytes)
    return read_records(path)


def rounds_done(folder: Path) -> int:
    """Return how many complete rounds a run's folder holds."""
    done = [int(path.name.removeprefix("round-")) + 1 for path in (folder / "state").glob("round-*")]
    return max(done, default=0)


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that came to its end."""
    return (folder / "summary.json").is_file()


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a finished run.

    Raises:
        DataError: if it is absent or damaged.
    """
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError) as cause:
        raise DataError(f"{folder / 'summary.json'} cannot be read: {cause}; run `prrfl resume`") from None
    return summary


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finish(
    records: Sequence[RoundRecord], config: TrainConfig, folder: Path, seconds: float | None = None
) -> dict[str, Any]:
    """Write the summary and the pictures of a run from its records; return the summary.

    Without the wall time in seconds, the one that an earlier summary holds is kept.
    """
    if seconds is None and is_finished(folder):
        seconds = read_summary(folder).get("seconds")
    summary = summarise(records, first_candidate=config.rounds - last_fifth(config.rounds))
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    write_json(folder / "summary.json", summary)
    draw_retrogress(records, folder / "retrogress.png", config.epochs)
    return summary


def report(folder: Path) -> dict[str, Any]:
    """Remake summary, pictures and ``report.html`` of a run from its folder; return the summary.

    The page shows images and class counts only where the run's data is at hand.

    Raises:
        ConfigError: if the folder holds no run.
        DataError: if its records are damaged.
    """
    settings = settings_of(folder)
    records = read_records(folder / "metrics.jsonl")
    if not records:
        raise ConfigError(f"{folder}: no round was completed, there is nothing to report")
    summary = finish(records, settings, folder)
    predictions = {
        site: read_predictions(folder / "predictions" / site / "best.csv")
        for site in summary["best"]["sites"]
    }
    try:
        sites = load_data(settings)
    except DataError as cause:
        log.warning("the page shows no images: %s", cause)
        sites = []
    page = run_page(
        records,
        predictions,
        summary,
        settings.model_dump(mode="json", exclude_none=True),
        balance={site.name: class_counts(site, len(settings.classes)) for site in sites},
        samples=[s for site in sites for s in samples(site, predictions[site.name], settings.classes)],
    )
    write_text(folder / "report.html", page)
    return summary


def class_counts(site: SiteData, classes: int) -> dict[str, list[int]]:
    """Return for each split how many images there are of each class."""
    splits: tuple[Split, ...] = ("train", "valid", "test")
    return {name: site.split(name).labels.bincount(minlength=classes).tolist() for name in splits}


def samples(site: SiteData, predictions: Predictions, classes: Sequence[str], each: int = 4) -> list[Sample]:
    """Return the test images of which the network is surest, wrong ones first, then right ones."""
    sure, predicted = predictions.probabilities.max(1)
    wrong = predicted != predictions.labels
    rows = {name: row for row, name in enumerate(site.test.ids)}
    shown = []
    for chosen in (wrong, ~wrong):
        ranked = [k for k in sure.argsort(descending=True).tolist() if chosen[k]][:each]
        for k in ranked:
            if (row := rows.get(predictions.ids[k])) is not None:
                png = io.BytesIO()
                Image.fromarray(site.test.inputs[row].permute(1, 2, 0).numpy()).save(png, "PNG")
                truth, answer = classes[int(predictions.labels[k])], classes[int(predicted[k])]
                name = predictions.ids[k]
                shown.append(Sample(site.name, name, png.getvalue(), truth, answer, float(sure[k])))
    return shown


def settings_of(folder: Path) -> TrainConfig:
    """Return the settings of a run by its folder.

    Raises:
        ConfigError: if the folder holds no run.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} holds no run: it has no config.toml")
    return load_config(folder / "config.toml", {})


def check_folder_is_free(folder: Path) -> None:
    """Raise unless a run may be written there: nothing is there, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run folder {folder} exists already; choose another name, or remove it")


def last_fifth(rounds: int) -> int:
    """Return how many rounds at the end compete for the best model: the last 20 %, at least one."""
    return max(1, rounds // 5)


def in_last_fifth(index: int, rounds: int) -> bool:
    """Return whether a round is among the last 20 %."""
    return index >= rounds - last_fifth(rounds)


def save_deployed(
    engine: Engine,
    tests: Mapping[ClientId, Examples],
    classes: Sequence[str],
    folder: Path,
    names: Sequence[str],
    index: int,
) -> None:
    """Write every site's deployed network, and what it says of the test images.

    Files are ``models/<site>/<name>.safetensors`` and ``predictions/<site>/<name>.csv``.
    """
    for one in engine.deployed("test"):
        for name in names:
            path = folder / "models" / one.client / f"{name}.safetensors"
            write_tensors(path, one.weights, {"model": one.model, "round": index})
        for site, logits in one.outputs.items():
            images = tests[site]
            ids = images.ids or tuple(map(str, range(len(images))))
            predictions = Predictions(ids, images.labels, logits.double().softmax(1))
            for name in names:
                path = folder / "predictions" / site / f"{name}.csv"
                write_text(path, predictions_to_csv(predictions, classes))


def environment() -> dict[str, Any]:
    """Return what a reader needs to know of the machine and the versions to understand a run."""
    names = ("prrfl", "torch", "numpy", "scikit-learn", "monai", "kornia", "safetensors")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "versions": {name: version(name) for name in names},
        "command": sys.argv,
    }
