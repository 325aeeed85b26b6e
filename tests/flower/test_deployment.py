"""Real processes: SuperLink, SuperNodes, TLS and node authentication, started by prrfl's own commands."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from prrfl.types import ExchangeRecord, ScoreRecord
from tests.flower.deployment import ENVIRONMENT, PRRFL, Deployment, simulate
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ["clientA", "clientB", "clientC", "clientD"]
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


def test_a_site_that_never_comes_is_told_of_by_the_exit_code_and_the_report(tmp_path):
    data = write_layout(tmp_path / "all sites", sites=4)
    with Deployment(tmp_path, data, NAMES, secure=True) as deployed:
        for name in NAMES[:3]:
            deployed.site(name)
        server = deployed.server("--rounds", "1", "--epochs", "1", "--quorum", "3", "--deadline", "30")
        assert server.wait(timeout=600) == 3, deployed.said()
        assert "round 1 continued without clientD: no answer within 30 s" in deployed.said()
        assert RunFolder(deployed.run).summary()["absent"] == {"clientD": [0]}
        subprocess.run([PRRFL, "report", deployed.run], env=ENVIRONMENT, check=True, capture_output=True)
        assert "Without clientD in round(s) 1." in (deployed.run / "report.html").read_text("utf-8")
