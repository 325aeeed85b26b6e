"""Trained networks: prediction, evaluation, calibration, export, and starting from their weights."""

import csv
import json
import math
import re
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import f1_score, log_loss

from prrfl.calibration import at_temperature, fit_temperature
from prrfl.data.sources import load_sites
from prrfl.models import build_network
from prrfl.reports.assessment import assess
from prrfl.reports.calibration import calibration_error, chance_error, reliability
from prrfl.runs.deployed import network_path, read_about
from prrfl.storage.records import read_predictions
from prrfl.storage.tensor_files import read_tensors
from prrfl.types import Predictions
from tests.forked import called
from tests.sites_on_disk import write_layout

SMALL = ["--image-size", 32, "--rounds", 2, "--epochs", 2, "--batch", 8, "--precision", "float32"]
SMALL += ["--network", "tiny", "--workers", 1]
CLASSES = ("nv", "bkl", "mel")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("sites with a space"), train=24, other=12)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    called("train", "--data", data, "--out", folder, *SMALL)
    return folder


@pytest.fixture(autouse=True)
def quick(undrawn):
    """Draw no curves."""


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refused(answer):
    code, _, err = answer
    assert code == 2
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_predict_says_of_images_what_the_run_says_of_them(prrfl, run, data, tmp_path):
    code, out, err = prrfl(
        "predict", run, data / "data/clientA", "--site", "clientA", "--out", tmp_path / "p.csv"
    )
    assert (code, err) == (0, "")
    assert "48 images by the best network of clientA" in " ".join(out.split())
    rows = {row["image"]: row for row in rows_of(tmp_path / "p.csv")}
    saved = read_predictions(run / "predictions/clientA/best.csv")
    for name, expected in zip(saved.ids, saved.probabilities.tolist(), strict=True):
        row = rows[str(data / f"data/clientA/img_resize32/{name}.png")]
        found = [float(row[f"p_{c}"]) for c in CLASSES]
        assert found == pytest.approx(expected, abs=1e-5)
        assert row["predicted"] == CLASSES[int(np.argmax(expected))]
        entropy = -sum(p * math.log(p) for p in expected if p > 0)
        assert float(row["entropy"]) == pytest.approx(entropy, abs=1e-4)


def test_predict_takes_files_of_any_size_in_the_order_given(prrfl, run, data, tmp_path):
    pictures = sorted((data / "data/clientB/img_resize32").glob("*.png"))[:3]
    large = tmp_path / "größer.jpg"
    Image.open(pictures[0]).resize((300, 200)).save(large)
    files = [pictures[2], large, pictures[0]]
    code, _, err = prrfl("predict", run, *files, "--site", "clientB", "--out", tmp_path / "new/p.csv")
    assert code == 0, err
    assert [row["image"] for row in rows_of(tmp_path / "new/p.csv")] == [str(path) for path in files]


def test_predict_refuses_in_one_line_and_writes_nothing(prrfl, run, data, tmp_path):
    out = ["--out", tmp_path / "p.csv"]
    image = next((data / "data/clientA/img_resize32").glob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:100])
    (tmp_path / "empty").mkdir()
    site = ["--site", "clientA"]
    assert "broken.png cannot be decoded" in refused(prrfl("predict", run, image, broken, *site, *out))
    assert "empty holds no image" in refused(prrfl("predict", run, tmp_path / "empty", *site, *out))
    assert "nowhere does not exist" in refused(prrfl("predict", run, tmp_path / "nowhere", *site, *out))
    assert "choose one with --site" in refused(prrfl("predict", run, image, *out))
    assert "(did you mean 'clientA'?)" in refused(prrfl("predict", run, image, "--site", "clntA", *out))
    assert "holds no network" in refused(prrfl("predict", tmp_path, image, *site, *out))
    assert not (tmp_path / "p.csv").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_torn_or_foreign_network_is_named(prrfl, run, data, tmp_path):
    image = next((data / "data/clientA/img_resize32").glob("*.png"))
    path = network_path(tmp_path / "run", "clientA", "best")
    shutil.copytree(run, tmp_path / "run")

    def said():
        return refused(
            prrfl("predict", tmp_path / "run", image, "--site", "clientA", "--out", tmp_path / "p.csv")
        )

    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert re.search(r"clientA/best\.safetensors is not a complete safetensors file", said())
    save_file({"x": torch.zeros(2)}, path)
    assert "clientA/best.safetensors is not a safetensors file written by prrfl" in said()
    path.unlink()
    assert "chosen among the last 20 % of rounds" in said()
    assert not (tmp_path / "p.csv").exists()


