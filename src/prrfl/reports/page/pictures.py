"""Tidy data for the pictures of a page, each with the same numbers as a table. Percent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np

from prrfl.reports.calibration import Bin, calibration_error, chance_error, reliability
from prrfl.reports.comparison import Estimate
from prrfl.reports.formatting import percent
from prrfl.reports.page.model import Cell, Picture, Sheet
from prrfl.reports.retrogress import Band
from prrfl.reports.statistics import SPECIFICITY, Floats
from prrfl.types import Predictions

POINTS = 200
"""Most points of a ROC curve: more cannot be seen."""


@dataclass(frozen=True)
class Dot:
    """A score in a picture of intervals.

    Attributes:
        row: its line of the picture, such as a method or a site.
        series: what it is one of, several of which share a line; empty with a single one.
        note: drawn beside it, such as a symbol.
    """

    row: str
    estimate: Estimate
    series: str = ""
    note: str = ""


def intervals(
    title: str,
    panels: Mapping[str, Sequence[Dot]],
    note: str = "",
    zero: bool = False,
) -> Picture:
    """Return a picture of scores with their intervals (a forest plot), one panel beside the other.

    Args:
        title: of the picture.
        panels: items by the label of their axis.
        note: text below.
        zero: whether to draw a line at 0, for differences.
    """
    series = list(dict.fromkeys(item.series for items in panels.values() for item in items))
    data = {
        "zero": zero,
        "series": series,
        "panels": [
            {
                "label": label,
                "items": [
                    {
                        "row": item.row,
                        "series": item.series,
                        "value": _points(item.estimate.mean),
                        "images": _ends(item.estimate.images),
                        "both": _ends(item.estimate.interval),
                        "note": item.note,
                    }
                    for item in items
                ],
            }
            for label, items in panels.items()
        ],
    }
    named = any(series)
    heads = ["", *(["score of"] if named else []), "measure", "value", "95 % of images", "95 %"]
    body = [
        [
            Cell(item.row),
            *([Cell(item.series)] if named else []),
            Cell(label.removesuffix(" (%)")),
            Cell(percent(item.estimate.mean)),
            Cell(span(item.estimate.images)),
            Cell(span(item.estimate.interval)),
        ]
        for label, items in panels.items()
        for item in items
    ]
    return Picture("intervals", title, data, Sheet(title, heads, body, sortable=False), note)


def span(ends: tuple[float, float] | None) -> str:
    """Return an interval of fractions as text in percent; a dash for ``None``."""
    return f"{100 * ends[0]:.1f} – {100 * ends[1]:.1f}" if ends else "–"


def _points(value: float | None) -> float | None:
    return None if value is None or isnan(value) else round(100 * value, 2)


def _ends(ends: tuple[float, float] | None) -> list[float] | None:
    return [round(100 * end, 2) for end in ends] if ends else None


@dataclass(frozen=True, eq=False)
class Line:
    """A line of a picture of curves.

    Attributes:
        round: length of a communication round along the horizontal axis.
        ghost: whether it is only drawn for comparison, in grey.
    """

    name: str
    band: Band
    round: int = 1
    ghost: bool = False


def curves(
    title: str,
    panels: Mapping[str, Sequence[Line]],
    axes: tuple[str, str],
    note: str = "",
    folded: bool = False,
) -> Picture:
    """Return a picture of curves with their ranges, a panel beside the other.

    Args:
        title: of the picture.
        panels: lines by title of their panel.
        axes: labels of the horizontal and the vertical axis.
        note: text below.
        folded: whether it is shown only on demand.
    """
    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines if not line.ghost))
    data = {
        "x": axes[0],
        "y": axes[1],
        "names": names,
        "panels": [
            {
                "title": panel,
                "lines": [
                    {"name": line.name, "ghost": line.ghost, "points": _bands(line.band)} for line in lines
                ],
            }
            for panel, lines in panels.items()
        ],
    }
    return Picture("curves", title, data, _ends_of_rounds(title, panels, axes), note, folded)


def _ends_of_rounds(title: str, panels: Mapping[str, Sequence[Line]], axes: tuple[str, str]) -> Sheet:
    """Return the scores at the end of each round as a table; all the others would fill hundreds of pages."""
    body = []
    for panel, lines in panels.items():
        for line in lines:
            if line.ghost:
                continue
            last = {at: k for k, at in enumerate(line.band.at) if at % line.round == 0}
            for at, k in last.items():
                mean, low, high = (float(of[k]) for of in (line.band.mean, line.band.low, line.band.high))
                ends = f"{low:.2f} – {high:.2f}" if high > low else "–"
                names = dict.fromkeys(name for name in (panel, line.name) if name)
                body.append([Cell(", ".join(names)), Cell(f"{at:g}"), Cell(f"{mean:.2f}"), Cell(ends)])
    return Sheet(
        f"{title}, at the end of each round", ["line", *axes, "range over seeds"], body, sortable=False
    )


def _bands(band: Band) -> list[list[float | None]]:
    """Return [at, mean, low, high] of each moment; without low and high where there is no range."""
    ranged = bool((band.high > band.low).any())
    columns = [band.at, band.mean, *((band.low, band.high) if ranged else ())]
    return [
        [None if np.isnan(value) else round(float(value), 3 if k == 0 else 2) for k, value in enumerate(row)]
        for row in zip(*columns, strict=True)
    ]


def roc(title: str, predictions: Predictions, classes: Sequence[str]) -> Picture:
    """Return the ROC curves of classes against the rest, with the point at 90 % specificity."""
    from sklearn.metrics import roc_auc_score, roc_curve  # takes over a second, and training draws no page

    labels = predictions.labels.numpy()
    data = []
    body = []
    for index, name in enumerate(classes):
        truth = labels == index
        if not truth.any() or truth.all():
            continue
        values = predictions.probabilities[:, index].double().numpy()
        wrong, right, thresholds = roc_curve(truth, values, drop_intermediate=False)
        chosen = int(np.flatnonzero(wrong <= 1 - SPECIFICITY + 1e-12)[-1])
        area = float(roc_auc_score(truth, values))
        threshold = "none" if np.isinf(thresholds[chosen]) else f"{100 * thresholds[chosen]:.1f}"
        data.append({
            "class": name,
            "images": int(truth.sum()),
            "auc": _points(area),
            "points": _thinned(wrong, right, chosen),
            "chosen": [_points(float(wrong[chosen])), _points(float(right[chosen]))],
        })  # fmt: skip
        body.append([
            Cell(name), Cell(str(truth.sum())), Cell(percent(area)), Cell(percent(float(right[chosen]))),
            Cell(percent(1 - float(wrong[chosen]))), Cell(threshold),
        ])  # fmt: skip
    heads = ["class", "images", "AUC", "sensitivity", "specificity", "threshold on its probability"]
    note = (
        "One class against the rest. ● the largest sensitivity with a specificity of at least 90 %. Its "
        "threshold was found on these very images, so that new ones may do worse."
        if data
        else "All test images are of one class, so that there is no curve."
    )
    sheet = Sheet(title, heads, body, sortable=False) if data else None
    return Picture("roc", title, {"curves": data}, sheet, note)


def _thinned(wrong: Floats, right: Floats, chosen: int) -> list[list[float | None]]:
    """Return the corners of a curve, at most about ``POINTS``, and the chosen point among them."""
    inner = (np.diff(wrong[:-1]) == 0) & (np.diff(wrong[1:]) == 0)
    inner |= (np.diff(right[:-1]) == 0) & (np.diff(right[1:]) == 0)
    corners = np.flatnonzero(~np.concatenate([[False], inner, [False]]))
    if len(corners) > POINTS:
        corners = corners[np.linspace(0, len(corners) - 1, POINTS).round().astype(int)]
    kept = np.union1d(corners, [chosen])
    return [[_points(float(wrong[k])), _points(float(right[k]))] for k in kept]


def calibration(title: str, predictions: Predictions) -> Picture:
    """Return the reliability diagram: how often the network is right, by how sure it is.

    Args:
        title: of the picture.
        predictions: on test images.
    """
    bins: list[Bin] = reliability(predictions)
    error, chance = calibration_error(predictions), chance_error(predictions)
    data = {
        "bins": [
            {"confidence": _points(b.confidence), "accuracy": _points(b.accuracy), "images": b.images}
            for b in bins
        ]
    }
    body = [
        [
            Cell(f"{100 * b.low:.0f} – {100 * b.high:.0f}"),
            Cell(str(b.images)),
            Cell(percent(b.confidence)),
            Cell(percent(b.accuracy)),
        ]
        for b in bins
    ]
    heads = ["probability of the predicted class", "images", "mean probability", "right"]
    note = (
        f"Below the diagonal the network is too sure. Calibration error: {100 * error:.1f} points. A "
        f"perfectly calibrated network would show about {100 * chance:.1f} on so many images, by chance."
    )
    return Picture("reliability", title, data, Sheet(title, heads, body, sortable=False), note)


def balance(splits: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Picture:
    """Return a picture of the number of images of each class, by split."""
    title = "Class balance"
    data = {
        "classes": list(classes),
        "splits": [{"name": name, "counts": list(counts)} for name, counts in splits.items()],
    }
    body = [[Cell(split), *(Cell(str(count)) for count in counts)] for split, counts in splits.items()]
    return Picture("balance", title, data, Sheet(title, ["images", *classes], body, sortable=False))
