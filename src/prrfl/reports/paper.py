"""Tables for a paper: chosen methods and measures, one decimal, captions that can go to print."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from prrfl.reports.comparison import Estimate, Row
from prrfl.reports.formatting import counted
from prrfl.reports.latex import COLUMN_GAP, TEXT_WIDTH, escaped, floating, panels, row_names, tabular, width
from prrfl.reports.sampled import OVER_SITES, SENSITIVE
from prrfl.reports.tables import SENSITIVITY, reference_of
from prrfl.reports.uncertainty import LEVEL
from prrfl.types import ClientId


@dataclass(frozen=True)
class Metric:
    """A measure of the table.

    Attributes:
        key: its name in :attr:`prrfl.reports.comparison.Row.scores`.
        label: its name in print.
        head: how sites are summed up.
        plain: whether it is printed as it is, because it need not be a fraction.
    """

    key: str
    label: str
    head: str = "mean of sites"
    plain: bool = False

    @property
    def by_site(self) -> bool:
        """Whether each site has a value."""
        return self.key not in OVER_SITES


def metrics_of(classes: Sequence[str], further: Iterable[str] = ()) -> dict[str, Metric]:
    """Return all measures that a paper can show, by the names that a user gives.

    Args:
        classes: names of the classes.
        further: names of the comparison's further measures.
    """
    found = {
        "f1": Metric("f1", "Macro-F1"),
        "auc": Metric("auc", "AUC"),
        "accuracy": Metric("accuracy", "Accuracy"),
        "balanced_accuracy": Metric("balanced_accuracy", "Balanced accuracy"),
        "worst_f1": Metric("worst_f1", "Macro-F1", "worst site"),
        "spread_f1": Metric("spread_f1", "Macro-F1", "spread of sites"),
    }
    found |= {f"recall_{name}": Metric(f"recall_{k}", f"Recall {name}") for k, name in enumerate(classes)}
    found |= {
        f"sensitivity_{name}": Metric(f"{SENSITIVE}_{k}", f"Sensitivity {name}")
        for k, name in enumerate(classes)
    }
    return found | {name: Metric(name, name, plain=True) for name in further if name not in found}


@dataclass(frozen=True)
class Number:
    """A number of a table. A fraction, unless its column is plain.

    Attributes:
        value: ``None`` is printed as a dash.
        ends: of its interval, if it has one.
        bold: whether it is the best one.
        marks: signs after it.
    """

    value: float | None
    ends: tuple[float, float] | None = None
    bold: bool = False
    marks: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table; neighbours of one group share its heading. Not in percent if it is plain."""

    group: str
    head: str
    entries: Sequence[Number]
    plain: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table for print.

    Attributes:
        label: for references.
        caption: one or two sentences.
        corner: heading of the names of rows.
        names: of the rows.
        foot: number of last rows that are set apart.
    """

    label: str
    caption: str
    corner: str
    names: Sequence[str]
    columns: Sequence[Column]
    foot: int = 0


@dataclass(frozen=True)
class Subject:
    """What was tested: the words that every caption needs.

    Attributes:
        images: number of test images by site.
        classes: their names.
        seeds: number of training runs of each method.
        groups: whether intervals are over lesions or patients.
        generated: whether the images are generated.
        of: number of methods in the comparison, which may be more than are shown; 0 for a run.
    """

    images: Mapping[ClientId, int]
    classes: Sequence[str]
    seeds: int
    groups: bool
    generated: bool
    of: int = 0

    def __str__(self) -> str:
        """Return the data and the seeds in words."""
        sites = len(self.images)
        each = ", ".join(f"{site} {count}" for site, count in self.images.items())
        return (
            f"{sum(self.images.values())} {'generated ' if self.generated else ''}test images of "
            f"{len(self.classes)} classes at {sites} site{'s' * (sites > 1)}"
            + (f" ({each})" if 1 < sites <= 6 else "")
            + f", {counted(self.seeds, 'seed')}"
        )

    @property
    def resampled(self) -> str:
        """What intervals over images resample."""
        return "lesions or patients" if self.groups else "test images"

    @property
    def interval(self) -> str:
        """What an interval covers."""
        more = "" if self.seeds == 1 else " and training runs"
        return f"95% intervals over {self.resampled}{more}"


def comparison_tables(rows: Sequence[Row], metrics: Sequence[Metric], subject: Subject) -> list[PaperTable]:
    """Return the table of means over sites, with differences to the reference, and that of each site.

    Args:
        rows: of :func:`prrfl.reports.comparison.compare`, the methods that are shown.
        metrics: the measures that are shown, in this order.
        subject: what was tested.
    """
    reference = reference_of(rows)
    names, foot = [row.method for row in rows], sum(row.seeds == 0 for row in rows)
    at_sites = [metric for metric in metrics if metric.by_site]
    columns = []
    for metric in metrics:
        scores = [_score(row, metric.key) for row in rows]
        columns.append(Column(metric.label, metric.head, scores, metric.plain))
        if any(metric.key in row.tests for row in rows):
            gaps = [_difference(row, metric.key) for row in rows]
            columns.append(Column(metric.label, _gap(reference), gaps))
    sites = [
        Column(metric.label, site, [_entry(row.scores[metric.key][site]) for row in rows], metric.plain)
        for metric in at_sites
        for site in subject.images
    ]
    caption = f"Scores on {subject}, mean of sites{_unit(metrics)}, with {subject.interval}. "
    by_site = (
        f"Scores of each site{_unit(at_sites)}, {subject}, with {subject.interval}"
        f"{_gaps_of(sites)}. {_sentence(_rows_apart(rows, subject))}{_defined(at_sites)}"
    )
    tables = [
        PaperTable("tab:scores", caption + _marks(rows, columns, subject, reference) + _defined(metrics),
                   "Method", names, columns, foot),
        PaperTable("tab:sites", by_site, "Method", names, sites, foot),
    ]  # fmt: skip
    return tables if sites else tables[:1]


def run_tables(rows: Sequence[Row], metrics: Sequence[Metric], subject: Subject) -> list[PaperTable]:
    """Return the table of a run: a row for each site and their mean.

    Args:
        rows: the run as the only method of a comparison, and always predicting the most frequent class, if
            that is known.
        metrics: the measures that are shown, in this order.
        subject: what was tested.
    """
    ours, *majority = rows
    sites = [*subject.images, "mean"]
    columns = []
    for metric in metrics:
        columns.append(
            Column(metric.label, ours.method, [_entry(ours.scores[metric.key][site]) for site in sites])
        )
        for row in majority:
            means = [Number(row.scores[metric.key][site].mean) for site in sites]
            columns.append(Column(metric.label, "majority", means))
    caption = (
        f"Scores of {ours.method} at each site in percent, {subject}, with {subject.interval}"
        f"{_gaps_of(columns)}."
    )
    if majority:
        caption += " Majority: always predicting the site's most frequent class in training."
    return [PaperTable("tab:sites", caption + _defined(metrics), "Site", sites, columns, foot=1)]


def _score(row: Row, key: str) -> Number:
    """Return a mean over sites. Only methods with several seeds are marked."""
    untold = key in row.untold and key not in row.best
    return _entry(row.scores[key]["mean"], bold=key in row.best, marks="†" * untold)


def _difference(row: Row, key: str) -> Number:
    test = row.tests.get(key)
    if test is None:
        return Number(None)
    marks = "*" * (row.p.get(key, 1.0) < LEVEL) + "‡" * test.is_equivalent
    return Number(test.difference.mean, test.interval or test.difference.images, marks=marks)


def _entry(e: Estimate, *, bold: bool = False, marks: str = "") -> Number:
    return Number(e.mean, e.interval or e.images, bold, marks)


def _gaps_of(columns: Sequence[Column]) -> str:
    """Return why some scores have no interval; empty if all have one."""
    lacking = any(e.value is not None and e.ends is None for column in columns for e in column.entries)
    return " where enough images of each class allow one" if lacking else ""


def _defined(metrics: Sequence[Metric]) -> str:
    """Return the sentences that define some of the measures."""
    over = {"worst_f1": "worst site: lowest score of a site", "spread_f1": "spread: highest less lowest"}
    text = _sentence([over[metric.key] for metric in metrics if metric.key in over])
    if any(metric.key.startswith(f"{SENSITIVE}_") for metric in metrics):
        text += f" {SENSITIVITY}"
    return f" {text.strip()}" if text else ""


def _unit(metrics: Sequence[Metric]) -> str:
    """Return which measures are in percent."""
    plain = [metric.label for metric in metrics if metric.plain]
    if not plain:
        return " in percent"
    if len(plain) == len(metrics):
        return ""
    return (
        f" in percent ({' and '.join(plain)} as {'a plain number' if len(plain) == 1 else 'plain numbers'})"
    )


def _gap(reference: str) -> str:
    """Return the heading of differences."""
    return f"− {reference}"


def _marks(rows: Sequence[Row], columns: Sequence[Column], subject: Subject, reference: str) -> str:
    """Return the sentence on differences and marks, of which it explains those that occur."""
    entries = [entry for column in columns for entry in column.entries]
    parts = []
    if any(e.bold for e in entries):
        parts.append("bold: best mean")
    if any("†" in e.marks for e in entries):
        parts.append("†: not told apart from the best (Holm-corrected), which does not mean equal")
    tests = [test for row in rows for test in row.tests.values()]
    if any(column.head == _gap(reference) for column in columns):
        level = " that hold jointly" if any(test.interval for test in tests) else ""
        parts.append(f"{_gap(reference)}: paired difference to it, with 95% intervals{level}")
    if any("*" in e.marks for e in entries):
        parts.append(f"*: p < {LEVEL:g} (Holm-corrected)")
    if any("‡" in e.marks for e in entries):
        margin = next(test.margin for test in tests if test.margin is not None)
        parts.append(f"‡: equal to it within {100 * margin:g} points")
    parts += _rows_apart(rows, subject)
    if subject.seeds == 1:
        parts.append("one seed says nothing about other training runs, so no method is marked")
    shown = sum(row.seeds > 0 for row in rows)
    if shown < subject.of:
        parts.append(f"shown, and compared with each other, are {shown} of {subject.of} methods")
    return _sentence(parts)


def _rows_apart(rows: Sequence[Row], subject: Subject) -> list[str]:
    """Return what is special about some rows."""
    parts = [
        f"{row.method}: {row.seeds} of {subject.seeds} seeds, so not marked"
        for row in rows
        if row.seeds and not row.complete
    ]
    parts += [
        f"{row.method}: always predicting the site's most frequent class in training"
        for row in rows
        if not row.seeds
    ]
    alone = [row.method for row in rows if row.seeds < 2 <= subject.seeds]
    if alone:
        parts.append(f"{' and '.join(alone)}: intervals over {subject.resampled} alone")
    return parts


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


@dataclass(frozen=True)
class _Dialect:
    """How a language of markup prints a text: escaped, bold, and as blank space of the same width."""

    text: Callable[[str], str]
    bold: Callable[[str], str]
    blank: Callable[[str], str]


FIGURE_SPACE = "\u2007"
"""A space as wide as a digit."""

_MARKDOWN = _Dialect(
    lambda text: text.replace("|", r"\|").replace("*", r"\*"),
    "**{}**".format,
    lambda text: FIGURE_SPACE * len(text),
)
_LATEX = _Dialect(
    escaped, r"\textbf{{{}}}".format, lambda text: rf"\phantom{{{escaped(text)}}}" if text else ""
)


def _number(value: float, plain: bool) -> str:
    text = f"{value:.3f}" if plain else f"{100 * value:.1f}"
    return text.lstrip("-") if not float(text) else text.replace("-", "−")


@dataclass(frozen=True)
class _Template:
    """The widest of each part of a column's cells; empty where no cell has the part."""

    plain: bool
    mean: str
    low: str
    high: str
    marks: str

    @classmethod
    def of(cls, column: Column) -> "_Template":
        """Return the template of a column."""
        means = [e.value for e in column.entries if e.value is not None]
        ends = [e.ends for e in column.entries if e.value is not None and e.ends is not None]
        parts = (means, [low for low, _ in ends], [high for _, high in ends])
        mean, low, high = (_widest([_number(value, column.plain) for value in part]) for part in parts)
        return cls(column.plain, mean, low, high, max((e.marks for e in column.entries), key=len))

    @property
    def interval(self) -> str:
        """The widest interval."""
        return f" [{self.low}, {self.high}]" if self.low else ""

    def cell(self, e: Number, dialect: _Dialect) -> str:
        """Return a cell in which each part is as wide as the widest one."""
        if e.value is None:
            return f"{dialect.text('–')}{dialect.blank(self.interval + self.marks)}"
        number = _number(e.value, self.plain)
        mean = _padding(number, self.mean, dialect) + (dialect.bold if e.bold else dialect.text)(number)
        if e.ends is None:
            interval = dialect.blank(self.interval)
        else:
            low, high = (_number(end, self.plain) for end in e.ends)
            interval = f" [{_padding(low, self.low, dialect)}{dialect.text(low)}, "
            interval += f"{_padding(high, self.high, dialect)}{dialect.text(high)}]"
        return mean + interval + dialect.text(e.marks) + dialect.blank(self.marks[len(e.marks) :])


