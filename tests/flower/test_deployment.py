"""Real processes: SuperLink, SuperNodes, TLS and node authentication, started by prrfl's own commands.

One federation is that of ``examples/federation.py``.
"""

import subprocess
import sys

import pytest
import torch

from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from prrfl.types import ExchangeRecord, ScoreRecord
from tests.flower.deployment import ENVIRONMENT, ROOT, TRAINING, Deployment, free_port, simulate
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.slow

NAMES = ["clientA", "clientB", "clientC"]
SHORT = ["--rounds", "2", "--epochs", "2"]


def test_the_example_gives_the_tensors_of_one_process(tmp_path):
    ports, training = [free_port() for _ in range(3)], [*TRAINING, *SHORT]
    code = f"import federation as f; f.PORT, *f.SITE_PORTS = {ports}; f.TRAINING = {training}; f.main()"
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{ROOT / 'examples'}"}
    command = [sys.executable, "-c", code]
    settings = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=600, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    there, simulated = tmp_path / "federation", tmp_path / "simulated"
    simulate(there / "data", simulated, *SHORT)
    for name in NAMES[:2]:
        for which in ("last", "best"):
            (path,) = (there / name).glob(f"*/models/{name}/{which}.safetensors")
            ours, theirs = (read_tensors(p) for p in (path, simulated / "models" / name / path.name))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), (name, which)
    records = [read_records(run / "metrics.jsonl") for run in (simulated, there / "run")]
    for kind in (ScoreRecord, ExchangeRecord):
        one, other = ([r for r in of if isinstance(r, kind)] for of in records)
        assert one == other
    assert RunFolder(there / "run").summary()["best"] == RunFolder(simulated).summary()["best"]
    # Neither images nor networks came to the server.
    assert not list((there / "run").rglob("*.safetensors")), "a network at the server"
    assert "macro-F1" in done.stdout


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
