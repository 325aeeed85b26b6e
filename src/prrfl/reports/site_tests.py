"""Tests of a method against other answers to the same images, at each site; see docs/statistics.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from prrfl.reports.assessment import DRAWS
from prrfl.reports.comparison import ALWAYS, NO_SPREAD, TOO_FEW, FinishedRun, majority
from prrfl.reports.sampled import GroupedImages, blocks
from prrfl.reports.statistics import Floats, f1_of, resampled_confusions
from prrfl.reports.uncertainty import FEWEST_GROUPS, LEVEL, holm, paired_p, variance
from prrfl.types import ClientId, Predictions

ONE_SEED = "one seed"

Ruling = Literal["above", "not told apart", "below", "no test"]

SYMBOLS: Mapping[Ruling, str] = {"above": "▲", "not told apart": "○", "below": "▼", "no test": "–"}


@dataclass(frozen=True)
class Against:
    """A test of a score against that of another answer to the same images.

    Attributes:
        difference: own macro-F1 minus the other's, mean over the seeds of both.
        p: corrected; ``None`` without a test.
        trainings: whether p covers other training runs, or only other test images.
        reason: why there is no test; empty if there is one.
        interval: of the difference, if known.
        detectable: difference that the test would find with a probability of 80 %, if known.
    """

    other: str
    difference: float
    p: float | None
    trainings: bool = False
    reason: str = ""
    interval: tuple[float, float] | None = None
    detectable: float | None = None

    @property
    def outcome(self) -> Ruling:
        """What the rules call it."""
        if self.p is None:
            return "no test"
        if self.p >= LEVEL:
            return "not told apart"
        return "above" if self.difference > 0 else "below"


def site_tests(
    runs: Sequence[FinishedRun], method: str, others: Sequence[str]
) -> dict[tuple[str, ClientId], Against]:
    """Return tests of a method's macro-F1 against other answers, at each site and in their mean."""
    own = {run.seed: run.predictions for run in runs if run.method == method}
    always = majority(runs) if ALWAYS in others else {}
    images = {site: GroupedImages.of(p) for site, p in sorted(next(iter(own.values())).items())}
    found: dict[tuple[str, ClientId], Against] = {}
    for name in others:
        theirs = (
            dict.fromkeys(own, always)
            if name == ALWAYS
            else {run.seed: run.predictions for run in runs if run.method == name}
        )
        common = sorted(own.keys() & theirs.keys())
        if not common:
            reason = "no seed in common"
            found |= {
                (name, site): Against(name, float("nan"), None, reason=reason) for site in (*images, "mean")
            }
            continue
        rng = np.random.default_rng(0)
        pairs = {
            site: _differences(
                tests, [own[seed][site] for seed in common], [theirs[seed][site] for seed in common], rng
            )
            for site, tests in images.items()
        }
        rarest = {site: _rarest(tests) for site, tests in images.items()}
        pairs["mean"] = np.mean(list(pairs.values()), axis=0)
        rarest["mean"] = sum(rarest.values())
        for site, of_site in pairs.items():
            found[name, site] = _against(name, of_site, rarest[site])
    return _corrected(found)


def _rarest(tests: GroupedImages) -> int:
    """Return the number of lesions or patients of the class that has the fewest."""
    return min(tests.groups_of(tests.labels == k) for k in np.unique(tests.labels))


def _differences(
    tests: GroupedImages, ours: Sequence[Predictions], theirs: Sequence[Predictions], rng: np.random.Generator
) -> Floats:
    """Return the differences in macro-F1, (S, 1 + B): on the test images, then on samples of them."""
    answers = [[p.probabilities.numpy().argmax(1) for p in of] for of in (ours, theirs)]
    parts = [
        [
            f1_of(resampled_confusions(counts, tests.labels, mine, tests.classes))
            - f1_of(resampled_confusions(counts, tests.labels, other, tests.classes))
            for mine, other in zip(*answers, strict=True)
        ]
        for counts in blocks(tests.groups, DRAWS, rng)
    ]
    return np.concatenate(parts, axis=1)


def _against(name: str, pairs: Floats, rarest: int) -> Against:
    """Return a test, not yet corrected.

    Args:
        name: of the other answer.
        pairs: (S, 1 + B) differences of each seed.
        rarest: number of lesions or patients of the rarest class.
    """
    mean = float(pairs[:, 0].mean())
    if rarest < FEWEST_GROUPS:
        return Against(name, mean, None, reason=TOO_FEW)
    if len(pairs) == 1:
        if name != ALWAYS:  # which needs no training: for it a test over images alone is enough
            return Against(name, mean, None, reason=ONE_SEED)
        return Against(name, mean, paired_p(pairs[0, 1:]))
    spread = variance(pairs, rarest)
    p = spread.p(mean) if spread else None
    return Against(name, mean, p, trainings=True, reason="" if p is not None else NO_SPREAD)


def _corrected(tests: Mapping[tuple[str, ClientId], Against]) -> dict[tuple[str, ClientId], Against]:
    p = holm({key: test.p for key, test in tests.items()})
    return {key: replace(test, p=p.get(key)) for key, test in tests.items()}
