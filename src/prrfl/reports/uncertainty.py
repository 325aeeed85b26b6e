"""Intervals and tests for scores that depend on test images and training runs; see docs/statistics.md.

Trained networks are to a comparison what readers are to a study of imaging: they are few, they all look at
the same images, and conclusions are about other ones. The variances are therefore those of Obuchowski and
Rockette (Communications in Statistics 1995; see also Hillis, Statistics in Medicine 2007).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from prrfl.reports.statistics import ROUNDING, Floats

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.05
"""Level of significance; intervals have the level 1 - LEVEL."""

NORMAL = float(-ndtri(LEVEL / 2))
"""Quantile of the normal distribution at this level, 1.96."""

POWER = 0.8
"""Probability with which a comparison finds the smallest detectable difference."""

FEWEST_GROUPS = 5
"""Lesions or patients of each class that an interval needs."""


@dataclass(frozen=True)
class Variance:
    """Variance of a mean over training runs, by source.

    Attributes:
        images: that of other test images, which all runs share.
        trainings: that of other training runs, and of how these go along with the images.
        seeds: number of training runs, at least 2.
        groups: number of lesions or patients that ``images`` is estimated from, at least 2.
    """

    images: float
    trainings: float
    seeds: int
    groups: int

    @property
    def total(self) -> float:
        """The variance of the mean."""
        return self.images + self.trainings

    def half(self, tail: float = LEVEL / 2) -> float:
        """Return half the width of an interval without ``tail`` at each end (Banerjee, Sankhya 1960).

        Each variance has the t quantile of its own degrees of freedom. With independent estimates the
        interval covers with at least its level, whatever the variances are. That of Satterthwaite does not if
        the variance over few runs is small by chance: among ten equal methods, three seeds and all pairs it
        finds a difference in up to 46 % of comparisons instead of 5 %.
        """
        of_images = stdtrit(self.groups - 1, tail) ** 2 * self.images
        of_trainings = stdtrit(self.seeds - 1, tail) ** 2 * self.trainings
        return math.sqrt(of_images + of_trainings)

    def p(self, difference: float) -> float | None:
        """Return the two-sided p-value of a difference: the level at which the interval ends at 0.

        1 for no difference; ``None`` for a difference without any variance.
        """
        if abs(difference) < ROUNDING:
            return 1.0
        if self.total < ROUNDING**2:
            return None
        lowest = -300.0  # of the logarithm; smaller tails are beyond floating point
        outside = [self.half(math.exp(at)) < abs(difference) for at in (lowest, math.log(0.5))]
        if outside[0]:
            return 0.0
        return 2 * math.exp(
            brentq(lambda at: self.half(math.exp(at)) - abs(difference), lowest, math.log(0.5))
        )

    def detectable(self, level: float = LEVEL) -> float:
        """Return the difference that a test of this level finds with a probability of about 80 %."""
        return self.half(level / 2) + self.half(1 - POWER)

    def p_equivalent(self, difference: float, margin: float) -> float | None:
        """Return the p-value of two one-sided tests (Schuirmann, 1987) of a difference beyond ± margin."""
        room = margin - abs(difference)
        p = self.p(room)
        return None if p is None else p / 2 if room > 0 else 1 - p / 2


def variance(seeds: Floats, groups: int) -> Variance | None:
    """Return the variance of the mean over training runs; ``None`` for a single run or group.

    The variance over runs, divided by their number, already holds how runs and images go along with each
    other. What is added for the images is therefore not the variance of the mean over images, but the
    covariance between runs. The total is never less than the variance over images alone, which is known much
    better than the variance over a few runs.

    Args:
        seeds: (S, 1 + B) score of each run on the test set, and on each bootstrap sample of it.
        groups: number of lesions or patients.
    """
    runs = len(seeds)
    samples = seeds[:, 1:][:, ~np.isnan(seeds[:, 1:]).any(0)]
    if runs < 2 or groups < 2 or samples.shape[1] < 2:
        return None
    # The bootstrap's variance is that of a sample divided by n, instead of n - 1.
    covariances = np.cov(samples) * groups / (groups - 1)
    shared = (covariances.sum() - np.trace(covariances)) / (runs * (runs - 1))
    trainings = float(np.var(seeds[:, 0], ddof=1)) / runs
    images = max(float(shared), float(covariances.mean()) - trainings, 0.0)
    return Variance(images, trainings, runs, groups)


def seed_interval(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Return half the width of the t-interval of a mean over seeds; ``None`` for fewer than two."""
    if len(values) < 2:
        return None
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(-stdtrit(len(values) - 1, level / 2) * spread)


