"""Methods side by side: one table with intervals and paired tests, and one figure."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prrfl.reports.meter import Recovery, SiteDrop, by_site, measure, recovery
from prrfl.reports.retrogress import MEASURES, Band, band, curve, draw, dress, save
from prrfl.reports.statistics import (
    Floats,
    holm,
    macro_auc,
    macro_f1,
    mean_of_defined,
    paired_p,
    percentile_interval,
    resamples,
    seed_interval,
    seeds_p,
)
from prrfl.reports.styles import Style, of_methods
from prrfl.types import ClientId, ExchangeRecord, Predictions, RoundRecord

REFERENCE = "prrfl"
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run as a comparison sees it.

    Attributes:
        method: its name in the table, ablations with their settings: ``prrfl:transfer=off``.
        predictions: per site, on the test images, by the best round on validation.
        seconds: wall time.
    """

    method: str
    seed: int
    records: Sequence[RoundRecord]
    predictions: Mapping[ClientId, Predictions]
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A score with its two uncertainties. Fractions.

    Attributes:
        mean: over seeds; ``None`` where a test set shows a single class.
        seeds: half the 95 % t-interval over seeds; ``None`` for a single seed.
        images: 95 % bootstrap interval over test images, of the mean over seeds.
    """

    mean: float | None
    seeds: float | None = None
    images: tuple[float, float] | None = None


@dataclass(frozen=True)
class PairedTest:
    """Whether a method differs from PRR-FL, asked twice.

    Attributes:
        images: p-value of the paired bootstrap over test images: would other images say the same?
        seeds: p-value of the paired t-test over the seeds that both ran: would other trainings? ``None`` for
            a single seed, which cannot tell.
    """

    images: float
    seeds: float | None

    @property
    def p(self) -> float:
        """The larger: a difference is claimed only where both tests find it."""
        return self.images if self.seeds is None else max(self.images, self.seeds)


@dataclass(frozen=True)
class Row:
    """One method in the table.

    Attributes:
        f1: macro-F1 by site, and under ``mean`` the unweighted mean of sites; ``auc`` likewise.
        recall: per class, mean over the sites that show it and over seeds.
        complete: whether it ran every seed that any method ran; only then it competes for ``best``.
        tests: per measure, against PRR-FL over the seeds that both ran; missing for itself, and where they
            have no seed in common.
        p: per measure, the test's p-value, Holm-corrected over the methods.
        best: measures in which no other complete method's mean is higher.
        tied: measures in which the best method is not significantly better than this one.
        drop: mean fall of the deployed network at a communication: macro-F1 and AUC.
        drops: the same by site, macro-F1.
        recovery: how those falls ended.
        bytes: sent per site and round, up and down.
    """

    method: str
    seeds: int
    f1: Mapping[str, Estimate]
    auc: Mapping[str, Estimate]
    recall: tuple[float | None, ...]
    complete: bool = True
    tests: Mapping[str, PairedTest] = field(default_factory=dict)
    p: Mapping[str, float] = field(default_factory=dict)
    best: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()
    drop: tuple[float, float | None] | None = None
    drops: Mapping[ClientId, SiteDrop] = field(default_factory=dict)
    recovery: Recovery | None = None
    bytes: tuple[float, float] | None = None
    seconds: float | None = None

    @property
    def worst(self) -> ClientId | None:
        """The site whose macro-F1 falls most at a communication, in the mean; ``None`` where none falls."""
        site = max(self.drops, key=lambda client: self.drops[client].mean, default=None)
        return site if site is not None and self.drops[site].mean > 0 else None


BySeed = dict[int, dict[str, Floats]]
"""Bootstrap scores by seed and site; the first of each array is that of the test set itself."""


def compare(runs: Sequence[Run], draws: int = 2000, seed: int = 0) -> list[Row]:
    """Return one row per method, and at the end the row of always answering the most frequent class.

    The same bootstrap samples of each site's test images serve all methods and seeds, so that differences
    are paired: what is uncertain in both cancels. Seeds are not resampled; a t-test stands for their spread.

    Args:
        runs: finished runs on the same data, any number of seeds for each method.
        draws: bootstrap samples.
        seed: of the bootstrap.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    rng = np.random.default_rng(seed)
    # The first sample is the test set itself, so that scores and intervals come out of one calculation.
    counts = {
        site: np.vstack([np.ones(len(p.labels)), resamples(len(p.labels), draws, rng)])
        for site, p in sorted(runs[0].predictions.items())
    }
    f1: dict[str, BySeed] = {method: {} for method in methods}
    auc: dict[str, BySeed] = {method: {} for method in methods}
    for run in runs:
        f1[run.method][run.seed], auc[run.method][run.seed] = _resampled(counts, run.predictions)
    seeds = {run.seed for run in runs}
    rows = [
        replace(
            _row(method, [r for r in runs if r.method == method], f1[method], auc[method]),
            complete=f1[method].keys() == seeds,
        )
        for method in methods
    ]
    rows = _tested(_tested(rows, "f1", f1), "auc", auc)
    return [*rows, _majority(counts, runs[0].predictions)]


