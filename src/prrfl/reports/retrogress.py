"""Retrogress curves: scores over communication rounds, with the drop at each communication."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import fmean

import numpy as np

from prrfl.reports.plotting import Axes, Figure, MaxNLocator, default_style, fit_fonts
from prrfl.reports.statistics import Floats
from prrfl.reports.styles import Style, of_networks
from prrfl.storage.atomic import replacing
from prrfl.types import RoundRecord, ScoreRecord

MEASURES = (("macro_f1", "macro-F1 (%)"), ("auc", "AUC (%)"))

IN_A_ROW = 5
"""Largest number of panels in a row of a run's figure."""

Curve = list[tuple[float, float]]
"""(communication round, percent) in order of time; NaN is a gap without scores."""


@dataclass(frozen=True, eq=False)
class Band:
    """Mean and range of one or several curves."""

    at: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(curves: Sequence[Curve]) -> Band:
    """Return mean and range of curves at the same moments, such as those of several seeds."""
    values = np.array([[y for _, y in points] for points in curves])
    at = np.array([x for x, _ in curves[0]])
    return Band(at, values.mean(0), values.min(0), values.max(0))


@default_style()
def draw_retrogress(records: Sequence[RoundRecord], path: Path, epochs: int) -> None:
    """Write the retrogress curves of a run as PNG: of the mean over sites, and of each site.

    Args:
        records: the run's records.
        path: the PNG to write.
        epochs: local epochs per round.
    """
    scores = [r for r in records if isinstance(r, ScoreRecord) and r.split == "test"]
    clients = sorted({r.client for r in scores})
    models = list(dict.fromkeys(r.model for r in scores))
    panels = [None, *clients]
    columns = min(IN_A_ROW, len(panels))
    bands = -(-len(panels) // columns)
    figure = Figure(figsize=(2.0 + 2.6 * columns, 4.6 * bands), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False, sharex=True, sharey="row")
    for index, client in enumerate(panels):
        row, column = divmod(index, columns)
        for below, (measure, label) in enumerate(MEASURES):
            axis = axes[2 * row + below][column]
            for model, style in of_networks(models).items():
                line = band([curve(scores, model, client, measure, epochs)])
                draw(axis, line, style, 1.8 if client is None else 1.1, label=model)
            dress(axis)
            axis.tick_params(labelsize=8)
            if below == 0:
                axis.set_title(
                    client or "mean of sites", fontsize=10, fontweight="normal" if client else "bold"
                )
            else:
                axis.set_xlabel("communication round")
                axis.tick_params(labelbottom=True)  # rows of sites further down share this axis
            if column == 0:
                axis.set_ylabel(label)
    for axis in axes.flat:
        if not axis.lines:
            axis.set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(models), frameon=False)
    title = "Scores on the test set over communication rounds"
    if strokes := caption(scores):
        title += f"\n{strokes}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    fit_fonts(figure, path.name)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def curve(
    records: Sequence[RoundRecord], model: str | None, client: str | None, measure: str, epochs: int
) -> Curve:
    """Return the curve of a network: after each local epoch, and before and after each communication.

    A network that is not scored after local epochs has gaps between communications, where a line would be
    invented.

    Args:
        records: a run's records.
        model: the network's name; the deployed one if ``None``.
        client: the site; the mean of sites if ``None``.
        measure: a field of :class:`prrfl.types.Scores`.
        epochs: local epochs per round.
    """
    rank = {"epoch": 0, "before": 1, "after": 2}
    points: dict[tuple[float, int], list[float]] = {}
    for r in records:
        if not isinstance(r, ScoreRecord) or r.split != "test" or client not in (None, r.client):
            continue
        value = getattr(r.scores, measure)
        if value is not None and (r.deployed if model is None else r.model == model):
            at = r.round + (r.epoch + 1) / epochs
            points.setdefault((at, rank[r.moment]), []).append(100 * value)
    followed = any(moment == rank["epoch"] for _, moment in points)
    found: Curve = []
    for at, moment in sorted(points):
        if not followed and moment == rank["before"] and found:
            found.append((at, nan))
        found.append((at, fmean(points[at, moment])))
    return found


def caption(records: Sequence[RoundRecord]) -> str:
    """Return a note on the networks that are scored only at communications; empty without any."""
    tests = [r for r in records if isinstance(r, ScoreRecord) and r.split == "test"]
    followed = {r.model for r in tests if r.moment == "epoch"}
    strokes = [model for model in dict.fromkeys(r.model for r in tests) if model not in followed]
    if not strokes:
        return ""
    return f"{' and '.join(strokes)}: scored only before and after each communication; the dot is after it"


def draw(
    axis: Axes,
    line: Band,
    style: Style,
    width: float,
    label: str | None = None,
) -> None:
    """Draw a line with its range. If it has gaps, a dot marks the end of each piece.

    Args:
        axis: the axes to draw on.
        line: what to draw.
        style: its style.
        width: in points.
        label: for the legend.
    """
    gaps = np.append(np.isnan(line.mean), True)
    ends = [k for k in range(len(line.mean)) if gaps[k + 1] and not gaps[k]]
    axis.plot(
        line.at,
        line.mean,
        color=style.colour,
        linewidth=width,
        zorder=2 + width / 10,  # bolder ones on top
        marker="o" if np.isnan(line.mean).any() or len(line.at) < 3 else None,
        markersize=2 * width,
        markevery=ends if len(ends) > 1 else None,
        label=label,
        solid_joinstyle="round",
    )
    if (line.high > line.low).any():
        axis.fill_between(
            line.at,
            line.low,
            line.high,
            color=style.colour,
            alpha=style.shade,
            linewidth=0,
        )


def dress(axis: Axes) -> None:
    """Give axes of curves a grid, integer rounds, and space on the right for the last drop."""
    axis.margins(x=0.03)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