def test_what_stands_in_a_network_s_file(run):
    about = read_about(network_path(run, "clientA", "best"))
    assert (about.site, about.model, about.method) == ("clientA", "personalised", "prrfl")
    assert (about.network, about.classes, about.image_size) == ("tiny", CLASSES, 32)
    assert (about.round, about.rounds) == (1, 2)
    assert about.images == {"train": (8, 8, 8), "valid": (4, 4, 4), "test": (4, 4, 4)}


def test_evaluate_scores_every_network_anew(prrfl, run, tmp_path):
    code, out, err = prrfl("evaluate", run, "--json", tmp_path / "s.json")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "s.json").read_text())
    summary = json.loads((run / "summary.json").read_text())["best"]["sites"]
    assert set(found) == set(summary) == {"clientA", "clientB"}
    for site, scores in summary.items():
        assert found[site]["macro_f1"]["value"] == pytest.approx(scores["macro_f1"], abs=1e-6)
        assert found[site]["auc"]["value"] == pytest.approx(scores["auc"], abs=1e-6)
        # Four images of a class are too few for the bootstrap, and Wilson's interval is wide.
        assert found[site]["macro_f1"]["interval"] is None
        for recall in found[site]["recall"]:
            low, high = recall["interval"]
            assert low <= recall["value"] <= high
            assert high - low > 0.4
        assert f"{100 * scores['macro_f1']:.2f}" in out


def test_evaluate_warns_of_other_images(prrfl, run, data, tmp_path, caplog):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    table = other / "csv_folder/clientA/test_clientA.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace(str(data), str(other)))
    assert prrfl("evaluate", tmp_path / "run")[0] == 0
    assert "the test images of clientA are not those of the run" in caplog.text
    assert "clientB" not in caplog.text
    shutil.rmtree(other)
    assert str(other) in refused(prrfl("evaluate", tmp_path / "run"))


def test_a_run_of_another_precision_is_said_to_be_scored_in_float32(prrfl, run, tmp_path):
    assert "float32" not in prrfl("evaluate", run)[1]
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace('precision = "float32"', 'precision = "bfloat16"'))
    code, out, _ = prrfl("evaluate", tmp_path / "run")
    assert code == 0
    assert "Scored in float32; the run scored in bfloat16, so its summary may differ" in out


