"""Assessment of one network on a set of images: its scores, with intervals over images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prrfl.reports.calibration import calibration_error, chance_error
from prrfl.reports.sampled import GroupedImages, sampled, supports
from prrfl.reports.statistics import Ints, confusion
from prrfl.reports.uncertainty import FEWEST_GROUPS, NORMAL, bca_interval, wilson_interval
from prrfl.types import Predictions

DRAWS = 2000


@dataclass(frozen=True)
class Measured:
    """A score, as a fraction, and its 95 % interval over images.

    For macro-F1, AUC and balanced accuracy it is the BCa bootstrap interval, with whole lesions or patients
    resampled. For a proportion of images it is Wilson's, with lesions or patients as the number of
    independent cases. ``None`` where a score is not defined (the AUC of a single class, the recall of a class
    without images), and for the first three also with fewer than five lesions or patients of a class, or
    without any spread.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Assessment:
    """Scores of one network on a set of images.

    Attributes:
        images: number of images.
        groups: number of lesions or patients in the images; an image of unknown origin counts as one.
        balanced_accuracy: unweighted mean of the recall of the classes that the images show.
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
    balanced_accuracy: Measured
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
    values = predictions.probabilities.double().numpy()
    predicted = values.argmax(1)
    images = GroupedImages.of(predictions)
    labels, groups = images.labels, images.groups
    right = predicted == labels
    found = sampled({"": images}, [{"": predictions}], DRAWS, np.random.default_rng(seed))[0]
    support = supports({"": images})

    def measured(name: str) -> Measured:
        scores = found.scores[name][""]
        if np.isnan(scores[0]):
            return Measured(None, None)
        enough = support[name][""].rarest >= FEWEST_GROUPS
        interval = bca_interval(scores, found.influence[name][""]) if enough else None
        return Measured(float(scores[0]), interval)

    return Assessment(
        images=len(labels),
        groups=int(groups.max()) + 1,
        macro_f1=measured("f1"),
        auc=measured("auc"),
        balanced_accuracy=measured("balanced_accuracy"),
        accuracy=_share(right, groups),
        recall=tuple(_share(right[labels == c], groups[labels == c]) for c in range(images.classes)),
        calibration_error=calibration_error(predictions),
        chance_error=chance_error(predictions, seed),
        log_loss=float(-np.log(np.clip(values[np.arange(len(labels)), labels], 1e-300, None)).mean()),
        confusion=confusion(labels, predicted, images.classes),
    )


def _share(right: NDArray[np.bool_], groups: Ints) -> Measured:
    """Return the proportion of images that are classified correctly."""
    if not len(right):
        return Measured(None, None)
    share = float(right.mean())
    return Measured(share, wilson_interval(share, 0.0, len(np.unique(groups)), NORMAL))
