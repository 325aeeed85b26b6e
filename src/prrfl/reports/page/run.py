"""The page of one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prrfl.reports.comparison import FinishedRun, Row, compare
from prrfl.reports.formatting import counted
from prrfl.reports.page.model import Heading, Panel, Picture, Section, SiteImages
from prrfl.reports.page.panels import panel, recorded_confusions, recorded_panel
from prrfl.reports.page.pictures import Line, curves
from prrfl.reports.page.render import Page, render, verdict_picture
from prrfl.reports.page.sheets import drop_sheet, score_sheet
from prrfl.reports.retrogress import MEASURES, band, caption, curve
from prrfl.reports.sampled import SENSITIVE
from prrfl.reports.verdict import Recorded, Verdict, compared_verdict, recorded_verdict
from prrfl.types import ClientId, ScoreRecord


@dataclass(frozen=True, eq=False)
class RunResults:
    """What a page shows about a run.

    Attributes:
        run: the run; without predictions if they stay at the sites.
        rounds: number of rounds that it is to have.
        summary: as :func:`prrfl.reports.summary.summarise` returns it.
        settings: all settings.
        images: per site; empty if the data is not available.
        chosen: whether the networks are those of the best round, rather than of the last one so far.
        sections: further sections of the page.
    """

    heading: Heading
    run: FinishedRun
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    baseline: str
    images: Mapping[ClientId, SiteImages] = field(default_factory=dict)
    chosen: bool = True
    sections: Sequence[Section] = ()


def run_page(results: RunResults) -> str:
    """Return the page of one run."""
    run, summary = results.run, results.summary
    classes = [str(name) for name in results.settings["classes"]]
    sites = list(summary["best"]["sites"])
    verdict, sensitivities, panels = _of_predictions(results) if run.predictions else _of_records(results)
    done, planned, index = summary["rounds"], run.rounds, summary["best_round"]
    banner, rounds = "", str(planned)
    if done < planned:
        banner, rounds = (
            f"Not finished: round {done} of {planned}. Scores may still change.",
            f"{done} of {planned}",
        )
    moment = (
        f"the best round on validation (round {index + 1})"
        if results.chosen
        else f"the latest round ({index + 1})"
    )
    cautions = [banner] if banner else []
    cautions += [
        f"Without {site} in round(s) {', '.join(str(index + 1) for index in missed)}."
        for site, missed in summary.get("absent", {}).items()
    ]
    verdict = replace(verdict, cautions=[*cautions, *verdict.cautions])
    return render(
        Page(
            heading=results.heading,
            title=f"{run.method} at {counted(len(sites), 'site')}",
            lead=f"{rounds} communication rounds of {counted(run.epochs, 'local epoch')}, "
            f"seed {run.seed}. Scores are of {moment}, on test images.",
            banner=banner,
            verdict=verdict,
            picture=verdict_picture(verdict),
            sections=[
                Section("Scores", sheets=[score_sheet(summary, sensitivities, classes)], printed=True),
                Section(
                    "Retrogress",
                    "Scores on test images while training goes on. A vertical drop is the effect of a "
                    "communication.",
                    _curves(run, sites),
                    [drop_sheet(run.records)],
                    printed=True,
                ),
                *results.sections,
            ],
            panels=panels,
            panels_lead="",
            classes=classes,
            settings=results.settings,
        )
    )


Found = tuple[Verdict, dict[ClientId, list[float | None]], list[Panel]]


def _of_predictions(results: RunResults) -> Found:
    """Return verdict, sensitivities of each class by site, and panels."""
    run = results.run
    classes = [str(name) for name in results.settings["classes"]]
    rows = compare([run], run.method)
    own: Row = rows[0]
    sensitivities = {
        site: [
            e.mean if (e := own.scores[f"{SENSITIVE}_{k}"].get(site)) else None for k in range(len(classes))
        ]
        for site in run.predictions
    }
    panels = [
        panel(run, own, site, results.images.get(site, SiteImages()), classes) for site in run.predictions
    ]
    return compared_verdict([run], rows, run.method, results.baseline, classes), sensitivities, panels


def _of_records(results: RunResults) -> Found:
    """Return the same of a federation, whose predictions stay at its sites."""
    run, best = results.run, results.summary["best"]
    classes = [str(name) for name in results.settings["classes"]]
    until = [r for r in run.records if r.round <= results.summary["best_round"]]
    confusions = recorded_confusions(until)
    sites = {site: Recorded(scores["macro_f1"], confusions[site]) for site, scores in best["sites"].items()}
    panels = [recorded_panel(run.method, site, until, run.stages, classes) for site in sites]
    # The stages are of the whole run.
    return recorded_verdict(run.method, run.seed, sites, classes), {}, panels


def _curves(run: FinishedRun, sites: Sequence[ClientId]) -> list[Picture]:
    """Return a picture for each measure: of the mean of sites, and of each site."""
    models = list(dict.fromkeys(r.model for r in run.records if isinstance(r, ScoreRecord)))
    panels: dict[str, ClientId | None] = {"mean of sites": None, **{site: site for site in sites}}
    if len(sites) == 1:
        del panels["mean of sites"]
    pictures: list[Picture] = []
    for measure, label in MEASURES:
        lines = {
            title: [
                Line(model, band([curve(run.records, model, site, measure, run.epochs)])) for model in models
            ]
            for title, site in panels.items()
        }
        pictures.append(
            curves(
                label.removesuffix(" (%)") + " over time",
                lines,
                ("communication round", label),
                caption(run.records),
                folded=bool(pictures),
            )
        )
    return pictures
