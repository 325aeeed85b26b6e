"""Errors that users can cause. Each message is one line: what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable

LONGEST = 1000
"""Longest message, in characters. A longer one, which quotes a huge cell for example, loses its middle."""


class PRRFLError(Exception):
    """Base of all errors that the command line prints as one line, with exit code 2."""

    def __str__(self) -> str:
        """Return the message as one line."""
        return one_line(super().__str__())


class ConfigError(PRRFLError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(PRRFLError):
    """A folder, table, row or image of the data is missing, broken or unusable."""


class StateMismatchError(PRRFLError):
    """Saved or received tensors are damaged, or do not fit the network or the other sites."""


class NonFiniteShareError(PRRFLError):
    """A site's training or share holds NaN or infinity."""


class ParticipationError(PRRFLError):
    """Too few sites take part, or a site takes part that must not."""


def one_line(text: str) -> str:
    """Return a text as one printable line of bounded length.

    Line breaks and control characters, which file names and table cells can contain, are escaped as in
    Python, so that data cannot control the terminal.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` with the choice nearest to a mistyped word, or ``""``."""
    # The time of the search grows with the square of the length.
    close = difflib.get_close_matches(word[:100], list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Stopped(BaseException):
    """The command was stopped, by Ctrl-C or SIGTERM.

    The code that was running adds a note on how to continue. This is not a ``KeyboardInterrupt``, which some
    libraries catch, nor an ``Exception``, which would count as a failure.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number
