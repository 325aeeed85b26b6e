"""The page of a run or a comparison: HTML that needs no network connection and no other file."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from statistics import fmean
from typing import Any

import jinja2
import numpy as np

from prrfl.reports.comparison import FinishedRun, Row
from prrfl.reports.formatting import percent
from prrfl.reports.meter import measure
from prrfl.reports.overlay import EPOCHS, bands, draw_bands
from prrfl.reports.plotting import Figure, default_style, rc_context
from prrfl.reports.retrogress import MEASURES, Band, band, caption, curve
from prrfl.reports.statistics import confusion, resampled_sensitivity
from prrfl.reports.styles import PALETTE, Style, of_methods, of_networks
from prrfl.reports.tables import RECALL, SENSITIVITY, legend, tables
from prrfl.types import ClientId, Predictions, RoundRecord, ScoreRecord, TrainRecord

MARKS = {
    "*": "best mean",
    "=": "not told apart from the best, which does not mean that they are equal",
    "*=": "best mean; not told apart from those marked =",
    "≈": "equal within the margin",
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        title: explanation of its mark.
        best: whether it is printed bold.
        heat: depth of its colour, 0 to 1.
    """

    text: str
    title: str = ""
    best: bool = False
    heat: float = 0.0


@dataclass(frozen=True)
class Sheet:
    """A table of the page. The first cell of a row names it; the foot stays last when rows are sorted."""

    title: str
    heads: Sequence[str]
    body: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A test image with the prediction of the deployed network.

    Attributes:
        png: the image, as the bytes of a PNG file.
        probability: probability of the predicted class.
    """

    site: ClientId
    name: str
    png: bytes
    truth: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class SiteImages:
    """What a page shows of a site's images.

    Attributes:
        balance: per split, number of images of each class.
        samples: test images to show.
    """

    balance: Mapping[str, Sequence[int]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()


def run_page(
    records: Sequence[RoundRecord],
    predictions: Mapping[ClientId, Predictions],
    summary: Mapping[str, Any],
    settings: Mapping[str, object],
    images: Mapping[ClientId, SiteImages],
    stages: Sequence[str],
) -> str:
    """Return the page of one run.

    Args:
        records: the run's records.
        predictions: per site, on the test images, by the best round on validation. A site without them gets
            no ROC curves and no sensitivities.
        summary: as :func:`prrfl.reports.summary.summarise` returns it.
        settings: all settings.
        images: per site; empty if the data is not available.
        stages: names of the method's training stages 1, 2, ...; empty without stages.
    """
    classes = [str(name) for name in settings["classes"]]  # type: ignore[attr-defined]
    epochs = int(settings["epochs"])  # type: ignore[call-overload]
    models = list(dict.fromkeys(r.model for r in records if isinstance(r, ScoreRecord)))
    lines = {
        name: {model: band([curve(records, model, None, name, epochs)]) for model in models}
        for name, _ in MEASURES
    }
    method = str(settings["method"])

    def pictures(site: ClientId) -> tuple[list[list[int]], str]:
        if site in predictions:
            return _pictures(predictions[site], classes)
        return _recorded_confusion(site, records, summary["best_round"]), ""

    panels = [
        {**_panel(site, method, stages, records, *pictures(site)), "images": shown}
        for site in summary["best"]["sites"]
        for shown in [images.get(site, SiteImages())]
    ]
    return _render(
        title=f"{settings['method']}: {len(summary['best']['sites'])} sites",
        lead=f"{settings['rounds']} communication rounds of {epochs} local epochs, seed {settings['seed']}",
        sheets=[_score_sheet(summary, predictions, classes)],
        styles=of_networks(models),
        curves=_curves(lines, of_networks(models), "communication round"),
        strokes=caption(records),
        shaded=False,
        drops=_drop_sheet(records),
        panels=panels,
        classes=classes,
        settings=settings,
    )


def comparison_page(
    runs: Sequence[FinishedRun], rows: Sequence[Row], reference: str, settings: Mapping[str, object]
) -> str:
    """Return the page of a comparison: tables, curves of all methods, and a panel per method and site.

    Args:
        runs: the finished runs.
        rows: the comparison of them.
        reference: the method that the others are tested against.
        settings: the settings that the runs have in common.
    """
    classes = [str(name) for name in settings["classes"]]  # type: ignore[attr-defined]
    lines = {name: bands(runs, name) for name, _ in MEASURES}
    methods = list(dict.fromkeys(run.method for run in runs))
    seeds_of_all = sorted({run.seed for run in runs})
    first = {method: next(run for run in runs if run.method == method) for method in methods}
    panels = [
        _panel(site, method, run.stages, run.records, *_pictures(predictions, classes))
        for method, run in first.items()
        for site, predictions in run.predictions.items()
    ]
    return _render(
        title=f"{len(methods)} methods compared",
        lead=f"{_lengths(first)}, seeds {', '.join(map(str, seeds_of_all))}; "
        "the panels of sites show each method's first seed",
        sheets=_comparison_sheets(rows, classes),
        styles=of_methods(methods, reference),
        curves=_curves(lines, of_methods(methods, reference), EPOCHS),
        strokes="",
        shaded=len(seeds_of_all) > 1,
        drops=None,
        panels=panels,
        classes=classes,
        settings=settings,
    )


def _lengths(runs: Mapping[str, FinishedRun]) -> str:
    """Return how many rounds and epochs the methods trained, once where they are alike."""
    lengths = {method: (run.rounds, run.epochs) for method, run in runs.items()}
    if len(set(lengths.values())) == 1:
        rounds, epochs = next(iter(lengths.values()))
        return f"{rounds} communication rounds of {epochs} local epochs"
    listed = ", ".join(f"{method} {rounds} × {epochs}" for method, (rounds, epochs) in lengths.items())
    return f"Communication rounds × local epochs of {listed}"


def _panel(
    site: ClientId,
    method: str,
    stages: Sequence[str],
    records: Sequence[RoundRecord],
    confusion: list[list[int]],
    roc: str,
) -> dict[str, Any]:
    return {
        "site": site,
        "method": method,
        "confusion": confusion,
        "roc": roc,
        "stages": _stages(records, site, stages),
        "stage_names": stages,
        "images": SiteImages(),
    }


def _pictures(predictions: Predictions, classes: Sequence[str]) -> tuple[list[list[int]], str]:
    """Return the confusion matrix and the figure of ROC curves of predictions."""
    return _confusion(predictions, len(classes)), _data_uri(_roc(predictions, classes))


def _recorded_confusion(site: ClientId, records: Sequence[RoundRecord], index: int) -> list[list[int]]:
    """Return the confusion matrix of a site's deployed network after a round, from its record."""
    moment = (site, index, "test", True, "after")
    scores = next(
        r.scores
        for r in records
        if isinstance(r, ScoreRecord) and (r.client, r.round, r.split, r.deployed, r.moment) == moment
    )
    return [list(row) for row in scores.confusion]


