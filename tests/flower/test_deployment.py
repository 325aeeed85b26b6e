"""Real processes: SuperLink, SuperNodes, TLS and node authentication, started by prrfl's own commands."""

import re
import subprocess

import pytest
import torch

from prrfl.engine.store import read_tensors
from prrfl.records import read_records
from prrfl.run_folder import read_summary
from prrfl.types import ExchangeRecord, ScoreRecord
from tests.flower.deployment import PRRFL, TRAINING, Deployment
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.slow

NAMES = ["clientA", "clientB", "clientC", "clientD"]
SHORT = ["--rounds", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("all sites"), sites=4)


@pytest.fixture(scope="module")
def simulated(data, tmp_path_factory):
    """The same run in one process."""
    folder = tmp_path_factory.mktemp("simulated") / "run"
    subprocess.run(
        [
            PRRFL,
            "train",
            "--data",
            data,
            "--out",
            folder,
            "--workers",
            "1",
            "--threads",
            "1",
            *TRAINING,
            *SHORT,
        ],
        check=True,
        capture_output=True,
    )
    return folder


def test_four_real_sites_give_the_tensors_of_one_process(data, simulated, tmp_path):
    with Deployment(tmp_path, data, NAMES) as deployed:
        server = deployed.server(*SHORT)
        for name in NAMES:
            deployed.site(name)
        assert server.wait(timeout=240) == 0, deployed.said()
        for name in NAMES:
            for which in ("last", "best"):
                ours = read_tensors(deployed.kept(name) / "models" / name / f"{which}.safetensors")
                theirs = read_tensors(simulated / "models" / name / f"{which}.safetensors")
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours), (name, which)
        there, here = (read_records(run / "metrics.jsonl") for run in (simulated, deployed.run))
        for kind in (ScoreRecord, ExchangeRecord):
            assert [r for r in there if isinstance(r, kind)] == [r for r in here if isinstance(r, kind)]
        assert read_summary(deployed.run)["best"] == read_summary(simulated)["best"]
        # Neither images nor networks came to the server.
        assert not list(deployed.run.rglob("*.safetensors")), "a network at the server"
        assert re.search(r"macro-F1", deployed.said())
