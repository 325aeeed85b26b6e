"""The scores of all runs of a comparison on the same bootstrap samples of each site's test images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prrfl.reports.statistics import (
    Floats,
    Ints,
    Ranking,
    SampleCounts,
    accuracy_influence,
    auc_influence,
    balanced_accuracy_influence,
    f1_influence,
    f1_of,
    group_indices,
    mean_of_defined,
    recalls_of,
    resampled_confusions,
    resamples,
)
from prrfl.types import ClientId, Predictions

SENSITIVE = "sensitivity_at_90_specificity"
"""Measure of a class: largest recall of a threshold that 90 % of the other classes' images stay below."""

OF_CLASS = ("recall", SENSITIVE)
"""Measures of one class, which are proportions of its images."""

OVER_SITES = ("worst_f1", "spread_f1")
"""Lowest macro-F1 of a site, and highest less lowest: measures of all sites together."""

Scorer = Callable[[Ints, Floats], float]
"""A further measure: from true classes (N,) and probabilities (N, C) to a number; NaN if it is undefined."""

FURTHER_DRAWS = 200
"""Bootstrap samples for further measures, which are computed one sample at a time."""

BLOCK = 8_000_000
"""Number of counts that are computed at a time, to bound memory."""


@dataclass(frozen=True)
class Support:
    """How many lesions or patients a score rests on.

    Attributes:
        rarest: number of those that show the class with the fewest, among the classes that the score needs.
        effective: for a proportion, number of independent ones that would make it as certain.
    """

    rarest: int
    effective: float


