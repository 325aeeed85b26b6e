"""Panels of a page: what is known about one method's network at one site."""

from collections.abc import Mapping, Sequence

from prrfl.reports.comparison import Estimate, FinishedRun, Row
from prrfl.reports.page.model import Panel, Picture, SiteImages
from prrfl.reports.page.pictures import Dot, balance, calibration, intervals, roc
from prrfl.reports.sampled import SENSITIVE
from prrfl.reports.statistics import confusion
from prrfl.types import ClientId, Predictions, RoundRecord, ScoreRecord, TrainRecord


def panel(run: FinishedRun, row: Row, site: ClientId, images: SiteImages, classes: Sequence[str]) -> Panel:
    """Return the panel of a run at a site.

    Args:
        run: the run, with predictions of the site.
        row: scores of its method.
        site: the site.
        images: what is known about its images.
        classes: names of the labels.
    """
    predictions = run.predictions[site]
    of_classes = {
        "% of the class's test images": [
            Dot(label, row.scores[f"{kind}_{k}"][site], series)
            for k, label in enumerate(classes)
            for kind, series in (("recall", "recall"), (SENSITIVE, "sensitivity at 90 % specificity"))
            if site in row.scores[f"{kind}_{k}"] and row.scores[f"{kind}_{k}"][site].mean is not None
        ]
    }
    counts = images.balance or _balance(predictions, run.training.get(site), len(classes))
    return Panel(
        site=site,
        method=run.method,
        pictures=[
            intervals("How much of each class is found", of_classes),
            calibration("Is it as often right as it is sure?", predictions),
            roc("ROC curves", predictions, classes),
            balance(counts, classes),
        ],
        confusion=confusion(
            predictions.labels.numpy(), predictions.probabilities.argmax(1).numpy(), len(classes)
        ),
        stages=stages(run.records, site, run.stages),
        stage_names=run.stages,
        samples=images.samples,
    )


def recorded_panel(
    method: str,
    site: ClientId,
    records: Sequence[RoundRecord],
    stage_names: Sequence[str],
    classes: Sequence[str],
) -> Panel:
    """Return the panel of a site whose predictions are not known, from the records of the run.

    Args:
        method: its name.
        site: the site.
        records: of the run, with scores of the site's last round as the last ones.
        stage_names: names of the method's training stages.
        classes: names of the labels.
    """
    found = recorded_confusions(records)[site]
    recalls = [
        Dot(label, Estimate(row[k] / sum(row)), "")
        for k, (label, row) in enumerate(zip(classes, found, strict=True))
        if sum(row)
    ]
    counts = {"test": [sum(row) for row in found]}
    pictures: list[Picture] = [
        intervals("How much of each class is found", {"recall (%)": recalls}),
        balance(counts, classes),
    ]
    return Panel(site, method, pictures, found, stages(records, site, stage_names), stage_names)


def recorded_confusions(records: Sequence[RoundRecord]) -> dict[ClientId, list[list[int]]]:
    """Return the last confusion matrix of each site's deployed network on test images."""
    return {
        r.client: [list(row) for row in r.scores.confusion]
        for r in records
        if isinstance(r, ScoreRecord) and r.deployed and r.split == "test" and r.moment == "after"
    }


def _balance(
    predictions: Predictions, training: Sequence[int] | None, classes: int
) -> Mapping[str, Sequence[int]]:
    test = predictions.labels.bincount(minlength=classes).tolist()
    return {**({"train": training} if training else {}), "test": test}


def stages(
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
