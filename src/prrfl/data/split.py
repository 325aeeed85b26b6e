"""New splits without leakage: stratified by class, with each group in one split."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prrfl.data.images import SPLITS, Entry
from prrfl.errors import DataError
from prrfl.types import ClientId

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]
log = logging.getLogger("prrfl")

ORDERS = 20
"""Random orders of groups that are tried. The first one does, unless groups show several rare classes."""


@dataclass(frozen=True)
class Shares:
    """What is asked of a split.

    Attributes:
        valid: fraction of each site's images used for validation.
        test: fraction used for test.

    Raises:
        DataError: if the fractions leave a split empty.
    """

    valid: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        if not (self.valid > 0 and self.test > 0 and self.valid + self.test < 1):
            raise DataError(
                f"fractions valid {self.valid} and test {self.test} leave a split empty; expected both above "
                "0, and their sum below 1"
            )

    def of_splits(self) -> _Floats:
        """Return the fraction of each of ``SPLITS``."""
        return np.array([1 - self.valid - self.test, self.valid, self.test])


def split(
    entries: Sequence[Entry],
    shares: Shares = Shares(),
    seed: int = 0,
    same: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    *,
    across_sites: bool = False,
) -> list[Entry]:
    """Return the entries with new splits, sorted by site.

    Validation and test get what was asked of each site's images, within the size of the site's largest group,
    and each class that a site has gets a group in each split. If both are not possible, the classes come
    first, and a warning names the site.

    Args:
        entries: images of all sites; their splits are ignored.
        shares: fractions of each site's images.
        seed: same seed, same splits.
        same: path to a hash of the pixels; images with the same hash are kept in one group.
        classes: names of the labels, for messages.
        across_sites: whether a group id, or a hash, means the same group at all sites, which is then kept in
            one split. If not, sites are split independently.

    Raises:
        DataError: if a class of a site cannot be in all splits, naming both.
    """
    ordered = sorted(entries, key=lambda e: e.site)
    sites = sorted({e.site for e in entries})
    parts = [ordered] if across_sites else [[e for e in ordered if e.site == site] for site in sites]
    return [placed for part in parts for placed in _split(part, shares, seed, same or {}, classes)]


@dataclass(frozen=True)
class _Groups:
    """Images to split, counted by group.

    Attributes:
        sites: names of the S sites.
        classes: names of the C classes.
        counts: images by group, site and class, (G, S, C).
    """

    sites: Sequence[ClientId]
    classes: Sequence[str]
    counts: _Ints

    @property
    def sizes(self) -> _Ints:
        """Images by group and site, (G, S)."""
        sizes: _Ints = self.counts.sum(2)
        return sizes


def _split(
    entries: Sequence[Entry], shares: Shares, seed: int, same: Mapping[str, str], classes: Sequence[str]
) -> list[Entry]:
    """Return entries with new splits, all of whose groups with one name are one group."""
    sites = sorted({e.site for e in entries})
    names = list(classes) + [str(k) for k in range(len(classes), 1 + max(e.label for e in entries))]
    _, index = np.unique(_leaders(entries, same), return_inverse=True)
    counts = np.zeros((index.max() + 1, len(sites), len(names)), dtype=np.int64)
    for e, group in zip(entries, index, strict=True):
        counts[group, sites.index(e.site), e.label] += 1
    groups = _Groups(sites, names, counts)
    _check_classes(groups)
    draw = np.random.default_rng(seed)
    for _ in range(ORDERS):
        place = _allocate(counts, shares.of_splits(), draw)
        if not _uncovered(counts, place).any():
            break
    _check_covered(groups, place)
    _warn_of_shares(groups, place, shares.of_splits())
    return [replace(e, split=SPLITS[place[k]]) for e, k in zip(entries, index, strict=True)]


def _check_classes(groups: _Groups) -> None:
    """Check that every class of a site has a group for each split."""
    found, images = (groups.counts > 0).sum(0), groups.counts.sum(0)
    for s, k in zip(*np.nonzero((found > 0) & (found < len(SPLITS))), strict=True):
        raise DataError(
            f"site {groups.sites[s]}: class {groups.classes[k]} has images of {found[s, k]} groups only; "
            f"{', '.join(SPLITS)} need one each; add images of other groups, or leave out the class's "
            f"{images[s, k]} images"
        )


def _check_covered(groups: _Groups, place: _Ints) -> None:
    """Check that every split of a site shows every class of the site."""
    for p, s, k in zip(*np.nonzero(_uncovered(groups.counts, place)), strict=True):
        raise DataError(
            f"site {groups.sites[s]}: no split was found that shows class {groups.classes[k]} in "
            f"{SPLITS[p]}, because its groups are also the only ones of other classes; add images of other "
            "groups, or leave the class out"
        )


def _warn_of_shares(groups: _Groups, place: _Ints, shares: _Floats) -> None:
    """Warn of each validation or test set that differs from its share by more than a group."""
    reached, sizes = _by_split(groups.sizes, place), groups.sizes
    for p, name in enumerate(SPLITS):
        for s, site in enumerate(groups.sites):
            whole = sizes[:, s].sum()
            if name != "train" and abs(reached[p, s] - shares[p] * whole) > sizes[:, s].max():
                log.warning(
                    "site %s: %s gets %d of %d images (%.1f %%) instead of %.1f %%: each class needs a group "
                    "in each split, and groups stay whole; add images, or ask for other shares",
                    *(site, name, reached[p, s], whole, 100 * reached[p, s] / whole, 100 * shares[p]),
                )


def _by_split(counts: NDArray[Any], place: _Ints) -> NDArray[Any]:
    """Return the sums of counts (G, ...) over the groups of each split, (P, ...)."""
    return np.stack([counts[place == p].sum(0) for p in range(len(SPLITS))])


def _uncovered(counts: _Ints, place: _Ints) -> _Bools:
    """Return which classes of which sites, that have them, a split lacks: (P, S, C)."""
    lacking: _Bools = (_by_split(counts, place) == 0) & (counts.sum(0) > 0)
    return lacking


def _allocate(counts: _Ints, shares: _Floats, draw: np.random.Generator) -> _Ints:
    """Return the split of each group, as an index into ``SPLITS``.

    Groups are dealt out in random order, each to the split that has least of what the group holds. Then
    single groups move: first to splits that lack a class, then from splits with too many images of a site to
    those with too few. Among the moves that help, the one that harms stratification least is made. A group
    that is the only one of a class in its split stays there.

    Args:
        counts: images by group, site and class, (G, S, C).
        shares: fraction of each split, (P,).
        draw: source of the order.
    """
    order = draw.permutation(len(counts))
    place = np.empty(len(counts), dtype=np.int64)
    place[order] = _improved(counts[order], _dealt(counts[order], shares), shares)
    return place


def _dealt(counts: _Ints, shares: _Floats) -> _Ints:
    """Return the splits of groups that are dealt out in order."""
    targets = np.maximum(shares[:, None, None] * counts.sum(0), 1e-9)
    have = np.zeros_like(targets)
    place = []
    for group in counts:
        # As if half of the group were there already (Webster's rule), or small splits would get too much.
        place.append(int((group * (have + group / 2) / targets).sum((1, 2)).argmin()))
        have[place[-1]] += group
    return np.array(place)


def _improved(counts: _Ints, place: _Ints, shares: _Floats) -> _Ints:
    """Return splits in which, as far as possible, every class is in every split, and the shares are met."""
    # Relative to a class's images, so that a rare class weighs as much as a frequent one.
    relative = counts / np.sqrt(np.maximum(counts.sum(0), 1))
    for helpful in (_covering, _balancing):
        while (useful := _free(counts, place)[:, None] & helpful(counts, place, shares)).any():
            harm = np.where(useful, _change(relative, place, shares), np.inf)
            group, to = divmod(int(harm.argmin()), len(SPLITS))
            place = np.where(np.arange(len(place)) == group, to, place)
    return place


def _free(counts: _Ints, place: _Ints) -> _Bools:
    """Return which groups (G,) are not the only one of any class, of a site, in their split."""
    shows = counts > 0
    only: _Bools = (shows & (_by_split(shows, place)[place] == 1)).any((1, 2))
    return ~only


def _covering(counts: _Ints, place: _Ints, _shares: _Floats) -> _Bools:
    """Return which moves, of a group to a split (G, P), bring a class to a split that lacks it."""
    brought: _Ints = np.einsum("gsc,psc->gp", counts, _uncovered(counts, place))
    return brought > 0


def _balancing(counts: _Ints, place: _Ints, shares: _Floats) -> _Bools:
    """Return which moves, of a group to a split (G, P), bring the sizes of splits nearer to their shares."""
    return _change(counts.sum(2, keepdims=True), place, shares) < -1e-6


def _change(counts: NDArray[Any], place: _Ints, shares: _Floats) -> _Floats:
    """Return half the change, by each move of a group to a split (G, P), of the sum of squared errors.

    Args:
        counts: what is to be shared, (G, ...).
        place: the split of each group.
        shares: fraction of each split.
    """
    flat = counts.reshape(len(counts), -1)
    over = _by_split(flat, place) - shares[:, None] * flat.sum(0)
    met = flat @ over.T
    change: _Floats = (flat**2).sum(1)[:, None] + met - np.take_along_axis(met, place[:, None], 1)
    return change


def _leaders(entries: Sequence[Entry], same: Mapping[str, str]) -> list[str]:
    """Return a name for the group of each entry: entries that share an id or a hash are in one group."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    def keys(e: Entry) -> Iterator[str]:
        yield f"path {e.path}"
        if e.group:
            yield f"group {e.group}"
        if str(e.path) in same:
            yield f"hash {same[str(e.path)]}"

    for e in entries:
        own, *others = keys(e)
        for other in others:
            leader[find(own)] = find(other)
    return [find(f"path {e.path}") for e in entries]
