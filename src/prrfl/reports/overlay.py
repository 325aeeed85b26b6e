"""Retrogress curves of several methods, with bands over seeds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prrfl.reports.comparison import FinishedRun
from prrfl.reports.paper_figures import OTHER, Curves, curves_figure
from prrfl.reports.plotting import Figure, default_style
from prrfl.reports.retrogress import MEASURES, Band, band, curve, save
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
