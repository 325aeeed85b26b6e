"""Which values of a setting ``prrfl tune`` tries, as a part declares them or the user gives them."""

import math
from dataclasses import dataclass

from prrfl.errors import ConfigError


@dataclass(frozen=True)
class Search:
    """The values of a setting that ``prrfl tune`` tries. Metadata of the setting's type.

    A method of one's own declares it in the type of a field:
    ``step: Annotated[float, Search(0.01, 1, log=True)] = 0.5``.

    Attributes:
        low: smallest value.
        high: largest value.
        log: whether values are drawn uniformly in their logarithm.
        choices: the values, as text, of a setting that has no order; then there is no range.

    Raises:
        ConfigError: if the range is empty, is infinite, or has a logarithm and a bound that is not positive.

    Examples:
        >>> str(Search(0.001, 1, log=True)), str(Search(choices=("sgd", "adam")))
        ('0.001..1:log', 'sgd|adam')
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.choices:
            if len(set(self.choices)) < max(2, len(self.choices)) or "" in self.choices:
                raise ConfigError(f"search {self}: expected at least two choices, each once")
        elif not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"search {self}: expected finite numbers, the lower one first")
        elif self.log and self.low <= 0:
            raise ConfigError(f"search {self}: a range with :log must begin above 0")

    def __str__(self) -> str:
        """Return it as the user writes it."""
        if self.choices:
            return "|".join(self.choices)
        return f"{self.low:.15g}..{self.high:.15g}{':log' if self.log else ''}"

    def holds(self, value: object) -> bool:
        """Return whether a setting's value is one of those that are tried."""
        if self.choices:
            return as_choice(value) in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high


def as_choice(value: object) -> str:
    """Return a setting's value as one of the choices of a :class:`Search`.

    Examples:
        >>> as_choice(True), as_choice(16)
        ('true', '16')
    """
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_searches(text: str) -> dict[str, Search]:
    """Return ranges and choices by setting.

    Args:
        text: ``name=low..high``, ``name=low..high:log`` or ``name=a|b``, separated by commas.

    Raises:
        ConfigError: quoting the part that is invalid.

    Examples:
        >>> parse_searches("lr=1e-4..0.1:log,optimizer=sgd|adam")["lr"]
        Search(low=0.0001, high=0.1, log=True, choices=())
    """
    found: dict[str, Search] = {}
    for part in text.split(","):
        name, equals, values = (word.strip() for word in part.partition("="))
        if not (name and equals and values):
            raise ConfigError(
                f"--search {part.strip()}: expected name=low..high, name=low..high:log or name=a|b"
            )
        if name in found:
            raise ConfigError(f"--search {name} is given twice; give it once")
        try:
            found[name] = _parsed(values)
        except ConfigError as cause:
            raise ConfigError(f"--search {name}: {cause}") from None
    return found


def _parsed(values: str) -> Search:
    if ".." not in values:
        return Search(choices=tuple(choice.strip() for choice in values.split("|")))
    bounds, colon, scale = values.partition(":")
    low, _, high = bounds.partition("..")
    if colon and scale != "log":
        raise ConfigError(f"unknown scale '{scale}'; expected :log, or nothing for a linear one")
    try:
        return Search(float(low), float(high), log=bool(colon))
    except ValueError:
        raise ConfigError(f"expected two numbers, low..high, got '{bounds}'") from None
