"""New sites: evaluation and onboarding, checked by hand on a small run."""

import json
import re

import pytest
import torch

from prrfl.cli.onboarding import change
from prrfl.data.sources import load_sites
from prrfl.evaluation import score
from prrfl.inference.onboarding import read_last_round
from prrfl.storage.tensor_files import read_notes, read_tensors, write_tensors
from prrfl.training import batches, forward, predict, reestimate_norms
from tests.sites_on_disk import write_layout

SMALL = ["--image-size", 32, "--rounds", 1, "--epochs", 2, "--batch", 8, "--precision", "float32"]
SMALL += ["--network", "tiny", "--workers", 1]


@pytest.fixture(autouse=True)
def without_curves(undrawn):
    """No test here looks at the run's curves."""


@pytest.fixture
def folder(prrfl, tmp_path):
    return trained(prrfl, tmp_path)


def trained(prrfl, folder, *settings):
    """Train on a data set of two sites; return the folder that holds ``data`` and ``run``."""
    data = write_layout(folder / "data")
    code, _, err = prrfl("train", "--data", data, *SMALL, *settings, "--out", folder / "run")
    assert code == 0, err
    return folder


def without(site, *splits):
    """Take the tables of splits away from the only site of a layout."""
    for split in splits:
        (site / f"csv_folder/clientA/{split}_clientA.csv").unlink()
    return site


@pytest.mark.parametrize("which", ["best", "last"])
def test_evaluate_scores_each_network_their_ensemble_and_the_mean_of_deputies(prrfl, folder, which):
    write_layout(folder / "new", sites=1, other=30)
    for name in ("clientA", "clientB"):  # the best round's, as if it had been another one
        path = folder / "run/models" / name / "best.safetensors"
        weights, notes = read_tensors(path), read_notes(path)
        write_tensors(
            path,
            {
                key: tensor + torch.tensor([1.0, 0, 0]) if key == "5.bias" else tensor
                for key, tensor in weights.items()
            },
            notes,
        )
    command = ["evaluate", folder / "run", "--data", folder / "new", "--network", which]
    code, out, err = prrfl(*command, "--json", folder / "e.json")
    assert code == 0, err
    found = json.loads((folder / "e.json").read_text())["clientA"]
    federation = read_last_round(folder / "run")
    (site,) = load_sites(folder / "new", image_size=32, classes=("nv", "bkl", "mel"))
    models = [
        read_tensors(folder / "run/models" / name / f"{which}.safetensors") for name in ("clientA", "clientB")
    ]
    deputies = [state.deputy.weights for state in federation.states.values()]
    for key in ("0.weight", "1.running_mean", "5.weight"):
        assert torch.allclose(federation.mean[key], (deputies[0][key] + deputies[1][key]) / 2)
    outputs = predict([*models, federation.mean], site.test, federation.run.recipe)
    expected = {
        "network of clientA": outputs[0],
        "network of clientB": outputs[1],
        "ensemble of all": ((outputs[0].double().softmax(1) + outputs[1].double().softmax(1)) / 2).log(),
        "mean of deputies, last round": outputs[2],
    }
    assert list(found) == list(expected)
    said = " ".join(out.split())
    assert f"{which} networks on the 30 test images of clientA" in said
    for name, logits in expected.items():
        for score_of in ("macro_f1", "auc"):
            # In double precision, as predictions are: after so little training, outputs differ by 1e-7; in
            # single precision their ranks, and so the AUC, would be those of rounding errors.
            wanted = getattr(score(logits.double(), site.test.labels), score_of)
            assert found[name][score_of]["value"] == pytest.approx(wanted, abs=1e-6)
            # There is none if the score is the same in every sample of images.
            low, high = found[name][score_of]["interval"] or (wanted, wanted)
            assert low <= wanted <= high
    assert any(found[name]["macro_f1"]["interval"] for name in expected)
    assert "by chance" in said
    assert "--calibrate cannot be used with --data" in prrfl(*command, "--calibrate")[2]


