"""The comparison: its statistics against scikit-learn and by hand, and the command."""

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from prrfl.reports import comparison, statistics
from prrfl.reports.meter import measure, worst_site
from prrfl.types import ExchangeRecord, Predictions, ScoreRecord, Scores
from tests.sites_on_disk import write_layout

SMALL = ["--image-size", 32, "--rounds", 1, "--epochs", 1, "--batch", 8]
LABELS = np.array([0] * 20 + [1] * 9 + [2] * 4)


def probabilities(seed, skill):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(LABELS), 3)).round(1)  # rounded, so that there are ties
    logits[np.arange(len(LABELS)), LABELS] += skill
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_resamples_keep_every_class():
    counts = statistics.resamples(LABELS, 50, np.random.default_rng(0))
    for label, size in ((0, 20), (1, 9), (2, 4)):
        assert (counts[:, label == LABELS].sum(1) == size).all()
    assert len(np.unique(counts, axis=0)) == 50


def test_scores_of_samples_are_scikit_learns():
    counts = statistics.resamples(LABELS, 20, np.random.default_rng(1))
    values = probabilities(2, 1.0)
    predicted = values.argmax(1)
    for row, f1, auc in zip(
        counts,
        statistics.macro_f1(counts, LABELS, predicted),
        statistics.macro_auc(counts, LABELS, values),
        strict=True,
    ):
        chosen = np.repeat(np.arange(len(LABELS)), row.astype(int))
        assert f1 == pytest.approx(f1_score(LABELS[chosen], predicted[chosen], average="macro"))
        areas = [roc_auc_score(LABELS[chosen] == c, values[chosen, c]) for c in range(3)]
        assert auc == pytest.approx(np.mean(areas))


def test_intervals_and_corrections_by_hand():
    # Two seeds: t(0.975, 1) = 12.7062; standard error of 0.1 and 0.3 is 0.1.
    assert statistics.seed_interval([0.1, 0.3]) == pytest.approx(1.27062, abs=1e-5)
    assert statistics.seed_interval([0.1]) is None
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.paired_p(np.array([0.1] * 98 + [-0.1])) == pytest.approx(2 * 2 / 100)
    assert statistics.paired_p(np.zeros(10)) == 1.0


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
    return comparison.Run(method, seed, records, predictions, 60.0)


def test_the_meter_by_hand():
    drops = measure(run("fedavg", 0, 1.0).records)
    assert [(d.round, d.client) for d in drops] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert [d.f1 for d in drops] == pytest.approx([0.1, 0.15, 0.3, 0.35])
    assert [d.auc for d in drops] == pytest.approx([0.1, 0.15, 0.3, 0.35])
    # After round 0 it takes one epoch to be back at 0.5; after round 1 the run is over.
    assert [d.recovered_after for d in drops] == [1, 1, None, None]
    assert worst_site(drops) == "b"
    steady = measure(run("prrfl", 0, 1.0, f1s=((0.5, 0.5), (0.6, 0.7))).records)
    assert [d.recovered_after for d in steady if d.client == "a"] == [0, 0]


def test_the_table_knows_who_is_better_and_who_is_tied():
    runs = [run("prrfl", s, 4.0) for s in (0, 1)] + [run("fedavg", s, 0.5) for s in (0, 1)]
    runs += [run("fedbn", s, 4.0) for s in (0, 1)]  # the same predictions as PRR-FL: a tie, exactly
    rows = {row.method: row for row in comparison.compare(runs, draws=400)}
    ours, weak, twin = rows["prrfl"], rows["fedavg"], rows["fedbn"]
    for key in ("f1", "auc"):
        assert ours.p[key] is None
        assert weak.p[key] < 0.05 < twin.p[key] == 1.0
        assert key in ours.best & twin.best
        assert key in ours.tied & twin.tied
        assert key not in weak.tied | weak.best
    expected = np.mean(
        [
            f1_score(LABELS, p.probabilities.numpy().argmax(1), average="macro")
            for r in runs[2:4]
            for p in r.predictions.values()
        ]
    )
    assert weak.f1["mean"].mean == pytest.approx(expected)
    low, high = weak.f1["mean"].images
    assert low < expected < high
    assert weak.bytes == (200, 50)
    assert weak.drop[0] == pytest.approx(0.225)
    assert weak.worst == "b"
    majority = rows["always the most frequent class"]
    assert majority.f1["a"].mean == pytest.approx(
        f1_score(LABELS, np.zeros(33), average="macro", zero_division=0)
    )
    assert majority.recall == (1.0, 0.0, 0.0)


