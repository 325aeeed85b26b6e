"""Drops at communications over several runs: how they ended, and how large they are at each site."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from prrfl.reports.meter import Drop
from prrfl.reports.uncertainty import LEVEL, seed_interval
from prrfl.types import ClientId


@dataclass(frozen=True)
class Recovery:
    """Recovery from drops in macro-F1, as far as it is known.

    Attributes:
        epochs: local epochs after which half of the drops have recovered, with those that had not recovered
            by the end of their run as censored (Kaplan and Meier, 1958); ``None`` if fewer than half did.
        longest: local epochs that the longest followed drop was followed for.
        back: number of drops that recovered before the end of the run.
        falls: number of drops.
    """

    epochs: float | None
    longest: int
    back: int
    falls: int


@dataclass(frozen=True)
class SiteDrop:
    """Drops in macro-F1 at one site.

    Attributes:
        mean: mean over seeds of the mean over communications.
        largest: largest of all communications.
        seeds: half the 95 % t-interval of the mean over seeds; ``None`` for a single seed.
        certain: whether the interval of the mean excludes 0, at a level corrected for the number of sites;
            never for a single seed.
    """

    mean: float
    largest: float
    seeds: float | None = None
    certain: bool = False


def recovery(drops: Iterable[Drop]) -> Recovery:
    """Return how drops ended, without drops after which nothing is known."""
    known = [d for d in drops if d.outcome in ("back", "not back")]
    back = [d.recovered_after for d in known if d.recovered_after is not None]
    lost = [d.followed for d in known if d.recovered_after is None]
    longest = max((d.followed for d in known), default=0)
    if not back:
        return Recovery(None, longest, 0, len(known))
    still_low = stats.ecdf(stats.CensoredData(uncensored=back, right=lost)).sf
    half = [
        epoch
        for epoch, share in zip(still_low.quantiles, still_low.probabilities, strict=True)
        if share <= 0.5
    ]
    return Recovery(float(half[0]) if half else None, longest, len(back), len(known))


def by_site(seeds: Iterable[Iterable[Drop]]) -> dict[ClientId, SiteDrop]:
    """Return the mean and the largest drop in macro-F1 of each site, from the drops of one run per seed."""
    falls: dict[ClientId, list[list[float]]] = {}
    for drops in seeds:
        of_seed: dict[ClientId, list[float]] = {}
        for d in drops:
            of_seed.setdefault(d.client, []).append(d.f1)
        for client, found in of_seed.items():
            falls.setdefault(client, []).append(found)
    return {client: _site_drop(found, len(falls)) for client, found in sorted(falls.items())}


def _site_drop(seeds: Sequence[Sequence[float]], sites: int) -> SiteDrop:
    means = [fmean(falls) for falls in seeds]
    mean, largest = fmean(means), max(map(max, seeds))
    corrected = seed_interval(means, LEVEL / sites)  # the worst site is chosen among all
    return SiteDrop(mean, largest, seed_interval(means), corrected is not None and abs(mean) > corrected)
