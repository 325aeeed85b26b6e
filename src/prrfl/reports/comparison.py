"""Comparison of methods: scores with intervals, paired tests, drops and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from statistics import fmean
from types import MappingProxyType

import numpy as np
import torch

from prrfl.reports.meter import mean_drop, measure
from prrfl.reports.recovery import Recovery, SiteDrop, by_site, recovery
from prrfl.reports.sampled import (
    OF_CLASS,
    OVER_SITES,
    GroupedImages,
    Sampled,
    Scorer,
    Support,
    sampled,
    supports,
)
from prrfl.reports.statistics import Floats, swapped_f1, swaps_of
from prrfl.reports.uncertainty import (
    FEWEST_GROUPS,
    LEVEL,
    NORMAL,
    Variance,
    bca_interval,
    delong_p,
    holm,
    paired_p,
    seed_interval,
    seeds_p,
    swapped_p,
    variance,
    wilson_interval,
)
from prrfl.types import ClientId, ExchangeRecord, Predictions, RoundRecord

TOO_FEW = f"fewer than {FEWEST_GROUPS} lesions or patients of a class"
NO_SPREAD = "the same in (nearly) every bootstrap sample"

ALWAYS = "always the most frequent class"
"""Name of the row of the answer that needs no network."""

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
        validation: mean of sites' macro-F1 on validation in the best round; ``None`` if unknown.
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
    validation: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A score or a difference, with its uncertainties. Fractions.

    Attributes:
        mean: mean over seeds; ``None`` where it is not defined: the AUC of a single class, the recall of a
            class without images.
        interval: 95 % interval over test images and training runs; ``None`` for a single seed.
        error: standard error over both.
        seeds: half the width of the 95 % t-interval over seeds, on these test images; ``None`` for a single
            seed.
        images: 95 % interval over test images, of the mean over these seeds.
        reason: why there is no interval over images; empty if there is one, or no score.
    """

    mean: float | None
    interval: tuple[float, float] | None = None
    error: float | None = None
    seeds: float | None = None
    images: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class PairedTest:
    """A test of whether a method differs from another one, in the mean of sites.

    Attributes:
        against: the other method.
        common: number of seeds that both ran.
        difference: the method's mean minus that of the other one, over these seeds.
        variance: of the difference; ``None`` with a single common seed, or too few lesions or patients.
        p: of the test over other test images and other training runs; ``None`` without a variance.
        images: p-value of the paired bootstrap over test images alone.
        seeds: p-value of the paired t-test over the common seeds alone; ``None`` if there is a single one, or
            if the difference is the same for all seeds.
        exact: p-value over test images alone, by another way: for macro-F1 that of swapping the methods'
            predictions lesion by lesion, for AUC that of DeLong and Obuchowski.
        interval: interval of the difference that covers together with all others of the comparison's table.
        detectable: difference that the test would find with a probability of 80 %.
        margin: largest difference that does not matter, if given.
        equivalent: corrected p-value that the difference is not within the margin; ``None`` without one.
    """

    against: str
    common: int
    difference: Estimate
    variance: Variance | None
    p: float | None
    images: float
    seeds: float | None
    exact: float | None = None
    interval: tuple[float, float] | None = None
    detectable: float | None = None
    margin: float | None = None
    equivalent: float | None = None

    @property
    def is_equivalent(self) -> bool:
        """Whether the method equals the other one within the margin."""
        return self.equivalent is not None and self.equivalent < LEVEL


