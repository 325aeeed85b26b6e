"""Tensors in files: tensors that share memory are stored as if they did not."""

from dataclasses import dataclass

import pytest
import torch

from prrfl.storage.tensor_files import from_bytes, read_tensors, to_bytes, write_tensors
from prrfl.types import Tensors

ROWS = torch.arange(12.0).reshape(3, 4)


@dataclass(frozen=True)
class Two:
    first: Tensors
    second: Tensors


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ROWS, "b": ROWS},
        {"a": ROWS, "b": ROWS.view(4, 3), "c": ROWS.T, "d": ROWS},
        {"a": ROWS[1], "b": ROWS[1:], "c": ROWS[:, 1]},
        {"a": ROWS[2]},  # a part of a larger memory
        {"a": torch.zeros(0), "b": torch.zeros(0, 3), "c": ROWS[:0], "d": ROWS},
        {"a": ROWS[0, 0], "b": ROWS[2, 3]},
        {"a": ROWS, "b": ROWS.T.contiguous(), "c": ROWS.clone()},
        {"a": torch.tensor([1 + 2j]).conj(), "b": torch.tensor([1 + 2j]).conj().imag},  # PyTorch's lazy views
    ],
)
def test_tensors_that_share_memory_are_stored_each_with_its_own_data(tensors, tmp_path):
    write_tensors(tmp_path / "w.safetensors", tensors)
    back = read_tensors(tmp_path / "w.safetensors")
    state = from_bytes(Two, to_bytes(Two(tensors, dict(tensors))))
    for found in (back, state.first, state.second):
        assert found.keys() == tensors.keys()
        assert all(found[key].equal(tensor) for key, tensor in tensors.items())
