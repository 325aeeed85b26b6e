"""Tables for LaTeX with the package booktabs, none of them wider than the text."""

from collections.abc import Sequence
from functools import lru_cache

from prrfl.reports.plotting import FT2Font, font_manager

TEXT_WIDTH = 345.0
"""Width of the text of the class ``article``, in TeX points; most journals have as much or more."""

COLUMN_GAP = 6.0
"""Space between two columns, in points: ``tabcolsep`` on both sides."""

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
    font = _font()
    # Letters of Computer Modern are drawn wider for 8 points (cmr8) than for 10 (cmr10): a digit by 6 %.
    known = text.translate({ord("−"): "+", ord("–"): "--", ord("Δ"): "W", ord("†"): "*", ord("‡"): "*"})
    font.set_text(known)
    return 1.0625 * font.get_width_height()[0] / 64


@lru_cache
def _font() -> FT2Font:
    font = FT2Font(font_manager.findfont("cmr10"))
    font.set_size(8, 72.27)
    return font


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


def floating(tabulars: Sequence[str], caption: str, label: str) -> str:
    """Return a ``table`` with its caption above, as journals want it.

    Args:
        tabulars: one below the other.
        caption: LaTeX.
        label: for references.
    """
    lines = [r"\begin{table}[tp]", r"\centering", rf"\caption{{{caption}}}\label{{{label}}}\par\smallskip"]
    lines += [r"\footnotesize\setlength{\tabcolsep}{3pt}", "\n\\par\\medskip\n".join(tabulars)]
    return "\n".join([*lines, r"\end{table}", ""])
