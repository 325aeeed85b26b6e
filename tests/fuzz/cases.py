"""How many cases there are, and what every one of them must hold to.

The standard suite draws the same cases every time; ``make fuzz`` sets ``FUZZ`` to a factor and draws others.
"""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from prrfl.errors import PRRFLError

FACTOR = int(os.environ.get("FUZZ", "0"))
SECONDS = 60


def cases(number):
    """Return Hypothesis settings for so many cases, or many times as many where they are asked for."""
    return settings(
        max_examples=number * max(1, FACTOR),
        derandomize=not FACTOR,
        database=None,
        deadline=None,  # the machine may be busy; what hangs is ended by `within`
        print_blob=bool(FACTOR),
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if FACTOR else [])],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def within(seconds=SECONDS):
    """Fail where the block hangs."""

    def ring(*_):
        raise AssertionError(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(call, *names, kind=PRRFLError):
    """Call; return its result, or the one line in which the program refused, as a string.

    Any exception but the program's own goes through.

    Args:
        call: takes no arguments, returns no string.
        names: one of which an error must name, if any are given.
        kind: what it may refuse with; other modules make it the program's own.
    """
    try:
        with within():
            return call()
    except kind as error:
        line = str(error)
    assert_line(line, *names)
    return line


def assert_line(line, *names):
    """Assert that an error is one printable line of bounded length that names what is at fault."""
    assert line
    assert line.isprintable(), line
    assert len(line) < 2500
    assert not names or any(str(name) in line for name in names), (line, names)


def listing(folder):
    """Return all that is in a folder, at any depth, without following links."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
