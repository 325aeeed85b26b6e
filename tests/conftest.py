"""What several rooms of tests share."""

import sys

import pytest
import torch

from prrfl import cli

# Bits depend on threads, so that tests which compare engines need the same number in both; and what is tiny
# is slower with more.
torch.set_num_threads(1)


@pytest.fixture
def prrfl(monkeypatch, capsys):
    """Call the command line in this process; give exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prrfl", *map(str, arguments)])
        code = cli.guarded(cli.app)
        out, err = capsys.readouterr()
        return code, out, err

    return call
