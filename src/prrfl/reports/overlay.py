"""Retrogress curves of several methods in one figure, with bands over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prrfl.reports.comparison import FinishedRun
from prrfl.reports.plotting import default_style
from prrfl.reports.retrogress import MEASURES, Band, band, curve, draw, dress, save
from prrfl.reports.styles import Style, of_methods

EPOCHS = "local epoch"


def bands(runs: Sequence[FinishedRun], measure: str) -> dict[str, Band]:
    """Return each method's curve of one measure: mean and range over seeds, of the mean of sites.

    Curves run along local epochs, because methods may have different numbers of them in a round.
    """
    methods: dict[str, list[FinishedRun]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return {method: _along_epochs(of_method, measure) for method, of_method in methods.items()}


def _along_epochs(seeds: Sequence[FinishedRun], measure: str) -> Band:
    line = band([curve(run.records, None, None, measure, run.epochs) for run in seeds])
    return replace(line, at=line.at * seeds[0].epochs)


@default_style()
def draw_comparison(runs: Sequence[FinishedRun], reference: str, path: Path) -> None:
    """Write the retrogress curves of all methods as PNG: means over sites, with bands over seeds.

    Args:
        runs: finished runs.
        reference: the method that the others are compared with.
        path: the PNG to write.
    """
    save(comparison_figure(runs, reference), path)


def comparison_figure(runs: Sequence[FinishedRun], reference: str) -> Figure:
    """Return the figure of :func:`draw_comparison`."""
    styles = of_methods(list(dict.fromkeys(run.method for run in runs)), reference)
    many = len(styles) > 5
    figure = Figure(figsize=(13 if many else 11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, label) in zip(axes, MEASURES, strict=True):
        draw_bands(axis, bands(runs, name), styles, label, EPOCHS)
    handles, labels = axes[0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside right center"} if many else {"loc": "outside lower center"}
    columns = 1 if many else len(styles)
    figure.legend(handles, labels, ncols=columns, frameon=False, handlelength=3.5, **place)
    seeds = len({run.seed for run in runs})
    figure.suptitle(
        "Deployed networks on the test sets, mean of sites"
        + (f", mean and range of {seeds} seeds" if seeds > 1 else ""),
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def draw_bands(
    axis: Axes,
    lines: Mapping[str, Band],
    styles: Mapping[str, Style],
    label: str,
    along: str,
    name: str | None = None,
) -> None:
    """Draw several curves of one measure.

    Args:
        axis: the axes to draw on.
        lines: as :func:`bands` returns them.
        styles: the style of each line.
        label: name of the measure.
        along: label of the horizontal axis.
        name: identifies the lines in SVG: ``curve-0-macro_f1`` for ``macro_f1``.
    """
    shade = min(0.15, 0.4 / len(lines))  # many bands on top of each other would hide the lines
    for index, (method, line) in enumerate(lines.items()):
        style = replace(styles[method], shade=shade)
        gid = name and f"curve-{index}-{name}"
        draw(axis, line, style, style.width, label=method, name=gid)
    axis.set_xlabel(along)
    axis.set_ylabel(label)
    dress(axis)