def test_a_network_that_gives_no_numbers_is_named(prrfl, folder):
    path = folder / "run/models/clientB/best.safetensors"
    weights, notes = read_tensors(path), read_notes(path)
    write_tensors(path, {key: 1e38 * (tensor + 1) for key, tensor in weights.items()}, notes)
    for more in ([], ["--data", folder / "data"]):
        code, _, err = prrfl("evaluate", folder / "run", *more)
        assert code == 2
        assert "the network saved for site clientB gives NaN or infinity" in err


@pytest.mark.parametrize("more", [[], ["--network", "last"]])
def test_the_best_of_a_run_that_has_none_yet_is_refused(prrfl, folder, more):
    for path in (folder / "run/models").glob("*/best.safetensors"):
        path.unlink()
    code, _, err = prrfl("evaluate", folder / "run", "--data", folder / "data", *more)
    assert code == (0 if more else 2), err
    assert ("--network last" in err) == (not more)


def test_onboard_writes_a_network_of_the_new_site(prrfl, folder):
    write_layout(folder / "new", sites=1, train=24, other=12)
    command = ["onboard", folder / "run", "--data", folder / "new", "--out", folder / "o", "--epochs", 2]
    code, out, err = prrfl(*command)
    assert code == 0, err
    scores = json.loads((folder / "o/clientA/scores.json").read_text())
    start, _, own, alone = (value["macro_f1"] for value in scores.values())
    said = " ".join(out.split())
    for other, name in ((start, "the mean of deputies"), (alone, "training alone")):
        points = round(100 * (own - other), 2)
        word = "lost" if points < 0 else "gained"
        assert re.search(rf"{word} {abs(points):.2f} points of macro-F1 against {name}", said), (said, points)
    network = read_tensors(folder / "o/clientA/model.safetensors")
    federation = read_last_round(folder / "run")
    (site,) = load_sites(folder / "new", image_size=32, classes=("nv", "bkl", "mel"))
    (logits,) = predict([network], site.test, federation.run.recipe)
    own = next(value for name, value in scores.items() if "its own network" in name)
    assert own["macro_f1"] == pytest.approx(score(logits, site.test.labels).macro_f1)
    assert not torch.equal(next(iter(network.values())), next(iter(federation.mean.values())))
    code, _, err = prrfl(*command)
    assert code == 2
    assert "exists already" in err


def test_norms_are_reestimated_as_a_plain_mean_over_batches(prrfl, folder):
    federation = read_last_round(folder / "run")
    (site, *_) = load_sites(folder / "data", image_size=32, classes=("nv", "bkl", "mel"))
    weights, recipe = federation.mean, federation.run.recipe
    after = reestimate_norms(weights, site.train, recipe)
    changed = {key for key in weights if not torch.equal(weights[key], after[key])}
    assert changed
    assert all(k.endswith(("running_mean", "running_var", "num_batches_tracked")) for k in changed)
    names = list(recipe.network.state_dict())  # in the order of the layers
    first = next(key for key in names if weights[key].ndim == 4)
    stack = [inputs for inputs, _ in batches(site.train, recipe, 64)]
    assert len(stack) == 1
    seen = torch.nn.functional.conv2d(stack[0], weights[first], stride=2)
    mean = next(key for key in names if key.endswith("running_mean"))
    assert torch.allclose(after[mean], seen.mean((0, 2, 3)), atol=1e-5)
    assert forward([recipe.build(after).eval()], stack[0], recipe)[0].isfinite().all()


def test_a_folder_without_a_run_or_a_round_is_named(prrfl, tmp_path):
    code, _, err = prrfl("evaluate", tmp_path, "--data", tmp_path)
    assert code == 2
    assert "is not a run folder" in err


def test_change_is_said_by_a_word_and_no_sign():
    assert change(0.5, 0.5758) == "lost 7.58 points"
    assert change(0.5758, 0.5) == "gained 7.58 points"
    assert change(0.5, 0.500001) == "gained 0.00 points"


