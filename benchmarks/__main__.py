"""Command line: ``python -m benchmarks [NAME ...] [--quick] [--size P] [--data DIR] [--json FILE]``."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

import prrfl
from benchmarks.compiled import measure_compiled
from benchmarks.engine import measure_engine
from benchmarks.epochs import measure_epoch
from benchmarks.figures import Figure, Settings
from benchmarks.fourier import measure_pfa
from benchmarks.gpu import measure_gpu
from benchmarks.memory import measure_memory
from benchmarks.methods import measure_methods
from benchmarks.rounds import measure_agreement, measure_round
from benchmarks.sizes import measure_sizes, measure_start
from prrfl.machine import keep_memory

BENCHMARKS: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    "round": measure_round,
    "agreement": measure_agreement,
    "epoch": measure_epoch,
    "methods": measure_methods,
    "sizes": measure_sizes,
    "start": measure_start,
    "pfa": measure_pfa,
    "engine": measure_engine,
    "memory": measure_memory,
    "gpu": measure_gpu,
    "compiled": measure_compiled,
}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=prrfl.__doc__)
    lines = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which benchmarks; all if none: {lines}")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean nothing")
    parser.add_argument(
        "--size", type=int, default=128, help="side of images in round, agreement, epoch and methods"
    )
    parser.add_argument("--images", type=int, default=48, help="training images of a site there")
    parser.add_argument("--epochs", type=int, default=2, help="local epochs of a round there, at least 2")
    parser.add_argument("--data", type=Path, help="real data in the published layout, instead of generated")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results.json"))
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark is named '{name}'; there are {lines}")
    return given


def settings_of(given: argparse.Namespace) -> Settings:
    """Return what the command line asks for."""
    if given.quick:
        return Settings(given.threads, 32, 12, repeats=1, data=given.data, quick=True)
    return Settings(given.threads, given.size, given.images, given.epochs, data=given.data)


def main() -> None:
    """Run the benchmarks; print each figure as it comes, and keep all as JSON."""
    given = arguments()
    settings = settings_of(given)
    keep_memory()
    torch.set_num_threads(settings.threads)
    environment = {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    print(" ".join(f"{key}={value}" for key, value in environment.items()), settings, sep="\n")
    results: dict[str, list[Figure]] = {}
    for name in given.names or BENCHMARKS:
        start = time.perf_counter()
        results[name] = []
        for figure in BENCHMARKS[name](settings):
            print(f"{name:<10}{figure}", flush=True)
            results[name].append(figure)
        print(f"{name:<10}took {time.perf_counter() - start:.0f} s", flush=True)
    whole = {
        "environment": environment,
        "settings": {key: value if value is None else str(value) for key, value in asdict(settings).items()},
        "figures": {name: [asdict(figure) for figure in figures] for name, figures in results.items()},
    }
    given.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
