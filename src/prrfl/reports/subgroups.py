"""Scores of subgroups of a site's test images, and how far each differs from the rest of them."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prrfl.reports.assessment import Assessment, Measured, assess
from prrfl.reports.formatting import p_value, percent
from prrfl.reports.sampled import GroupedImages
from prrfl.reports.tables import Table
from prrfl.reports.uncertainty import FEWEST_GROUPS, LEVEL, Term, holm, sum_interval, sum_p
from prrfl.types import UNKNOWN_SUBGROUP, ClientId, Partition, Predictions

ALONE = "all of the site's images"
TOO_FEW_CLASSES = f"fewer than two classes with {FEWEST_GROUPS} lesions or patients both here and in the rest"

SCORES = ("balanced accuracy", "macro-F1", "AUC")
"""Scores in the table before the recall of each class."""


@dataclass(frozen=True)
class Gap:
    """The difference in balanced accuracy between a subgroup and the rest of its site's images.

    Attributes:
        classes: indices of the classes whose recall counts: those with enough lesions on both sides.
        value: subgroup minus rest, as a fraction.
        interval: its 95 % interval over images.
        p: two-sided p-value, Holm-corrected.
        tests: number of tests that it is corrected for.
    """

    classes: tuple[int, ...]
    value: float
    interval: tuple[float, float]
    p: float
    tests: int = 1


@dataclass(frozen=True)
class Subgroup:
    """Scores of a site's network on a subgroup of the site's test images.

    Attributes:
        column: the column of the data's tables that divides the images.
        name: the subgroup.
        whole: number of all test images of the site.
        counts: number of images of each class.
        gap: ``None`` if it is not compared with the rest.
        reason: why it is not compared; empty if it is.
    """

    site: ClientId
    column: str
    name: str
    whole: int
    counts: tuple[int, ...]
    scores: Assessment
    gap: Gap | None
    reason: str

    @property
    def told_apart(self) -> bool:
        """Whether it differs significantly from the rest."""
        return self.gap is not None and self.gap.p < LEVEL


def by_subgroup(
    predictions: Mapping[ClientId, Predictions], partitions: Sequence[Partition]
) -> list[Subgroup]:
    """Return the scores of all subgroups that have images, by column, site and order of the subgroups.

    Sites are not pooled: each has its own network, and a subgroup that is frequent at one site would be
    compared with the images of another.

    Args:
        predictions: on the test images, by site.
        partitions: how the images are divided.
    """
    found = []
    for partition in partitions:
        for site, members in partition.members.items():
            own = predictions[site]
            for name in partition.subgroups:
                which = np.array([member == name for member in members])
                if which.any():
                    scores = assess(_part(own, which))
                    counts = tuple(own.labels[which].bincount(minlength=own.probabilities.shape[1]).tolist())
                    gap = _gap(own, which)
                    reason = "" if gap else ALONE if which.all() else TOO_FEW_CLASSES
                    row = (site, partition.column, name, len(members), counts, scores, gap, reason)
                    found.append(Subgroup(*row))
    return _corrected(found)


def _part(predictions: Predictions, which: NDArray[np.bool_]) -> Predictions:
    """Return the predictions on some of the images."""
    rows = np.flatnonzero(which)
    return Predictions(
        tuple(predictions.ids[row] for row in rows),
        predictions.labels[rows],
        predictions.probabilities[rows],
        tuple(predictions.groups[row] for row in rows) if predictions.groups else (),
    )


def _gap(predictions: Predictions, which: NDArray[np.bool_]) -> Gap | None:
    """Return the difference of some images to the others, with its p-value as a single test."""
    images = GroupedImages.of(predictions)
    right = predictions.probabilities.argmax(1).numpy() == images.labels
    sides = [(which & (images.labels == k), ~which & (images.labels == k)) for k in range(images.classes)]
    classes = [k for k, pair in enumerate(sides) if min(map(images.groups_of, pair)) >= FEWEST_GROUPS]
    if len(classes) < 2:
        return None
    terms = [
        Term(sign / len(classes), float(right[side].mean()), images.groups_of(side))
        for k in classes
        for sign, side in zip((1, -1), sides[k], strict=True)
    ]
    value = sum(term.weight * term.share for term in terms)
    return Gap(tuple(classes), value, sum_interval(terms), sum_p(terms))


def _corrected(rows: Sequence[Subgroup]) -> list[Subgroup]:
    """Return the rows with p-values corrected for all tests.

    If a column has two subgroups at a site, each is the other's rest, and they are one test.
    """
    sizes = Counter((row.site, row.column) for row in rows)
    keys = [(row.site, row.column, "" if sizes[row.site, row.column] == 2 else row.name) for row in rows]
    tests = {key: row.gap.p for key, row in zip(keys, rows, strict=True) if row.gap}
    p = holm(tests)
    return [
        replace(row, gap=row.gap and replace(row.gap, p=p[key], tests=len(tests)))
        for key, row in zip(keys, rows, strict=True)
    ]


def scores_of(row: Subgroup) -> tuple[Measured, ...]:
    """Return the scores of a subgroup: those in ``SCORES``, then the recall of each class.

    Only the recall is defined if all images are of one class.
    """
    balanced, macro_f1 = row.scores.balanced_accuracy, row.scores.macro_f1
    if sum(count > 0 for count in row.counts) < 2:
        balanced = macro_f1 = Measured(None, None)
    return (balanced, macro_f1, row.scores.auc, *row.scores.recall)


def subgroup_table(rows: Sequence[Subgroup], classes: Sequence[str]) -> Table:
    """Return the table of subgroups in percent, with 95 % intervals. The first two columns name a row.

    Args:
        rows: the subgroups.
        classes: names of the labels.
    """
    heads = ["site", "subgroup", "images", "lesions", *SCORES, *(f"recall {name}" for name in classes)]
    body = [
        [
            *(row.site, f"{row.column} {row.name}", str(row.scores.images), str(row.scores.groups)),
            *(with_interval(score.value, score.interval, "\n") for score in scores_of(row)),
            *gap_cells(row, "\n"),
        ]
        for row in rows
    ]
    return Table("Subgroups of test images", [*heads, "minus the rest", "p"], body)


def gap_cells(row: Subgroup, between: str = " ") -> tuple[str, str]:
    """Return the cells of a subgroup's difference to the rest, and of its p-value."""
    if row.gap is None:
        return "–", "–"
    return with_interval(row.gap.value, row.gap.interval, between), p_value(row.gap.p)


