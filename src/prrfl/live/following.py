"""What a folder shows of the work that goes on in it, gathered by reading only what is new.

Nothing is locked or written, so any number of watchers and the work itself do not notice each other.
"""

import json
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from prrfl.config import TrainConfig, checked
from prrfl.errors import ConfigError, PRRFLError, one_line
from prrfl.runs.afterwards import NextStep, after_comparison, after_run, command, with_networks
from prrfl.runs.folder import RunFolder
from prrfl.runs.position import Position, SitePosition, read_position
from prrfl.storage.reading import parse_json, read_bytes, read_text
from prrfl.storage.records import from_line
from prrfl.storage.tail import Tail
from prrfl.types import AbsenceRecord, ClientId, ExchangeRecord, RoundRecord, ScoreRecord

LOG_LINES, MOST_WARNINGS = 40, 30
"""Lines of the log, and warnings, that are shown: the last ones."""

LONGEST_SHOWN = 400
"""Characters of a line of the log that are shown."""

MEAN = "mean of sites"

CURVES = ("test", "validation")


@dataclass(frozen=True)
class Point:
    """One score of a deployed network, in percent.

    Attributes:
        site: where it was scored.
        split: ``test`` or ``validation``.
        at: the moment, in rounds from the start of the run.
        rank: 0 after a local epoch, 1 before and 2 after a communication, which share a moment.
    """

    site: ClientId
    split: str
    at: float
    rank: int
    value: float


class Records:
    """What is shown of a run's records, as far as they are written.

    Attributes:
        points: the scores, in order of time.
        newest: the last score of each site on each split.
        rounds: number of complete rounds.
    """

    def __init__(self, epochs: int) -> None:
        self.points: list[Point] = []
        self.newest: dict[ClientId, dict[str, float]] = {}
        self.warnings: list[str] = []
        self.rounds = 0
        self._epochs = epochs

    def add(self, line: bytes) -> None:
        """Add a line of a file of records; count one that cannot be read as a warning."""
        try:
            record = from_line(line)
        except ValueError as cause:
            self.warnings.append(one_line(f"a line of the records cannot be read: {cause}"))
            return
        self._add(record)

    def _add(self, record: RoundRecord) -> None:
        if isinstance(record, ExchangeRecord):
            self.rounds = record.round + 1
        elif isinstance(record, AbsenceRecord):
            line = f"round {record.round + 1} continued without {record.client}: {record.reason}"
            self.warnings.append(one_line(line))
        elif isinstance(record, ScoreRecord) and record.deployed and record.split != "train":
            split = "test" if record.split == "test" else "validation"
            at = record.round + (record.epoch + 1) / self._epochs
            rank = {"epoch": 0, "before": 1, "after": 2}[record.moment]
            value = 100 * record.scores.macro_f1
            self.points.append(Point(record.client, split, at, rank, value))
            self.newest.setdefault(record.client, {})[split] = value


class Log:
    """The end of a log, and the warnings and errors in it."""

    def __init__(self, path: Path) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.warnings: deque[str] = deque(maxlen=MOST_WARNINGS)
        self._tail = Tail(path, most=2**18)

    def update(self) -> None:
        """Read what is new."""
        if self._tail.restarted():
            self.lines.clear()
            self.warnings.clear()
        for raw in self._tail.lines():
            line = one_line(raw.decode("utf-8", "replace"))[:LONGEST_SHOWN]
            self.lines.append(line)
            if " WARNING " in line or " ERROR " in line:
                self.warnings.append(line)


class Followed(Protocol):
    """A folder that is watched."""

    def state(self) -> dict[str, Any]:
        """Read what is new, and return all that the page shows but the curves."""

    @property
    def drawn(self) -> int:
        """Number of scores in the curves. They have changed if and only if this has."""

    def curves(self) -> dict[str, Any]:
        """Return the curves, which are large, of the scores that were read."""


class _Scored:
    """A folder with the records of one run.

    Attributes:
        settings: of the run.
        records: what is shown of them.
    """

    settings: TrainConfig
    records: Records

    @property
    def drawn(self) -> int:
        """Number of scores in the curves."""
        return len(self.records.points)

    def curves(self) -> dict[str, Any]:
        """Return the curves of each site and of their mean."""
        return curves_of_run(self.records.points)