Bundle = Mapping[ClientId, Predictions]
"""Predictions of one run by site."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """Scores of one run, by measure and site, as in :class:`prrfl.reports.comparison.Row`.

    Attributes:
        scores: (1 + B,) on the test set itself, then on each of its bootstrap samples.
        influence: (G,) of each lesion or patient on macro-F1, AUC, accuracy and balanced accuracy.
    """

    scores: Mapping[str, Mapping[str, Floats]]
    influence: Mapping[str, Mapping[str, Floats]]


@dataclass(frozen=True, eq=False)
class GroupedImages:
    """The test images of a site, which all runs share.

    Attributes:
        labels: (N,) true classes.
        groups: (N,) lesion or patient of each image, see :func:`prrfl.reports.statistics.group_indices`.
        classes: number C of classes.
    """

    labels: Ints
    groups: Ints
    classes: int

    @classmethod
    def of(cls, predictions: Predictions) -> Self:
        """Return the test images of predictions."""
        labels = predictions.labels.numpy()
        return cls(labels, group_indices(predictions), predictions.probabilities.shape[1])

    def groups_of(self, which: NDArray[np.bool_]) -> int:
        """Return how many lesions or patients some images show."""
        return len(np.unique(self.groups[which]))


def sampled(
    images: Mapping[ClientId, GroupedImages],
    runs: Sequence[Bundle],
    draws: int,
    rng: np.random.Generator,
    further: Mapping[str, Scorer] = MappingProxyType({}),
) -> list[Sampled]:
    """Return the scores of each run on the same samples.

    Args:
        images: by site, in the order of sites.
        runs: predictions of each run.
        draws: number B of samples of each test set.
        rng: generator of random numbers.
        further: further measures by name, on fewer samples.
    """
    found: list[dict[ClientId, dict[str, Floats]]] = [{} for _ in runs]
    positives: dict[ClientId, Floats] = {}
    for site, tests in images.items():
        parts: list[list[dict[str, Floats]]] = [[] for _ in runs]
        numbers = []
        for counts in blocks(tests.groups, draws, rng):
            numbers.append(np.array([counts[:, tests.labels == k].sum(1) for k in range(tests.classes)]))
            for run, of_run in zip(runs, parts, strict=True):
                of_run.append(_scores(counts, tests.labels, run[site].probabilities.double().numpy()))
        positives[site] = np.concatenate(numbers, axis=1)
        few = list(blocks(tests.groups, min(draws, FURTHER_DRAWS), rng)) if further else []
        for run, sites, of_run in zip(runs, found, parts, strict=True):
            sites[site] = {name: np.concatenate([part[name] for part in of_run]) for name in of_run[0]}
            sites[site] |= {name: _further(scorer, few, tests, run[site]) for name, scorer in further.items()}
    return [
        Sampled(_joined(sites, positives), _influences(images, run))
        for sites, run in zip(found, runs, strict=True)
    ]


def blocks(groups: Ints, draws: int, rng: np.random.Generator) -> Iterator[SampleCounts]:
    """Yield the test set itself, so that one calculation gives scores and intervals; then its samples."""
    yield np.ones((1, len(groups)), dtype=np.float32)
    size = max(1, BLOCK // len(groups))
    for start in range(0, draws, size):
        yield resamples(groups, min(size, draws - start), rng)


def _further(scorer: Scorer, few: Sequence[SampleCounts], tests: GroupedImages, run: Predictions) -> Floats:
    """Return a further measure of each sample."""
    values = run.probabilities.double().numpy()
    rows = np.arange(len(tests.labels))
    drawn = (np.repeat(rows, counts.astype(int)) for block in few for counts in block)
    return np.array([scorer(tests.labels[chosen], values[chosen]) for chosen in drawn])


def supports(
    images: Mapping[ClientId, GroupedImages], further: Iterable[str] = ()
) -> dict[str, dict[str, Support]]:
    """Return what each score rests on, by measure and site.

    Args:
        images: by site.
        further: names of further measures.
    """
    classes = next(iter(images.values())).classes
    found = {}
    for name in ("f1", "auc", "balanced_accuracy", "accuracy", *further):
        sites = {}
        for site, tests in images.items():
            groups = [tests.groups_of(tests.labels == k) for k in np.unique(tests.labels)]
            if name != "auc" or len(groups) > 1:
                sites[site] = Support(min(groups), sum(groups))
        found[name] = _with_totals(sites)
    for name in OVER_SITES:
        found[name] = {"mean": found["f1"]["mean"]}
    for k in range(classes):
        of_class = {site: tests.groups_of(tests.labels == k) for site, tests in images.items()}
        others = {site: tests.groups_of(tests.labels != k) for site, tests in images.items()}
        shown = [site for site, groups in of_class.items() if groups]
        both = [site for site in shown if others[site]]
        found[f"recall_{k}"] = _with_totals({s: Support(of_class[s], of_class[s]) for s in shown})
        found[f"{SENSITIVE}_{k}"] = _with_totals(
            {s: Support(min(of_class[s], others[s]), of_class[s]) for s in both}
        )
    return found


def _with_totals(sites: dict[str, Support]) -> dict[str, Support]:
    """Return the support of sites with that of their mean, and of their images together."""
    if not sites:
        return {}
    rarest = sum(site.rarest for site in sites.values())
    # The variance of a mean of proportions p(1 - p) / n, for the same p.
    mean = Support(rarest, len(sites) ** 2 / sum(1 / site.effective for site in sites.values()))
    pooled = Support(rarest, sum(site.effective for site in sites.values()))
    return {**sites, "mean": mean, "pooled": pooled}


def _scores(counts: SampleCounts, labels: Ints, probabilities: Floats) -> dict[str, Floats]:
    """Return the scores of each sample of a site, by measure."""
    predicted = probabilities.argmax(1)
    classes = probabilities.shape[1]
    rankings = [Ranking.of(counts, labels == k, probabilities[:, k]) for k in range(classes)]
    confusions = resampled_confusions(counts, labels, predicted, classes)
    recalls = recalls_of(confusions)
    return {
        "f1": f1_of(confusions),
        "auc": mean_of_defined([ranking.auc() for ranking in rankings]),
        "balanced_accuracy": mean_of_defined(recalls),
        "accuracy": np.einsum("ccb->b", confusions) / confusions.sum((0, 1)),
        **{f"recall_{k}": recalls[k] for k in range(classes)},
        **{f"{SENSITIVE}_{k}": rankings[k].sensitivity() for k in range(classes)},
    }


def _joined(
    sites: Mapping[ClientId, Mapping[str, Floats]], positives: Mapping[ClientId, Floats]
) -> dict[str, dict[str, Floats]]:
    """Return scores by measure and site, with the mean of sites, and those of a class for all images."""
    names = next(iter(sites.values()))
    joined = {}
    for name in names:
        of_sites = {site: scores[name] for site, scores in sites.items()}
        joined[name] = {**of_sites, "mean": mean_of_defined(list(of_sites.values()))}
        kind, _, k = name.rpartition("_")
        if kind in OF_CLASS:
            # Where a site has a score, all its images of the class count in it.
            weights = [np.where(np.isnan(of_sites[site]), 0, positives[site][int(k)]) for site in of_sites]
            right = np.nansum([scores * w for scores, w in zip(of_sites.values(), weights, strict=True)], 0)
            with np.errstate(invalid="ignore"):
                joined[name]["pooled"] = right / np.sum(weights, axis=0)
    f1 = np.array([scores["f1"] for scores in sites.values()])
    joined["worst_f1"] = {"mean": f1.min(0)}
    joined["spread_f1"] = {"mean": f1.max(0) - f1.min(0)}
    return joined


def _influences(images: Mapping[ClientId, GroupedImages], run: Bundle) -> dict[str, dict[str, Floats]]:
    found: dict[str, dict[str, Floats]] = {
        name: {} for name in ("f1", "auc", "balanced_accuracy", "accuracy")
    }
    for site, tests in images.items():
        values = run[site].probabilities.double().numpy()
        predicted = values.argmax(1)
        found["f1"][site] = f1_influence(tests.labels, predicted, tests.groups)
        found["accuracy"][site] = accuracy_influence(tests.labels, predicted, tests.groups)
        found["balanced_accuracy"][site] = balanced_accuracy_influence(tests.labels, predicted, tests.groups)
        if len(np.unique(tests.labels)) > 1:
            found["auc"][site] = auc_influence(tests.labels, values, tests.groups)
    for sites in found.values():
        if sites:
            sites["mean"] = np.concatenate(list(sites.values())) / len(sites)
    return found
