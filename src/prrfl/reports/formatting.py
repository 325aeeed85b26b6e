"""Formatting of numbers, the same in the terminal, in tables and on pages."""


def percent(value: float | None) -> str:
    """Return a fraction as percent with two decimals; a dash for ``None``."""
    return "–" if value is None else f"{100 * value:.2f}"


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals; a dash for ``None``."""
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: ``1 site``, ``2 sites``."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"
