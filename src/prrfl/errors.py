"""The errors that a user can cause, each a single line that says what to mend."""

import difflib
from collections.abc import Iterable

LONGEST = 1000
"""Characters of a message; one that quotes more, say a cell of megabytes, loses its middle."""


class PRRFLError(Exception):
    """Base of every error that the command line shows as one line, with exit code 2."""

    def __str__(self) -> str:
        """Return the message as one line, whatever it quotes."""
        return one_line(super().__str__())


class ConfigError(PRRFLError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(PRRFLError):
    """A folder, table, row or image of the data is missing, broken or unusable."""


class StateMismatchError(PRRFLError):
    """Tensors do not have the names or shapes that the network or the other sites have."""


class NonFiniteShareError(PRRFLError):
    """A site's training or share holds NaN or infinity."""


class ParticipationError(PRRFLError):
    """Too few sites take part, or a site takes part that should not."""


def one_line(text: str) -> str:
    """Return a text as one printable line of bounded length.

    Line breaks and control characters, which names of files and cells of tables can hold, are escaped as in
    Python, so that nobody's data writes to a terminal.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice nearest to a mistyped word, or ``""``."""
    # The search takes a time that grows with the square of the length.
    close = difflib.get_close_matches(word[:100], list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Stopped(BaseException):
    """Somebody stopped the command, by Ctrl-C or SIGTERM.

    What it was doing adds a note on how to go on. It is no ``KeyboardInterrupt``, which libraries take for
    themselves, and no ``Exception``, which would be taken for a failure.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number
