"""Influences of lesions, DeLong's variance and swapped predictions, by other ways of computing them."""

from itertools import product

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from prrfl.reports import statistics, uncertainty

LABELS = np.array([0] * 14 + [1] * 9 + [2] * 5)
GROUPS = np.arange(28) // 2


def probabilities(seed, skill=1.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(28, 3)).round(1)
    logits[np.arange(28), LABELS] += skill
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_influences_are_derivatives_by_the_weight_of_a_lesion():
    values = probabilities(0)
    answers = values.argmax(1)
    step = 2.0**-8
    weights = np.ones((15, 28), dtype=np.float32)
    for group in range(14):
        weights[group + 1, group == GROUPS] += step
    confusions = statistics.resampled_confusions(weights, LABELS, answers, 3)
    balanced = statistics.mean_of_defined(statistics.recalls_of(confusions))
    auc = np.array([roc_auc_score(LABELS, values, multi_class="ovr", sample_weight=w) for w in weights])
    for found, scores in (
        (statistics.f1_influence(LABELS, answers, GROUPS), statistics.f1_of(confusions)),
        (statistics.balanced_accuracy_influence(LABELS, answers, GROUPS), balanced),
    ):
        assert found == pytest.approx((scores[1:] - scores[0]) / step, abs=4e-4)
        assert found.sum() == pytest.approx(0, abs=1e-12)
        assert np.abs(found).max() > 0.01
    # That of AUC is larger by the correction for few lesions, here at most by (3 / 2) ** 0.5.
    slopes = (auc[1:] - auc[0]) / step
    found = statistics.auc_influence(LABELS, values, GROUPS)
    assert np.corrcoef(found, slopes)[0, 1] > 0.99
    assert 1 < (found**2).sum() / (slopes**2).sum() < 1.5


def delong(positive, values):
    """Return DeLong's variance of an AUC, from its definition."""
    wins = (values[positive][:, None] > values[~positive]) + 0.5 * (
        values[positive][:, None] == values[~positive]
    )
    assert wins.mean() == pytest.approx(roc_auc_score(positive, values))
    return sum(wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1))


def test_the_influence_on_auc_is_delongs_for_single_images():
    labels = (LABELS == 0).astype(np.int64)
    first = probabilities(1)[:, 0]
    both = np.stack([1 - first, first], axis=1)
    found = statistics.auc_influence(labels, both, np.arange(28))
    assert (found**2).sum() == pytest.approx(delong(labels == 1, first))
    second = probabilities(2)[:, 0]
    # A test of the same values has no difference.
    assert uncertainty.delong_p(0.0, found - found) == 1.0
    others = statistics.auc_influence(labels, np.stack([1 - second, second], axis=1), np.arange(28))
    gap = roc_auc_score(labels, first) - roc_auc_score(labels, second)
    assert 0 < uncertainty.delong_p(gap, found - others) < 1


def test_more_images_of_a_lesion_make_delongs_test_no_surer():
    rng = np.random.default_rng(3)
    labels = np.repeat(rng.random(40) < 0.4, 3).astype(np.int64)
    values = np.repeat(rng.random(40), 3)
    both = np.stack([1 - values, values], axis=1)
    many = statistics.auc_influence(labels, both, np.repeat(np.arange(40), 3))
    once = statistics.auc_influence(labels[::3], both[::3], np.arange(40))
    assert many == pytest.approx(once)
    alone = statistics.auc_influence(labels, both, np.arange(120))
    assert (alone**2).sum() < 0.5 * (many**2).sum()


def test_swaps_by_hand():
    ours, theirs = (probabilities(seed).argmax(1) for seed in (4, 5))
    swaps = np.array(list(product((0, 1), repeat=3)), dtype=np.float32)
    groups = np.arange(28) % 3
    found = statistics.swapped_f1(swaps[:, groups], LABELS, ours, theirs)
    for row, difference in zip(swaps[:, groups] == 1, found, strict=True):
        one, two = np.where(row, theirs, ours), np.where(row, ours, theirs)
        gap = f1_score(LABELS, one, average="macro") - f1_score(LABELS, two, average="macro")
        assert difference == pytest.approx(gap)
    assert found[0] == -found[-1] != 0
    assert uncertainty.swapped_p(np.array([0.2, 0.1, -0.2, 0.3])) == 0.75
    drawn = statistics.swaps_of(np.array([0, 0, 1]), 200, np.random.default_rng(0))
    assert drawn.shape == (201, 3)
    assert not drawn[0].any()
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert 0.3 < (drawn[1:, 0] != drawn[1:, 2]).mean() < 0.7


def test_swapping_seldom_tells_equal_networks_apart():
    rng, errors = np.random.default_rng(8), 0
    labels, groups = np.repeat(LABELS, 2), np.repeat(np.arange(28), 2)
    for _ in range(200):
        answers = [
            np.where(np.repeat(rng.random(28) < 0.6, 2), labels, rng.integers(3, size=56)) for _ in "ab"
        ]
        found = statistics.swapped_f1(statistics.swaps_of(groups, 99, rng), labels, *answers)
        errors += uncertainty.swapped_p(found) <= 0.05
    assert errors <= 0.05 * 200 + 3 * (0.05 * 0.95 * 200) ** 0.5
    assert errors > 0