def test_evaluate_needs_no_gpu_after_a_training_on_one(prrfl, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda:7"'))
    assert prrfl("evaluate", tmp_path / "run")[0] == 0


def test_one_pooled_network_serves_every_site(prrfl, data, tmp_path):
    run = tmp_path / "run"
    code, _, err = prrfl(
        "train", "--data", data, *SMALL, "--method", "centralised", "--threads", 1, "--out", run
    )
    assert code == 0, err
    assert prrfl("evaluate", run)[0] == 0
    code, out, _ = prrfl(
        "predict", run, data / "data/clientB", "--site", "clientB", "--out", tmp_path / "p.csv"
    )
    assert code == 0
    assert "network of clientB" in " ".join(out.split())


def sharp(n, temperature, classes=3, seed=0):
    """Predictions that are right as often as their probabilities say, sharpened by a temperature."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1.5, (n, classes))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([draw.choice(classes, p=p) for p in true])
    given = torch.from_numpy(logits * temperature).softmax(1)
    return Predictions(tuple(map(str, range(n))), torch.from_numpy(labels), given)


def test_a_temperature_undoes_overconfidence():
    known = sharp(4000, 3.0)
    temperature = fit_temperature(known)
    assert temperature == pytest.approx(3.0, rel=0.08)
    cooled = at_temperature(known, temperature)
    assert calibration_error(cooled) < 0.03 < 0.1 < calibration_error(known)
    assert cooled.probabilities.argmax(1).equal(known.probabilities.argmax(1))
    # No other temperature makes the labels more likely, as scikit-learn counts it.
    losses = {t: log_loss(known.labels, at_temperature(known, t).probabilities) for t in (0.9, 1.0, 1.1)}
    best = log_loss(known.labels, cooled.probabilities)
    assert best <= min(
        log_loss(known.labels, at_temperature(known, temperature * t).probabilities) for t in losses
    )


def test_what_calibration_error_is_chance():
    few = sharp(60, 1.0, seed=1)  # perfectly calibrated, by construction
    assert chance_error(few) == pytest.approx(
        np.mean([calibration_error(sharp(60, 1.0, seed=s)) for s in range(99)]), abs=0.02
    )
    assert chance_error(sharp(4000, 1.0)) < 0.03 < 0.1 < chance_error(few) + 0.02


def test_calibration_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    predictions = Predictions(tuple("abcd"), torch.tensor([0, 1, 0, 0]), p)
    bins = reliability(predictions)
    assert [(b.images, round(b.confidence, 6), b.accuracy) for b in bins] == [
        (1, 0.6, 1.0),
        (1, 0.7, 0.0),
        (2, 0.9, 0.5),
    ]
    assert calibration_error(predictions) == pytest.approx((0.4 + 0.7 + 2 * 0.4) / 4)


def test_an_assessment_is_scikit_learns():
    predictions = sharp(200, 1.0, seed=3)
    found = assess(predictions)
    truth, answer = predictions.labels.numpy(), predictions.probabilities.argmax(1).numpy()
    assert found.macro_f1.value == pytest.approx(f1_score(truth, answer, average="macro"))
    assert found.log_loss == pytest.approx(log_loss(truth, predictions.probabilities.numpy()))
    assert found.accuracy.value == pytest.approx((truth == answer).mean())
    assert sum(map(sum, found.confusion)) == 200
    sure = assess(Predictions(tuple("abc"), torch.zeros(3, dtype=torch.long), torch.tensor([[0.9, 0.1]] * 3)))
    assert sure.recall[0].interval == pytest.approx((0.439, 1.0), abs=1e-3)  # Wilson's, of 3 of 3
    lone = assess(Predictions(("a",), torch.tensor([1]), torch.tensor([[0.2, 0.8]])))
    assert lone.auc.value is None
    assert lone.recall[0].value is None


def test_export_gives_onnx_that_agrees_and_a_card(prrfl, run, data, tmp_path):
    out = tmp_path / "ex"
    code, _, err = prrfl("export", run, "--site", "clientA", "--out", out, "--calibrate")
    assert (code, err) == (0, "")
    assert {p.name for p in out.iterdir()} == {"model.onnx", "model_card.md", "calibration.png"}
    (site,) = (s for s in load_sites(data, image_size=32, classes=CLASSES) if s.name == "clientA")
    pixels = site.test.inputs.permute(0, 2, 3, 1).contiguous().numpy()
    session = onnxruntime.InferenceSession(out / "model.onnx")
    csv_file = tmp_path / "p.csv"
    images = [data / f"data/clientA/img_resize32/{name}.png" for name in site.test.ids]
    prrfl("predict", run, *images, "--site", "clientA", "--calibrate", "--out", csv_file)
    expected = [[float(row[f"p_{c}"]) for c in CLASSES] for row in rows_of(csv_file)]
    for n in (1, 7, 12):
        (given,) = session.run(None, {"images": pixels[:n]})
        assert np.abs(given - expected[:n]).max() < 1e-4
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["classes"]) == list(CLASSES)
    valid = read_predictions(run / "predictions/clientA/best-valid.csv")
    assert json.loads(meta["about"])["temperature"] == pytest.approx(fit_temperature(valid))
    card = (out / "model_card.md").read_text()
    summary = json.loads((run / "summary.json").read_text())["best"]["sites"]["clientA"]
    assert "Not a medical device" in card
    assert f"| macro-F1 | {100 * summary['macro_f1']:.2f} |" in card
    for name, recall in zip(CLASSES, summary["recall"], strict=True):
        assert f"| recall {name} | {100 * recall:.2f} |" in card
    assert "| train | 8 | 8 | 8 | 24 |" in card
    assert "calibrated" in card
    assert "None |" not in card
    assert "## Subgroups" not in card
    assert "No subgroups were evaluated: its performance by skin tone, age or sex was not measured." in card
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_s_python_runs(prrfl, run, data, tmp_path, monkeypatch):
    assert prrfl("export", run, "--site", "clientB", "--network", "last", "--out", tmp_path / "ex")[0] == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "ex/model_card.md").read_text(), re.DOTALL)
    image = next((data / "data/clientB/img_resize32").glob("*.png"))
    shutil.copy(image, tmp_path / "ex/image.png")
    monkeypatch.chdir(tmp_path / "ex")
    found = {}
    exec(code, found)
    assert found["probabilities"].shape == (1, 3)
    assert found["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_a_method_with_a_network_of_its_own_is_predicted_with_and_exported(prrfl, data, tmp_path, undrawn):
    run = tmp_path / "run"
    assert prrfl("train", "--data", data, "--out", run, "--method", "fenda", *SMALL)[0] == 0
    weights = read_tensors(network_path(run, "clientA", "last"))
    assert weights["head.weight"].shape == (3, 2 * 16)
    own = ["--site", "clientA", "--network", "last"]
    code, _, err = prrfl("predict", run, data / "data/clientA", *own, "--out", tmp_path / "p.csv")
    assert code == 0, err
    rows = {row["image"]: row for row in rows_of(tmp_path / "p.csv")}
    saved = read_predictions(run / "predictions/clientA/last.csv")
    for name, expected in zip(saved.ids, saved.probabilities.tolist(), strict=True):
        row = rows[str(data / f"data/clientA/img_resize32/{name}.png")]
        assert [float(row[f"p_{c}"]) for c in CLASSES] == pytest.approx(expected, abs=1e-5)
    assert prrfl("export", run, *own, "--out", tmp_path / "exported")[0] == 0
    session = onnxruntime.InferenceSession(tmp_path / "exported/model.onnx")
    assert session.run(None, {"images": np.zeros((2, 32, 32, 3), np.uint8)})[0].shape == (2, 3)


def test_export_touches_nothing_beside_it(prrfl, run, tmp_path):
    (tmp_path / ".model").mkdir()
    (tmp_path / ".model/keep.txt").write_text("mine")
    code, out, _ = prrfl("export", run, "--site", "clientA", "--out", tmp_path / "model")
    assert (code, "differ from its own by at most " in out) == (0, True), out
    assert (tmp_path / ".model/keep.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model", "model"]
    # No line of source and no folder of this machine goes out with it.
    assert b"forward" not in (tmp_path / "model/model.onnx").read_bytes()


def test_export_refuses_and_leaves_nothing(prrfl, run, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("keep")
    said = refused(prrfl("export", run, "--site", "clientA", "--out", tmp_path / "mine"))
    assert "exists already" in said
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/predictions/clientA/best.csv").unlink()
    said = refused(prrfl("export", tmp_path / "run", "--site", "clientA", "--out", tmp_path / "ex"))
    assert "predictions/clientA/best.csv is missing" in said
    monkeypatch.setattr("prrfl.inference.export.TOLERANCE", -1.0)
    said = refused(prrfl("export", run, "--site", "clientA", "--out", tmp_path / "ex"))
    assert "differ from the network's" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "run"]


@pytest.mark.parametrize(
    "form", ["a#b.pth", "plain.pth", "parallel.pth", "several.pth#model_1", "file.safetensors"]
)
def test_training_starts_from_published_weights(prrfl, data, tmp_path, monkeypatch, form):
    weights = build_network("tiny", 3, seed=77).state_dict()
    torch.save(weights, tmp_path / "plain.pth")
    torch.save(weights, tmp_path / "a#b.pth")
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "parallel.pth")
    other = build_network("tiny", 3, seed=78).state_dict()
    torch.save({"model_0": other, "model_1": weights, "round": 3}, tmp_path / "several.pth")
    save_file(weights, tmp_path / "file.safetensors")
    # A learning rate so small that the weights stay what they were.
    flags = [*SMALL, "--lr", 1e-12, "--weight-decay", 0, "--method", "local", "--weights", tmp_path / form]
    code, _, err = prrfl("train", "--data", data, *flags, "--out", tmp_path / "run")
    assert code == 0, err
    found = read_tensors(tmp_path / "run/models/clientA/last.safetensors")
    assert torch.allclose(found["0.weight"], weights["0.weight"], atol=1e-8)
    # Going on needs no start.
    for path in (tmp_path / "run/state/round-0001", tmp_path / "run/models"):
        shutil.rmtree(path)
    (tmp_path / "run/summary.json").unlink()
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    assert prrfl("resume", tmp_path / "run")[0] == 0
    again = read_tensors(tmp_path / "run/models/clientA/last.safetensors")
    assert all(again[key].equal(found[key]) for key in found)


class Nasty:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"w": Nasty()}, "cannot be read as plain tensors"),
        ([1, 2], "hold a list; expected a state_dict"),
        ({"a": 1}, "hold no state_dict"),
        (
            {"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}},
            "hold several networks; choose one: .*#NAME of a, b",
        ),
        ({"fc": torch.zeros(3)}, "lacks tensor|has the unexpected tensor"),
        ({"w": torch.zeros(2, device="meta")}, "'w' is not a plain tensor"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "'w' is not a plain tensor"),
        ({"a": {"b": {"c": {}}}}, "hold no state_dict"),
        (None, "cannot be read as plain tensors"),
    ],
)
def test_weights_that_cannot_be_used(prrfl, data, tmp_path, what, said):
    path = tmp_path / "w.pth"
    torch.save(what, path)
    if what is None:
        path.write_bytes(path.read_bytes()[:50])
    answer = prrfl("train", "--data", data, *SMALL, "--weights", path, "--out", tmp_path / "run")
    assert re.search(said, refused(answer))
    assert "this ran" not in answer[1]
    assert not (tmp_path / "run").exists()
    assert "do not exist" in refused(
        prrfl("train", "--data", data, *SMALL, "--weights", tmp_path / "no.pth", "--out", tmp_path / "run")
    )
