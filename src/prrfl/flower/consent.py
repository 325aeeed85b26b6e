"""What a site agrees to send: its say over the server's settings. Needs nothing of Flower."""

from prrfl.algorithms import ALGORITHMS
from prrfl.config import TrainConfig
from prrfl.errors import ConfigError, nearest

ABLATED = "prrfl-ablated"

METHODS = ("prrfl", ABLATED, *sorted(set(ALGORITHMS) - {"prrfl", "centralised", "local"}))
"""What a site can agree to; :data:`ABLATED` is ``prrfl`` where it sends weights, or has a single network."""


def agreed_as(config: TrainConfig) -> str:
    """Return the name in :data:`METHODS` under which a site agrees to what the settings have it send."""
    ablated = config.method == "prrfl" and (config.aggregation != "pfa" or config.transfer == "off")
    return ABLATED if ablated else config.method


def parse_methods(text: str) -> tuple[str, ...]:
    """Return the methods that a site agrees to, as ``prrfl site --methods`` names them.

    Raises:
        ConfigError: if one is none.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in METHODS:
            hint = nearest(name, METHODS)
            raise ConfigError(f"methods: '{name}' is none{hint}; expected of {', '.join(METHODS)}")
    if not names:
        raise ConfigError(f"methods names none; expected of {', '.join(METHODS)}")
    return names
