"""Uncertainty of scores: bootstrap over groups of test images, intervals over seeds, corrected p-values."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prrfl.types import Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPECIFICITY = 0.9
"""Specificity at which the sensitivity for a class is measured."""

ROUNDING = 1e-12
"""Differences of fractions below this are rounding errors of sums."""


def confusion(labels: Ints, predicted: Ints, classes: int) -> tuple[tuple[int, ...], ...]:
    """Return the confusion matrix: rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix  # takes over a second to import

    counts = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return tuple(tuple(map(int, row)) for row in counts)


def group_indices(predictions: Predictions) -> Ints:
    """Return (N,) the group of each image, counted from 0. An image without a group forms one of its own."""
    groups = predictions.groups or (None,) * len(predictions.ids)
    names = [row if name is None else name for row, name in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def resamples(groups: Ints, draws: int, rng: np.random.Generator) -> Floats:
    """Draw bootstrap samples of a test set, group by group.

    All images of a lesion are drawn together: another test set would have other lesions, and a second image
    of a lesion adds little. Samples are not stratified by class, because the number of images of a class is
    as random as the images. A sample may lack a rare class; scores then leave it out.

    Args:
        groups: (N,), see :func:`group_indices`.
        draws: number B of samples.
        rng: generator of random numbers.

    Returns:
        (B, N): how often each image is in each sample.
    """
    count = int(groups.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, groups].astype(np.float64)


def mean_of_defined(values: Sequence[Floats]) -> Floats:
    """Return the elementwise mean of arrays without their NaNs; NaN where all are NaN."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        mean: Floats = np.nansum(values, axis=0) / (~np.isnan(values)).sum(axis=0)
    return mean


def resampled_f1(counts: Floats, labels: Ints, predicted: Ints) -> Floats:
    """Return the macro-F1 of each sample, (B,), as scikit-learn defines it; see :func:`resamples`.

    A class that neither occurs nor is predicted in a sample does not count.
    """
    scores = []
    for label in np.union1d(labels, predicted):
        truth, answer = labels == label, predicted == label
        both = counts @ (truth & answer)
        either = counts @ truth + counts @ answer
        with np.errstate(invalid="ignore"):
            scores.append(2 * both / either)
    return mean_of_defined(scores)


def resampled_recall(counts: Floats, labels: Ints, predicted: Ints, label: int) -> Floats:
    """Return the recall of a class in each sample, (B,); NaN for a sample without the class."""
    truth = labels == label
    with np.errstate(invalid="ignore"):
        recall: Floats = counts @ (truth & (predicted == label)) / (counts @ truth)
    return recall


def resampled_balanced_accuracy(counts: Floats, labels: Ints, predicted: Ints) -> Floats:
    """Return the mean recall of the classes that occur in each sample, (B,), as scikit-learn defines it."""
    return mean_of_defined(
        [resampled_recall(counts, labels, predicted, label) for label in np.unique(labels)]
    )


def resampled_auc(counts: Floats, labels: Ints, probabilities: Floats) -> Floats:
    """Return the macro one-vs-rest AUC of each sample, (B,), over the classes that occur in it.

    NaN for a sample of a single class.

    Args:
        counts: (B, N), see :func:`resamples`.
        labels: (N,) true classes.
        probabilities: (N, C).
    """
    return mean_of_defined(
        [_auc(counts, labels == label, probabilities[:, label]) for label in np.unique(labels)]
    )


def _auc(counts: Floats, positive: NDArray[np.bool_], values: Floats) -> Floats:
    wins, losses = _tallies(counts, positive, values)
    below = losses.cumsum(1) - losses
    with np.errstate(invalid="ignore"):  # no pair to compare: NaN
        # Equal values count as half a win.
        area: Floats = (wins * (below + losses / 2)).sum(1) / (wins.sum(1) * losses.sum(1))
    return area


def resampled_sensitivity(counts: Floats, positive: NDArray[np.bool_], values: Floats) -> Floats:
    """Return the sensitivity for a class at 90 % specificity in each sample, (B,).

    It is the largest among the thresholds whose specificity is at least 90 %, as on scikit-learn's
    ``roc_curve`` with all its points. NaN for a sample that lacks the class, or has no other.

    Args:
        counts: (B, N), see :func:`resamples`.
        positive: (N,) whether an image is of the class.
        values: (N,) its probability of the class.
    """
    found, false = (tally[:, ::-1].cumsum(1) for tally in _tallies(counts, positive, values))
    positives, negatives = found[:, -1], false[:, -1]
    specific = negatives[:, None] - false >= SPECIFICITY * negatives[:, None]
    with np.errstate(invalid="ignore"):
        sensitivity: Floats = np.where(specific, found, 0.0).max(1) / positives
    return np.where(negatives > 0, sensitivity, np.nan)


def _tallies(counts: Floats, positive: NDArray[np.bool_], values: Floats) -> tuple[Floats, Floats]:
    """Return how many positive and negative images have each value, (B, V), by increasing value."""
    order = np.argsort(values, kind="stable")
    counts, positive, values = counts[:, order], positive[order], values[order]
    starts = np.flatnonzero(np.r_[True, np.diff(values) > 0])
    of_class, of_others = (np.add.reduceat(counts * which, starts, axis=1) for which in (positive, ~positive))
    return of_class, of_others


def seed_interval(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % t-interval of a mean over seeds; ``None`` for fewer than two."""
    if len(values) < 2:
        return None
    from scipy import stats  # takes half a second, and only a comparison over seeds needs it

    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1) * spread)


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the bootstrap scores that are not NaN; ``None`` if all are."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def seeds_p(differences: Floats) -> float | None:
    """Return the two-sided p-value of a paired t-test over seeds; ``None`` if there is no test.

    Undefined for fewer than two seeds, and if the difference is the same for all seeds: the spread is
    then unknown, because few seeds on few images may agree by chance. If no seed has a difference, p = 1.
    """
    if len(differences) > 1 and np.abs(differences).max() < ROUNDING:
        return 1.0
    if len(differences) < 2 or np.ptp(differences) < ROUNDING:
        return None
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def paired_p(differences: Floats) -> float:
    """Return the two-sided bootstrap p-value of a paired difference: twice the smaller tail, at most 1.

    Samples with an undefined score do not count; samples without a difference count in both tails.
    """
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    tail = min((differences < ROUNDING).sum(), (differences > -ROUNDING).sum())
    return float(min(1.0, 2 * (tail + 1) / (n + 1)))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple tests (Holm, 1979), in the given order."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(values)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected
