"""Accuracy, the worst site, and any measure that a user names, beside scikit-learn's own numbers."""

import csv
import json

import pytest
from sklearn import metrics

from prrfl.reports import sampled
from prrfl.storage.records import read_predictions
from tests.sites_on_disk import write_layout

SMALL = ["--image-size", "32", "--rounds", "1", "--epochs", "1", "--batch", "8", "--network", "tiny"]
OWN = """
def nothing_missed(labels, probabilities):
    return (probabilities.argmax(1) == labels).min()

def auc(labels, probabilities):
    return 1.0

def words(labels, probabilities):
    return "good"

def fifth(labels, probabilities):
    return probabilities[:, 4].mean()
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorers")
    (folder / "own.py").write_text(OWN)
    return folder, write_layout(folder / "data")


def test_measures_are_those_of_scikit_learn(compared, prrfl, forked, undrawn, monkeypatch):
    monkeypatch.setattr(sampled, "FURTHER_DRAWS", 10)
    folder, data = compared
    out = folder / "c"
    names = f"matthews_corrcoef,neg_log_loss,{folder / 'own.py'}:nothing_missed"
    command = ("compare", "--data", data, "--methods", "fedavg,local", "--seeds", "0", "--out", out, *SMALL)
    assert prrfl(*command, "--scorers", names)[0] == 0
    with (out / "comparison.csv").open() as file:
        found = {(r["method"], r["site"], r["measure"]): r["mean"] for r in csv.DictReader(file)}
    expected = {}
    for path in (out / "runs" / "fedavg-seed0" / "predictions").glob("*/best.csv"):
        p = read_predictions(path)
        labels, values = p.labels.numpy(), p.probabilities.double().numpy()
        predicted = values.argmax(1)
        expected[path.parent.name] = {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "matthews_corrcoef": metrics.matthews_corrcoef(labels, predicted),
            "neg_log_loss": -metrics.log_loss(labels, values),
            "nothing_missed": float((predicted == labels).all()),
            "f1": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        }
    assert len(expected) > 1
    for site, scores in expected.items():
        for name in scores.keys() - {"f1"}:
            assert float(found["fedavg", site, name]) == pytest.approx(scores[name], abs=1e-6)
    f1 = [scores["f1"] for scores in expected.values()]
    assert float(found["fedavg", "mean", "worst_f1"]) == pytest.approx(min(f1))
    assert float(found["fedavg", "mean", "spread_f1"]) == pytest.approx(max(f1) - min(f1))
    text = (out / "comparison.md").read_text()
    assert "Further measures (mean of sites)" in text
    assert "worst site's F1" in text
    assert json.loads((out / "scorers.json").read_text())[2] == f"{folder}/own.py:nothing_missed"
    assert prrfl("report", out)[0] == 0
    assert (out / "comparison.md").read_text() == text
    assert "nothing_missed" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("mathews_corrcoef", "unknown measure 'mathews_corrcoef' (did you mean 'matthews_corrcoef'?)"),
        ("r2", "r2 cannot score a classifier"),
        ("roc_auc", "roc_auc cannot score a classifier of several classes"),
        ("./nowhere.py:f", "file nowhere.py does not exist"),
        ("./own.py:auc", "every comparison has a measure auc; leave it out, or rename the function"),
        ("./own.py:words,own.py:words", "two measures are called words"),
        ("./own.py:words", "metric ./own.py:words: expected a number, got str"),
        ("./own.py:fifth", "own.py, line 12, in fifth: IndexError"),
    ],
)
def test_a_measure_that_cannot_be_used_is_one_line(compared, tmp_path, prrfl, monkeypatch, name, error):
    monkeypatch.chdir(compared[0])
    command = ("compare", "--data", compared[1], "--methods", "fedavg", "--seeds", "0", *SMALL)
    code, _, err = prrfl(*command, "--out", tmp_path / "c", "--scorers", name)
    assert code == 2
    assert error in err
    assert not (tmp_path / "c").exists()
