"""The retrogress curve: scores over communication rounds, with the drop at each communication visible."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prrfl.types import RoundRecord, ScoreRecord

COLOURS = ("#0b6e99", "#d9730d", "#6b4fa0", "#448361")
MEASURES = (("macro_f1", "macro-F1 (%)"), ("auc", "AUC (%)"))

Curve = list[tuple[float, float]]


def draw_retrogress(records: Sequence[RoundRecord], path: Path, epochs: int, columns: int = 5) -> None:
    """Write the retrogress curve of a run as PNG: the mean over sites, and each site.

    Args:
        records: the run's records.
        path: the PNG to write.
        epochs: local epochs in each round.
        columns: panels in a row at the most; more sites take more rows.
    """
    scores = [r for r in records if isinstance(r, ScoreRecord) and r.split == "test"]
    clients = sorted({r.client for r in scores})
    models = list(dict.fromkeys(r.model for r in scores))
    panels = [None, *clients]
    columns = min(columns, len(panels))
    bands = -(-len(panels) // columns)
    figure = Figure(figsize=(2.0 + 2.6 * columns, 4.6 * bands), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False, sharex=True, sharey="row")
    for index, client in enumerate(panels):
        band, column = divmod(index, columns)
        for row, (measure, label) in enumerate(MEASURES):
            axis = axes[2 * band + row][column]
            for model, colour in zip(models, COLOURS, strict=False):
                curve = _curve(scores, model, client, measure, epochs)
                _draw(axis, curve, model, colour, bold=client is None)
            if row == 0:
                axis.set_title(
                    client or "mean of sites", fontsize=10, fontweight="normal" if client else "bold"
                )
            else:
                axis.set_xlabel("communication round")
                axis.tick_params(labelbottom=True)  # rows of sites further down share this axis
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if column == 0:
                axis.set_ylabel(label)
    for axis in axes.flat:
        if not axis.lines:
            axis.set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(models), frameon=False)
    figure.suptitle("Scores on the test set over communication rounds", x=0.01, ha="left", fontsize=11)
    # The canvas writes to a neighbour first, so that an old picture is replaced whole or not at all.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, dpi=150, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _curve(scores: Sequence[ScoreRecord], model: str, client: str | None, measure: str, epochs: int) -> Curve:
    """Return (communication round, percent) points in order of time: epochs, before, after."""
    rank = {"epoch": 0, "before": 1, "after": 2}
    points: dict[tuple[float, int], list[float]] = {}
    for r in scores:
        value = getattr(r.scores, measure)
        if r.model == model and client in (None, r.client) and value is not None:
            at = r.round + (r.epoch + 1) / epochs
            points.setdefault((at, rank[r.moment]), []).append(100 * value)
    return [(at, fmean(points[at, moment])) for at, moment in sorted(points)]


def _draw(axis: Axes, curve: Curve, model: str, colour: str, bold: bool) -> None:
    axis.plot(
        [x for x, _ in curve],
        [y for _, y in curve],
        color=colour,
        label=model,
        linewidth=1.8 if bold else 1.1,
        solid_joinstyle="round",
    )
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
