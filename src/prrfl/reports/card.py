"""The model card of one network, as Markdown (Mitchell et al., *Model Cards for Model Reporting*, 2019)."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2

from prrfl.reports.assessment import assess
from prrfl.reports.formatting import percent
from prrfl.reports.subgroups import Subgroup, findings, gap_cells, scores_of, with_interval
from prrfl.reports.tables import Table
from prrfl.types import ClientId, Predictions

FEW = 30
"""The card warns about the recall of classes with fewer test images than this."""

FEWEST_PUBLISHED = 5
"""The card gives no number of images of a subgroup below this, nor scores of so few: it is published."""


def model_card(
    facts: Mapping[str, Any],
    classes: Sequence[str],
    sites: Sequence[ClientId],
    plain: Predictions,
    calibrated: Predictions | None = None,
    subgroups: Sequence[Subgroup] = (),
) -> str:
    """Return the card.

    Args:
        facts: the other variables of the template: ``about`` (the network), ``scope`` (of the method),
            ``site``, ``which``, ``temperature``, ``fitted_on``, ``version``, ``today``, ``file``,
            ``checksum``, ``picture``.
        classes: names of the labels.
        sites: sites whose networks the folder holds.
        plain: the network's predictions on the site's test images, at temperature 1.
        calibrated: the same at its temperature, if it has one.
        subgroups: scores of subgroups of these images. Numbers of few images are not published.
    """
    as_it_is = assess(plain)
    test = as_it_is if calibrated is None else assess(calibrated)
    rows = [("macro-F1", test.macro_f1), ("AUC, one against the rest", test.auc), ("accuracy", test.accuracy)]
    rows += [(f"recall {name}", recall) for name, recall in zip(classes, test.recall, strict=True)]
    counts = plain.labels.bincount(minlength=len(classes)).tolist()
    calibration = [("not calibrated", as_it_is)]
    if calibrated is not None:
        calibration.append(("calibrated", test))
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"percent": percent, "interval": _interval}
    template = environment.from_string(
        resources.files("prrfl.reports").joinpath("card.md").read_text("utf-8")
    )
    few = [(name, count) for name, count in zip(classes, counts, strict=True) if count < FEW]
    withheld = _withheld(subgroups)
    return template.render(
        **facts,
        sites=sites,
        test=test,
        rows=rows,
        calibration=calibration,
        few=few,
        columns=list(dict.fromkeys(row.column for row in subgroups)),
        subgroups=_subgroups(subgroups, withheld, classes),
        findings=findings([row for row in subgroups if row not in withheld], classes),
        fewest=FEWEST_PUBLISHED,
    )


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _subgroups(rows: Sequence[Subgroup], withheld: Sequence[Subgroup], classes: Sequence[str]) -> Table:
    """Return the table of subgroups. It lacks recalls of few images, and means that would reveal them."""
    heads = ["subgroup", "images", "balanced accuracy", *(f"recall {name}" for name in classes)]
    heads += ["minus the rest", "p"]
    body = []
    for row in rows:
        name = f"{row.column} {row.name}".replace("|", "\\|")  # which would end the cell
        if row in withheld:
            few = row.scores.images < FEWEST_PUBLISHED
            body.append([name, f"<{FEWEST_PUBLISHED}" if few else "withheld", *["–"] * (len(heads) - 2)])
            continue
        mean = scores_of(row)[0]
        revealing = any(0 < count < FEWEST_PUBLISHED for count in row.counts)
        recalls = [
            "–" if count < FEWEST_PUBLISHED else with_interval(score.value, score.interval)
            for count, score in zip(row.counts, row.scores.recall, strict=True)
        ]
        balanced = "–" if revealing else with_interval(mean.value, mean.interval)
        body.append([name, str(row.scores.images), balanced, *recalls, *gap_cells(row)])
    return Table("Subgroups", heads, body)


def _withheld(rows: Sequence[Subgroup]) -> list[Subgroup]:
    """Return the subgroups without numbers in the card.

    They are those of few images. If these could be found by subtraction from the number of all images, the
    next smallest of the column are withheld as well.
    """
    withheld: list[Subgroup] = []
    for column in dict.fromkeys(row.column for row in rows):
        ordered = sorted((row for row in rows if row.column == column), key=lambda row: row.scores.images)
        images = [row.scores.images for row in ordered]
        count = sum(n < FEWEST_PUBLISHED for n in images)
        while 0 < count < len(ordered) and (count < 2 or sum(images[:count]) < FEWEST_PUBLISHED):
            count += 1
        withheld += ordered[:count]
    return withheld
