"""Tables of a comparison as text, their legend, and CSV for programs."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prrfl.reports.comparison import TESTED, Estimate, PairedTest, Row
from prrfl.reports.formatting import p_value, percent
from prrfl.reports.sampled import SENSITIVE
from prrfl.types import ClientId


def comparison_to_csv(rows: Sequence[Row], reference: str) -> str:
    """Return all numbers as tidy CSV: one line per method, site and measure. Fractions.

    Args:
        rows: the comparison.
        reference: the method that the others are tested against.
    """
    text = io.StringIO()
    heads = [
        *("method", "site", "measure", "seeds", "mean", "low", "high", "standard_error", "seeds_ci95"),
        *("images_low", "images_high", "no_interval_because", f"p_against_{reference}", "best"),
        *("not_told_apart", "p", "p_images", "p_seeds", "p_exact", "family_low", "family_high"),
        *("detectable", "p_equivalent"),
    ]
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        common = {"method": row.method, "seeds": row.seeds}
        for key, estimates in row.scores.items():
            for site, e in estimates.items():
                marks = _marks_of(row, key, reference) if site == "mean" and key in TESTED else {}
                writer.writerow({**common, "site": site, "measure": _named(key), **_numbers(e), **marks})
        for key, test in row.tests.items():
            name = f"{_named(key)}_less_{test.against}"
            cells = {"method": row.method, "seeds": test.common, "site": "mean", "measure": name}
            writer.writerow({**cells, **_numbers(test.difference), **_tests_of(test)})
        for key, differences in row.differences.items():
            for site, e in differences.items():
                writer.writerow({**common, "site": site, "measure": f"{key}_less_{reference}", **_numbers(e)})
        for site, fall in row.drops.items():
            mean = {"measure": "drop_macro_f1", "mean": fall.mean, "seeds_ci95": fall.seeds}
            writer.writerow({**common, "site": site, **mean})
            largest = {"measure": "largest_drop_macro_f1", "mean": fall.largest}
            writer.writerow({**common, "site": site, **largest})
        for name, key in (("drop_macro_f1", "f1"), ("drop_auc", "auc")):
            e = row.drop.get(key, Estimate(None))
            cells = {"site": "mean", "measure": name, "mean": e.mean, "seeds_ci95": e.seeds}
            writer.writerow({**common, **cells})
        for name, figure in (
            ("validation_macro_f1", row.validation),
            ("epochs_to_recover", row.recovery and row.recovery.epochs),
            ("epochs_followed", row.recovery and row.recovery.longest),
            ("falls_recovered", row.recovery and row.recovery.back),
            ("falls", row.recovery and row.recovery.falls),
            ("bytes_up", row.bytes and row.bytes[0]),
            ("bytes_down", row.bytes and row.bytes[1]),
            ("seconds", row.seconds),
        ):
            writer.writerow({**common, "site": "mean", "measure": name, "mean": figure})
    return text.getvalue()


def _named(key: str) -> str:
    return "macro_f1" if key == "f1" else key


def _numbers(e: Estimate) -> dict[str, object]:
    low, high = e.interval or (None, None)
    images_low, images_high = e.images or (None, None)
    return {
        "mean": e.mean,
        "low": low,
        "high": high,
        "standard_error": e.error,
        "seeds_ci95": e.seeds,
        "images_low": images_low,
        "images_high": images_high,
        "no_interval_because": e.reason,
    }


def _marks_of(row: Row, key: str, reference: str) -> dict[str, object]:
    return {
        f"p_against_{reference}": row.p.get(key),
        "best": key in row.best,
        "not_told_apart": key in row.untold,
    }


def _tests_of(test: PairedTest) -> dict[str, object]:
    low, high = test.interval or (None, None)
    return {
        "p": test.p,
        "p_images": test.images,
        "p_seeds": test.seeds,
        "p_exact": test.exact,
        "family_low": low,
        "family_high": high,
        "detectable": test.detectable,
        "p_equivalent": test.equivalent,
    }


VALIDATION = "F1 validation"
"""Heading of macro-F1 on validation, beside the scores on test images."""

BOTH = "95 %"
"""Heading of intervals over images and training runs."""


@dataclass(frozen=True)
class Table:
    """A table of text: title, headings, and rows of cells, of which the first names the row."""

    title: str
    heads: Sequence[str]
    body: Sequence[Sequence[str]]


def tables(rows: Sequence[Row], classes: Sequence[str]) -> list[Table]:
    """Return the comparison in tables of percent: scores, differences, classes, sites, retrogress and cost.

    ``*`` marks the best mean of a measure, ``=`` those that are not told apart from it, ``≈`` those that
    equal the reference within the margin. Without the reference there are no tables of differences.
    """
    sites = [site for site in rows[0].f1 if site != "mean"]
    scores = ["method", "seeds"]
    for name in ("F1", "AUC"):
        scores += [f"{name} mean", f"{name} mean, {_level(rows)}"]
    scores.append(VALIDATION)
    costs = ["method", "drop F1", "drop AUC", "worst drop at", "epochs to recover"]
    costs += ["MB up", "MB down", "minutes"]
    by_site = ["method", *(f"{name} {site}" for name in ("F1", "AUC") for site in sites)]
    return [
        Table("Scores (mean of sites)", scores, [_score_cells(row, _level(rows)) for row in rows]),
        *_differences(rows, classes),
        *other_tables(rows),
        _by_class(rows, classes),
        _pooled(rows, classes),
        Table(
            "Per site",
            by_site,
            [[row.method, *(_with_error(e[s]) for e in (row.f1, row.auc) for s in sites)] for row in rows],
        ),
        Table("Retrogress and cost", costs, [_cost_cells(row) for row in rows]),
    ]


def other_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the table of accuracy and of differences between sites, and one of further measures if any."""
    level = _level(rows)
    names = {"accuracy": "accuracy", "worst_f1": "worst site's F1", "spread_f1": "spread of F1"}
    heads = ["method"]
    for name in names.values():
        heads += [name, f"{name}, {level}"]
    found = [
        Table("Accuracy, and how sites differ", heads, [_class_cells(r, names, "mean", level) for r in rows])
    ]
    if further := rows[0].further:
        heads = ["method"]
        for name in further:
            heads += [name, f"{name}, {level}"]
        body = [[row.method, *_plain_cells(row, further)] for row in rows]
        found.append(Table("Further measures (mean of sites)", heads, body))
    return found