def test_methods_are_paired_over_the_seeds_that_both_ran():
    ours = [run("prrfl", seed, 1.0) for seed in (0, 1)]
    theirs = [run("fedavg", seed, 1.0) for seed in (1, 2)]
    rows = {row.method: row for row in comparison.compare([*ours, *theirs], draws=300)}
    # Seed 1 gave both the same predictions, so that nothing tells them apart, whatever seeds 0 and 2 gave.
    assert rows["fedavg"].p == {"f1": 1.0, "auc": 1.0}
    apart = {row.method: row for row in comparison.compare([ours[0], theirs[1]], draws=300)}
    assert apart["fedavg"].p == {"f1": None, "auc": None}


def test_tables_for_people_say_what_is_best_and_escape_what_latex_would_read():
    rows = comparison.compare([run("prrfl", 0, 4.0), run("prrfl:transfer=off_x", 0, 0.5)], draws=200)
    markdown = comparison.to_markdown(rows, ("nv", "bkl", "mel"))
    lines = markdown.splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "*" in lines[2]
    assert "*" not in lines[3]
    latex = comparison.to_latex(rows, ("nv", "bkl", "mel"))
    assert r"off\_x" in latex
    assert len({line.count("&") for line in latex.splitlines() if "&" in line}) == 1
    tidy = list(csv.DictReader(comparison.to_csv(rows).splitlines()))
    means = [r for r in tidy if r["method"] == "prrfl" and r["site"] == "mean" and r["measure"] == "macro_f1"]
    assert float(means[0]["mean"]) == pytest.approx(rows[0].f1["mean"].mean)


def test_the_command_runs_resumes_and_refuses(tmp_path, prrfl):
    data = write_layout(tmp_path / "data")
    common = ["--data", data, *SMALL, "--out", tmp_path / "c"]
    methods = "prrfl,fedavg,prrfl:transfer=off+r1=0.7"
    assert prrfl("compare", "--methods", "prrfl,fedavg", "--seeds", "0", *common)[0] == 0
    first = (tmp_path / "c/runs/fedavg-seed0/metrics.jsonl").stat()
    assert prrfl("compare", "--methods", methods, "--seeds", "0", *common)[0] == 0
    assert (tmp_path / "c/runs/fedavg-seed0/metrics.jsonl").stat().st_mtime == first.st_mtime
    for name in ("comparison.csv", "comparison.md", "comparison.tex", "comparison.png", "retrogress.csv"):
        assert (tmp_path / "c" / name).stat().st_size > 0
    table = (tmp_path / "c/comparison.md").read_text()
    assert "| prrfl:transfer=off+r1=0.7 |" in table
    for methods, seeds, changed, message in (
        ("fedavg", "0", ["--lr", 0.5], "lr = 0.01, now asked for with 0.5"),
        ("fedavgg", "0", [], "did you mean 'fedavg'"),
        ("fedavg,fedavg", "0", [], "method fedavg is named twice"),
        ("fedavg:lr", "0", [], "expected name:key=value"),
        ("fedavg", "x", [], "--seeds"),
        ("fedavg", "0", ["--data", tmp_path / "gone"], f"--data {tmp_path / 'gone'} is not there"),
    ):
        code, _, err = prrfl("compare", "--methods", methods, "--seeds", seeds, *common, *changed)
        assert code == 2
        assert message in err
    assert prrfl("report", tmp_path / "c")[0] == 0


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path, prrfl):
    data = write_layout(tmp_path / "data")
    common = ["--data", data, *SMALL, "--out", tmp_path / "c"]
    methods = "fedavg,local:lr=1e30"
    code, _, err = prrfl("compare", "--methods", methods, "--seeds", "0", *common)
    assert code == 2
    assert "first local:lr=1e30, seed 0" in err
    assert (tmp_path / "c/runs/fedavg-seed0/summary.json").is_file()
