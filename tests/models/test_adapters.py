"""Low-rank adapters: only they and the last layer train and travel, and a saved network needs none."""

import re

import pytest
import torch
from torch import nn

from prrfl.config import load_config
from prrfl.engine import InProcess, rounds_from
from prrfl.models.adapters import LowRank, add_adapters
from prrfl.models.vit import vit
from prrfl.runs import run, setup
from prrfl.storage.tensor_files import read_tensors
from prrfl.training import predict
from tests.models.test_freezing import FLAGS, SMALL
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.usefixtures("undrawn")

LORA = {"adapter": "lora", "lora_rank": 2, "lora_alpha": 4.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("data"))


def test_a_run_with_adapters(prrfl, data, tmp_path):
    out, flags = tmp_path / "run", ["--adapter", "lora", "--lora-rank", 1, "--workers", 1]
    code, _, err = prrfl("train", "--data", data, "--out", out, *FLAGS, *flags)
    assert code == 0, err
    plain = setup.make_recipe(load_config(None, {**SMALL, "data": data})).network.state_dict()
    for site in ("clientA", "clientB"):
        network = read_tensors(out / f"models/{site}/last.safetensors")
        assert network.keys() == plain.keys()
        moved = {key for key, tensor in network.items() if not torch.equal(tensor, plain[key])}
        assert moved == {"0.weight", "5.weight", "5.bias"}
        change = (network["0.weight"] - plain["0.weight"]).flatten(1)
        assert torch.linalg.matrix_rank(change, rtol=1e-3) == 1
    image = next(data.rglob("*.png"))
    for command in (["predict", out, image], ["export", out]):
        assert prrfl(*command, "--site", "clientA", "--out", tmp_path / command[0])[0] == 0


@pytest.mark.parametrize("method", ["prrfl", "fedavg", "fedprox"])
def test_only_adapters_and_the_last_layer_travel(method, data):
    config = load_config(None, {**SMALL, **LORA, "method": method, "data": data})
    made = run.Run.of(config)
    state = made.method.start(made.recipe.initial())
    inside = "0.parametrizations.weight.0."
    assert made.method.share(state, made.moment(0)).tensors.keys() == {
        f"{inside}up",
        f"{inside}down",
        "5.weight",
        "5.bias",
    }


def test_the_saved_network_computes_the_same_outputs(data):
    config = load_config(None, {**SMALL, **LORA, "data": data, "method": "fedavg", "precision": "float32"})
    made, sites = run.Run.of(config), setup.load_data(config)
    engine = InProcess(made.method, sites, made.recipe)
    list(rounds_from(made.moment(0), made.method, engine))
    plain = setup.make_recipe(load_config(None, {**SMALL, "data": data, "precision": "float32"}))
    for one, site in zip(engine.deployed(), sites, strict=True):
        (found,) = predict([one.weights], site.test, plain)
        torch.testing.assert_close(found, one.test[site.name], rtol=0, atol=1e-6)


def test_an_adapter_adds_a_product_to_the_weight():
    adapter = LowRank(torch.zeros(2, 3), rank=1, alpha=3)
    adapter.down.data = torch.tensor([[1.0, 2, 3]])
    adapter.up.data = torch.tensor([[1.0], [10]])
    assert adapter(torch.ones(2, 3)).tolist() == [[4, 7, 10], [31, 61, 91]]


def test_attention_gets_adapters_which_start_without_effect():
    torch.manual_seed(0)
    network = vit(3, 16, 1, 2).eval()
    images = torch.rand(2, 3, 32, 32)
    before = network(images)
    add_adapters(network, ["*in_proj_weight"], 2, 4.0, 0)
    assert torch.equal(network(images), before)
    network.train()(images).sum().backward()
    learnt = {key for key, weight in network.named_parameters() if weight.grad is not None}
    inside = "encoder.layers.encoder_layer_0.self_attention.parametrizations.in_proj_weight.0."
    assert learnt == {f"{inside}up", f"{inside}down", "heads.head.weight", "heads.head.bias"}


def test_a_target_that_matches_nothing(prrfl, data, tmp_path):
    flags = ["--adapter", "lora", "--lora-targets", "0.weights", "--out", tmp_path / "run"]
    code, _, err = prrfl("train", "--data", data, *FLAGS, *flags)
    assert code == 2
    assert re.search(r"lora_targets '0.weights' matches no weight .*did you mean '0.weight'", err)


def test_weights_that_layers_share_get_no_adapter():
    """Else the saved network had another weight in each layer, of which a new one has a single one."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    network[1].weight = network[0].weight
    add_adapters(network, ["*"], 1, 1.0, seed=0)
    assert [key for key in network.state_dict() if key.endswith(".down")] == [
        "2.parametrizations.weight.0.down"
    ]