@dataclass(frozen=True)
class Row:
    """One method in the table.

    Attributes:
        scores: by measure and site; under ``mean`` the unweighted mean of the sites where it is defined.
            Measures are ``f1`` (macro-F1), ``auc``, ``accuracy``, ``balanced_accuracy``, for all sites
            together ``worst_f1`` and ``spread_f1``, and for each class index k ``recall_<k>`` and
            ``sensitivity_at_90_specificity_<k>``; these also under ``pooled``, for the images of all sites
            together. Then come further measures, by their names.
        complete: whether it ran every seed that any method ran; otherwise it cannot be ``best``.
        tests: per measure, against the reference; none for itself, nor without a common seed.
        p: per measure, the test's p-value, Holm-corrected over methods and measures.
        differences: to the reference by measure of a class, for the ``mean`` of sites and for the images of
            all sites together (``pooled``). Not corrected.
        best: measures in which no other complete method's mean is higher; none with a single seed.
        untold: measures in which it is not told apart from the best method: no significant difference was
            found, Holm-corrected over all pairs and measures. This does not mean that they are equal.
        drop: per measure, mean drop of the deployed network at a communication, the mean of site means.
        drops: drops in macro-F1 by site.
        recovery: how these drops ended.
        bytes: bytes per site and round, up and down.
        validation: macro-F1 on validation in the best round, the mean of sites and seeds. It selected the
            round, and perhaps the settings, so it is higher than on new images.
    """

    method: str
    seeds: int
    scores: Mapping[str, Mapping[str, Estimate]]
    complete: bool = True
    tests: Mapping[str, PairedTest] = field(default_factory=dict)
    p: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    best: frozenset[str] = frozenset()
    untold: frozenset[str] = frozenset()
    drop: Mapping[str, Estimate] = field(default_factory=dict)
    drops: Mapping[ClientId, SiteDrop] = field(default_factory=dict)
    recovery: Recovery | None = None
    bytes: tuple[float, float] | None = None
    seconds: float | None = None
    validation: float | None = None

    @property
    def f1(self) -> Mapping[str, Estimate]:
        """Macro-F1 by site, and the mean of sites."""
        return self.scores["f1"]

    @property
    def auc(self) -> Mapping[str, Estimate]:
        """AUC by site, and the mean of the sites that have more than one class."""
        return self.scores["auc"]

    def mark(self, measure: str) -> str:
        """Return the mark of a measure: * for the best mean, = for those not told apart from it."""
        return "*" * (measure in self.best) + "=" * (measure in self.untold)

    @property
    def further(self) -> list[str]:
        """Names of further measures, those that the comparison was asked for."""
        usual = {"f1", "auc", "accuracy", "balanced_accuracy", *OVER_SITES}
        return [name for name in self.scores if name not in usual and _kind(name) not in OF_CLASS]

    @property
    def worst(self) -> ClientId | None:
        """The site with the largest mean drop in macro-F1 among those whose drop is certain, if any."""
        certain = {site: drop.mean for site, drop in self.drops.items() if drop.certain and drop.mean > 0}
        return max(certain, key=lambda site: certain[site], default=None)


BySeed = Mapping[int, Sampled]
"""Scores of the runs of a method on the test set and its samples."""