def _resampled(
    counts: Mapping[ClientId, Floats], predictions: Mapping[ClientId, Predictions]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return macro-F1 and AUC of each sample, by site and as the mean of sites."""
    f1, auc = {}, {}
    for site, samples in counts.items():
        labels, values = predictions[site].labels.numpy(), predictions[site].probabilities.numpy()
        f1[site] = macro_f1(samples, labels, values.argmax(1))
        auc[site] = macro_auc(samples, labels, values)
    return _with_mean(f1), _with_mean(auc)


def _with_mean(sites: dict[str, Floats]) -> dict[str, Floats]:
    return {**sites, "mean": mean_of_defined(list(sites.values()))}


def _estimates(seeds: BySeed) -> dict[str, Estimate]:
    by_seed = list(seeds.values())
    return {site: _estimate([scores[site] for scores in by_seed]) for site in by_seed[0]}


def _estimate(seeds: Sequence[Floats]) -> Estimate:
    values = [float(run[0]) for run in seeds]
    if np.isnan(values).any():
        return Estimate(None)
    return Estimate(fmean(values), seed_interval(values), percentile_interval(np.mean(seeds, axis=0)[1:]))


def _row(method: str, runs: Sequence[Run], f1: BySeed, auc: BySeed) -> Row:
    drops = [d for run in runs for d in measure(run.records) if d.deployed]
    aucs = [d.auc for d in drops if d.auc is not None]
    exchanges = [r for run in runs for r in run.records if isinstance(r, ExchangeRecord)]
    return Row(
        method=method,
        seeds=len(runs),
        f1=_estimates(f1),
        auc=_estimates(auc),
        recall=_recall([p for run in runs for p in run.predictions.values()]),
        drop=(fmean(d.f1 for d in drops), fmean(aucs) if aucs else None),
        drops=by_site(drops),
        recovery=recovery(drops),
        bytes=(
            fmean(b for r in exchanges for b in r.bytes_up.values()),
            fmean(r.bytes_down for r in exchanges),
        ),
        seconds=fmean(run.seconds for run in runs),
    )


def _recall(listed: Sequence[Predictions]) -> tuple[float | None, ...]:
    found: list[float | None] = []
    for label in range(listed[0].probabilities.shape[1]):
        shares = [
            float((p.probabilities.argmax(1) == label)[p.labels == label].double().mean())
            for p in listed
            if (p.labels == label).any()
        ]
        found.append(fmean(shares) if shares else None)
    return tuple(found)


def _tests(of: str, scores: Mapping[str, BySeed]) -> dict[str, PairedTest]:
    """Return the tests of one method against each other with which it shares a seed."""
    tests = {}
    for other in scores:
        common = sorted(scores[of].keys() & scores[other].keys())
        if other != of and common:
            pairs = [scores[of][seed]["mean"] - scores[other][seed]["mean"] for seed in common]
            tests[other] = PairedTest(
                paired_p(np.mean(pairs, axis=0)[1:]), seeds_p(np.array([d[0] for d in pairs]))
            )
    return tests


def _corrected(tests: Mapping[str, PairedTest]) -> dict[str, float]:
    return dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))


def _tested(rows: Sequence[Row], name: str, scores: Mapping[str, BySeed]) -> list[Row]:
    """Return the rows with one measure's tests against PRR-FL, who is best, and who is tied with it."""
    means = {row.method: (row.f1 if name == "f1" else row.auc)["mean"].mean for row in rows}
    if None in means.values():  # all test sets show a single class
        return list(rows)
    tests = _tests(REFERENCE, scores) if REFERENCE in scores else {}
    p = _corrected(tests)
    full = {row.method: means[row.method] or 0.0 for row in rows if row.complete}
    best = {method for method, value in full.items() if value == max(full.values())}
    tied: set[str] = set()
    if best:
        winner = next(method for method in full if method in best)
        even = [m for m, value in _corrected(_tests(winner, scores)).items() if value >= LEVEL and m in full]
        tied = {winner, *even} if even else set()
    return [
        replace(
            row,
            tests={**row.tests, name: tests[row.method]} if row.method in tests else row.tests,
            p={**row.p, name: p[row.method]} if row.method in p else row.p,
            best=row.best | {name} if row.method in best else row.best,
            tied=row.tied | {name} if row.method in tied else row.tied,
        )
        for row in rows
    ]


def _majority(counts: Mapping[ClientId, Floats], predictions: Mapping[ClientId, Predictions]) -> Row:
    answers = {}
    for site, p in predictions.items():
        always = torch.zeros_like(p.probabilities)
        always[:, p.labels.bincount().argmax()] = 1.0
        answers[site] = replace(p, probabilities=always)
    f1, auc = _resampled(counts, answers)
    return Row(
        method="always the most frequent class",
        seeds=0,
        f1=_estimates({0: f1}),
        auc=_estimates({0: auc}),
        recall=_recall(list(answers.values())),
    )


def to_csv(rows: Sequence[Row]) -> str:
    """Return all figures as tidy CSV: one line per method, site and measure. Fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ["method", "site", "measure", "seeds", "mean", "seeds_ci95", "images_low", "images_high"]
    heads += ["p_against_prrfl", "best", "tied", "p_images", "p_seeds"]
    writer.writerow(heads)
    for row in rows:
        for name, key, estimates in (("macro_f1", "f1", row.f1), ("auc", "auc", row.auc)):
            for site, e in estimates.items():
                overall = site == "mean"
                low, high = e.images or (None, None)
                test = row.tests.get(key) if overall else None
                writer.writerow([
                    row.method, site, name, row.seeds, e.mean, e.seeds, low, high,
                    row.p.get(key) if overall else None,
                    overall and key in row.best, overall and key in row.tied,
                    test and test.images, test and test.seeds,
                ])  # fmt: skip
        for site, fall in row.drops.items():
            for name, value in (("drop_macro_f1", fall.mean), ("largest_drop_macro_f1", fall.largest)):
                writer.writerow([row.method, site, name, row.seeds, value, *[None] * 8])
        for name, figure in (
            *((f"recall_{k}", value) for k, value in enumerate(row.recall)),
            ("drop_macro_f1", row.drop and row.drop[0]),
            ("drop_auc", row.drop and row.drop[1]),
            ("epochs_to_recover", row.recovery and row.recovery.epochs),
            ("falls_recovered", row.recovery and row.recovery.back),
            ("falls", row.recovery and row.recovery.falls),
            ("bytes_up", row.bytes and row.bytes[0]),
            ("bytes_down", row.bytes and row.bytes[1]),
            ("seconds", row.seconds),
        ):
            writer.writerow([row.method, "mean", name, row.seeds, figure, *[None] * 8])
    return text.getvalue()


@dataclass(frozen=True)
class Table:
    """A table for people: a title, headings, and rows of cells; the first column names the row."""

    title: str
    heads: Sequence[str]
    body: Sequence[Sequence[str]]


def tables(rows: Sequence[Row], classes: Sequence[str]) -> tuple[Table, Table, Table]:
    """Return the comparison in three tables: scores, retrogress and cost, and each site. Percent.

    ``*`` marks the best mean of a measure, ``=`` those that are not significantly behind it.
    """
    sites = [site for site in rows[0].f1 if site != "mean"]
    scores = ["method", "seeds"]
    for name in ("F1", "AUC"):
        scores += [f"{name} mean", f"{name} mean, 95 % of images", f"{name} p"]
    scores += [f"recall {name}" for name in classes]
    costs = ["method", "drop F1", "drop AUC", "worst drop at", "epochs to recover"]
    costs += ["MB up", "MB down", "minutes"]
    by_site = ["method", *(f"{name} {site}" for name in ("F1", "AUC") for site in sites)]
    return (
        Table("Scores (mean of sites)", scores, [_score_cells(row) for row in rows]),
        Table("Retrogress and cost", costs, [_cost_cells(row) for row in rows]),
        Table(
            "Per site",
            by_site,
            [[row.method, *(_with_spread(e[s]) for e in (row.f1, row.auc) for s in sites)] for row in rows],
        ),
    )


def cells(rows: Sequence[Row], classes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the tables of :func:`tables` as one: headings, and each row's cells."""
    first, *more = tables(rows, classes)
    heads = [*first.heads, *(head for table in more for head in table.heads[1:])]
    body = [
        [*line, *(cell for table in more for cell in table.body[index][1:])]
        for index, line in enumerate(first.body)
    ]
    return heads, body


def _score_cells(row: Row) -> list[str]:
    line = [row.method, str(row.seeds or "–")]
    for key, estimates in (("f1", row.f1), ("auc", row.auc)):
        mark = "*" * (key in row.best) + "=" * (key in row.tied)
        line.append(_with_spread(estimates["mean"]) + mark)
        interval = estimates["mean"].images
        line.append(f"{_percent(interval[0])} – {_percent(interval[1])}" if interval else "–")
        p = row.p.get(key)
        line.append("–" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001")
    return line + [_percent(value) for value in row.recall]


def _cost_cells(row: Row) -> list[str]:
    line = [row.method]
    line += [_percent(row.drop[0]), _percent(row.drop[1])] if row.drop else ["–", "–"]
    line.append(f"{row.worst} ({100 * row.drops[row.worst].mean:.1f})" if row.worst is not None else "–")
    if row.recovery and row.recovery.falls:
        epochs = "–" if row.recovery.epochs is None else f"{row.recovery.epochs:.1f}"
        line.append(f"{epochs} ({row.recovery.back} of {row.recovery.falls})")
    else:
        line.append("–")
    line += [f"{value / 1e6:.2f}" for value in row.bytes] if row.bytes else ["–", "–"]
    return [*line, "–" if row.seconds is None else f"{row.seconds / 60:.1f}"]


def to_markdown(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the table as Markdown, with its legend."""
    heads, body = cells(rows, classes)
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in (heads, *body)]
    escaped.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + f"\n\n{legend(rows)}\n"


LATEX = str.maketrans({
    **{letter: f"\\{letter}" for letter in "&#$%_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "|": r"\textbar{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "–": "--",
})  # fmt: skip


def to_latex(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the table as a LaTeX ``tabular``, with its legend below."""
    heads, body = cells(rows, classes)
    lines = [" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (heads, *body)]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}"
    table = [begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]
    return "\n".join([*table, "", rf"\par{{\footnotesize {legend(rows).translate(LATEX)}\par}}", ""])


def legend(rows: Sequence[Row]) -> str:
    """Return what the marks and intervals of the table mean."""
    seeds = max(row.seeds for row in rows)
    spread = f"mean ± half the 95 % t-interval over {seeds} seeds" if seeds > 1 else "one seed"
    lines = [f"Percent; {spread}.", "'95 % of images': bootstrap over test images, seeds averaged."]
    if seeds > 1:
        lines.append(
            "p: difference to PRR-FL, the larger of a paired bootstrap over test images and a paired t-test "
            "over the seeds that both ran, Holm-corrected."
        )
    else:
        lines.append("p: difference to PRR-FL, paired bootstrap over test images, Holm-corrected.")
    if seeds == 1 or any(test.seeds is None for row in rows for test in row.tests.values()):
        lines.append("One common seed says nothing of other trainings: p is then of the images alone.")
    lines.append("* best mean; = not significantly different from the best: a tie.")
    if partial := [row.method for row in rows if not row.complete]:
        lines.append(f"Marked only among methods that ran every seed, thus without {', '.join(partial)}.")
    lines += [
        "Scores are of the best round on validation among the last 20 %.",
        "Drop: fall of the deployed network at a communication, in points; mean of rounds, sites, seeds.",
        "Epochs to recover: local epochs until macro-F1 was back, mean over the falls that came back, and "
        "how many did; falls of the last round, after which nothing can come back, are left out.",
    ]
    return " ".join(lines)


def bands(runs: Sequence[Run], epochs: int, measure: str) -> dict[str, Band]:
    """Return each method's curve of one measure: mean and range over seeds, of the mean of sites."""
    return {
        method: band([curve(r.records, None, None, measure, epochs) for r in runs if r.method == method])
        for method in dict.fromkeys(run.method for run in runs)
    }


def draw_comparison(runs: Sequence[Run], epochs: int, path: Path) -> None:
    """Write the retrogress curves of all methods as PNG: means over sites, with bands over seeds.

    Args:
        runs: finished runs.
        epochs: local epochs in each round.
        path: the PNG to write.
    """
    save(comparison_figure(runs, epochs), path)


def comparison_figure(runs: Sequence[Run], epochs: int) -> Figure:
    """Return the figure of :func:`draw_comparison`."""
    styles = of_methods(list(dict.fromkeys(run.method for run in runs)))
    many = len(styles) > 5
    figure = Figure(figsize=(13 if many else 11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, label) in zip(axes, MEASURES, strict=True):
        draw_bands(axis, bands(runs, epochs, name), styles, label)
    handles, labels = axes[0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside right center"} if many else {"loc": "outside lower center"}
    columns = 1 if many else len(styles)
    figure.legend(handles, labels, ncols=columns, frameon=False, handlelength=3.5, **place)
    seeds = len({run.seed for run in runs})
    figure.suptitle(
        "Deployed networks on the test sets, mean of sites"
        + (f", mean and range of {seeds} seeds" if seeds > 1 else ""),
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def draw_bands(
    axis: Axes, lines: Mapping[str, Band], styles: Mapping[str, Style], label: str, name: str | None = None
) -> None:
    """Draw several curves of one measure, PRR-FL's boldest.

    Args:
        axis: where to.
        lines: as :func:`bands` returns them.
        styles: of each line.
        label: of the measure.
        name: identifies the lines in SVG: ``curve-0-macro_f1`` for ``macro_f1``.
    """
    shade = min(0.15, 0.4 / len(lines))  # many ranges over each other are mud
    for index, (method, line) in enumerate(lines.items()):
        width = 2.2 if method == REFERENCE else 1.3
        gid = name and f"curve-{index}-{name}"
        draw(axis, line, styles[method], width, shade=shade, label=method, name=gid)
    axis.set_xlabel("communication round")
    axis.set_ylabel(label)
    dress(axis)


def _with_spread(estimate: Estimate) -> str:
    spread = f" ± {_percent(estimate.seeds)}" if estimate.seeds is not None else ""
    return _percent(estimate.mean) + spread


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
