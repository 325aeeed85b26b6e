"""Scores of logits, by scikit-learn. It is imported where it is used: that takes over a second."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prrfl.types import Examples, Predictions, Scores


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the unweighted mean over classes of F1 for (N, C) logits and (N,) labels, in [0, 1].

    As in scikit-learn, a class that is neither present nor predicted does not count.
    """
    from sklearn.metrics import f1_score

    predicted = logits.argmax(1).cpu().numpy()
    return float(f1_score(labels.cpu().numpy(), predicted, average="macro", zero_division=0.0))


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Return all scores of (N, C) logits against (N,) labels."""
    from sklearn.metrics import confusion_matrix

    classes = logits.shape[1]
    logits, labels = logits.detach().double().cpu(), labels.cpu()
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    confusion = confusion_matrix(truth, predicted, labels=np.arange(classes))
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
    from sklearn.metrics import roc_auc_score

    truth, values = labels.numpy(), probabilities.to(torch.float64).numpy()
    present = np.unique(truth)
    if len(present) < 2 or not np.isfinite(values).all():
        return None
    return float(np.mean([roc_auc_score(truth == c, values[:, c]) for c in present]))
