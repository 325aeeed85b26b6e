"""Comparison of methods: scores with intervals, paired tests, drops and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import fmean

import numpy as np
import torch

from prrfl.reports.meter import Recovery, SiteDrop, by_site, measure, recovery
from prrfl.reports.statistics import (
    Floats,
    Ints,
    group_indices,
    holm,
    mean_of_defined,
    paired_p,
    percentile_interval,
    resampled_auc,
    resampled_balanced_accuracy,
    resampled_f1,
    resampled_recall,
    resampled_sensitivity,
    resamples,
    seed_interval,
    seeds_p,
)
from prrfl.types import ClientId, ExchangeRecord, Predictions, RoundRecord

LEVEL = 0.05
"""Level of significance."""

TESTED = ("f1", "auc")
"""Measures in which the methods are tested against each other."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run, as part of a comparison.

    Attributes:
        method: its name in the table, ablations with their settings: ``prrfl:transfer=off``.
        predictions: per site, on the test images, of the best round on validation.
        seconds: wall time.
        rounds: communication rounds.
        epochs: local epochs in each.
        training: per site, number of images of each class that its network was trained on, of all sites if
            they are pooled; without the sites that have no saved network.
        stages: names of the method's training stages 1, 2, ...; empty without stages.
    """

    method: str
    seed: int
    records: Sequence[RoundRecord]
    predictions: Mapping[ClientId, Predictions]
    seconds: float
    rounds: int
    epochs: int
    training: Mapping[ClientId, Sequence[int]]
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A score with its two uncertainties. Fractions.

    Attributes:
        mean: mean over seeds; ``None`` where it is not defined: the AUC of a single class, the recall of a
            class without images.
        seeds: half the width of the 95 % t-interval over seeds; ``None`` for a single seed.
        images: 95 % bootstrap interval over test images, of the mean over seeds.
    """

    mean: float | None
    seeds: float | None = None
    images: tuple[float, float] | None = None


@dataclass(frozen=True)
class PairedTest:
    """Two tests of whether a method differs from another one.

    Attributes:
        against: the other method.
        common: number of seeds that both ran.
        difference: mean of sites of the method minus that of the other one, over these seeds.
        images: p-value of the paired bootstrap over test images: would other images show the difference?
        seeds: p-value of the paired t-test over the common seeds: would other trainings? ``None`` if there is
            a single one, or if the difference is the same for all seeds.
    """

    against: str
    common: int
    difference: Estimate
    images: float
    seeds: float | None

    @property
    def p(self) -> float:
        """The larger of both: a difference is significant only if both tests find it."""
        return self.images if self.seeds is None else max(self.images, self.seeds)


@dataclass(frozen=True)
class Row:
    """One method in the table.

    Attributes:
        scores: by measure and site; under ``mean`` the unweighted mean of the sites where it is defined.
            Measures are ``f1`` (macro-F1), ``auc``, ``balanced_accuracy``, and for each class index k
            ``recall_<k>`` and ``sensitivity_at_90_specificity_<k>``.
        complete: whether it ran every seed that any method ran; otherwise it cannot be ``best``.
        tests: per measure, against the reference; none for itself, nor without a common seed.
        p: per measure, the test's p-value, Holm-corrected over the methods.
        best: measures in which no other complete method's mean is higher.
        untold: measures in which it is not told apart from the best method: no significant difference was
            found. With few seeds this does not mean that they are equal.
        drop: per measure, mean drop of the deployed network at a communication.
        drops: drops in macro-F1 by site.
        recovery: how these drops ended.
        bytes: bytes per site and round, up and down.
    """

    method: str
    seeds: int
    scores: Mapping[str, Mapping[str, Estimate]]
    complete: bool = True
    tests: Mapping[str, PairedTest] = field(default_factory=dict)
    p: Mapping[str, float] = field(default_factory=dict)
    best: frozenset[str] = frozenset()
    untold: frozenset[str] = frozenset()
    drop: Mapping[str, Estimate] = field(default_factory=dict)
    drops: Mapping[ClientId, SiteDrop] = field(default_factory=dict)
    recovery: Recovery | None = None
    bytes: tuple[float, float] | None = None
    seconds: float | None = None

    @property
    def f1(self) -> Mapping[str, Estimate]:
        """Macro-F1 by site, and the mean of sites."""
        return self.scores["f1"]

    @property
    def auc(self) -> Mapping[str, Estimate]:
        """AUC by site, and the mean of the sites that have more than one class."""
        return self.scores["auc"]

    @property
    def worst(self) -> ClientId | None:
        """The site with the largest mean drop in macro-F1 at a communication; ``None`` if none drops."""
        site = max(self.drops, key=lambda client: self.drops[client].mean, default=None)
        return site if site is not None and self.drops[site].mean > 0 else None


