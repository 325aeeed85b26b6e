"""What a site agrees to send, whatever the server's settings say. Needs nothing of Flower."""

from collections.abc import Iterator, Mapping

from prrfl.algorithms import ALGORITHMS, DEFAULT, traits_of, variant_of
from prrfl.config import PARTS, TrainConfig
from prrfl.errors import ConfigError, nearest
from prrfl.losses import CPA
from prrfl.parts import is_installed

CLASS_COUNTS, PROTOTYPES, IMAGE_COUNT = "class-counts", "prototypes", "image-count"
"""What may be sent besides. By a loss: the number of training images of each class; and also the means, over
these images, of what the network computes. As the weight of the share: the number of training images."""


SENT = {key: parts for key, parts in PARTS.items() if key != "data"}
"""Kinds of parts that the server's settings name. Each site has data of its own."""


def _methods() -> Iterator[str]:
    for name in sorted(ALGORITHMS.builtin, key=lambda name: (name != DEFAULT, name)):
        traits = traits_of(ALGORITHMS[name])
        if traits.scope == "federated":
            yield name
            yield from (_named(name, variant) for variant in traits.variants)


def _named(method: str, variant: str) -> str:
    return f"{method}-{variant}" if variant else method


METHODS = (*_methods(), CLASS_COUNTS, PROTOTYPES, IMAGE_COUNT)
"""What a site can agree to: the federated methods, each followed by its variants that send more than it; what
losses send; and the weights of sites. Who agrees to a method agrees to what the loss sends that it is
published with."""


def needed(config: TrainConfig) -> tuple[str, ...]:
    """Return the names in :data:`METHODS` to which a site must agree for these settings."""
    method, loss = config.algorithm(), config.loss_function()
    names = [_named(config.method, variant_of(method)), *own_parts(config.model_dump())]
    if config.loss != traits_of(method).loss and loss.counts == "federation":
        names.append(PROTOTYPES if isinstance(loss, CPA) else CLASS_COUNTS)
    if config.weighting == "images":
        names.append(IMAGE_COUNT)
    return tuple(dict.fromkeys(names))


def own_parts(settings: Mapping[str, object]) -> list[str]:
    """Return the parts that settings name and that are not the package's. Nothing is imported.

    A site runs none of them unless it agreed to it by name: the server's settings could name any module that
    is installed at the site.
    """
    named = {key: settings.get(key) for key in SENT}
    return [name for key, name in named.items() if isinstance(name, str) and name not in _usual(key)]


def _usual(key: str) -> set[str]:
    return {*SENT[key].builtin, "auto", "none"}


def parse_methods(text: str) -> tuple[str, ...]:
    """Return the methods that a site agrees to, from the value of ``prrfl site --methods``.

    Raises:
        ConfigError: if a method is unknown, or none is given.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in METHODS and not any(
            parts.is_own(name) and is_installed(name) for parts in SENT.values()
        ):
            hint = nearest(name, METHODS)
            raise ConfigError(f"methods: unknown method '{name}'{hint}; choose from {', '.join(METHODS)}")
    if not names:
        raise ConfigError(f"methods: no method given; choose from {', '.join(METHODS)}")
    return names
