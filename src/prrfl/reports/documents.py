"""The tables of a comparison as documents in Markdown and LaTeX: scores first, nothing wider than a page."""

import re
from collections.abc import Sequence
from itertools import pairwise

from prrfl.reports.comparison import Row
from prrfl.reports.latex import escaped, panels, row_names, tabular, width
from prrfl.reports.tables import BOTH, Table, legend, tables

LETTERS = 100
"""Largest width of a table in Markdown."""

HEAD = 75.0
"""Largest width of a heading in LaTeX, in points, before it is broken."""


def to_markdown(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the tables of a comparison as Markdown: each with its heading, and the legend at the end."""
    parts = []
    for table in map(_joined, tables(rows, classes)):
        widths = [max(map(len, column)) for column in zip(table.heads, *table.body, strict=True)]
        of_table = []
        for chosen in panels(widths[1:], widths[0], LETTERS, gap=3):
            lines = [[line[0], *(line[k + 1] for k in chosen)] for line in (table.heads, *table.body)]
            escaped_lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
            escaped_lines.insert(1, ["---", *["---:"] * len(chosen)])
            of_table.append("\n".join(f"| {' | '.join(line)} |" for line in escaped_lines))
        parts += [f"## {table.title}", *of_table]
    return "\n\n".join([*parts, "## Legend", legend(rows)]) + "\n"


def to_latex(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the tables of a comparison as LaTeX: each with its heading, and the legend at the end."""
    parts = [
        "% In the preamble: \\usepackage{booktabs}",
        r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}",
    ]
    for table in map(_joined, tables(rows, classes)):
        heads = [_lines(head) for head in table.heads]
        body = [[line[0], *map(_with_minus, line[1:])] for line in table.body]
        widths = [
            max(map(width, (*lines, *column)))
            for lines, column in zip(heads, zip(*body, strict=True), strict=True)
        ]
        parts.append(rf"\subsubsection*{{{escaped(table.title)}}}")
        spec, first, names = row_names([line[0] for line in body], table.heads[0])
        for chosen in panels(widths[1:], first):
            shown = [0, *(k + 1 for k in chosen)]
            head = " & ".join(map(_stacked, (heads[k] for k in shown))) + r" \\"
            cells = [
                [name, *(escaped(line[k + 1]) for k in chosen)]
                for name, line in zip(names, body, strict=True)
            ]
            text = tabular(spec + "r" * len(chosen), [head], cells)
            parts.append(rf"\noindent{text}\par\medskip")
    return "\n".join([*parts, escaped(legend(rows)), r"\par\endgroup", ""])


def _joined(table: Table) -> Table:
    """Return a table in which an interval stands behind its score, in the same column."""
    ends = [_is_interval(head) for head in table.heads]
    body = [
        [
            f"{cell} [{after}]" if interval and after != "–" else cell
            for (cell, after), interval in zip(pairwise([*line, ""]), [*ends[1:], False], strict=True)
        ]
        for line in table.body
    ]
    kept = [k for k, interval in enumerate(ends) if not interval]
    heads = [
        f"{table.heads[k]} [{table.heads[k + 1].rpartition(', ')[2]}]" if k + 1 < len(ends) and ends[k + 1]
        else table.heads[k]
        for k in kept
    ]  # fmt: skip
    return Table(table.title, heads, [[line[k] for k in kept] for line in body])


def _is_interval(head: str) -> bool:
    """Return whether a heading is that of intervals, which follow the column of their scores."""
    return head.endswith((f", {BOTH}", f", together {BOTH}", f", {BOTH} of images"))


def _with_minus(cell: str) -> str:
    return re.sub(r"-(?=\d)", "−", cell)


def _stacked(lines: Sequence[str]) -> str:
    """Return lines one below the other in a cell."""
    text = r" \\{} ".join(map(escaped, lines))  # without {}, a bracket that follows were an argument
    return rf"\shortstack[r]{{{text}}}"


def _lines(head: str) -> list[str]:
    """Return a heading in lines, of which none is wide unless a single word is."""
    lines: list[str] = []
    for word in head.split():
        if lines and width(f"{lines[-1]} {word}") <= HEAD:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
