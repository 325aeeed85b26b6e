"""Retrogress curves of several methods, with bands over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prrfl.reports.comparison import FinishedRun
from prrfl.reports.paper_figures import OTHER, Curves, curves_figure
from prrfl.reports.plotting import Axes, Figure, default_style
from prrfl.reports.retrogress import MEASURES, Band, band, curve, draw, dress, save
from prrfl.reports.styles import OURS, Style

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
    """Write :func:`comparison_figure` as PNG."""
    save(comparison_figure(runs, reference), path)


def comparison_figure(
    runs: Sequence[FinishedRun], reference: str, measures: Sequence[tuple[str, str]] = MEASURES
) -> Figure:
    """Return small multiples of the retrogress curves: means over sites, with bands over seeds.

    Every method has its own panel. In those of others the reference is repeated as a thin line.

    Args:
        runs: finished runs.
        reference: the method that the others are compared with.
        measures: fields of :class:`prrfl.types.Scores`, with their labels.
    """
    found = {label: bands(runs, name) for name, label in measures}
    methods = list(dict.fromkeys(run.method for run in runs))
    panels = []
    for method in methods:
        lines = {}
        for label, of_method in found.items():
            lines[label] = {method: of_method[method]}
            if reference in of_method and method != reference:
                one = of_method[reference]
                lines[label][f"{reference}, repeated"] = replace(one, low=one.mean, high=one.mean)
        panels.append(Curves(method, lines))
    styles = {method: Style(OURS if method == reference else OTHER, width=1.0) for method in methods}
    styles[f"{reference}, repeated"] = Style(OURS, width=0.5)
    styles["range of seeds"] = Style("#cccccc", width=5.0)
    shown = [f"{reference}, repeated"] if reference in methods and len(methods) > 1 else []
    if len({run.seed for run in runs}) > 1:
        shown.append("range of seeds")
    return curves_figure(panels, styles, EPOCHS, shown)


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
