"""A run's folder: what a run leaves behind, committed round by round, and how it is read again.

It holds ``config.toml`` (resolved), ``environment.json``, ``metrics.jsonl`` (one record a line),
``summary.json``, ``retrogress.png``, ``log.txt``, for each site ``models/<site>/{best,last}.safetensors`` and
``predictions/<site>/{best,last}{,-valid}.csv``, and in ``state/`` all that is needed to go on after the last
round.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from prrfl.config import TrainConfig, load_config
from prrfl.engine import Deployed, Engine
from prrfl.engine.store import write_json, write_text
from prrfl.errors import ConfigError, DataError, StateMismatchError
from prrfl.evaluation import predictions
from prrfl.kept import Which, about, kept_path, predictions_path, write_kept
from prrfl.records import predictions_to_csv, read_records
from prrfl.reports.retrogress import draw_retrogress
from prrfl.reports.summary import summarise
from prrfl.types import ClientId, RoundRecord, SiteData, Split, Tensors

log = logging.getLogger("prrfl")


def begin(config: TrainConfig, folder: Path) -> None:
    """Make a run's folder, from which it can be resumed even before its first round."""
    write_text(folder / "config.toml", config.to_toml())


def check_folder_is_free(folder: Path) -> None:
    """Raise unless a run may be written there: nothing is there, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run folder {folder} exists already; choose another name, or remove it")


@contextmanager
def alone(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Let nobody else work in a run's folder while the block lasts.

    The lock is the process's, so that it goes with it, however it ends.

    Args:
        folder: the run's folder.
        patience: seconds to wait for another one to end.

    Raises:
        ConfigError: if another process works there.
    """
    until = time.monotonic() + patience
    with (folder / "config.toml").open() as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise ConfigError(
                        f"another process works in run folder {folder}; wait for it, or stop it"
                    ) from None
                time.sleep(0.5)
        yield


def settings_of(folder: Path, **changed: object) -> TrainConfig:
    """Return the settings of a run by its folder, some of them changed.

    Raises:
        ConfigError: if the folder holds no run.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(f"{folder} holds no run: it has no config.toml")
    return load_config(folder / "config.toml", changed)


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that came to its end.

    A report on a run that is still going on writes a summary as well, of fewer rounds.
    """
    try:
        return bool(read_summary(folder).get("rounds") == settings_of(folder).rounds)
    except DataError:
        return False


def is_federation(folder: Path) -> bool:
    """Return whether a folder holds a run over real sites, whose networks and predictions stay with them."""
    return (folder / "federation.json").is_file()


def is_site_of_federation(folder: Path) -> bool:
    """Return whether a folder is a site's own, of a federation over real sites."""
    return (folder / "settings.json").is_file()


def rounds_done(folder: Path) -> int:
    """Return how many complete rounds a run's folder holds."""
    done = [int(path.name.removeprefix("round-")) + 1 for path in (folder / "state").glob("round-*")]
    return max(done, default=0)


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


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def records_until(folder: Path, progress: Progress) -> list[RoundRecord]:
    """Cut the records of an unfinished round off, and return the others."""
    path = folder / "metrics.jsonl"
    if not path.exists() or progress.metrics_bytes == 0:
        path.unlink(missing_ok=True)
        return []
    os.truncate(path, progress.metrics_bytes)
    return read_records(path)


def save_deployed(
    engine: Engine,
    sites: Mapping[ClientId, SiteData],
    config: TrainConfig,
    folder: Path,
    names: Sequence[Which],
    index: int,
) -> None:
    """Write every site's deployed network, and what it says of the site's images."""
    for one in engine.deployed():
        write_deployed(one, sites, config, folder, names, index)


def write_deployed(
    one: Deployed,
    sites: Mapping[ClientId, SiteData],
    config: TrainConfig,
    folder: Path,
    names: Sequence[Which],
    index: int,
) -> None:
    """Write what one site would take home after a round, and what it says of validation and test images.

    The network goes to ``models/<site>/<name>.safetensors``; predictions to :func:`predictions_path`.
    """
    trained_on = [sites[one.client]] if one.client in sites else list(sites.values())
    what = about(config, one.client, one.model, index, trained_on)
    for name in names:
        write_kept(kept_path(folder, one.client, name), one.weights, what)
    outputs: Mapping[Split, Tensors] = {"valid": one.valid, "test": one.test}
    for split, of_sites in outputs.items():
        for site, logits in of_sites.items():
            table = predictions_to_csv(predictions(logits, sites[site].split(split)), config.classes)
            for name in names:
                write_text(predictions_path(folder, site, name, split), table)


def finish(
    records: Sequence[RoundRecord], config: TrainConfig, folder: Path, seconds: float | None = None
) -> dict[str, Any]:
    """Write the summary and the pictures of a run from its records; return the summary.

    Without the wall time in seconds, the one that an earlier summary holds is kept.
    """
    if seconds is None and (folder / "summary.json").is_file():
        seconds = read_summary(folder).get("seconds")
    summary = summarise(records, first_candidate=config.rounds - last_fifth(config.rounds))
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    write_json(folder / "summary.json", summary)
    draw_retrogress(records, folder / "retrogress.png", config.epochs)
    return summary


def last_fifth(rounds: int) -> int:
    """Return how many rounds at the end compete for the best model: the last 20 %, at least one."""
    return max(1, rounds // 5)


def in_last_fifth(index: int, rounds: int) -> bool:
    """Return whether a round is among the last 20 %."""
    return index >= rounds - last_fifth(rounds)
