"""How time grows with image size, number of sites and network; and how soon training begins."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.child import in_child
from benchmarks.epochs import det_epoch
from benchmarks.figures import Figure, Settings, absolute
from benchmarks.paper_form import Plan
from benchmarks.rounds import package
from benchmarks.workload import SITES, noise_site, paper_recipe, tiny_sites
from prrfl.data.synthetic import GeneratedData, write_generated


def measure_sizes(settings: Settings) -> Iterator[Figure]:
    """Seconds over image size, network and number of sites."""
    images, repeats = settings.pick(32, 8), settings.pick(3, 1)
    by_size = {f"{size} px": epoch(images, size) for size in settings.pick((32, 64, 128), (32,))}
    yield from absolute(settings.in_turns(by_size, repeats), f"DET epoch, {images} images, vgg16_slim, ")
    size = settings.pick(64, 32)
    by_network = {network: epoch(images, size, network) for network in ("vgg16_slim", "resnet50")}
    yield from absolute(settings.in_turns(by_network, repeats), f"DET epoch, {images} images, {size} px, ")
    for n in settings.pick((4, 16, 64, 256), (4, 16)):
        taken = settings.stopwatch(
            partial(next, package(tiny_sites(n), Plan(paper_recipe(), 32, 1, 1)).rounds)
        )
        yield Figure(f"round of {n} sites of 8 images, 32 px", taken, "s (this run)")
        yield Figure(f"round of {n} sites of 8 images, 32 px, a site", 1000 * taken / n, "ms (this run)")


def epoch(images: int, size: int, network: str = "vgg16_slim") -> Callable[[], None]:
    """Return a call that runs one DET epoch."""
    return partial(det_epoch, noise_site("site", images, size), paper_recipe(network=network))


def measure_start(settings: Settings) -> Iterator[Figure]:
    """Seconds from the start of a process to its first training step."""
    with TemporaryDirectory() as scratch:
        folder = write_generated(GeneratedData(sites=SITES), Path(scratch) / "generated")
        taken = [in_child("first_step", folder, settings.threads) for _ in range(settings.pick(3, 1))]
    yield Figure("process start to first training step, 960 images", statistics.median(taken), "s (this run)")
