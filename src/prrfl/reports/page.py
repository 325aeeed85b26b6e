"""One self-contained page of a run or a comparison: HTML that needs no network and no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from prrfl.reports.comparison import Row, Run, cells, legend
from prrfl.reports.meter import measure
from prrfl.reports.retrogress import MEASURES, curve
from prrfl.types import ClientId, Predictions, RoundRecord, ScoreRecord, TrainRecord

STAGES = {1: "recover", 2: "exchange", 3: "sublimate"}
COLOURS = ("#0b6e99", "#d9730d", "#6b4fa0", "#448361", "#ad1a72", "#9f6b53", "#787774", "#c4554d", "#2b2b2b")


@dataclass(frozen=True)
class Sample:
    """A test image with what the deployed network says of it.

    Attributes:
        png: the image, as a PNG file's bytes.
        probability: of the predicted class.
    """

    site: ClientId
    name: str
    png: bytes
    truth: str
    predicted: str
    probability: float


def run_page(
    records: Sequence[RoundRecord],
    predictions: Mapping[ClientId, Predictions],
    summary: Mapping[str, Any],
    settings: Mapping[str, object],
    balance: Mapping[ClientId, Mapping[str, Sequence[int]]],
    samples: Sequence[Sample],
) -> str:
    """Return the page of one run.

    Args:
        records: the run's records.
        predictions: per site, on the test images, by the best round on validation.
        summary: as :func:`prrfl.reports.summary.summarise` returns it.
        settings: the resolved settings.
        balance: per site and split, images of each class; empty where the data is not at hand.
        samples: test images to show; empty where the data is not at hand.
    """
    classes = [str(name) for name in settings["classes"]]  # type: ignore[attr-defined]
    epochs = int(settings["epochs"])  # type: ignore[call-overload]
    models = list(dict.fromkeys(r.model for r in records if isinstance(r, ScoreRecord)))
    lines = {
        model: {name: curve(records, model, None, name, epochs) for name, _ in MEASURES} for model in models
    }
    method = str(settings["method"])
    panels = [
        {
            **_panel(site, method, predictions[site], records, classes),
            "balance": balance.get(site, {}),
            "samples": [s for s in samples if s.site == site],
        }
        for site in predictions
    ]
    return _render(
        title=f"{settings['method']}: {len(predictions)} sites",
        lead=f"{settings['rounds']} communication rounds of {epochs} local epochs, seed {settings['seed']}",
        heads=_score_heads(classes),
        body=_score_rows(summary),
        note="Test scores in percent of each site's deployed network at the best round on validation "
        f"(round {summary['best_round'] + 1}); the mean over sites is unweighted.",
        lines=list(lines),
        curves=_curves(lines),
        drops=_drops(records),
        panels=panels,
        classes=classes,
        settings=settings,
    )


def comparison_page(runs: Sequence[Run], rows: Sequence[Row], settings: Mapping[str, object]) -> str:
    """Return the page of a comparison: the table, and the curves of all methods."""
    classes = [str(name) for name in settings["classes"]]  # type: ignore[attr-defined]
    epochs = int(settings["epochs"])  # type: ignore[call-overload]
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        lines[method] = {}
        for name, _ in MEASURES:
            seeds = [curve(run.records, None, None, name, epochs) for run in runs if run.method == method]
            values = np.mean([[y for _, y in points] for points in seeds], axis=0)
            lines[method][name] = [(x, float(y)) for (x, _), y in zip(seeds[0], values, strict=True)]
    heads, body = cells(rows, classes)
    seeds_of_all = sorted({run.seed for run in runs})
    first = {method: next(run for run in runs if run.method == method) for method in lines}
    panels = [
        _panel(site, method, predictions, run.records, classes)
        for method, run in first.items()
        for site, predictions in run.predictions.items()
    ]
    return _render(
        title=f"{len(lines)} methods compared",
        lead=f"{settings['rounds']} communication rounds of {epochs} local epochs, "
        f"seeds {', '.join(map(str, seeds_of_all))}; the panels of sites show each method's first seed",
        heads=heads,
        body=body,
        note=legend(rows),
        lines=list(lines),
        curves=_curves(lines),
        drops=[],
        panels=panels,
        classes=classes,
        settings=settings,
    )


def _panel(
    site: ClientId,
    method: str,
    predictions: Predictions,
    records: Sequence[RoundRecord],
    classes: Sequence[str],
) -> dict[str, Any]:
    return {
        "site": site,
        "method": method,
        "confusion": _confusion(predictions, len(classes)),
        "roc": _data_uri(_roc(predictions, classes)),
        "stages": _stages(records, site),
        "balance": {},
        "samples": [],
    }


def _render(**values: Any) -> str:
    text = resources.files("prrfl.reports").joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["data_uri"] = lambda png: _base64("image/png", png)
    return environment.from_string(text).render(**values, stage_names=STAGES, colours=COLOURS)


def _score_heads(classes: Sequence[str]) -> list[str]:
    return ["site", "images", "macro-F1", "AUC", *(f"recall {name}" for name in classes)]


def _score_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    best = summary["best"]
    rows = [
        [site, str(s["n"]), _percent(s["macro_f1"]), _percent(s["auc"]), *map(_percent, s["recall"])]
        for site, s in best["sites"].items()
    ]
    mean = best["mean"]
    blank = [""] * (len(rows[0]) - 4)
    return [*rows, ["mean", "", _percent(mean["macro_f1"]), _percent(mean["auc"]), *blank]]


def _drops(records: Sequence[RoundRecord]) -> list[list[str]]:
    return [
        [str(d.round + 1), d.client, d.model, _percent(d.f1_before), _percent(d.f1_after), _percent(d.f1)]
        for d in measure(records)
    ]


def _stages(records: Sequence[RoundRecord], site: ClientId) -> list[list[int]]:
    """Return the DET stage of each local epoch, one list a round; empty for methods without."""
    rounds: dict[int, list[int]] = {}
    for r in records:
        if isinstance(r, TrainRecord) and r.client == site and "stage" in r.metrics:
            rounds.setdefault(r.round, []).append(int(r.metrics["stage"]))
    return [rounds[index] for index in sorted(rounds)]


def _confusion(predictions: Predictions, classes: int) -> list[list[int]]:
    table = np.zeros((classes, classes), int)
    np.add.at(table, (predictions.labels.numpy(), predictions.probabilities.argmax(1).numpy()), 1)
    return [[int(cell) for cell in row] for row in table]


def _curves(lines: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> str:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axis, (name, label) in zip(figure.subplots(1, 2), MEASURES, strict=True):
        for index, measures in enumerate(lines.values()):
            points = measures[name]
            axis.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=COLOURS[index % len(COLOURS)],
                gid=f"curve-{index}-{name}",
                linewidth=1.8,
            )
        axis.set_xlabel("communication round")
        axis.set_ylabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    text = _svg(figure)
    return text[text.index("<svg") :]


def _roc(predictions: Predictions, classes: Sequence[str]) -> str:
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
    for index, name in enumerate(classes):
        truth = predictions.labels.numpy() == index
        if truth.any() and not truth.all():
            wrong, right, _ = roc_curve(truth, predictions.probabilities[:, index].numpy())
            axis.plot(wrong, right, label=f"{name} ({truth.sum()})", color=COLOURS[index % len(COLOURS)])
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "prrfl", "font.size": 9}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _data_uri(svg: str) -> str:
    return _base64("image/svg+xml", svg.encode())


def _base64(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
