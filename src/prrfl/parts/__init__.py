"""Methods, networks, losses, augmentations and data formats: those of the package, and anyone's own."""

from prrfl.parts.blame import PartError, blamed
from prrfl.parts.collection import Parts, is_installed, is_reference, label, placed
from prrfl.parts.search import Search
from prrfl.parts.settings import complete_settings, construct, declared_searches

__all__ = [
    "PartError",
    "Parts",
    "Search",
    "blamed",
    "complete_settings",
    "construct",
    "declared_searches",
    "is_installed",
    "is_reference",
    "label",
    "placed",
]
