"""What a tracker is, and what it is given of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from prrfl.reports.meter import measure
from prrfl.types import ExchangeRecord, RoundRecord, ScoreRecord, TrainRecord

MEAN_OF_SITES = "mean of sites"
"""First part of the names of values that are unweighted means of all sites."""


@dataclass(frozen=True)
class Tracked:
    """A run, as trackers show it.

    Attributes:
        folder: its folder, in which a tracker keeps what it writes itself.
        settings: its settings, by name; values as in JSON.
        tags: what it is found by: method, seed, data and version.
    """

    folder: Path
    settings: Mapping[str, object]
    tags: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the run, which is that of its folder."""
        return self.folder.absolute().name


@dataclass(frozen=True)
class Results:
    """The files of a finished run that trackers keep.

    Attributes:
        figures: pictures, as PNG.
        networks: saved networks, by a name such as ``clientA/best.safetensors``.
    """

    figures: Sequence[Path]
    networks: Mapping[str, Path]


class Tracker(Protocol):
    """Logs one run. Any method may raise anything; :class:`prrfl.reports.tracking.Trackers` deals with it.

    A tracker is opened with a :class:`Tracked`. If it was opened for the run before, it continues what it
    logged then.
    """

    @property
    def rounds(self) -> int:
        """Number of rounds that are logged already, and are not given again."""
        ...

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one round; ``step`` is its number, counted from 1."""
        ...

    def close(self, results: Results | None) -> None:
        """Log the results and end, or end without results because the run was stopped."""
        ...


def values_of_round(records: Iterable[RoundRecord]) -> dict[str, float]:
    """Return what trackers log of a round, by name.

    Args:
        records: all records of the round.

    Returns:
        Scores of each network at each site before and after the communication, their differences (``drop``,
        the retrogress), the same as means of sites, the measurements of each site's last local epoch, and
        bytes sent. Scores are fractions.
    """
    records = list(records)
    values: dict[str, float] = {}
    of_sites: dict[str, list[float]] = {}

    def add(site: str, name: str, value: float | None) -> None:
        if value is not None:
            values[f"{site}/{name}"] = value
            of_sites.setdefault(name, []).append(value)

    for r in records:
        if isinstance(r, ScoreRecord) and r.moment != "epoch":
            for measured in ("macro_f1", "auc", "loss"):
                name = f"{r.split}/{r.model}/{r.moment}/{measured}"
                add(r.client, name, getattr(r.scores, measured))
        elif isinstance(r, TrainRecord):
            values |= {f"{r.client}/train/{name}": value for name, value in r.metrics.items()}
        elif isinstance(r, ExchangeRecord):
            values |= {"bytes/up": sum(r.bytes_up.values()), "bytes/down": r.bytes_down}
    for d in measure(records):
        add(d.client, f"test/{d.model}/drop/macro_f1", d.f1)
        add(d.client, f"test/{d.model}/drop/auc", d.auc)
    return values | {f"{MEAN_OF_SITES}/{name}": fmean(found) for name, found in of_sites.items()}
