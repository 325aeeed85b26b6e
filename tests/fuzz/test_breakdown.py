"""Training that breaks down says where and when, in the counts that users see, and spoils nothing."""

import re

import pytest
import torch

from prrfl import training
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from tests.fuzz.cases import listing
from tests.sites_on_disk import write_layout

SMALL = [
    "--network",
    "tiny",
    "--image-size",
    32,
    "--rounds",
    2,
    "--epochs",
    2,
    "--batch",
    8,
    "--precision",
    "float32",
    "--threads",
    1,
    "--workers",
    1,
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("data") / "sites", train=6, other=3)


def refused(prrfl, *arguments):
    code, _, err = prrfl(*arguments)
    assert code == 2
    assert re.match("error: site (client|all sites)", err)
    assert err.count("\n") == 1
    assert err.isascii()
    return err


@pytest.mark.parametrize("method", ["prrfl", "fedprox", "centralised"])
def test_a_learning_rate_that_is_absurd(method, data, tmp_path, prrfl):
    run = tmp_path / "run"
    err = refused(prrfl, "train", "--data", data, *SMALL, "--method", method, "--lr", 1e30, "--out", run)
    assert re.search(r"site [\w ]+, round 1, epoch [12]: .*lower the learning rate", err), err
    assert not list(run.rglob("*.safetensors"))
    assert not [name for name in listing(run) if name.rpartition("/")[2].startswith(".")]
    assert refused(prrfl, "resume", run) == err


@pytest.mark.parametrize("workers", [1, 2])
def test_the_last_good_round_is_kept(workers, data, tmp_path, prrfl, monkeypatch):
    """The second round's learning rate is absurd; the first round's is not."""
    rate = training.Recipe.learning_rate
    monkeypatch.setattr(training.Recipe, "learning_rate", lambda self, t: rate(self, t) if t == 0 else 1e30)
    run = tmp_path / "run"
    settings = [*SMALL[:-1], workers, "--method", "prrfl"]
    err = refused(prrfl, "train", "--data", data, *settings, "--out", run)
    assert "site clientA, round 2, epoch " in err
    assert {record.round for record in read_records(run / "metrics.jsonl")} == {0}

    def files():
        # What says that it was tried again.
        notes = ("log.txt", "environment.json")
        return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in notes}

    kept = files()
    for path in kept:
        if path.suffix == ".safetensors":
            assert all(tensor.isfinite().all() for tensor in read_tensors(path).values())
    assert "round 2" in (run / "log.txt").read_text()
    for _ in range(2):
        assert refused(prrfl, "resume", run) == err
        assert files() == kept
    monkeypatch.undo()
    code, _, err = prrfl("resume", run)
    assert code == 0, err


def test_a_network_that_gives_nan_on_its_test_images_says_when(data, tmp_path, prrfl, monkeypatch):
    """The losses are finite to the end of the epoch; the weights after its last step are not."""
    step = torch.optim.SGD.step

    def breaking(self, *arguments, **more):
        step(self, *arguments, **more)
        self.param_groups[0]["params"][-1].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.SGD, "step", breaking)
    run = tmp_path / "run"
    settings = [*SMALL, "--batch", 64, "--method", "fedavg"]
    err = refused(prrfl, "train", "--data", data, *settings, "--out", run)
    assert "site clientA, round 1, epoch 1: the model network gives NaN or infinity on its test images" in err


def test_a_mean_that_breaks_a_network_is_told_from_training(data, tmp_path, prrfl, monkeypatch):
    """The numbers of a share are in order, those of the mean are not."""
    from prrfl.tensors import WeightedMean

    whole = WeightedMean.result
    monkeypatch.setattr(
        WeightedMean,
        "result",
        lambda self: {k: t * float("nan") if t.is_floating_point() else t for k, t in whole(self).items()},
    )
    err = refused(prrfl, "train", "--data", data, *SMALL, "--method", "fedavg", "--out", tmp_path / "run")
    assert "site clientA, round 1, after receiving the mean: the model network gives NaN" in err
