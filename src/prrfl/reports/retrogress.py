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
                points = curve(scores, model, client, measure, epochs)
                _draw(axis, points, model, colour, bold=client is None)
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
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, to a neighbour first, so that an old picture is replaced whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, dpi=150, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def curve(
    records: Sequence[RoundRecord], model: str | None, client: str | None, measure: str, epochs: int
) -> Curve:
    """Return (communication round, percent) points in order of time: epochs, before, after.

    Args:
        records: a run's records.
        model: the network's name; the deployed one if ``None``.
        client: the site; the mean of sites if ``None``.
        measure: a field of :class:`prrfl.types.Scores`.
        epochs: local epochs in each round.
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
    return [(at, fmean(points[at, moment])) for at, moment in sorted(points)]


def _draw(axis: Axes, points: Curve, model: str, colour: str, bold: bool) -> None:
    axis.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        label=model,
        linewidth=1.8 if bold else 1.1,
        solid_joinstyle="round",
    )
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