def _plain_cells(row: Row, names: Iterable[str]) -> list[str]:
    """Return measures and their intervals as plain numbers, because they need not be fractions."""
    line = []
    for e in (row.scores[name]["mean"] for name in names):
        ends = e.interval or e.images
        line += ["–" if e.mean is None else f"{e.mean:.3f}"]
        line += [f"{ends[0]:.3f} – {ends[1]:.3f}" if ends else "–"]
    return line


def _level(rows: Sequence[Row]) -> str:
    """Return what the intervals of scores cover."""
    return BOTH if max(row.seeds for row in rows) > 1 else "95 % of images"


def _differences(rows: Sequence[Row], classes: Sequence[str]) -> list[Table]:
    """Return the tables of differences to the reference; none without it."""
    reference = reference_of(rows)
    if not reference:
        return []
    heads = ["method"]
    for name in ("F1", "AUC"):
        heads += [f"{name} difference", f"{name} difference, {_family_level(rows)}", f"{name} p"]
        heads += [f"{name} detectable"]
    of_class = ["method"]
    for name in _class_names(classes).values():
        for where in ("", ", pooled"):
            of_class += [f"{name} difference{where}", f"{name} difference{where}, {_level(rows)}"]
    return [
        Table(
            f"Difference to {reference} (mean of sites)",
            heads,
            [[row.method, *_difference_cells(row, _level(rows))] for row in rows],
        ),
        Table(
            f"Difference to {reference} by class",
            of_class,
            [
                [
                    row.method,
                    *(
                        cell
                        for key in _class_names(classes)
                        for site in ("mean", "pooled")
                        for cell in _with_interval(
                            row.differences.get(key, {}).get(site, Estimate(None)), _level(rows)
                        )
                    ),
                ]
                for row in rows
            ],
        ),
    ]


def _family_level(rows: Sequence[Row]) -> str:
    return "together 95 %" if max(row.seeds for row in rows) > 1 else "95 % of images"


