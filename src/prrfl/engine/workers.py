"""The simulation engine on several cores: sites in several processes, with the bits of a single one."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Literal, Self, cast

import torch

from prrfl import errors
from prrfl.engine.in_process import InProcess, Present, taking_part
from prrfl.engine.rounds import Arrival, Deployed
from prrfl.errors import PRRFLError
from prrfl.parts import PartError, blamed
from prrfl.storage.tensor_files import from_bytes, to_bytes
from prrfl.types import (
    ClientId,
    ExchangeRecord,
    RoundContext,
    RoundRecord,
    ScoreRecord,
    SiteData,
    Tensors,
    TrainRecord,
)

_Visit = Literal["train", "receive", "train epoch", "meet", "share"]


@dataclass(frozen=True)
class _Order:
    """An order to a worker about one of its sites."""

    do: _Visit | Literal["deployed", "save", "load"]
    client: ClientId
    ctx: RoundContext | None = None
    mean: Tensors = field(default_factory=dict)
    folder: Path = Path()


@dataclass(frozen=True)
class _Done:
    """The end of an order that succeeded."""


@dataclass(frozen=True)
class _Failed:
    """The end of an order that failed.

    Attributes:
        error: class of the error; empty if it is unexpected.
        words: its message, or the traceback if it is unexpected.
        details: for the log.
    """

    error: str
    words: str
    details: str = ""


_Event = RoundRecord | Arrival | Deployed
_MESSAGES = {
    kind.__name__: kind
    for kind in (TrainRecord, ScoreRecord, ExchangeRecord, Arrival, Deployed, _Done, _Failed)
}


class Workers:
    """An engine whose sites live in other processes. Each site stays in one, with its data, state and scores.

    Processes are forked, so that they share the memory of the images. They exchange safetensors and JSON.
    Linux only. On a GPU, create the engine before anything in this process has used CUDA.
    """

    def __init__(
        self,
        make: Callable[[Sequence[SiteData]], InProcess],
        sites: Sequence[SiteData],
        workers: int,
        threads: int = 1,
        present: Present | None = None,
    ) -> None:
        """Start the processes.

        Args:
            make: makes the engine of some sites; called in their process.
            sites: all sites' data.
            workers: number of processes.
            threads: threads of each process. Bits depend on it, but not on ``workers``.
            present: which sites take part in a round; by default all.
        """
        self._names = sorted(site.name for site in sites)
        self._present = present
        self._workers = [_Worker(make, part, threads) for part in shared_out(sites, workers)]
        self._of = {name: worker for worker in self._workers for name in worker.names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def train(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Train all present sites; records and shares come in order of site name."""
        return cast(Iterator[RoundRecord | Arrival], self._visit("train", ctx))

    def receive(self, mean: Tensors, ctx: RoundContext) -> Iterator[RoundRecord]:
        """Give the mean to the present sites."""
        return cast(Iterator[RoundRecord], self._visit("receive", ctx, mean))

    def train_epoch(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Train all present sites for one local epoch."""
        return cast(Iterator[RoundRecord | Arrival], self._visit("train epoch", ctx))

    def meet(self, mean: Tensors, ctx: RoundContext) -> None:
        """Give an epoch's mean to the present sites."""
        list(self._visit("meet", ctx, mean))

    def share(self, ctx: RoundContext) -> Iterator[RoundRecord | Arrival]:
        """Let the present sites end their round."""
        return cast(Iterator[RoundRecord | Arrival], self._visit("share", ctx))

    def deployed(self) -> Iterator[Deployed]:
        """Yield each site's deployed network as it is now."""
        events = self._carry_out([_Order("deployed", name) for name in self._names])
        return cast(Iterator[Deployed], events)

    def save(self, folder: Path) -> None:
        """Write every site's state as ``<site>.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        list(self._carry_out([_Order("save", name, folder=folder) for name in self._names]))

    def load(self, folder: Path) -> None:
        """Resume from saved states."""
        list(self._carry_out([_Order("load", name, folder=folder) for name in self._names]))

    def _visit(
        self, do: _Visit, ctx: RoundContext, mean: Tensors = MappingProxyType({})
    ) -> "Iterator[_Event]":
        names = taking_part(self._names, self._present, ctx)
        return self._carry_out([_Order(do, name, ctx, mean) for name in names])

    def _carry_out(self, orders: Sequence[_Order]) -> Iterator[_Event]:
        """Send all orders at once; yield the results in the order given."""
        answers = [self._of[order.client].give(order) for order in orders]
        for answer in answers:
            while not isinstance(message := _unpack(answer.get()), _Done):
                if isinstance(message, _Failed):
                    raise _error(message)
                yield cast(_Event, message)


def _error(failed: _Failed) -> Exception:
    kinds: dict[str, type[Exception]] = {"OSError": OSError, "PartError": PartError, **vars(errors)}
    error = kinds.get(failed.error, RuntimeError)(failed.words)
    if failed.details:
        error.add_note(failed.details)
    return error


def shared_out(sites: Sequence[SiteData], workers: int) -> list[list[SiteData]]:
    """Distribute sites by training images: the largest first, each to the part with the fewest so far."""
    parts: list[list[SiteData]] = [[] for _ in range(min(workers, len(sites)))]
    for site in sorted(sites, key=lambda site: (-len(site.train), site.name)):
        min(parts, key=lambda part: sum(len(one.train) for one in part)).append(site)
    return parts


def forked(
    serve: Callable[..., None], *arguments: object
) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    """Start a process that shares this one's memory; return it, and our end of a pipe to it.

    Args:
        serve: what it does, given our end of the pipe, its own end, and the arguments. It must close our end,
            or it would never notice that this process has ended.
        arguments: further arguments.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(ours, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


class _Worker:
    """One process, and the thread of this process that talks to it."""

    def __init__(
        self, make: Callable[[Sequence[SiteData]], InProcess], sites: Sequence[SiteData], threads: int
    ) -> None:
        self.names = [site.name for site in sites]
        self._thread = ThreadPoolExecutor(1)
        # The thread that forks has not computed: OpenMP keeps a team of threads per calling thread, and a
        # child that inherited a team would wait for threads that fork does not copy.
        self._process, self._connection = self._thread.submit(forked, _serve, make, sites, threads).result()

    def give(self, order: _Order) -> "SimpleQueue[bytes]":
        """Send an order after the earlier ones are done; return the queue that its results come through."""
        answers: SimpleQueue[bytes] = SimpleQueue()
        self._thread.submit(self._talk, order, answers)
        return answers

    def _talk(self, order: _Order, answers: "SimpleQueue[bytes]") -> None:
        try:
            self._connection.send_bytes(to_bytes(order))
            while True:
                message = self._connection.recv_bytes()
                answers.put(message)
                if message.startswith((b"_Done\n", b"_Failed\n")):
                    return
        except (EOFError, OSError):
            self._process.join(timeout=5)
            words = (
                f"the process of {', '.join(self.names)} ended with exit code {self._process.exitcode}; "
                "if memory ran out, use fewer --workers"
            )
            answers.put(_pack(_Failed("PRRFLError", words)))

    def close(self) -> None:
        # SIGTERM would be lost if it came just after the fork, before the child has set what it does then.
        self._process.kill()
        self._process.join()
        self._thread.shutdown(cancel_futures=True)
        self._connection.close()


def _pack(message: object) -> bytes:
    return type(message).__name__.encode() + b"\n" + to_bytes(message)


def _unpack(message: bytes) -> object:
    name, _, whole = message.partition(b"\n")
    return from_bytes(_MESSAGES[name.decode()], whole)


def _serve(
    parents: Connection,
    connection: Connection,
    make: Callable[[Sequence[SiteData]], InProcess],
    sites: Sequence[SiteData],
    threads: int,
) -> None:
    """Carry out orders until the parent process ends."""
    parents.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interruptions
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(threads)
    try:
        engine = make(sites)
        while True:
            order = from_bytes(_Order, connection.recv_bytes())
            for message in _answers(engine, order):
                connection.send_bytes(_pack(message))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        # Skips the interpreter's shutdown, which would flush and close what belongs to the parent.
        os._exit(0)


def _answers(engine: InProcess, order: _Order) -> Iterator[object]:
    try:
        yield from _events(engine, order)
        yield _Done()
    except PRRFLError as error:
        yield _Failed(type(error).__name__, str(error))
    except (Exception, SystemExit) as cause:
        if part := blamed(cause):
            yield _Failed(type(part).__name__, str(part), traceback.format_exc())
        elif isinstance(cause, OSError):
            yield _Failed("OSError", str(cause))
        else:
            yield _Failed("", traceback.format_exc())


def _events(engine: InProcess, order: _Order) -> Iterator[_Event]:
    match order:
        case _Order(do="train", ctx=RoundContext() as ctx):
            yield from engine.train_at(order.client, ctx)
        case _Order(do="receive", ctx=RoundContext() as ctx):
            yield from engine.receive_at(order.client, ctx, order.mean)
        case _Order(do="train epoch", ctx=RoundContext() as ctx):
            yield from engine.train_epoch_at(order.client, ctx)
        case _Order(do="meet", ctx=RoundContext() as ctx):
            engine.meet_at(order.client, ctx, order.mean)
        case _Order(do="share", ctx=RoundContext() as ctx):
            yield from engine.share_at(order.client, ctx)
        case _Order(do="deployed"):
            yield engine.deployed_at(order.client)
        case _Order(do="save"):
            engine.save_at(order.client, order.folder)
        case _Order(do="load"):
            engine.load_at(order.client, order.folder)
