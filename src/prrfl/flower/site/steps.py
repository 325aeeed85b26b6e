"""The step store: what a site has done in each round of an experiment, on its disk.

Each step is a folder ``<round>-<n>-<done>`` that holds the site's state after the step, its records, and
checksums of these files. It is committed by renaming it, so that it is whole or absent.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from prrfl.errors import ConfigError, StateMismatchError
from prrfl.flower.messages import OrderRefusedError
from prrfl.storage.atomic import commit_step, write_json, write_text
from prrfl.storage.reading import changed_file, checksum, parse_json, read_bytes, read_text
from prrfl.storage.tensor_files import write_state
from prrfl.types import ClientId

log = logging.getLogger("prrfl")

Done = Literal["trained", "received"]
"""A step that changes the site's state: local training, or taking the round's mean."""

PATTERN = 6 * "[0-9]" + "-[12]-*ed"
"""Glob pattern of the steps' folder names; a copy of a folder under another name does not match."""

CHECKSUMS = "checksums.json"
"""SHA-256 of each other file of a step's folder, by name."""

KEEP = 3
"""Number of steps that a site keeps: enough to return to the end of the server's last complete round."""


class StepStore:
    """The steps of one site in one experiment."""

    def __init__(self, folder: Path, site: ClientId, experiment: str) -> None:
        """Open the store in a folder, which need not exist; the names are for messages."""
        self._folder = folder
        self._site = site
        self._experiment = experiment

    def find(self, index: int, done: Done) -> Path | None:
        """Return the folder of a step of round ``index``; ``None`` if it is absent or damaged."""
        path = self._path(index, done)
        if not path.is_dir():
            return None
        if damaged := _damaged(path):
            log.warning("%s is damaged; the step is repeated", damaged)
            return None
        return path

    def trained(self, index: int) -> Path:
        """Return the folder of the training in round ``index``.

        Raises:
            OrderRefusedError: if the site has not trained in it.
        """
        path = self.find(index, "trained")
        if path is None:
            raise OrderRefusedError(f"site {self._site} has not trained in round {index + 1}")
        return path

    def last_before(self, index: int) -> Path | None:
        """Return the folder of the last step before round ``index``; ``None`` if the site is new to the run.

        Raises:
            StateMismatchError: if that step is damaged.
            OrderRefusedError: if the site has only later steps.
        """
        steps = sorted(path for path in self._folder.glob(PATTERN) if path.is_dir())
        earlier = [path for path in steps if path.name < self._path(index, "trained").name]
        if earlier:
            if damaged := _damaged(earlier[-1]):
                raise StateMismatchError(
                    f"site {self._site}: {damaged} is damaged; restore {earlier[-1]} from a copy, or remove "
                    "it to resume from the step before it"
                )
            return earlier[-1]
        if steps:
            raise OrderRefusedError(
                f"site {self._site} is in round {int(steps[-1].name[:6]) + 1} of experiment "
                f"{self._experiment}, but the server is in round {index + 1}, whose start the site no longer "
                "has; start a new run, or restore the server's run folder from a newer copy"
            )
        if index > 0:
            log.warning(
                "site %s has no state of experiment %s and starts from the initial weights in round %d",
                self._site,
                self._experiment,
                index + 1,
            )
        return None

    def commit(self, index: int, done: Done, states: Mapping[str, object], texts: Mapping[str, str]) -> Path:
        """Save a step whole or not at all, and remove steps that are no longer needed.

        Args:
            index: the round, from 0.
            done: the step.
            states: by name, what is saved as ``<name>.safetensors``.
            texts: by file name, what is saved as text.

        Returns:
            The step's folder.
        """
        path = self._path(index, done)
        with commit_step(path, PATTERN, KEEP) as folder:
            for name, state in states.items():
                write_state(folder / f"{name}.safetensors", state)
            for name, text in texts.items():
                write_text(folder / name, text)
            write_json(folder / CHECKSUMS, {file.name: checksum(file) for file in folder.iterdir()})
        return path

    def _path(self, index: int, done: Done) -> Path:
        number = {"trained": 1, "received": 2}[done]
        return self._folder / f"{index:06d}-{number}-{done}"


def _damaged(step: Path) -> Path | None:
    """Return a file of a step that is missing or changed, if there is one."""
    try:
        sums: dict[str, str] = TypeAdapter(dict[str, str]).validate_json(read_bytes(step / CHECKSUMS))
    except (OSError, ValueError):
        return step / CHECKSUMS
    return changed_file(step, sums)


def read_saved(path: Path) -> str:
    """Return the text of a file that the site saved.

    Raises:
        StateMismatchError: if it cannot be read.
    """
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as cause:
        raise StateMismatchError(f"{path} cannot be read: {cause}; start a new run") from None


def parse_object(text: str, source: str) -> dict[str, Any]:
    """Return an object of JSON.

    Args:
        text: the JSON.
        source: where it comes from, for messages.

    Raises:
        ConfigError: if it is not JSON, or not an object.
    """
    try:
        found = parse_json(text)
    except ValueError as cause:
        raise ConfigError(f"{source} cannot be read: {cause}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{source} cannot be read: expected a JSON object")
    return found
