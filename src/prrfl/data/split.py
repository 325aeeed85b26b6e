"""New splits without leakage: stratified by class, with each group in one split."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from prrfl.data.images import Entry
from prrfl.errors import DataError
from prrfl.types import Split

_Ints = NDArray[np.int64]


def split(
    entries: Sequence[Entry],
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    same: Mapping[str, str] | None = None,
) -> list[Entry]:
    """Return the entries with new splits, site by site.

    Args:
        entries: images of all sites; their splits are ignored.
        valid: fraction of each site's images used for validation.
        test: fraction used for test.
        seed: same seed, same splits.
        same: path to a hash of the pixels; images with the same hash are kept in one group.

    Raises:
        DataError: if the fractions leave a split empty, or a class of a site has fewer than three groups.
    """
    if not (valid > 0 and test > 0 and valid + test < 1):
        raise DataError(
            f"fractions valid {valid} and test {test} leave a split empty; expected both above 0, and their "
            "sum below 1"
        )
    return [
        entry
        for site in sorted({e.site for e in entries})
        for entry in _split_site([e for e in entries if e.site == site], valid, test, seed, same or {})
    ]


def _split_site(
    entries: list[Entry], valid: float, test: float, seed: int, same: Mapping[str, str]
) -> list[Entry]:
    groups = _groups(entries, same)
    labels = np.array([e.label for e in entries])
    distinct = Counter(label for label, _ in {(e.label, g) for e, g in zip(entries, groups, strict=True)})
    for label, count in sorted(distinct.items()):
        if count < 3:
            raise DataError(
                f"site {entries[0].site}: class {label} has images of {count} groups; three splits need at "
                "least 3; add images, or leave the class out"
            )
    chosen: list[Split] = ["train"] * len(entries)
    rest = np.arange(len(entries))
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
    wanted = share * np.bincount(labels)

    def distance(held: _Ints) -> float:
        found = np.bincount(labels[held], minlength=len(wanted))
        # Relative, so that a rare class weighs as much as a frequent one.
        return float(np.abs(found - wanted)[wanted > 0] @ (1 / wanted[wanted > 0]))

    distinct = len(np.unique(groups))
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
