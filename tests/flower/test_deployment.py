"""Real processes: SuperLink, SuperNodes, TLS and node authentication, started by prrfl's own commands."""

import re

import pytest
import torch

from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from prrfl.types import ExchangeRecord, ScoreRecord
from tests.flower.deployment import Deployment, simulate
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.slow

NAMES = ["clientA", "clientB", "clientC"]
SHORT = ["--rounds", "2", "--epochs", "2"]


def test_real_sites_give_the_tensors_of_one_process(tmp_path):
    data, names = write_layout(tmp_path / "both sites"), NAMES[:2]
    simulated = tmp_path / "simulated"
    simulate(data, simulated, *SHORT)
    with Deployment(tmp_path, data, names) as deployed:
        server = deployed.server(*SHORT)
        for name in names:
            deployed.site(name)
        assert server.wait(timeout=600) == 0, deployed.said()
        for name in names:
            for which in ("last", "best"):
                ours = read_tensors(deployed.experiment(name) / "models" / name / f"{which}.safetensors")
                theirs = read_tensors(simulated / "models" / name / f"{which}.safetensors")
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours), (name, which)
        there, here = (read_records(run / "metrics.jsonl") for run in (simulated, deployed.run))
        for kind in (ScoreRecord, ExchangeRecord):
            assert [r for r in there if isinstance(r, kind)] == [r for r in here if isinstance(r, kind)]
        assert RunFolder(deployed.run).summary()["best"] == RunFolder(simulated).summary()["best"]
        # Neither images nor networks came to the server.
        assert not list(deployed.run.rglob("*.safetensors")), "a network at the server"
        assert re.search(r"macro-F1", deployed.said())


def test_real_sites_under_masks_come_to_the_end_of_a_run(tmp_path):
    data = write_layout(tmp_path / "three sites", sites=3)
    with Deployment(tmp_path, data, NAMES, secure=True) as deployed:
        server = deployed.server("--rounds", "1", "--epochs", "1")
        for name in NAMES:
            deployed.site(name)
        assert server.wait(timeout=600) == 0, deployed.said()
        assert len(RunFolder(deployed.run).summary()["last"]["sites"]) == 3
        # The sites share under masks, and delete their keys at the end.
        assert all((deployed.experiment(name) / "masked.json").is_file() for name in NAMES)
        assert not list(deployed.folder.rglob("sum.key"))
