"""Subgroups of predictions: whole lesions count, and two that are each other's rest are one test."""

import numpy as np
import pytest
import torch

from prrfl.reports.subgroups import by_subgroup, findings, scores_of
from prrfl.types import Partition, Predictions

CLASSES = ("nv", "bkl", "mel")


def predicted(labels, answers, groups=()):
    probabilities = torch.eye(3, dtype=torch.float64)[torch.tensor(answers)] * 0.7 + 0.1
    return Predictions(tuple(map(str, range(len(labels)))), torch.tensor(labels), probabilities, groups)


def halves(n, times=1):
    """Return labels, answers and halves: the second half is right less often."""
    labels = [k % 3 for k in range(n)]
    wrong = [k % 10 == 0 or (k >= n // 2 and k % 2) for k in range(n)]
    answers = [(label + bad) % 3 for label, bad in zip(labels, wrong, strict=True)]
    side = ["first"] * (n // 2) + ["second"] * (n - n // 2)
    return [[x for x in of for _ in range(times)] for of in (labels, answers, side)]


def test_more_photographs_of_the_same_lesions_make_no_gap_surer():
    gaps = []
    for times in (1, 4):
        labels, answers, side = halves(60, times)
        groups = tuple(f"lesion{k}" for k in range(60) for _ in range(times))
        rows = by_subgroup(
            {"a": predicted(labels, answers, groups)},
            [Partition("half", ("first", "second"), {"a": tuple(side)})],
        )
        assert [row.scores.groups for row in rows] == [30, 30]
        assert [row.scores.images for row in rows] == [30 * times, 30 * times]
        gaps.append(rows[1].gap)
    assert gaps[0].value < -0.3
    assert gaps[1].value == pytest.approx(gaps[0].value)
    assert gaps[1].interval == pytest.approx(gaps[0].interval)
    assert gaps[1].p == pytest.approx(gaps[0].p)


def test_p_values_are_corrected_for_all_that_was_looked_at():
    labels, answers, side = halves(90)
    own = {"a": predicted(labels, answers)}
    half = Partition("half", ("first", "second"), {"a": tuple(side)})
    thirds = Partition("third", ("0", "1", "2"), {"a": tuple(str(k // 5 % 3) for k in range(90))})
    first, second = by_subgroup(own, [half])
    assert (first.gap.tests, first.gap.p) == (1, second.gap.p)  # each is the other's rest
    assert first.gap.value == pytest.approx(-second.gap.value)
    both = by_subgroup(own, [half, thirds])
    assert both[0].gap.tests == 4
    assert both[0].gap.p == pytest.approx(4 * first.gap.p)
    assert not any(row.told_apart for row in both[2:])


def test_only_classes_with_five_lesions_on_both_sides_are_compared():
    labels, answers, _ = halves(60)
    side = ["here" if label < 2 and k < 30 else "there" for k, label in enumerate(labels)]
    side[2] = "here"  # the only melanoma
    rows = by_subgroup(
        {"a": predicted(labels, answers)}, [Partition("place", ("here", "there"), {"a": tuple(side)})]
    )
    here, there = (np.array([one == name for one in side]) for name in ("here", "there"))
    recalls = [
        [
            np.mean([a == k for a, k_, w in zip(answers, labels, which, strict=True) if w and k_ == k])
            for k in (0, 1)
        ]
        for which in (here, there)
    ]
    assert rows[0].gap.classes == (0, 1)
    assert rows[0].gap.value == pytest.approx(np.mean(recalls[0]) - np.mean(recalls[1]))
    (largest,) = [line for line in findings(rows, CLASSES) if line.startswith("Largest gap")]
    assert "the balanced accuracy (nv, bkl) of place there is" in largest
    alone = by_subgroup({"a": predicted(labels, answers)}, [Partition("p", ("x",), {"a": ("x",) * 60})])
    assert (alone[0].gap, alone[0].reason) == (None, "all of the site's images")
    assert findings(alone, CLASSES) == ["Not compared: 1 of 1 subgroups, with all of the site's images."]


def test_recall_is_the_only_score_of_images_of_one_class():
    labels, answers, _ = halves(60)
    side = ["nevi" if label == 0 else "others" for label in labels]
    nevi, others = by_subgroup(
        {"a": predicted(labels, answers)}, [Partition("kind", ("nevi", "others"), {"a": tuple(side)})]
    )
    assert [score.value is None for score in scores_of(nevi)] == [True, True, True, False, True, True]
    assert [score.value is None for score in scores_of(others)] == [False, False, False, True, False, False]