def bca_interval(samples: Floats, influence: Floats) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of a score: bias-corrected and accelerated (BCa; Efron, 1987).

    Args:
        samples: (1 + B,) the score, then that of each bootstrap sample; NaNs do not count.
        influence: (G,) of each group on the score, which gives the acceleration.

    Returns:
        The interval; ``None`` if no two samples differ, or too few to give it a width.
    """
    score, samples = samples[0], samples[1:][~np.isnan(samples[1:])]
    if len(samples) < 2 or np.ptp(samples) < ROUNDING:
        return None
    below = ((samples < score - ROUNDING).mean() + (samples <= score + ROUNDING).mean()) / 2
    bias = ndtri(np.clip(below, 1 / len(samples), 1 - 1 / len(samples)))
    squares = (influence**2).sum()
    acceleration = (influence**3).sum() / (6 * squares**1.5) if squares else 0.0
    ends = bias + ndtri([LEVEL / 2, 1 - LEVEL / 2])
    low, high = np.quantile(samples, ndtr(bias + ends / (1 - acceleration * ends)))
    return (float(low), float(high)) if high - low > ROUNDING else None


def wilson_interval(share: float, half: float, effective: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a proportion of images that are not independent.

    The interval depends on z² / n alone. It gets the value at which that of a normal distribution
    would have the given width, but at least the one of independent groups.

    Args:
        share: the proportion.
        half: half the width of the symmetric interval; 0 if no image differs.
        effective: number of independent lesions or patients.
        quantile: z, of the interval's level.
    """
    spread = share * (1 - share)
    ratio = quantile**2 / effective
    if spread > ROUNDING:
        ratio = max(ratio, half**2 / spread)
    middle = share + ratio / 2
    reach = (ratio * spread + ratio**2 / 4) ** 0.5
    return max(0.0, (middle - reach) / (1 + ratio)), min(1.0, (middle + reach) / (1 + ratio))


@dataclass(frozen=True)
class Term:
    """A proportion of images that is independent of other ones, with its weight in a sum.

    Attributes:
        effective: number of independent lesions or patients.
    """

    weight: float
    share: float
    effective: float

    def reach(self, quantile: float) -> tuple[float, float]:
        """Return how far the weighted proportion may be below and above its value, by Wilson's interval."""
        low, high = wilson_interval(self.share, 0.0, self.effective, quantile)
        below, above = abs(self.weight) * (self.share - low), abs(self.weight) * (high - self.share)
        return (below, above) if self.weight > 0 else (above, below)


def sum_interval(terms: Sequence[Term], quantile: float = NORMAL) -> tuple[float, float]:
    """Return the interval of a weighted sum of independent proportions.

    The squares of the distances to the ends of their Wilson intervals are added (Newcombe, 1998, for two
    proportions; Zou and Donner, 2008, for any sum). Unlike a normal interval, it has a width if all images
    of a class are classified correctly.

    Args:
        terms: the proportions.
        quantile: z, of the interval's level.
    """
    total = sum(term.weight * term.share for term in terms)
    below, above = zip(*(term.reach(quantile) for term in terms), strict=True)
    return total - math.hypot(*below), total + math.hypot(*above)


def sum_p(terms: Sequence[Term]) -> float:
    """Return the two-sided p-value of a weighted sum of 0: the level at which its interval ends there."""
    total = sum(term.weight * term.share for term in terms)
    if abs(total) < ROUNDING:
        return 1.0
    side = 0 if total > 0 else 1

    def end(quantile: float) -> float:
        return sum_interval(terms, quantile)[side] * (1 if total > 0 else -1)

    furthest = 37.0  # its tail is the smallest that a floating-point number can hold
    return 0.0 if end(furthest) > 0 else float(2 * ndtr(-brentq(end, 0.0, furthest)))


def seeds_p(differences: Floats) -> float | None:
    """Return the two-sided p-value of a paired t-test over seeds; ``None`` if there is no test.

    Undefined for fewer than two seeds, and if the difference is the same for all seeds: the spread is
    then unknown, because few seeds on few images may agree by chance. If no seed has a difference, p = 1.
    """
    if len(differences) > 1 and np.abs(differences).max() < ROUNDING:
        return 1.0
    if len(differences) < 2 or np.ptp(differences) < ROUNDING:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def paired_p(differences: Floats) -> float:
    """Return the two-sided bootstrap p-value of a paired difference: twice the smaller tail, at most 1.

    Samples with an undefined score do not count; samples without a difference count in both tails.
    """
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    tail = min((differences < ROUNDING).sum(), (differences > -ROUNDING).sum())
    return float(min(1.0, 2 * (tail + 1) / (n + 1)))


def delong_p(difference: float, influence: Floats) -> float:
    """Return the two-sided p-value of a difference in AUC over images in groups, after DeLong and Obuchowski.

    Args:
        difference: of the AUCs.
        influence: (G,) of each group on the difference, see :func:`prrfl.reports.statistics.auc_influence`.
    """
    if abs(difference) < ROUNDING:
        return 1.0
    error = float((influence**2).sum()) ** 0.5
    return float(2 * ndtr(-abs(difference) / error)) if error else 0.0


def swapped_p(differences: Floats) -> float:
    """Return the two-sided p-value of a permutation test.

    Args:
        differences: (1 + B,) the observed one, then those after random swaps.
    """
    extreme = np.abs(differences) >= abs(differences[0]) - ROUNDING
    return float(extreme.mean())


def holm(p: Mapping[Key, float | None]) -> dict[Key, float]:
    """Return the p-values of a family of tests that are known, corrected for their number (Holm, 1979)."""
    known = {key: value for key, value in p.items() if value is not None}
    corrected = dict(known)
    highest = 0.0
    for rank, key in enumerate(sorted(known, key=known.__getitem__)):
        highest = max(highest, min(1.0, (len(known) - rank) * known[key]))
        corrected[key] = highest
    return corrected
