"""Formatting of numbers, the same in the terminal, in tables and on pages."""


def percent(value: float | None) -> str:
    """Return a fraction as percent with two decimals; a dash for ``None``."""
    return "–" if value is None else f"{100 * value:.2f}"