Samples = dict[str, dict[str, Floats]]
"""Bootstrap scores of a run by measure and site, as in :class:`Row`.

The first entry of each array is that of the test set itself.
"""

BySeed = dict[int, dict[str, Floats]]
"""Bootstrap scores of a method in one measure, by seed and site."""


def compare(runs: Sequence[FinishedRun], reference: str, draws: int = 2000, seed: int = 0) -> list[Row]:
    """Return one row per method, and a last row for always predicting the most frequent class.

    That is a site's most frequent class in training, because only scores may use test labels. There is no
    such row if no run knows the training images of a site.

    The same bootstrap samples of each site's test images, drawn by lesion or patient where these are known,
    serve all methods and seeds, so that differences are paired: what is uncertain in both cancels. Seeds are
    not resampled; a t-test stands for their spread.

    Args:
        runs: finished runs on the same data, any number of seeds for each method.
        reference: the method that the others are tested against, if it is among the runs.
        draws: number of bootstrap samples.
        seed: of the bootstrap.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    rng = np.random.default_rng(seed)
    # The first sample is the test set itself, so that one calculation gives scores and intervals.
    counts = {
        site: np.vstack([np.ones(len(p.labels)), resamples(group_indices(_grouped(runs, site)), draws, rng)])
        for site, p in sorted(runs[0].predictions.items())
    }
    samples: dict[str, dict[int, Samples]] = {method: {} for method in methods}
    for run in runs:
        samples[run.method][run.seed] = _resampled(counts, run.predictions)
    seeds = {run.seed for run in runs}
    rows = [
        replace(
            _row(method, [r for r in runs if r.method == method], list(samples[method].values())),
            complete=samples[method].keys() == seeds,
        )
        for method in methods
    ]
    for name in TESTED:
        by_method = {
            method: {seed: one[name] for seed, one in by_seed.items()} for method, by_seed in samples.items()
        }
        rows = _tested(rows, name, by_method, reference)
    return rows + _majority(counts, runs)


def _grouped(runs: Sequence[FinishedRun], site: ClientId) -> Predictions:
    """Return a site's predictions, with the groups of its images if any run has them.

    Older versions did not write groups.
    """
    return max((run.predictions[site] for run in runs), key=lambda predictions: bool(predictions.groups))


def _resampled(counts: Mapping[ClientId, Floats], predictions: Mapping[ClientId, Predictions]) -> Samples:
    """Return the scores of each sample by measure and site, with their mean over sites."""
    of_sites = {
        site: _scores(samples, predictions[site].labels.numpy(), predictions[site].probabilities.numpy())
        for site, samples in counts.items()
    }
    measures = next(iter(of_sites.values()))
    return {name: _with_mean({site: scores[name] for site, scores in of_sites.items()}) for name in measures}


def _scores(counts: Floats, labels: Ints, probabilities: Floats) -> dict[str, Floats]:
    """Return the scores of each sample of a site, by measure."""
    predicted = probabilities.argmax(1)
    scores = {
        "f1": resampled_f1(counts, labels, predicted),
        "auc": resampled_auc(counts, labels, probabilities),
        "balanced_accuracy": resampled_balanced_accuracy(counts, labels, predicted),
    }
    for k, of_class in enumerate(probabilities.T):
        scores[f"recall_{k}"] = resampled_recall(counts, labels, predicted, k)
        scores[f"sensitivity_at_90_specificity_{k}"] = resampled_sensitivity(counts, labels == k, of_class)
    return scores


def _with_mean(sites: dict[str, Floats]) -> dict[str, Floats]:
    return {**sites, "mean": mean_of_defined(list(sites.values()))}


def _estimates(seeds: Sequence[Samples]) -> dict[str, dict[str, Estimate]]:
    """Return the scores of a :class:`Row`, from the samples of each seed."""
    return {
        name: {site: _estimate([samples[name][site] for samples in seeds]) for site in sites}
        for name, sites in seeds[0].items()
    }


def _estimate(seeds: Sequence[Floats]) -> Estimate:
    values = [float(run[0]) for run in seeds]
    if np.isnan(values).any():
        return Estimate(None)
    return Estimate(fmean(values), seed_interval(values), percentile_interval(np.mean(seeds, axis=0)[1:]))


def _row(method: str, runs: Sequence[FinishedRun], samples: Sequence[Samples]) -> Row:
    drops = [[d for d in measure(run.records) if d.deployed] for run in runs]
    aucs = [[d.auc for d in of_seed if d.auc is not None] for of_seed in drops]
    exchanges = [r for run in runs for r in run.records if isinstance(r, ExchangeRecord)]
    return Row(
        method=method,
        seeds=len(runs),
        scores=_estimates(samples),
        drop={"f1": _over_seeds([[d.f1 for d in of_seed] for of_seed in drops]), "auc": _over_seeds(aucs)},
        drops=by_site(drops),
        recovery=recovery(chain(*drops)),
        bytes=(
            fmean(b for r in exchanges for b in r.bytes_up.values()),
            fmean(r.bytes_down for r in exchanges),
        ),
        seconds=fmean(run.seconds for run in runs),
    )


def _over_seeds(seeds: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean over seeds of their means; an empty estimate if a seed has no value."""
    if not all(seeds):
        return Estimate(None)
    means = [fmean(values) for values in seeds]
    return Estimate(fmean(means), seed_interval(means))


