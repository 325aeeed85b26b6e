"""Weights of files that others wrote: what fits is loaded, everything else is refused by its name."""

import logging

import pytest
import torch
from torch import nn

from prrfl.config import load_config
from prrfl.errors import ConfigError, StateMismatchError
from prrfl.models import build_network
from prrfl.models.weights import load_weights
from prrfl.pfa import low_band_amplitudes
from prrfl.runs.setup import make_recipe
from prrfl.tensors import WeightedMean, check_same_layout
from prrfl.training import Recipe


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def loaded(tmp_path, state, **settings):
    torch.save(state, tmp_path / "w.pth")
    module = network(2)
    load_weights(module, str(tmp_path / "w.pth"), **settings)
    return module.state_dict()


def same(found, expected):
    return all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_module.", "model.", "module._orig_mod.", "model.module."]
)
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    state = network().state_dict()
    assert same(loaded(tmp_path, {prefix + key: t for key, t in state.items()}), state)


def test_a_prefix_of_the_networks_own_stays(tmp_path):
    whole = nn.ModuleDict({"model": network()})
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    other = nn.ModuleDict({"model": network(2)})
    load_weights(other, str(tmp_path / "w.pth"))
    assert same(other.state_dict(), whole.state_dict())


def test_the_state_dict_among_other_entries_of_a_checkpoint_is_found(tmp_path):
    state = network().state_dict()
    whole = {"state_dict": state, "epoch": 3, "hyper": {"lr": 0.1}, "optimizer": {"state": {}, "groups": [1]}}
    assert same(loaded(tmp_path, whole), state)


def test_counters_that_old_versions_lack_start_at_0_with_a_message(tmp_path, caplog):
    state = network().state_dict()
    found = loaded(tmp_path, {k: t for k, t in state.items() if "num_batches" not in k})
    assert same(found, state)
    assert "1 counters num_batches_tracked are missing and start at 0" in caplog.text


def test_numbers_that_are_rounded_are_reported(tmp_path, caplog):
    state = {k: t.double() + 1e-12 if t.is_floating_point() else t for k, t in network().state_dict().items()}
    loaded(tmp_path, state)
    assert "8 tensors, the first is '0.weight', are rounded to float32" in caplog.text


def test_half_precision_is_kept_exactly(tmp_path, caplog):
    state = {k: t.half() if t.is_floating_point() else t for k, t in network().state_dict().items()}
    found = loaded(tmp_path, state)
    assert all(torch.equal(found[k].to(t.dtype), t) for k, t in state.items())
    assert not caplog.records


ODD = {
    "complex": ("0.weight", lambda t: t.to(torch.complex64), "is complex64"),
    "8 bits": ("0.weight", lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
    "too large": ("0.bias", lambda t: t.double() + 1e300, "is float64, and float32"),
    "part of a count": ("1.num_batches_tracked", lambda t: torch.tensor(0.5), "is float32, and int64"),
    "large integers": ("3.bias", lambda t: torch.tensor([2**24 + 1, 0, 0]), "is int64, and float32"),
}


@pytest.mark.parametrize("case", ODD)
def test_numbers_that_the_network_cannot_hold_are_refused_by_name(tmp_path, case):
    key, change, message = ODD[case]
    state = network().state_dict()
    with pytest.raises(StateMismatchError, match=f"'{key}' {message}"):
        loaded(tmp_path, {**state, key: change(state[key])})


def with_one(kind, buffer=False):
    module = nn.Linear(2, 3)
    tensor = torch.zeros(3, dtype=kind)
    module.register_buffer("odd", tensor, persistent=False) if buffer else module.register_parameter(
        "odd", nn.Parameter(tensor)
    )
    return module


@pytest.mark.parametrize("kind", [torch.complex64, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("buffer", [False, True])
def test_parameters_that_training_cannot_keep_are_refused_by_name(kind, buffer):
    with pytest.raises(StateMismatchError, match=f"'odd' is {str(kind).removeprefix('torch.')}"):
        Recipe(with_one(kind, buffer))


def test_complex_tensors_are_neither_averaged_nor_left_out():
    state = {"w": torch.zeros(4, 4, dtype=torch.complex64)}
    with pytest.raises(StateMismatchError, match="clientA: 'w' is complex64"):
        WeightedMean().add(state, whose="clientA")
    with pytest.raises(StateMismatchError, match="'w' is complex64"):
        low_band_amplitudes(state, 0.7)


def test_errors_name_the_first_tensor_in_the_order_of_the_network():
    expected = {f"layer{k}.weight": torch.zeros(2) for k in range(50)}
    for found in ({}, {f"x.{key}": t for key, t in expected.items()}):
        with pytest.raises(StateMismatchError, match=r"lacks tensor 'layer0\.weight'"):
            check_same_layout(expected, found, "w")
    more = {**expected, "zz": torch.zeros(1), "aa": torch.zeros(1)}
    with pytest.raises(StateMismatchError, match="the unexpected tensor 'aa'"):
        check_same_layout(expected, more, "w")


def test_a_head_for_other_classes_is_left_out_on_request(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    file = tmp_path / "seven.pth"
    theirs = build_network("vgg16_slim", 7, 5)
    torch.save(theirs.state_dict(), file)
    settings = {"network": "vgg16_slim", "weights": file, "seed": 2, "data": tmp_path}
    with pytest.raises(StateMismatchError, match=r"has shape \(7, .*--new-head"):
        make_recipe(load_config(None, settings))
    recipe = make_recipe(load_config(None, {**settings, "new_head": True}))
    head = {k for k, t in theirs.state_dict().items() if t.shape[:1] == (7,)}
    own = build_network("vgg16_slim", 3, 2).state_dict()
    for key, tensor in recipe.network.state_dict().items():
        assert torch.equal(tensor, own[key] if key in head else theirs.state_dict()[key])
    assert f"the head is left out and starts at random: {', '.join(sorted(head))}" in caplog.text


def test_a_new_head_needs_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"--new-head: .*expected --weights"):
        load_config(None, {"new_head": True, "data": tmp_path})
