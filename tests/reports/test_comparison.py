"""The comparison: its statistics against scikit-learn and by hand, and the command."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from prrfl.reports import comparison, documents, overlay, scores, statistics, tables, uncertainty
from prrfl.reports.meter import measure
from prrfl.reports.recovery import SiteDrop, by_site, recovery
from prrfl.types import ExchangeRecord, Predictions, ScoreRecord, Scores
from tests.reports.by_scikit_learn import sensitivity
from tests.sites_on_disk import write_layout


def cells(rows, classes):
    """Return all tables of a comparison joined: headings, and a line for each method."""
    first, *more = tables.tables(rows, classes)
    heads = [*first.heads, *(head for table in more for head in table.heads[1:])]
    lines = zip(first.body, *(table.body for table in more), strict=True)
    return heads, [[*line, *(cell for further in rest for cell in further[1:])] for line, *rest in lines]


SMALL = ["--image-size", 32, "--rounds", 1, "--epochs", 1, "--batch", 8, "--network", "tiny"]
LABELS = np.array([0] * 20 + [1] * 9 + [2] * 4)


def probabilities(seed, skill):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(LABELS), 3)).round(1)  # rounded, so that there are ties
    logits[np.arange(len(LABELS)), LABELS] += skill
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_resamples_let_the_share_of_a_class_vary():
    counts = statistics.resamples(np.arange(len(LABELS)), 400, np.random.default_rng(0))
    assert (counts.sum(1) == 33).all()
    rare = counts[:, LABELS == 2].sum(1)
    # Binomial(33, 4/33): mean 4, variance 33 * 4/33 * 29/33 = 3.515.
    assert rare.mean() == pytest.approx(4, abs=0.3)
    assert rare.var() == pytest.approx(3.515, rel=0.25)


def test_scores_of_samples_are_scikit_learns_even_where_a_class_is_lost():
    counts = statistics.resamples(np.arange(len(LABELS)), 100, np.random.default_rng(1))
    counts[0, LABELS > 0] = 0  # a single class: there is no AUC
    values = probabilities(2, 1.0)
    predicted = values.argmax(1)
    f1s = statistics.f1_of(statistics.resampled_confusions(counts, LABELS, predicted, 3))
    rankings = [statistics.Ranking.of(counts, k == LABELS, values[:, k]) for k in range(3)]
    aucs = statistics.mean_of_defined([ranking.auc() for ranking in rankings])
    lost = 0
    for row, f1, auc in zip(counts, f1s, aucs, strict=True):
        chosen = np.repeat(np.arange(len(LABELS)), row.astype(int))
        assert f1 == pytest.approx(f1_score(LABELS[chosen], predicted[chosen], average="macro"))
        shown = np.unique(LABELS[chosen])
        lost += len(shown) == 2
        if len(shown) > 1:
            areas = [roc_auc_score(LABELS[chosen] == c, values[chosen, c]) for c in shown]
            assert auc == pytest.approx(np.mean(areas))
    assert np.isnan(aucs[0])
    assert not np.isnan(aucs[1:]).any()
    assert lost > 0


absent_class_is_predicted = pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")


@absent_class_is_predicted
def test_measures_by_class_of_samples_are_scikit_learns_even_where_a_class_is_lost():
    counts = statistics.resamples(np.arange(len(LABELS)), 100, np.random.default_rng(1))
    counts[0, LABELS > 0] = 0  # a single class
    counts[1, LABELS == 1] = 0
    values = probabilities(2, 1.0).round(1)  # more ties
    predicted = values.argmax(1)
    recalls = statistics.recalls_of(statistics.resampled_confusions(counts, LABELS, predicted, 4))
    balanced = statistics.mean_of_defined(recalls)
    found = [statistics.Ranking.of(counts, c == LABELS, values[:, c]).sensitivity() for c in range(3)]
    for k, row in enumerate(counts):
        chosen = np.repeat(np.arange(len(LABELS)), row.astype(int))
        truth, answers = LABELS[chosen], predicted[chosen]
        assert balanced[k] == pytest.approx(balanced_accuracy_score(truth, answers), abs=1e-15)
        recall = recall_score(truth, answers, labels=range(4), average=None, zero_division=np.nan)
        assert [of_class[k] for of_class in recalls] == pytest.approx(recall, abs=1e-15, nan_ok=True)
        expected = [sensitivity(truth == c, values[chosen, c]) for c in range(3)]
        assert [of_class[k] for of_class in found] == pytest.approx(expected, abs=1e-15, nan_ok=True)
    assert np.isnan([of_class[0] for of_class in found]).all()  # no other class, or not the class
    assert np.isnan([of_class[1] for of_class in found]).tolist() == [False, True, False]
    assert np.isnan(recalls[3]).all()


def test_the_sensitivity_by_hand():
    def at(positives, negatives):
        positive = np.array([True] * len(positives) + [False] * len(negatives))
        values = np.array([*positives, *negatives])
        once = np.ones((1, len(values)), dtype=np.float32)
        return statistics.Ranking.of(once, positive, values).sensitivity().item()

    negatives = [0.9, 0.5, 0.4, *[0.1] * 7]
    # One of ten other images may reach the threshold: at 0.6 the specificity is 90 %, at 0.45 only 80 %.
    assert at([0.95, 0.6, 0.45, 0.3], negatives) == 0.5
    # A second other image has 0.5, like three of the class. Of nine others none may reach the threshold.
    assert at([0.95, 0.5, 0.5, 0.5], negatives) == 0.25
    assert at([0.95, 0.6, 0.6, 0.3], negatives[:9]) == 0.25
    assert at([0.2, 0.3], [0.9] * 10) == 0.0
    # Specificities of exactly 90 % are not lost to rounding.
    for n in range(10, 400, 10):
        assert at([0.6], [0.9] * (n // 10) + [0.1] * (n - n // 10)) == 1.0
        assert at([0.6], [0.9] * (n // 10 + 1) + [0.1] * (n - n // 10 - 1)) == 0.0


def test_a_constant_answer_has_an_interval():
    runs = [run("prrfl", 0, 1.0)]
    for p in runs[0].predictions.values():
        p.probabilities[:] = torch.tensor([1.0, 0.0, 0.0])
    ours, majority = comparison.compare(runs, "prrfl", draws=400)
    low, high = ours.f1["mean"].images
    # Always class 0 of 20 in 33: F1 is 40 / 53 / 3; a sample's share of class 0 differs by some 17 points.
    assert ours.f1["a"].mean == pytest.approx(40 / 53 / 3)
    assert low < 40 / 53 / 3 - 0.015
    assert high > 40 / 53 / 3 + 0.015
    # Four images of the rarest class at a site are too few, eight at both sites are enough.
    assert ours.f1["a"] == comparison.Estimate(40 / 53 / 3, reason=comparison.TOO_FEW)
    assert majority.f1 == ours.f1  # the same answers on the same samples
    # Every bootstrap sample has an AUC of 0.5, which is no certainty.
    assert majority.auc["mean"] == comparison.Estimate(0.5, reason=comparison.NO_SPREAD)
    assert majority.scores["recall_0"]["a"].mean == 1.0
    # Wilson's interval of 20 in 20: 1 / (1 + 1.95996² / 20).
    assert majority.scores["recall_0"]["a"].images == pytest.approx((0.83888, 1.0), abs=1e-5)
    assert majority.scores["recall_0"]["pooled"].images == pytest.approx((0.91238, 1.0), abs=1e-5)


def test_intervals_and_corrections_by_hand():
    # Two seeds: t(0.975, 1) = 12.7062; standard error of 0.1 and 0.3 is 0.1.
    assert uncertainty.seed_interval([0.1, 0.3]) == pytest.approx(1.27062, abs=1e-5)
    assert uncertainty.seed_interval([0.1]) is None
    known = {"a": 0.04, "b": 0.01, "untested": None, "c": 0.03}
    assert uncertainty.holm(known) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert uncertainty.paired_p(np.array([0.1] * 98 + [-0.1])) == pytest.approx(2 * 2 / 100)
    assert uncertainty.paired_p(np.array([0.1] * 98 + [-0.1] + [np.nan] * 9)) == pytest.approx(2 * 2 / 100)
    assert uncertainty.paired_p(np.zeros(10)) == 1.0
    mean = statistics.mean_of_defined([np.array([1.0, np.nan, np.nan]), np.array([3.0, 4.0, np.nan])])
    assert mean == pytest.approx([2, 4, np.nan], nan_ok=True)


def test_the_t_test_over_seeds():
    # Two seeds: t = 0.2 / 0.1 = 2 with one degree of freedom, p = 1 - 2 atan(2) / pi.
    assert uncertainty.seeds_p(np.array([0.1, 0.3])) == pytest.approx(1 - 2 * np.arctan(2) / np.pi)
    values = np.array([0.1, 0.3, -0.05, 0.2])
    assert uncertainty.seeds_p(values) == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert uncertainty.seeds_p(np.array([0.1])) is None
    assert uncertainty.seeds_p(np.zeros(3)) == 1.0


def test_a_t_test_without_spread_cannot_tell():
    for n in (2, 5):
        alike = 0.1 + np.arange(n) * 1e-17 + np.linspace(0, 3e-17, n)  # alike but for rounding
        alike[0] = np.nextafter(0.1, 1)
        assert alike.std() > 0
        assert uncertainty.seeds_p(alike) is None
        assert uncertainty.seeds_p(np.linspace(-1e-16, 1e-16, n)) == 1.0
    # One image of 10,000 more is no rounding.
    assert uncertainty.seeds_p(np.array([0.1, 0.1001])) == pytest.approx(ttest_1samp([0.1, 0.1001], 0).pvalue)
    assert uncertainty.paired_p(np.array([1e-17] * 50 + [-1e-17] * 50)) == 1.0
    assert uncertainty.paired_p(np.full(99, 1e-17)) == 1.0


def run(method, seed, skill, f1s=((0.5, 0.4), (0.6, 0.3)), epochs=(0.5, 0.6)):
    """Make a run of two rounds of one epoch at two sites, whose deployed network drops as told."""

    def scores(f1):
        return Scores(33, 1.0, f1, f1 + 0.1, 0.5, (None,) * 3, ())

    records = []
    for t in range(2):
        for site, shift in (("a", 0.0), ("b", 0.05)):
            values = (("epoch", epochs[t]), ("before", f1s[t][0]), ("after", f1s[t][1] - shift))
            for moment, f1 in values:
                records.append(ScoreRecord(t, 0, site, "test", "model", True, moment, scores(f1)))
        records.append(ExchangeRecord(t, {"a": 100, "b": 300}, 50))
    torch_labels = torch.from_numpy(LABELS)
    ids = tuple(map(str, range(len(LABELS))))
    predictions = {
        site: Predictions(ids, torch_labels, torch.from_numpy(probabilities(10 * seed + k, skill)))
        for k, site in enumerate("ab")
    }
    training = dict.fromkeys("ab", (30, 5, 5))
    return comparison.FinishedRun(
        method, seed, records, predictions, 60.0, rounds=2, epochs=1, training=training
    )


def test_the_meter_by_hand():
    drops = measure(run("fedavg", 0, 1.0).records)
    assert [(d.round, d.client) for d in drops] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert [d.f1 for d in drops] == pytest.approx([0.1, 0.15, 0.3, 0.35])
    assert [d.auc for d in drops] == pytest.approx([0.1, 0.15, 0.3, 0.35])
    # After round 0 it takes one epoch to be back at 0.5; after round 1 the run is over.
    assert [d.recovered_after for d in drops] == [1, 1, None, None]
    assert [d.outcome for d in drops] == ["back", "back", "last round", "last round"]
    found = recovery(drops)
    assert (found.epochs, found.longest, found.back, found.falls) == (1.0, 1, 2, 2)
    sites = by_site([drops])
    assert (sites["a"].mean, sites["a"].largest) == pytest.approx((0.2, 0.3))
    assert (sites["b"].mean, sites["b"].largest) == pytest.approx((0.25, 0.35))


def test_drops_have_an_interval_over_seeds():
    # Seed 0 falls by 0.1 and 0.3 at a, by 0.15 and 0.35 at b; seed 1 by 0.1 less in the first round.
    runs = [run("fedavg", 0, 1.0), run("fedavg", 1, 1.0, f1s=((0.5, 0.5), (0.6, 0.3)))]
    row = comparison.compare(runs, "prrfl", draws=20)[0]
    assert row.drop["f1"].mean == pytest.approx(0.2)
    # Means 0.225 and 0.175: standard error 0.025, t(0.975, 1) = 12.7062.
    assert row.drop["f1"].seeds == pytest.approx(12.7062 * 0.025, abs=1e-5)
    site = row.drops["a"]
    assert (site.mean, site.largest) == pytest.approx((0.175, 0.3))
    assert site.seeds == pytest.approx(12.7062 * 0.025, abs=1e-5)
    tidy = {
        (r["site"], r["measure"]): r
        for r in csv.DictReader(tables.comparison_to_csv([row], "prrfl").splitlines())
    }
    for where, half in (("mean", row.drop["f1"].seeds), ("a", site.seeds), ("b", row.drops["b"].seeds)):
        assert float(tidy[where, "drop_macro_f1"]["seeds_ci95"]) == pytest.approx(half)
    heads, body = cells([row], ("nv", "bkl", "mel"))
    assert dict(zip(heads, body[0], strict=True))["drop F1"] == "20.00 ± 31.77"
    assert comparison.compare(runs[:1], "prrfl", draws=20)[0].drop["f1"].seeds is None


def test_only_falls_count_as_recovered_and_only_what_is_followed():
    steady = measure(run("prrfl", 0, 1.0, f1s=((0.5, 0.5), (0.6, 0.7))).records)
    assert [(d.outcome, d.recovered_after) for d in steady if d.client == "a"] == [("no fall", None)] * 2
    # At b the fall by 0.05 in round 0 does not come back: the next epoch gives 0.45.
    lost = measure(run("prrfl", 0, 1.0, f1s=((0.5, 0.5), (0.6, 0.7)), epochs=(0.5, 0.45)).records)
    assert [d.outcome for d in lost if d.client == "b"] == ["not back", "no fall"]
    found = recovery(lost)
    assert (found.epochs, found.longest, found.back, found.falls) == (None, 1, 0, 1)
    unseen = [r for r in run("prrfl", 0, 1.0).records if getattr(r, "moment", "") != "epoch"]
    assert {d.outcome for d in measure(unseen)} == {"not followed"}
    assert recovery(measure(unseen)).falls == 0


def test_cells_say_how_many_falls_came_back_and_where_it_fell_most():
    back = [run("fedavg", 0, 1.0), run("fedavg", 1, 1.0, epochs=(0.5, 0.45))]
    steady = run("prrfl", 0, 1.0, f1s=((0.5, 0.6), (0.6, 0.7)))
    heads, body = cells(comparison.compare([steady, *back], "prrfl", draws=50), ("nv", "bkl", "mel"))
    ours, theirs, majority = (dict(zip(heads, line, strict=True)) for line in body)
    assert theirs["epochs to recover"] == "1 (2 of 4)"
    assert theirs["worst drop at"] == "b (25.0)"  # the same with both seeds
    assert (ours["epochs to recover"], ours["worst drop at"]) == ("–", "–")
    assert (ours["seeds"], theirs["seeds"], majority["seeds"]) == ("1", "2", "–")
    row = comparison.compare([back[1]], "prrfl", draws=50)[0]
    heads, body = cells([row], ("nv", "bkl", "mel"))
    assert body[0][heads.index("epochs to recover")] == "> 1 (0 of 2)"
    assert body[0][heads.index("worst drop at")] == "–"  # a single seed
    assert row.drops["b"] == SiteDrop(pytest.approx(0.25), pytest.approx(0.35))


def test_the_table_knows_who_is_better_and_who_is_not_told_apart():
    seeds = range(4)
    runs = [run("prrfl", s, 4.0) for s in seeds] + [run("fedavg", s, 0.5) for s in seeds]
    runs += [run("fedbn", s, 4.0) for s in seeds]  # the same predictions as PRR-FL
    rows = {row.method: row for row in comparison.compare(runs, "prrfl", draws=400)}
    ours, weak, twin = rows["prrfl"], rows["fedavg"], rows["fedbn"]
    for key in ("f1", "auc"):
        assert key not in ours.p
        assert weak.p[key] < 0.05 < twin.p[key] == 1.0
        assert key in ours.best & twin.best
        assert key in ours.untold & twin.untold
        assert key not in weak.untold | weak.best
    expected = np.mean(
        [
            f1_score(LABELS, p.probabilities.numpy().argmax(1), average="macro")
            for r in runs[4:8]
            for p in r.predictions.values()
        ]
    )
    assert weak.f1["mean"].mean == pytest.approx(expected)
    low, high = weak.f1["mean"].images
    assert low < expected < high
    assert weak.bytes == (200, 50)
    assert weak.drop["f1"].mean == pytest.approx(0.225)
    difference = weak.tests["f1"].difference
    assert difference.mean == pytest.approx(weak.f1["mean"].mean - ours.f1["mean"].mean)
    assert difference.images[0] < difference.mean < difference.images[1] < 0
    assert difference.mean + difference.seeds < 0 < weak.tests["f1"].seeds < 0.05
    assert weak.tests["f1"].common == 4
    majority = rows["always the most frequent class"]
    assert majority.f1["a"].mean == pytest.approx(
        f1_score(LABELS, np.zeros(33), average="macro", zero_division=0)
    )
    assert [majority.scores[f"recall_{k}"]["mean"].mean for k in range(3)] == [1.0, 0.0, 0.0]
    assert majority.scores["balanced_accuracy"]["mean"].mean == pytest.approx(1 / 3)
    # Its only threshold that 90 % of the other images do not reach is above all.
    assert [majority.scores[f"sensitivity_at_90_specificity_{k}"]["b"].mean for k in range(3)] == [0.0] * 3


def test_methods_are_paired_over_the_seeds_that_both_ran():
    ours = [run("prrfl", seed, 1.0) for seed in (0, 1)]
    theirs = [run("fedavg", seed, 1.0) for seed in (1, 2)]
    rows = {row.method: row for row in comparison.compare([*ours, *theirs], "prrfl", draws=300)}
    # Seed 1 gave both the same predictions, so that nothing tells them apart, whatever seeds 0 and 2 gave.
    assert rows["fedavg"].tests["f1"].images == 1.0
    # One common seed: no test.
    assert rows["fedavg"].p == {}
    assert rows["fedavg"].tests["f1"].seeds is rows["fedavg"].tests["f1"].p is None
    # Neither ran all three seeds, so that no mean is called the best.
    assert not any(row.best or row.untold for row in rows.values())
    assert "thus without prrfl, fedavg" in tables.legend(list(rows.values()))
    apart = {row.method: row for row in comparison.compare([ours[0], theirs[1]], "prrfl", draws=300)}
    assert apart["fedavg"].p == {}


def test_a_difference_is_claimed_only_where_images_and_trainings_say_so():
    weak, strong = [run("fedavg", s, 0.5) for s in (0, 1)], [run("prrfl", s, 4.0) for s in (0, 1)]
    swapped = [replace(weak[0], method="prrfl"), strong[1]], [replace(strong[0], method="fedavg"), weak[1]]
    # In seed 0 PRR-FL is far worse, in seed 1 far better: trainings decide, whatever the images say.
    row = comparison.compare([*swapped[0], *swapped[1]], "prrfl", draws=300)[1]
    gaps = [a.f1["mean"].mean - b.f1["mean"].mean for a, b in (
        comparison.compare([swapped[0][k], swapped[1][k]], "prrfl", draws=10)[:2] for k in (0, 1)
    )]  # fmt: skip
    test = row.tests["f1"]
    assert test.seeds == pytest.approx(ttest_1samp(gaps, 0).pvalue)
    assert row.p["f1"] > test.p > 0.5
    # One seed leaves the images alone: no test, no mark.
    rows = comparison.compare([strong[0], weak[0]], "prrfl", draws=300)
    assert rows[1].tests["f1"].images < 0.05
    assert rows[1].tests["f1"].seeds is rows[1].tests["f1"].p is None
    assert rows[1].p == {}
    assert not any(one.best or one.untold for one in rows)
    assert rows[1].f1["mean"].interval is None
    assert rows[1].f1["mean"].images is not None
    said = tables.legend(rows)
    assert "nothing about other training runs" in said
    assert "best mean" not in said
    two = tables.legend(comparison.compare([*strong, *weak], "prrfl", draws=50))
    assert "nothing about other" not in two
    assert "Two seeds: the spread of training runs is known from one difference" in two


def test_the_best_is_sought_among_methods_with_all_seeds():
    runs = [run("prrfl", 0, 0.5), run("prrfl", 1, 0.5), run("lucky", 0, 4.0)]
    rows = {row.method: row for row in comparison.compare(runs, "prrfl", draws=100)}
    assert rows["lucky"].f1["mean"].mean > rows["prrfl"].f1["mean"].mean
    assert rows["prrfl"].best == {"f1", "auc"}
    assert not rows["lucky"].best | rows["lucky"].untold
    assert "thus without lucky." in tables.legend(list(rows.values()))


def test_sites_of_a_single_class_leave_auc_out():
    one = run("prrfl", 0, 1.0)
    single = {s: replace(p, labels=torch.zeros_like(p.labels)) for s, p in one.predictions.items()}
    runs = [replace(one, predictions=single, method=m, seed=s) for m in ("prrfl", "fedavg") for s in range(2)]
    rows = comparison.compare(runs, "prrfl", draws=50)
    assert rows[0].auc["mean"] == comparison.Estimate(None)
    assert rows[1].p == {"f1": 1.0}
    assert rows[0].best == rows[1].untold == {"f1"}
    half = {**one.predictions, "b": single["b"]}
    mixed = comparison.compare([replace(one, predictions=half)], "prrfl", draws=50)[0]
    assert mixed.auc["mean"].mean == mixed.auc["a"].mean is not None


def without_class(one, site, label):
    """Return a run whose test set at a site has images of class 0 in place of another class."""
    p = one.predictions[site]
    labels = torch.where(p.labels == label, 0, p.labels)
    return replace(one, predictions={**one.predictions, site: replace(p, labels=labels)})


@absent_class_is_predicted
def test_measures_by_class_are_means_of_seeds_and_of_the_sites_that_have_the_class():
    runs = [without_class(run("prrfl", seed, 1.0), "b", 2) for seed in (0, 1)]
    row = comparison.compare(runs, "prrfl", draws=300)[0]
    each = {
        site: [(p.labels.numpy(), p.probabilities.numpy()) for p in (r.predictions[site] for r in runs)]
        for site in "ab"
    }
    for site in "ab":
        expected = np.mean([balanced_accuracy_score(y, p.argmax(1)) for y, p in each[site]])
        assert row.scores["balanced_accuracy"][site].mean == pytest.approx(expected)
    for k in range(3):
        recalls = {
            s: [recall_score(y == k, p.argmax(1) == k, zero_division=np.nan) for y, p in each[s]]
            for s in "ab"
        }
        thresholds = {s: [sensitivity(y == k, p[:, k]) for y, p in each[s]] for s in "ab"}
        for name, found in ((f"recall_{k}", recalls), (f"sensitivity_at_90_specificity_{k}", thresholds)):
            estimates = row.scores[name]
            assert list(estimates) == ["a", "b", "mean", "pooled"]
            seeds = np.array(found["a"] if k == 2 else np.mean([found["a"], found["b"]], axis=0))
            assert estimates["mean"].mean == pytest.approx(seeds.mean())
            assert estimates["mean"].seeds == pytest.approx(12.7062 * np.ptp(seeds) / 2, rel=1e-4)
            if (name, k) == ("sensitivity_at_90_specificity_2", 2):
                # Four images of the class at one site; its threshold needs five.
                assert estimates["mean"].reason == comparison.TOO_FEW
                assert estimates["mean"].images is estimates["mean"].interval is None
                continue
            low, high = estimates["mean"].images
            assert 0 <= low <= estimates["mean"].mean <= high <= 1
            assert low < high
            low, high = estimates["mean"].interval
            assert 0 <= low <= estimates["mean"].images[0] < estimates["mean"].images[1] <= high <= 1
    for name in ("recall_2", "sensitivity_at_90_specificity_2"):
        assert row.scores[name]["b"] == comparison.Estimate(None)
        assert row.scores[name]["mean"] == row.scores[name]["a"] == row.scores[name]["pooled"]
    # Pooled: images count alike, so that site b with more images of class 0 counts more.
    right, images = np.zeros(2), 0
    for site in "ab":
        truth = each[site][0][0] == 0
        right += [(p.argmax(1)[truth] == 0).sum() for _, p in each[site]]
        images += truth.sum()
    assert row.scores["recall_0"]["pooled"].mean == pytest.approx((right / images).mean())
    assert row.scores["recall_0"]["pooled"].mean != row.scores["recall_0"]["mean"].mean


def test_the_table_by_class_says_at_how_many_sites_a_measure_is_defined():
    one = run("prrfl", 0, 1.0)
    p = one.predictions["a"]
    single = {**one.predictions, "a": replace(p, labels=torch.zeros_like(p.labels))}
    runs = [replace(one, predictions=single, method=method, seed=s) for method in "xy" for s in (0, 1)]
    rows = comparison.compare(runs, "x", draws=50)
    (table,) = (t for t in tables.tables(rows, ("nv", "bkl", "mel")) if t.title == "By class (mean of sites)")
    names = ["balanced accuracy", "recall nv", "recall bkl", "recall mel"]
    names += [f"sensitivity {name} at 90 % specificity" for name in ("nv", "bkl", "mel")]
    where = ["", "", *[" (1 of 2 sites)"] * 5]
    assert table.heads == [
        "method",
        *(head for name, at in zip(names, where, strict=True) for head in (name + at, f"{name}, 95 %")),
    ]
    keys = ["balanced_accuracy", *(f"recall_{k}" for k in range(3))]
    keys += [f"sensitivity_at_90_specificity_{k}" for k in range(3)]
    for row, line in zip(rows, table.body, strict=True):
        assert line[0] == row.method
        for key, value, interval in zip(keys, line[1::2], line[2::2], strict=True):
            e = row.scores[key]["mean"]
            assert value == f"{100 * e.mean:.2f}"
            ends = e.interval or e.images
            only = "" if e.interval or not ends else " (images)"
            assert interval == ("–" if ends is None else f"{100 * ends[0]:.2f} – {100 * ends[1]:.2f}{only}")
            assert (ends is None) == bool(e.reason)
    nowhere = replace(one, predictions=dict.fromkeys("ab", single["a"]))
    rows = comparison.compare([nowhere], "prrfl", draws=20)
    heads, body = cells(rows, ("nv", "bkl", "mel"))
    found = dict(zip(heads, body[0], strict=True))
    assert found["recall mel (0 of 2 sites)"] == found["recall mel, 95 % of images"] == "–"
    assert found["recall nv"] == found["balanced accuracy"] != "–"
    said = tables.legend(rows)
    for text in (
        "Balanced accuracy: ",
        "Recall: ",
        "Sensitivity at 90 % specificity: ",
        "where it is defined",
    ):
        assert said.count(text) == 1


def test_the_csv_has_measures_by_class_for_each_site():
    runs = [without_class(run(method, s, 1.0), "b", 2) for method in ("prrfl", "fedavg") for s in (0, 1)]
    rows = comparison.compare(runs, "prrfl", draws=50)
    tidy = {
        (r["method"], r["site"], r["measure"]): r
        for r in csv.DictReader(tables.comparison_to_csv(rows, "prrfl").splitlines())
    }
    names = ["balanced_accuracy", *(f"recall_{k}" for k in range(3))]
    names += [f"sensitivity_at_90_specificity_{k}" for k in range(3)]
    for row in rows:
        for name in names:
            for site, e in row.scores[name].items():
                line = tidy.pop((row.method, site, name))
                low, high = e.images or (None, None)
                shown = (e.mean, e.seeds, low, high)
                cells = [line[head] for head in ("mean", "seeds_ci95", "images_low", "images_high")]
                assert cells == ["" if value is None else str(value) for value in shown]
                assert line["seeds"] == str(row.seeds)
                # These measures are not tested, so that nothing is told about who is better.
                for head in ("p_against_prrfl", "best", "not_told_apart", "p_images", "p_seeds"):
                    assert line[head] == ""
    for name in names[1:]:
        for site in ("mean", "pooled"):
            e = rows[1].differences[name][site]
            line = tidy.pop(("fedavg", site, f"{name}_less_prrfl"))
            assert (
                float(line["mean"])
                == e.mean
                == pytest.approx(rows[1].scores[name][site].mean - rows[0].scores[name][site].mean, abs=1e-12)
            )
            assert line["no_interval_because"] == e.reason
            assert line["p_against_prrfl"] == line["p"] == ""
    assert {site for _, site, _ in tidy} == {"a", "b", "mean"}
    assert not [key for key in tidy if key[2].startswith(("recall", "sensitivity", "balanced"))]
    assert tidy["prrfl", "mean", "macro_f1"]["best"] == "True"


def test_tables_for_people_say_what_is_best_and_escape_what_latex_would_read():
    runs = [
        run(m, s, skill) for s in (0, 1, 2) for m, skill in (("prrfl", 3.0), ("prrfl:transfer=off_x", 0.5))
    ]
    rows = comparison.compare(runs, "prrfl", margin=0.6, draws=200)
    markdown = documents.to_markdown(rows, ("nv", "bkl", "mel"))
    lines = markdown.splitlines()
    assert lines[0] == "## Scores (mean of sites)"
    assert lines[2] == "| method | seeds | F1 mean [95 %] | AUC mean [95 %] |"
    assert "| method | F1 validation |" in lines  # in a block of its own, as the line is full
    low, high = (f"{100 * end:.2f}" for end in rows[0].f1["mean"].interval)
    assert f"* [{low} – {high}]" in lines[4]
    assert "*" not in lines[5]
    assert max(map(len, (line for line in lines if line.startswith("|")))) <= documents.LETTERS + 10
    latex = documents.to_latex(rows, ("nv", "bkl", "mel"))
    assert r"off\_x" in latex
    assert latex.isascii()
    assert "best mean; = not told apart" in latex[latex.rindex(r"\end{tabular}") :]
    # No column is lost; intervals stand behind their scores.
    shown = sum(line.count("|") - 2 for line in lines if line.startswith("| prrfl |"))
    every = [head for table in tables.tables(rows, ("nv", "bkl", "mel")) for head in table.heads[1:]]
    assert shown == sum(not head.endswith("95 %") for head in every)
    tidy = list(csv.DictReader(tables.comparison_to_csv(rows, "prrfl").splitlines()))
    means = [r for r in tidy if r["method"] == "prrfl" and r["site"] == "mean" and r["measure"] == "macro_f1"]
    assert float(means[0]["mean"]) == pytest.approx(rows[0].f1["mean"].mean)
    (gap,) = (r for r in tidy if r["measure"] == "macro_f1_less_prrfl")
    assert gap["method"] == "prrfl:transfer=off_x"
    assert float(gap["images_high"]) == rows[1].tests["f1"].difference.images[1] < 0
    titles = [table.title for table in tables.tables(rows, ("nv", "bkl", "mel"))]
    assert "Difference to prrfl (mean of sites)" in titles
    without = comparison.compare([run("fedavg", 0, 1.0), run("local", 0, 2.0)], "prrfl", draws=20)
    assert len(tables.tables(without, ("nv", "bkl", "mel"))) == len(titles) - 2
    assert "Difference" not in tables.legend(without)
    said = tables.legend(rows)
    for text in (
        "Difference: to prrfl",
        "(2 tests)",
        "Detectable: the",
        "≈ equal to prrfl within 60 points",
    ):
        assert said.count(text) == 1
    test = rows[1].tests["f1"]
    heads, body = cells(rows, ("nv", "bkl", "mel"))
    found = dict(zip(heads, body[1], strict=True))
    assert found["F1 detectable"] == f"{100 * test.detectable:.2f}"
    low, high = test.interval
    assert found["F1 difference, together 95 %"] == f"{100 * low:.2f} – {100 * high:.2f}"
    assert low < test.difference.interval[0] < test.difference.interval[1] < high
    assert found["F1 difference"] == f"{100 * test.difference.mean:.2f}" + "≈" * (test.equivalent < 0.05)
    assert float(gap["detectable"]) == test.detectable
    assert float(gap["p_equivalent"]) == test.equivalent
    assert len(heads) == len(set(heads))


def test_names_are_escaped():
    one = run(r"a&#$%_{}~^\|", 0, 1.0)
    rows = comparison.compare([one], "prrfl", draws=20)
    latex = documents.to_latex(rows, (r"x&|", "bkl", "mel"))
    escaped = r"a\&\#\$\%\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\textbar{}"
    assert f"\n{escaped} & " in latex
    unbroken = latex.replace(r" \\{} ", " ")
    assert r"{recall x\&\textbar{} [95 \% of images]}" in unbroken
    assert r"{sensitivity x\&\textbar{} at 90 \% specificity [95 \% of images]}" in unbroken
    markdown = documents.to_markdown(rows, (r"x&|", "bkl", "mel"))
    assert r"| a&#$%_{}~^\\| | 1 |" in markdown
    assert r"| recall x&\| [95 % of images] |" in markdown
    assert r"| sensitivity x&\| at 90 % specificity [95 % of images] |" in markdown


def test_the_figure_has_a_panel_for_each_method_and_room_on_the_right():
    runs = [
        run(m, s, 1.0, epochs=(0.5, 0.6 + s / 10))
        for m in ("prrfl", "fedavg", "prrfl:r1=0.7")
        for s in (0, 1)
    ]
    figure = overlay.comparison_figure(runs, "prrfl")
    ours, other, ablation, *below = figure.axes
    assert [axis.get_title() for axis in (ours, other, ablation)] == ["prrfl", "fedavg", "prrfl:r1=0.7"]
    assert [axis.get_ylabel() for axis in (ours, below[0])] == ["macro-F1 (%)", "AUC (%)"]
    assert [line.get_label() for line in other.lines] == ["prrfl, repeated", "fedavg"]
    assert other.lines[0].get_color() == ours.lines[0].get_color() != other.lines[1].get_color()
    assert list(other.lines[0].get_ydata()) == list(ours.lines[0].get_ydata())
    assert other.lines[1].get_zorder() > other.lines[0].get_zorder()
    assert other.get_xlim()[1] >= 2.03  # the last communication is at 2
    assert other.get_ylim() == ours.get_ylim()
    assert len(other.collections) == 1  # the range over seeds of its own method
    one = overlay.bands(runs, "macro_f1")["fedavg"]
    # Mean of sites in percent; the second epoch is 0.6 with seed 0, 0.7 with seed 1.
    second = list(one.at).index(2.0)
    assert (one.low[second], one.mean[second], one.high[second]) == pytest.approx((60, 65, 70))


def test_curves_run_along_each_runs_own_local_epochs():
    one = run("prrfl", 0, 1.0)
    two = replace(one, method="fedavg", epochs=3)
    two = replace(
        two, records=[replace(r, epoch=2) if isinstance(r, ScoreRecord) else r for r in two.records]
    )
    found = overlay.bands([one, two], "auc")
    assert sorted(set(found["prrfl"].at)) == pytest.approx([1, 2])
    assert sorted(set(found["fedavg"].at)) == pytest.approx([3, 6])
    assert overlay.comparison_figure([one, two], "prrfl").axes[-1].get_xlabel() == "local epoch"


def test_the_baseline_answers_the_most_frequent_class_of_training():
    one = run("prrfl", 0, 1.0)
    own, pooled = {"a": (1, 9, 1), "b": (9, 8, 8)}, dict.fromkeys("ab", (10, 17, 9))
    centralised = replace(one, method="centralised", training=pooled)
    majority = comparison.compare([centralised, replace(one, training=own)], "prrfl", draws=20)[-1]
    for site, answer in (("a", 1), ("b", 0)):
        expected = f1_score(LABELS, np.full(33, answer), average="macro", zero_division=0)
        assert majority.f1[site].mean == pytest.approx(expected)
    rows = comparison.compare([replace(one, training={"a": (1, 9, 1)})], "prrfl", draws=20)
    assert [row.method for row in rows] == ["prrfl"]


def test_scores_are_written_one_a_line_and_counted_from_one():
    runs = [run("prrfl", 0, 1.0), run("fedavg", 3, 1.0)]
    text = scores.scores_to_csv([(r.method, r.seed, r.records) for r in runs], ("nv", "b,c", "mel"))
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 2 * 2 * 2 * 3  # runs, rounds, sites, moments
    assert rows[-1] == {
        "method": "fedavg", "seed": "3", "round": "2", "epoch": "1", "moment": "after", "site": "b",
        "split": "test", "model": "model", "deployed": "True", "n": "33", "macro_f1": "0.25", "auc": "0.35",
        "accuracy": "0.5", "loss": "1.0", "recall_nv": "", "recall_b,c": "", "recall_mel": "",
    }  # fmt: skip


def test_the_command_runs_resumes_and_refuses(tmp_path, prrfl, forked, undrawn):
    data = write_layout(tmp_path / "data")
    common = ["--data", data, *SMALL, "--out", tmp_path / "c"]
    methods = "prrfl,fedavg,prrfl:transfer=off+r1=0.7"
    assert prrfl("compare", "--methods", "prrfl,fedavg", "--seeds", "0", *common)[0] == 0
    first = (tmp_path / "c/runs/fedavg-seed0/metrics.jsonl").stat()
    assert prrfl("compare", "--methods", methods, "--seeds", "0", *common)[0] == 0
    assert (tmp_path / "c/runs/fedavg-seed0/metrics.jsonl").stat().st_mtime == first.st_mtime
    for name in (
        "comparison.csv",
        "comparison.md",
        "comparison.tex",
        "comparison.png",
        "retrogress.csv",
        "scores.csv",
    ):
        assert (tmp_path / "c" / name).stat().st_size > 0
    table = (tmp_path / "c/comparison.md").read_text()
    assert "always the most frequent class" in table
    for name in ("retrogress.csv", "scores.csv"):
        with (tmp_path / "c" / name).open() as file:
            assert {line["round"] for line in csv.DictReader(file)} == {"1"}
    assert "| prrfl:transfer=off+r1=0.7 |" in table
    for methods, seeds, changed, message in (
        ("fedavg", "0", ["--lr", 0.5], "lr = 0.01, but the command asks for 0.5"),
        ("fedavgg", "0", [], "did you mean 'fedavg'"),
        ("fedavg,fedavg", "0", [], "method fedavg is given twice"),
        ("fedavg:lr", "0", [], "expected name:key=value"),
        ("fedavg", "x", [], "--seeds"),
        ("fedavg", "0", ["--data", tmp_path / "gone"], f"--data {tmp_path / 'gone'} does not exist"),
    ):
        code, _, err = prrfl("compare", "--methods", methods, "--seeds", seeds, *common, *changed)
        assert code == 2
        assert message in err
    assert prrfl("report", tmp_path / "c")[0] == 0
