"""One network judged by what it said of a set of images: scores, and how far other images could move them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from prrfl.reports.calibration import calibration_error, chance_error
from prrfl.reports.statistics import (
    Floats,
    confusion,
    group_indices,
    macro_auc,
    macro_f1,
    percentile_interval,
    resamples,
)
from prrfl.types import Predictions

DRAWS = 2000


@dataclass(frozen=True)
class Measured:
    """A score, a fraction, and its 95 % interval.

    Percentiles over bootstrap samples, whole lesions or patients drawn; for a share of images Wilson's,
    because resampling knows nothing of what a few images did not show. It takes images as independent.
    ``None`` where it is not defined: AUC of a single class, recall of a class without images.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Judgement:
    """All of it.

    Attributes:
        images: number of images.
        groups: number of lesions or patients that they show; an image of an unknown one counts as one.
        recall: per class, share of its images found.
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


def judge(predictions: Predictions, seed: int = 0) -> Judgement:
    """Return the judgement of predictions of one image or more.

    Args:
        predictions: of the images.
        seed: of the bootstrap.
    """
    labels = predictions.labels.numpy()
    values = predictions.probabilities.double().numpy()
    images, classes = values.shape
    predicted = values.argmax(1)
    # The first sample is the set itself, so that score and interval come out of one calculation.
    groups = group_indices(predictions)
    draws = resamples(groups, DRAWS, np.random.default_rng(seed))
    counts = np.vstack([np.ones(images), draws])
    right = predicted == labels
    return Judgement(
        images=images,
        groups=int(groups.max()) + 1,
        macro_f1=_measured(macro_f1(counts, labels, predicted)),
        auc=_measured(macro_auc(counts, labels, values) if len(set(labels)) > 1 else np.full(1, np.nan)),
        accuracy=_share(right),
        recall=tuple(_share(right[labels == c]) for c in range(classes)),
        calibration_error=calibration_error(predictions),
        chance_error=chance_error(predictions, seed),
        log_loss=float(-np.log(np.clip(values[np.arange(images), labels], 1e-300, None)).mean()),
        confusion=confusion(labels, predicted, classes),
    )


def _share(right: NDArray[np.bool_]) -> Measured:
    """Return which share of some images is right."""
    if not len(right):
        return Measured(None, None)
    ends = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return Measured(float(right.mean()), (float(ends.low), float(ends.high)))


def _measured(samples: Floats) -> Measured:
    value = float(samples[0])
    if np.isnan(value):
        return Measured(None, None)
    return Measured(value, percentile_interval(samples[1:]))
