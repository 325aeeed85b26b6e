"""Steps recorded once as CUDA graphs, then replayed, so that the processor does not slow down a GPU.

A training step of two small networks launches some 700 kernels. A GPU runs them four times as fast as Python
can launch them, so it would wait most of the time. A CUDA graph is the list of these kernels with the memory
that they read and write; one launch replays them all. The arithmetic is the same, and so are the bits.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("prrfl")

K = TypeVar("K")
V = TypeVar("V")

MOST = 16
"""Recordings of one function, one for each shape of its inputs. Further shapes run without recording."""

_KEPT = 4
"""Objects that a :class:`ThreadCache` keeps in each thread."""

_recording = threading.Lock()
"""One thread records at a time."""


class _Own(threading.local):
    """What each thread owns on a GPU.

    Attributes:
        streams: by purpose and device. They are reused, because PyTorch has only 32; the 33rd is the first.
        memory: the memory pool of its recordings. They can share it because they are replayed one after the
            other, and their outputs are copied at once.
    """

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str], torch.cuda.Stream] = {}
        self.memory: Any = None


_own = _Own()

_broken = threading.Event()
"""Set when a recording has failed: PyTorch cannot record in this process again."""


def on_gpu(device: str) -> bool:
    """Return whether a device is a CUDA GPU."""
    return torch.device(device).type == "cuda"


@dataclass(frozen=True, eq=False)
class _Recording:
    """A graph, and the memory of its inputs and outputs."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def replay(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


class Captured:
    """A function of tensors that runs as a replayed graph on a GPU, and as usual on any other device.

    The first call with inputs of new shapes runs as usual, so that libraries do their one-time set-up.
    The second call is recorded and replayed. Both do real work; there are no warm-up calls. Other tensors
    that the function reads or writes (weights, an optimiser's memory) must stay in the same memory.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: str) -> None:
        """Wrap a function.

        Args:
            function: takes and returns tensors on the device. It must not read their values in Python, nor
                draw random numbers except from torch's global generators.
            device: device of the tensors.
        """
        self._function = function
        self._device = device
        self._records = on_gpu(device)
        self._seen: dict[tuple[object, ...], _Recording | None] = {}

    def forget(self) -> None:
        """Drop the recordings, because a number that the function looks up has changed."""
        self._seen.clear()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the function's outputs. Later calls do not change them."""
        if not self._records or _broken.is_set():
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
        with _recording:
            try:
                return None if _broken.is_set() else record(self._function, inputs, self._device)
            except RuntimeError as cause:
                _broken.set()
                reason = str(cause).splitlines()[0]
        log.warning("a step cannot be recorded as a CUDA graph, so training is slower: %s", reason)
        return None


def record(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], device: str) -> _Recording:
    """Record a function for inputs of these shapes, without computing anything.

    Raises:
        RuntimeError: if the function waits for the GPU.
    """
    static = tuple(tensor.clone() for tensor in inputs)
    graph = torch.cuda.CUDAGraph()
    if _own.memory is None:
        _own.memory = torch.cuda.graph_pool_handle()
    with torch.cuda.stream(own_stream("recording", device)):
        # Other threads continue; only the work of this one is recorded.
        graph.capture_begin(_own.memory, capture_error_mode="thread_local")
        try:
            outputs = function(*static)
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
    return _Recording(graph, static, outputs)


def own_stream(purpose: str, device: str) -> torch.cuda.Stream:
    """Return a stream for one purpose that no other thread uses."""
    key = (purpose, device)
    if key not in _own.streams:
        _own.streams[key] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _own.streams[key]


def side_by_side(calls: Sequence[Callable[[], Tensor]], device: str) -> list[Tensor]:
    """Return what each call computes; on a GPU each runs on its own stream, so that they overlap.

    A small network uses only part of a GPU. Autograd runs each backward pass on its forward pass's stream.
    """
    if not on_gpu(device) or len(calls) < 2:
        return [call() for call in calls]
    here = torch.cuda.current_stream(device)
    beside = [own_stream(f"network {k}", device) for k in range(len(calls))]
    outputs = []
    for call, stream in zip(calls, beside, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            outputs.append(call())
    for output, stream in zip(outputs, beside, strict=True):
        here.wait_stream(stream)
        used_here(output, device)
    return outputs


def used_here(tensor: Tensor, device: str) -> Tensor:
    """Return a tensor of another stream, whose memory is kept until later work on this stream has read it."""
    if on_gpu(device):
        tensor.record_stream(torch.cuda.current_stream(device))
    return tensor


class ThreadCache(threading.local, Generic[K, V]):
    """The last few objects that each thread made, by key. Threads share none, because streams differ."""

    def __init__(self) -> None:
        self._made: dict[K, V] = {}

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return this thread's object for a key; make it if it does not exist."""
        value = self._made.pop(key) if key in self._made else make()
        self._made[key] = value  # the newest is last
        while len(self._made) > _KEPT:
            del self._made[next(iter(self._made))]
        return value
