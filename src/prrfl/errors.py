"""The errors that a user can cause, each a single line that says what to mend."""

import difflib
from collections.abc import Iterable


class PRRFLError(Exception):
    """Base of every error that the command line shows as one line, with exit code 2."""


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


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice nearest to a mistyped word, or ``""``."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
