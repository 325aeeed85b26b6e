"""Matplotlib as our pictures need it: with its own defaults, whatever the settings of the user.

All modules import Matplotlib's names from here.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from prrfl.storage.atomic import replacing

__all__ = [
    "Axes", "FT2Font", "Figure", "Line2D", "MaxNLocator", "MultipleLocator", "default_style", "fit_fonts",
    "font_manager", "print_style", "rc_context", "save_for_print",
]  # fmt: skip

log = logging.getLogger("prrfl")

# Importing Matplotlib reads the user's settings and reports what is wrong with them. Pictures need none of
# them: they are files, so the backend of a notebook, which may not be installed here, does not matter.
_backend = os.environ.pop("MPLBACKEND", None)
_reports = logging.getLogger("matplotlib")
_level = _reports.level
_reports.setLevel(logging.ERROR)
try:
    from matplotlib import font_manager, rc_context, rcParamsDefault
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font
    from matplotlib.lines import Line2D
    from matplotlib.text import Text
    from matplotlib.ticker import MaxNLocator, MultipleLocator
except UnicodeDecodeError as cause:
    raise OSError(
        f"Matplotlib cannot read its settings: {cause}; remove or repair the file matplotlibrc in this "
        "folder or in $MATPLOTLIBRC"
    ) from None
finally:
    _reports.setLevel(_level)
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend

FONT = "DejaVu Sans"
"""Matplotlib's default font. It brings the font along, so that pictures are the same on any machine."""


@contextmanager
def default_style() -> Iterator[None]:
    """Within the block, or in a function that this decorates, Matplotlib has its default settings.

    Names of sites and classes are drawn as they are: a dollar sign does not begin a formula.
    """
    settings: dict[Any, Any] = {key: value for key, value in rcParamsDefault.items() if key != "backend"}
    with warnings.catch_warnings(), rc_context({**settings, "text.parse_math": False}):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # fit_fonts reports it in one line
        yield


PRINT: dict[Any, Any] = {
    "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "legend.fontsize": 7,
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
    "axes.linewidth": 0.5, "xtick.major.width": 0.5, "ytick.major.width": 0.5,
    "xtick.major.size": 2, "ytick.major.size": 2, "axes.titlepad": 3, "axes.labelpad": 2,
    "figure.constrained_layout.w_pad": 0.03, "figure.constrained_layout.h_pad": 0.03,
    "pdf.fonttype": 42,  # TrueType, embedded: journals refuse Type 3
    "svg.fonttype": "path",  # looks the same where the font is not installed
    "svg.hashsalt": "prrfl",
}  # fmt: skip
"""Settings for figures that are printed at their size: 7-point text, hairlines."""


@contextmanager
def print_style() -> Iterator[None]:
    """Within the block, or in a function that this decorates, figures are drawn for print."""
    with default_style(), rc_context(PRINT):
        yield


@print_style()
def save_for_print(figure: Figure, path: Path) -> None:
    """Write a figure as PDF with embedded fonts, as SVG, and as PNG with 300 dots per inch.

    Args:
        figure: the figure, in the size in which it is printed.
        path: of the files, without ending.
    """
    fit_fonts(figure, path.name)
    dates: dict[str, dict[Any, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    for kind, metadata in dates.items():
        with replacing(path.with_name(f"{path.name}.{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=300, metadata=metadata)


def fit_fonts(figure: Figure, name: str) -> None:
    """Give a figure's texts further fonts for characters that the default one lacks, such as Chinese ones.

    If no installed font has them, there is a warning.

    Args:
        figure: the figure, complete.
        name: name of its file, for the warning.
    """
    texts = [one for one in figure.findobj(Text) if isinstance(one, Text)]
    missing = {sign for text in texts for sign in text.get_text() if sign.isprintable()} - _signs_of(FONT)
    fonts = [FONT]
    while missing and (best := _best_font(missing)):
        fonts.append(best)
        missing -= _signs_of(best)
    if missing:
        log.warning(
            "%s: no installed font has the characters %s, which are drawn as boxes; install a font that has "
            "them, such as Noto Sans CJK for Chinese",
            name,
            "".join(sorted(missing)),
        )
    if len(fonts) > 1:
        for text in texts:
            text.set_fontfamily(fonts)


def _best_font(signs: set[str]) -> str:
    """Return the installed font that has most of the characters; empty if none has any."""
    names = sorted({font.name for font in font_manager.fontManager.ttflist} - {FONT})
    best = max(names, key=lambda name: len(signs & _signs_of(name)), default="")
    return best if best and signs & _signs_of(best) else ""


@lru_cache
def _signs_of(font: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(font_manager.findfont(font)).get_charmap()))
    except (OSError, RuntimeError, ValueError):  # a font that was removed, or is damaged
        return frozenset()
