"""What a check finds, and how it is written for people."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prrfl.reports.formatting import counted

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``note`` if a user should know of it, ``problem`` if training would fail.
        topic: what was checked, in a word or two.
        message: what was found.
        advice: what to do about it; empty if nothing needs to be done.
    """

    level: Level
    topic: str
    message: str
    advice: str = ""


def verdict(findings: Iterable[Finding]) -> str:
    """Summarise findings in one line."""
    levels = [finding.level for finding in findings]
    notes = counted(levels.count("note"), "note")
    if problems := levels.count("problem"):
        return f"Not ready to train: {counted(problems, 'problem')}, {notes}."
    return f"Ready to train: no problem, {notes}."


def size(count: float) -> str:
    """Return a number of bytes in MiB or GiB."""
    if count < 2**20:
        return "less than 1 MiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Return a time in s, min or h, to two significant digits."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
