"""The retrogress meter: the effect of each communication on each network at each site."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from prrfl.reports.statistics import seed_interval
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
        epochs: mean number of local epochs over the drops that recovered; ``None`` if none did.
        back: number of drops that recovered before the end of the run.
        falls: number of drops.
    """

    epochs: float | None
    back: int
    falls: int


@dataclass(frozen=True)
class SiteDrop:
    """Drops in macro-F1 at one site.

    Attributes:
        mean: mean over seeds of the mean over communications.
        largest: largest of all communications.
        seeds: half the 95 % t-interval of the mean over seeds; ``None`` for a single seed.
    """

    mean: float
    largest: float
    seeds: float | None = None


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
                )
            )
    return drops


def recovery(drops: Iterable[Drop]) -> Recovery:
    """Return how drops ended, without drops after which nothing is known."""
    outcomes = [d for d in drops if d.outcome in ("back", "not back")]
    epochs = [d.recovered_after for d in outcomes if d.recovered_after is not None]
    return Recovery(fmean(epochs) if epochs else None, len(epochs), len(outcomes))


def by_site(seeds: Iterable[Iterable[Drop]]) -> dict[ClientId, SiteDrop]:
    """Return the mean and the largest drop in macro-F1 of each site, from the drops of one run per seed."""
    falls: dict[ClientId, list[list[float]]] = {}
    for drops in seeds:
        of_seed: dict[ClientId, list[float]] = {}
        for d in drops:
            of_seed.setdefault(d.client, []).append(d.f1)
        for client, found in of_seed.items():
            falls.setdefault(client, []).append(found)
    return {client: _site_drop(found) for client, found in sorted(falls.items())}


def _site_drop(seeds: Sequence[Sequence[float]]) -> SiteDrop:
    means = [fmean(falls) for falls in seeds]
    return SiteDrop(fmean(means), max(map(max, seeds)), seed_interval(means))