def _render(**values: Any) -> str:
    text = resources.files("prrfl.reports").joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["data_uri"] = lambda png: _base64("image/png", png)
    return environment.from_string(text).render(**values)


def _score_sheet(
    summary: Mapping[str, Any], predictions: Mapping[ClientId, Predictions], classes: Sequence[str]
) -> Sheet:
    best = summary["best"]
    heads = ["site", "images", "macro-F1", "AUC", "balanced accuracy"]
    heads += [f"recall {name}" for name in classes]
    with_threshold = classes if predictions else ()  # the records have no sensitivities
    heads += [f"sensitivity {name} at 90 % specificity" for name in with_threshold]
    unknown = [None] * len(with_threshold)
    balanced = {site: _mean_of_defined(s["recall"]) for site, s in best["sites"].items()}
    body = [
        [
            site,
            str(s["n"]),
            *map(percent, (s["macro_f1"], s["auc"], balanced[site], *s["recall"])),
            *map(percent, _sensitivities(predictions[site]) if site in predictions else unknown),
        ]
        for site, s in best["sites"].items()
    ]
    means = (best["mean"]["macro_f1"], best["mean"]["auc"], _mean_of_defined(balanced.values()))
    mean = ["mean", "", *map(percent, means)]
    mean += [""] * (len(heads) - len(mean))
    note = (
        "Test scores in percent of each site's deployed network at the best round on validation "
        f"(round {summary['best_round'] + 1}); the mean over sites is unweighted. {RECALL}"
    )
    if predictions:
        note += f" {SENSITIVITY}"
    for site, rounds in summary.get("absent", {}).items():
        note += f" Without {site} in round(s) {', '.join(str(index + 1) for index in rounds)}."
    return Sheet("Scores", heads, [list(map(Cell, line)) for line in body], [list(map(Cell, mean))], note)


