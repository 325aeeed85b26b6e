"""The results of one run: summary, table of scores, curves, and the page, made from the run's folder."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from prrfl import __version__
from prrfl.algorithms import ALGORITHMS, BASELINE, traits_of
from prrfl.config import TrainConfig
from prrfl.data.fingerprint import difference, fingerprints
from prrfl.data.subgroups import SubgroupColumn, read_tables
from prrfl.errors import ConfigError, DataError
from prrfl.reports.comparison import FinishedRun
from prrfl.reports.page import Heading, RunResults, Sample, SiteImages, run_page, subgroup_section
from prrfl.reports.retrogress import draw_retrogress
from prrfl.reports.scores import scores_to_csv
from prrfl.reports.subgroups import Subgroup, by_subgroup, subgroups_to_csv
from prrfl.reports.summary import summarise, validation_f1
from prrfl.runs.deployed import Which, predictions_path, training_counts
from prrfl.runs.folder import RunFolder, first_candidate
from prrfl.runs.setup import data_folder, read_sites
from prrfl.storage.atomic import write_json, write_text
from prrfl.storage.records import read_predictions, read_records
from prrfl.types import ClientId, Predictions, RoundRecord, SiteData, Split

log = logging.getLogger("prrfl")

_SAMPLES = 4
"""Wrong predictions, and correct ones, that the page shows with their images, of each site."""


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


def subgroups(folder: Path, columns: Sequence[SubgroupColumn], data: Path | None = None) -> list[Subgroup]:
    """Return the scores of subgroups of each site's test images, from the run's predictions and its data.

    Args:
        folder: the run's folder.
        columns: columns of the data's tables that divide the images.
        data: where its data is now, if it was moved.

    Raises:
        ConfigError: if the folder holds no run, no complete round, or no predictions.
        DataError: if the records are damaged, or the data lacks a column or image.
    """
    there, settings, records = _read(folder)
    if there.is_federation:
        raise ConfigError(
            f"--subgroups: predictions and tables of {folder} stay at its sites; there, run `prrfl evaluate` "
            "with --subgroups on the site's own folder"
        )
    summary = summarise(records, first_candidate(settings.rounds))
    predictions = _predictions(there, settings, summary, _reported(settings, summary["rounds"]))
    here = there.at(settings, data, "--data")
    tables = read_tables(
        data_folder(here), columns, list(predictions), classes=here.classes, image_size=here.image_size
    )
    return by_subgroup(predictions, tables.divide(predictions))


def report(folder: Path, data: Path | None = None, subgroups: Sequence[Subgroup] = ()) -> dict[str, Any]:
    """Write summary, curves, table and ``report.html`` of a run from its folder; return the summary.

    The page shows images and class counts only if the run's data is available; if not, or if it has changed,
    there is a warning.

    Args:
        folder: the run's folder.
        data: where its data is now, if it was moved.
        subgroups: scores of subgroups, which are also written to ``subgroups.csv``.

    Raises:
        ConfigError: if the folder holds no run, or no complete round.
        DataError: if its records are damaged.
    """
    there, settings, records = _read(folder)
    summary = finish(records, settings, there)
    which = _reported(settings, summary["rounds"])
    run = _run_of(there, settings, settings.method, records, summary, which)
    predictions = run.predictions
    if subgroups:
        write_text(folder / "subgroups.csv", subgroups_to_csv(subgroups, settings.classes))
    try:
        sites = read_sites(there.at(settings, data, "--data")) if predictions else []
        _warn_of_changes(there, sites)
    except DataError as cause:
        log.warning("the page shows no images, because the data cannot be read: %s", cause)
        sites = []
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
            sections=[subgroup_section(subgroups, settings.classes)] if subgroups else (),
        )
    )
    write_text(folder / "report.html", page)
    return summary


def read_run(folder: Path, config: TrainConfig, method: str) -> FinishedRun:
    """Return a finished run, with the networks of its best round.

    Args:
        folder: its folder.
        config: its settings.
        method: its name in tables.

    Raises:
        DataError: if its records or predictions are damaged.
    """
    there = RunFolder(folder)
    summary = there.summary()
    records = read_records(folder / "metrics.jsonl", classes=len(config.classes))
    return _run_of(there, config, method, records, summary, "best")


def _run_of(
    there: RunFolder,
    config: TrainConfig,
    method: str,
    records: Sequence[RoundRecord],
    summary: Mapping[str, Any],
    which: Which,
) -> FinishedRun:
    predictions = _predictions(there, config, summary, which)
    counts = {site: training_counts(there.path, site, which) for site in predictions}
    return FinishedRun(
        method=method,
        seed=config.seed,
        records=records,
        predictions=predictions,
        seconds=summary.get("seconds", 0.0),
        rounds=config.rounds,
        epochs=config.epochs,
        training={site: of for site, of in counts.items() if of},
        stages=traits_of(ALGORITHMS[config.method]).stages,
        validation=validation_f1(record for record in records if record.round == summary["best_round"]),
    )


def _read(folder: Path) -> tuple[RunFolder, TrainConfig, list[RoundRecord]]:
    there = RunFolder(folder)
    settings = there.settings()
    records = read_records(folder / "metrics.jsonl", classes=len(settings.classes))
    if not records:
        raise ConfigError(f"{folder} has no complete round, so there is nothing to report")
    return there, settings, records


def _reported(settings: TrainConfig, rounds: int) -> Which:
    """Return which networks a report is about after a number of rounds.

    The best network is chosen among the last 20 % of rounds. Before them there is only the last one.
    """
    return "last" if rounds <= first_candidate(settings.rounds) else "best"


def _predictions(
    there: RunFolder, settings: TrainConfig, summary: Mapping[str, Any], which: Which
) -> dict[ClientId, Predictions]:
    """Return the predictions on test images of a run's networks; in a federation they stay at the sites."""
    return {
        site: read_predictions(predictions_path(there.path, site, which, "test"), settings.classes)
        for site in ([] if there.is_federation else summary["best"]["sites"])
    }


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


def samples(site: SiteData, predictions: Predictions, classes: Sequence[str]) -> list[Sample]:
    """Return the test images with the most confident predictions: wrong ones first, then correct ones."""
    sure, predicted = predictions.probabilities.max(1)
    wrong = predicted != predictions.labels
    rows = {name: row for row, name in enumerate(site.test.ids)}
    shown = []
    for chosen in (wrong, ~wrong):
        ranked = [k for k in sure.argsort(descending=True).tolist() if chosen[k]][:_SAMPLES]
        for k in ranked:
            if (row := rows.get(predictions.ids[k])) is not None:
                png = io.BytesIO()
                Image.fromarray(site.test.inputs[row].permute(1, 2, 0).numpy()).save(png, "PNG")
                truth, answer = classes[int(predictions.labels[k])], classes[int(predicted[k])]
                name = predictions.ids[k]
                shown.append(Sample(site.name, name, png.getvalue(), truth, answer, float(sure[k])))
    return shown
