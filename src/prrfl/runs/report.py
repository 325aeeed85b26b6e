"""The results of one run: summary, table of scores, curves, and the page, made from the run's folder."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from prrfl import __version__
from prrfl.algorithms import BASELINE, traits_of
from prrfl.config import TrainConfig
from prrfl.data.fingerprint import difference, fingerprints
from prrfl.errors import ConfigError, DataError
from prrfl.reports.comparison import FinishedRun
from prrfl.reports.page import Heading, RunResults, Sample, SiteImages, run_page
from prrfl.reports.retrogress import draw_retrogress
from prrfl.reports.scores import scores_to_csv
from prrfl.reports.summary import summarise
from prrfl.runs.deployed import Which, predictions_path, training_counts
from prrfl.runs.folder import RunFolder, first_candidate
from prrfl.runs.setup import read_sites
from prrfl.storage.atomic import write_json, write_text
from prrfl.storage.records import read_predictions, read_records
from prrfl.types import Predictions, RoundRecord, SiteData, Split

log = logging.getLogger("prrfl")


def finish(
    records: Sequence[RoundRecord], config: TrainConfig, folder: RunFolder, seconds: float | None = None
) -> dict[str, Any]:
    """Write summary, table of scores and retrogress curves from the records of a run; return the summary.

    Args:
        records: the run's records.
        config: its settings.
        folder: its folder.
        seconds: its wall time; by default that of the summary in its folder.
    """
    path = folder.path / "summary.json"
    if seconds is None and path.is_file():
        seconds = folder.summary().get("seconds")
    summary = summarise(records, first_candidate(config.rounds))
    if seconds is not None:
        summary["seconds"] = round(seconds, 1)
    write_json(path, summary)
    write_text(
        folder.path / "scores.csv", scores_to_csv([(config.method, config.seed, records)], config.classes)
    )
    draw_retrogress(records, folder.path / "retrogress.png", config.epochs)
    return summary


def report(folder: Path, data: Path | None = None) -> dict[str, Any]:
    """Write summary, curves, table and ``report.html`` of a run from its folder; return the summary.

    The page shows images and class counts only if the run's data is available; if not, or if it has changed,
    there is a warning.

    Args:
        folder: the run's folder.
        data: where its data is now, if it was moved.

    Raises:
        ConfigError: if the folder holds no run, or no complete round.
        DataError: if its records are damaged.
    """
    there = RunFolder(folder)
    settings = there.settings()
    records = read_records(folder / "metrics.jsonl", classes=len(settings.classes))
    if not records:
        raise ConfigError(f"{folder} has no complete round, so there is nothing to report")
    summary = finish(records, settings, there)
    # In a federation, predictions and images stay at the sites.
    local = [] if there.is_federation else list(summary["best"]["sites"])
    # The best network is chosen among the last 20 % of rounds. Before them there is only the last one.
    which: Which = "last" if summary["rounds"] <= first_candidate(settings.rounds) else "best"
    predictions = {
        site: read_predictions(predictions_path(folder, site, which, "test"), settings.classes)
        for site in local
    }
    try:
        sites = read_sites(there.at(settings, data, "--data")) if local else []
        _warn_of_changes(there, sites)
    except DataError as cause:
        log.warning("the page shows no images, because the data cannot be read: %s", cause)
        sites = []
    run = FinishedRun(
        method=settings.method,
        seed=settings.seed,
        records=records,
        predictions=predictions,
        seconds=summary.get("seconds", 0.0),
        rounds=settings.rounds,
        epochs=settings.epochs,
        training={site: counts for site in local if (counts := training_counts(folder, site, which))},
        stages=traits_of(settings.algorithm()).stages,
    )
    images = {
        site.name: SiteImages(
            class_counts(site, len(settings.classes)),
            samples(site, predictions[site.name], settings.classes),
        )
        for site in sites
        if site.name in predictions  # a site may have been added to the data since
    }
    page = run_page(
        RunResults(
            heading=heading(there, settings),
            run=run,
            summary=summary,
            settings=settings.model_dump(mode="json", exclude_none=True),
            baseline=BASELINE,
            images=images,
            chosen=which == "best",
        )
    )
    write_text(folder / "report.html", page)
    return summary


def heading(folder: RunFolder, settings: TrainConfig, name: str = "") -> Heading:
    """Return what the page of a run, or of a comparison with this run, is about.

    Args:
        folder: the run's.
        settings: its settings.
        name: of the comparison's folder.
    """
    data = "generated images" if settings.data is None else settings.data.name
    environment = folder.environment()
    day = str(environment.get("time", ""))[:10]
    return Heading(name or folder.path.resolve().name, data, day, __version__)


def _warn_of_changes(folder: RunFolder, sites: Sequence[SiteData]) -> None:
    before = folder.data() if sites else None
    if before and (changed := difference(before, fingerprints(sites))):
        log.warning(
            "the data has changed since %s was started: %s; the page shows images and class counts of the "
            "present data, for the sites of the run",
            folder.path,
            changed,
        )


def class_counts(site: SiteData, classes: int) -> dict[str, list[int]]:
    """Return, per split, the number of images of each class."""
    splits: tuple[Split, ...] = ("train", "valid", "test")
    return {name: site.split(name).labels.bincount(minlength=classes).tolist() for name in splits}


def samples(site: SiteData, predictions: Predictions, classes: Sequence[str], each: int = 4) -> list[Sample]:
    """Return the test images with the most confident predictions: wrong ones first, then correct ones."""
    sure, predicted = predictions.probabilities.max(1)
    wrong = predicted != predictions.labels
    rows = {name: row for row, name in enumerate(site.test.ids)}
    shown = []
    for chosen in (wrong, ~wrong):
        ranked = [k for k in sure.argsort(descending=True).tolist() if chosen[k]][:each]
        for k in ranked:
            if (row := rows.get(predictions.ids[k])) is not None:
                png = io.BytesIO()
                Image.fromarray(site.test.inputs[row].permute(1, 2, 0).numpy()).save(png, "PNG")
                truth, answer = classes[int(predictions.labels[k])], classes[int(predicted[k])]
                name = predictions.ids[k]
                shown.append(Sample(site.name, name, png.getvalue(), truth, answer, float(sure[k])))
    return shown
