"""Tables of a comparison: for the terminal, the page, Markdown and LaTeX, and CSV for programs."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prrfl.reports.comparison import TESTED, Estimate, Row
from prrfl.reports.formatting import percent
from prrfl.types import ClientId


def comparison_to_csv(rows: Sequence[Row], reference: str) -> str:
    """Return all numbers as tidy CSV: one line per method, site and measure. Fractions.

    Args:
        rows: the comparison.
        reference: the method that the others are tested against.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ["method", "site", "measure", "seeds", "mean", "seeds_ci95", "images_low", "images_high"]
    heads += [f"p_against_{reference}", "best", "not_told_apart", "p_images", "p_seeds"]
    writer.writerow(heads)
    for row in rows:
        for key, estimates in row.scores.items():
            name = "macro_f1" if key == "f1" else key
            for site, e in estimates.items():
                overall = site == "mean"
                low, high = e.images or (None, None)
                test = row.tests.get(key) if overall else None
                marks = [overall and key in row.best, overall and key in row.untold]
                writer.writerow([
                    row.method, site, name, row.seeds, e.mean, e.seeds, low, high,
                    row.p.get(key) if overall else None,
                    *(marks if key in TESTED else (None, None)),
                    test and test.images, test and test.seeds,
                ])  # fmt: skip
            if test := row.tests.get(key):
                e = test.difference
                low, high = e.images or (None, None)
                cells = [f"{name}_less_{test.against}", test.common, e.mean, e.seeds, low, high]
                writer.writerow([row.method, "mean", *cells, *[None] * 5])
        for site, fall in row.drops.items():
            writer.writerow(
                [row.method, site, "drop_macro_f1", row.seeds, fall.mean, fall.seeds, *[None] * 7]
            )
            writer.writerow([row.method, site, "largest_drop_macro_f1", row.seeds, fall.largest, *[None] * 8])
        for name, key in (("drop_macro_f1", "f1"), ("drop_auc", "auc")):
            e = row.drop.get(key, Estimate(None))
            writer.writerow([row.method, "mean", name, row.seeds, e.mean, e.seeds, *[None] * 7])
        for name, figure in (
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
    """A table of text: title, headings, and rows of cells, of which the first names the row."""

    title: str
    heads: Sequence[str]
    body: Sequence[Sequence[str]]


def tables(rows: Sequence[Row], classes: Sequence[str]) -> list[Table]:
    """Return the comparison in tables of percent: scores, differences, classes, sites, retrogress and cost.

    ``*`` marks the best mean of a measure, ``=`` those that are not told apart from it. Without the reference
    there is no table of differences.
    """
    sites = [site for site in rows[0].f1 if site != "mean"]
    scores = ["method", "seeds"]
    differences = ["method"]
    for name in ("F1", "AUC"):
        scores += [f"{name} mean", f"{name} mean, 95 % of images"]
        differences += [f"{name} difference", f"{name} difference, 95 % of images", f"{name} p"]
    costs = ["method", "drop F1", "drop AUC", "worst drop at", "epochs to recover"]
    costs += ["MB up", "MB down", "minutes"]
    by_site = ["method", *(f"{name} {site}" for name in ("F1", "AUC") for site in sites)]
    reference = _reference(rows)
    against = Table(
        f"Difference to {reference} (mean of sites)", differences, [_difference_cells(row) for row in rows]
    )
    return [
        Table("Scores (mean of sites)", scores, [_score_cells(row) for row in rows]),
        *([against] if reference else []),
        _by_class(rows, classes),
        Table(
            "Per site",
            by_site,
            [[row.method, *(_with_spread(e[s]) for e in (row.f1, row.auc) for s in sites)] for row in rows],
        ),
        Table("Retrogress and cost", costs, [_cost_cells(row) for row in rows]),
    ]


def _by_class(rows: Sequence[Row], classes: Sequence[str]) -> Table:
    """Return the table of measures that a rare class counts in as much as a frequent one."""
    measures = {"balanced_accuracy": "balanced accuracy"}
    measures |= {f"recall_{k}": f"recall {name}" for k, name in enumerate(classes)}
    measures |= {
        f"sensitivity_at_90_specificity_{k}": f"sensitivity {name} at 90 % specificity"
        for k, name in enumerate(classes)
    }
    heads = ["method"]
    for key, name in measures.items():
        heads += [name + _where_defined(rows[0].scores[key]), f"{name}, 95 % of images"]
    return Table("By class (mean of sites)", heads, [_class_cells(row, measures) for row in rows])


def _where_defined(estimates: Mapping[str, Estimate]) -> str:
    """Return at how many sites a measure is defined, and thus averaged; empty for all of them."""
    sites = [estimate for site, estimate in estimates.items() if site != "mean"]
    defined = sum(estimate.mean is not None for estimate in sites)
    return "" if defined == len(sites) else f" ({defined} of {len(sites)} sites)"


def _reference(rows: Sequence[Row]) -> str:
    """Return the method that others were tested against; empty if none was."""
    return next((test.against for row in rows for test in row.tests.values()), "")


def brief(rows: Sequence[Row]) -> Table:
    """Return a table that fits a terminal: only the means, marked as in :func:`tables`."""

    def mean(row: Row, key: str, estimates: Mapping[ClientId, Estimate]) -> str:
        return percent(estimates["mean"].mean) + _marks(row, key)

    return Table(
        "Mean of sites (%)",
        ("method", "F1", "p", "AUC", "p", "drop F1", "MB up"),
        [
            [
                row.method,
                mean(row, "f1", row.f1),
                _p(row.p.get("f1")),
                mean(row, "auc", row.auc),
                _p(row.p.get("auc")),
                percent(row.drop["f1"].mean) if row.drop else "–",
                f"{row.bytes[0] / 1e6:.2f}" if row.bytes else "–",
            ]
            for row in rows
        ],
    )


def cells(rows: Sequence[Row], classes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the tables of :func:`tables` joined to one: its headings, and its rows."""
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
        line.append(_with_spread(estimates["mean"]) + _marks(row, key))
        line.append(_interval(estimates["mean"]))
    return line


def _class_cells(row: Row, measures: Iterable[str]) -> list[str]:
    line = [row.method]
    for key in measures:
        mean = row.scores[key]["mean"]
        line += [_with_spread(mean), _interval(mean)]
    return line


def _difference_cells(row: Row) -> list[str]:
    line = [row.method]
    for key in ("f1", "auc"):
        difference = row.tests[key].difference if key in row.tests else Estimate(None)
        line += [_with_spread(difference), _interval(difference), _p(row.p.get(key))]
    return line


def _interval(estimate: Estimate) -> str:
    return f"{percent(estimate.images[0])} – {percent(estimate.images[1])}" if estimate.images else "–"


def _marks(row: Row, key: str) -> str:
    return "*" * (key in row.best) + "=" * (key in row.untold)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _cost_cells(row: Row) -> list[str]:
    line = [row.method]
    line += [_with_spread(row.drop.get(key, Estimate(None))) for key in ("f1", "auc")]
    line.append(f"{row.worst} ({100 * row.drops[row.worst].mean:.1f})" if row.worst is not None else "–")
    if row.recovery and row.recovery.falls:
        epochs = "–" if row.recovery.epochs is None else f"{row.recovery.epochs:.1f}"
        line.append(f"{epochs} ({row.recovery.back} of {row.recovery.falls})")
    else:
        line.append("–")
    line += [f"{value / 1e6:.2f}" for value in row.bytes] if row.bytes else ["–", "–"]
    return [*line, "–" if row.seconds is None else f"{row.seconds / 60:.1f}"]


def to_markdown(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the joined table as Markdown, with its legend."""
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
    """Return the joined table as a LaTeX ``tabular``, with its legend below."""
    heads, body = cells(rows, classes)
    lines = [" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (heads, *body)]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}"
    table = [begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]
    return "\n".join([*table, "", rf"\par{{\footnotesize {legend(rows).translate(LATEX)}\par}}", ""])


RECALL = (
    "Recall: fraction of a class's images that are classified correctly. "
    "Balanced accuracy: mean of the recalls of the classes that a test set shows."
)
SENSITIVITY = (
    "Sensitivity at 90 % specificity: largest fraction of a class's images that reach a threshold on its "
    "probability which at most 10 % of the other images reach."
)


def legend(rows: Sequence[Row]) -> str:
    """Return the legend, which explains marks and intervals."""
    seeds = max(row.seeds for row in rows)
    spread = f"mean ± half the 95 % t-interval over {seeds} seeds" if seeds > 1 else "one seed"
    lines = [
        f"Percent; {spread}.",
        "'95 % of images': bootstrap over test images, by lesion or patient where known, seeds averaged.",
    ]
    reference = _reference(rows)
    if reference and seeds > 1:
        lines.append(
            f"Difference: to {reference}, over the seeds that both ran; p, the larger of a paired bootstrap "
            "over test images and a paired t-test over seeds, Holm-corrected."
        )
    elif reference:
        lines.append(f"Difference: to {reference}; p, paired bootstrap over test images, Holm-corrected.")
    if seeds == 1 or any(test.seeds is None for row in rows for test in row.tests.values()):
        lines.append(
            "With one common seed, or the same difference for every seed, p covers test images only: it says "
            "nothing about other trainings."
        )
    lines.append("* best mean; = not told apart from the best, which does not mean that they are equal.")
    if partial := [row.method for row in rows if not row.complete]:
        lines.append(f"Marks compare methods that ran every seed, thus without {', '.join(partial)}.")
    lines += [
        RECALL,
        SENSITIVITY,
        "The mean of a class's measure is over the sites where it is defined: those whose test images show "
        "the class, and for sensitivity also another one.",
        "Scores are those of the best round on validation among the last 20 %.",
        "Drop: fall of the deployed network at a communication, in points; mean of rounds, sites, seeds.",
        "Epochs to recover: local epochs until macro-F1 was back, mean over the drops that recovered, and "
        "how many did; drops of the last round are left out, because no epoch follows them.",
    ]
    return " ".join(lines)


def _with_spread(estimate: Estimate) -> str:
    spread = f" ± {percent(estimate.seeds)}" if estimate.seeds is not None else ""
    return percent(estimate.mean) + spread
