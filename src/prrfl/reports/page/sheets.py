"""Tables of a page."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import Any

from prrfl.reports.comparison import Estimate, Row
from prrfl.reports.formatting import p_value, percent
from prrfl.reports.meter import measure
from prrfl.reports.page.model import Cell, Sheet
from prrfl.reports.page.pictures import span
from prrfl.reports.sampled import SENSITIVE
from prrfl.reports.site_tests import SYMBOLS
from prrfl.reports.tables import (
    RECALL,
    SENSITIVITY,
    legend,
    other_tables,
    reference_of,
    tables,
    where_defined,
)
from prrfl.reports.verdict import Verdict
from prrfl.reports.wording import p_in_text, signed
from prrfl.types import ClientId, RoundRecord

MARKS = {
    "*": "best mean",
    "=": "not told apart from the best, which does not mean that they are equal",
    "*=": "best mean; not told apart from those marked =",
    "≈": "equal within the margin",
}


def scored(e: Estimate, mark: str = "") -> Cell:
    """Return a cell with a score, and its interval below: of images and training runs, or of images alone."""
    detail = span(e.interval) if e.interval else f"{span(e.images)} (images)" if e.images else ""
    return Cell(percent(e.mean) + mark, detail, MARKS.get(mark, ""), best="*" in mark)


def verdict_sheet(verdict: Verdict) -> Sheet:
    """Return the table of sites: score, what it is compared with, and the outcome in a symbol and words."""
    others = list(dict.fromkeys(name for one in verdict.sites for name in one.others))
    heads = ["site", "images", "lesions", verdict.method, *others, *(f"against {name}" for name in others)]
    known = any(one.lesions is not None for one in verdict.sites)
    body = [
        [
            Cell(one.site),
            Cell(str(one.images)),
            Cell("–" if one.lesions is None else str(one.lesions)),
            scored(one.score),
            *(scored(one.others[name]) for name in others),
            *(
                Cell(
                    f"{SYMBOLS[test.outcome]} {test.outcome}",
                    test.reason
                    if isnan(test.difference)
                    else f"{signed(test.difference)} points"
                    + (f", {p_in_text(test.p)}" if test.p is not None else ""),
                    title=test.reason,
                )
                for test in one.tests
            ),
        ]
        for one in verdict.sites
    ]
    if not known:
        heads.remove("lesions")
        body = [[*line[:2], *line[3:]] for line in body]
    return Sheet("Macro-F1 at each site", heads, body)


def score_sheet(
    summary: Mapping[str, Any],
    sensitivities: Mapping[ClientId, Sequence[float | None]],
    classes: Sequence[str],
) -> Sheet:
    """Return the scores of a run's sites.

    Args:
        summary: as :func:`prrfl.reports.summary.summarise` returns it.
        sensitivities: per site and class; empty if only records are known, which have none.
        classes: names of the labels.
    """
    best = summary["best"]
    with_threshold = classes if sensitivities else ()
    groups = [("", 1), ("all classes alike", 3), ("recall", len(classes))]
    groups += [("sensitivity at 90 % specificity", len(classes))] if sensitivities else []
    heads = ["site", "images", "macro-F1", "AUC", "balanced accuracy", *classes, *with_threshold]
    balanced = {site: _mean_of_defined(s["recall"]) for site, s in best["sites"].items()}
    body = [
        [
            site,
            str(s["n"]),
            *map(percent, (s["macro_f1"], s["auc"], balanced[site], *s["recall"])),
            *map(percent, sensitivities.get(site, [None] * len(with_threshold))),
        ]
        for site, s in best["sites"].items()
    ]
    means = (best["mean"]["macro_f1"], best["mean"]["auc"], _mean_of_defined(balanced.values()))
    mean = ["mean", "", *map(percent, means)]
    mean += [""] * (len(heads) - len(mean))
    note = (
        f"Test scores in percent of each site's deployed network; the mean over sites is unweighted. {RECALL}"
    )
    if sensitivities:
        note += f" {SENSITIVITY}"
    for site, rounds in summary.get("absent", {}).items():
        note += f" Without {site} in round(s) {', '.join(str(index + 1) for index in rounds)}."
    foot = [list(map(Cell, mean))]
    return Sheet("Scores", heads, [list(map(Cell, line)) for line in body], foot, groups, note, printed=True)


def _mean_of_defined(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def drop_sheet(records: Sequence[RoundRecord]) -> Sheet:
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


def main_sheet(rows: Sequence[Row]) -> Sheet:
    """Return the main table of a comparison: scores, differences to the reference, and drops."""
    reference = reference_of(rows)
    heads = ["method", "seeds", "macro-F1", "AUC"]
    groups = [("", 1), ("mean of sites", 2)]
    if reference:
        heads += ["macro-F1", "p", "detectable", "AUC", "p"]
        groups.append((f"difference to {reference}", 5))
    heads += ["macro-F1", "AUC"]
    groups.append(("drop at a communication", 2))
    body = []
    for row in rows:
        line = [Cell(row.method), Cell(str(row.seeds or "–"))]
        for key in ("f1", "auc"):
            line.append(scored(row.scores[key]["mean"], row.mark(key)))
        if reference:
            line += _difference_cells(row)
        line += [Cell(percent(row.drop[key].mean if key in row.drop else None)) for key in ("f1", "auc")]
        body.append(line)
    return Sheet("All methods", heads, body, groups=groups, note=legend(rows), printed=True)


def _difference_cells(row: Row) -> list[Cell]:
    cells = []
    for key in ("f1", "auc"):
        test = row.tests.get(key)
        if test is None:
            cells += [Cell("–")] * (3 if key == "f1" else 2)
            continue
        equal = "≈" if test.is_equivalent else ""
        ends = test.interval or (test.difference.images if test.common == 1 else None)
        less = "" if test.interval or not ends else " (images)"
        detail = span(ends) + less if ends else ""
        cells.append(Cell(percent(test.difference.mean) + equal, detail, MARKS.get(equal, "")))
        cells.append(Cell(p_value(row.p.get(key))))
        if key == "f1":
            cells.append(Cell(percent(test.detectable)))
    return cells


def class_sheets(rows: Sequence[Row], classes: Sequence[str]) -> list[Sheet]:
    """Return recall and sensitivity of each class, over the images of all sites, and in the mean of sites."""
    sheets = []
    for site, where in (("pooled", "images of all sites pooled"), ("mean", "mean of sites")):
        for kind, name in (("recall", "Recall"), (SENSITIVE, "Sensitivity at 90 % specificity")):
            keys = [f"{kind}_{k}" for k in range(len(classes))]
            heads = [
                "method",
                *(
                    label + (where_defined(rows[0].scores[key]) if site == "mean" else "")
                    for key, label in zip(keys, classes, strict=True)
                ),
            ]
            body = [[Cell(row.method), *(scored(row.scores[key][site]) for key in keys)] for row in rows]
            if kind == "recall" and site == "mean":
                heads.insert(1, "balanced accuracy")
                for line, row in zip(body, rows, strict=True):
                    line.insert(1, scored(row.scores["balanced_accuracy"]["mean"]))
            sheets.append(Sheet(f"{name} by class ({where})", heads, body))
    return sheets


def difference_sheets(rows: Sequence[Row], classes: Sequence[str]) -> list[Sheet]:
    """Return the differences of each class's measures to the reference; none without it."""
    reference = reference_of(rows)
    sheets = []
    for site, where in (("pooled", "images of all sites pooled"), ("mean", "mean of sites")):
        for kind, name in (("recall", "recall"), (SENSITIVE, "sensitivity at 90 % specificity")):
            body = [
                [
                    Cell(row.method),
                    *(scored(row.differences[f"{kind}_{k}"][site]) for k in range(len(classes))),
                ]
                for row in rows
                if row.differences
            ]
            if body:
                title = f"Difference to {reference} in {name} ({where})"
                sheets.append(Sheet(title, ["method", *classes], body))
    return sheets


