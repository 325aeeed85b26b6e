"""The retrogress meter: what each communication did to each network at each site."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from prrfl.types import ClientId, RoundRecord, ScoreRecord


@dataclass(frozen=True)
class Drop:
    """One communication at one site.

    Attributes:
        round: index of the communication round.
        model: the network's name; ``deployed`` tells whether it is the one that the hospital uses.
        f1_before: macro-F1 on the test set just before the aggregate was received, and ``f1_after`` after.
        auc_before: macro AUC before, and ``auc_after`` after; ``None`` where the test set has one class.
        recovered_after: local epochs until the macro-F1 was back at what it was before; 0 where it did not
            fall, ``None`` where the run ended first or the network is not the deployed one.
    """

    round: int
    client: ClientId
    model: str
    deployed: bool
    f1_before: float
    f1_after: float
    auc_before: float | None
    auc_after: float | None
    recovered_after: int | None

    @property
    def f1(self) -> float:
        """The depth: fall in macro-F1; negative where the communication helped."""
        return self.f1_before - self.f1_after

    @property
    def auc(self) -> float | None:
        """The depth: fall in AUC."""
        if self.auc_before is None or self.auc_after is None:
            return None
        return self.auc_before - self.auc_after


def measure(records: Iterable[RoundRecord]) -> list[Drop]:
    """Return every communication of a run, in order of time."""
    tests = [r for r in records if isinstance(r, ScoreRecord) and r.split == "test"]
    after = {(r.round, r.client, r.model): r.scores for r in tests if r.moment == "after"}
    epochs: dict[ClientId, list[tuple[int, float]]] = {}
    for r in tests:
        if r.moment == "epoch":
            epochs.setdefault(r.client, []).append((r.round, r.scores.macro_f1))
    drops = []
    for r in tests:
        then = after.get((r.round, r.client, r.model))
        if r.moment == "before" and then is not None:
            before, now = r.scores, then
            later = [f1 for index, f1 in epochs.get(r.client, []) if index > r.round]
            curve = [now.macro_f1, *(later if r.deployed else [])]
            back = next((k for k, f1 in enumerate(curve) if f1 >= before.macro_f1), None)
            drops.append(
                Drop(
                    round=r.round,
                    client=r.client,
                    model=r.model,
                    deployed=r.deployed,
                    f1_before=before.macro_f1,
                    f1_after=now.macro_f1,
                    auc_before=before.auc,
                    auc_after=now.auc,
                    recovered_after=back,
                )
            )
    return drops


def worst_site(drops: Sequence[Drop]) -> ClientId:
    """Return the site whose macro-F1 falls most at a communication, in the mean over rounds."""
    return max(
        sorted({d.client for d in drops}), key=lambda client: fmean(d.f1 for d in drops if d.client == client)
    )
