"""The verdict on a run or a comparison: does it help, at which site, how sure are we, what is not shown?

Its rules are in :data:`RULES`, which the page shows too. The numbers are those of the tables; tests at single
sites, which the tables lack, are here. See docs/statistics.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np

from prrfl.reports.comparison import NO_SPREAD, TOO_FEW, Estimate, FinishedRun, Row, majority
from prrfl.reports.glossary import spoken
from prrfl.reports.sampled import GroupedImages, blocks
from prrfl.reports.statistics import Floats, f1_of, group_indices, resampled_confusions
from prrfl.reports.uncertainty import FEWEST_GROUPS, LEVEL, holm, paired_p, variance
from prrfl.types import ClientId, Predictions

FEW = 30
"""Fewer test images of a class than this are few."""

HARDLY = 0.25
"""A class is hardly found if at most this share of its images is."""

ALWAYS = "always the most frequent class"
ONE_SEED = "one seed"

DRAWS = 2000
"""Bootstrap samples of a site's test images."""

Outcome = Literal["above", "not told apart", "below", "no test"]

SYMBOLS: Mapping[Outcome, str] = {"above": "▲", "not told apart": "○", "below": "▼", "no test": "–"}

RULES = (
    "▲ Told apart and higher: the p of the difference in macro-F1 is below 0.05, corrected for all tests of "
    "its table (Holm).",
    "▼ Told apart and lower: the same, with a lower score.",
    "○ Not told apart: p is 0.05 or more. This is no proof that the two are equal.",
    f"– No test: {TOO_FEW}, differences that are {NO_SPREAD}, or one seed.",
    "p covers other test images and other trainings, by lesion or patient where these are known. With one "
    "seed, a network is only compared with always giving the most frequent class, and p covers other "
    "test images for this very network. Methods are not tested then, because another training might turn "
    "the order round.",
    f"A class is hardly found if at most {100 * HARDLY:.0f} % of its test images are. Fewer than {FEW} test "
    "images of a class are few.",
    "The lowest site is the one with the lowest score here; whether it is truly the lowest is not tested.",
)


@dataclass(frozen=True)
class Against:
    """A test of a score against that of another answer to the same images.

    Attributes:
        difference: own macro-F1 minus the other's, mean over the seeds of both.
        p: corrected; ``None`` without a test.
        trainings: whether p covers other trainings, or only other test images.
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
    def outcome(self) -> Outcome:
        """What the rules call it."""
        if self.p is None:
            return "no test"
        if self.p >= LEVEL:
            return "not told apart"
        return "above" if self.difference > 0 else "below"


@dataclass(frozen=True)
class SiteVerdict:
    """A site's score, beside those of other answers, each with its test.

    Attributes:
        images: number of test images.
        lesions: number of lesions or patients in them; ``None`` if they are unknown.
        others: scores of the other answers, by name.
    """

    site: ClientId
    images: int
    lesions: int | None
    score: Estimate
    others: Mapping[str, Estimate]
    tests: Sequence[Against]


@dataclass(frozen=True)
class Hardly:
    """A class that a site's network hardly finds.

    Attributes:
        found: smallest and largest number over seeds of its images that are classified correctly.
        images: number of its test images.
    """

    site: ClientId
    label: str
    found: tuple[int, int]
    images: int

    @property
    def text(self) -> str:
        """The fact in words."""
        few, most = self.found
        count = str(few) if few == most else f"{few} to {most}"
        return f"{self.site}: finds {count} of {self.images} {spoken(self.label)}"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one method.

    Attributes:
        mean: macro-F1, mean of sites.
        sites: the lowest score first.
        overall: tests of the mean of sites.
        hardly: classes that are hardly found.
        cautions: what else speaks against relying on the scores, and what they do not show.
    """

    method: str
    seeds: Sequence[int]
    mean: Estimate
    sites: Sequence[SiteVerdict]
    overall: Sequence[Against] = ()
    hardly: Sequence[Hardly] = ()
    cautions: Sequence[str] = ()

    @property
    def spread(self) -> float:
        """Highest minus lowest score of a site."""
        scores = [one.score.mean for one in self.sites if one.score.mean is not None]
        return max(scores) - min(scores)


