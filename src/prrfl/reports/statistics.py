"""How sure a score is: bootstrap over test images, intervals over seeds, corrected p-values."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def resamples(labels: Ints, draws: int, rng: np.random.Generator) -> Floats:
    """Draw bootstrap samples of a test set within its classes, so that a rare class is never lost.

    Args:
        labels: (N,) true classes.
        draws: number B of samples.
        rng: source of randomness.

    Returns:
        (B, N): how often each image is in each sample.
    """
    counts = np.zeros((draws, len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        even = np.full(len(members), 1 / len(members))
        counts[:, members] = rng.multinomial(len(members), even, size=draws)
    return counts


def macro_f1(counts: Floats, labels: Ints, predicted: Ints) -> Floats:
    """Return the macro-F1 of each sample, (B,), as scikit-learn defines it; see :func:`resamples`."""
    scores = []
    for label in np.union1d(labels, predicted):
        truth, answer = labels == label, predicted == label
        both = counts @ (truth & answer)
        either = counts @ truth + counts @ answer
        with np.errstate(invalid="ignore"):
            scores.append(2 * both / either)  # NaN where a sample neither shows nor predicts the class
    mean: Floats = np.nanmean(scores, axis=0)
    return mean


def macro_auc(counts: Floats, labels: Ints, probabilities: Floats) -> Floats:
    """Return the macro one-vs-rest AUC of each sample, (B,); NaN where the labels show a single class.

    Args:
        counts: (B, N), see :func:`resamples`.
        labels: (N,) true classes.
        probabilities: (N, C).
    """
    shown = np.unique(labels)
    if len(shown) < 2:
        return np.full(len(counts), np.nan)
    areas = [_auc(counts, labels == label, probabilities[:, label]) for label in shown]
    mean: Floats = np.mean(areas, axis=0)
    return mean


def _auc(counts: Floats, positive: NDArray[np.bool_], values: Floats) -> Floats:
    order = np.argsort(values, kind="stable")
    counts, positive, values = counts[:, order], positive[order], values[order]
    starts = np.flatnonzero(np.r_[True, np.diff(values) > 0])  # equal values count as half a win
    wins = np.add.reduceat(counts * positive, starts, axis=1)
    losses = np.add.reduceat(counts * ~positive, starts, axis=1)
    below = losses.cumsum(1) - losses
    area: Floats = (wins * (below + losses / 2)).sum(1) / (wins.sum(1) * losses.sum(1))
    return area


def seed_interval(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % t-interval of a mean over seeds; ``None`` for fewer than two."""
    if len(values) < 2:
        return None
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(stats.t.ppf(0.975, len(values) - 1) * spread)


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of bootstrap scores; ``None`` where they are not defined."""
    if np.isnan(values).any():
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_p(differences: Floats) -> float:
    """Return the two-sided bootstrap p-value of a paired difference: twice the smaller tail, at most 1."""
    n = len(differences)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (n + 1)))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979), in the order given."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(values)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected
