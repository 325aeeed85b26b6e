"""Tables and figures of a run or a comparison, ready for a paper."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prrfl.algorithms import DEFAULT
from prrfl.config import TrainConfig
from prrfl.data.synthetic import cache_folder
from prrfl.errors import ConfigError
from prrfl.reports import paper, paper_figures
from prrfl.reports.comparison import TOO_FEW, Estimate, FinishedRun, Row, compare
from prrfl.reports.latex import escaped
from prrfl.reports.overlay import comparison_figure
from prrfl.reports.paper import Metric, PaperTable, Subject
from prrfl.reports.paper_figures import Curves, Dots
from prrfl.reports.plotting import Figure, save_for_print
from prrfl.reports.retrogress import MEASURES, band, caption, curve
from prrfl.reports.styles import of_networks
from prrfl.runs.compare import read_margin, read_runs
from prrfl.runs.folder import RunFolder
from prrfl.runs.report import read_run
from prrfl.runs.scorers import read_scorers
from prrfl.storage.atomic import write_text
from prrfl.types import Predictions, ScoreRecord

log = logging.getLogger("prrfl")

MAJORITY = "majority class"
IN_CURVES = {"f1": MEASURES[0], "auc": MEASURES[1]}
"""Measures that are recorded at every communication: their names in records, and labels."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure with the name of its files and its caption."""

    name: str
    caption: str
    figure: Figure


def write_comparison(folder: Path, out: Path, metrics: Sequence[str], methods: Sequence[str]) -> list[Path]:
    """Write tables and figures of a comparison; return the files without the copies in other formats.

    Intervals, tests and marks are over the methods that are shown.

    Args:
        folder: the comparison's folder.
        out: folder of the results.
        metrics: names of measures, in the order of the columns.
        methods: in the order of the rows; empty for all.

    Raises:
        ConfigError: if a metric or method is unknown, or the folder holds no finished run.
        DataError: if the runs were trained or tested on different data.
    """
    runs, config = read_runs(folder)
    further = read_scorers(folder)
    chosen = _chosen(metrics, paper.metrics_of(config.classes, further))
    known = list(dict.fromkeys(run.method for run in runs))
    _check_names("--methods", "finished run of method", methods, known, folder)
    shown = [run for name in methods or known for run in runs if run.method == name]
    # With all further measures, so that intervals are those of the comparison's own tables.
    rows = _named(compare(shown, DEFAULT, read_margin(folder), further=further))
    subject = _subject(shown, config, of=len(known))
    figures = _comparison_figures(shown, rows, chosen, subject)
    return _write(out, paper.comparison_tables(rows, list(chosen.values()), subject), figures)


def write_run(folder: Path, out: Path, metrics: Sequence[str]) -> list[Path]:
    """Write the table by site and the figures of a finished run; return the files as for a comparison.

    Args:
        folder: the run's folder.
        out: folder of the results.
        metrics: names of measures, in the order of the columns.

    Raises:
        ConfigError: if a metric is unknown, or the run is not finished, or its predictions are elsewhere.
        DataError: if its records or predictions are damaged.
    """
    there = RunFolder(folder)
    config = there.settings()
    if there.is_federation:
        raise ConfigError(
            f"{folder} is a federation, whose predictions stay at the sites, so there are no intervals for a "
            "paper; use `prrfl report` without --for"
        )
    if not there.is_finished:
        raise ConfigError(
            f"{folder} has {there.rounds_done} of {config.rounds} rounds; a paper needs a finished run, so "
            f"complete it with `prrfl resume {folder}`"
        )
    chosen = _chosen(metrics, paper.metrics_of(config.classes))
    if over := [name for name, metric in chosen.items() if not metric.by_site]:
        raise ConfigError(
            f"--metrics: {over[0]} is for comparisons; the table of a run shows every site, so leave it out"
        )
    run = read_run(folder, config, config.method)
    rows = _named(compare([run], run.method))
    subject = _subject([run], config)
    figures = _run_figures(run, rows, chosen, subject)
    return _write(out, paper.run_tables(rows, list(chosen.values()), subject), figures)


def _chosen(names: Sequence[str], known: Mapping[str, Metric]) -> dict[str, Metric]:
    _check_names("--metrics", "metric", names, list(known))
    return {name: known[name] for name in names}


def _check_names(
    flag: str, what: str, names: Sequence[str], known: Sequence[str], folder: Path | None = None
) -> None:
    """Raise unless all names are known and none stands twice."""
    for name in names:
        if name not in known:
            where = f"{folder} has no" if folder else "unknown"
            raise ConfigError(f"{flag}: {where} {what} '{name}'; choose among {', '.join(known)}")
        if list(names).count(name) > 1:
            raise ConfigError(f"{flag}: '{name}' is given twice; give each once")


def _named(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a short name for always predicting the most frequent class."""
    return [row if row.seeds else replace(row, method=MAJORITY) for row in rows]


def _subject(runs: Sequence[FinishedRun], config: TrainConfig, of: int = 0) -> Subject:
    tests = dict(sorted(runs[0].predictions.items()))
    return Subject(
        images={site: len(p.labels) for site, p in tests.items()},
        classes=config.classes,
        seeds=len({run.seed for run in runs}),
        groups=any(any(p.groups) for p in tests.values()),
        generated=config.data is None or config.data.parent == cache_folder(),
        of=of,
    )


def _comparison_figures(
    runs: Sequence[FinishedRun], rows: Sequence[Row], metrics: Mapping[str, Metric], subject: Subject
) -> list[PaperFigure]:
    names = [row.method for row in rows]
    means = [
        _dots("", m, f"{m.label}, {m.head}", [row.scores[m.key]["mean"] for row in rows])
        for m in metrics.values()
    ]
    sites = [
        _dots(site, m, m.label, [row.scores[m.key][site] for row in rows])
        for m in metrics.values()
        if m.by_site
        for site in subject.images
    ]
    about = f"{subject}. {_lines(rows, names)}"
    figures = [
        PaperFigure(
            "forest",
            f"Scores of each method, mean of sites; {about}",
            paper_figures.dots_figure(names, means, min(len(means), 3), DEFAULT, MAJORITY),
        )
    ]
    if sites:
        figures.append(
            PaperFigure(
                "sites",
                f"Scores of each method at each site; {about}",
                paper_figures.dots_figure(names, sites, _columns_of_sites(sites, subject), DEFAULT, MAJORITY),
            )
        )
    if measured := _in_curves(metrics):
        spread = "; bands: range of seeds" if subject.seeds > 1 else ""
        others = f"; the thin line repeats {DEFAULT}" if DEFAULT in names and len(names) > 1 else ""
        figures.append(
            PaperFigure(
                "retrogress",
                f"Test scores of the deployed networks over local epochs, mean of sites; {subject}. A "
                f"vertical fall is the effect of a communication{spread}{others}.",
                comparison_figure(runs, DEFAULT, measured),
            )
        )
    pooled = {
        method: _joined([p for run in runs if run.method == method for p in run.predictions.values()])
        for method in dict.fromkeys(run.method for run in runs)
    }
    figures.append(
        PaperFigure(
            "reliability",
            f"Accuracy against confidence of each method, all sites and seeds together; {subject}. {_ECE}",
            paper_figures.reliability_figure(pooled, DEFAULT),
        )
    )
    return figures


def _dots(
    title: str,
    metric: Metric,
    label: str,
    estimates: Sequence[Estimate],
    beside: Sequence[float | None] = (),
) -> Dots:
    """Return a panel of a measure, in percent unless it is plain."""
    if metric.plain:
        return Dots(title, label, estimates, beside, factor=1.0)
    return Dots(title, f"{label} (%)", estimates, beside)


_ECE = (
    "The area of a dot is proportional to its number of images; ECE: expected calibration error, in points, "
    "with 15 bins."
)


def _columns_of_sites(panels: Sequence[Dots], subject: Subject) -> int:
    """Return how many panels of sites stand in a row, a row for each measure if they are few."""
    sites = len(subject.images)
    return sites if sites <= 5 else paper_figures.columns_for(len(panels), 4)


def _lines(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return what the lines of a figure of scores are."""
    both = any(e.interval for row in rows for of in row.scores.values() for e in of.values())
    thin = "thin lines: 95% intervals over images and training runs, " if both else ""
    text = f"{thin}thick lines: over images alone" if both else "Lines: 95% intervals over images"
    text = text[0].upper() + text[1:]
    if MAJORITY in names:
        text += "; hollow: always predicting the site's most frequent class in training"
    if any(e.reason == TOO_FEW for row in rows for of in row.scores.values() for e in of.values()):
        text += f"; no interval: {TOO_FEW}"
    return text + "."


def _run_figures(
    run: FinishedRun, rows: Sequence[Row], metrics: Mapping[str, Metric], subject: Subject
) -> list[PaperFigure]:
    ours, *majority = rows
    sites = [*subject.images, "mean"]
    panels = [
        _dots(
            "",
            m,
            m.label,
            [ours.scores[m.key][site] for site in sites],
            [row.scores[m.key][site].mean for row in majority for site in sites],
        )
        for m in metrics.values()
    ]
    figures = [
        PaperFigure(
            "sites",
            f"Scores of {run.method} at each site; {subject}. {_lines([ours], [row.method for row in rows])}",
            paper_figures.dots_figure(sites, panels, min(len(panels), 3), "mean", MAJORITY),
        )
    ]
    if measured := _in_curves(metrics):
        models = list(dict.fromkeys(r.model for r in run.records if isinstance(r, ScoreRecord)))
        curves = [
            Curves(
                site,
                {
                    label: {
                        model: band([curve(run.records, model, site, measure, run.epochs)])
                        for model in models
                    }
                    for measure, label in measured
                },
            )
            for site in subject.images
        ]
        strokes = caption(run.records)
        figures.append(
            PaperFigure(
                "retrogress",
                f"Test scores of {run.method} over communication rounds at each site; {subject}. A vertical "
                f"fall is the effect of a communication{'; ' * bool(strokes)}{strokes}.",
                paper_figures.curves_figure(
                    curves, of_networks(models), "communication round", models if len(models) > 1 else ()
                ),
            )
        )
    figures.append(
        PaperFigure(
            "reliability",
            f"Accuracy against confidence of {run.method} at each site; {subject}. {_ECE}",
            paper_figures.reliability_figure(dict(sorted(run.predictions.items())), ""),
        )
    )
    return figures


def _in_curves(metrics: Mapping[str, Metric]) -> list[tuple[str, str]]:
    found = [IN_CURVES[name] for name in metrics if name in IN_CURVES]
    if not found:
        log.warning("no figure of retrogress: communications are measured in %s", " and ".join(IN_CURVES))
    return found


def _joined(predictions: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several networks as those of one."""
    return Predictions(
        tuple(name for p in predictions for name in p.ids),
        torch.cat([p.labels for p in predictions]),
        torch.cat([p.probabilities for p in predictions]),
    )


def _write(out: Path, tables: Sequence[PaperTable], figures: Sequence[PaperFigure]) -> list[Path]:
    packages = "% In the preamble: \\usepackage{booktabs,graphicx}\n"
    pictures = [f"![{one.caption}]({one.name}.png)\n\n{one.caption}\n" for one in figures]
    files = {
        "table.tex": "\n".join([packages, *map(paper.table_to_latex, tables)]),
        "table.md": "\n".join([*map(paper.table_to_markdown, tables), *pictures]),
        "figures.tex": "\n".join([packages, *map(_included, figures)]),
    }
    for name, text in files.items():
        write_text(out / name, text)
    for one in figures:
        save_for_print(one.figure, out / one.name)
    return [out / name for name in files] + [out / f"{one.name}.pdf" for one in figures]


def _included(one: PaperFigure) -> str:
    """Return a figure for LaTeX: in its own size, or smaller if the text is narrower."""
    inches = one.figure.get_figwidth()
    environment = "figure*" if inches > paper_figures.SINGLE else "figure"
    size = rf"\ifdim\linewidth<{inches:g}in \linewidth\else {inches:g}in\fi"
    return "\n".join([
        rf"\begin{{{environment}}}[tp]",
        r"\centering",
        rf"\includegraphics[width={size}]{{{one.name}.pdf}}",
        rf"\caption{{{escaped(one.caption)}}}\label{{fig:{one.name}}}",
        rf"\end{{{environment}}}",
        "",
    ])  # fmt: skip
