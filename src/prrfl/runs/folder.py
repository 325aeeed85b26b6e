"""The folder of a run: what it holds, and how it is read.

config.toml         all settings
data.json           fingerprints of the data, see prrfl.data.fingerprint
frozen.safetensors  the tensors that do not train, if there are any
class_counts.json   training images of each class at all sites, if the loss needs them
environment.json    time, machine, versions and command, of the start and of each resumption
metrics.jsonl       the records, one per line
models/<site>/{best,last}.safetensors
predictions/<site>/{best,last}{,-valid}.csv
state/round-<n>/    checkpoints, from which the run can be resumed, see prrfl.runs.checkpoint
summary.json, scores.csv, subgroups.csv, retrogress.png, report.html
results, see prrfl.runs.report
mlflow/, tensorboard/, wandb/
what trackers keep, see prrfl.reports.tracking
log.txt
position.json       only while a process works on the run: where it is, see prrfl.runs.position
"""

import fcntl
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from prrfl.config import READING, TrainConfig, checked, given_settings, renamed
from prrfl.data.fingerprint import Fingerprint, Fingerprints, difference, to_json
from prrfl.data.own import absolute, is_own_data
from prrfl.errors import ConfigError, DataError
from prrfl.storage.atomic import is_free, write_json, write_text
from prrfl.storage.reading import parse_json, read_bytes
from prrfl.storage.records import parse_summary
from prrfl.types import ClientId, Split

log = logging.getLogger("prrfl")

FIRST = frozenset(
    [
        "data",
        "classes",
        "image_size",
        "allow_missing",
        "sites",
        "images",
        "method",
        "r0",
        "r1",
        "alpha1",
        "alpha2",
        "aggregation",
        "transfer",
        "mu",
        "private_weight",
        "meme_weight",
        "network",
        "weights",
        "rounds",
        "epochs",
        "batch",
        "optimizer",
        "lr",
        "lr_step",
        "lr_gamma",
        "weight_decay",
        "augment",
        "tensorboard",
        "seed",
        "device",
        "precision",
        "workers",
        "threads",
        "share_bits",
    ]
)
"""The settings of version 0.1.0."""

NEWER = TrainConfig.model_fields.keys() - FIRST
"""Settings that runs of version 0.1.0 lack."""

