"""Checkpoints: a state that is accepted is one of its kind, whole; what is not is named."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from prrfl.algorithms import PRRFL, FedProx
from prrfl.algorithms.prrfl import PRRFLState
from prrfl.det import Stage
from prrfl.engine.in_process import read_client
from prrfl.storage.tensor_files import from_bytes, read_notes, read_state, read_tensors, to_bytes, write_state
from prrfl.training import Learner
from prrfl.types import RoundContext, Share
from tests.fuzz.cases import cases, tried
from tests.fuzz.mutators import changes, files
from tests.sites import tiny_network

WEIGHTS = tiny_network().state_dict()
STATE = PRRFLState(Learner(WEIGHTS, {"0.step": torch.tensor(3.0)}), Learner(WEIGHTS), Stage.EXCHANGE)
VALUES = {
    PRRFLState: STATE,
    Share: Share(WEIGHTS, 2.0),
    RoundContext: RoundContext(1, 3, 0, 2, 7, frozenset({"1.weight"})),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@cases(300)
@given(kind=st.sampled_from(list(VALUES)), change=changes)
def test_bytes_that_are_changed(kind, change):
    whole = to_bytes(VALUES[kind])
    value = tried(lambda: from_bytes(kind, change(whole)), f"not a {kind.__name__}")
    if isinstance(value, str):
        return
    assert isinstance(value, kind)
    # Nothing was lost: what came in is what goes out, but for the order of names in the header.
    again = from_bytes(kind, to_bytes(value))
    assert type(again) is type(value)
    if kind is Share:
        assert again.tensors.keys() == value.tensors.keys() == WEIGHTS.keys() or change(whole) != whole


@cases(150)
@given(data=st.data())
def test_a_header_that_is_changed(data):
    """The bytes are a whole safetensors file whose notes say odd things."""
    values = json.loads(
        data.draw(
            st.sampled_from(
                [
                    '{"stage/": 2}',
                    '{"stage/": 7}',
                    '{"stage/": NaN}',
                    "{}",
                    "[]",
                    "null",
                    '{"stage/": null, "more/": 1}',
                    '{"stage/": "EXCHANGE"}',
                    '{"stage/": [[[[]]]]}',
                ]
            )
        )
    )
    odd = st.sampled_from(["personalised/weights/x", "elsewhere", "deputy/memory/0.y", "stage/", ""])
    names = ("personalised", "deputy")
    tensors = {f"{name}/weights/{key}": t.clone() for name in names for key, t in WEIGHTS.items()}
    tensors |= {key: torch.zeros(2) for key in data.draw(st.lists(odd, max_size=2))}
    notes = data.draw(
        st.sampled_from(
            [json.dumps({"values": values}), "[" * 100_000, "", "{}", '{"values": 3}', "9" * 5000, "nul"]
        )
    )
    state = tried(lambda: from_bytes(PRRFLState, save(tensors, {"prrfl": notes})), "not a PRRFLState")
    if not isinstance(state, str):
        held = [
            state.personalised.weights,
            state.personalised.memory,
            state.deputy.weights,
            state.deputy.memory,
        ]
        assert sum(map(len, held)) == len(tensors)


@cases(150)
@given(mutation=files)
def test_a_file_that_is_broken(mutation, folder):
    path = folder / "a.safetensors"
    if path.is_dir() and not path.is_symlink():
        (path / "inside").unlink(missing_ok=True)
        path.rmdir()
    path.unlink(missing_ok=True)
    write_state(path, STATE)
    whole = path.read_bytes()
    mutation(path)
    state = tried(lambda: read_state(path, PRRFLState), path)
    tensors = tried(lambda: read_tensors(path), path)
    notes = tried(lambda: read_notes(path), path)
    if not isinstance(state, str):
        assert isinstance(state, PRRFLState)
        assert not isinstance(tensors, str)
        assert notes["values"]
    elif path.is_file() and path.read_bytes() == whole:
        raise AssertionError(state)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**30, 2**31, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_header_longer_than_the_file(length, folder):
    path = folder / "long.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b'{"a":1}')
    assert isinstance(tried(lambda: read_state(path, Share), path), str)
    assert isinstance(tried(lambda: from_bytes(Share, path.read_bytes()), "not a Share"), str)


def test_a_state_of_another_network_is_refused(folder):
    path = folder / "site.safetensors"
    start = FedProx().start(WEIGHTS)
    write_state(path, FedProx().start({**WEIGHTS, "6.weight": torch.zeros(5, 24)}))
    line = tried(lambda: read_client(path, FedProx(), start), path)
    assert "tensor '6.weight' has shape (5, 24), expected (3, 24)" in line
    assert "does not hold a PRRFLState" in tried(
        lambda: read_client(path, PRRFL(), PRRFL().start(WEIGHTS)), path
    )
