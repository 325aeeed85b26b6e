"""Figures for a paper, at the width of one column or of two: scores, retrogress and reliability.

Position tells methods apart, not colour: only the reference is blue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prrfl.reports.calibration import calibration_error, reliability
from prrfl.reports.comparison import Estimate
from prrfl.reports.plotting import Axes, Figure, Line2D, MaxNLocator, MultipleLocator, print_style
from prrfl.reports.retrogress import Band, draw, dress
from prrfl.reports.styles import OURS, Style
from prrfl.types import Predictions

SINGLE, DOUBLE = 3.3, 6.9
"""Widths of one column and of two, in inches."""

OTHER = "#444444"
PALE = "#9a9a9a"
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.5}


@dataclass(frozen=True)
class Dots:
    """A panel of scores, one below the other.

    Attributes:
        title: above the panel.
        label: of the horizontal axis; panels with the same label have the same scale.
        estimates: one for each name.
        beside: scores to compare each with, drawn hollow; empty without any.
        factor: of the axis: percent, or 1 for plain numbers.
    """

    title: str
    label: str
    estimates: Sequence[Estimate]
    beside: Sequence[float | None] = ()
    factor: float = 100.0


@print_style()
def dots_figure(
    names: Sequence[str], panels: Sequence[Dots], columns: int, reference: str, hollow: str = ""
) -> Figure:
    """Return a figure of scores with both intervals, over images alone and over training runs too.

    Args:
        names: what stands below each other in every panel, from above.
        panels: row by row.
        columns: number of panels in a row.
        reference: the name that is blue; a line shows its score.
        hollow: what the scores ``beside`` are, for the legend; also a name that is drawn hollow.
    """
    rows = -(-len(panels) // columns)
    shown = [broken(name, 24 if columns == 1 else 40) for name in names]
    lines = 1 + max(name.count("\n") for name in shown)
    height = rows * (0.42 + (0.03 + 0.105 * lines) * max(len(names), 2)) + 0.22
    figure = Figure(figsize=(SINGLE if columns == 1 else DOUBLE, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    limits = {label: _limits([p for p in panels if p.label == label]) for label in {p.label for p in panels}}
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_dots(axis, names, panel, reference, hollow)
        axis.set_xlim(limits[panel.label])
    for index, axis in enumerate(axes.flat):
        axis.set_visible(index < len(panels))
    axes[0][0].set_yticks(range(len(names)), shown)
    axes[0][0].set_ylim(len(names) - 0.4, -0.6)
    figure.legend(
        handles=_legend(panels, names, hollow), loc="outside lower center", ncols=3, frameon=False,
        handlelength=1.6, columnspacing=1.2, borderpad=0,
    )  # fmt: skip
    return figure


def _draw_dots(axis: Axes, names: Sequence[str], panel: Dots, reference: str, hollow: str) -> None:
    for y, (name, e) in enumerate(zip(names, panel.estimates, strict=True)):
        if e.mean is None:
            continue
        colour = OURS if name == reference else PALE if name == hollow else OTHER
        if name == reference:
            axis.axvline(panel.factor * e.mean, color=OURS, linewidth=0.5, dashes=(4, 2), zorder=1)
        for ends, thickness in ((e.interval, 0.8), (e.images, 2.2)):
            if ends:
                axis.plot(
                    [panel.factor * end for end in ends], [y, y], color=colour, linewidth=thickness,
                    solid_capstyle="butt", zorder=2,
                )  # fmt: skip
        face = "white" if name == hollow else colour
        axis.plot(panel.factor * e.mean, y, "o", markersize=3.6, color=colour, markerfacecolor=face, zorder=3)
    for y, value in enumerate(panel.beside):
        if value is not None:
            # A ring around the score, where both are the same.
            axis.plot(
                panel.factor * value, y, "o", markersize=5.4, color=PALE, markerfacecolor="none", zorder=2.5
            )
    axis.set_title(panel.title)
    axis.set_xlabel(panel.label)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.grid(**GRID)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _limits(panels: Sequence[Dots]) -> tuple[float, float]:
    """Return the range of all scores with their intervals, for panels of one measure."""
    values = [
        panel.factor * value
        for panel in panels
        for e in panel.estimates
        for value in (e.mean, *(e.interval or ()), *(e.images or ()))
        if value is not None
    ]
    values += [panel.factor * value for panel in panels for value in panel.beside if value is not None]
    factor = panels[0].factor
    low, high = min(values, default=0.0), max(values, default=factor)
    margin = 0.04 * (high - low) + 0.005 * factor
    return low - margin, high + margin


def _legend(panels: Sequence[Dots], names: Sequence[str], hollow: str) -> list[Line2D]:
    estimates = [e for panel in panels for e in panel.estimates]
    found = []
    if any(e.interval for e in estimates):
        found.append(Line2D([], [], color=OTHER, linewidth=0.8, label="95% over images and training runs"))
    if any(e.images for e in estimates):
        found.append(Line2D([], [], color=OTHER, linewidth=2.2, label="95% over images"))
    if hollow and hollow not in names:
        mark: dict[str, Any] = {"marker": "o", "markersize": 5.4, "markerfacecolor": "white", "linewidth": 0}
        found.append(Line2D([], [], color=PALE, label=hollow, **mark))
    return found


@dataclass(frozen=True)
class Curves:
    """Panels of one method or site: for each measure its lines, the first of which is in front.

    Attributes:
        title: above the panels.
        lines: by label of the measure and name of the line.
    """

    title: str
    lines: Mapping[str, Mapping[str, Band]]


def broken(name: str, most: int) -> str:
    """Return a method's name, broken before its settings if it has more letters than fit."""
    return name if len(name) <= most else name.replace(":", ":\n").replace("+", "+\n")


