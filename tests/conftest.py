"""What several rooms of tests share."""

import sys

import pytest

from prrfl import cli


@pytest.fixture
def prrfl(monkeypatch, capsys):
    """Call the command line in this process; give exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prrfl", *map(str, arguments)])
        code = cli.guarded(cli.app)
        out, err = capsys.readouterr()
        return code, out, err

    return call
