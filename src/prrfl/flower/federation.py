"""What a consortium agrees on before a run, saved in the run's folder at the server."""

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from prrfl.algorithms import traits_of
from prrfl.config import TrainConfig, checked
from prrfl.errors import ConfigError, ParticipationError
from prrfl.flower.certs import check_names
from prrfl.flower.consent import SENT
from prrfl.flower.secure_sum import FEWEST
from prrfl.losses import CPA
from prrfl.parts import is_installed
from prrfl.runs.folder import RunFolder
from prrfl.storage.atomic import write_json
from prrfl.storage.reading import read_bytes
from prrfl.types import ClientId, RoundContext


@dataclass(frozen=True)
class Federation:
    """A run over real sites.

    Attributes:
        experiment: unique name of the run, under which the sites save their states.
        settings: the settings of the training that were given.
        sites: the sites' names, sorted.
        quorum: number of sites that a round needs.
        deadline: seconds that a step of a round waits for sites; 0 waits without end.
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
        """All settings of the training, with the defaults that apply at the server."""
        return checked(self.settings, "the settings")

    def settings_for_sites(self) -> str:
        """Return the settings that are sent to the sites, as JSON."""
        own = TrainConfig.where(of_server=True)
        return as_json({key: value for key, value in self.settings.items() if key not in own})


def federate(
    folder: Path,
    settings: Mapping[str, Any],
    sites: Sequence[ClientId],
    quorum: int = 0,
    deadline: float = 0.0,
    secure: bool = False,
) -> Federation:
    """Start a run over real sites in a folder, or resume the one that it holds.

    Under secure summation a new run draws a seed, unless the settings hold one: with the seed of another run,
    the shares could be the same, and a sum with a site less would show the share of that site.

    Args:
        folder: the run's folder.
        settings: settings of the training, from a file and flags.
        sites: names of all sites.
        quorum: number of sites that a round needs; 0 means all.
        deadline: seconds that a step waits for sites; 0 waits without end.
        secure: whether to sum shares under masks.

    Raises:
        ConfigError: if a value is invalid, or the folder holds a run with other values.
        ParticipationError: if there are too few sites, or a name is invalid or given twice.
    """
    names = tuple(sorted(sites))
    quorum = quorum or len(names)
    _check_sites(names, quorum, deadline, secure)
    if own := sorted(TrainConfig.where(of_site=True) & settings.keys()):
        raise ConfigError(
            f"the server cannot set '{own[0]}': each site chooses its data and machine with prrfl site; "
            "leave it out"
        )
    path = folder / "federation.json"
    started = read_federation(folder) if path.is_file() else None
    if secure and "seed" not in settings:
        drawn = {"seed": secrets.randbelow(2**32)}
        settings = {**settings, **(drawn if started is None else _seed_of(started))}
    config = checked(settings, "the settings")
    check_can_federate(config, secure)
    if started is not None:
        given = Federation(started.experiment, settings, names, quorum, deadline, secure)
        before = asdict(started)
        for key, value in asdict(given).items():
            if before[key] != value:
                raise ConfigError(
                    f"run folder {folder} was started with {key} = {before[key]!r}, not {value!r}; "
                    "use the same to resume it, or choose another folder"
                )
        if not (folder / "config.toml").is_file():  # the process was killed between the two files
            RunFolder(folder).begin(config)
        return started
    RunFolder(folder).check_free()
    experiment = f"{_plain(folder.name)[:100]}-{uuid4().hex[:8]}"
    federation = Federation(experiment, dict(settings), names, quorum, deadline, secure)
    write_json(path, asdict(federation))
    RunFolder(folder).begin(config)
    return federation


def _check_sites(names: Sequence[ClientId], quorum: int, deadline: float, secure: bool) -> None:
    check_names(names)
    if len(set(names)) < len(names):
        raise ParticipationError(f"sites are {', '.join(names)}; name each site only once")
    fewest = FEWEST if secure else 2
    if len(names) < fewest:
        kind = "secure summation" if secure else "a federation"
        raise ParticipationError(f"{kind} needs at least {fewest} sites; got {len(names)} (--sites)")
    if not fewest <= quorum <= len(names):
        raise ConfigError(f"quorum is {quorum}; expected {fewest} to {len(names)}, the number of sites")
    if not 0 <= deadline < math.inf:
        raise ConfigError(f"deadline is {deadline:g}; expected seconds, or 0 to wait without end")


def read_federation(folder: Path) -> Federation:
    """Read the federation of a run's folder.

    Raises:
        ConfigError: if ``federation.json`` is missing or invalid.
    """
    path = folder / "federation.json"
    try:
        return TypeAdapter(Federation).validate_json(read_bytes(path))
    except (OSError, ValidationError) as cause:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(cause).split())}") from None


def check_can_federate(config: TrainConfig, secure: bool) -> None:
    """Check that the method can run over real sites, and under secure summation if it is asked for.

    Raises:
        ConfigError: if it cannot.
    """
    for key, parts in SENT.items():
        if not is_installed(name := str(getattr(config, key))):
            raise ConfigError(
                f"{parts.kind} {name} is a file of this machine; over real sites a part must be in a package "
                "that is installed at the server and at every site: name it package.module:Class"
            )
    algorithm = config.algorithm()
    match traits_of(algorithm).scope:
        case "pooled":
            raise ConfigError(
                f"method {config.method} pools the images of all sites, which never leave a real site; "
                "choose another method"
            )
        case "alone":
            raise ConfigError(f"method {config.method} shares nothing; run it at each site with prrfl train")
    if config.weights is not None:
        raise ConfigError("weights is a file of one machine, which the sites do not have; leave it out")
    loss = config.loss_function()
    if isinstance(loss, CPA) and loss.prototypes == "per-epoch":
        raise ConfigError(
            "prototypes are exchanged after every local epoch, which real sites cannot do; exchange them "
            "once a round with --prototypes per-round"
        )
    one_round = RoundContext(0, 1, 0, 1, 0)
    if secure and not algorithm.aggregator(one_round).only_adds:
        raise ConfigError(
            f"method {config.method} needs every single share, which secure summation hides from the server; "
            "choose another method, or leave out --secure"
        )


def as_json(settings: Mapping[str, Any]) -> str:
    """Return settings as they are sent to the sites."""
    return json.dumps(settings, sort_keys=True)


def _seed_of(started: Federation) -> dict[str, Any]:
    return {key: value for key, value in started.settings.items() if key == "seed"}


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-") or "run"
