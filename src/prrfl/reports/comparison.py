"""Methods side by side: one table with intervals and paired tests, and one figure."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prrfl.reports.meter import measure, worst_site
from prrfl.reports.retrogress import MEASURES, curve, save
from prrfl.reports.statistics import (
    Floats,
    holm,
    macro_auc,
    macro_f1,
    paired_p,
    percentile_interval,
    resamples,
    seed_interval,
)
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
class Row:
    """One method in the table.

    Attributes:
        f1: macro-F1 by site, and under ``mean`` the unweighted mean of sites; ``auc`` likewise.
        recall: per class, mean over the sites that show it and over seeds.
        p: per measure, Holm-corrected p-value of the paired bootstrap against PRR-FL, over the seeds that
            both ran; ``None`` for itself, and where they have no seed in common.
        best: measures in which no other method's mean is higher.
        tied: measures in which the best method is not significantly better than this one.
        drop: mean fall of the deployed network at a communication: macro-F1 and AUC.
        recovery: mean number of local epochs to get back, over the communications after which it did.
        bytes: sent per site and round, up and down.
    """

    method: str
    seeds: int
    f1: Mapping[str, Estimate]
    auc: Mapping[str, Estimate]
    recall: tuple[float | None, ...]
    p: Mapping[str, float | None]
    best: frozenset[str] = frozenset()
    tied: frozenset[str] = frozenset()
    drop: tuple[float, float | None] | None = None
    recovery: float | None = None
    worst: ClientId = ""
    bytes: tuple[float, float] | None = None
    seconds: float | None = None


Resampled = dict[str, dict[str, dict[int, dict[str, Floats]]]]
"""Bootstrap scores by method, measure, seed and site; the first of each is that of the test set itself."""


def compare(runs: Sequence[Run], draws: int = 2000, seed: int = 0) -> list[Row]:
    """Return one row per method, and at the end the row of always answering the most frequent class.

    The same bootstrap samples of each site's test images serve all methods and seeds, so that differences
    are paired: what is uncertain in both cancels. Seeds are not resampled; their spread stands beside.

    Args:
        runs: finished runs on the same data, any number of seeds for each method.
        draws: bootstrap samples.
        seed: of the bootstrap.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    sites = sorted(runs[0].predictions)
    rng = np.random.default_rng(seed)
    truth = {site: runs[0].predictions[site].labels.numpy() for site in sites}
    # The first sample is the test set itself, so that scores and intervals come out of one calculation.
    counts = {s: np.vstack([np.ones(len(truth[s])), resamples(truth[s], draws, rng)]) for s in sites}
    scores: Resampled = {}
    for run in runs:
        for name in ("f1", "auc"):
            of_sites = {s: _resampled(name, counts[s], run.predictions[s]) for s in sites}
            scores.setdefault(run.method, {}).setdefault(name, {})[run.seed] = _with_mean(of_sites)
    rows = [_row(method, [r for r in runs if r.method == method], scores[method]) for method in methods]
    rows = _tested(rows, scores)
    return [*rows, _majority(truth, runs[0].predictions)]


def _resampled(name: str, counts: Floats, predictions: Predictions) -> Floats:
    labels, values = predictions.labels.numpy(), predictions.probabilities.numpy()
    return macro_f1(counts, labels, values.argmax(1)) if name == "f1" else macro_auc(counts, labels, values)


def _with_mean(sites: dict[str, Floats]) -> dict[str, Floats]:
    defined = [values for values in sites.values() if not np.isnan(values).any()]
    return {**sites, "mean": np.mean(defined, axis=0) if defined else next(iter(sites.values()))}


def _estimate(seeds: Sequence[Floats]) -> Estimate:
    values = [float(run[0]) for run in seeds]
    if np.isnan(values).any():
        return Estimate(None)
    return Estimate(fmean(values), seed_interval(values), percentile_interval(np.mean(seeds, axis=0)[1:]))


