"""A run that version 0.1.0 started, with one of two rounds done, is resumed, reported and used.

``old_run`` is its folder; ``expected.jsonl`` holds the records of both rounds as that version wrote them.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from tests.sites_on_disk import write_layout

OLD = Path(__file__).parent / "old_run"


@pytest.fixture
def old(tmp_path):
    """Return a copy of the old run, with its data."""
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    data = write_layout(tmp_path / "data")
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('data = "data"', f"data = {json.dumps(str(data))}"))
    return folder


def numbers(record):
    """Return the numbers of a record by name, and all else that it says."""
    text, found = {}, {}
    waiting = [("", asdict(record))]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, float):
            found[name] = value
        else:
            text[name] = value
    return found, text


def test_an_old_run_is_resumed_to_the_end_it_would_have_had(old, prrfl):
    first = (old / "metrics.jsonl").read_bytes()
    assert RunFolder(old).rounds_done == 1
    assert not RunFolder(old).is_finished
    code, _, err = prrfl("resume", old)
    assert (code, err) == (0, "")
    assert RunFolder(old).is_finished
    assert (old / "metrics.jsonl").read_bytes().startswith(first)
    resumed, expected = (read_records(old / name) for name in ("metrics.jsonl", "expected.jsonl"))
    assert len(resumed) == len(expected)
    for found, wanted in zip(resumed, expected, strict=True):
        # The last bits depend on the processor.
        assert numbers(found)[0] == pytest.approx(numbers(wanted)[0], rel=1e-3, abs=1e-5)
        assert numbers(found)[1] == numbers(wanted)[1]


def test_a_new_run_with_the_same_settings_has_the_same_bits(old, prrfl, tmp_path):
    """So the old state was read in full: what it lacked would show in the second round."""
    assert prrfl("resume", old)[0] == 0
    again = tmp_path / "again"
    assert prrfl("train", "--config", old / "config.toml", "--out", again)[0] == 0
    resumed, new = (read_tensors(folder / "models/clientA/last.safetensors") for folder in (old, again))
    for key, tensor in new.items():
        torch.testing.assert_close(resumed[key], tensor, rtol=1e-4, atol=1e-6)
    if (again / "metrics.jsonl").read_bytes().startswith((OLD / "metrics.jsonl").read_bytes()):
        # A processor like the one that computed the first round.
        assert (old / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
        assert all(torch.equal(resumed[key], tensor) for key, tensor in new.items())


def test_an_old_run_is_reported_and_used(old, prrfl, tmp_path):
    code, out, _ = prrfl("report", old)
    assert code == 0
    assert "clientB" in out
    assert (old / "report.html").is_file()
    out = tmp_path / "p.csv"
    image = next((tmp_path / "data/data/clientA").rglob("*.png"))
    command = ("predict", old, image, "--site", "clientA", "--network", "last", "--out", out)
    code, _, err = prrfl(*command)
    assert (code, err) == (0, "")
    assert "p_mel" in out.read_text()
