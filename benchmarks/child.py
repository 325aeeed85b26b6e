"""What must be measured in a process of its own: the peak of memory, and the time from the very start."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]


def in_child(task: str, *arguments: object) -> float:
    """Run one of the tasks below in a fresh process and return its number."""
    command = [sys.executable, "-m", "benchmarks.child", task, repr(time.time()), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{task}{arguments} ended with code {done.returncode}:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def first_step(started: float, folder: str, threads: str) -> float:
    """Return the seconds from the start of this process to the first loss of training."""
    import torch

    from prrfl import PRRFL, InProcess, Recipe, run_rounds, vgg16_slim
    from prrfl.data.augment import Augmentation
    from prrfl.data.layout import CLASSES
    from prrfl.data.sources import load_sites
    from prrfl.losses import CrossEntropy
    from prrfl.types import Tensors

    class FirstStepError(Exception):
        pass

    class Stop(CrossEntropy):
        def __call__(self, logits: torch.Tensor, labels: torch.Tensor, constants: Tensors) -> torch.Tensor:
            raise FirstStepError

    torch.set_num_threads(int(threads))
    recipe = Recipe(vgg16_slim(), augment=Augmentation(), loss=Stop())
    sites = load_sites(Path(folder), image_size=64, classes=CLASSES)
    try:
        engine = InProcess(PRRFL(), sites, recipe)
        list(run_rounds(PRRFL(), engine, rounds=1, epochs=2, network=recipe.network))
    except FirstStepError:
        return time.time() - started
    raise RuntimeError("training never took a step")


def server(_: float, sites: str, threads: str) -> float:
    """Return the MiB that the mean of so many shares adds to the process, each share made and forgotten."""
    import torch

    from benchmarks.workload import paper_recipe
    from prrfl.algorithms.base import MeanOfShares
    from prrfl.pfa import low_band_amplitudes
    from prrfl.tensors import norm_keys
    from prrfl.types import Share

    torch.set_num_threads(int(threads))
    network = paper_recipe().network
    layout = low_band_amplitudes(network.state_dict(), 0.95, norm_keys(network))
    before = held_mib("VmRSS")
    aggregator = MeanOfShares()
    for index in range(int(sites)):
        share = {key: torch.full_like(tensor, float(index)) for key, tensor in layout.items()}
        aggregator.add(f"site{index}", Share(share))
    aggregator.result()
    return held_mib("VmHWM") - before


def simulation(_: float, sites: str, resting: str, threads: str) -> float:
    """Return the peak MiB of one round of so many tiny sites, their states in memory or on disk."""
    import torch

    from benchmarks.workload import paper_recipe, tiny_sites
    from prrfl import PRRFL, InProcess, run_rounds

    torch.set_num_threads(int(threads))
    recipe = paper_recipe()
    with TemporaryDirectory() as scratch:
        place = Path(scratch) if resting == "on disk" else None
        engine = InProcess(PRRFL(), tiny_sites(int(sites)), recipe, rest_in=place)
        for _record in run_rounds(PRRFL(), engine, rounds=1, epochs=1, network=recipe.network):
            pass
        return held_mib("VmHWM")


def held_mib(which: str) -> float:
    """Return the memory that this process holds now (``VmRSS``), or the most that it has held (``VmHWM``)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux inherits ru_maxrss from the parent process; these values start at zero.
        return int(status.read_text().split(f"{which}:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    task, started, *arguments = sys.argv[1:]
    tasks: dict[str, Callable[..., float]] = {
        "first_step": first_step,
        "server": server,
        "simulation": simulation,
    }
    print(tasks[task](float(started), *arguments))
