"""Commands in forked processes: a new Python would import PyTorch, which takes longer than a small run."""

import io
import multiprocessing
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from subprocess import DEVNULL

import pytest
import torch

from prrfl import cli
from prrfl.runs import compare


def called(*arguments):
    """Call the command line in this process, which must succeed; return what it printed.

    For fixtures of a wider scope than a test; tests have the fixture ``prrfl``.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        fork_runs(patch)
        patch.setattr(sys, "argv", ["prrfl", *map(str, arguments)])
        code = cli.guarded(cli.app)
    assert code == 0, err.getvalue()
    return out.getvalue()


def fork_runs(patch):
    """Let the runs of comparisons be forked."""
    patch.setattr(compare, "subprocess", ForkedCommands)


class ForkedCommands:
    """What ``prrfl.runs.compare`` needs of the module ``subprocess``."""

    DEVNULL = DEVNULL

    class Popen:
        """A command of this package; its standard output is thrown away.

        ``before`` is called in its process first.
        """

        def __init__(self, command, stderr, env=os.environ, stdout=DEVNULL, before=lambda: None):
            python, dash_m, package, *arguments = command
            assert (python, dash_m, package, stdout) == (sys.executable, "-m", "prrfl", DEVNULL)
            context = multiprocessing.get_context("fork")
            self._process = context.Process(target=_call, args=(arguments, env, stderr.fileno(), before))
            self._process.start()

        @property
        def pid(self):
            return self._process.pid

        @property
        def returncode(self):
            return self._process.exitcode

        def poll(self):
            return self._process.exitcode

        def terminate(self):
            self._process.terminate()

        def wait(self):
            self._process.join()


def _call(arguments, environment, stderr, before):
    signal.alarm(300)  # ends the process if it waits for a lock that a thread held when it was forked
    before()
    # A team of threads does not survive a fork, and a test before may have used one.
    torch.set_num_threads = lambda threads: None
    os.environ.update(environment)
    sys.argv = ["prrfl", *arguments]
    # The screen of the process that forked this one is not ours.
    with open(os.devnull, "w") as sys.stdout, open(stderr, "w", closefd=False) as sys.stderr:  # noqa: PTH123
        code = cli.guarded(cli.app)
    os._exit(code)