@dataclass(frozen=True)
class Recorded:
    """What the server of a federation knows about a site.

    Attributes:
        confusion: rows are true classes, columns predicted ones.
    """

    macro_f1: float
    confusion: Sequence[Sequence[int]]


def verdict(
    runs: Sequence[FinishedRun],
    rows: Sequence[Row],
    method: str,
    baseline: str,
    classes: Sequence[str],
) -> Verdict:
    """Return the verdict on a method.

    Args:
        runs: all runs of the comparison, or the only one.
        rows: the comparison of them, with the method as reference.
        method: its name.
        baseline: the method that trains each site alone. It need not be among the runs.
        classes: names of the labels.
    """
    of = {row.method: row for row in rows}
    own = [run for run in runs if run.method == method]
    sites = list(own[0].predictions)
    others = [name for name in (baseline, ALWAYS) if name in of and name != method]
    tests = _tests(runs, method, others)
    found = [
        SiteVerdict(
            site,
            images=len(own[0].predictions[site].labels),
            lesions=_lesions(own[0].predictions[site]),
            score=of[method].f1[site],
            others={name: of[name].f1[site] for name in others},
            tests=[tests[name, site] for name in others],
        )
        for site in sites
    ]
    overall = [_overall(of[name], tests[name, "mean"], method) for name in others]
    seeds = sorted(run.seed for run in own)
    counts = {
        site: p.labels.bincount(minlength=len(classes)).tolist() for site, p in own[0].predictions.items()
    }
    return Verdict(
        method=method,
        seeds=seeds,
        mean=of[method].f1["mean"],
        sites=sorted(found, key=lambda one: one.score.mean or 0.0),
        overall=overall,
        hardly=[one for site in sites for one in _hardly(site, [r.predictions[site] for r in own], classes)],
        cautions=[*_of_training(seeds), *_of_images(counts, classes), *_of_lesions(found)],
    )


def recorded_verdict(
    method: str, seed: int, sites: Mapping[ClientId, Recorded], classes: Sequence[str]
) -> Verdict:
    """Return the verdict on a federation's method: predictions stay at the sites, so there are no intervals.

    Args:
        method: its name.
        seed: the run's seed.
        sites: what the server knows about each.
        classes: names of the labels.
    """
    found = [
        SiteVerdict(
            site,
            images=int(np.sum(one.confusion)),
            lesions=None,
            score=Estimate(one.macro_f1),
            others={},
            tests=(),
        )
        for site, one in sites.items()
    ]
    counts = {site: [sum(row) for row in one.confusion] for site, one in sites.items()}
    hardly = [
        one
        for site, recorded in sites.items()
        for k, row in enumerate(recorded.confusion)
        if (one := _if_hardly(site, classes[k], [row[k]], sum(row)))
    ]
    return Verdict(
        method=method,
        seeds=[seed],
        mean=Estimate(fmean(one.macro_f1 for one in sites.values())),
        sites=sorted(found, key=lambda one: one.score.mean or 0.0),
        hardly=hardly,
        cautions=[
            "Predictions stay at the sites. The server has scores and counts, from which neither intervals "
            "nor tests can be made; each site can make its own with `prrfl evaluate`.",
            *_of_training([seed]),
            *_of_images(counts, classes),
        ],
    )


def _overall(row: Row, own: Against, method: str) -> Against:
    """Return the test of the mean of sites against another answer: that of the table where there is one."""
    test = row.tests.get("f1")
    if test is None or test.against != method or test.difference.mean is None:
        return own
    interval = test.interval and (-test.interval[1], -test.interval[0])
    p = row.p.get("f1")
    reason = "" if p is not None else ONE_SEED if test.common == 1 else test.difference.reason or NO_SPREAD
    return Against(row.method, -test.difference.mean, p, p is not None, reason, interval, test.detectable)


