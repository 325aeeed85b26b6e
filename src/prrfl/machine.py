"""Set up a process for training (threads, memory, arithmetic), and find out what the machine has."""

import ctypes
import json
import math
import multiprocessing
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # <malloc.h>


def keep_memory() -> None:
    """Have the C library keep freed memory for the next step, until the process ends.

    Otherwise it returns the memory of large activations to the system and requests it again at every step,
    and each page faults again: a fifth of a float32 step at 128 px. One arena, because others cannot hold
    large blocks.
    """
    with suppress(OSError, AttributeError):  # a C library other than glibc has other options
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def arithmetic(device: str, precision: str) -> Iterator[None]:
    """Within the block, compute in the given precision and deterministically, also on a GPU.

    A GPU may round float32 factors to TF32. That is allowed with bfloat16, which is coarser still; with
    float32, the GPU computes in float32.
    """
    if torch.device(device).type == "cpu":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, torch.get_float32_matmul_precision()
    try:
        cudnn.allow_tf32, cudnn.deterministic = precision == "bfloat16", True
        torch.set_float32_matmul_precision("high" if precision == "bfloat16" else "highest")
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = before[:2]
        torch.set_float32_matmul_precision(before[2])


@contextmanager
def prepared(threads: int) -> Iterator[None]:
    """Within the block, this process is set up for training with the given number of threads."""
    keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class GPU:
    """Facts about a GPU.

    Attributes:
        name: the maker's name for it.
        memory: free and total bytes.
        bfloat16: whether it has bfloat16 instructions.
    """

    name: str
    memory: tuple[int, int]
    bfloat16: bool


@lru_cache
def gpu(device: str = "cuda") -> GPU | None:
    """Return the facts about a GPU, or ``None`` if it is missing or does not work.

    A child process asks. A process that has used CUDA cannot be forked, and sites may be distributed over
    forked processes later.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        return None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return _facts(device)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_facts, args=(device, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found = json.loads(ours.recv_bytes())
    except EOFError:  # the child died
        found = None
    process.join()
    return None if found is None else GPU(found["name"], tuple(found["memory"]), found["bfloat16"])


def _facts(device: str) -> GPU | None:
    try:
        torch.zeros(1, device=device).item()
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return GPU(torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device), bfloat16)
    except (RuntimeError, AssertionError):  # an old driver, no such card, or one in exclusive use
        return None


def _send_facts(device: str, connection: Connection) -> None:
    found = _facts(device)
    connection.send_bytes(json.dumps(found and asdict(found)).encode())


def best_device() -> str:
    """Return ``cuda`` where there is a GPU that can be used, else ``cpu``."""
    return "cuda" if gpu() else "cpu"


def multiplies_bfloat16(device: str) -> bool:
    """Return whether a device has instructions for bfloat16, so that it is faster than float32 there."""
    if torch.device(device).type == "cuda":
        found = gpu(device)
        return found is not None and found.bfloat16
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def system() -> str:
    """Return name, release, architecture and C library of the system, in the form of ``platform.platform``.

    That function starts a process, which training has no need for.
    """
    name = os.uname()
    return f"{name.sysname}-{name.release}-{name.machine}-with-{''.join(platform.libc_ver())}"


def usable_cores() -> int:
    """Return how many cores this process can keep busy: by its affinity, and by a container's quota."""
    quotas = (_quota(group) for group in _control_groups("cpu"))
    return min([len(os.sched_getaffinity(0)), *(max(1, math.floor(quota)) for quota in quotas if quota)])


def available_memory() -> int:
    """Return the bytes of memory that are available: the machine's, or a container's if it has fewer."""
    (machine,) = (
        int(line.split()[1]) * 1024
        for line in _text(PROC / "meminfo").splitlines()
        if line.startswith("MemAvailable:")
    )
    return min(
        [machine, *(left for group in _control_groups("memory") if (left := _left(group)) is not None)]
    )


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of the groups around it that are visible."""
    for line in _text(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has a tree for each controller, version 2 one for all, whose line names none.
        root = CGROUPS / controller if controllers else CGROUPS
        own = root / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group.is_relative_to(root))


def _quota(group: Path) -> float | None:
    """Return how many cores a control group may keep busy; ``None`` without a limit."""
    both = _text(group / "cpu.max") or " ".join(
        _text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")
    )
    quota, *period = both.split() or ["max"]
    return None if quota in ("max", "-1") or not period else int(quota) / int(period[0])


def _left(group: Path) -> int | None:
    """Return the bytes that a control group may still allocate; ``None`` without a limit."""
    limit = _text(group / "memory.max") or _text(group / "memory.limit_in_bytes")
    used = _text(group / "memory.current") or _text(group / "memory.usage_in_bytes")
    if limit in ("", "max") or not used:
        return None
    # Cached pages of idle files count as used, but the system drops them before it refuses memory.
    stat = dict(line.split() for line in _text(group / "memory.stat").splitlines())
    idle = stat.get("total_inactive_file") or stat.get("inactive_file") or 0
    return max(0, int(limit) - int(used) + int(idle))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
