"""VGG16-slim is the authors' network: same names, same shapes, same outputs."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from prrfl.errors import ConfigError
from prrfl.models import NETWORKS, build_network, vgg16_slim
from prrfl.tensors import norm_keys
from tests.reference import VECTORS, reference_weights


def test_names_and_shapes_are_the_published_ones():
    expected = [
        (key, tuple(shape)) for key, shape in json.loads((VECTORS / "vgg16_slim_keys.json").read_text())
    ]
    assert [(key, tuple(t.shape)) for key, t in vgg16_slim().state_dict().items()] == expected


def test_forward_pass_agrees_with_the_authors_code():
    vectors = np.load(VECTORS / "vgg16_slim_forward.npz")
    network = vgg16_slim().eval()
    network.load_state_dict(reference_weights())
    with torch.inference_mode():
        logits = network(torch.from_numpy(vectors["x"]))
    np.testing.assert_allclose(logits.numpy(), vectors["logits"], atol=1e-5, rtol=1e-5)


def test_only_the_last_layer_gains_a_bias():
    plain, biased = vgg16_slim(5).state_dict(), vgg16_slim(5, bias=True).state_dict()
    assert set(biased) - set(plain) == {"fc2.linear.bias"}
    assert biased["fc2.linear.bias"].shape == (5,)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_named_network_classifies(name):
    network = build_network(name, num_classes=4).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_same_seed_same_weights_and_global_generator_left_alone():
    state = torch.get_rng_state()
    first, second, other = (build_network("vgg_nb", seed=s).fc1.linear.weight for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_network_names_the_nearest():
    with pytest.raises(ConfigError, match="resnet50"):
        build_network("resnet5")


def test_norm_layers_are_found_by_type_in_nested_networks():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(4, 4)
            self.scale = nn.LayerNorm(4)

    network = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            "bnormal": nn.Conv2d(4, 4, 1),
            "deep": nn.ModuleList([nn.Sequential(Attention(), nn.GroupNorm(2, 4))]),
            "bare": nn.InstanceNorm2d(4),
        }
    )
    assert norm_keys(network) == {
        "stem.1.weight", "stem.1.bias", "stem.1.running_mean", "stem.1.running_var",
        "stem.1.num_batches_tracked", "deep.0.0.scale.weight", "deep.0.0.scale.bias",
        "deep.0.1.weight", "deep.0.1.bias",
    }  # fmt: skip
    assert norm_keys(nn.BatchNorm1d(2)) == set(nn.BatchNorm1d(2).state_dict())


def test_he_normal_weights_are_those_of_the_first_version():
    weights = build_network("vgg16_slim", seed=3, init="he").state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ours = vgg16_slim()
        for key in weights:
            if key.endswith(("conv.weight", "linear.weight")):
                nn.init.kaiming_normal_(ours.get_parameter(key), nonlinearity="relu")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in ours.state_dict().items())
    default = build_network("vgg16_slim", seed=3).state_dict()
    ratio = weights["layer3.0.conv.weight"].std() / default["layer3.0.conv.weight"].std()
    assert ratio.item() == pytest.approx(6**0.5, rel=0.01)
