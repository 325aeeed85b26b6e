"""Tables for LaTeX with the package booktabs, none of them wider than the text."""

from collections.abc import Sequence
from functools import lru_cache

from prrfl.reports.plotting import FT2Font, font_manager

TEXT_WIDTH = 345.0
"""Width of the text of the class ``article``, in TeX points; most journals have as much or more."""

COLUMN_GAP = 6.0
"""Space between two columns, in points: ``tabcolsep`` on both sides."""

PAGE = 430.0
"""Height of a page of ``article`` without a caption of eight lines, in points."""

LINE = 9.5
"""Distance of lines at footnote size, in points."""

HEAD_LINES = 5.5
"""Height of the heads, rules and gap of a tabular, in lines."""

NAME_WIDTH = 88.0
"""Largest width of the column that names the rows, in points; longer names are broken."""

ESCAPES = str.maketrans({
    **{letter: f"\\{letter}" for letter in "&#$%_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "|": r"\textbar{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "–": "--", "≈": r"$\approx$",
    "−": "$-$", "×": r"$\times$", "Δ": r"$\Delta$", "†": r"$^\dagger$", "‡": r"$^\ddagger$",
    "²": "$^2$",
})  # fmt: skip


def escaped(text: str) -> str:
    """Return a text as LaTeX prints it."""
    return text.translate(ESCAPES)


def width(text: str) -> float:
    """Return the width of a text in points, in LaTeX's font at footnote size (8 pt)."""
    font, letters = _font()
    # Other signs, such as Chinese ones, are taken as wide as the widest Latin letter.
    known = "".join(sign if sign in letters else "M" for sign in text.translate(ALIKE))
    font.set_text(known)
    # Computer Modern is drawn wider for 8 points (cmr8) than for 10 (cmr10): a digit by 6 %.
    return 1.0625 * font.get_width_height()[0] / 64


ALIKE = str.maketrans({"−": "+", "–": "--", "Δ": "W", "†": "*", "‡": "*", "≈": "=", "±": "+", "×": "+"})
"""Signs that LaTeX takes from other fonts, and some of their width."""


@lru_cache
def _font() -> tuple[FT2Font, frozenset[str]]:
    font = FT2Font(font_manager.findfont("cmr10"))
    font.set_size(8, 72.27)
    return font, frozenset(map(chr, font.get_charmap()))


def panels(
    widths: Sequence[float], first: float, most: float = TEXT_WIDTH, gap: float = COLUMN_GAP
) -> list[list[int]]:
    """Return which columns stand side by side, so that no row is wider than the text.

    Args:
        widths: of each column, in points.
        first: width of the column that names the rows, which every panel repeats.
        most: width of the text.
        gap: between two columns.

    Returns:
        The indices of the columns of each panel. A column that is too wide by itself gets its own.
    """
    found: list[list[int]] = []
    room = 0.0
    for index, own in enumerate(widths):
        if not found or own + gap > room:
            found.append([])
            room = most - first
        found[-1].append(index)
        room -= own + gap
    return found


def row_names(names: Sequence[str], corner: str) -> tuple[str, float, list[str]]:
    """Return alignment and width of the column that names the rows, and its cells.

    LaTeX may break long names between words and settings; further lines are indented.
    """
    widest = max(map(width, (*names, corner)))
    if widest <= NAME_WIDTH:
        return "l", widest, list(map(escaped, names))
    cells = []
    for name in names:
        text = escaped(name)
        if width(name) > NAME_WIDTH:
            parts = text.replace(":", r":\allowbreak{}").replace("+", r"+\allowbreak{}")
            text = rf"\raggedright\hangindent=1em {parts}"
        cells.append(text)
    return rf"p{{{NAME_WIDTH:g}pt}}", NAME_WIDTH, cells


def tabular(columns: str, heads: Sequence[str], body: Sequence[Sequence[str]], foot: int = 0) -> str:
    r"""Return a booktabs ``tabular``.

    Args:
        columns: their alignments, as in ``lrr``.
        heads: lines of LaTeX above the first rule, without ``\\`` where they are rules.
        body: rows of cells, which are LaTeX.
        foot: number of last rows below a rule of their own.
    """
    lines = [" & ".join(row) + r" \\" for row in body]
    if 0 < foot < len(lines):
        lines.insert(len(lines) - foot, r"\midrule")
    begin = rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}"
    return "\n".join([begin, r"\toprule", *heads, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"])


def floating(tabulars: Sequence[str], lines: int, caption: str, label: str) -> str:
    """Return a ``table`` with its caption above, as journals want it, and more if a page cannot hold it.

    Args:
        tabulars: one below the other.
        lines: of text in each, without its heads.
        caption: LaTeX.
        label: for references.
    """
    fitting = max(1, int(PAGE // (LINE * (lines + HEAD_LINES))))
    tables = []
    for start in range(0, len(tabulars), fitting):
        name = f"{label}-{start // fitting + 1}" if start else label
        text = rf"Continued from Table~\ref{{{label}}}." if start else caption
        tables += [r"\begin{table}[tp]", r"\centering", rf"\caption{{{text}}}\label{{{name}}}\par\smallskip"]
        tables += [r"\footnotesize\setlength{\tabcolsep}{3pt}"]
        tables += ["\n\\par\\medskip\n".join(tabulars[start : start + fitting]), r"\end{table}", ""]
    return "\n".join(tables)