def _tests(of: str, scores: Mapping[str, BySeed]) -> dict[str, PairedTest]:
    """Return the tests of all other methods against one, if they have a seed in common."""
    tests = {}
    for other in scores:
        common = sorted(scores[of].keys() & scores[other].keys())
        if other != of and common:
            pairs = [scores[other][seed]["mean"] - scores[of][seed]["mean"] for seed in common]
            tests[other] = PairedTest(
                against=of,
                common=len(common),
                difference=_estimate(pairs),
                images=paired_p(np.mean(pairs, axis=0)[1:]),
                seeds=seeds_p(np.array([d[0] for d in pairs])),
            )
    return tests


def _corrected(tests: Mapping[str, PairedTest]) -> dict[str, float]:
    return dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))


def _tested(rows: Sequence[Row], name: str, scores: Mapping[str, BySeed], reference: str) -> list[Row]:
    """Return the rows with the tests of one measure, the best method, and those not told apart from it."""
    means = {row.method: row.scores[name]["mean"].mean for row in rows}
    if None in means.values():  # all test sets have a single class
        return list(rows)
    tests = _tests(reference, scores) if reference in scores else {}
    p = _corrected(tests)
    full = {row.method: means[row.method] or 0.0 for row in rows if row.complete}
    best = {method for method, value in full.items() if value == max(full.values())}
    untold: set[str] = set()
    if best:
        winner = next(method for method in full if method in best)
        even = [m for m, value in _corrected(_tests(winner, scores)).items() if value >= LEVEL and m in full]
        untold = {winner, *even} if even else set()
    return [
        replace(
            row,
            tests={**row.tests, name: tests[row.method]} if row.method in tests else row.tests,
            p={**row.p, name: p[row.method]} if row.method in p else row.p,
            best=row.best | {name} if row.method in best else row.best,
            untold=row.untold | {name} if row.method in untold else row.untold,
        )
        for row in rows
    ]


def _majority(counts: Mapping[ClientId, Floats], runs: Sequence[FinishedRun]) -> list[Row]:
    answers = {}
    for site, p in runs[0].predictions.items():
        known = [run.training[site] for run in runs if site in run.training]
        if not known:
            return []
        own = min(known, key=sum)  # of the site alone, rather than of the pool
        always = torch.zeros_like(p.probabilities)
        always[:, int(np.argmax(own))] = 1.0
        answers[site] = replace(p, probabilities=always)
    scores = _estimates([_resampled(counts, answers)])
    return [Row(method="always the most frequent class", seeds=0, scores=scores)]