def _widest(numbers: Sequence[str]) -> str:
    """Return a number of zeros that is as wide as the widest of some."""
    longest = max((number.lstrip("−") for number in numbers), key=len, default="")
    return "−" * any("−" in number for number in numbers) + re.sub(r"\d", "0", longest)


def _padding(number: str, widest: str, dialect: _Dialect) -> str:
    """Return blank space in front of a number, for the digits and the sign that others have."""
    digits = "0" * (len(widest.lstrip("−")) - len(number.lstrip("−")))
    return dialect.blank("−" * (widest.count("−") - number.count("−")) + digits)


def table_to_latex(table: PaperTable) -> str:
    """Return a table for LaTeX; what does not fit beside the rest is below it, or on the next page."""
    templates = [_Template.of(column) for column in table.columns]
    groups = [list(indices) for indices in _groups(table.columns, range(len(table.columns)))]
    widths = [
        max(width(t.mean + t.interval + t.marks), width(column.head))
        for t, column in zip(templates, table.columns, strict=True)
    ]
    of_groups = [
        max(
            sum(widths[k] for k in group) + COLUMN_GAP * (len(group) - 1),
            width(table.columns[group[0]].group),
        )
        for group in groups
    ]
    spec, first, names = row_names(table.names, table.corner)
    if max(of_groups) + first + COLUMN_GAP > TEXT_WIDTH:
        groups = [[k] for k in range(len(widths))]
        of_groups = [max(own, width(c.group)) for own, c in zip(widths, table.columns, strict=True)]
    tabulars = [
        _panel(table, templates, [k for index in panel for k in groups[index]], names, spec)
        for panel in panels(of_groups, first)
    ]
    lines = sum(2 if width(name) > first else 1 for name in table.names)
    return floating(tabulars, lines, escaped(table.caption), table.label)