def _row(method: str, runs: Sequence[Run], scores: Mapping[str, Mapping[int, Mapping[str, Floats]]]) -> Row:
    f1, auc = (list(scores[name].values()) for name in ("f1", "auc"))
    drops = [d for run in runs for d in measure(run.records) if d.deployed]
    aucs = [d.auc for d in drops if d.auc is not None]
    back = [d.recovered_after for d in drops if d.recovered_after is not None]
    exchanges = [r for run in runs for r in run.records if isinstance(r, ExchangeRecord)]
    return Row(
        method=method,
        seeds=len(runs),
        f1={site: _estimate([s[site] for s in f1]) for site in f1[0]},
        auc={site: _estimate([s[site] for s in auc]) for site in auc[0]},
        recall=_recall([p for run in runs for p in run.predictions.values()]),
        p={},
        drop=(fmean(d.f1 for d in drops), fmean(aucs) if aucs else None),
        recovery=fmean(back) if back else None,
        worst=worst_site(drops),
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


def _p_values(of: str, others: Sequence[str], scores: Resampled, name: str) -> list[float | None]:
    """Return the Holm-corrected p-value of one method against each other, over the seeds that both ran."""

    def p(other: str) -> float | None:
        mine, theirs = scores[of][name], scores[other][name]
        if common := mine.keys() & theirs.keys():
            return paired_p(
                np.mean([mine[s]["mean"] - theirs[s]["mean"] for s in sorted(common)], axis=0)[1:]
            )
        return None

    found = {other: p(other) for other in others}
    corrected = iter(holm([value for value in found.values() if value is not None]))
    return [None if value is None else next(corrected) for value in found.values()]


def _tested(rows: Sequence[Row], scores: Resampled) -> list[Row]:
    """Return the rows with p-values against PRR-FL, the best of each measure, and who is tied with it."""
    p: dict[str, dict[str, float | None]] = {row.method: {} for row in rows}
    best: dict[str, set[str]] = {row.method: set() for row in rows}
    tied: dict[str, set[str]] = {row.method: set() for row in rows}
    for name in ("f1", "auc"):
        means = {row.method: fmean(s["mean"][0] for s in scores[row.method][name].values()) for row in rows}
        top = max(means.values())
        winner = next(method for method, value in means.items() if value == top)
        for method, value in means.items():
            if value == top:
                best[method].add(name)
        others = [m for m in means if m != winner]
        for method, p_tie in zip(others, _p_values(winner, others, scores, name), strict=True):
            if p_tie is not None and p_tie >= LEVEL:
                tied[method].add(name)
                tied[winner].add(name)
        if REFERENCE in means:
            others = [m for m in means if m != REFERENCE]
            p[REFERENCE][name] = None
            for method, p_ours in zip(others, _p_values(REFERENCE, others, scores, name), strict=True):
                p[method][name] = p_ours
    return [
        Row(**{
            **row.__dict__,
            "p": p[row.method],
            "best": frozenset(best[row.method]),
            "tied": frozenset(tied[row.method]),
        })
        for row in rows
    ]  # fmt: skip


def _majority(truth: Mapping[str, np.ndarray], predictions: Mapping[ClientId, Predictions]) -> Row:
    f1: dict[str, Estimate] = {}
    recall: dict[int, list[float]] = {}
    for site, labels in truth.items():
        frequent = int(np.bincount(labels).argmax())
        f1[site] = Estimate(
            float(macro_f1(np.ones((1, len(labels))), labels, np.full_like(labels, frequent))[0])
        )
        for label in np.unique(labels):
            recall.setdefault(int(label), []).append(float(label == frequent))
    f1["mean"] = Estimate(fmean(e.mean for e in f1.values() if e.mean is not None))
    classes = next(iter(predictions.values())).probabilities.shape[1]
    return Row(
        method="always the most frequent class",
        seeds=0,
        f1=f1,
        auc={site: Estimate(0.5) for site in f1},
        recall=tuple(fmean(recall[k]) if k in recall else None for k in range(classes)),
        p={},
    )


def to_csv(rows: Sequence[Row]) -> str:
    """Return all figures as tidy CSV: one line per method, site and measure. Fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ["method", "site", "measure", "seeds", "mean", "seeds_ci95", "images_low", "images_high"]
    writer.writerow([*heads, "p_against_prrfl", "best", "tied"])
    for row in rows:
        for name, estimates in (("macro_f1", row.f1), ("auc", row.auc)):
            key = "f1" if name == "macro_f1" else "auc"
            for site, e in estimates.items():
                overall = site == "mean"
                low, high = e.images or (None, None)
                writer.writerow([
                    row.method, site, name, row.seeds, e.mean, e.seeds, low, high,
                    row.p.get(key) if overall else None,
                    overall and key in row.best, overall and key in row.tied,
                ])  # fmt: skip
        for name, value in (
            *((f"recall_{k}", value) for k, value in enumerate(row.recall)),
            ("drop_macro_f1", row.drop and row.drop[0]),
            ("drop_auc", row.drop and row.drop[1]),
            ("epochs_to_recover", row.recovery),
            ("bytes_up", row.bytes and row.bytes[0]),
            ("bytes_down", row.bytes and row.bytes[1]),
            ("seconds", row.seconds),
        ):
            writer.writerow([row.method, "mean", name, row.seeds, value, *[None] * 6])
    return text.getvalue()


def cells(
    rows: Sequence[Row], classes: Sequence[str], plus_minus: str = "±"
) -> tuple[list[str], list[list[str]]]:
    """Return the table for people: headings, and each row's cells in percent.

    ``*`` marks the best mean of a measure, ``=`` those that are not significantly behind it.
    """
    sites = [site for site in rows[0].f1 if site != "mean"]
    heads = ["method"]
    for name in ("F1", "AUC"):
        heads += [f"{name} mean", f"{name} mean, 95 % of images", f"{name} p"]
    heads += ["drop F1", "drop AUC", "worst drop at", "epochs to recover", "MB up", "MB down", "minutes"]
    heads += [f"recall {name}" for name in classes]
    heads += [f"{name} {site}" for name in ("F1", "AUC") for site in sites]
    body = []
    for row in rows:
        line = [row.method]
        for key, estimates in (("f1", row.f1), ("auc", row.auc)):
            mark = "*" * (key in row.best) + "=" * (key in row.tied)
            line.append(_with_spread(estimates["mean"], plus_minus) + mark)
            interval = estimates["mean"].images
            line.append(f"{_percent(interval[0])} – {_percent(interval[1])}" if interval else "–")
            p = row.p.get(key)
            line.append("–" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001")
        line += [_percent(row.drop[0]), _percent(row.drop[1])] if row.drop else ["–", "–"]
        line.append(row.worst or "–")
        line.append("–" if row.recovery is None else f"{row.recovery:.1f}")
        line += [f"{value / 1e6:.2f}" for value in row.bytes] if row.bytes else ["–", "–"]
        line.append("–" if row.seconds is None else f"{row.seconds / 60:.1f}")
        line += [_percent(value) for value in row.recall]
        line += [_with_spread(e[site], plus_minus) for e in (row.f1, row.auc) for site in sites]
        body.append(line)
    return heads, body


def to_markdown(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the table as Markdown, with its legend."""
    heads, body = cells(rows, classes)
    lines = [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *body)]
    return "\n".join(lines) + f"\n\n{legend(rows)}\n"