def _tests(
    runs: Sequence[FinishedRun], method: str, others: Sequence[str]
) -> dict[tuple[str, ClientId], Against]:
    """Return tests of a method's macro-F1 against other answers, at each site and in their mean."""
    own = {run.seed: run.predictions for run in runs if run.method == method}
    always = majority(runs) if ALWAYS in others else {}
    images = {site: GroupedImages.of(p) for site, p in sorted(next(iter(own.values())).items())}
    found = {}
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
            found[name, site] = _against(name, of_site, rarest[site], single=name == ALWAYS)
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


def _against(name: str, pairs: Floats, rarest: int, single: bool) -> Against:
    """Return a test, not yet corrected.

    Args:
        name: of the other answer.
        pairs: (S, 1 + B) differences of each seed.
        rarest: number of lesions or patients of the rarest class.
        single: whether one seed is enough, for a test over images alone.
    """
    mean = float(pairs[:, 0].mean())
    if rarest < FEWEST_GROUPS:
        return Against(name, mean, None, reason=TOO_FEW)
    if len(pairs) == 1:
        if not single:
            return Against(name, mean, None, reason=ONE_SEED)
        return Against(name, mean, paired_p(pairs[0, 1:]))
    spread = variance(pairs, rarest)
    p = spread.p(mean) if spread else None
    return Against(name, mean, p, trainings=True, reason="" if p is not None else NO_SPREAD)


def _corrected(tests: Mapping[tuple[str, ClientId], Against]) -> dict[tuple[str, ClientId], Against]:
    known = {key: test.p for key, test in tests.items() if test.p is not None}
    p = dict(zip(known, holm(list(known.values())), strict=True))
    return {key: replace(test, p=p.get(key)) for key, test in tests.items()}


def _lesions(predictions: Predictions) -> int | None:
    if not any(group is not None for group in predictions.groups):
        return None
    return int(group_indices(predictions).max()) + 1


def _hardly(site: ClientId, seeds: Sequence[Predictions], classes: Sequence[str]) -> list[Hardly]:
    """Return the classes that a site's networks hardly find."""
    labels = seeds[0].labels
    right = [p.probabilities.argmax(1) == labels for p in seeds]
    found = [
        _if_hardly(site, name, [int((of & (labels == k)).sum()) for of in right], int((labels == k).sum()))
        for k, name in enumerate(classes)
    ]
    return [one for one in found if one]


def _if_hardly(site: ClientId, label: str, found: Sequence[int], images: int) -> Hardly | None:
    if not images or fmean(found) > HARDLY * images:
        return None
    return Hardly(site, label, (min(found), max(found)), images)


def _of_training(seeds: Sequence[int]) -> list[str]:
    if len(seeds) > 2:
        return []
    if len(seeds) == 2:
        return [
            "Two seeds: the spread of trainings is known from one difference, so only large "
            "differences are found."
        ]
    return [
        f"One training (seed {seeds[0]}). Another one would give other scores. How different they would "
        "be is not known, and whether the method is better than another one is not tested."
    ]


def _of_images(counts: Mapping[ClientId, Sequence[int]], classes: Sequence[str]) -> list[str]:
    """Return which classes have no or few test images, and where."""
    few: list[str] = []
    for k, name in enumerate(classes):
        at = [f"{site} {of[k]}" for site, of in counts.items() if of[k] < FEW]
        if len(at) == len(counts) > 1:
            numbers = [of[k] for of in counts.values()]
            few.append(f"{spoken(name)}: {min(numbers)} to {max(numbers)} at every site")
        elif at:
            few.append(f"{spoken(name)}: {', '.join(at)}")
    cautions = [f"Few test images, under {FEW} of a class: {'; '.join(few)}."] if few else []
    return [
        *cautions,
        "All test images are from the sites that trained. Nothing is shown about other hospitals or devices.",
    ]


