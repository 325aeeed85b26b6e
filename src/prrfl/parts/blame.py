"""Errors in code that is not the package's: which part raised, and at which line of whose file."""

import traceback
from pathlib import Path

from prrfl.errors import PRRFLError


class PartError(PRRFLError):
    """A part that is not the package's cannot be imported or used, or raises while it runs."""


_FOREIGN: dict[Path, str] = {}
"""Files, and folders of packages, that parts were loaded from, each with the part's name."""


def watch_for(origin: Path, name: str) -> None:
    """Remember where a part comes from, so that :func:`blamed` recognises errors in it.

    Args:
        origin: its file, or the folder of its package.
        name: its kind and name, such as ``method PartWay``. A part of this package is nobody else's.
    """
    if not origin.resolve().is_relative_to(Path(__file__).parents[1]):
        _FOREIGN.setdefault(origin.resolve(), name)


def blamed(cause: BaseException) -> PartError | None:
    """Return a one-line error if a part raised an exception; ``None`` if no part is in use.

    The line tells the innermost place in the part's own files. Without one, the package could not use
    what a part returned; but a file that cannot be read or written, as on a full disk, is nobody's fault.
    Errors of the package have their own messages, and are not blamed on anyone.
    """
    if found := raised_by_a_part(cause):
        return found
    if not _FOREIGN or isinstance(cause, PRRFLError | OSError) or not isinstance(cause, Exception):
        return None
    last = traceback.extract_tb(cause.__traceback__)[-1]
    return PartError(
        f"{' or '.join(_FOREIGN.values())} seems to return something unexpected: "
        f"{class_and_message(cause)} in {last.filename}, line {last.lineno}; the checks in prrfl.testing "
        "tell what is expected"
    )


def raised_by_a_part(cause: BaseException) -> PartError | None:
    """Return a one-line error, with the innermost place in a part's own files, if there is one.

    A part that calls ``sys.exit`` raises, too.
    """
    if isinstance(cause, PRRFLError) or not isinstance(cause, Exception | SystemExit):
        return None
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
        path = Path(frame.filename)
        for place in (path, *path.parents):
            if place in _FOREIGN:
                where = f"{frame.filename}, line {frame.lineno}, in {frame.name}"
                return PartError(f"{_FOREIGN[place]}: {where}: {class_and_message(cause)}")
    return None


def class_and_message(cause: BaseException) -> str:
    """Return an exception's class and message, on one line."""
    words = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {words}" if words else type(cause).__name__
