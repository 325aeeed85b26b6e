"""Centralised training on the pooled images of all sites: an upper reference for federated methods."""

from dataclasses import dataclass
from typing import ClassVar

from prrfl.algorithms.base import Traits
from prrfl.algorithms.local import Local


@dataclass(frozen=True)
class Centralised(Local):
    """Local training of one network on the pooled images of all sites, scored at each site.

    Rounds and epochs are those of the other methods; an epoch over the pool has more steps, because it has
    more images.
    """

    traits: ClassVar[Traits] = Traits(scope="pooled")
