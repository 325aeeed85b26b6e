"""Intervals and tests on data whose truth is known. Tolerances are three Monte Carlo standard errors."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from prrfl.reports import statistics, uncertainty
from prrfl.reports.uncertainty import Term, Variance

IMAGES = 80
COUNTS = statistics.resamples(np.arange(IMAGES), 100, np.random.default_rng(0)).astype(float) / IMAGES

MIXES = {
    "trainings most": (0.3, 0.3, 0.3),
    "images alone": (0.0, 1.0, 0.1),
    "one with the other": (0.0, 0.0, 1.0),
    "all": (0.1, 0.7, 0.7),
}
"""Standard deviations of training runs, of images, and of one with the other."""


def trained(mix, seeds, rng, methods=1):
    """Return the scores of methods, (methods, seeds, 1 + B): means of images, of which the true one is 0."""
    trainings, images, both = mix
    values = trainings * rng.normal(size=(methods, seeds, 1)) + images * rng.normal(size=(methods, 1, IMAGES))
    values = values + both * rng.normal(size=(methods, seeds, IMAGES))
    return np.concatenate([values.mean(2, keepdims=True), values @ COUNTS.T], axis=2)


def truth(mix, seeds):
    return (mix[0] ** 2 / seeds + mix[1] ** 2 / IMAGES + mix[2] ** 2 / IMAGES / seeds) ** 0.5


def within(count, repetitions, expected):
    """Return whether a frequency exceeds what is expected by no more than chance."""
    return count / repetitions <= expected + 3 * (expected * (1 - expected) / repetitions) ** 0.5


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_and_tests_seldom_err(mix, seeds):
    rng = np.random.default_rng(seeds)
    missed = errors = 0
    for _ in range(300):
        scores = trained(mix, seeds, rng)[0]
        found = uncertainty.variance(scores, IMAGES)
        missed += abs(scores[:, 0].mean()) > found.half()
        errors += found.p(scores[:, 0].mean()) < 0.05
    assert missed == errors  # the interval and the test agree
    assert within(missed, 300, 0.05)


def test_the_variance_is_neither_too_small_nor_twice_too_large():
    rng = np.random.default_rng(1)
    for name, mix in MIXES.items():
        totals = [uncertainty.variance(trained(mix, 5, rng)[0], IMAGES).total for _ in range(200)]
        # The floor of the variance over images makes it larger where the bootstrap knows it better.
        assert 0.9 < np.mean(totals) / truth(mix, 5) ** 2 < 1.5, name


def satterthwaite(found):
    """Return the degrees of freedom of the total variance, as Satterthwaite (1946) approximates them."""
    parts = found.trainings**2 / (found.seeds - 1) + found.images**2 / (found.groups - 1)
    return found.total**2 / parts


def test_ten_equal_methods_are_told_apart_in_at_most_one_comparison_of_twenty():
    for name, seeds in (("trainings most", 5), ("all", 5), ("trainings most", 3)):
        rng, wrong, by_satterthwaite = np.random.default_rng(2), 0, 0
        for _ in range(60):
            scores = trained(MIXES[name], seeds, rng, methods=10)
            p, naive = [], []
            for one, two in combinations(scores, 2):
                found = uncertainty.variance(one - two, IMAGES)
                difference = (one - two)[:, 0].mean()
                p.append(found.p(difference))
                naive.append(2 * stats.t.sf(abs(difference) / found.total**0.5, satterthwaite(found)))
            wrong += min(uncertainty.holm(dict(enumerate(p))).values()) < 0.05
            by_satterthwaite += min(uncertainty.holm(dict(enumerate(naive))).values()) < 0.05
        assert within(wrong, 60, 0.05), name
        if seeds == 3:
            # This is why each variance has its own quantile.
            assert not within(by_satterthwaite, 60, 0.05)


def test_detectable_differences_are_found_with_about_the_stated_power():
    rng = np.random.default_rng(3)
    mix, seeds = MIXES["all"], 5
    detectable = np.median(
        [uncertainty.variance(trained(mix, seeds, rng)[0], IMAGES).detectable() for _ in range(100)]
    )
    found = 0
    for _ in range(300):
        scores = trained(mix, seeds, rng)[0] + detectable
        found += uncertainty.variance(scores, IMAGES).p(scores[:, 0].mean()) < 0.05
    assert 0.7 < found / 300 < 0.92


def test_equivalence_is_found_where_it_is_so_and_seldom_where_it_is_not():
    mix, seeds = MIXES["all"], 5
    margin = 4 * truth(mix, seeds)
    rates = {}
    for difference in (0.0, margin, 1.5 * margin):
        rng, found = np.random.default_rng(4), 0
        for _ in range(200):
            scores = trained(mix, seeds, rng)[0] + difference
            spread = uncertainty.variance(scores, IMAGES)
            found += spread.p_equivalent(scores[:, 0].mean(), margin) < 0.05
        rates[difference] = found
    assert rates[0.0] > 140
    assert within(rates[margin], 200, 0.05)
    assert rates[1.5 * margin] == 0


def test_variances_by_hand():
    one = Variance(images=4.0, trainings=9.0, seeds=3, groups=6)
    # t(0.975, 5) = 2.570582, t(0.975, 2) = 4.302653.
    assert one.half() == pytest.approx((4 * 2.570582**2 + 9 * 4.302653**2) ** 0.5)
    assert one.total == 13
    # t(0.8, 5) = 0.919544, t(0.8, 2) = 1.060660.
    power = (4 * 0.919544**2 + 9 * 1.060660**2) ** 0.5
    assert one.detectable() == pytest.approx(one.half() + power, rel=1e-5)
    assert one.p(one.half(0.005)) == pytest.approx(0.01)
    assert one.p(-one.half(1e-9)) == pytest.approx(2e-9)
    assert one.p(0.0) == 1.0
    assert one.p_equivalent(1.0, 1.0 + one.half(0.05)) == pytest.approx(0.05)
    assert one.p_equivalent(-1.0, 1.0 + one.half(0.05)) == pytest.approx(0.05)
    assert one.p_equivalent(1.0 + one.half(0.05), 1.0) == pytest.approx(0.95)
    only_trainings = Variance(0.0, 9.0, 3, 6)
    assert only_trainings.p(6.0) == pytest.approx(2 * stats.t.sf(2.0, 2))
    nothing = Variance(0.0, 0.0, 3, 6)
    assert nothing.p(0.0) == 1.0
    assert nothing.p(0.1) is None
    assert uncertainty.variance(np.zeros((1, 9)), 6) is None
    assert uncertainty.variance(np.zeros((3, 9)), 1) is None
    # Two runs, three samples of 2 groups: variances 1 and 4, covariance 2, each times 2 / (2 - 1).
    scores = np.array([[10.0, 0, 1, 2], [12.0, 0, 2, 4]])
    found = uncertainty.variance(scores, 2)
    assert (found.trainings, found.images) == pytest.approx((1.0, 4.0))
    # The samples move against each other: covariance -2, mean of all four 0.5, less 0.25 of the trainings.
    scores = np.array([[10.0, 0, 1, 2], [11.0, 4, 2, 0]])
    found = uncertainty.variance(scores, 2)
    assert (found.trainings, found.images) == pytest.approx((0.25, 0.25))


def test_bca_intervals_are_scipys():
    rng = np.random.default_rng(5)
    values = rng.lognormal(sigma=1.0, size=40)
    counts = statistics.resamples(np.arange(40), 20_000, rng)
    samples = np.append(values.mean(), counts @ values / 40)
    low, high = uncertainty.bca_interval(samples, (values - values.mean()) / 40)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=rng)
    width = high - low
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.02 * width)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.02 * width)
    # Percentiles are elsewhere.
    assert abs(np.quantile(samples, 0.975) - high) > 0.05 * width
    assert uncertainty.bca_interval(np.full(100, 0.7), np.zeros(3)) is None
    assert uncertainty.bca_interval(np.array([0.7] * 999 + [0.8]), np.zeros(3)) is None
    assert uncertainty.bca_interval(np.array([0.7, np.nan, np.nan]), np.zeros(3)) is None


def test_bca_covers_macro_f1_with_a_rare_class_better_than_percentiles():
    rng = np.random.default_rng(6)
    images, repetitions = 150, 250
    rates = np.array([0.85, 0.5])  # of the frequent and the rare class of 5 %
    # True macro-F1, from the expected counts.
    share = np.array([0.95, 0.05])
    both = share * rates
    predicted = both + (share * (1 - rates))[::-1]
    expected = (2 * both / (share + predicted)).mean()
    covered = np.zeros(2)
    for _ in range(repetitions):
        labels = (rng.random(images) < 0.05).astype(np.int64)
        right = rng.random(images) < rates[labels]
        answers = np.where(right, labels, 1 - labels)
        counts = np.vstack([np.ones(images), statistics.resamples(np.arange(images), 300, rng)])
        f1 = statistics.f1_of(statistics.resampled_confusions(counts, labels, answers, 2))
        low, high = uncertainty.bca_interval(f1, statistics.f1_influence(labels, answers, np.arange(images)))
        covered += [low <= expected <= high, np.quantile(f1, 0.025) <= expected <= np.quantile(f1, 0.975)]
    assert covered[0] / repetitions > 0.91
    assert covered[0] >= covered[1]


@pytest.mark.parametrize("lesions", [8, 40])
def test_wilsons_interval_of_images_in_lesions_covers(lesions):
    rng, covered = np.random.default_rng(7), 0
    chance = 0.9
    for _ in range(400):
        right = np.repeat(rng.random(lesions) < chance, 3)  # three images of a lesion, all alike
        low, high = uncertainty.wilson_interval(right.mean(), 0.0, lesions, 1.959964)
        covered += low <= chance <= high
        expected = stats.binomtest(int(right[::3].sum()), lesions).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert within(400 - covered, 400, 0.06)  # Wilson's interval covers on average, not for every proportion
    # A wider symmetric interval makes it wider.
    narrow, wide = (uncertainty.wilson_interval(0.8, half, 40, 1.959964) for half in (0.0, 0.3))
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1] < 1.0


def test_the_interval_of_two_proportions_is_newcombes():
    """The first example of Newcombe (1998), method 10: 56 of 70 and 48 of 80."""
    terms = [Term(1.0, 56 / 70, 70), Term(-1.0, 48 / 80, 80)]
    assert uncertainty.sum_interval(terms) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    p = uncertainty.sum_p(terms)
    at_zero = uncertainty.sum_interval(terms, -stats.norm.ppf(p / 2))
    assert at_zero[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shares", [(0.95, 0.3), (1.0, 0.6), (0.7, 0.7)])
def test_the_gap_of_balanced_accuracies_is_covered_with_few_lesions(shares):
    """Five lesions of the rare class in the subgroup; both sides are equally good, or the second is worse."""
    rng = np.random.default_rng(0)
    lesions = np.array([[20, 5], [60, 25]])
    missed = errors = 0
    repetitions = 1000
    for _ in range(repetitions):
        found = rng.binomial(lesions, shares) / lesions
        terms = [
            Term(sign / 2, found[side, k], lesions[side, k])
            for side, sign in ((0, 1), (1, -1))
            for k in (0, 1)
        ]
        low, high = uncertainty.sum_interval(terms)
        missed += not low <= 0 <= high
        errors += uncertainty.sum_p(terms) < 0.05
    assert missed == errors  # the interval and the test agree
    assert within(missed, repetitions, 0.05)
    assert missed > 0
