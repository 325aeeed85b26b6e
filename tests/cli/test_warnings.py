"""What libraries warn of does not reach users; what prrfl warns of does."""

import subprocess
import sys

WARN = """
import logging, sys, warnings
from prrfl import cli
def command():
    logging.getLogger("matplotlib.font_manager").warning("a library's")
    warnings.warn("a programmer's")
    logging.getLogger("prrfl").warning("ours")
sys.exit(cli.guarded(command))
"""


def test_only_our_own_warnings_are_printed():
    done = subprocess.run([sys.executable, "-c", WARN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "warning: ours\n")


def test_pythons_own_switch_shows_the_others():
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", WARN], capture_output=True, text=True, check=False
    )
    assert "a programmer's" in done.stderr
