"""Trials: runs in processes of their own that report each round's validation score, and leave no files.

No test image takes part: :func:`without_test` removes them before the first trial starts.
"""

import json
import os
import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prrfl.config import TrainConfig
from prrfl.engine import rounds_from
from prrfl.engine.workers import forked
from prrfl.errors import NonFiniteShareError, PRRFLError
from prrfl.parts import blamed
from prrfl.reports.summary import validation_f1
from prrfl.runs.run import open_engine, states_folder
from prrfl.runs.setup import Run, resolved, with_class_counts
from prrfl.types import ExchangeRecord, RoundRecord, SiteData


def without_test(sites: Sequence[SiteData]) -> list[SiteData]:
    """Return the sites with their validation images as test images too; the test images are dropped."""
    return [replace(site, test=site.valid) for site in sites]


def validation_by_round(config: TrainConfig, sites: Sequence[SiteData], folder: Path) -> Iterator[float]:
    """Run a method; yield the mean of sites' macro-F1 on validation of the deployed network after each round.

    Args:
        config: the settings.
        sites: the data, from :func:`without_test`.
        folder: where states are stored meanwhile if memory is short.

    Raises:
        NonFiniteShareError: if training diverges.
    """
    config = resolved(config, len(sites))
    run = with_class_counts(Run.of(config), sites)
    with open_engine(run, sites, folder) as engine:
        records: list[RoundRecord] = []
        for record in rounds_from(run.moment(0), run.method, engine):
            records.append(record)
            if isinstance(record, ExchangeRecord):
                yield validation_f1(records)
                records = []


@dataclass(frozen=True)
class Message:
    """What a trial's process reports.

    Attributes:
        kind: ``round`` done, all rounds ``done``, training ``diverged``, or the trial ``failed``.
        score: of the round.
        said: the error.
        details: the traceback of an error in a part of the user's own, for the log.
    """

    kind: str
    score: float = 0.0
    said: str = ""
    details: str = ""


class TrialProcess:
    """A process that runs one trial. It is forked, so that it shares the memory of the images. Linux only."""

    def __init__(self, config: TrainConfig, sites: Sequence[SiteData], folder: Path) -> None:
        """Start it; see :func:`validation_by_round`."""
        # A thread that has not computed forks: a child cannot use the team of threads of one that has.
        with ThreadPoolExecutor(1) as thread:
            self._process, self.connection = thread.submit(forked, _serve, config, sites, folder).result()
        self._folder = folder

    def receive(self) -> Message:
        """Return the next message.

        Raises:
            PRRFLError: if the process was killed.
        """
        try:
            return Message(**json.loads(self.connection.recv_bytes()))
        except (EOFError, OSError):
            self._process.join()
            raise PRRFLError(
                f"its process ended with exit code {self._process.exitcode}; if memory ran out, use fewer "
                "--workers"
            ) from None

    def proceed(self) -> None:
        """Let it begin the next round."""
        self.connection.send_bytes(b"")

    def close(self) -> None:
        """End the process, and remove the states that it stored."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        shutil.rmtree(states_folder(self._folder, self._process.pid), ignore_errors=True)


def _serve(
    parents: Connection, connection: Connection, config: TrainConfig, sites: Sequence[SiteData], folder: Path
) -> None:
    parents.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interruptions
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def tell(**message: Any) -> None:
        connection.send_bytes(json.dumps(message).encode())

    try:
        for score in validation_by_round(config, sites, folder):
            tell(kind="round", score=score)
            connection.recv_bytes()  # waits for leave to proceed
        tell(kind="done")
    except (EOFError, ConnectionError):
        pass  # the parent has ended
    except NonFiniteShareError as cause:
        tell(kind="diverged", said=str(cause))
    except (Exception, SystemExit) as cause:
        if part := blamed(cause):
            tell(kind="failed", said=str(part), details=traceback.format_exc())
        else:
            expected = isinstance(cause, PRRFLError | OSError)
            tell(kind="failed", said=str(cause) if expected else traceback.format_exc())
    finally:
        # Skips the interpreter's shutdown, which would flush and close what belongs to the parent.
        os._exit(0)
