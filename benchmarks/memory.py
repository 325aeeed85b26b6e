"""The most memory that a server and a simulation hold, over the number of sites."""

from collections.abc import Iterator

from benchmarks.child import in_child
from benchmarks.figures import Figure, Settings


def measure_memory(settings: Settings) -> Iterator[Figure]:
    """MiB of aggregating shares that come one by one, and of simulating tiny sites."""
    for n in settings.pick((4, 64, 1000), (4, 16)):
        mib = in_child("server", n, settings.threads)
        yield Figure(f"server: mean of {n} shares of vgg16_slim, r = 0.95", mib, "MiB more")
    for resting in ("in memory", "on disk"):
        for n in settings.pick((16, 64, 256), (4, 8)):
            mib = in_child("simulation", n, resting, settings.threads)
            yield Figure(f"simulation: {n} sites, states {resting}", mib, "MiB at peak")
