"""Scores of bootstrap samples of a test set, drawn by lesion or patient, and their influence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats
from sklearn.metrics import confusion_matrix

from prrfl.types import Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SampleCounts = NDArray[np.float32]
"""Numbers of images, which float32 holds exactly."""

SPECIFICITY = 0.9
"""Specificity at which the sensitivity for a class is measured."""

ROUNDING = 1e-12
"""Differences of fractions below this are rounding errors of sums."""

ROWS = 64
"""Rows that are multiplied and added at a time."""


def confusion(labels: Ints, predicted: Ints, classes: int) -> tuple[tuple[int, ...], ...]:
    """Return the confusion matrix: rows are true classes, columns predicted ones."""
    counts = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return tuple(tuple(map(int, row)) for row in counts)


def group_indices(predictions: Predictions) -> Ints:
    """Return (N,) the group of each image, counted from 0. An image without a group forms one of its own."""
    groups = predictions.groups or (None,) * len(predictions.ids)
    names = [row if name is None else name for row, name in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def resamples(groups: Ints, draws: int, rng: np.random.Generator) -> SampleCounts:
    """Draw bootstrap samples of a test set, group by group.

    All images of a lesion are drawn together: another test set would have other lesions, and a second image
    of a lesion adds little. Samples are not stratified by class, because the number of images of a class is
    as random as the images. A sample may lack a rare class; scores then leave it out.

    Args:
        groups: (N,), see :func:`group_indices`.
        draws: number B of samples.
        rng: generator of random numbers.

    Returns:
        (B, N): how often each image is in each sample. The B values of an image are contiguous, because
        scores add images of all samples at once.
    """
    count = int(groups.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    counts: SampleCounts = drawn.T.astype(np.float32)[groups].T
    return counts


def mean_of_defined(values: Sequence[Floats] | Floats) -> Floats:
    """Return the elementwise mean of arrays without their NaNs; NaN where all are NaN."""
    with np.errstate(invalid="ignore"):  # 0 / 0
        mean: Floats = np.nansum(values, axis=0) / (~np.isnan(values)).sum(axis=0)
    return mean


def resampled_confusions(counts: SampleCounts, labels: Ints, predicted: Ints, classes: int) -> Floats:
    """Return the confusion matrix of each sample, (C, C, B): true classes, predicted ones, samples.

    Args:
        counts: (B, N), see :func:`resamples`.
        labels: (N,) true classes.
        predicted: (N,) predicted classes.
        classes: number C of classes.
    """
    every = np.ones(len(labels), dtype=bool)
    cells = _binned(counts, every, labels * classes + predicted, classes**2)
    return cells.reshape(classes, classes, -1).astype(np.float64)


def f1_of(confusions: Floats) -> Floats:
    """Return the macro-F1 of confusion matrices, (B,), as scikit-learn defines it.

    A class that neither occurs nor is predicted in a sample does not count.
    """
    both = np.einsum("ccb->cb", confusions)
    either = confusions.sum(0) + confusions.sum(1)
    with np.errstate(invalid="ignore"):
        return mean_of_defined(2 * both / either)


def recalls_of(confusions: Floats) -> Floats:
    """Return the recall of each class, (C, B); NaN for a sample without the class."""
    with np.errstate(invalid="ignore"):
        recalls: Floats = np.einsum("ccb->cb", confusions) / confusions.sum(1)
    return recalls


def one_hot(labels: Ints, classes: Ints) -> Floats:
    """Return (C, N): 1 where an image has the class, otherwise 0."""
    chosen: NDArray[np.bool_] = labels == classes[:, None]
    return chosen.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Ranking:
    """How the images of a class rank among the others, in each sample.

    Only the P values that images of the class have matter. The other images between two of them need not be
    sorted, and their number is a product with a sparse matrix. For a rare class this is many times as fast as
    sums along all sorted images.

    Attributes:
        positives: (P, B) number of images of the class with each of their values, by increasing value.
        below: (P, B) number of other images with a smaller value.
        wins: the same, with other images of the same value as half a one each.
        negatives: (B,) number of other images.
    """

    positives: SampleCounts
    below: SampleCounts
    wins: SampleCounts
    negatives: SampleCounts

    @classmethod
    def of(cls, counts: SampleCounts, positive: NDArray[np.bool_], values: Floats) -> Self:
        """Return the ranking of N images by their values.

        Args:
            counts: (B, N), see :func:`resamples`.
            positive: (N,) whether an image is of the class.
            values: (N,) its probability of the class.
        """
        levels = np.unique(values[positive])
        at = np.searchsorted(levels, values)
        equal = np.append(levels, np.nan)[at] == values
        # Bins of other images: below a level, and at it; the last bin is above all levels.
        others = _binned(counts, ~positive, 2 * at + equal, 2 * len(levels) + 1)
        # Row by row this is ten times as fast as `cumsum`, which adds along the first axis one by one.
        for row in range(1, len(others)):
            others[row] += others[row - 1]
        below = others[:-1:2]
        wins: SampleCounts = (below + others[1::2]) / np.float32(2) if (equal & ~positive).any() else below
        return cls(_binned(counts, positive, at, len(levels)), below, wins, others[-1])

    def auc(self) -> Floats:
        """Return the AUC of each sample, (B,); NaN without a pair to compare."""
        # Sums of few rows are exact in float32.
        won = [
            np.einsum("pb,pb->b", self.positives[row : row + ROWS], self.wins[row : row + ROWS])
            for row in range(0, len(self.positives), ROWS)
        ]
        pairs = self.positives.sum(0, dtype=np.float64) * self.negatives
        with np.errstate(invalid="ignore"):
            area: Floats = np.sum(won, axis=0, dtype=np.float64) / pairs
        return area

    def sensitivity(self) -> Floats:
        """Return the sensitivity of each sample at 90 % specificity, (B,).

        It is the largest among the thresholds whose specificity is at least 90 %, as on scikit-learn's
        ``roc_curve`` with all its points. NaN for a sample that lacks the class, or has no other.
        """
        # In float64, because 0.9 times a whole number must not be rounded up beyond one.
        needed = np.ceil(SPECIFICITY * self.negatives.astype(np.float64) - ROUNDING)
        specific = self.below >= needed
        found = np.where(specific, self.positives, 0).sum(0, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            sensitivity: Floats = found / self.positives.sum(0, dtype=np.float64)
        return np.where(self.negatives > 0, sensitivity, np.nan)


def _binned(counts: SampleCounts, which: NDArray[np.bool_], bins: Ints, size: int) -> SampleCounts:
    """Return how many of certain images are in each bin, in each sample: (bins, B)."""
    rows = np.flatnonzero(which)
    ones = np.ones(len(rows), dtype=np.float32)
    binned: SampleCounts = sparse.csr_array((ones, (bins[rows], rows)), shape=(size, len(which))) @ counts.T
    return binned


def f1_influence(labels: Ints, predicted: Ints, groups: Ints) -> Floats:
    """Return the derivative of macro-F1 by the weight of each group, (G,): its empirical influence.

    The sum of squares is the infinitesimal jackknife's variance (Efron, 1982), also for the others.
    """
    shown = np.union1d(labels, predicted)
    truth, answer = one_hot(labels, shown), one_hot(predicted, shown)
    both, either = truth * answer, truth + answer
    f1 = 2 * both.sum(1) / either.sum(1)
    return _by_group(((2 * both - f1[:, None] * either) / either.sum(1)[:, None]).mean(0), groups)


def accuracy_influence(labels: Ints, predicted: Ints, groups: Ints) -> Floats:
    """Return the influence of each group on accuracy, (G,)."""
    right = labels == predicted
    return _by_group((right - right.mean()) / len(right), groups)


def balanced_accuracy_influence(labels: Ints, predicted: Ints, groups: Ints) -> Floats:
    """Return the influence of each group on balanced accuracy, (G,)."""
    truth = one_hot(labels, np.unique(labels))
    right = labels == predicted
    images = truth.sum(1)
    recalls = (truth * right).sum(1) / images
    return _by_group((truth * (right - recalls[:, None]) / images[:, None]).mean(0), groups)


def auc_influence(labels: Ints, probabilities: Floats, groups: Ints) -> Floats:
    """Return the influence of each group on the macro one-vs-rest AUC, (G,); zeros for a single class.

    The sum of squares is the variance of DeLong et al. (1988), extended to images in groups by Obuchowski
    (Biometrics 1997): components of all images of a group are added before they are squared.
    """
    shown = np.unique(labels)
    influence = np.zeros(len(labels))
    for k in shown if len(shown) > 1 else ():
        positive, values = labels == k, probabilities[:, k]
        ranks = stats.rankdata(values)
        for which, others in ((positive, ~positive), (~positive, positive)):
            # Fraction of the other images with a smaller value.
            wins = (ranks[which] - stats.rankdata(values[which])) / others.sum()
            members = len(np.unique(groups[which]))
            unbiased = (members / max(members - 1, 1)) ** 0.5
            sign = 1 if which is positive else -1
            influence[which] += sign * unbiased * (wins - wins.mean()) / which.sum()
    return _by_group(influence / len(shown), groups)


def swaps_of(groups: Ints, draws: int, rng: np.random.Generator) -> SampleCounts:
    """Return whether the predictions for each image are swapped, (1 + B, N): in the first case, none.

    Args:
        groups: (N,) lesion or patient of each image; its images are swapped together.
        draws: number B of random swaps.
        rng: generator of random numbers.
    """
    drawn = rng.integers(2, size=(int(groups.max()) + 1, draws + 1)).astype(np.float32)
    drawn[:, 0] = 0
    swaps: SampleCounts = drawn[groups].T
    return swaps


def swapped_f1(swaps: SampleCounts, labels: Ints, ours: Ints, theirs: Ints) -> Floats:
    """Return the difference in macro-F1 of two networks, (1 + B,), after each swap of their predictions.

    Args:
        swaps: (1 + B, N), see :func:`swaps_of`.
        labels: (N,) true classes.
        ours: (N,) predicted by one network.
        theirs: (N,) predicted by the other.
    """
    classes = int(max(labels.max(), ours.max(), theirs.max())) + 1
    once = np.ones((1, len(labels)), dtype=np.float32)
    own, others = (resampled_confusions(once, labels, answers, classes) for answers in (ours, theirs))
    lost, gained = (resampled_confusions(swaps, labels, answers, classes) for answers in (ours, theirs))
    change = gained - lost
    return f1_of(own + change) - f1_of(others - change)


def _by_group(influence: Floats, groups: Ints) -> Floats:
    return np.bincount(groups, weights=influence).astype(np.float64)