class FollowedRun(_Scored):
    """A run's folder, or the folder of a federation at its server."""

    def __init__(self, folder: Path) -> None:
        """Begin with a run's folder.

        Raises:
            ConfigError: if it holds no run, or its settings cannot be read.
        """
        self.folder = folder
        self.settings = RunFolder(folder).settings()
        self.records = Records(self.settings.epochs)
        self.log = Log(folder / "log.txt")
        self.position: Position | None = None
        self.is_finished = False
        self._tail = Tail(folder / "metrics.jsonl")

    def update(self) -> None:
        """Read what is new."""
        self.position = read_position(self.folder)
        if self._tail.restarted():  # the unfinished part of a stopped run was removed
            self.records = Records(self.settings.epochs)
        for line in self._tail.lines():
            self.records.add(line)
        self.log.update()
        complete = self.records.rounds == self.settings.rounds
        self.is_finished = complete and (self.is_finished or RunFolder(self.folder).is_finished)

    @property
    def status(self) -> str:
        """``finished``, ``running``, or ``stopped`` if no process works on the run."""
        if self.is_finished:
            return "finished"
        return "running" if self.position and self.position.is_current else "stopped"

    @property
    def part(self) -> float:
        """The part of the run that is done, 0 to 1."""
        complete = self.records.rounds / self.settings.rounds
        return max(complete, self.position.done) if self.status == "running" and self.position else complete

    def says(self) -> str:
        """Return the run's status in words."""
        rounds, done = self.settings.rounds, self.records.rounds
        if self.status == "finished":
            return f"finished: {rounds} rounds"
        if self.status == "running":
            return f"round {min(done + 1, rounds)} of {rounds}"
        return f"no process works on it; {done} of {rounds} rounds are complete"

    def state(self) -> dict[str, Any]:
        """Read what is new, and return all that the page shows but the curves."""
        self.update()
        position = self.position if self.status == "running" else None
        federation = RunFolder(self.folder).is_federation
        again = "repeat its `prrfl server` command" if federation else f"`{command('resume', self.folder)}`"
        says = f"{self.says()}; to continue: {again}" if self.status == "stopped" else self.says()
        if position and position.step:
            says += f", {_step(position)}"
        sites = _names(self.records, position)
        return {
            "title": f"{self.settings.method} on {', '.join(sites[:6])}" if sites else self.settings.method,
            "kind": "federation" if federation else "run",
            "status": self.status,
            "says": says,
            "part": self.part,
            "seconds_left": position.seconds_left if position else None,
            "rows": [_site_row(name, self, position) for name in sites],
            "warnings": [*self.records.warnings, *self.log.warnings][-MOST_WARNINGS:],
            "log": list(self.log.lines),
            "next": _as_json(after_run(self.folder)) if self.is_finished else [],
        }


class FollowedSite(_Scored):
    """A site's own folder of a federation."""

    def __init__(self, folder: Path) -> None:
        """Begin with a site's folder of an experiment.

        Raises:
            ConfigError: if its settings cannot be read.
        """
        self.folder = folder
        self.settings = _site_settings(folder / "settings.json")
        self.records = Records(self.settings.epochs)
        # Flower's output, to which the site's processes write.
        self.log = Log(folder.parent / "flower" / "supernode.log")
        self._seen: set[str] = set()
        self._round = 0

    def state(self) -> dict[str, Any]:
        """Read what is new, and return all that the page shows but the curves."""
        for step in sorted((self.folder / "state").glob("[0-9]*-[12]-*ed")):
            if step.name in self._seen:
                continue
            with suppress(FileNotFoundError):  # the site has removed this old step meanwhile
                for line in read_bytes(step / "records.jsonl").splitlines():
                    self.records.add(line)
                self._round = int(step.name[:6]) + step.name.endswith("received")
            self._seen.add(step.name)
        self.log.update()
        position = read_position(self.folder)
        position = position if position and position.is_current else None
        rounds = self.settings.rounds
        finished = self._round == rounds
        status = "finished" if finished else "running" if position else "waiting"
        says = {
            "finished": f"finished: {rounds} rounds",
            "running": f"trains in round {self._round + 1} of {rounds}",
            "waiting": f"round {min(self._round + 1, rounds)} of {rounds}: waits for server and other sites",
        }[status]
        names = _names(self.records, position)
        return {
            "title": f"{', '.join(names) or 'a site'} in {self.folder.name}",
            "kind": "site",
            "status": status,
            "says": says,
            "part": position.done if position else self._round / rounds,
            "seconds_left": position.seconds_left if position else None,
            "rows": [_site_row(name, self, position) for name in names],
            "warnings": [*self.records.warnings, *self.log.warnings][-MOST_WARNINGS:],
            "log": list(self.log.lines),
            "next": _as_json(with_networks(self.folder)) if finished else [],
        }


