"""Where a run is at present: ``position.json``, written about once a second while a process works on the run.

It is for people who watch. A run never reads it, and resuming does not depend on it. It is removed when the
process ends; one that a killed process left is recognised by its time.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from prrfl.config import TrainConfig
from prrfl.runs.folder import RunFolder
from prrfl.storage.atomic import write_passing_json
from prrfl.storage.reading import read_bytes
from prrfl.training import ImageCounter
from prrfl.types import ClientId

log = logging.getLogger("prrfl")

POSITION = "position.json"
"""The file's name."""

WRITE_SECONDS = 1.0
"""Time between two writes."""

STALE_SECONDS = 15.0
"""Age at which a position no longer holds: the process that wrote it was killed, or its disk is very slow."""

LARGEST_POSITION = 2**20
"""Bytes that are read at most."""

SiteState = Literal["waiting", "training", "trained", "not connected", "asked", "answered", "absent"]
"""What a site does in the round in progress. The last four are what the server of a federation knows."""

_Count = Annotated[int, Field(ge=0)]
_Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class SitePosition:
    """One site in the round in progress.

    Attributes:
        epoch: local epochs that it has completed in this round.
        images: training images of the next epoch that it has seen.
        size: its training images; 0 if the writer does not know them.
    """

    state: SiteState
    epoch: _Count = 0
    images: _Count = 0
    size: _Count = 0

    def batches(self, of: int) -> tuple[int, int]:
        """Return how many batches of the epoch are done, and how many it has.

        Args:
            of: images per batch. A last batch of one image joins the batch before it.
        """
        return self.images // of, max(1, self.size // of + (self.size % of > 1))


@dataclass(frozen=True)
class Position:
    """Where a run is at present.

    Attributes:
        round: the round in progress, from 0; the number of rounds once all are complete. Of a comparison, the
            number of complete runs.
        done: the part of the training that is complete, 0 to 1.
        sites: per site; of methods that pool images, one for all sites. Of a comparison, its runs.
        step: in a federation, what the server asks the sites for; empty in a simulation.
        seconds_left: estimated time to the end; ``None`` if unknown.
        written: time of writing, in seconds since 1970.
    """

    round: _Count
    done: Annotated[float, Field(ge=0, le=1)]
    sites: Mapping[ClientId, SitePosition] = field(default_factory=dict)
    step: str = ""
    seconds_left: _Time | None = None
    written: _Time = 0.0

    @property
    def is_current(self) -> bool:
        """Whether the process that wrote this seems to be alive."""
        return abs(time.time() - self.written) < STALE_SECONDS


_POSITION = TypeAdapter(Position)


def read_position(folder: Path) -> Position | None:
    """Return the position in a run's folder; ``None`` if the file is missing or cannot be read."""
    try:
        return _POSITION.validate_json(read_bytes(folder / POSITION, LARGEST_POSITION))
    except (OSError, ValueError):
        return None


def position_of(counter: ImageCounter, index: int, config: TrainConfig) -> Position:
    """Return the position of a simulation from its counter.

    Args:
        counter: counts the images of its sites.
        index: the round in progress; the number of rounds once all are complete.
        config: its settings.
    """
    sites, trained = {}, 0
    for name, images in counter.read().items():
        size = counter.sizes[name]
        # A count may be of an earlier round, of a site that has not begun this one; or already of the next.
        within = min(max(images - index * config.epochs * size, 0), config.epochs * size)
        trained += within
        whole = config.epochs * size
        state: SiteState = "waiting" if not within else "trained" if within == whole else "training"
        sites[name] = SitePosition(state, *divmod(within, size), size) if size else SitePosition("trained")
    of_round = config.epochs * sum(counter.sizes.values())
    done = 1.0 if index >= config.rounds else (index + trained / max(1, of_round)) / config.rounds
    return Position(index, min(1.0, done), sites)


def part_done(folder: RunFolder, rounds: int) -> float:
    """Return the part of a run that is done, 0 to 1, with what is known of the round in progress.

    Args:
        folder: the run's folder, which need not exist.
        rounds: the run's number of rounds.
    """
    complete = folder.rounds_done / rounds
    now = read_position(folder.path)
    return max(complete, now.done) if now and now.is_current else complete


def seconds_left(elapsed: float, before: float, done: float) -> float | None:
    """Return the time that a work will still take at its mean speed so far; ``None`` if that is unknown.

    Args:
        elapsed: seconds since it was started or resumed.
        before: the part of it that was complete then, 0 to 1.
        done: the part that is complete now.
    """
    return elapsed * (1 - done) / (done - before) if done > before else None


@contextmanager
def reporting(folder: RunFolder, position: Callable[[], Position]) -> Iterator[None]:
    """Write the position of a run about once a second during the block, in a thread.

    A position that cannot be written is no reason to stop a run: there is one warning.

    Args:
        folder: the run's folder, locked by the caller.
        position: returns the present position, from any thread; its times are filled in here.
    """
    path = folder.path / POSITION
    ended = threading.Event()
    began, first = time.monotonic(), position()

    def write() -> None:
        warned = False
        while True:
            try:
                now = position()
                left = seconds_left(time.monotonic() - began, first.done, now.done)
                write_passing_json(path, asdict(replace(now, seconds_left=left, written=time.time())))
            except OSError as cause:
                if not warned:
                    log.warning("%s cannot be written: %s; the run continues", path, cause.strerror)
                warned = True
            if ended.wait(WRITE_SECONDS):
                return

    writer = threading.Thread(target=write, name="position", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
        with suppress(OSError):
            path.unlink(missing_ok=True)