def _of_lesions(sites: Sequence[SiteVerdict]) -> list[str]:
    unknown = [one.site for one in sites if one.lesions is None]
    if not unknown:
        return []
    return [
        "It is not known which images show the same lesion or patient"
        + ("" if len(unknown) == len(sites) else f" at {', '.join(unknown)}")
        + ". Each image counts as one of its own; if some belong together, intervals are too narrow."
    ]


@dataclass(frozen=True)
class Answer:
    """The answer to a question that readers bring.

    Attributes:
        outcome: for the symbol; ``None`` without one.
    """

    question: str
    text: str
    outcome: Outcome | None = None


def answers(verdict: Verdict) -> list[Answer]:
    """Return the verdict in words."""
    found = [
        Answer(f"Is it better than {_said(test.other)}?", _compared(verdict.method, test), test.outcome)
        for test in verdict.overall
    ]
    lowest, highest = verdict.sites[0], verdict.sites[-1]
    for name in dict.fromkeys(test.other for one in verdict.sites for test in one.tests):
        if len(verdict.sites) > 1:
            found.append(Answer(f"At which site, against {_said(name)}?", _where(verdict, name)))
    if len(verdict.sites) > 1:
        found.append(
            Answer(
                "How much do sites differ?",
                f"Lowest {lowest.site} with {_score(lowest.score)}, highest {highest.site} with "
                f"{_score(highest.score)}: {100 * verdict.spread:.1f} points apart.",
            )
        )
    return found


def _said(name: str) -> str:
    return "always giving the most frequent class" if name == ALWAYS else name


def _score(e: Estimate) -> str:
    """Return a score with its widest interval, in words."""
    if e.mean is None:
        return "no score"
    ends = e.interval or e.images
    return f"{100 * e.mean:.1f} %" + (f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else "")


def _compared(method: str, test: Against) -> str:
    """Return the outcome of the test of the mean of sites in words."""
    size = f"macro-F1 {100 * test.difference:+.1f} points"
    ends = test.interval
    if ends:
        size += f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})"
    p = "" if test.p is None else f", p {'< 0.001' if test.p < 0.001 else f'= {test.p:.3f}'}"
    over = "" if test.trainings else ", for these very networks on other test images"
    match test.outcome:
        case "above":
            return f"{method} is told apart and higher, in the mean of sites: {size}{p}{over}."
        case "below":
            return f"{method} is worse, in the mean of sites: {size}{p}{over}."
        case "not told apart":
            unseen = (
                f" A difference of {100 * test.detectable:.1f} points would probably have been found."
                if test.detectable
                else ""
            )
            return (
                f"Not told apart, in the mean of sites: {size}{p}{over}. This does not mean that they are "
                f"equal.{unseen}"
            )
        case _:
            if np.isnan(test.difference):
                return f"There is no test: {test.reason}."
            return f"There is no test ({test.reason}). Here the difference is {size}."


def _where(verdict: Verdict, name: str) -> str:
    """Return at which sites the method is higher, lower or not told apart."""
    by_outcome: dict[Outcome, list[str]] = {}
    for one in verdict.sites:
        for test in one.tests:
            if test.other == name:
                by_outcome.setdefault(test.outcome, []).append(one.site)
    words: dict[Outcome, str] = {
        "above": "higher",
        "below": "lower",
        "not told apart": "not told apart",
        "no test": "no test",
    }
    if len(by_outcome) == 1 and "no test" in by_outcome:
        reasons = dict.fromkeys(t.reason for one in verdict.sites for t in one.tests if t.other == name)
        return f"{SYMBOLS['no test']} no test at any site: {'; '.join(reasons)}."
    return (
        "; ".join(
            f"{SYMBOLS[outcome]} {words[outcome]} at {len(by_outcome[outcome])} of {len(verdict.sites)}: "
            f"{', '.join(by_outcome[outcome])}"
            for outcome in words
            if outcome in by_outcome
        )
        + "."
    )
