"""A run's folder: what a run leaves behind, committed round by round, and how it is read again.

It holds ``config.toml`` (resolved), ``data.json`` (fingerprints of what it is trained on),
``environment.json``, ``metrics.jsonl`` (one record a line), ``summary.json``, ``retrogress.png``,
``log.txt``, for each site ``models/<site>/{best,last}.safetensors`` and
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
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from prrfl.config import LARGEST_FILE, TrainConfig, load_config, parse_toml
from prrfl.data.fingerprint import Fingerprint, Fingerprints, as_json, difference
from prrfl.engine import Deployed, Engine
from prrfl.errors import ConfigError, DataError, PRRFLError, StateMismatchError
from prrfl.evaluation import predictions
from prrfl.reports.retrogress import draw_retrogress
from prrfl.reports.scores import to_csv
from prrfl.reports.summary import summarise
from prrfl.runs.deployed import Which, about, kept_path, predictions_path, write_kept
from prrfl.storage.atomic import sync, write_json, write_text
from prrfl.storage.reading import changed_file, checksum, parse_json, read_bytes, read_text
from prrfl.storage.records import parse_summary, predictions_to_csv, read_records
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
    with (folder / "config.toml").open("r+") as lock:
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

    Where it was trained is as it was written, whether or not there is such a device here: reading needs none.

    Raises:
        ConfigError: if the folder holds no run, or settings that are not whole.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run: it has no config.toml")
    config = load_config(path, {"device": "cpu", **changed})
    # It was written with every setting, so that one that is not there was cut off, and is no default.
    may_lack = {name for name, setting in TrainConfig.model_fields.items() if setting.default is None}
    there = parse_toml(read_text(path, LARGEST_FILE), str(path))
    lost = TrainConfig.model_fields.keys() - may_lack - there.keys()
    if lost:
        raise ConfigError(
            f"{path} is not whole: it lacks the key '{min(lost)}'; restore it from a copy, or add the key"
        )
    return config if "device" in changed else config.model_copy(update={"device": str(there["device"])})


def settings_here(folder: Path) -> TrainConfig:
    """Return the settings of a run that is to go on here, on another device where there is none of its own.

    Raises:
        ConfigError: as :func:`settings_of`.
    """
    config = settings_of(folder)
    try:
        return settings_of(folder, device=config.device)
    except ConfigError:
        here = settings_of(folder, device="auto")
        log.warning(
            "%s was begun on %s, which cannot be used here: it goes on on %s, where bits differ",
            folder,
            config.device,
            here.device,
        )
        return here


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that came to its end.

    A report on a run that is still going on writes a summary as well, of fewer rounds.
    """
    try:
        summary = read_summary(folder)
        return "seconds" in summary and bool(summary["rounds"] == settings_of(folder).rounds)
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
    return max((int(path.name.removeprefix("round-")) + 1 for path in round_folders(folder)), default=0)


