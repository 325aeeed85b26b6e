"""How lines look: the same method has the same colour and dashes in every picture of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib import colormaps
from matplotlib.colors import to_hex

OURS = "#0b6e99"
# Matplotlib's tab20 holds pairs of a full and a pale colour: the full ones first. Blue is PRR-FL's alone.
_PAIRS = [to_hex(colour) for colour in colormaps["tab20"].colors]  # type: ignore[attr-defined]
OTHERS = (*_PAIRS[2::2], *_PAIRS[3::2])
PALETTE = (OURS, *OTHERS)
"""Colours for what is no method: classes, networks."""

NETWORKS = (OURS, "#d9730d", "#6b4fa0", "#448361")


@dataclass(frozen=True)
class Style:
    """A line's look.

    Attributes:
        colour: as hexadecimal.
        dashes: lengths of strokes and gaps, in line widths; empty for a solid line.
    """

    colour: str
    dashes: tuple[float, ...] = ()


def of_methods(methods: Sequence[str]) -> dict[str, Style]:
    """Return each method's style, no two alike: ablations keep their method's colour and are dashed.

    Args:
        methods: names in the order of the table; ``prrfl:transfer=off`` is an ablation of ``prrfl``.
    """
    families = list(dict.fromkeys(name.partition(":")[0] for name in methods))
    others = [family for family in families if family != "prrfl"]
    rounds = max(1, -(-len(others) // len(OTHERS)))  # how often the colours are gone through
    variants = dict.fromkeys(families, 0)
    styles = {}
    for name in methods:
        family, ablation, _ = name.partition(":")
        variants[family] += bool(ablation)
        place = 0 if family == "prrfl" else others.index(family)
        colour = OURS if family == "prrfl" else OTHERS[place % len(OTHERS)]
        kind = (variants[family] if ablation else 0) * rounds + place // len(OTHERS)
        styles[name] = Style(colour, _dashes(kind))
    return styles


def of_networks(models: Sequence[str]) -> dict[str, Style]:
    """Return the style of each network of one run."""
    return {model: Style(colour) for model, colour in zip(models, cycle(NETWORKS), strict=False)}


def _dashes(kind: int) -> tuple[float, ...]:
    """Return a solid line, dashes, dots, dash and dot; after these a long dash and ever more dots."""
    first = ((), (4.0, 1.5), (1.0, 1.0), (4.0, 1.5, 1.0, 1.5))
    return first[kind] if kind < len(first) else (8.0, 1.5, *(1.0, 1.5) * (kind - len(first)))
