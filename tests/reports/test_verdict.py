"""The verdict: its words follow from numbers by the stated rules, and claim no more."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from prrfl.reports.comparison import TOO_FEW, FinishedRun, compare
from prrfl.reports.verdict import ALWAYS, Recorded, compared_verdict, recorded_verdict
from prrfl.reports.wording import answers
from prrfl.types import ExchangeRecord, Predictions

CLASSES = ("nv", "bkl", "mel")
LABELS = np.array([0] * 60 + [1] * 20 + [2] * 20)


def predictions(right, seed=0, labels=LABELS, groups=()):
    """Return predictions of which a share is right, of each class."""
    rng = np.random.default_rng(seed)
    answers = np.where(rng.random(len(labels)) < right, labels, rng.integers(0, 3, len(labels)))
    probabilities = torch.full((len(labels), 3), 0.1)
    probabilities[torch.arange(len(labels)), torch.tensor(answers)] = 0.8
    return Predictions(tuple(map(str, range(len(labels)))), torch.tensor(labels), probabilities, groups)


def run(method, seed, sites):
    records = [ExchangeRecord(0, dict.fromkeys(sites, 1), 1)]
    training = dict.fromkeys(sites, (6, 2, 2))
    return FinishedRun(method, seed, records, sites, 1.0, 1, 1, training)


def verdict_on(runs, method="ours"):
    return compared_verdict(runs, compare(runs, method, draws=300), method, "alone", CLASSES)


def seeds_of(method, right, count=4, first=0):
    """Return runs of several seeds at two sites."""
    return [
        run(method, k, {site: predictions(right, 10 * (first + k) + j) for j, site in enumerate("ab")})
        for k in range(count)
    ]


def outcomes(found, name):
    return [test.outcome for one in found.sites for test in one.tests if test.other == name]


def test_a_clear_difference_is_told_apart_and_a_small_one_is_not():
    ours = seeds_of("ours", 0.9)
    clear = verdict_on(ours + seeds_of("alone", 0.3))
    assert outcomes(clear, "alone") == ["above", "above"]
    assert clear.overall[0].outcome == "above"
    assert outcomes(verdict_on(seeds_of("ours", 0.3) + seeds_of("alone", 0.9)), "alone") == ["below", "below"]
    small = verdict_on(ours + seeds_of("alone", 0.9, first=50))
    assert outcomes(small, "alone") == ["not told apart"] * 2
    words = " ".join(answer.text for answer in answers(small))
    assert "This does not mean that they are equal" in words


def test_the_mean_of_sites_has_the_p_and_the_interval_of_the_table():
    runs = seeds_of("ours", 0.9) + seeds_of("alone", 0.6)
    rows = compare(runs, "ours", draws=300)
    found = compared_verdict(runs, rows, "ours", "alone", CLASSES).overall[0]
    test = rows[1].tests["f1"]
    assert found.p == rows[1].p["f1"]
    assert found.difference == -test.difference.mean
    assert found.interval == (-test.interval[1], -test.interval[0])


def test_the_difference_at_a_site_is_scikit_learns():
    runs = seeds_of("ours", 0.7, 2) + seeds_of("alone", 0.5, 2)
    found = {one.site: one.tests for one in verdict_on(runs).sites}
    f1 = [f1_score(LABELS, one.predictions["b"].probabilities.argmax(1), average="macro") for one in runs]
    always = f1_score(LABELS, np.zeros(100), average="macro")
    of = {test.other: test.difference for test in found["b"]}
    assert of["alone"] == pytest.approx(np.mean(f1[:2]) - np.mean(f1[2:]))
    assert of[ALWAYS] == pytest.approx(np.mean(f1[:2]) - always)


def test_one_seed_tests_no_method_but_this_network_on_other_images():
    found = verdict_on([*seeds_of("ours", 0.9, 1), *seeds_of("alone", 0.2, 1)])
    assert outcomes(found, "alone") == ["no test"] * 2
    assert found.overall[0].outcome == "no test"
    assert found.overall[0].reason == "one seed"
    always = [test for one in found.sites for test in one.tests if test.other == ALWAYS]
    assert [test.outcome for test in always] == ["above", "above"]
    assert not any(test.trainings for test in always)
    text = {answer.question: answer.text for answer in answers(found)}
    assert "There is no test (one seed)" in text["Is it better than alone?"]
    assert "these very networks" in text["Is it better than always giving the most frequent class?"]
    assert any("One training (seed 0)" in line for line in found.cautions)


def test_more_tests_need_a_smaller_p():
    few = verdict_on([run("ours", 0, {"a": predictions(0.35, 3)})]).sites[0].tests[0]
    sites = {"a": predictions(0.35, 3), **{f"z{k}": predictions(0.0, k) for k in range(9)}}
    many = next(one for one in verdict_on([run("ours", 0, sites)]).sites if one.site == "a").tests[0]
    assert many.p > few.p


def test_too_few_lesions_allow_no_test():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 8)
    lesions = (*map(str, range(30)), *[f"m{k // 2}" for k in range(8)])  # four melanomas, two images of each
    found = verdict_on([run("ours", 0, {"a": predictions(0.9, 0, labels, lesions)})])
    [site] = found.sites
    assert (site.images, site.lesions) == (38, 34)
    assert site.tests[0].outcome == "no test"
    assert site.tests[0].reason == TOO_FEW
    assert not any("not known which images" in line for line in found.cautions)


def test_classes_that_are_hardly_found_are_named_with_their_counts():
    labels = np.array([0] * 10 + [1] * 8 + [2] * 2)
    never = predictions(1.0, 0, labels)
    never.probabilities[18:] = torch.tensor([0.8, 0.1, 0.1])  # both melanomas are missed
    never.probabilities[12:18] = torch.tensor([0.8, 0.1, 0.1])  # two of eight are found: a quarter
    found = verdict_on([run("ours", 0, {"a": never})])
    assert [one.text for one in found.hardly] == [
        "a: finds 2 of 8 bkl (benign keratosis)", "a: finds 0 of 2 mel (melanoma)",
    ]  # fmt: skip
    never.probabilities[12] = torch.tensor([0.1, 0.8, 0.1])  # three of eight
    assert [one.label for one in verdict_on([run("ours", 0, {"a": never})]).hardly] == ["mel"]
    [few] = [line for line in found.cautions if line.startswith("Few test images")]
    assert "mel (melanoma): a 2" in few


def test_the_lowest_site_comes_first_and_the_spread_is_told():
    found = verdict_on(
        [run("ours", 0, {"a": predictions(1.0), "b": predictions(0.5), "c": predictions(0.8)})]
    )
    assert [one.site for one in found.sites] == ["b", "c", "a"]
    assert found.spread == pytest.approx(1 - found.sites[0].score.mean)
    assert any(f"Lowest b with {100 * found.sites[0].score.mean:.1f} %" in a.text for a in answers(found))


def test_records_alone_give_scores_and_counts_but_no_test():
    sites = {"a": Recorded(0.5, [[9, 0], [2, 0]]), "b": Recorded(0.7, [[5, 1], [1, 4]])}
    found = recorded_verdict("ours", 0, sites, ("x", "mel"))
    assert [one.site for one in found.sites] == ["a", "b"]
    assert found.mean.mean == pytest.approx(0.6)
    assert [one.text for one in found.hardly] == ["a: finds 0 of 2 mel (melanoma)"]
    assert not found.overall
    assert "neither intervals nor tests" in found.cautions[0]
