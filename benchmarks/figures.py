"""What a benchmark is told, what it tells, and how it takes time."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """One line of the result.

    Attributes:
        name: what was measured.
        value: how much.
        unit: ``x`` for a ratio within the run; ``... (this run)`` for what another machine would not repeat.
    """

    name: str
    value: float
    unit: str = "x"

    def __str__(self) -> str:
        return f"{self.name:<72} {self.value:>11.4g} {self.unit}"


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes:
        threads: threads of torch.
        size: side of the images in ``round``, ``agreement`` and ``epoch``.
        images: training images of a site there; half as many for testing, a sixth for validation.
        epochs: local epochs of a round there.
        repeats: pairs of timings.
        data: real data in the published layout; generated, if not given.
        quick: a smoke run, whose figures mean nothing.
    """

    threads: int
    size: int = 128
    images: int = 48
    epochs: int = 2
    repeats: int = 5
    data: Path | None = None
    quick: bool = False

    def pick(self, full: T, quick: T) -> T:
        """Return the extent of a measurement."""
        return quick if self.quick else full

    def stopwatch(self, call: Callable[[], object]) -> float:
        """Return the seconds that a call takes."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def in_turns(self, contenders: Mapping[str, Callable[[], object]], repeats: int) -> Seconds:
        """Return the seconds of every call. The order is A B A B: a slow minute of the machine hits all.

        A first turn is not counted: it fills caches.
        """
        seconds: Seconds = {name: [] for name in contenders}
        for turn in range(repeats + 1):
            for name, call in contenders.items():
                taken = self.stopwatch(call)
                if turn > 0:
                    seconds[name].append(taken)
        return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """Return how many times as long one takes as the other: the median over pairs."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def absolute(seconds: Seconds, label: str) -> list[Figure]:
    """Return the median seconds of every contender."""
    return [
        Figure(f"{label}{name}", statistics.median(taken), "s (this run)") for name, taken in seconds.items()
    ]