def round_folders(folder: Path) -> list[Path]:
    """Return the folders of the complete rounds whose states a run's folder holds, the last one last."""
    # A copy of one, say, or what else people and systems put there, is none.
    return sorted(path for path in (folder / "state").glob("round-" + 4 * "[0-9]") if path.is_dir())


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of a finished run.

    Raises:
        DataError: if it is absent or damaged.
    """
    try:
        return parse_summary(read_bytes(folder / "summary.json"))
    except (OSError, ValueError) as cause:
        raise DataError(f"{folder / 'summary.json'} cannot be read: {cause}; run `prrfl resume`") from None


KEPT = 2
"""Rounds whose states are kept: should the last one be damaged, the one before it is gone on from."""

FREE = {"data", "allow_missing", "device", "workers", "threads", "tensorboard"}
"""Settings that may change between two parts of a run: where it runs, not what is computed."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        round: the last complete round; -1 before the first.
        seconds: wall time until then.
        settings: what was computed, by key.
        records_bytes: size of ``metrics.jsonl`` then.
        records: SHA-256 of that much of it.
        states: SHA-256 of each site's state, by file name.
        digest: SHA-256 of all the rest.
    """

    round: int = -1
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    records_bytes: Annotated[int, Field(ge=0)] = 0
    records: str = ""
    states: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""


def commit(engine: Engine, config: TrainConfig, folder: Path, index: int, seconds: float) -> None:
    """Write every site's state and the progress as ``state/round-<n>``, whole or not at all.

    Args:
        engine: holds the states.
        config: the run's settings.
        folder: the run's folder, whose records reach the round's end.
        index: of the round.
        seconds: wall time of the run until now.
    """
    states = folder / "state"
    final = states / f"round-{index:04d}"
    temporary = states / f".{final.name}"
    _remove(temporary)
    engine.save(temporary)
    records = folder / "metrics.jsonl"
    progress = Progress(
        index,
        seconds,
        settings=_computed(config),
        records_bytes=records.stat().st_size,
        records=checksum(records),
        states={path.name: checksum(path) for path in temporary.iterdir()},
    )
    write_json(temporary / "progress.json", asdict(replace(progress, digest=_digest(progress))))
    _remove(final)
    temporary.replace(final)
    sync(states)
    there = round_folders(folder)
    at = there.index(final)
    # Not what else somebody put there, a copy say.
    for path in {*there, *states.glob(".round-*")} - set(there[max(0, at + 1 - KEPT) : at + 1]):
        _remove(path)


def _computed(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=FREE)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def last_complete_round(folder: Path, engine: Engine, config: TrainConfig) -> Progress:
    """Give the engine the states of the last complete round of a run's folder, and return how far it came.

    Damaged states and records are named in a warning, and the round before is used, if it is whole.

    Raises:
        ConfigError: if the run was begun with other settings.
        StateMismatchError: if no round is whole; or one is, but of other sites, another method or network.
    """
    first: PRRFLError | None = None
    for path in reversed(round_folders(folder)):
        try:
            progress = read_progress(path)
            check_records(folder, progress)
        except (StateMismatchError, DataError) as cause:
            log.warning("%s cannot be used: %s", path, cause)
            first = first or cause
            continue
        _check_settings(folder, progress, config)
        engine.load(path)
        return progress
    if first:
        raise StateMismatchError(
            f"{first}, nor is there another round to go on from; restore it from a copy, or begin another "
            f"run by `prrfl train --config {folder / 'config.toml'}`"
        )
    return Progress()


def _check_settings(folder: Path, progress: Progress, config: TrainConfig) -> None:
    now = _computed(config)
    # The server over real sites trains nothing: what its machine multiplies best is not the run's.
    free = {"precision"} if is_federation(folder) else set()
    for key in sorted((now.keys() & progress.settings.keys()) - free):
        if now[key] != progress.settings[key]:
            raise ConfigError(
                f"{folder / 'config.toml'}: key '{key}' is {now[key]!r}, the run was begun with "
                f"{progress.settings[key]!r}; put that back, or begin another run"
            )


def write_data(folder: Path, data: Fingerprints) -> None:
    """Write the fingerprints of what a run is trained on as ``data.json``."""
    write_json(folder / "data.json", as_json(data))


def read_data(folder: Path) -> Fingerprints | None:
    """Return the fingerprints of what a run was begun with; ``None`` where an older version noted none.

    Raises:
        DataError: if they are damaged.
    """
    path = folder / "data.json"
    try:
        return TypeAdapter(dict[ClientId, dict[Split, Fingerprint]]).validate_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as cause:
        reason = cause.errors()[0]["msg"] if isinstance(cause, ValidationError) else cause
        raise DataError(
            f"{path} is not as it was written: {reason}; restore it from a copy, or remove it to go on "
            "without knowing whether the data is the same"
        ) from None


def check_data(folder: Path, data: Fingerprints) -> None:
    """Raise unless the data is what a run was begun with; where that was not noted, a warning says so.

    Raises:
        DataError: naming the site and split that changed, or if the note is damaged.
    """
    before = read_data(folder)
    if before is None:
        log.warning(
            "%s holds no data.json, which older versions did not write: nobody can tell whether the data is "
            "what the run was begun with",
            folder,
        )
    elif changed := difference(before, data):
        raise DataError(
            f"the data is not what {folder} was begun with: {changed}; put it back, or begin another run"
        )


def note_environment(folder: Path, environment: Mapping[str, Any], rounds: int) -> None:
    """Write into ``environment.json`` where a run was begun and, under ``resumed``, each time it went on.

    Args:
        folder: the run's folder.
        environment: what there is to say of machine and versions.
        rounds: how many were complete before.
    """
    path = folder / "environment.json"
    if not rounds:
        write_json(path, environment)
        return
    try:
        first = dict(parse_json(read_bytes(path)))
        resumed = list(first.pop("resumed", []))
    except (OSError, TypeError, ValueError) as cause:
        log.warning("%s cannot be read and is begun anew: %s", path, cause)
        first, resumed = {}, []
    write_json(path, {**first, "resumed": [*resumed, {"after_round": rounds, **environment}]})


def read_progress(path: Path) -> Progress:
    """Return how far a run had come when a round's folder was written, with every state in it as it was.

    Raises:
        StateMismatchError: if a file of it is absent or damaged.
    """
    try:
        progress = TypeAdapter(Progress).validate_json(read_bytes(path / "progress.json"))
        if path.name != f"round-{progress.round:04d}" or progress.digest != _digest(progress):
            raise ValueError("its numbers were changed")
    except (OSError, ValueError) as cause:
        reason = " ".join(str(cause).split())
        raise StateMismatchError(f"{path / 'progress.json'} is not as it was written: {reason}") from None
    states = {file.name for file in path.glob("*.safetensors")}
    if odd := states ^ progress.states.keys():
        raise StateMismatchError(f"{path / min(odd)} is absent, or was not written by the run")
    if torn := changed_file(path, progress.states):
        raise StateMismatchError(f"{torn} is not as it was written")
    return progress


def _digest(progress: Progress) -> str:
    rest = {key: value for key, value in asdict(progress).items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_records(folder: Path, progress: Progress) -> None:
    """Raise unless the records until a round's end are as they were written.

    Raises:
        StateMismatchError: if the file cannot be read.
        DataError: if they are not.
    """
    path = folder / "metrics.jsonl"
    if checksum(path, progress.records_bytes) != progress.records:
        raise DataError(f"{path} is not as it was written until the end of round {progress.round + 1}")


def records_until(folder: Path, progress: Progress) -> list[RoundRecord]:
    """Cut the records of an unfinished round off, and return the others.

    Raises:
        StateMismatchError: if there are complete rounds but no state.
    """
    path = folder / "metrics.jsonl"
    if progress.round < 0:
        # A kill between a round's records and its state leaves one.
        if path.exists() and read_bytes(path).count(b'"kind": "exchange"') > 1:
            raise StateMismatchError(
                f"{path} holds complete rounds, {folder / 'state'} no state to go on from; restore it from a "
                f"copy, or begin another run by `prrfl train --config {folder / 'config.toml'}`"
            )
        path.unlink(missing_ok=True)
        return []
    os.truncate(path, progress.records_bytes)
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
    """Write the summary, the table of scores and the picture of a run from its records; return the summary.

    Without the wall time in seconds, the one that an earlier summary holds is kept.
    """
    if seconds is None and (folder / "summary.json").is_file():
        seconds = read_summary(folder).get("seconds")
    summary = summarise(records, first_candidate(config.rounds))
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    write_json(folder / "summary.json", summary)
    write_text(folder / "scores.csv", to_csv([(config.method, config.seed, records)], config.classes))
    draw_retrogress(records, folder / "retrogress.png", config.epochs)
    return summary


def first_candidate(rounds: int) -> int:
    """Return the first round that competes for the best model: of the last 20 %, at least of the last one."""
    return rounds - max(1, rounds // 5)