def with_interval(value: float | None, interval: tuple[float, float] | None, between: str = " ") -> str:
    """Return a fraction and its interval in percent, such as ``71.43 (52 to 85)``."""
    if interval is None:
        return percent(value)
    low, high = interval
    return f"{percent(value)}{between}({100 * low:.0f} to {100 * high:.0f})"


def findings(rows: Sequence[Subgroup], classes: Sequence[str]) -> list[str]:
    """Return in sentences what subgroups show, and what they do not.

    The largest gap is that among the subgroups that are told apart from the rest, or else among all that were
    compared. It is given with its interval, and never called equal.
    """
    lines: list[str] = []
    compared = sorted((row for row in rows if row.gap), key=_size, reverse=True)
    told = [row for row in compared if row.told_apart]
    family = f"p < {LEVEL}, Holm over {compared[0].gap.tests} tests" if compared and compared[0].gap else ""
    if told:
        names = ", ".join(f"{row.column} {row.name} at {row.site}" for row in told)
        lines.append(f"Told apart from the rest of its site's images ({family}): {names}.")
        lines.append(f"Largest gap: {_in_words(told[0], classes)}.")
    elif compared:
        lines.append(
            f"No subgroup was told apart from the rest of its site's images ({family}). This does not mean "
            "that the network is equally good for all of them."
        )
        lines.append(f"Largest gap, which may be chance: {_in_words(compared[0], classes)}.")
    for reason, count in Counter(row.reason for row in rows if row.reason).items():
        lines.append(f"Not compared: {count} of {len(rows)} subgroups, with {reason}.")
    for column in dict.fromkeys(row.column for row in rows if row.name == UNKNOWN_SUBGROUP):
        found = ", ".join(
            f"{row.scores.images} of {row.whole} at {row.site}"
            for row in rows
            if (row.column, row.name) == (column, UNKNOWN_SUBGROUP)
        )
        lines.append(f"Test images with unknown {column}: {found}.")
    return lines


def _size(row: Subgroup) -> tuple[float, bool]:
    """Return what gaps are sorted by. Of two that are each other's rest, the lower one is the larger."""
    return (abs(row.gap.value), row.gap.value < 0) if row.gap else (0.0, False)


def _in_words(row: Subgroup, classes: Sequence[str]) -> str:
    assert row.gap is not None
    low, high = (f"{100 * end:+.1f}" for end in row.gap.interval)
    side = "below" if row.gap.value < 0 else "above"
    of = ", ".join(classes[k] for k in row.gap.classes)
    return (
        f"at {row.site}, the balanced accuracy ({of}) of {row.column} {row.name} is "
        f"{abs(100 * row.gap.value):.1f} points {side} that of the rest (95 % {low} to {high}, "
        f"p {p_value(row.gap.p)})"
    )


def subgroups_to_csv(rows: Sequence[Subgroup], classes: Sequence[str]) -> str:
    """Return one line for each subgroup. Scores are fractions; ``p`` is Holm-corrected."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["balanced_accuracy", "macro_f1", "auc", *(f"recall_{name}" for name in classes)]
    writer.writerow(
        [
            *("site", "column", "subgroup", "images", "lesions"),
            *(f"images_{name}" for name in classes),
            *(f"{name}{part}" for name in names for part in ("", "_low", "_high")),
            *("difference", "difference_low", "difference_high", "p", "compared_classes", "not_compared"),
        ]
    )
    for row in rows:
        scores = [part for s in scores_of(row) for part in (s.value, *(s.interval or (None, None)))]
        gap: Sequence[object] = 5 * [None]
        if row.gap:
            of = "+".join(classes[k] for k in row.gap.classes)
            gap = [row.gap.value, *row.gap.interval, row.gap.p, of]
        named = (row.site, row.column, row.name, row.scores.images, row.scores.groups)
        writer.writerow([*named, *row.counts, *scores, *gap, row.reason])
    return text.getvalue()
