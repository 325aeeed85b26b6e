"""Matplotlib as our pictures need it: with its own defaults, whatever the settings of the user."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("prrfl")

# Importing Matplotlib reads the user's settings, and prints what is wrong with them. Ours need none of them:
# pictures are files, so any backend would do, for example that of a notebook which is not installed here.
_backend = os.environ.pop("MPLBACKEND", None)
_noise = logging.getLogger("matplotlib")
_noise.setLevel(logging.ERROR)
try:
    import matplotlib
    from matplotlib import font_manager, rc_context
    from matplotlib.ft2font import FT2Font
    from matplotlib.text import Text
except UnicodeDecodeError as cause:
    from prrfl.errors import ConfigError

    raise ConfigError(
        f"Matplotlib cannot read its settings: {cause}; remove or repair the file matplotlibrc in this "
        "folder or in $MATPLOTLIBRC"
    ) from None
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend

FONT = "DejaVu Sans"
"""Matplotlib brings this font along, so that pictures are the same on any machine."""


@contextmanager
def default_style() -> Iterator[None]:
    """Within the block, or in a function that this decorates, Matplotlib has its default settings.

    Names of sites and classes are drawn as they are: a dollar sign does not begin a formula.
    """
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with warnings.catch_warnings(), rc_context({**defaults, "font.family": [FONT], "text.parse_math": False}):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # fit_fonts reports it in one line
        yield


def fit_fonts(figure: "Figure", name: str) -> None:
    """Give a figure's texts further fonts for characters that the default one lacks, such as Chinese ones.

    If no installed font has them, there is a warning.

    Args:
        figure: the figure, complete.
        name: what it will be called, for the warning.
    """
    texts = [one for one in figure.findobj(Text) if isinstance(one, Text)]
    wanted = {sign for text in texts for sign in text.get_text() if sign.isprintable()} - _signs_of(FONT)
    fonts = [FONT]
    while wanted and (best := max(_others(), key=lambda font: len(wanted & _signs_of(font)), default="")):
        if not wanted & _signs_of(best):
            break
        fonts.append(best)
        wanted -= _signs_of(best)
    if wanted:
        log.warning(
            "%s: no installed font has the characters %s, so they are drawn as boxes; install one that has "
            "them, such as Noto Sans CJK for Chinese",
            name,
            "".join(sorted(wanted)),
        )
    if len(fonts) > 1:
        for text in texts:
            text.set_fontfamily(fonts)


@lru_cache
def _signs_of(font: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(font_manager.findfont(font)).get_charmap()))
    except (OSError, RuntimeError, ValueError):  # a font that was removed, or is damaged
        return frozenset()


@lru_cache
def _others() -> tuple[str, ...]:
    return tuple(sorted({font.name for font in font_manager.fontManager.ttflist} - {FONT}))
