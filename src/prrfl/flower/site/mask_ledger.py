"""The mask ledger: what a site's masks were used for, so that no mask is used twice.

Under secure summation, two shares under the same mask would reveal their difference, and two sums of the same
round would reveal the shares of the sites in which they differ. So before a site sends anything, it writes
down what the mask is used for, and refuses any other use of it:

    masked.json     for each round and cohort, the share that was masked
    revealed.json   for each round, the cohort for which the seed of the site's own mask was revealed
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from prrfl.flower.messages import OrderRefusedError
from prrfl.flower.secure_sum import SignedKey, mask_of
from prrfl.flower.site.steps import parse_object, read_saved
from prrfl.storage.atomic import write_json
from prrfl.storage.tensor_files import to_bytes
from prrfl.types import ClientId, Share


class MaskLedger:
    """The uses of one site's masks in one experiment."""

    def __init__(self, folder: Path, site: ClientId) -> None:
        """Open the ledger in the experiment's folder at a site."""
        self._folder = folder
        self._site = site

    def mask(self, share: Share, cohort: Sequence[SignedKey], index: int) -> None:
        """Note that a share is masked for a cohort in round ``index``.

        Raises:
            OrderRefusedError: if another share of the round was masked for the same cohort.
        """
        use = f"{index} {_digest(mask_of(cohort, index))}"
        if not self._is_only_use("masked.json", use, hashlib.sha256(to_bytes(share)).hexdigest()):
            raise OrderRefusedError(
                f"site {self._site} already sent another share of round {index + 1} to the same sites; under "
                "secure summation a site sends one share a round: start a new run"
            )

    def reveal(self, cohort: Sequence[SignedKey], index: int) -> None:
        """Note that the seed of the site's own mask is revealed for a cohort in round ``index``.

        Raises:
            OrderRefusedError: if it was revealed for another cohort.
        """
        if not self._is_only_use("revealed.json", str(index), _digest(mask_of(cohort, index))):
            raise OrderRefusedError(
                f"site {self._site} already added its share of round {index + 1} to the sum of other sites; "
                "under secure summation a round has one sum: start the server again when all of those sites "
                "are online, or start a new run"
            )

    def _is_only_use(self, file: str, mask: str, use: str) -> bool:
        """Write down the use of a mask, unless it has one; return whether the mask has no other use."""
        path = self._folder / file
        uses = parse_object(read_saved(path), str(path)) if path.exists() else {}
        same: bool = uses.setdefault(mask, use) == use
        write_json(path, uses)
        return same


def _digest(about: object) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
