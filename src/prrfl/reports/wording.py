"""The verdict in words: answers to the questions that readers bring."""

from dataclasses import dataclass

import numpy as np

from prrfl.reports.comparison import ALWAYS, Estimate
from prrfl.reports.formatting import p_value
from prrfl.reports.site_tests import SYMBOLS, Against, Ruling
from prrfl.reports.verdict import Verdict


@dataclass(frozen=True)
class Statement:
    """The answer to a question that readers bring.

    Attributes:
        outcome: for the symbol; ``None`` without one.
    """

    question: str
    text: str
    outcome: Ruling | None = None


def answers(verdict: Verdict) -> list[Statement]:
    """Return the verdict in words."""
    found = [
        Statement(f"Is it better than {_said(test.other)}?", _compared(verdict, test), test.outcome)
        for test in verdict.overall
    ]
    lowest, highest = verdict.sites[0], verdict.sites[-1]
    for name in dict.fromkeys(test.other for one in verdict.sites for test in one.tests):
        if len(verdict.sites) > 1:
            found.append(Statement(f"At which site, against {_said(name)}?", _where(verdict, name)))
    if len(verdict.sites) > 1:
        found.append(
            Statement(
                "How much do sites differ?",
                f"Lowest {lowest.site} with {_score(lowest.score)}, highest {highest.site} with "
                f"{_score(highest.score)}: {100 * verdict.spread:.1f} points apart.",
            )
        )
    return found


def signed(difference: float) -> str:
    """Return a difference of fractions in points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def p_in_text(p: float) -> str:
    """Return a p-value as in text."""
    value = p_value(p)
    return f"p {value}" if value.startswith("<") else f"p = {value}"


def _said(name: str) -> str:
    return "always giving the most frequent class" if name == ALWAYS else name


def _score(e: Estimate) -> str:
    """Return a score with its widest interval, in words."""
    if e.mean is None:
        return "no score"
    ends = e.interval or e.images
    return f"{100 * e.mean:.1f} %" + (f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else "")


def _compared(verdict: Verdict, test: Against) -> str:
    """Return the outcome of the test of the mean of sites in words."""
    mean = ", in the mean of sites" if len(verdict.sites) > 1 else ""
    size = f"macro-F1 {signed(test.difference)} points"
    ends = test.interval
    if ends:
        size += f" ({signed(ends[0])} to {signed(ends[1])})"
    p = "" if test.p is None else f", {p_in_text(test.p)}"
    over = "" if test.trainings else ", for these very networks on other test images"
    match test.outcome:
        case "above":
            return f"{verdict.method} is told apart and higher{mean}: {size}{p}{over}."
        case "below":
            return f"{verdict.method} is worse{mean}: {size}{p}{over}."
        case "not told apart":
            unseen = (
                f" A difference of {100 * test.detectable:.1f} points would probably have been found."
                if test.detectable
                else ""
            )
            return f"Not told apart{mean}: {size}{p}{over}. This does not mean that they are equal.{unseen}"
        case _:
            if np.isnan(test.difference):
                return f"There is no test: {test.reason}."
            return f"There is no test ({test.reason}). Here the difference is {size}."


def _where(verdict: Verdict, name: str) -> str:
    """Return at which sites the method is higher, lower or not told apart."""
    by_outcome: dict[Ruling, list[str]] = {}
    for one in verdict.sites:
        for test in one.tests:
            if test.other == name:
                by_outcome.setdefault(test.outcome, []).append(one.site)
    words: dict[Ruling, str] = {
        "above": "higher",
        "below": "lower",
        "not told apart": "not told apart",
        "no test": "no test",
    }
    if len(by_outcome) == 1 and "no test" in by_outcome:
        reasons = dict.fromkeys(t.reason for one in verdict.sites for t in one.tests if t.other == name)
        return f"{SYMBOLS['no test']} no test at any site: {'; '.join(reasons)}."
    return (
        "; ".join(
            f"{SYMBOLS[outcome]} {words[outcome]} at {len(by_outcome[outcome])} of {len(verdict.sites)}: "
            f"{', '.join(by_outcome[outcome])}"
            for outcome in words
            if outcome in by_outcome
        )
        + "."
    )
