"""The page of one run: what its folder holds, with images where the data is at hand."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from prrfl.errors import ConfigError, DataError, ParticipationError
from prrfl.reports.page import Sample, run_page
from prrfl.runs.deployed import Which, predictions_path
from prrfl.runs.folder import finish, first_candidate, is_federation, settings_of
from prrfl.runs.run import load_data
from prrfl.storage.atomic import write_text
from prrfl.storage.records import read_predictions, read_records
from prrfl.types import Predictions, SiteData, Split

log = logging.getLogger("prrfl")


def report(folder: Path) -> dict[str, Any]:
    """Remake summary, pictures, tables and ``report.html`` of a run from its folder; return the summary.

    The page shows images and class counts only where the run's data is at hand.

    Raises:
        ConfigError: if the folder holds no run.
        DataError: if its records are damaged.
    """
    settings = settings_of(folder)
    records = read_records(folder / "metrics.jsonl", classes=len(settings.classes))
    if not records:
        raise ConfigError(f"{folder}: no round was completed, there is nothing to report")
    summary = finish(records, settings, folder)
    # Over real sites, neither predictions nor images come to the server.
    there = [] if is_federation(folder) else list(summary["best"]["sites"])
    # Before the rounds that compete for the best, the last one is all there is.
    which: Which = "last" if summary["rounds"] <= first_candidate(settings.rounds) else "best"
    predictions = {
        site: read_predictions(predictions_path(folder, site, which, "test"), settings.classes)
        for site in there
    }
    try:
        sites = load_data(settings) if there else []
    except (DataError, ParticipationError) as cause:
        log.warning("the page shows no images: %s", cause)
        sites = []
    page = run_page(
        records,
        predictions,
        summary,
        settings.model_dump(mode="json", exclude_none=True),
        balance={site.name: class_counts(site, len(settings.classes)) for site in sites},
        samples=[
            sample
            for site in sites
            if site.name in predictions  # the data may have got a site since
            for sample in samples(site, predictions[site.name], settings.classes)
        ],
    )
    write_text(folder / "report.html", page)
    return summary


def class_counts(site: SiteData, classes: int) -> dict[str, list[int]]:
    """Return for each split how many images there are of each class."""
    splits: tuple[Split, ...] = ("train", "valid", "test")
    return {name: site.split(name).labels.bincount(minlength=classes).tolist() for name in splits}


def samples(site: SiteData, predictions: Predictions, classes: Sequence[str], each: int = 4) -> list[Sample]:
    """Return the test images of which the network is surest, wrong ones first, then right ones."""
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
