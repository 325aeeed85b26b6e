"""The retrogress meter: the effect of each communication on each network at each site."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from scipy import stats

from prrfl.reports.uncertainty import LEVEL, seed_interval
from prrfl.types import ClientId, RoundRecord, ScoreRecord

Outcome = Literal["no fall", "back", "not back", "last round", "not followed"]
"""What followed a communication. The last two are unknown: no local epoch follows, or none is scored."""


@dataclass(frozen=True)
class Drop:
    """One communication at one site.

    Attributes:
        round: index of the communication round.
        model: name of the network; ``deployed`` tells whether it is the one that the site uses.
        f1_before: macro-F1 on the test set just before the mean was received; ``f1_after`` just after it.
        auc_before: macro AUC before; ``auc_after`` after it; ``None`` if the test set has one class.
        outcome: whether the macro-F1 dropped, and whether it recovered to its former value.
        recovered_after: local epochs until it recovered; ``None`` unless the outcome is ``back``.
        followed: scored local epochs between the communication and the end of the run.
    """

    round: int
    client: ClientId
    model: str
    deployed: bool
    f1_before: float
    f1_after: float
    auc_before: float | None
    auc_after: float | None
    outcome: Outcome
    recovered_after: int | None
    followed: int

    @property
    def f1(self) -> float:
        """Drop in macro-F1; negative if the communication helped."""
        return self.f1_before - self.f1_after

    @property
    def auc(self) -> float | None:
        """Drop in AUC."""
        if self.auc_before is None or self.auc_after is None:
            return None
        return self.auc_before - self.auc_after


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


def measure(records: Iterable[RoundRecord]) -> list[Drop]:
    """Return every communication of a run, in order of time."""
    tests = [r for r in records if isinstance(r, ScoreRecord) and r.split == "test"]
    after = {(r.round, r.client, r.model): r.scores for r in tests if r.moment == "after"}
    epochs: dict[tuple[ClientId, str], list[tuple[int, float]]] = {}
    for r in tests:
        if r.moment == "epoch":
            epochs.setdefault((r.client, r.model), []).append((r.round, r.scores.macro_f1))
    drops = []
    for r in tests:
        now = after.get((r.round, r.client, r.model))
        if r.moment == "before" and now is not None:
            followed = epochs.get((r.client, r.model), [])
            later = [f1 for index, f1 in followed if index > r.round]
            back = next((k for k, f1 in enumerate(later, 1) if f1 >= r.scores.macro_f1), None)
            outcome: Outcome
            if now.macro_f1 >= r.scores.macro_f1:
                outcome, back = "no fall", None
            elif not followed:
                outcome = "not followed"
            elif not later:
                outcome = "last round"
            else:
                outcome = "not back" if back is None else "back"
            drops.append(
                Drop(
                    round=r.round,
                    client=r.client,
                    model=r.model,
                    deployed=r.deployed,
                    f1_before=r.scores.macro_f1,
                    f1_after=now.macro_f1,
                    auc_before=r.scores.auc,
                    auc_after=now.auc,
                    outcome=outcome,
                    recovered_after=back,
                    followed=len(later),
                )
            )
    return drops


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


def mean_drop(drops: Iterable[Drop], score: Literal["f1", "auc"]) -> float | None:
    """Return the mean over sites of each site's mean drop of a run; ``None`` where no site has the score.

    Sites count alike, also if some missed communications.
    """
    falls: dict[ClientId, list[float]] = {}
    for d in drops:
        fall = d.f1 if score == "f1" else d.auc
        if fall is not None:
            falls.setdefault(d.client, []).append(fall)
    return fmean(map(fmean, falls.values())) if falls else None


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
