"""The model card of one network, as Markdown (Mitchell et al., *Model Cards for Model Reporting*, 2019)."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2

from prrfl.reports.assessment import assess
from prrfl.reports.formatting import percent
from prrfl.types import ClientId, Predictions

FEW = 30
"""The card warns about the recall of classes with fewer test images than this."""


def model_card(
    facts: Mapping[str, Any],
    classes: Sequence[str],
    sites: Sequence[ClientId],
    plain: Predictions,
    calibrated: Predictions | None = None,
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
    return template.render(**facts, sites=sites, test=test, rows=rows, calibration=calibration, few=few)


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
