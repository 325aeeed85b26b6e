"""The usual remedies for imbalanced classes, against scikit-learn and by their formulas."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from prrfl.losses import LOSSES, Focal, LogitAdjusted, Weighted

COUNTS = torch.tensor([6, 3, 1])
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.2], [1.0, 1.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0])


def value(loss, counts=COUNTS):
    return loss(LOGITS, LABELS, loss.constants(counts)).item()


def test_weights_are_those_of_scikit_learn():
    labels = torch.repeat_interleave(torch.arange(3), COUNTS).numpy()
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert Weighted().constants(COUNTS)["weights"].tolist() == pytest.approx(weights.tolist())
    assert Weighted().constants(torch.tensor([2, 0]))["weights"].tolist() == [0.5, 0]
    each = functional.cross_entropy(LOGITS, LABELS, reduction="none")
    weights = weights[LABELS.numpy()]
    mean = (each.numpy() * weights).sum() / weights.sum()
    assert value(Weighted()) == pytest.approx(mean, rel=1e-6)


def test_focal_loss_by_its_formula():
    p = LOGITS.softmax(1).gather(1, LABELS[:, None])
    assert value(Focal(2.0)) == pytest.approx((-((1 - p) ** 2) * p.log()).mean().item())
    assert value(Focal(0.0)) == pytest.approx(functional.cross_entropy(LOGITS, LABELS).item())


def test_adjusted_logits_by_their_formula():
    # Softmax of exp(z) n_c / N, as the balanced softmax defines it.
    scaled = LOGITS.exp() * torch.tensor([6.0, 3.0, 1.0])
    p = (scaled / scaled.sum(1, keepdim=True)).gather(1, LABELS[:, None])
    assert value(LogitAdjusted()) == pytest.approx(-p.log().mean().item(), rel=1e-6)
    assert value(LogitAdjusted(adjustment=0.0)) == pytest.approx(
        functional.cross_entropy(LOGITS, LABELS).item()
    )
    added = LogitAdjusted(adjustment=2.0).constants(torch.tensor([3, 0]))["added"]
    assert added.tolist() == pytest.approx([2 * math.log(3 / 4), 2 * math.log(1 / 4)])


@pytest.mark.parametrize("kind", LOSSES.values(), ids=LOSSES)
def test_a_step_against_the_loss_raises_the_probability_of_the_true_class(kind):
    loss, logits = kind(), LOGITS.clone().requires_grad_()
    loss(logits, LABELS, loss.constants(COUNTS)).backward()
    before = LOGITS.softmax(1).gather(1, LABELS[:, None])
    after = (LOGITS - 0.1 * logits.grad).softmax(1).gather(1, LABELS[:, None])
    assert (after > before).all()
