"""Images of one lesion or patient are drawn together, from the data's tables to the intervals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prrfl.calibration import at_temperature
from prrfl.data.sources import load_sites
from prrfl.evaluation import predictions
from prrfl.reports.assessment import assess
from prrfl.reports.card import model_card
from prrfl.reports.comparison import FinishedRun, compare
from prrfl.reports.statistics import group_indices, resamples
from prrfl.runs.deployed import About
from prrfl.storage.records import predictions_to_csv, read_predictions
from prrfl.types import ExchangeRecord, Predictions, ScoreRecord, Scores
from tests.sites_on_disk import write_layout

CLASSES = ("nv", "bkl", "mel")
LABELS = np.array([0] * 40 + [1] * 20 + [2] * 10)


def single(skill, seed=0):
    """Return predictions of one image a lesion."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(len(LABELS), 3)))
    logits[torch.arange(len(LABELS)), torch.from_numpy(LABELS)] += skill
    names = tuple(f"lesion{k}" for k in range(len(LABELS)))
    return Predictions(names, torch.from_numpy(LABELS), logits.softmax(1), names)


def photographed(one, times):
    """Return predictions of as many images of each lesion, all alike."""
    names = tuple(name for name in one.groups for _ in range(times))
    return Predictions(
        tuple(f"{name}-{k}" for k, name in enumerate(names)),
        one.labels.repeat_interleave(times),
        one.probabilities.repeat_interleave(times, 0),
        names,
    )


def run(method, p, seed=0):
    records = [
        ScoreRecord(0, 0, "a", "test", "model", True, moment, Scores(70, 1.0, 0.5, 0.5, 0.5, (None,) * 3, ()))
        for moment in ("before", "after")
    ]
    return FinishedRun(
        method, seed, [*records, ExchangeRecord(0, {"a": 1}, 1)], {"a": p}, 1.0, 1, 1, {"a": (9, 1, 1)}
    )


def test_a_sample_holds_all_images_of_a_lesion_or_none():
    p = Predictions(
        tuple("abcdef"), torch.zeros(6, dtype=torch.long), torch.ones(6, 1), ("x", None, "y", "x", None, "0")
    )
    indices = group_indices(p)
    assert indices.tolist() == [0, 1, 2, 0, 3, 4]  # what is not known is alone
    assert group_indices(replace(p, groups=())).tolist() == list(range(6))
    counts = resamples(indices, 500, np.random.default_rng(0))
    assert (counts[:, 0] == counts[:, 3]).all()
    assert (counts[:, [0, 1, 2, 4, 5]].sum(1) == 5).all()
    assert not (counts[:, 1] == counts[:, 4]).all()


def test_more_photographs_of_the_same_lesions_make_no_score_surer():
    ours, theirs = single(1.5), single(0.7, seed=1)
    one, one_of_rival, _ = compare([run("prrfl", ours), run("fedavg", theirs)], "prrfl", draws=500)
    for times in (2, 5):
        more = [run("prrfl", photographed(ours, times)), run("fedavg", photographed(theirs, times))]
        many, many_of_rival, _ = compare(more, "prrfl", draws=500)
        assert many.f1["mean"].images == pytest.approx(one.f1["mean"].images)
        assert many.auc["mean"].images == pytest.approx(one.auc["mean"].images)
        assert many_of_rival.tests["f1"].images == one_of_rival.tests["f1"].images
        assert many_of_rival.tests["f1"].exact == one_of_rival.tests["f1"].exact
        assert many_of_rival.tests["auc"].exact == pytest.approx(one_of_rival.tests["auc"].exact)
        assert many.scores["recall_2"]["a"].images == pytest.approx(one.scores["recall_2"]["a"].images)
        found = assess(photographed(ours, times))
        assert (found.images, found.groups) == (70 * times, 70)
        assert found.macro_f1.interval == pytest.approx(assess(ours).macro_f1.interval)
        # Taken for as many lesions, the interval would be too narrow.
        low, high = assess(replace(photographed(ours, times), groups=())).macro_f1.interval
        assert high - low < 0.8 * np.ptp(found.macro_f1.interval)


def test_a_run_that_wrote_no_groups_has_those_of_the_others():
    p = photographed(single(1.5), 3)
    old = run("prrfl", replace(p, groups=()))
    mixed = compare([old, run("fedavg", p)], "prrfl", draws=300)
    assert mixed[0].f1 == compare([run("prrfl", p)], "prrfl", draws=300)[0].f1


def test_the_card_counts_lesions():
    about = About("a", "model", "local", "net", CLASSES, 32, 0, 1, {"train": (1, 1, 1)})
    facts = {
        "about": about,
        "scope": "alone",
        "site": "a",
        "which": "best",
        "temperature": 1,
        "fitted_on": 0,
        "version": "0",
    }
    facts |= {"today": "today", "file": "f", "checksum": "c", "picture": "p"}
    one, many = single(1.5), photographed(single(1.5), 2)
    card = model_card(facts, CLASSES, ["a"], many, at_temperature(many, 1.5))
    assert "own 140 test images of 70 lesions or patients, in percent" in card
    assert "in which lesions or patients are the independent cases" in card
    assert "own 70 test images, in percent" in model_card(facts, CLASSES, ["a"], one)


def test_groups_go_from_the_tables_into_the_predictions(tmp_path):
    data = write_layout(tmp_path / "data")
    table = data / "csv_folder/clientA/test_clientA.csv"
    heading, *rows = table.read_text().splitlines()
    lesions = ["HAM_1", "HAM_1", "", '"HAM, 2"', "HAM_3", ""]
    lines = [f"{heading},lesion_id", *(f"{row},{le}" for row, le in zip(rows, lesions, strict=True))]
    table.write_text("\n".join(lines) + "\n")
    ours, theirs = (site.test for site in load_sites(data, image_size=32, classes=CLASSES))
    assert ours.to("cpu").groups == ours.groups == ("HAM_1", "HAM_1", None, "HAM, 2", "HAM_3", None)
    found = predictions(torch.zeros(6, 3), ours)
    path = tmp_path / "p.csv"
    path.write_text(predictions_to_csv(found, CLASSES))
    assert path.read_text().startswith("image_id,label,group,p_nv,p_bkl,p_mel\nclientA_test_0,0,HAM_1,0.333")
    assert read_predictions(path, CLASSES).groups == read_predictions(path).groups == ours.groups
    assert group_indices(predictions(torch.zeros(6, 3), theirs)).tolist() == list(range(6))


def test_predictions_of_older_runs_have_no_groups(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("image_id,label,p_group,p_b\nx,1,0.25,0.75\n")
    for found in (read_predictions(path), read_predictions(path, ("group", "b"))):
        assert found.groups == ()
        assert found.probabilities.tolist() == [[0.25, 0.75]]
