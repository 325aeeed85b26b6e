"""How a process is set up before it trains: threads, memory, arithmetic; what a machine has and can."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # <malloc.h>


def keep_memory() -> None:
    """Have the C library keep freed memory for the next step, until the process ends.

    Otherwise it hands the memory of large activations back and gets it anew at every step, and each page of
    it faults again: a fifth of a float32 step at 128 px. One arena, because others cannot hold large blocks.
    """
    with suppress(OSError, AttributeError):  # another C library than glibc: its own ways
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def prepared(threads: int, device: str) -> Iterator[None]:
    """Set this process up for training on a device, with so many threads while the block lasts."""
    keep_memory()
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, in convolutions as in products
        torch.backends.cudnn.allow_tf32 = True
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory() -> int | None:
    """Return how many bytes a process may still take without swapping; ``None`` where it cannot be told."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):  # a container has less, or no limit, which is the word max
        limit, used = (
            int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current")
        )
        found.append(max(0, limit - used))
    return min(found, default=None)


def multiplies_bfloat16(device: str) -> bool:
    """Return whether a device has instructions for bfloat16, so that it is faster than float32 there."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
