"""Fixtures that several folders of tests share."""

import shutil
import sys

import pytest
import torch

from prrfl import cli
from prrfl.models import NETWORKS
from tests.forked import fork_runs
from tests.networks import tiny

# The number of threads decides the order of sums, hence the last bits: tests that compare engines need the
# same number in both. Small networks also run slower with more threads.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def tiny_by_name():
    """Register the tests' network as ``tiny``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NETWORKS, "builtin", {**NETWORKS.builtin, "tiny": tiny})
        yield


@pytest.fixture(scope="session", autouse=True)
def ready_to_fork():
    """Import what PyTorch's first optimiser imports, which every forked process would import otherwise."""
    torch.optim.SGD([torch.zeros(1)])


@pytest.fixture(scope="module", autouse=True)
def clean_up(request, tmp_path_factory):
    """Remove a module's temporary folders when its tests have passed, so that a run fills no disk.

    pytest removes each test's own ``tmp_path`` after it passed (see ``tmp_path_retention_policy``), but until
    the session ends it keeps what fixtures of a wider scope make. What several modules use is called
    ``shared ...`` and stays.
    """
    base = tmp_path_factory.getbasetemp()
    before = set(base.iterdir())
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        for path in {path for path in base.iterdir() if not path.name.startswith("shared ")} - before:
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def prrfl(monkeypatch, capsys):
    """Call the command line in this process; give exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prrfl", *map(str, arguments)])
        code = cli.guarded(cli.app)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def forked(monkeypatch):
    """Let the runs of a comparison be forked from this process, which has imported what they need."""
    fork_runs(monkeypatch)


@pytest.fixture
def undrawn(monkeypatch):
    """Draw no curves of a run, which takes longer than to train a small one."""
    monkeypatch.setattr("prrfl.runs.report.draw_retrogress", lambda *_: None)
