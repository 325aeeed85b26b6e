"""Would networks compiled by ``torch.compile`` be worth it on a GPU, and are their bits those of every run?

Needs a C++ compiler. Without a GPU, ``--quick`` rehearses all of it on the processor.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from torch import nn

from benchmarks.child import ROOT
from benchmarks.figures import Figure, Settings
from benchmarks.gpu import epochs, right, seconds_of_round, seconds_of_step
from benchmarks.workload import noise_site, paper_recipe
from prrfl.algorithms import PRRFL
from prrfl.engine import InProcess
from prrfl.machine import gpu
from prrfl.training import Recipe


def measure_compiled(settings: Settings) -> Iterator[Figure]:
    """Compare compiled networks with others: bits, seconds of a step, seconds of a round."""
    device = "cuda" if gpu() else "cpu"
    if device == "cpu" and not settings.quick:
        print("compiled  no GPU here; nothing to measure")
        return
    # In fresh processes with fresh caches, because a cache would repeat what the first run chose.
    first, second = (digest_in_child(device, settings.size) for _ in range(2))
    yield right("compiled twice, the same bits", first == second)
    recipe = replace(paper_recipe("bfloat16"), device=device)
    # Whole batches only: each further shape is compiled, too.
    images = settings.pick(2048, 16)
    sites = [noise_site(name, images, settings.size) for name in "ABCD"]
    for name in ("as it is", "compiled"):
        with compiled() if name == "compiled" else nullcontext():
            step = seconds_of_step(sites[0].to(device), replace(recipe), settings.pick(100, 1))
            engine = InProcess(PRRFL(), sites, replace(recipe))
            seconds = seconds_of_round(engine, recipe, settings.pick(5, 1))
        yield Figure(f"a step of both networks, {name}", 1e3 * step, "ms (this run)")
        yield Figure(f"a round of four sites of {images} images, {name}", seconds, "s (this run)")


@contextmanager
def compiled() -> Iterator[None]:
    """Compile every network, for each shape of its inputs; choose kernels without timing them."""
    make = Recipe.make_network

    def make_compiled(recipe: Recipe) -> nn.Module:
        network = make(recipe)
        network.compile(dynamic=False)
        return network

    torch._dynamo.config.recompile_limit = 64
    with (
        torch._inductor.config.patch(deterministic=True),
        mock.patch.object(Recipe, "make_network", make_compiled),
    ):
        yield


def digest_in_child(device: str, size: int) -> str:
    """Return the digest of three epochs with compiled networks, computed by a fresh process."""
    with TemporaryDirectory() as cache:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.compiled", device, str(size)],
            cwd=ROOT,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout


def digest(device: str, size: int) -> str:
    """Return the digest of the tensors of a network that trained for three epochs, and of its predictions."""
    recipe = replace(paper_recipe("bfloat16"), device=device)
    with compiled():
        found = epochs(noise_site("A", 64, size), recipe)
    return hashlib.sha256(b"".join(found)).hexdigest()


if __name__ == "__main__":
    print(digest(sys.argv[1], int(sys.argv[2])))
