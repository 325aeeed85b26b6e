"""All trackers of a run, none of which can stop it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

from prrfl.reports.tracking.base import Results, Tracked, Tracker, values_of_round
from prrfl.reports.tracking.mlflow import MLflow
from prrfl.reports.tracking.tensorboard import TensorBoard
from prrfl.reports.tracking.wandb import WandB
from prrfl.types import RoundRecord

log = logging.getLogger("prrfl")

OPENERS: Mapping[str, Callable[[Tracked], Tracker]] = {
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
"""The trackers by the names that users give. Each imports its library when it is opened."""


class Trackers:
    """The open trackers of a run. One that fails is left out from then on, with a warning."""

    def __init__(self, names: Sequence[str], run: Tracked) -> None:
        """Open trackers.

        Args:
            names: keys of ``OPENERS``.
            run: what they are told about the run.
        """
        self._open: dict[str, Tracker] = {}
        for name in names:
            try:
                self._open[name] = OPENERS[name](run)
            except Exception as cause:
                _warn(name, cause)

    def add(self, records: Sequence[RoundRecord]) -> None:
        """Log complete rounds: those among them that a tracker does not hold yet.

        Args:
            records: of one or more rounds, in order of time.
        """
        if not self._open:
            return
        for index, of_round in groupby(records, lambda r: r.round):
            values = values_of_round(of_round)

            def log_round(tracker: Tracker, step: int = index + 1, values: dict[str, float] = values) -> None:
                if step > tracker.rounds:
                    tracker.add(step, values)

            self._each(log_round)

    def close(self, results: Results | None = None) -> None:
        """End all trackers, once.

        Args:
            results: files of a finished run; ``None`` if it was stopped.
        """
        self._each(lambda tracker: tracker.close(results))
        self._open.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as cause:
                del self._open[name]
                _warn(name, cause)


@contextmanager
def tracking(names: Sequence[str], run: Tracked) -> Iterator[Trackers]:
    """Open trackers for the block; whatever ends it, they are closed."""
    trackers = Trackers(names, run)
    try:
        yield trackers
    finally:
        trackers.close()


def _warn(name: str, cause: Exception) -> None:
    # Some libraries put whole pages into an error.
    said = " ".join(str(cause).split())[:300] or type(cause).__name__
    log.warning("tracker %s failed, and the run continues without it: %s", name, said)
