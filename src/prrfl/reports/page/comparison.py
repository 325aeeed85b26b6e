"""The page of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prrfl.reports.comparison import ALWAYS, FinishedRun, Row
from prrfl.reports.formatting import counted
from prrfl.reports.overlay import EPOCHS, bands
from prrfl.reports.page.model import Heading, Picture, Section, SiteImages
from prrfl.reports.page.panels import panel
from prrfl.reports.page.pictures import Dot, Line, curves, intervals
from prrfl.reports.page.render import Page, render, verdict_picture
from prrfl.reports.page.sheets import (
    class_sheets,
    cost_sheet,
    difference_sheets,
    falls_sheet,
    main_sheet,
    other_sheets,
    site_sheets,
)
from prrfl.reports.retrogress import MEASURES
from prrfl.reports.sampled import SENSITIVE
from prrfl.reports.verdict import compared_verdict

MANY = 4
"""More lines than this are drawn in a panel each."""


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """What a page shows about a comparison.

    Attributes:
        runs: the finished runs.
        rows: the comparison of them.
        reference: the method that the others are tested against.
        baseline: the method that trains each site alone.
        settings: the settings that the runs have in common.
        unfinished: runs that are left out, with the round that they have reached.
        sections: further sections of the page.
    """

    heading: Heading
    runs: Sequence[FinishedRun]
    rows: Sequence[Row]
    reference: str
    baseline: str
    settings: Mapping[str, Any]
    unfinished: Sequence[str] = ()
    sections: Sequence[Section] = ()


def comparison_page(results: ComparisonResults) -> str:
    """Return the page of a comparison: verdict, pictures, tables, and a panel per method and site."""
    runs, rows = results.runs, results.rows
    classes = [str(name) for name in results.settings["classes"]]
    methods = list(dict.fromkeys(run.method for run in runs))
    seeds = sorted({run.seed for run in runs})
    first = {method: next(run for run in runs if run.method == method) for method in methods}
    shown = _shown(methods, results)
    found = compared_verdict(runs, rows, shown, results.baseline, classes)
    banner = ""
    if results.unfinished:
        banner = f"Not finished, and left out here: {'; '.join(results.unfinished)}."
        found = replace(found, cautions=[banner, *found.cautions])
    of = {row.method: row for row in rows}
    panels = [
        panel(run, of[method], site, SiteImages(), classes)
        for method, run in first.items()
        for site in run.predictions
    ]
    seeded = "seed" if len(seeds) == 1 else "seeds"
    return render(
        Page(
            heading=results.heading,
            title=f"{len(methods)} methods compared at {counted(len(found.sites), 'site')}",
            lead=f"{_lengths(first)}, {seeded} {', '.join(map(str, seeds))}. Scores are of the best round on "
            "validation, on test images.",
            banner=banner,
            verdict=found,
            picture=verdict_picture(found),
            sections=[
                Section("Methods", "", [_forest(rows)], [main_sheet(rows)], printed=True),
                Section(
                    "Retrogress",
                    "Scores of deployed networks on test images while training goes on, mean of sites. A "
                    "vertical drop is the effect of a communication."
                    + (" Shaded: range over seeds." if len(seeds) > 1 else ""),
                    _curves(runs, shown),
                    [falls_sheet(rows), cost_sheet(rows, classes)],
                    printed=True,
                ),
                Section(
                    "Classes",
                    "How much of each class is found, over the test images of all sites.",
                    _of_classes(rows, shown, results.baseline, classes),
                    [*class_sheets(rows, classes), *difference_sheets(rows, classes)],
                ),
                Section("Scores by site", sheets=[*site_sheets(rows), *other_sheets(rows)]),
                *results.sections,
            ],
            panels=panels,
            panels_lead="ROC curves, calibration and confusion matrices are of each method's first seed."
            if len(seeds) > 1
            else "",
            classes=classes,
            settings=results.settings,
        )
    )


def _shown(methods: Sequence[str], results: ComparisonResults) -> str:
    """Return the method that the verdict is about: the reference if it is there, otherwise the first."""
    if results.reference in methods:
        return results.reference
    return next((name for name in methods if name != results.baseline), methods[0])


def _lengths(runs: Mapping[str, FinishedRun]) -> str:
    """Return how many rounds and epochs the methods trained, once where they are alike."""
    lengths = {method: (run.rounds, run.epochs) for method, run in runs.items()}
    if len(set(lengths.values())) == 1:
        rounds, epochs = next(iter(lengths.values()))
        return f"{counted(rounds, 'communication round')} of {counted(epochs, 'local epoch')}"
    listed = ", ".join(f"{method} {rounds} × {epochs}" for method, (rounds, epochs) in lengths.items())
    return f"Communication rounds × local epochs of {listed}"


def _forest(rows: Sequence[Row]) -> Picture:
    """Return the forest plot of methods, the best first."""
    panels = {}
    for key, label in (("f1", "macro-F1 (%)"), ("auc", "AUC (%)")):
        ranked = sorted(rows, key=lambda row: (row.method == ALWAYS, -(row.f1["mean"].mean or 0.0)))
        panels[label] = [Dot(row.method, row.scores[key]["mean"], note=row.mark(key)) for row in ranked]
    many = any(row.seeds > 1 for row in rows)
    note = "Thick: 95 % interval over other test images, for these very networks."
    if many:
        note += (
            " Thin: 95 % over other images and other training runs. * best mean; = not told apart from it."
        )
    return intervals("Scores of all methods, mean of sites", panels, note)


def _of_classes(rows: Sequence[Row], shown: str, baseline: str, classes: Sequence[str]) -> list[Picture]:
    of = {row.method: row for row in rows}
    methods = [name for name in (shown, baseline) if name in of]
    pictures = []
    for kind, title in (
        (SENSITIVE, "Sensitivity at 90 % specificity, by class"),
        ("recall", "Recall by class"),
    ):
        items = [
            Dot(label, of[name].scores[f"{kind}_{k}"]["pooled"], name)
            for k, label in enumerate(classes)
            for name in dict.fromkeys(methods)
            if of[name].scores[f"{kind}_{k}"].get("pooled")
        ]
        pictures.append(intervals(title, {"% of the class's images, all sites pooled": items}))
    return pictures


def _curves(runs: Sequence[FinishedRun], shown: str) -> list[Picture]:
    """Return a picture for each measure: all lines together, or each in a panel beside the shown method."""
    epochs = {run.method: run.epochs for run in runs}
    pictures: list[Picture] = []
    for measure, label in MEASURES:
        lines = bands(runs, measure)
        if len(lines) <= MANY:
            panels = {"": [Line(method, line, epochs[method]) for method, line in lines.items()]}
        else:
            panels = {
                method: [
                    *([Line(shown, lines[shown], ghost=True)] if method != shown else []),
                    Line(method, line, epochs[method]),
                ]
                for method, line in lines.items()
            }
        title = label.removesuffix(" (%)") + " over time"
        note = f"Grey: {shown}." if len(lines) > MANY else ""
        pictures.append(curves(title, panels, (EPOCHS, label), note, folded=bool(pictures)))
    return pictures