def site_sheets(rows: Sequence[Row]) -> list[Sheet]:
    """Return macro-F1 and AUC of each method at each site."""
    sites = [site for site in rows[0].f1 if site != "mean"]
    return [
        Sheet(
            f"{name} at each site",
            ["method", *sites],
            [[Cell(row.method), *(scored(row.scores[key][site]) for site in sites)] for row in rows],
        )
        for key, name in (("f1", "Macro-F1"), ("auc", "AUC"), ("accuracy", "Accuracy"))
    ]


def other_sheets(rows: Sequence[Row]) -> list[Sheet]:
    """Return accuracy, the worst site, the spread between sites, further measures, and validation scores."""
    found = [
        Sheet(table.title, table.heads, [list(map(Cell, line)) for line in table.body])
        for table in other_tables(rows)
    ]
    validation = [[Cell(row.method), Cell(percent(row.validation))] for row in rows]
    return [*found, Sheet("Validation (mean of sites)", ["method", "macro-F1"], validation)]


def cost_sheet(rows: Sequence[Row], classes: Sequence[str]) -> Sheet:
    """Return drops at communications, recovery from them, and costs."""
    table = tables(rows, classes)[-1]
    return Sheet(table.title, table.heads, [list(map(Cell, line)) for line in table.body])


def falls_sheet(rows: Sequence[Row]) -> Sheet:
    """Return drops by method and site, the deeper their mean the stronger coloured."""
    measured = [row for row in rows if row.drops]
    deepest = max(fall.mean for row in measured for fall in row.drops.values())
    body = [
        [
            Cell(row.method),
            *(
                Cell(
                    percent(fall.mean),
                    f"largest {percent(fall.largest)}",
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
        note="Mean and largest over rounds and seeds, in points, of the deployed network; coloured by the "
        "mean. Below zero the communication helped.",
    )
