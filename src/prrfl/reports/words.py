"""What is said alike in the terminal, in tables and on pages."""

STAGES = {1: "recover", 2: "exchange", 3: "sublimate"}
"""The stages of DET, by the number that records give."""


def percent(value: float | None) -> str:
    """Return a fraction as percent with two decimals, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.2f}"
