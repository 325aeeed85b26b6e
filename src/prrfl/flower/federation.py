"""What a consortium agrees on before a run, kept in the run's folder at the server."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from prrfl.config import LARGEST_FILE, TrainConfig, checked, parse_toml
from prrfl.errors import ConfigError, ParticipationError
from prrfl.flower.certs import check_names
from prrfl.flower.secure_sum import FEWEST
from prrfl.runs.folder import RunFolder
from prrfl.storage.atomic import write_json
from prrfl.storage.reading import read_bytes, read_text
from prrfl.types import ClientId, RoundContext

OF_THE_SITE = ("data", "device", "threads", "workers", "allow_missing", "sites", "images")
"""Settings of training that are each site's own, or of the simulation alone."""


@dataclass(frozen=True)
class Federation:
    """A run over real sites.

    Attributes:
        experiment: names the run, once and for all: sites keep their states under it.
        settings: the training's settings, as far as any were given.
        sites: their names, sorted.
        quorum: how many sites a round needs.
        deadline: seconds that a step of a round waits for sites; 0 is for ever.
        secure: whether shares are summed under masks.
    """

    experiment: str
    settings: Mapping[str, Any]
    sites: tuple[ClientId, ...]
    quorum: int
    deadline: float
    secure: bool

    @property
    def config(self) -> TrainConfig:
        """The training's settings, defaults filled in as they hold at the server."""
        return checked(self.settings, "the settings")

    def settings_for_sites(self) -> str:
        """Return the settings that are sent to the sites, as JSON."""
        return as_json({key: value for key, value in self.settings.items() if key != "tensorboard"})


def federate(
    folder: Path,
    settings: Mapping[str, Any],
    sites: Sequence[ClientId],
    quorum: int = 0,
    deadline: float = 0.0,
    secure: bool = False,
) -> Federation:
    """Begin a run over real sites in a folder, or go on with the one that it holds.

    Args:
        folder: the run's folder.
        settings: as :func:`read_settings` and flags give them.
        sites: names of all sites.
        quorum: how many of them a round needs; 0 is all.
        deadline: seconds that a step waits for them; 0 is for ever.
        secure: whether to sum under masks.

    Raises:
        ConfigError: if anything does not hold, or the folder holds a run of other settings.
        ParticipationError: if there are too few sites.
    """
    names = tuple(sorted(sites))
    check_names(names)
    if len(set(names)) < len(names):
        raise ParticipationError(f"sites are {', '.join(names)}; each must be named once")
    fewest = FEWEST if secure else 2
    if len(names) < fewest:
        kind = "secure summation" if secure else "a federation"
        raise ParticipationError(f"{len(names)} site(s) named; {kind} needs at least {fewest} (--sites)")
    quorum = quorum or len(names)
    if not fewest <= quorum <= len(names):
        raise ConfigError(f"quorum is {quorum}; expected {fewest} to {len(names)}, the number of sites")
    if not 0 <= deadline < math.inf:
        raise ConfigError(f"deadline is {deadline:g}; expected seconds, or 0 for ever")
    for key in OF_THE_SITE:
        if key in settings:
            raise ConfigError(f"'{key}' is not for the server to set: each site has its own, by prrfl site")
    config = checked(settings, "the settings")
    check_method(config, secure)
    path = folder / "federation.json"
    if path.is_file():
        begun = read_federation(folder)
        given = Federation(begun.experiment, settings, names, quorum, deadline, secure)
        for key, value in asdict(given).items():
            if asdict(begun)[key] != value:
                raise ConfigError(
                    f"run folder {folder} was begun with {key} = {asdict(begun)[key]!r}, now it is "
                    f"{value!r}; give the same to go on with it, or choose another folder"
                )
        if not (folder / "config.toml").is_file():  # it was killed just then
            RunFolder(folder).begin(config)
        return begun
    RunFolder(folder).check_free()
    experiment = f"{_plain(folder.name)}-{uuid4().hex[:8]}"
    federation = Federation(experiment, dict(settings), names, quorum, deadline, secure)
    write_json(path, asdict(federation))
    RunFolder(folder).begin(config)
    return federation


def read_federation(folder: Path) -> Federation:
    """Read what a run's folder holds.

    Raises:
        ConfigError: if that is no federation.
    """
    path = folder / "federation.json"
    try:
        return TypeAdapter(Federation).validate_json(read_bytes(path))
    except (OSError, ValidationError) as cause:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(cause).split())}") from None


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file.

    Raises:
        ConfigError: if it is absent or no TOML.
    """
    try:
        text = read_text(path, LARGEST_FILE)
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"config file {path} cannot be read: {' '.join(str(cause).split())}") from None
    return parse_toml(text, str(path))


def check_method(config: TrainConfig, secure: bool) -> None:
    """Refuse methods that cannot run over real sites, or not under secure summation.

    Raises:
        ConfigError: saying why.
    """
    if config.method == "centralised":
        raise ConfigError("method centralised pools images, which never leave a real site; choose another")
    if config.method == "local":
        raise ConfigError("method local shares nothing; a site runs it alone, by prrfl train")
    if config.weights is not None:
        raise ConfigError("weights are a file of one machine, and real sites have others: leave them out")
    one_round = RoundContext(0, 1, 0, 1, 0)
    if secure and not config.algorithm().aggregator(one_round).only_adds:
        raise ConfigError(
            f"method {config.method} needs every single share, which secure summation hides from the server; "
            "choose another method, or go without --secure"
        )


def as_json(settings: Mapping[str, Any]) -> str:
    """Return settings as they travel."""
    return json.dumps(settings, sort_keys=True)


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-") or "run"
