"""Colours, and styles of lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

OURS = "#0b6e99"
# Told apart with any kind of colour vision: in simulations of Machado et al. (2009), 14 or more apart in
# CIELAB, where 2 is just visible. Neither near white nor near black, because pages are light or dark.
OTHERS = ("#e69f00", "#a34700", "#56b4e9", "#777777", "#8cc265", "#cc79a7")
PALETTE = (OURS, *OTHERS)
"""Colours for classes and networks. Blue, the first, is for the reference."""


@dataclass(frozen=True)
class Style:
    """The style of a line and of the band around it.

    Attributes:
        colour: in hexadecimal.
        width: in points.
        shade: opacity of the band.
    """

    colour: str
    width: float = 1.3
    shade: float = 0.15


def of_networks(models: Sequence[str]) -> dict[str, Style]:
    """Return a style for each network of a run."""
    return {model: Style(colour) for model, colour in zip(models, cycle(PALETTE), strict=False)}