def test_evaluate_needs_test_images_alone(prrfl, folder):
    write_layout(folder / "whole", sites=1)
    without(write_layout(folder / "new", sites=1), "train", "valid")
    for name in ("whole", "new"):
        code, _, err = prrfl(
            "evaluate", folder / "run", "--data", folder / name, "--json", folder / f"{name}.json"
        )
        assert code == 0, err
    assert (folder / "new.json").read_text() == (folder / "whole.json").read_text()
    without(folder / "new", "test")
    code, _, err = prrfl("evaluate", folder / "run", "--data", folder / "new")
    assert code == 2
    assert "test_clientA.csv is missing" in err


def test_onboard_needs_no_validation_images(prrfl, folder):
    new = without(write_layout(folder / "new", sites=1), "valid")
    command = ["onboard", folder / "run", "--data", new, "--out", folder / "o", "--epochs", 1]
    code, _, err = prrfl(*command)
    assert code == 0, err
    scores = json.loads((folder / "o/clientA/scores.json").read_text())
    assert list(scores) == [
        "mean of deputies",
        "with its own batch norm",
        "after 1 epoch: its own network",
        "for comparison: 1 epoch alone",
    ]
    without(new, "train")
    code, _, err = prrfl(*command[:-4], "--out", folder / "p")
    assert code == 2
    assert "train_clientA.csv is missing" in err


def test_weights_that_are_gone_are_named_before_anything_is_trained(prrfl, folder, monkeypatch):
    weights = (folder / "run/models/clientA/last.safetensors").rename(folder / "start.safetensors")
    out = ("--out", folder / "second")
    assert prrfl("train", "--data", folder / "data", *SMALL, "--weights", weights, *out)[0] == 0
    weights.unlink()
    trained = []
    monkeypatch.setattr("prrfl.inference.onboarding._train", lambda *_: trained.append(1))
    command = ["onboard", folder / "second", "--data", folder / "data", "--out", folder / "o"]
    code, _, err = prrfl(*command)
    assert (code, str(weights) in err, err.count("\n")) == (2, True, 1), err
    assert not trained
    assert not (folder / "o").exists()


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("method", ["prrfl", "centralised"])
def test_data_of_the_run_itself_is_warned_of(prrfl, tmp_path, caplog, method):
    folder = trained(prrfl, tmp_path, "--method", method)
    write_layout(folder / "new", sites=1)  # the same name, but other images
    prrfl("evaluate", folder / "run", "--data", folder / "new")
    assert not warnings(caplog)
    prrfl("evaluate", folder / "run", "--data", folder / "new" / ".." / "data")
    (said,) = warnings(caplog)
    assert "clientA, clientB took part" in said


def test_networks_that_are_one_are_scored_once(prrfl, tmp_path):
    folder = trained(prrfl, tmp_path, "--method", "fedavg")
    write_layout(folder / "new", sites=1)
    code, out, err = prrfl("evaluate", folder / "run", "--data", folder / "new", "--json", folder / "e.json")
    assert code == 0, err
    assert list(json.loads((folder / "e.json").read_text())["clientA"]) == ["network of all sites"]
    assert "deput" not in out


@pytest.mark.parametrize(("method", "mean"), [("fedbn", "mean of networks"), ("fml", "mean of memes")])
def test_the_mean_is_named_after_what_travels(prrfl, tmp_path, method, mean):
    folder = trained(prrfl, tmp_path, "--method", method)
    write_layout(folder / "new", sites=1)
    code, _, err = prrfl("evaluate", folder / "run", "--data", folder / "new", "--json", folder / "e.json")
    assert code == 0, err
    assert list(json.loads((folder / "e.json").read_text())["clientA"]) == [
        "network of clientA",
        "network of clientB",
        "ensemble of all",
        f"{mean}, last round",
    ]
    command = ["onboard", folder / "run", "--data", folder / "new", "--out", folder / "o", "--epochs", 1]
    code, out, err = prrfl(*command)
    assert code == 0, err
    assert next(iter(json.loads((folder / "o/clientA/scores.json").read_text()))) == mean
    assert f"against the {mean}" in " ".join(out.split())
