"""Steps recorded for a GPU, on whatever device there is: a double records operations and replays them.

As a CUDA graph does, the double keeps the memory that a step read and wrote, and repeats the arithmetic there
without the Python code around it. So a number that the step looked up would stay as it was.
"""

import logging
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from prrfl import Recipe, capture
from prrfl.algorithms import PRRFL
from prrfl.engine import InProcess, rounds_from
from prrfl.testing.contract import moment, recipe_of
from prrfl.training import Learner, Site, predict, train_epoch
from prrfl.types import RoundContext
from tests.contract.test_algorithms import METHODS
from tests.sites import tiny_network, tiny_sites


class Tape(TorchDispatchMode):
    """Runs operations, remembers them, and puts back what they changed."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value was read while recording")
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        for tensor in inputs:  # all of them: batch norm does not say that it changes its statistics
            if tensor.untyped_storage().data_ptr() not in self.made:
                self.before.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        outputs = operation(*args, **(kwargs or {}))
        old = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        new = [
            k
            for k, out in enumerate(tree_flatten(outputs)[0])
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in old
        ]
        flat = tree_flatten(outputs)[0]
        self.made |= {flat[k].untyped_storage().data_ptr() for k in new}
        if new or operation._schema.is_mutable:  # what only gives another view has nothing to repeat
            self.operations.append((operation, args, kwargs or {}, flat, new))
        return outputs

    def put_back(self):
        for tensor, before in self.before.values():
            tensor.copy_(before)

    def repeat(self):
        for operation, args, kwargs, outputs, new in self.operations:
            again = tree_flatten(operation(*args, **kwargs))[0]
            for k in new:
                outputs[k].copy_(again[k])


class Recording:
    replayed = 0

    def __init__(self, function, inputs):
        self.inputs, self.tape = [tensor.clone() for tensor in inputs], Tape()
        with torch.random.fork_rng(devices=[]), self.tape:
            self.outputs = function(*self.inputs)
        with torch.no_grad():
            self.tape.put_back()

    def replay(self, inputs):
        type(self).replayed += 1
        with torch.no_grad():
            for static, given in zip(self.inputs, inputs, strict=True):
                assert static.shape == given.shape
                static.copy_(given)
            self.tape.repeat()
        return tuple(output.clone() for output in self.outputs)


@pytest.fixture
def recorded(monkeypatch):
    """Treat the CPU as a GPU whose graphs are recordings of the double; switch them on and off."""
    monkeypatch.setattr(capture, "record", lambda function, inputs, _: Recording(function, inputs))
    monkeypatch.setattr("prrfl.training.recipe.side_by_side", lambda calls, _: [call() for call in calls])
    monkeypatch.setattr("prrfl.training.epoch.used_here", lambda tensor, _: tensor)
    monkeypatch.setattr(Recording, "replayed", 0)
    monkeypatch.setattr(capture, "_broken", type(capture._broken)())
    for module in ("capture", *(f"training.{name}" for name in ("batching", "epoch", "recipe"))):
        monkeypatch.setattr(f"prrfl.{module}.on_gpu", lambda _: True)
    return lambda on: monkeypatch.setattr(capture, "MOST", 16 if on else 0)


def recipe(**changes):
    return replace(Recipe(tiny_network(), batch=8, lr=0.05), **changes)


def outcome(algorithm, made):
    """Return all records of three rounds over two learning rates, and the tensors after them."""
    engine = InProcess(algorithm, tiny_sites(2), made)
    records = list(rounds_from(moment(made, rounds=3, epochs=3), algorithm, engine))
    models = engine.models()
    return records, {(s, m, k): t for s in models for m in models[s] for k, t in models[s][m].items()}


@pytest.mark.parametrize(
    "name",
    [
        "prrfl",
        "fedprox",
        "fml",
        "fedavg",
        "fedrep",
        "moon",
        "apfl",
        "fedrod",
        "fedala",
        "prototypes per-epoch",
    ],
)
def test_replayed_steps_give_the_bits_of_launched_ones(recorded, name):
    method = METHODS[name]
    made = replace(recipe_of(method), lr=0.05, lr_step=2)
    recorded(False)
    launched = outcome(method, replace(made))
    assert Recording.replayed == 0
    recorded(True)
    replayed = outcome(method, made)
    assert Recording.replayed > 40
    assert launched[0] == replayed[0]
    for key, tensor in launched[1].items():
        assert torch.equal(tensor, replayed[1][key]), key


def test_all_stages_share_a_recording(recorded):
    # Stages change from epoch to epoch; each is a tensor that the recording reads.
    made, stages = recipe(), []
    for on in (False, True):
        recorded(on)
        records, _ = outcome(PRRFL(alpha1=0.4, alpha2=0.5), replace(made))
        stages.append([r.metrics["stage"] for r in records if r.kind == "train"])
    assert stages[0] == stages[1]
    assert len(set(stages[0])) == 3


def test_what_no_shape_repeats_is_not_recorded(recorded):
    recorded(True)
    doubled = capture.Captured(lambda x: (x * 2,), "cpu")
    for n in range(1, 40):
        assert doubled(torch.ones(n))[0].sum() == 2 * n
    assert Recording.replayed == 0
    assert doubled(torch.ones(3))[0].sum() == 6
    assert Recording.replayed == 1


def test_an_output_outlives_the_next_call(recorded):
    recorded(True)
    doubled = capture.Captured(lambda x: (x * 2,), "cpu")
    outputs = [doubled(torch.full((2,), float(k)))[0] for k in range(5)]
    assert [out.tolist() for out in outputs] == [[2.0 * k] * 2 for k in range(5)]


def test_a_network_that_cannot_be_recorded_says_so_once_and_runs_as_it_is(recorded, caplog):
    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(192, 3)

        def forward(self, x):
            return self.layer(x.flatten(1)) * (1.0 if x.mean().item() > 0 else 2.0)

    made = recipe(network=Reads())
    recorded(False)
    launched = outcome(METHODS["fedavg"], replace(made))
    recorded(True)
    with caplog.at_level(logging.WARNING, "prrfl"):
        replayed = outcome(METHODS["fedavg"], made)
    assert launched[0] == replayed[0]
    assert Recording.replayed == 0
    assert [r.message for r in caplog.records] == [
        "a step cannot be recorded as a CUDA graph, so training is slower: a value was read while recording"
    ]


def test_networks_are_kept_but_what_they_hold_is_not(recorded):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()), persistent=False)
            self.layer = torch.nn.Linear(192, 3)

        def forward(self, x):
            self.calls += 1
            return self.layer(x.flatten(1)) + self.calls

    made = recipe(network=Counts())
    site = Site(tiny_sites(1)[0], made)
    start = Learner(made.network.state_dict())
    recorded(True)
    first, second = (train_epoch([start], site, RoundContext(0, 1, 0, 1, 0)).losses for _ in range(2))
    assert first == second
    one, other = (predict([start.weights], site.data.test, made)[0] for _ in range(2))
    assert torch.equal(one, other)
    assert len(made._trainers._made) == 1
