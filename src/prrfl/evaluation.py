"""Scores of logits, as scikit-learn defines them.

Its own functions take 3 to 15 ms a call to check their inputs. A round needs dozens of scores, and several
sites that share a GPU also share the processor, which would keep the GPU waiting. A test compares the two.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from prrfl.types import Examples, Predictions, Scores


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the unweighted mean over classes of F1 for (N, C) logits and (N,) labels, in [0, 1].

    A class that is neither present nor predicted does not count.
    """
    return _macro_f1(_confusion(logits, labels))


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Return all scores of (N, C) logits against (N,) labels."""
    logits, labels = logits.detach().double().cpu(), labels.cpu()
    confusion = _confusion(logits, labels)
    right, present = confusion.diagonal(), confusion.sum(1)
    return Scores(
        n=len(labels),
        loss=functional.cross_entropy(logits, labels).item(),
        macro_f1=_macro_f1(confusion),
        auc=macro_auc(logits.softmax(1), labels),
        accuracy=float(right.sum() / len(labels)),
        recall=tuple(float(r / n) if n else None for r, n in zip(right, present, strict=True)),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def _confusion(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Return the (C, C) numbers of images by class (rows) and prediction (columns)."""
    classes = logits.shape[1]
    cells = labels.cpu() * classes + logits.argmax(1).cpu()
    return torch.bincount(cells, minlength=classes**2).view(classes, classes).numpy()


def _macro_f1(confusion: NDArray[np.int64]) -> float:
    present_or_predicted = confusion.sum(0) + confusion.sum(1)
    counts = present_or_predicted > 0
    return float((2 * confusion.diagonal()[counts] / present_or_predicted[counts]).mean())


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
    # Here, because importing it takes a second.
    from scipy.stats import rankdata

    truth, values = labels.numpy(), probabilities.to(torch.float64).numpy()
    classes = np.unique(truth)
    if len(classes) < 2 or not np.isfinite(values).all():
        return None
    # AUC is the fraction of pairs, an image of the class and another, in the right order (Mann and Whitney).
    positive = truth[:, None] == classes
    n = positive.sum(0)
    below = (rankdata(values[:, classes], axis=0) * positive).sum(0) - n * (n + 1) / 2
    return float((below / (n * (len(truth) - n))).mean())
