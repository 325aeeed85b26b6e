"""Scores of logits, as scikit-learn defines them.

They are counted here because every process that trains would import scikit-learn for 1.3 s, and its checks of
arguments take longer than the scores of a small site.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from prrfl.types import Examples, Predictions, Scores


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the unweighted mean over classes of F1 for (N, C) logits and (N,) labels, in [0, 1].

    As in scikit-learn, a class that is neither present nor predicted does not count.
    """
    confusion = _confusion(labels.cpu().numpy(), logits.argmax(1).cpu().numpy(), logits.shape[1])
    images = confusion.sum(0) + confusion.sum(1)
    counted = images > 0
    return float(np.mean(2 * confusion.diagonal()[counted] / images[counted]))


def _confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the number of images of each true class (row) that were predicted as each class (column)."""
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Return all scores of (N, C) logits against (N,) labels."""
    classes = logits.shape[1]
    logits, labels = logits.detach().double().cpu(), labels.cpu()
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    confusion = _confusion(truth, predicted, classes)
    present = confusion.sum(1)
    return Scores(
        n=len(truth),
        loss=functional.cross_entropy(logits, labels).item(),
        macro_f1=macro_f1(logits, labels),
        auc=macro_auc(logits.softmax(1), labels),
        accuracy=float((truth == predicted).mean()),
        recall=tuple(float(confusion[c, c] / present[c]) if present[c] else None for c in range(classes)),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )


def predictions(logits: Tensor, examples: Examples, temperature: float = 1.0) -> Predictions:
    """Return the predictions on examples, from (N, C) logits divided by a temperature."""
    ids = examples.ids or tuple(map(str, range(len(examples))))
    return Predictions(ids, examples.labels, probabilities(logits, temperature), examples.groups)


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the float64 softmax of (N, C) logits, divided by a temperature."""
    return (logits.double() / temperature).softmax(1)


def macro_auc(probabilities: Tensor, labels: Tensor) -> float | None:
    """Return the unweighted mean over classes of the one-vs-rest AUC of (N, C) probabilities.

    The mean is over the classes that occur in the labels; ``None`` if there is only one.
    """
    truth, values = labels.numpy(), probabilities.to(torch.float64).numpy()
    present = np.unique(truth)
    if len(present) < 2 or not np.isfinite(values).all():
        return None
    return float(np.mean([_auc(truth == c, values[:, c]) for c in present]))


def _auc(positive: NDArray[np.bool_], values: NDArray[np.float64]) -> float:
    """Return the share of pairs of a positive and a negative whose values are in order; a tie is a half."""
    _, place, images = np.unique(values, return_inverse=True, return_counts=True)
    positives = np.bincount(place[positive], minlength=len(images))
    negatives = images - positives
    lower = negatives.cumsum() - negatives
    return float((positives * (2 * lower + negatives)).sum() / (2 * positives.sum() * negatives.sum()))