RETRY_SECONDS = 0.5
"""Time between two attempts to lock a run's folder."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

    path: Path

    def begin(self, settings: TrainConfig) -> None:
        """Make the folder. From now on the run can be resumed, even before its first round is complete."""
        write_text(self.path / "config.toml", settings.to_toml())

    def check_free(self) -> None:
        """Raise unless the folder is absent or empty.

        Raises:
            ConfigError: if it holds anything.
        """
        if not is_free(self.path):
            raise ConfigError(f"run folder {self.path} exists already; choose another folder, or remove it")

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Let no other process work in the folder during the block.

        The operating system releases the lock when the process ends, however it ends.

        Args:
            patience: seconds to wait for another process to finish.

        Raises:
            ConfigError: if another process still works in the folder after that time.
        """
        deadline = time.monotonic() + patience
        with (self.path / "config.toml").open("r+") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise ConfigError(
                            f"another process is using run folder {self.path}; wait until it ends, or stop it"
                        ) from None
                    time.sleep(RETRY_SECONDS)
            yield

    def settings(self, **changed: object) -> TrainConfig:
        """Return the settings of the run, some of them changed.

        The device is returned as the run used it, even if this machine has no such device: reading a run
        needs none. It needs no tracker's package, either.

        Raises:
            ConfigError: if the folder holds no run, or its settings are incomplete or invalid.
        """
        path = self.path / "config.toml"
        if not path.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.toml")
        _, given = given_settings(path, {})
        written = renamed(given)
        implied = {} if NEWER & given.keys() else _implied(written)
        changed_too = {"device": "cpu", **changed}
        config = checked({**implied, **written, **changed_too}, str(path), changed_too, READING)
        # A run writes every setting. A missing one was lost, and its default might be another value.
        optional = {name for name, one in TrainConfig.model_fields.items() if one.default in (None, {})}
        if lost := TrainConfig.model_fields.keys() - optional - written.keys() - implied.keys():
            raise ConfigError(
                f"{path} is incomplete: key '{min(lost)}' is missing; restore the file from a copy, or add "
                "the key"
            )
        return config if "device" in changed else config.model_copy(update={"device": str(written["device"])})

    def settings_here(self) -> TrainConfig:
        """Return the settings to resume the run on this machine: on another device if it lacks the run's.

        Raises:
            ConfigError: as :meth:`settings`.
        """
        config = self.settings()
        try:
            return self.settings(device=config.device)
        except ConfigError:
            here = self.settings(device="auto")
            log.warning(
                "%s was started on %s, which this machine does not have. It resumes on %s, where results "
                "differ slightly",
                self.path,
                config.device,
                here.device,
            )
            return here

    def at(self, config: TrainConfig, data: Path | None, option: str) -> TrainConfig:
        """Return the run's settings with the place where its data is now.

        Args:
            config: the run's settings.
            data: the new place, if the data was moved.
            option: the command's option for it, for messages.

        Raises:
            DataError: if there is no data at that place.
        """
        if data is not None:
            if not data.exists() and not is_own_data(data):
                raise DataError(f"{option} {data} does not exist; expected the data of {self.path}")
            return config.model_copy(update={"data": absolute(data)})
        if config.data is not None and not config.data.exists() and not is_own_data(config.data):
            raise DataError(
                f"{config.data}, the data of {self.path}, does not exist; if it was moved, give its new "
                f"place with {option}, or as data in {self.path / 'config.toml'}"
            )
        return config

    @property
    def is_finished(self) -> bool:
        """Whether the run has done all its rounds. A report on an unfinished run writes a summary, too."""
        try:
            summary = self.summary()
            return "seconds" in summary and bool(summary["rounds"] == self.settings().rounds)
        except DataError:
            return False

    @property
    def is_federation(self) -> bool:
        """Whether this is the server's folder of a federation; networks and predictions stay at its sites."""
        return (self.path / "federation.json").is_file()

    @property
    def is_site(self) -> bool:
        """Whether this is a site's own folder of a federation."""
        return (self.path / "settings.json").is_file()

    @property
    def rounds_done(self) -> int:
        """Number of complete rounds."""
        return max((int(path.name.removeprefix("round-")) + 1 for path in self.checkpoints()), default=0)

    def checkpoints(self) -> list[Path]:
        """Return the folders of the checkpoints, the newest last."""
        return sorted(path for path in (self.path / "state").glob(CHECKPOINTS) if path.is_dir())

    def summary(self) -> dict[str, Any]:
        """Return the summary of the run.

        Raises:
            DataError: if it is missing or damaged.
        """
        path = self.path / "summary.json"
        try:
            return parse_summary(read_bytes(path))
        except (OSError, ValueError) as cause:
            raise DataError(f"{path} cannot be read: {cause}; run `prrfl resume`") from None

    def write_class_counts(self, counts: Sequence[int]) -> None:
        """Write the number of training images of each class at all sites as ``class_counts.json``."""
        write_json(self.path / "class_counts.json", list(counts))

    def class_counts(self) -> tuple[int, ...]:
        """Return the class counts that the run was started with; empty if its loss needs none.

        Raises:
            ConfigError: if ``class_counts.json`` is damaged.
        """
        path = self.path / "class_counts.json"
        if not path.exists():
            return ()
        try:
            return TypeAdapter(tuple[NonNegativeInt, ...]).validate_json(read_bytes(path))
        except (OSError, ValidationError) as cause:
            raise ConfigError(
                f"{path} cannot be read: {' '.join(str(cause).split())}; restore it from a copy, or start a "
                "new run"
            ) from None

    @property
    def frozen_path(self) -> Path:
        """The file of the tensors that do not train."""
        return self.path / "frozen.safetensors"

    def write_data(self, data: Fingerprints) -> None:
        """Write the fingerprints of the run's data as ``data.json``."""
        write_json(self.path / "data.json", to_json(data))

    def data(self) -> Fingerprints | None:
        """Return the fingerprints of the data that the run was started with; ``None`` if none are written.

        Older versions did not write them.

        Raises:
            DataError: if they are damaged.
        """
        path = self.path / "data.json"
        try:
            return TypeAdapter(dict[ClientId, dict[Split, Fingerprint]]).validate_json(read_bytes(path))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as cause:
            reason = cause.errors()[0]["msg"] if isinstance(cause, ValidationError) else cause
            raise DataError(
                f"{path} is damaged: {reason}; restore it from a copy, or remove it to continue without "
                "checking that the data is the same"
            ) from None

    def check_data(self, data: Fingerprints) -> None:
        """Raise unless the run was started with this data; warn if that is unknown.

        Raises:
            DataError: with the site and split that changed, or if ``data.json`` is damaged.
        """
        before = self.data()
        if before is None:
            log.warning(
                "%s has no data.json, which older versions did not write. It cannot be checked whether the "
                "data is the same as at the start of the run",
                self.path,
            )
        elif changed := difference(before, data):
            raise DataError(
                f"the data has changed since {self.path} was started: {changed}; restore the data, or start "
                "another run"
            )

    def write_environment(self, environment: Mapping[str, Any], rounds: int) -> None:
        """Write ``environment.json``; list each environment in which the run is resumed under ``resumed``.

        Args:
            environment: time, machine and versions.
            rounds: number of complete rounds.
        """
        path = self.path / "environment.json"
        if not rounds:
            write_json(path, environment)
            return
        try:
            first = dict(parse_json(read_bytes(path)))
            resumed = list(first.pop("resumed", []))
        except (OSError, TypeError, ValueError) as cause:
            log.warning("%s cannot be read and is replaced: %s", path, cause)
            first, resumed = {}, []
        last = (resumed or [first])[-1].get("parts", {})
        changed = {kind for kind, origin in environment["parts"].items() if origin != last.get(kind, origin)}
        for kind in sorted(changed):
            log.warning(
                "%s: the code of its %s has changed since round %d; the results mix both versions",
                self.path,
                kind,
                rounds,
            )
        write_json(path, {**first, "resumed": [*resumed, {"after_round": rounds, **environment}]})

    def environment(self) -> dict[str, Any]:
        """Return time, machine and versions of the run's start; empty if they are lost."""
        try:
            return dict(parse_json(read_bytes(self.path / "environment.json")))
        except (OSError, TypeError, ValueError):
            return {}


CHECKPOINTS = "round-" + 4 * "[0-9]"
"""Pattern of the names of checkpoints. It does not match copies of them, such as ``round-0003 (copy)``."""


def _implied(written: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that a run of version 0.1.0 lacks, with the values that they had then."""
    defaults = {name: TrainConfig.model_fields[name].default for name in NEWER}
    he = str(written.get("network", "")).startswith("vgg")
    return {**defaults, "loss": "cross-entropy", "init": "he" if he else "pytorch"}


def first_candidate(rounds: int) -> int:
    """Return the first round that can be the best one: the best is among the last 20 %, at least one."""
    return rounds - max(1, rounds // 5)