class FollowedComparison:
    """The folder of a comparison."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, FollowedRun] = {}
        self._unread: dict[str, str] = {}

    def state(self) -> dict[str, Any]:
        """Read what is new, and return all that the page shows but the curves."""
        self._find_runs()
        for run in self._runs.values():
            run.update()
        position = read_position(self.folder)
        position = position if position and position.is_current else None
        names = list(dict.fromkeys([*(position.sites if position else ()), *sorted(self._runs)]))
        finished = [name for name in names if name in self._runs and self._runs[name].is_finished]
        going = position is not None or any(run.status == "running" for run in self._runs.values())
        status = "running" if going else "finished" if names and len(finished) == len(names) else "stopped"
        again = "" if status != "stopped" else "; no process works on it: repeat the `prrfl compare` command"
        parts = [self._runs[name].part if name in self._runs else 0.0 for name in names]
        return {
            "title": f"comparison {self.folder.name}",
            "kind": "comparison",
            "status": status,
            "says": f"{len(finished)} of {len(names)} runs finished{again}",
            "part": position.done if position else fmean(parts) if parts else 0.0,
            "seconds_left": position.seconds_left if position else None,
            "rows": [self._row(name, going) for name in names],
            "warnings": self._warnings(),
            **self._newest_log(),
            "next": _as_json(after_comparison(self.folder)) if status == "finished" else [],
        }

    @property
    def drawn(self) -> int:
        """Number of scores in the curves."""
        return sum(len(run.records.points) for run in self._runs.values())

    def curves(self) -> dict[str, Any]:
        """Return the curves of each method."""
        return curves_of_comparison(self._by_method())

    def _find_runs(self) -> None:
        for settings in sorted((self.folder / "runs").glob("*-seed*/config.toml")):
            name = settings.parent.name
            if name in self._runs:
                continue
            try:
                self._runs[name] = FollowedRun(settings.parent)
                self._unread.pop(name, None)
            except PRRFLError as cause:
                self._unread[name] = str(cause)

    def _by_method(self) -> dict[str, list[Point]]:
        """Return the points of each method, of all its seeds; methods in the order of their folders."""
        found: dict[str, list[Point]] = {}
        for name, run in self._runs.items():
            found.setdefault(name.rpartition("-seed")[0], []).extend(run.records.points)
        return found

    def _row(self, name: str, going: bool) -> dict[str, Any]:
        if (run := self._runs.get(name)) is None:
            return _row(name, "not started", 0.0, ())
        # Reading the data takes a while, in which a run has a folder, but no position yet.
        says = "starts" if going and run.status == "stopped" and not run.records.rounds else run.says()
        return _row(name, says, run.part, tuple(run.records.newest.values()))

    def _warnings(self) -> list[str]:
        of_runs = [
            f"{name}: {line}"
            for name, run in self._runs.items()
            for line in (*run.records.warnings, *run.log.warnings)
        ]
        return [*self._unread.values(), *of_runs][-MOST_WARNINGS:]

    def _newest_log(self) -> dict[str, Any]:
        """Return the log that was written last, with the name of its run."""
        written = {name: run.log.lines[-1] for name, run in self._runs.items() if run.log.lines}
        if not written:
            return {"log": []}
        name = max(written, key=written.__getitem__)  # lines begin with their time
        return {"log": list(self._runs[name].log.lines), "log_of": name}


def follow(folder: Path) -> Followed:
    """Return what follows a folder, by what it holds.

    Raises:
        ConfigError: if it is the folder of no run, comparison or federation.
    """
    there = RunFolder(folder)
    if there.is_site:
        return FollowedSite(folder)
    if (folder / "config.toml").is_file():
        return FollowedRun(folder)
    if (folder / "runs").is_dir() or read_position(folder) is not None:
        return FollowedComparison(folder)
    experiments = sorted(path.parent for path in folder.glob("*/settings.json"))
    hint = f"; give one of its experiments, such as {experiments[-1]}" if experiments else ""
    raise ConfigError(
        f"{folder} is not the folder of a run, a comparison or a federation: it has no config.toml, runs/ or "
        f"settings.json{hint}"
    )


class Watched:
    """What the page gets: the state as JSON. Threads may ask at the same time."""

    def __init__(self, followed: Followed, folder: Path) -> None:
        self._followed, self._folder = followed, folder
        self._lock = threading.Lock()

    def to_json(self, known: int | None) -> bytes:
        """Return the present state; if the folder cannot be read, what is wrong.

        Args:
            known: number of scores in the curves that the page has. It gets others only.
        """
        with self._lock:
            try:
                state = self._followed.state()
                state["drawn"] = self._followed.drawn
                if state["drawn"] != known:
                    state["curves"] = self._followed.curves()
            except (OSError, PRRFLError) as cause:
                state = {"status": "unreadable", "says": one_line(f"{self._folder} cannot be read: {cause}")}
        return json.dumps({"folder": str(self._folder), **state}).encode()


def curves_of_run(points: Sequence[Point]) -> dict[str, Any]:
    """Return the curves of a run: a panel for the mean of sites and for each site, test and validation."""
    sites = sorted({point.site for point in points})
    titles = [(MEAN, points)] if len(sites) > 1 else []
    titles += [(site, [point for point in points if point.site == site]) for site in sites]
    return _curves(
        CURVES,
        {title: {split: [p for p in some if p.split == split] for split in CURVES} for title, some in titles},
    )


def curves_of_comparison(methods: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Return the curves of a comparison: a line for each method, the mean of its seeds."""
    sites = sorted({point.site for points in methods.values() for point in points})

    def lines(split: str, site: str | None) -> dict[str, list[Point]]:
        return {
            method: [p for p in points if p.split == split and site in (None, p.site)]
            for method, points in methods.items()
        }

    means_of_sites = {f"{split}, {MEAN}": lines(split, None) for split in CURVES}
    return _curves(list(methods), means_of_sites | {f"test, {site}": lines("test", site) for site in sites})


