"""Work for a GPU that the processor does not hold up: recorded once as a CUDA graph, then replayed.

A training step of two small networks launches some 700 kernels. A GPU runs them four times as fast as Python
can launch them, so that it waits most of the time. A CUDA graph is the list of these kernels with the memory
that they read and write: one launch replays them all. The arithmetic is the same, and so are the bits.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("prrfl")

K = TypeVar("K")
V = TypeVar("V")

MOST = 8
"""Recordings kept for each function, one for each shape of its inputs. Rarer shapes run as they are."""

_recording = threading.Lock()
"""Threads record one at a time."""

_pools = threading.local()
"""The memory of a thread's recordings. They share it, because they are replayed one after the other and what
they leave is copied at once."""


def on_gpu(device: str) -> bool:
    """Return whether a device is a CUDA GPU."""
    return torch.device(device).type == "cuda"


@dataclass(frozen=True, eq=False)
class _Recording:
    """A graph, and the memory that it reads its inputs from and leaves its outputs in."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def replay(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


class Captured:
    """A function of tensors which runs on a GPU as a replayed graph, and anywhere else as it is.

    The first call with inputs of some shapes runs as it is, which sets up what libraries set up once. The
    second is recorded. Both do real work: there is no rehearsal. What the function reads beside its inputs
    (weights, an optimiser's memory) must stay in the same memory from call to call.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: str) -> None:
        """Wrap a function.

        Args:
            function: tensors on the device to a tuple of tensors there. It reads no value and draws from no
                generator but torch's own.
            device: where it computes.
        """
        self._function = function
        self._records = on_gpu(device)
        self._seen: dict[tuple[object, ...], _Recording | None] = {}

    def forget(self) -> None:
        """Drop the recordings, because a number that the function uses has changed."""
        self._seen.clear()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the function's outputs, which no later call changes."""
        if not self._records:
            return self._function(*inputs)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        recording = self._seen.get(shapes)
        if recording is None and shapes in self._seen:
            recording = self._record(inputs)
            self._seen[shapes] = recording
        elif len(self._seen) < MOST:
            self._seen.setdefault(shapes, None)
        return recording.replay(inputs) if recording else self._function(*inputs)

    def _record(self, inputs: Sequence[Tensor]) -> _Recording | None:
        static = tuple(tensor.clone() for tensor in inputs)
        try:
            with _recording:
                graph = record(self._function, static)
        except RuntimeError as cause:
            self._records = False
            reason = str(cause).splitlines()[0]
            log.warning("this network cannot be recorded as a CUDA graph and trains slower: %s", reason)
            return None
        return _Recording(graph[0], static, graph[1])


def record(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """Record a function of these very tensors; return the graph and the tensors that will hold its outputs.

    Nothing is computed.

    Raises:
        RuntimeError: if the function waits for the GPU.
    """
    graph = torch.cuda.CUDAGraph()
    if not hasattr(_pools, "pool"):
        _pools.pool = torch.cuda.graph_pool_handle()
    # Other threads may go on meanwhile: only what this one does is recorded.
    with torch.cuda.graph(graph, pool=_pools.pool, capture_error_mode="thread_local"):
        outputs = function(*inputs)
    return graph, outputs


def streams(count: int, device: str) -> list[torch.cuda.Stream]:
    """Return new streams of a GPU; none on any other device."""
    return [torch.cuda.Stream(device) for _ in range(count)] if on_gpu(device) else []  # type: ignore[no-untyped-call]


def side_by_side(calls: Sequence[Callable[[], Tensor]], streams: Sequence[torch.cuda.Stream]) -> list[Tensor]:
    """Return what each call computes on a GPU, each on a stream of its own, so that they overlap.

    One small network fills a part of a GPU. Autograd goes back along the same streams.
    """
    here = torch.cuda.current_stream()
    outputs = []
    for call, stream in zip(calls, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            outputs.append(call())
    for output, stream in zip(outputs, streams, strict=True):
        here.wait_stream(stream)
        output.record_stream(here)  # its memory is not free again before what follows has read it
    return outputs


class Kept(threading.local, Generic[K, V]):
    """The last few things that a thread made, by key. Threads share nothing: each has a stream of its own."""

    def __init__(self, most: int = 4) -> None:
        """Keep so many in each thread."""
        self._most = most
        self._made: dict[K, V] = {}

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return what this thread made for a key; make it if there is none."""
        value = self._made.pop(key) if key in self._made else make()
        self._made[key] = value  # the newest is last
        while len(self._made) > self._most:
            del self._made[next(iter(self._made))]
        return value
