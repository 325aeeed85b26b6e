"""Checkpoints: the states of all sites after a round, from which a run resumes with the same bits.

A checkpoint is a folder ``state/round-<n>`` with a file per site and ``progress.json``, which holds checksums
of these files, of the records until then, and of itself. It is committed by renaming it. If the newest
checkpoint is damaged, the run resumes from the previous one.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from prrfl.config import TrainConfig, as_written_now
from prrfl.data.fingerprint import Fingerprints
from prrfl.engine import Keeper
from prrfl.errors import ConfigError, DataError, PRRFLError, StateMismatchError
from prrfl.runs.folder import CHECKPOINTS, RunFolder
from prrfl.storage.atomic import commit_step, write_json
from prrfl.storage.reading import changed_file, checksum, read_bytes
from prrfl.storage.records import read_records
from prrfl.types import RoundRecord

log = logging.getLogger("prrfl")

CHECKPOINTS_KEPT = 2
"""Number of checkpoints that stay on the disk."""


@dataclass(frozen=True)
class Progress:
    """How far a run had come when a checkpoint was written.

    Attributes:
        round: the last complete round; -1 before the first.
        seconds: wall time until then.
        settings: the settings that determine results, by key.
        records_bytes: size of ``metrics.jsonl``.
        records: SHA-256 of that part of it.
        states: SHA-256 of each site's state, by file name.
        digest: SHA-256 of all other fields.
    """

    round: int = -1
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    records_bytes: Annotated[int, Field(ge=0)] = 0
    records: str = ""
    states: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""


def commit(
    folder: RunFolder, settings: TrainConfig, keeper: Keeper | None, index: int, seconds: float
) -> None:
    """Write the checkpoint of a round: whole, or not at all.

    Args:
        folder: the run's folder, whose records reach the end of the round.
        settings: the run's settings.
        keeper: holds the states; ``None`` if the sites save their states themselves.
        index: index of the round.
        seconds: wall time of the run until now.
    """
    records = folder.path / "metrics.jsonl"
    with commit_step(
        folder.path / "state" / f"round-{index:04d}", CHECKPOINTS, CHECKPOINTS_KEPT
    ) as checkpoint:
        if keeper is not None:
            keeper.save(checkpoint)
        progress = Progress(
            index,
            seconds,
            settings=_determining(settings),
            records_bytes=records.stat().st_size,
            records=checksum(records),
            states={path.name: checksum(path) for path in checkpoint.iterdir()},
        )
        write_json(checkpoint / "progress.json", asdict(replace(progress, digest=_digest(progress))))


def restore(
    folder: RunFolder, settings: TrainConfig, keeper: Keeper | None, data: Fingerprints | None = None
) -> Progress:
    """Load the newest checkpoint that is not damaged, and return how far it came.

    Damaged checkpoints are named in a warning.

    Args:
        folder: the run's folder.
        settings: the run's settings.
        keeper: gets the states; ``None`` if the sites load their states themselves.
        data: fingerprints of the sites' data; ``None`` if it is not on this machine.

    Raises:
        ConfigError: if the run was started with other settings.
        DataError: if the run was started with other data.
        StateMismatchError: if all checkpoints are damaged, or the newest one that is not has other sites,
            another method or another network.
    """
    first: PRRFLError | None = None
    for path in reversed(folder.checkpoints()):
        try:
            progress = read_progress(path)
            check_records(folder, progress)
        except (StateMismatchError, DataError) as cause:
            log.warning("%s cannot be used: %s", path, cause)
            first = first or cause
            continue
        _check_settings(folder, progress, settings)
        if (
            data is not None
        ):  # before the states: which site is new is more useful than whose state is missing
            folder.check_data(data)
        if keeper is not None:
            keeper.load(path)
        return progress
    if first:
        raise StateMismatchError(
            f"{first}, and no other checkpoint can be used; restore it from a copy, or start another run "
            f"with `prrfl train --config {folder.path / 'config.toml'}`"
        )
    return Progress()


def read_progress(checkpoint: Path) -> Progress:
    """Return how far a run had come, after checking every file of its checkpoint.

    Raises:
        StateMismatchError: if a file is missing or damaged.
    """
    path = checkpoint / "progress.json"
    try:
        progress = TypeAdapter(Progress).validate_json(read_bytes(path))
        if checkpoint.name != f"round-{progress.round:04d}" or progress.digest != _digest(progress):
            raise ValueError("its values were changed")
    except (OSError, ValueError) as cause:
        raise StateMismatchError(f"{path} is damaged: {' '.join(str(cause).split())}") from None
    states = {file.name for file in checkpoint.glob("*.safetensors")}
    if odd := states ^ progress.states.keys():
        raise StateMismatchError(f"{checkpoint / min(odd)} is missing, or was not written by the run")
    if damaged := changed_file(checkpoint, progress.states):
        raise StateMismatchError(f"{damaged} is damaged: its checksum differs")
    return progress


def check_records(folder: RunFolder, progress: Progress) -> None:
    """Raise unless the records until a checkpoint are as they were written.

    Raises:
        StateMismatchError: if the file cannot be read.
        DataError: if its checksum differs.
    """
    path = folder.path / "metrics.jsonl"
    if checksum(path, progress.records_bytes) != progress.records:
        raise DataError(f"{path} is damaged: its records until round {progress.round + 1} have changed")


def records_until(folder: RunFolder, progress: Progress) -> list[RoundRecord]:
    """Remove the records of an unfinished round from ``metrics.jsonl``, and return the others.

    Raises:
        StateMismatchError: if there are records of complete rounds, but no checkpoint.
    """
    path = folder.path / "metrics.jsonl"
    if progress.round < 0:
        # A process killed between writing records and checkpoint leaves the records of one round.
        if path.exists() and read_bytes(path).count(b'"kind": "exchange"') > 1:
            raise StateMismatchError(
                f"{path} holds complete rounds, but {folder.path / 'state'} holds no checkpoint; restore it "
                f"from a copy, or start another run with `prrfl train --config {folder.path / 'config.toml'}`"
            )
        path.unlink(missing_ok=True)
        return []
    os.truncate(path, progress.records_bytes)
    return read_records(path)


def _check_settings(folder: RunFolder, progress: Progress, settings: TrainConfig) -> None:
    # A setting that a part of the user's own got since then has its default, as a new one of the package.
    now, before = _by_name(_determining(settings)), _by_name(progress.settings)
    # The server of a federation trains nothing: what suits its hardware does not matter to the run.
    free = TrainConfig.where(of_hardware=True) if folder.is_federation else frozenset()
    for key in sorted((now.keys() & before.keys()) - free):
        if now[key] != as_written_now(key, before[key]):
            raise ConfigError(
                f"{folder.path / 'config.toml'}: key '{key}' is {now[key]!r}, but the run was started with "
                f"{before[key]!r}; restore that value, or start another run"
            )


def _by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name, those of own parts as ``method.step``."""
    own = settings.get("set", {})
    single = {f"{kind}.{name}": value for kind, table in own.items() for name, value in table.items()}
    return {**{key: value for key, value in settings.items() if key != "set"}, **single}


def _determining(settings: TrainConfig) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=set(TrainConfig.where(resumable=True)))


def _digest(progress: Progress) -> str:
    rest = {key: value for key, value in asdict(progress).items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
