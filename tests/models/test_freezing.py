"""Tensors that do not train: they stay as they are, do not travel, and are in no site's state."""

import re

import pytest
import torch

from prrfl.config import load_config
from prrfl.engine import InProcess, rounds_from
from prrfl.engine.workers import Workers
from prrfl.models.freezing import frozen_keys
from prrfl.runs import run, setup
from prrfl.storage.tensor_files import read_tensors
from prrfl.testing.contract import moment
from prrfl.testing.sites import tiny_network, tiny_sites
from prrfl.training import Learner, Recipe, Site, train_epoch
from tests.runs.test_resume import files_of, stopped
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = {"network": "tiny", "image_size": 32, "rounds": 2, "epochs": 2, "batch": 8, "seed": 2}
FLAGS = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", value)]
BODY = {f"1.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("data"))


@pytest.fixture
def published(tmp_path):
    """A file of weights that differ from those the seed gives."""
    torch.save(
        setup.make_recipe(load_config(None, {**SMALL, "seed": 9})).network.state_dict(), tmp_path / "w.pth"
    )
    return tmp_path / "w.pth"


def test_a_run_with_frozen_layers(prrfl, data, tmp_path, published):
    out = tmp_path / "run"
    arguments = ["--data", data, *FLAGS, "--weights", published, "--freeze", "0.*,1.*", "--workers", 1]
    assert prrfl("train", *arguments, "--out", out)[0] == 0
    began = torch.load(published)
    for site in ("clientA", "clientB"):
        network = read_tensors(out / f"models/{site}/last.safetensors")
        assert network.keys() == began.keys()
        kept = {key for key, tensor in network.items() if torch.equal(tensor, began[key])}
        assert kept == {"0.weight", *BODY}
        (state,) = (out / "state/round-0001").glob(f"{site}.safetensors")
        assert not any(key.endswith(("0.weight", "1.weight")) for key in read_tensors(state))
    image = next((data / "data/clientA").rglob("*.png"))
    assert prrfl("predict", out, image, "--site", "clientA", "--out", tmp_path / "p.csv")[0] == 0


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("features.*", "freeze 'features.*' matches no tensor of the network; `prrfl inspect`"),
        ("1.runing_mean", r"matches no tensor of the network \(did you mean '1.running_mean'\?\)"),
        ("0.*,*", r"freeze 0.\*,\* leaves no parameter to train"),
        (",", "freeze: expected patterns of names"),
    ],
)
def test_patterns_that_cannot_be_used(prrfl, data, tmp_path, patterns, message):
    code, _, err = prrfl("train", "--data", data, *FLAGS, "--freeze", patterns, "--out", tmp_path / "run")
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 2
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_resumes_without_the_file_of_weights(data, tmp_path, published):
    config = load_config(None, {**SMALL, "data": data, "weights": published, "freeze": "1.*", "workers": 1})
    sites = setup.load_data(config)
    list(run.train(config, sites, tmp_path / "whole"))
    stopped(config, tmp_path / "parts", 1, 4)
    published.unlink()
    list(run.train(config, sites, tmp_path / "parts", resume=True))
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_frozen_batch_norm_normalises_with_its_statistics():
    network = tiny_network()
    frozen = frozen_keys(network, ["1.running_mean"])
    assert frozen == {f"1.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}
    trained = Recipe(network, frozen=frozen).set_training(Recipe(network).make_network())
    assert [trained.training, trained[1].training, trained[3].training] == [True, False, True]


def test_no_gradient_is_computed_below_the_first_layer_that_trains():
    recipe = Recipe(tiny_network(), batch=8, frozen=frozen_keys(tiny_network(), ["0.*", "1.*"]))
    seen = []

    def objective(step):
        (network,) = step.networks
        seen.append([key for key, weight in network.named_parameters() if weight.requires_grad])
        assert network[:5](step.inputs).requires_grad is False
        return step.losses

    train_epoch([Learner(recipe.initial())], Site(tiny_sites()[0], recipe), moment(recipe), objective)
    assert seen[0] == ["6.weight", "6.bias"]


def test_weight_decay_and_adams_memory_leave_frozen_tensors_alone():
    recipe = Recipe(
        tiny_network(),
        batch=8,
        optimizer="adam",
        weight_decay=0.1,
        frozen=frozen_keys(tiny_network(), ["0.*"]),
    )
    epoch = train_epoch([Learner(recipe.initial())], Site(tiny_sites()[0], recipe), moment(recipe))
    learner = epoch.learners[0]
    assert "0.weight" not in learner.weights
    assert sum(key.endswith("exp_avg") for key in learner.memory) == 4


def test_a_parameter_that_the_network_itself_froze_is_frozen_under_all_its_names():
    network = tiny_network()
    network.add_module("again", network[0])
    network[0].weight.requires_grad_(False)
    assert (
        frozen_keys(network)
        == {"0.weight", "0.bias", "again.weight", "again.bias"} & network.state_dict().keys()
    )


def test_every_process_and_float64_give_the_same_networks(data):
    config = {**SMALL, "data": data, "freeze": "0.*", "precision": "float64", "rounds": 1, "epochs": 1}
    settings = load_config(None, config)
    recipe = setup.make_recipe(settings)
    method, sites = setup.make_method(settings, recipe), setup.load_data(settings)

    def result(engine):
        list(rounds_from(run.Run(settings, method, recipe).moment(0), method, engine))
        return {one.client: one.weights for one in engine.deployed()}

    alone = result(InProcess(method, sites, recipe))
    with Workers(lambda some: InProcess(method, some, recipe), sites, 2, 1) as engine:
        together = result(engine)
    for site, weights in alone.items():
        assert all(torch.equal(tensor, together[site][key]) for key, tensor in weights.items())
        assert weights["0.weight"].dtype == torch.float64
