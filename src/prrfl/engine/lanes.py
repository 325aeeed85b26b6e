"""Several sites at a time on one GPU: each visit runs in a thread with its own CUDA stream."""

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
"""Visits at a time. The kernels of one small network use part of a GPU; those of four sites fill it."""


@dataclass(frozen=True)
class _End:
    """The end of a visit, with the error that stopped it, if any."""

    cause: BaseException | None = None


class Lanes(Generic[E]):
    """Threads that share a GPU. The result of a visit depends neither on other visits nor on its thread."""

    def __init__(self, recipe: Recipe) -> None:
        """Prepare the threads; each starts when it is first needed."""
        self._recipe = recipe
        self._threads = [ThreadPoolExecutor(1, "lane", self._choose_stream) for _ in range(LANES)]
        self._lanes: dict[str, int] = {}

    def _choose_stream(self) -> None:
        torch.cuda.set_stream(own_stream("lane", self._recipe.device))

    def run(self, visits: Mapping[str, Callable[[], Iterator[E]]]) -> Iterator[E]:
        """Make all visits, by site; yield the events of the first, then of the second, and so on."""
        torch.cuda.synchronize(self._recipe.device)  # other streams may still copy the sites' data
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

        # Set here for all threads: these settings belong to the process, and the first thread to finish would
        # restore them while the others still compute.
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
        """Return the thread of a site: always the same, because its recordings fit the site's batches."""
        return self._threads[self._lanes.setdefault(name, len(self._lanes) % LANES)]
