"""What `make train` shows a new user: retrogress, its absence, and no site that learnt nothing."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prrfl.runs.deployed import predictions_path
from prrfl.storage.records import read_predictions

ROOT = Path(__file__).parents[2]
SITES = ("clientA", "clientB", "clientC", "clientD")
CLASSES = ("nv", "bkl", "mel")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Run what `make train` runs; return the folder of the comparison."""
    place = tmp_path_factory.mktemp("quickstart")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (line,) = re.findall(r"^train: .*\n\t\$\(BIN\)/prrfl (.*)$", makefile, re.MULTILINE)
    command = [sys.executable, "-m", "prrfl", *shlex.split(line)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
    subprocess.run(command, cwd=place, env=environment, check=True)
    (folder,) = (place / "runs").iterdir()
    return folder


@pytest.mark.slow
def test_fedavg_falls_at_communications_and_prrfl_does_not(compared):
    fedavg, ours = (
        json.loads((compared / f"runs/{method}-seed0/summary.json").read_text())["retrogress"]
        for method in ("fedavg", "prrfl")
    )
    assert ours["personalised"]["macro_f1"] == 0
    assert fedavg["model"]["macro_f1"] > 0.02
    assert (compared / "comparison.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "prrfl"])
def test_no_network_answers_one_class(compared, method):
    for site in SITES:
        path = predictions_path(compared / f"runs/{method}-seed0", site, "last", "test")
        found = read_predictions(path, CLASSES)
        assert len(found.probabilities.argmax(1).unique()) > 1, site
        assert found.labels.bincount().min() >= 6, site
