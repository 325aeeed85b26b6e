"""Checks of the hardware: cores, GPU and disk."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from prrfl.config import TrainConfig
from prrfl.data.synthetic import GeneratedData, cache_folder
from prrfl.machine import gpu, multiplies_bfloat16, usable_cores
from prrfl.preflight.findings import Finding, size
from prrfl.runs.checkpoint import CHECKPOINTS_KEPT
from prrfl.storage.tensor_files import to_bytes
from prrfl.tensors import count_bytes
from prrfl.training import Recipe

NVIDIA = Path("/proc/driver/nvidia/version")
"""Exists if NVIDIA's driver is loaded."""


def check_cores() -> Finding:
    """Check how many cores training can use."""
    usable, machine = usable_cores(), os.cpu_count() or 1
    if usable >= machine:
        return Finding("ok", "cores", f"{usable}, all of the machine's")
    return Finding(
        "note", "cores", f"{usable} of the machine's {machine}, limited by CPU affinity or a container"
    )


def check_gpu() -> Iterator[Finding]:
    """Check what PyTorch computes on, why it cannot use a GPU, and whether bfloat16 is fast."""
    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = next((f"{name} {version}" for name, version in versions.items() if version), "the CPU")
    yield Finding("ok", "torch", f"torch {torch.__version__}, for {build}")
    index = 0
    while found := gpu(device := f"cuda:{index}"):
        free, total = found.memory
        yield _bfloat16("GPU", device, f"{device}: {found.name}, {size(free)} of {size(total)} free")
        index += 1
    if index:
        return
    if build != "the CPU":
        message = f"torch cannot use a GPU: {_why_no_gpu()}"
        yield Finding("note", "GPU", message, "training will run on the CPU")
    elif NVIDIA.exists():
        message = "an NVIDIA driver is loaded, but torch is built for the CPU"
        yield Finding("note", "GPU", message, "to use the GPU, install torch for CUDA; see docs/install.md")
    yield _bfloat16("CPU", "cpu", platform.machine())


def _bfloat16(topic: str, device: str, name: str) -> Finding:
    has = "bfloat16 in hardware" if multiplies_bfloat16(device) else "no bfloat16 in hardware: float32"
    return Finding("ok", topic, f"{name}; {has}")


def _why_no_gpu() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as cause:
        return " ".join(str(cause).split()).partition(". ")[0]
    return "it finds no device"


def check_disk(config: TrainConfig, sites: int, recipe: Recipe) -> Iterator[Finding]:
    """Check the folders that training writes to: runs, and the cache of generated data if it is used."""
    yield check_folder("runs", Path("runs"), run_bytes(config, sites, recipe))
    if config.data is None:
        spec = GeneratedData(config.sites, config.images, config.image_size, config.seed)
        yield check_folder("generated data", cache_folder(), spec.bytes)


def run_bytes(config: TrainConfig, sites: int, recipe: Recipe) -> int:
    """Return roughly how many bytes a run's folder takes at most."""
    weights = recipe.network.state_dict()
    state = len(to_bytes(config.algorithm().start(recipe.initial())))
    # While a round is committed, its states come on top of those that are kept.
    return sites * ((CHECKPOINTS_KEPT + 1) * state + 2 * count_bytes(weights))


def check_folder(topic: str, path: Path, needed: int) -> Finding:
    """Check that a folder, or the one in which it would be created, is writable and has enough room."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as cause:
        return Finding(
            "problem",
            topic,
            f"{path.absolute()} cannot be written to ({cause.strerror})",
            "change to a writable folder, or use --out"
            if topic == "runs"
            else "set XDG_CACHE_HOME to a writable folder",
        )
    message = f"{path.absolute()}: {size(free)} free, about {size(needed)} needed"
    if free < needed:
        return Finding("problem", topic, message, "free some space, or use another disk")
    return Finding("ok", topic, message)