def _curves(names: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> dict[str, Any]:
    """Return panels of lines as the page draws them."""
    return {
        "x": "communication round",
        "y": "macro-F1 (%)",
        "names": list(names),
        "panels": [
            {
                "title": title,
                "lines": [{"name": name, "points": means(some)} for name, some in lines.items() if some],
            }
            for title, lines in panels.items()
        ],
    }


def means(points: Iterable[Point]) -> list[list[float]]:
    """Return the mean of the points of each moment, in order of time."""
    at: dict[tuple[float, int], list[float]] = {}
    for point in points:
        at.setdefault((point.at, point.rank), []).append(point.value)
    return [[round(x, 4), round(fmean(values), 2)] for (x, _), values in sorted(at.items())]


def _names(records: Records, position: Position | None) -> list[ClientId]:
    """Return the sites in order; those whose images are pooled also as the one site that trains."""
    return sorted(records.newest.keys() | (position.sites.keys() if position else set()))


def _site_row(name: ClientId, followed: _Scored, position: Position | None) -> dict[str, Any]:
    site = position.sites.get(name) if position else None
    settings = followed.settings
    text, part = ("", None) if site is None else (_words(site, settings), _part_of_round(site, settings))
    newest = followed.records.newest.get(name)
    return _row(name, text, part, (newest,) if newest else ())


def _row(name: str, text: str, part: float | None, newest: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return a row of the page's table, with the mean of the newest scores of sites."""
    scores = {
        split: round(fmean(values), 2) if (values := [one[split] for one in newest if split in one]) else None
        for split in CURVES
    }
    return {"name": name, "state": text, "part": part, **scores}


def _words(site: SitePosition, settings: TrainConfig) -> str:
    """Return in words what a site does in the round in progress."""
    if site.state != "training":
        return {"asked": "has not answered yet", "trained": "has trained"}.get(site.state, site.state)
    batch, batches = site.batches(settings.batch)
    return f"epoch {site.epoch + 1} of {settings.epochs}, batch {batch} of {batches}"


def _part_of_round(site: SitePosition, settings: TrainConfig) -> float | None:
    if site.state in ("trained", "answered"):
        return 1.0
    return (site.epoch + site.images / site.size) / settings.epochs if site.size else None


def _step(position: Position) -> str:
    asked = [site.state for site in position.sites.values() if site.state != "absent"]
    return f"{position.step}: {asked.count('answered')} of {len(asked)} sites have answered"


def _site_settings(path: Path) -> TrainConfig:
    try:
        return checked(parse_json(read_text(path)), str(path))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{path} cannot be read: {one_line(str(cause))}") from None


def _as_json(steps: Sequence[NextStep]) -> list[dict[str, str]]:
    return [{"command": step.command, "purpose": step.purpose} for step in steps]
