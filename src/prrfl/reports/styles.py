"""Styles of lines: a method has the same colour and dashes in every figure of a comparison."""

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
        dashes: lengths of strokes and gaps, in line widths; empty for a solid line.
        width: in points.
        shade: opacity of the band.
    """

    colour: str
    dashes: tuple[float, ...] = ()
    width: float = 1.3
    shade: float = 0.15


def of_methods(methods: Sequence[str], reference: str) -> dict[str, Style]:
    """Return a different style for each method. An ablation has the colour of its method, and dashes.

    Args:
        methods: names in the order of the table; ``prrfl:transfer=off`` is an ablation of ``prrfl``.
        reference: the method that the others are compared with; only it is blue.
    """
    families = list(dict.fromkeys(name.partition(":")[0] for name in methods))
    others = [family for family in families if family != reference]
    rounds = max(1, -(-len(others) // len(OTHERS)))  # how often the colours repeat
    variants = dict.fromkeys(families, 0)
    styles = {}
    for name in methods:
        family, ablation, _ = name.partition(":")
        variants[family] += bool(ablation)
        place = 0 if family == reference else others.index(family)
        colour = OURS if family == reference else OTHERS[place % len(OTHERS)]
        kind = (variants[family] if ablation else 0) * rounds + place // len(OTHERS)
        styles[name] = Style(colour, _dashes(kind), width=2.2 if name == reference else 1.3)
    return styles


def of_networks(models: Sequence[str]) -> dict[str, Style]:
    """Return a style for each network of a run."""
    return {model: Style(colour) for model, colour in zip(models, cycle(PALETTE), strict=False)}


def _dashes(kind: int) -> tuple[float, ...]:
    """Return solid, dashed, dotted, dash-dotted; then a long dash with more and more dots."""
    first = ((), (4.0, 1.5), (1.0, 1.0), (4.0, 1.5, 1.0, 1.5))
    return first[kind] if kind < len(first) else (8.0, 1.5, *(1.0, 1.5) * (kind - len(first)))
