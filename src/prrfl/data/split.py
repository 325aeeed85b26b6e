"""New splits without leakage: stratified by class, with each group in one split."""

import logging
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prrfl.data.images import SPLITS, Entry
from prrfl.errors import DataError
from prrfl.types import Split

_Ints = NDArray[np.int64]
log = logging.getLogger("prrfl")


def split(
    entries: Sequence[Entry],
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    same: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
) -> list[Entry]:
    """Return the entries with new splits, site by site.

    Args:
        entries: images of all sites; their splits are ignored.
        valid: fraction of each site's images used for validation.
        test: fraction used for test.
        seed: same seed, same splits.
        same: path to a hash of the pixels; images with the same hash are kept in one group.
        classes: names of the labels, for the warning that a class has fewer than three groups at a site. All
            images of these groups are then training images.

    Raises:
        DataError: if the fractions leave a split empty, or a site has too few groups.
    """
    if not (valid > 0 and test > 0 and valid + test < 1):
        raise DataError(
            f"fractions valid {valid} and test {test} leave a split empty; expected both above 0, and their "
            "sum below 1"
        )
    placed: list[Entry] = []
    for site in sorted({e.site for e in entries}):
        here = [e for e in entries if e.site == site]
        groups = _groups(here, same or {})
        rare = _rare_groups(here, groups, classes)
        placed += _split_site(here, groups, rare, valid, test, seed)
    return placed


def _rare_groups(entries: Sequence[Entry], groups: Sequence[str], classes: Sequence[str]) -> set[str]:
    """Return the groups that show classes with too few groups for three splits; warn of each class."""
    of_class: defaultdict[int, set[str]] = defaultdict(set)
    for entry, group in zip(entries, groups, strict=True):
        of_class[entry.label].add(group)
    rare = {label: found for label, found in sorted(of_class.items()) if len(found) < len(SPLITS)}
    for label, found in rare.items():
        log.warning(
            "site %s: class %s has images of %d groups only, too few for train, valid and test; its %d "
            "images are training images",
            entries[0].site,
            classes[label] if label < len(classes) else label,
            len(found),
            sum(e.label == label for e in entries),
        )
    return set().union(*rare.values())


def _split_site(
    entries: Sequence[Entry], groups: Sequence[str], training: Set[str], valid: float, test: float, seed: int
) -> list[Entry]:
    """Return a site's entries with new splits; groups in ``training`` are training images."""
    labels = np.array([e.label for e in entries])
    chosen: list[Split] = ["train"] * len(entries)
    rest = np.array([k for k, group in enumerate(groups) if group not in training], dtype=np.int64)
    for name, share, leave in (("test", test, 2), ("valid", valid / (1 - test), 1)):
        held = _hold_out(labels[rest], np.array(groups)[rest], share, leave, seed)
        if held is None:
            raise DataError(
                f"site {entries[0].site}: its {len(set(groups))} groups of images cannot be split into "
                "train, valid and test; add images of other groups, or leave the site out"
            )
        for index in rest[held]:
            chosen[index] = "test" if name == "test" else "valid"
        rest = np.delete(rest, held)
    return [replace(e, split=part) for e, part in zip(entries, chosen, strict=True)]


def _hold_out(labels: _Ints, groups: NDArray[np.str_], share: float, leave: int, seed: int) -> _Ints | None:
    """Return the indices of the fold whose class counts are nearest to the given share.

    Folds that are empty, or leave fewer than ``leave`` groups, are ignored; ``None`` if no fold remains.
    """
    distinct = len(np.unique(groups))
    if distinct <= leave or np.bincount(labels).max() < 2:
        return None
    wanted = share * np.bincount(labels)

    def distance(held: _Ints) -> float:
        found = np.bincount(labels[held], minlength=len(wanted))
        # Relative, so that a rare class weighs as much as a frequent one.
        return float(np.abs(found - wanted)[wanted > 0] @ (1 / wanted[wanted > 0]))

    from sklearn.model_selection import StratifiedGroupKFold  # takes over a second; few commands split

    count = max(2, min(round(1 / share), np.bincount(labels).max(), distinct))
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # scikit-learn warns of classes with fewer images than folds; the best fold has such a class.
        warnings.simplefilter("ignore", UserWarning)
        parts = [held for _, held in folds.split(labels, labels, groups)]
    fit = [held for held in parts if 0 < len(np.unique(groups[held])) <= distinct - leave]
    return min(fit, key=distance, default=None)


def _groups(entries: Sequence[Entry], same: Mapping[str, str]) -> list[str]:
    """Return the group of each entry: entries that share an id or a hash, directly or through others."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for e in entries:
        own = f"path {e.path}"
        for other in (e.group and f"group {e.group}", same.get(str(e.path)) and f"hash {same[str(e.path)]}"):
            if other:
                leader[find(own)] = find(other)
    return [find(f"path {e.path}") for e in entries]