def _panel(
    table: PaperTable, templates: Sequence[_Template], chosen: Sequence[int], names: Sequence[str], spec: str
) -> str:
    """Return a ``tabular`` with some of the columns."""
    columns = [table.columns[k] for k in chosen]
    above, rules, at = [""], "", 2
    for group in _groups(columns, range(len(columns))):
        above.append(rf"\multicolumn{{{len(group)}}}{{c}}{{{escaped(columns[group[0]].group)}}}")
        rules += rf"\cmidrule(lr){{{at}-{at + len(group) - 1}}}"
        at += len(group)
    heads = [rf"\multicolumn{{1}}{{c}}{{{escaped(column.head)}}}" for column in columns]
    cells = [[templates[k].cell(e, _LATEX) for e in table.columns[k].entries] for k in chosen]
    return tabular(
        spec + "r" * len(columns),
        [" & ".join(above) + r" \\", rules, " & ".join([table.corner, *heads]) + r" \\"],
        [[name, *line] for name, line in zip(names, zip(*cells, strict=True), strict=True)],
        table.foot,
    )


def _groups(columns: Sequence[Column], indices: Sequence[int]) -> list[list[int]]:
    """Return the indices of columns that share a heading."""
    return [list(group) for _, group in groupby(indices, lambda k: columns[k].group)]


def table_to_markdown(table: PaperTable) -> str:
    """Return a table for Markdown, with its caption above."""
    heads = [table.corner, *(f"{column.group}, {column.head}" for column in table.columns)]
    templates = [_Template.of(column) for column in table.columns]
    cells = [
        [template.cell(e, _MARKDOWN) for e in column.entries]
        for template, column in zip(templates, table.columns, strict=True)
    ]
    lines = [
        [_MARKDOWN.text(name), *line]
        for name, line in zip(table.names, zip(*cells, strict=True), strict=True)
    ]
    rows = [list(map(_MARKDOWN.text, heads)), ["---", *["---:"] * len(cells)], *lines]
    body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_MARKDOWN.text(table.caption)}\n\n{body}\n"
