"""The verdict on a run or a comparison: does it help, at which site, how sure are we, what is not shown?

Its rules are in :data:`RULES`, which the page shows too. The numbers are those of the tables; those of
single sites, which the tables lack, are in :mod:`prrfl.reports.site_tests`. See docs/statistics.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from prrfl.reports.card import FEW
from prrfl.reports.comparison import ALWAYS, NO_SPREAD, TOO_FEW, Estimate, FinishedRun, Row
from prrfl.reports.glossary import spoken
from prrfl.reports.site_tests import ONE_SEED, Against, site_tests
from prrfl.reports.statistics import group_indices
from prrfl.types import ClientId, Predictions

HARDLY = 0.25
"""A class is hardly found if at most this share of its images is."""


RULES = (
    "▲ Told apart and higher: the p of the difference in macro-F1 is below 0.05, corrected for all tests of "
    "its table (Holm).",
    "▼ Told apart and lower: the same, with a lower score.",
    "○ Not told apart: p is 0.05 or more. This is no proof that the two are equal.",
    f"– No test: {TOO_FEW}, differences that are {NO_SPREAD}, or one seed.",
    "p covers other test images and other training runs, by lesion or patient where these are known. With "
    "one seed, a network is only compared with always giving the most frequent class, and p covers other "
    "test images for this very network. Methods are not tested then, because another training might turn "
    "the order round.",
    f"A class is hardly found if at most {100 * HARDLY:.0f} % of its test images are. Fewer than {FEW} test "
    "images of a class are few.",
    "The lowest site is the one with the lowest score here; whether it is truly the lowest is not tested.",
)


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


def compared_verdict(
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
    tests = site_tests(runs, method, others)
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
            "nor tests can be made.",
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
            "Two seeds: the spread of training runs is known from one difference, so only large "
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
