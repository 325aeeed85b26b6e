"""How many images each site has trained on, for anyone who shows progress."""

from collections.abc import Mapping
from mmap import mmap

from prrfl.types import ClientId


class ImageCounter:
    """How many images each site has trained on since the first round, for anyone who shows progress.

    The counts are in memory that forked processes share: whichever process trains a site counts, and any
    process or thread can read at any time. On a GPU, steps are counted when they are launched.
    """

    def __init__(self, sizes: Mapping[ClientId, int]) -> None:
        """Start at 0.

        Args:
            sizes: number of training images of each site that trains.
        """
        self.sizes = dict(sizes)
        self._places = {name: place for place, name in enumerate(sizes)}
        self._counts = memoryview(mmap(-1, 8 * max(1, len(sizes)))).cast("q")

    def note(self, site: ClientId, images: int) -> None:
        """Set the count of a site; ignore a site that is not counted."""
        # One store of eight aligned bytes: who reads meanwhile sees the old number or the new one.
        if (place := self._places.get(site)) is not None:
            self._counts[place] = images

    def read(self) -> dict[ClientId, int]:
        """Return the counts of all sites."""
        return {name: self._counts[place] for name, place in self._places.items()}
