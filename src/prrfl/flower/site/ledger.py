"""The ledger: what a site did for the server that it does only once, so that nothing can be asked for twice.

Under secure summation, two shares under the same mask would reveal their difference, and two sums that hold
the same share would reveal the shares of the sites in which they differ. Every mean that a site receives is
answered with its scores, so a server that could send many means would learn much about the test images. So
before a site sends anything, it writes down what for, and refuses any other use:

    received.json   for each round, the mean that was received
    masked.json     for each round and cohort, the share that was masked
    revealed.json   for each round, the cohort for which the seed of the site's own mask was revealed
    HOME/sums.json  for each share that a seed was revealed for, in any run: the sites whose shares it was
                    added to. A run that is repeated with the same seed has the same shares. Class counts are
                    not in it: they are the same in every run, so runs of different sites do tell them apart
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prrfl.flower.messages import COUNTING, OrderRefusedError
from prrfl.flower.secure_sum import Identity, SignedKey, digest_of, mask_of
from prrfl.flower.site.steps import parse_object, read_saved
from prrfl.storage.atomic import write_json
from prrfl.types import ClientId, Share


class Ledger:
    """What one site did in one experiment, and which shares it added to sums in any."""

    def __init__(self, folder: Path, site: ClientId) -> None:
        """Open the ledger in the experiment's folder at a site, whose parent is the site's home."""
        self._folder = folder
        self._site = site

    def receive(self, mean: str, index: int) -> None:
        """Note that a mean with this digest is received in round ``index``.

        Raises:
            OrderRefusedError: if another mean was received in the round.
        """
        if not _is_only_use(self._folder / "received.json", str(index), mean):
            raise OrderRefusedError(
                f"site {self._site} already received another mean of round {index + 1}; a round has one "
                "mean: start a new run"
            )

    def last_mean(self, index: int) -> str:
        """Return round and digest of the last mean before round ``index``; empty before the first."""
        means = _read(self._folder / "received.json")
        rounds = [int(key) for key in means if int(key) < index]
        return f"{max(rounds)}:{means[str(max(rounds))]}" if rounds else ""

    def mask(self, share: Share, identity: Identity, cohort: Sequence[SignedKey], index: int) -> None:
        """Note that a share is masked for a cohort in round ``index``.

        Raises:
            OrderRefusedError: if another share of the round was masked for the same cohort, or the share is
                in the sum of other sites.
        """
        use = f"{index} {_digest(mask_of(cohort, index))}"
        if not _is_only_use(self._folder / "masked.json", use, digest_of(share)):
            raise OrderRefusedError(
                f"site {self._site} already sent another share of round {index + 1} to the same sites; under "
                "secure summation a site sends one share a round: start a new run"
            )
        if index == COUNTING:
            return
        sites = _sites(identity, cohort)
        self._check_sums(_read(self._sums).get(digest_of(share), sites) == sites)

    def reveal(self, share: Share, identity: Identity, cohort: Sequence[SignedKey], index: int) -> None:
        """Note that the seed of the mask of a share is revealed for a cohort in round ``index``.

        Raises:
            OrderRefusedError: if a seed was revealed for another cohort in the round, or for this share in
                the sum of other sites.
        """
        if not _is_only_use(self._folder / "revealed.json", str(index), _digest(mask_of(cohort, index))):
            raise OrderRefusedError(
                f"site {self._site} already added its share of round {index + 1} to the sum of other sites; "
                "under secure summation a round has one sum: start the server again when all of those sites "
                "are online, or start a new run"
            )
        if index == COUNTING:
            return
        with exclusive(self._sums.with_suffix(".lock")):  # other experiments use it too
            self._check_sums(_is_only_use(self._sums, digest_of(share), _sites(identity, cohort)))

    @property
    def _sums(self) -> Path:
        return self._folder.parent / "sums.json"

    def _check_sums(self, same: bool) -> None:
        if not same:
            raise OrderRefusedError(
                f"site {self._site} already added this very share to the sum of other sites, in a run with "
                "the same seed; the two sums would tell shares apart: start a new run with another --seed"
            )


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let only one process at a time into the block, by a lock on a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, str]:
    return parse_object(read_saved(path), str(path)) if path.exists() else {}


def _is_only_use(path: Path, what: str, use: str) -> bool:
    """Write down a use, unless there is one; return whether there is no other use."""
    uses = _read(path)
    same = uses.setdefault(what, use) == use
    write_json(path, uses)
    return same


def _sites(identity: Identity, cohort: Sequence[SignedKey]) -> str:
    """Return a digest of the sites of a cohort: of their names and their keys in the roster."""
    return _digest(
        [[name, identity.roster[name].public_bytes_raw().hex()] for name in sorted(k["site"] for k in cohort)]
    )


def _digest(about: object) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