def _class_names(classes: Sequence[str]) -> dict[str, str]:
    """Return the names of the measures of each class, by their keys."""
    recall = {f"recall_{k}": f"recall {name}" for k, name in enumerate(classes)}
    return recall | {
        f"{SENSITIVE}_{k}": f"sensitivity {name} at 90 % specificity" for k, name in enumerate(classes)
    }


def _by_class(rows: Sequence[Row], classes: Sequence[str]) -> Table:
    """Return the table of measures that a rare class counts in as much as a frequent one."""
    measures = {"balanced_accuracy": "balanced accuracy"} | _class_names(classes)
    heads = ["method"]
    for key, name in measures.items():
        heads += [name + where_defined(rows[0].scores[key]), f"{name}, {_level(rows)}"]
    return Table(
        "By class (mean of sites)", heads, [_class_cells(row, measures, "mean", _level(rows)) for row in rows]
    )


def _pooled(rows: Sequence[Row], classes: Sequence[str]) -> Table:
    """Return the table of measures of a class over the images of all sites together."""
    measures = _class_names(classes)
    heads = ["method"]
    for name in measures.values():
        heads += [f"{name}, pooled", f"{name}, pooled, {_level(rows)}"]
    title = "By class (images of all sites pooled)"
    return Table(title, heads, [_class_cells(row, measures, "pooled", _level(rows)) for row in rows])


def where_defined(estimates: Mapping[str, Estimate]) -> str:
    """Return at how many sites a measure is defined, and thus averaged; empty for all of them."""
    sites = [estimate for site, estimate in estimates.items() if site not in ("mean", "pooled")]
    defined = sum(estimate.mean is not None for estimate in sites)
    return "" if defined == len(sites) else f" ({defined} of {len(sites)} sites)"


def reference_of(rows: Sequence[Row]) -> str:
    """Return the method that others were tested against; empty if none was."""
    return next((test.against for row in rows for test in row.tests.values()), "")


def brief(rows: Sequence[Row]) -> Table:
    """Return a table that fits a terminal: only the means, marked as in :func:`tables`."""

    def mean(row: Row, key: str, estimates: Mapping[ClientId, Estimate]) -> str:
        return percent(estimates["mean"].mean) + row.mark(key)

    return Table(
        "Mean of sites (%)",
        ("method", VALIDATION, "F1", "p", "AUC", "p", "drop F1", "MB up"),
        [
            [
                row.method,
                percent(row.validation),
                mean(row, "f1", row.f1),
                p_value(row.p.get("f1")),
                mean(row, "auc", row.auc),
                p_value(row.p.get("auc")),
                percent(row.drop["f1"].mean) if row.drop else "–",
                f"{row.bytes[0] / 1e6:.2f}" if row.bytes else "–",
            ]
            for row in rows
        ],
    )


def _score_cells(row: Row, level: str) -> list[str]:
    line = [row.method, str(row.seeds or "–")]
    for key, estimates in (("f1", row.f1), ("auc", row.auc)):
        mean, interval = _with_interval(estimates["mean"], level)
        line += [mean + row.mark(key), interval]
    return [*line, percent(row.validation)]


def _class_cells(row: Row, measures: Iterable[str], site: str, level: str) -> list[str]:
    estimates = [row.scores[key][site] for key in measures]
    return [row.method, *(cell for e in estimates for cell in _with_interval(e, level))]


def _difference_cells(row: Row, level: str) -> list[str]:
    line = []
    for key in ("f1", "auc"):
        test = row.tests.get(key)
        if test is None:
            line += ["–"] * 4
            continue
        equal = "≈" if test.is_equivalent else ""
        images = test.difference.images if test.common == 1 else None
        line += [
            percent(test.difference.mean) + equal,
            _interval(test.interval or images) + (" (images)" if images and level == BOTH else ""),
            p_value(row.p.get(key)),
            percent(test.detectable),
        ]
    return line


def _with_interval(e: Estimate, level: str) -> tuple[str, str]:
    """Return a mean and its interval, marked if it covers less than the heading tells."""
    less = " (images)" if level == BOTH and e.interval is None and e.images else ""
    return percent(e.mean), _interval(e.interval or e.images) + less


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{percent(ends[0])} – {percent(ends[1])}" if ends else "–"