def to_latex(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the table as a LaTeX ``tabular``."""
    heads, body = cells(rows, classes, plus_minus=r"$\pm$")
    escape = str.maketrans({"_": r"\_", "%": r"\%", "<": r"$<$", "–": "--"})
    lines = [" & ".join(line).translate(escape) + r" \\" for line in (heads, *body)]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}"
    return "\n".join([begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}", ""])


def legend(rows: Sequence[Row]) -> str:
    """Return what the marks and intervals of the table mean."""
    seeds = max(row.seeds for row in rows)
    spread = f"mean ± half the 95 % t-interval over {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f"Percent; {spread}. '95 % of images': stratified bootstrap over test images, seeds averaged. "
        "p: paired bootstrap over test images against PRR-FL, Holm-corrected; it does not cover the spread "
        "of seeds. * best mean; = not significantly different from the best: a tie. Scores are of the best "
        "round on validation among the last 20 %. Drop: fall of the deployed network at a communication, in "
        "points."
    )


def draw_comparison(runs: Sequence[Run], epochs: int, path: Path) -> None:
    """Write the retrogress curves of all methods as PNG: means over sites, with bands over seeds.

    Args:
        runs: finished runs.
        epochs: local epochs in each round.
        path: the PNG to write.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, label) in zip(axes, MEASURES, strict=True):
        for index, method in enumerate(methods):
            curves = [curve(run.records, None, None, name, epochs) for run in runs if run.method == method]
            at = [x for x, _ in curves[0]]
            values = np.array([[y for _, y in points] for points in curves])
            bold = method == REFERENCE
            (line,) = axis.plot(
                at,
                values.mean(0),
                label=method,
                color=f"C{index}",
                linewidth=2.2 if bold else 1.2,
                zorder=3 if bold else 2,
            )
            axis.fill_between(
                at, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0
            )
        axis.set_xlabel("communication round")
        axis.set_ylabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(methods)), frameon=False)
    seeds = len({run.seed for run in runs})
    figure.suptitle(
        "Deployed networks on the test sets, mean of sites"
        + (f", mean and range of {seeds} seeds" if seeds > 1 else ""),
        x=0.01,
        ha="left",
        fontsize=11,
    )
    save(figure, path)


def _with_spread(estimate: Estimate, plus_minus: str) -> str:
    spread = f" {plus_minus} {_percent(estimate.seeds)}" if estimate.seeds is not None else ""
    return _percent(estimate.mean) + spread


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