def compare(
    runs: Sequence[FinishedRun],
    reference: str,
    margin: float | None = None,
    draws: int = 2000,
    seed: int = 0,
    further: Mapping[str, Scorer] = MappingProxyType({}),
) -> list[Row]:
    """Return one row per method, and a last row for always predicting the most frequent class.

    That is a site's most frequent class in training, because only scores may use test labels. There is no
    such row if no run knows the training images of a site.

    The same bootstrap samples of each site's test images, drawn by lesion or patient where these are known,
    serve all methods and seeds, so that differences are paired: what is uncertain in both cancels.

    Args:
        runs: finished runs on the same data, any number of seeds for each method.
        reference: the method that the others are tested against, if it is among the runs.
        margin: largest difference that does not matter, as a fraction, for tests of equivalence.
        draws: number of bootstrap samples.
        seed: of the bootstrap.
        further: further measures by name.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    rng = np.random.default_rng(seed)
    images = {site: GroupedImages.of(_grouped(runs, site)) for site in sorted(runs[0].predictions)}
    support = supports(images, further)
    always = majority(runs)
    bundles = [run.predictions for run in runs] + ([always] if always else [])
    scores = sampled(images, bundles, draws, rng, further)
    by_method: dict[str, dict[int, Sampled]] = {method: {} for method in methods}
    for run, of_run in zip(runs, scores, strict=False):
        by_method[run.method][run.seed] = of_run
    seeds = {run.seed for run in runs}
    rows = [
        replace(
            _row(method, [run for run in runs if run.method == method], _estimates(by_seed, support)),
            complete=by_seed.keys() == seeds,
        )
        for method, by_seed in by_method.items()
    ]
    if reference in by_method:
        swapped = {
            method: _swapped_p(images, [run for run in runs if run.method in (method, reference)], draws)
            for method in methods
            if method != reference
        }
        rows = _tested(rows, by_method, reference, support, margin)
        rows = [_with_swaps(row, swapped.get(row.method)) for row in rows]
    rows = _marked(rows, by_method, support)
    if always:
        estimates = _estimates({0: scores[-1]}, support)
        rows.append(Row(method=ALWAYS, seeds=0, scores=estimates))
    return rows


def mean_scores(runs: Sequence[FinishedRun]) -> dict[str, dict[str, float]]:
    """Return the mean of sites and seeds in each tested measure that is defined, by method."""
    images = {site: GroupedImages.of(p) for site, p in sorted(runs[0].predictions.items())}
    scores = sampled(images, [run.predictions for run in runs], 0, np.random.default_rng(0))
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        own = [one.scores for one, run in zip(scores, runs, strict=True) if run.method == method]
        means = {name: fmean(float(seed[name]["mean"][0]) for seed in own) for name in TESTED}
        found[method] = {name: mean for name, mean in means.items() if not np.isnan(mean)}
    return found


def _grouped(runs: Sequence[FinishedRun], site: ClientId) -> Predictions:
    """Return a site's predictions, with the groups of its images if any run has them.

    Older versions did not write groups.
    """
    return max((run.predictions[site] for run in runs), key=lambda predictions: bool(predictions.groups))


def _estimates(seeds: BySeed, support: Mapping[str, Mapping[str, Support]]) -> dict[str, dict[str, Estimate]]:
    """Return the scores of a :class:`Row`, from those of its runs."""
    names = next(iter(seeds.values())).scores
    return {
        name: {site: _score(seeds, name, site, support[name].get(site)) for site in names[name]}
        for name in names
    }


def _score(seeds: BySeed, name: str, site: str, support: Support | None) -> Estimate:
    """Return a method's score; a proportion has Wilson's intervals."""
    scores = np.array([run.scores[name][site] for run in seeds.values()])
    if support is None or np.isnan(scores[:, 0]).any():
        return Estimate(None)
    proportion = _kind(name) in OF_CLASS
    influence = np.zeros(1)
    if not proportion:
        known = [run.influence.get(name, {}).get(site, np.zeros(1)) for run in seeds.values()]
        influence = np.mean(known, axis=0)
    found = _estimate(scores, influence, support.rarest)
    if not proportion or found.mean is None or (found.reason and _kind(name) != "recall"):
        bounded = name in OVER_SITES or name in next(iter(seeds.values())).influence
        return _within(found, 0.0, 1.0) if bounded else found
    spread = variance(scores, support.rarest)
    images = NORMAL * float(np.nanstd(scores[:, 1:].mean(0)))
    return replace(
        found,
        images=wilson_interval(found.mean, images, support.effective, NORMAL),
        interval=wilson_interval(found.mean, spread.half(), support.effective, NORMAL) if spread else None,
        reason="",
    )


def _kind(name: str) -> str:
    """Return a measure's name without the index of its class."""
    return name.rstrip("0123456789").rstrip("_")


def _estimate(scores: Floats, influence: Floats, rarest: int) -> Estimate:
    """Return the mean over seeds with its intervals.

    Args:
        scores: (S, 1 + B) of each seed.
        influence: (G,) of the lesions or patients on the mean.
        rarest: number of those with the rarest class.
    """
    values = [float(value) for value in scores[:, 0]]
    mean, seeds = fmean(values), seed_interval(values)
    if rarest < FEWEST_GROUPS:
        return Estimate(mean, seeds=seeds, reason=TOO_FEW)
    images = bca_interval(scores.mean(0), influence)
    if images is None:
        return Estimate(mean, seeds=seeds, reason=NO_SPREAD)
    spread = variance(scores, rarest)
    if spread is None:
        return Estimate(mean, seeds=seeds, images=images)
    half = spread.half()
    return Estimate(mean, (mean - half, mean + half), spread.total**0.5, seeds, images)


def _within(estimate: Estimate, low: float, high: float) -> Estimate:
    if estimate.interval is None:
        return estimate
    return replace(estimate, interval=(max(low, estimate.interval[0]), min(high, estimate.interval[1])))