def _cost_cells(row: Row) -> list[str]:
    line = [row.method]
    line += [_with_spread(row.drop.get(key, Estimate(None))) for key in ("f1", "auc")]
    line.append(f"{row.worst} ({100 * row.drops[row.worst].mean:.1f})" if row.worst is not None else "–")
    if row.recovery and row.recovery.falls:
        epochs = f"> {row.recovery.longest}" if row.recovery.epochs is None else f"{row.recovery.epochs:g}"
        line.append(f"{epochs} ({row.recovery.back} of {row.recovery.falls})")
    else:
        line.append("–")
    line += [f"{value / 1e6:.2f}" for value in row.bytes] if row.bytes else ["–", "–"]
    return [*line, "–" if row.seconds is None else f"{row.seconds / 60:.1f}"]


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
    if seeds > 1:
        lines = [
            f"Percent; mean over {seeds} seeds. 95 %: interval over other test images and other training "
            "runs. Images are resampled by lesion or patient where known. "
            "(images): it covers test images only, as for a single seed and the last row. "
            "± is half the interval, for drops half the 95 % t-interval over seeds."
        ]
    else:
        lines = [
            "Percent; one seed. 95 % of images: interval over other test images, by lesion or patient where "
            "known. It says nothing about other training runs, so methods are neither tested nor marked; "
            "train at least three seeds for that."
        ]
    if seeds == 2:
        lines.append(
            "Two seeds: the spread of training runs is known from one difference, so intervals are very wide "
            "and only very large differences are found; train at least three seeds, better five."
        )
    lines += _legend_of_differences(rows)
    if seeds > 1:
        lines.append(
            "* best mean; = not told apart from the best (all pairs and both measures, Holm-corrected), "
            "which does not mean that they are equal."
        )
        if partial := [row.method for row in rows if not row.complete]:
            lines.append(f"Marks compare methods that ran every seed, thus without {', '.join(partial)}.")
    if reasons := {e.reason for row in rows for of in row.scores.values() for e in of.values() if e.reason}:
        lines.append(f"Scores without an interval: {'; or '.join(sorted(reasons))}.")
    lines += [
        RECALL,
        SENSITIVITY,
        "The mean of a class's measure is over the sites where it is defined: those whose test images show "
        "the class, and for sensitivity also another one. Pooled: over the images of all these sites, each "
        "with its own network and threshold. Measures by class are not corrected for their number.",
        "Scores are those of the best round on validation among the last 20 %.",
        "Drop: fall of the deployed network at a communication, in points; mean of sites, seeds. The worst "
        "drop is named only if its interval over seeds, corrected for the number of sites, excludes 0.",
        "Epochs to recover: local epochs until half of the drops in macro-F1 were back (Kaplan-Meier), and "
        "how many were before the run's end; > n if fewer than half came back within n epochs. Drops of the "
        "last round are left out, because no epoch follows them.",
    ]
    return " ".join(lines)


def _legend_of_differences(rows: Sequence[Row]) -> list[str]:
    reference = reference_of(rows)
    if not reference:
        return []
    tests = [test for row in rows for test in row.tests.values()]
    lines = [f"Difference: to {reference}, over the seeds that both ran."]
    size = sum(test.interval is not None for test in tests)
    if size:
        lines.append(
            "p: over other images and other training runs, Holm-corrected over methods and both measures "
            f"({size} tests). Together 95 %: intervals that cover all these differences at once. Detectable: "
            "the smallest difference that this comparison finds with a probability of 80 %."
        )
    if margin := next((test.margin for test in tests if test.margin is not None), None):
        lines.append(
            f"≈ equal to {reference} within {100 * margin:g} points (two one-sided tests, Holm-corrected)."
        )
    if any(test.common == 1 for test in tests):
        lines.append("With one common seed there is no test, and the interval covers test images only.")
    return lines


def _with_error(e: Estimate) -> str:
    """Return a mean ± half its interval over images and training runs."""
    half = None if e.interval is None else (e.interval[1] - e.interval[0]) / 2
    return percent(e.mean) + (f" ± {percent(half)}" if half is not None else "")


def _with_spread(estimate: Estimate) -> str:
    spread = f" ± {percent(estimate.seeds)}" if estimate.seeds is not None else ""
    return percent(estimate.mean) + spread