def columns_for(panels: int, most: int = 5) -> int:
    """Return how many panels stand in a row, so that rows are about equally long."""
    return -(-panels // -(-panels // most))


@print_style()
def curves_figure(
    panels: Sequence[Curves], styles: Mapping[str, Style], along: str, legend: Sequence[str]
) -> Figure:
    """Return small multiples of scores over time; all panels of a measure have the same scale.

    Args:
        panels: one for each method or site, all with the same measures.
        styles: by name of the line.
        along: label of the horizontal axis.
        legend: names of the lines that it shows; without any there is no legend.
    """
    measures = list(panels[0].lines)
    columns = columns_for(len(panels))
    bands = -(-len(panels) // columns)
    rows = bands * len(measures)
    tall = 1.0 if columns > 3 else 1.4
    figure = Figure(figsize=(SINGLE if columns == 1 else DOUBLE, rows * tall + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for below, measure in enumerate(measures):
        of_measure = [axis for row in range(below, rows, len(measures)) for axis in axes[row]]
        for axis in of_measure[1:]:
            axis.sharey(of_measure[0])
        for index, (axis, panel) in enumerate(zip(of_measure, panels, strict=False)):
            lines = panel.lines[measure]
            for name, line in reversed(list(lines.items())):
                draw(axis, line, styles[name], styles[name].width, label=name)
            dress(axis)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axis.tick_params(labelleft=index % columns == 0)
            if below == 0:
                axis.set_title(broken(panel.title, 110 // columns))
            if index % columns == 0:
                axis.set_ylabel(measure)
            if below == len(measures) - 1 and index + columns >= len(panels):
                axis.set_xlabel(along)
                axis.tick_params(labelbottom=True)
        for axis in of_measure[len(panels) :]:
            axis.set_visible(False)
    if legend:
        handles = [
            Line2D([], [], color=styles[name].colour, linewidth=styles[name].width, label=name)
            for name in legend
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, borderpad=0
        )
    return figure


@print_style()
def reliability_figure(panels: Mapping[str, Predictions], reference: str) -> Figure:
    """Return reliability diagrams: accuracy against confidence, and the expected calibration error.

    The area of a dot is proportional to the number of images.

    Args:
        panels: predictions by title.
        reference: the title that is blue.
    """
    columns = columns_for(len(panels))
    rows = -(-len(panels) // columns)
    side = (SINGLE if columns <= 2 else DOUBLE) / columns
    figure = Figure(figsize=(side * columns, rows * min(side, 2.4) + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for index, (axis, (name, predictions)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        colour = OURS if name == reference else OTHER
        there = reliability(predictions)
        at = np.array([(100 * b.confidence, 100 * b.accuracy) for b in there])
        share = np.array([b.images for b in there]) / len(predictions.labels)
        axis.plot([0, 100], [0, 100], color=PALE, linewidth=0.7, dashes=(4, 2))
        axis.plot(*at.T, color=colour, linewidth=0.8)
        axis.scatter(*at.T, s=2 + 80 * share, color=colour, linewidth=0, zorder=3)
        axis.text(
            0.96, 0.05, f"ECE {100 * calibration_error(predictions):.1f}", transform=axis.transAxes,
            ha="right",
        )  # fmt: skip
        axis.set_title(broken(name, 110 // max(columns, 3)))
        axis.set_aspect("equal")
        axis.grid(**GRID)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set(xlim=(-4, 104), ylim=(-4, 104))
        axis.xaxis.set_major_locator(MultipleLocator(50))
        axis.yaxis.set_major_locator(MultipleLocator(50))
        if index % columns == 0:
            axis.set_ylabel("accuracy (%)")
        if index + columns >= len(panels):
            axis.set_xlabel("confidence (%)")
            axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return figure
