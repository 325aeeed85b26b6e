"""Assessment of one network on a set of images: its scores, with intervals over images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prrfl.reports.calibration import calibration_error, chance_error
from prrfl.reports.statistics import (
    Floats,
    confusion,
    group_indices,
    percentile_interval,
    resampled_auc,
    resampled_f1,
    resamples,
)
from prrfl.types import Predictions

DRAWS = 2000


@dataclass(frozen=True)
class Measured:
    """A score, as a fraction, and its 95 % interval.

    The interval is that of bootstrap percentiles, with whole lesions or patients resampled. For a proportion
    of images it is Wilson's, which is better for few images, but takes images as independent. ``None`` where
    a score is not defined: the AUC of a single class, the recall of a class without images.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Assessment:
    """Scores of one network on a set of images.

    Attributes:
        images: number of images.
        groups: number of lesions or patients in the images; an image of unknown origin counts as one.
        recall: per class, fraction of its images that are classified correctly.
        calibration_error: see :func:`prrfl.reports.calibration.calibration_error`.
        chance_error: the calibration error that a perfectly calibrated network would show on as many images.
        log_loss: mean negative log-likelihood of the true class, in nats.
        confusion: rows are true classes, columns predicted ones.
    """

    images: int
    groups: int
    macro_f1: Measured
    auc: Measured
    accuracy: Measured
    recall: tuple[Measured, ...]
    calibration_error: float
    chance_error: float
    log_loss: float
    confusion: tuple[tuple[int, ...], ...]


def assess(predictions: Predictions, seed: int = 0) -> Assessment:
    """Return the assessment of the predictions on one image or more.

    Args:
        predictions: a network's predictions.
        seed: seed of the bootstrap.
    """
    labels = predictions.labels.numpy()
    values = predictions.probabilities.double().numpy()
    images, classes = values.shape
    predicted = values.argmax(1)
    # The first sample is the set itself, so that one calculation gives scores and intervals.
    groups = group_indices(predictions)
    draws = resamples(groups, DRAWS, np.random.default_rng(seed))
    counts = np.vstack([np.ones(images), draws])
    right = predicted == labels
    return Assessment(
        images=images,
        groups=int(groups.max()) + 1,
        macro_f1=_measured(resampled_f1(counts, labels, predicted)),
        auc=_measured(resampled_auc(counts, labels, values) if len(set(labels)) > 1 else np.full(1, np.nan)),
        accuracy=_share(right),
        recall=tuple(_share(right[labels == c]) for c in range(classes)),
        calibration_error=calibration_error(predictions),
        chance_error=chance_error(predictions, seed),
        log_loss=float(-np.log(np.clip(values[np.arange(images), labels], 1e-300, None)).mean()),
        confusion=confusion(labels, predicted, classes),
    )


def _share(right: NDArray[np.bool_]) -> Measured:
    """Return the proportion of images that are classified correctly."""
    if not len(right):
        return Measured(None, None)
    from scipy.stats import binomtest  # takes half a second, which a run must not wait for

    ends = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return Measured(float(right.mean()), (float(ends.low), float(ends.high)))


def _measured(samples: Floats) -> Measured:
    value = float(samples[0])
    if np.isnan(value):
        return Measured(None, None)
    return Measured(value, percentile_interval(samples[1:]))
