"""Several sites at a time on one GPU: each visit in a thread with a stream of its own."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from prrfl.capture import own_stream
from prrfl.machine import arithmetic
from prrfl.training import Recipe

E = TypeVar("E")

LANES = 4
"""Visits at a time. A small network's kernels fill a part of a GPU; those of four fill it."""


@dataclass(frozen=True)
class _End:
    """A visit is over, with the error that ended it, if one did."""

    cause: BaseException | None = None


class Lanes(Generic[E]):
    """Threads that share a GPU. What each visit gives does not depend on the others, nor on its thread."""

    def __init__(self, recipe: Recipe) -> None:
        """Start no thread yet; each begins with a stream of its own when it is first needed."""
        self._recipe = recipe
        self._threads = [ThreadPoolExecutor(1, "lane", self._choose_stream) for _ in range(LANES)]
        self._lanes: dict[str, int] = {}

    def _choose_stream(self) -> None:
        torch.cuda.set_stream(own_stream("lane", self._recipe.device))

    def run(self, visits: Mapping[str, Callable[[], Iterator[E]]]) -> Iterator[E]:
        """Make all visits, by site; yield the events of the first, then of the second, and so on."""
        torch.cuda.synchronize(self._recipe.device)  # what other streams began, the sites' data say
        stopped = threading.Event()
        events: list[SimpleQueue[E | _End]] = [SimpleQueue() for _ in visits]

        def make(visit: Callable[[], Iterator[E]], events: "SimpleQueue[E | _End]") -> None:
            try:
                for event in visit():
                    if stopped.is_set():
                        break
                    events.put(event)
                events.put(_End())
            except BaseException as cause:
                events.put(_End(cause))

        # Switched here, because threads that switched back one by one would do so under the others' feet.
        with arithmetic(self._recipe.device, self._recipe.precision):
            running = [
                self._thread(name).submit(make, visit, of_one)
                for (name, visit), of_one in zip(visits.items(), events, strict=True)
            ]
            try:
                for of_one in events:
                    while not isinstance(event := of_one.get(), _End):
                        yield event
                    if event.cause:
                        raise event.cause
            finally:
                stopped.set()
                for future in running:
                    future.cancel()
                wait(running)

    def _thread(self, name: str) -> ThreadPoolExecutor:
        """Return the thread of a site, always the same: what is recorded there has its batches' shapes."""
        return self._threads[self._lanes.setdefault(name, len(self._lanes) % LANES)]