def _row(method: str, runs: Sequence[FinishedRun], scores: Mapping[str, Mapping[str, Estimate]]) -> Row:
    drops = [[d for d in measure(run.records) if d.deployed] for run in runs]
    exchanges = [r for run in runs for r in run.records if isinstance(r, ExchangeRecord)]
    return Row(
        method=method,
        seeds=len(runs),
        scores=scores,
        drop={
            "f1": _over_seeds([mean_drop(of_seed, "f1") for of_seed in drops]),
            "auc": _over_seeds([mean_drop(of_seed, "auc") for of_seed in drops]),
        },
        drops=by_site(drops),
        recovery=recovery(chain(*drops)),
        bytes=(
            fmean(b for r in exchanges for b in r.bytes_up.values()),
            fmean(r.bytes_down for r in exchanges),
        ),
        seconds=fmean(run.seconds for run in runs),
        validation=_over_seeds([run.validation for run in runs]).mean,
    )


def _over_seeds(values: Sequence[float | None]) -> Estimate:
    """Return the mean over seeds; an empty estimate if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Estimate(None)
    return Estimate(fmean(known), seeds=seed_interval(known))


def _pairs(first: BySeed, second: BySeed, name: str, site: str = "mean") -> Floats:
    """Return the differences of two methods, (S, 1 + B), over the seeds that both ran."""
    common = sorted(first.keys() & second.keys())
    return np.array([first[seed].scores[name][site] - second[seed].scores[name][site] for seed in common])


def _paired(first: BySeed, second: BySeed, name: str, against: str, rarest: int) -> PairedTest:
    """Return the test of a method against another one, with at least one common seed."""
    pairs = _pairs(first, second, name)
    common = sorted(first.keys() & second.keys())
    influences = [
        first[seed].influence[name]["mean"] - second[seed].influence[name]["mean"] for seed in common
    ]
    influence = np.mean(influences, axis=0)
    spread = variance(pairs, rarest) if rarest >= FEWEST_GROUPS else None
    mean = float(pairs[:, 0].mean())
    return PairedTest(
        against=against,
        common=len(common),
        difference=_estimate(pairs, influence, rarest),
        variance=spread,
        p=spread.p(mean) if spread else None,
        images=paired_p(pairs.mean(0)[1:]),
        seeds=seeds_p(pairs[:, 0]),
        exact=delong_p(mean, influence) if name == "auc" else None,
    )


Key = tuple[str, ...]
"""A method, or two, and a measure: one test of a family."""


def _tested(
    rows: Sequence[Row],
    scores: Mapping[str, BySeed],
    reference: str,
    support: Mapping[str, Mapping[str, Support]],
    margin: float | None,
) -> list[Row]:
    """Return the rows with tests against the reference, in all measures as one family."""
    found: dict[Key, PairedTest] = {}
    for method in scores:
        for name in TESTED:
            alike = scores[method].keys() & scores[reference].keys()
            if method != reference and alike and (total := support[name].get("mean")):
                pair = scores[method], scores[reference]
                found[method, name] = _paired(*pair, name, reference, total.rarest)
    p = holm({key: test.p for key, test in found.items()})
    family = {key: _in_family(test, len(p), margin) for key, test in found.items()}
    equivalent = holm({key: test.equivalent for key, test in family.items()})
    return [
        replace(
            row,
            tests={
                name: replace(family[row.method, name], equivalent=equivalent.get((row.method, name)))
                for name in TESTED
                if (row.method, name) in family
            },
            p={name: p[row.method, name] for name in TESTED if (row.method, name) in p},
            differences=_differences(row, scores, reference, support),
        )
        for row in rows
    ]


def _in_family(test: PairedTest, size: int, margin: float | None) -> PairedTest:
    """Return a test with what depends on the number of tests of its family (Bonferroni)."""
    spread, mean = test.variance, test.difference.mean
    if spread is None or mean is None or test.p is None or not spread.total:
        return test
    level = LEVEL / size
    half = spread.half(level / 2)
    return replace(
        test,
        interval=(mean - half, mean + half),
        detectable=spread.detectable(level),
        margin=margin,
        equivalent=None if margin is None else spread.p_equivalent(mean, margin),
    )


def _differences(
    row: Row, scores: Mapping[str, BySeed], reference: str, support: Mapping[str, Mapping[str, Support]]
) -> dict[str, dict[str, Estimate]]:
    """Return the differences to the reference in the measures of a class, with uncorrected intervals."""
    common = sorted(scores[row.method].keys() & scores[reference].keys())
    if row.method == reference or not common:
        return {}
    found: dict[str, dict[str, Estimate]] = {}
    for name in row.scores:
        if _kind(name) not in OF_CLASS:
            continue
        for site in ("mean", "pooled"):
            pairs = _pairs(scores[row.method], scores[reference], name, site)
            rests_on = support[name].get(site)
            if rests_on is None or np.isnan(pairs[:, 0]).any():
                estimate = Estimate(None)
            else:
                estimate = _estimate(pairs, np.zeros(1), rests_on.rarest)
            found.setdefault(name, {})[site] = estimate
    return found


def _marked(
    rows: Sequence[Row], scores: Mapping[str, BySeed], support: Mapping[str, Mapping[str, Support]]
) -> list[Row]:
    """Return the rows with the best method of each measure, and those not told apart from it.

    The best method is found by looking at all, so all pairs are tested, in all measures as one family. A
    single seed tells nothing about a method, thus no method is marked.
    """
    complete = [row for row in rows if row.complete and row.seeds > 1]
    found: dict[Key, float | None] = {}
    for first, second in combinations([row.method for row in complete], 2):
        for name in TESTED:
            if (total := support[name].get("mean")) and total.rarest >= FEWEST_GROUPS:
                pairs = _pairs(scores[first], scores[second], name)
                spread = variance(pairs, total.rarest)
                found[first, second, name] = spread.p(float(pairs[:, 0].mean())) if spread else None
    p = holm(found)
    for name in TESTED:
        means = {row.method: mean for row in complete if (mean := row.scores[name]["mean"].mean) is not None}
        best = [method for method, value in means.items() if value == max(means.values())]
        even = {
            other
            for other in means
            for winner in best[:1]
            if other != winner and p.get((winner, other, name), p.get((other, winner, name), 1.0)) >= LEVEL
        }
        untold = {best[0], *even} if even else set()
        rows = [
            replace(
                row,
                best=row.best | ({name} if row.method in best else set()),
                untold=row.untold | ({name} if row.method in untold else set()),
            )
            for row in rows
        ]
    return list(rows)


def _swapped_p(
    images: Mapping[ClientId, GroupedImages], runs: Sequence[FinishedRun], draws: int
) -> float | None:
    """Return the p-value of a difference in the mean macro-F1 of two methods when predictions are swapped.

    If the methods were alike, either could have made any prediction. Those of all images of a lesion or
    patient are swapped together, in all seeds that both ran. ``None`` without a common seed.
    """
    first = runs[0].method
    ours = {run.seed: run.predictions for run in runs if run.method == first}
    theirs = {run.seed: run.predictions for run in runs if run.method != first}
    common = ours.keys() & theirs.keys()
    if not common:
        return None
    rng = np.random.default_rng(0)
    total = np.zeros(draws + 1)
    for site, tests in images.items():
        swaps = swaps_of(tests.groups, draws, rng)
        for seed in common:
            answers = [bundle[seed][site].probabilities.numpy().argmax(1) for bundle in (ours, theirs)]
            total += swapped_f1(swaps, tests.labels, *answers)
    return swapped_p(total)


def _with_swaps(row: Row, p: float | None) -> Row:
    if "f1" not in row.tests:
        return row
    return replace(row, tests={**row.tests, "f1": replace(row.tests["f1"], exact=p)})


def majority(runs: Sequence[FinishedRun]) -> dict[ClientId, Predictions]:
    """Return each site's most frequent class in training as predictions; empty if a site's is unknown."""
    answers = {}
    for site, p in runs[0].predictions.items():
        known = [run.training[site] for run in runs if site in run.training]
        if not known:
            return {}
        own = min(known, key=sum)  # of the site alone, rather than of the pool
        always = torch.zeros_like(p.probabilities)
        always[:, int(np.argmax(own))] = 1.0
        answers[site] = replace(p, probabilities=always)
    return answers
