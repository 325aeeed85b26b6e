"""One run from settings to folder: load the sites, train, and keep all that came of it.

A run folder holds ``config.toml`` (resolved), ``environment.json``, ``metrics.jsonl`` (one record a line),
``summary.json``, ``retrogress.png``, ``log.txt`` and ``models/<site>/{best,last}.safetensors``.
"""

import logging
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prrfl.config import TrainConfig, load_config
from prrfl.data.augment import Augmentation
from prrfl.data.dermoscopy import load_sites
from prrfl.data.synthetic import GeneratedData, cached
from prrfl.engine import InProcess, run_rounds
from prrfl.engine.store import write_json, write_tensors, write_text
from prrfl.errors import ConfigError, ParticipationError
from prrfl.models import build_network
from prrfl.records import append_records, read_records
from prrfl.reports.retrogress import draw_retrogress
from prrfl.reports.summary import summarise, validation_f1
from prrfl.tensors import norm_keys
from prrfl.training import Recipe
from prrfl.types import ExchangeRecord, RoundRecord, SiteData

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
        precision=config.precision,
    )


def train(config: TrainConfig, sites: Sequence[SiteData], folder: Path) -> Iterator[RoundRecord]:
    """Run the method on the sites, keep everything in the folder, and yield the records as they arise.

    Args:
        config: the settings.
        sites: data, as :func:`load_data` returns it.
        folder: the run's folder, made here.

    Raises:
        ConfigError: if the folder exists and holds anything.
        NonFiniteShareError: if training breaks down; what earlier rounds gave stays in the folder.
    """
    check_folder_is_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield from _train(config, sites, folder)
    except Exception as cause:
        log.error("%s", cause)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _train(config: TrainConfig, sites: Sequence[SiteData], folder: Path) -> Iterator[RoundRecord]:
    started = time.monotonic()
    write_text(folder / "config.toml", config.to_toml())
    write_json(folder / "environment.json", environment())
    algorithm, recipe = config.algorithm(), make_recipe(config)
    engine = InProcess(algorithm, sites, recipe)
    log.info(
        "%s on %s, %s, %s", config.method, ", ".join(s.name for s in sites), config.device, config.precision
    )
    history: list[RoundRecord] = []
    best = -1.0
    fresh: list[RoundRecord] = []
    for record in run_rounds(
        algorithm,
        engine,
        rounds=config.rounds,
        epochs=config.epochs,
        seed=config.seed,
        norm_keys=norm_keys(recipe.network),
    ):
        history.append(record)
        fresh.append(record)
        if isinstance(record, ExchangeRecord):
            save_models(engine, folder, "last", record.round)
            candidate = validation_f1(fresh)
            if in_last_fifth(record.round, config.rounds) and candidate > best:
                best = candidate
                save_models(engine, folder, "best", record.round)
            append_records(folder / "metrics.jsonl", fresh)
            log.info("round %d done: validation macro-F1 %.4f", record.round, candidate)
            fresh = []
        yield record
    finish(history, config, folder, time.monotonic() - started)


def finish(
    records: Sequence[RoundRecord], config: TrainConfig, folder: Path, seconds: float | None = None
) -> dict[str, Any]:
    """Write the summary and the pictures of a run from its records; return the summary."""
    summary = summarise(records, first_candidate=config.rounds - last_fifth(config.rounds))
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    write_json(folder / "summary.json", summary)
    draw_retrogress(records, folder / "retrogress.png", config.epochs)
    return summary


def report(folder: Path) -> dict[str, Any]:
    """Remake summary and pictures of a run from its folder; return the summary.

    Raises:
        ConfigError: if the folder holds no run.
        DataError: if its records are damaged.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} holds no run: it has no config.toml")
    records = read_records(folder / "metrics.jsonl")
    if not records:
        raise ConfigError(f"{folder}: no round was completed, there is nothing to report")
    return finish(records, load_config(folder / "config.toml", {}), folder)


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


def save_models(engine: InProcess, folder: Path, name: str, index: int) -> None:
    """Write every site's deployed network as ``models/<site>/<name>.safetensors``."""
    for client, networks in engine.models().items():
        role, weights = next(iter(networks.items()))
        write_tensors(
            folder / "models" / client / f"{name}.safetensors", weights, {"model": role, "round": str(index)}
        )


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
