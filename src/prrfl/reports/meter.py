"""The retrogress meter: the effect of each communication on each network at each site."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

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