def _mean_of_defined(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _sensitivities(predictions: Predictions) -> list[float | None]:
    """Return the sensitivity for each class at 90 % specificity; ``None`` where it is not defined."""
    labels, values = predictions.labels.numpy(), predictions.probabilities.numpy()
    once = np.ones((1, len(labels)), dtype=np.float32)
    found = [resampled_sensitivity(once, labels == k, of_class).item() for k, of_class in enumerate(values.T)]
    return [None if np.isnan(value) else value for value in found]


def _drop_sheet(records: Sequence[RoundRecord]) -> Sheet:
    """Return a table of all communications; the last column explains drops that did not recover."""
    heads = ["round", "site", "network", "F1 before", "F1 after", "F1 drop", "AUC drop", "epochs to recover"]
    body = [
        [
            str(d.round + 1),
            d.client,
            d.model,
            *map(percent, (d.f1_before, d.f1_after, d.f1, d.auc)),
            d.outcome if d.recovered_after is None else str(d.recovered_after),
        ]
        for d in measure(records)
    ]
    return Sheet("Every communication in numbers", heads, [list(map(Cell, line)) for line in body])


def _comparison_sheets(rows: Sequence[Row], classes: Sequence[str]) -> list[Sheet]:
    scores, *others = (
        Sheet(table.title, table.heads, [[Cell(line[0]), *map(_marked, line[1:])] for line in table.body])
        for table in tables(rows, classes)
    )
    return [replace(scores, note=legend(rows)), *others, _falls_sheet(rows)]


def _marked(text: str) -> Cell:
    mark = text.lstrip("0123456789.±– ()")
    return Cell(text, title=MARKS.get(mark, ""), best="*" in mark)


def _falls_sheet(rows: Sequence[Row]) -> Sheet:
    """Return falls by method and site, the deeper their mean the stronger coloured."""
    measured = [row for row in rows if row.drops]
    deepest = max(fall.mean for row in measured for fall in row.drops.values())
    body = [
        [
            Cell(row.method),
            *(
                Cell(
                    f"{percent(fall.mean)} / {percent(fall.largest)}",
                    heat=round(max(fall.mean, 0.0) / deepest, 2) if deepest > 0 else 0.0,
                )
                for fall in row.drops.values()
            ),
        ]
        for row in measured
    ]
    return Sheet(
        "Drop in macro-F1 at a communication, by site",
        ["method", *measured[0].drops],
        body,
        note="Mean / largest over rounds and seeds, in points, of the deployed network; coloured by the "
        "mean. Below zero the communication helped.",
    )


def _stages(
    records: Sequence[RoundRecord], site: ClientId, names: Sequence[str]
) -> list[list[tuple[int, str]]]:
    """Return number and name of the training stage of each local epoch, by round; empty without stages."""
    rounds: dict[int, list[tuple[int, str]]] = {}
    for r in records:
        if names and isinstance(r, TrainRecord) and r.client == site and "stage" in r.metrics:
            number = int(r.metrics["stage"])
            name = names[number - 1] if 1 <= number <= len(names) else "?"
            rounds.setdefault(r.round, []).append((number, name))
    return [rounds[index] for index in sorted(rounds)]


def _confusion(predictions: Predictions, classes: int) -> list[list[int]]:
    predicted = predictions.probabilities.argmax(1).numpy()
    return [list(row) for row in confusion(predictions.labels.numpy(), predicted, classes)]


@default_style()
def _curves(lines: Mapping[str, Mapping[str, Band]], styles: Mapping[str, Style], along: str) -> list[str]:
    """Return a picture for each measure, as SVG elements whose lines can be told by their ids."""
    pictures = []
    for name, label in MEASURES:
        figure = Figure(figsize=(5.0, 3.8), layout="constrained")
        draw_bands(figure.subplots(), lines[name], styles, label, along, name)
        text = _svg(figure, name)
        # Matplotlib numbers the groups of each picture from 1; on one page such ids would stand twice.
        pictures.append(re.sub(r'<g id="(?!curve-)[^"]*"', "<g", text[text.index("<svg") :]))
    return pictures


@default_style()
def _roc(predictions: Predictions, classes: Sequence[str]) -> str:
    from sklearn.metrics import roc_curve  # takes over a second, and training draws no page

    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
    for index, name in enumerate(classes):
        truth = predictions.labels.numpy() == index
        if truth.any() and not truth.all():
            wrong, right, _ = roc_curve(truth, predictions.probabilities[:, index].numpy())
            axis.plot(wrong, right, label=f"{name} ({truth.sum()})", color=PALETTE[index % len(PALETTE)])
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    if curves := axis.lines[1:]:
        # Their labels in so many words: else Matplotlib leaves out those that begin with an underscore.
        names = [str(curve.get_label()) for curve in curves]
        axis.legend(curves, names, frameon=False, fontsize=8, loc="lower right")
    else:
        axis.text(0.5, 0.05, "all test images are of one class: no curve", ha="center", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _svg(figure: Figure, salt: str = "prrfl") -> str:
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _data_uri(svg: str) -> str:
    return _base64("image/svg+xml", svg.encode())


def _base64(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
