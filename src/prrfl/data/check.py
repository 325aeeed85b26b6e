"""Check a data set for leaks, duplicates, small classes, and missing or broken files."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prrfl.data.files import IMAGE_SUFFIXES, is_file, is_hidden, unread_kind
from prrfl.data.images import SPLITS, Entry, read_image
from prrfl.errors import DataError
from prrfl.types import ClientId, Split

FEW_IMAGES = 5
"""With fewer images of a class in a split, its scores are mostly chance."""


@dataclass(frozen=True)
class Leak:
    """Images of a site's split whose groups are also in an earlier one: training, or validation.

    Attributes:
        site: name of the site.
        split: valid or test.
        images: number of images whose group is in the earlier split.
        of: number of images of the split.
        names: the images, as ``site/split/name``.
    """

    site: ClientId
    split: Split
    images: int
    of: int
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Findings:
    """The result of checking a data set.

    Attributes:
        counts: images per (site, split), by class.
        missing: paths of missing files.
        broken: path to reason, for files that cannot be decoded.
        duplicates: lists of images with the same pixels, as ``site/split/name``.
        contradictions: those of the duplicates that have different labels, as ``site/split/name (class)``.
        leaks: groups that are also in training: one for each valid or test split of a site with group ids,
            even if it has no image.
        selected: groups of test images that are also in validation, which chooses the best round: one for
            each site with group ids, even if it has no image.
        without_groups: sites without group ids.
        empty: (site, split) without images.
        few: (site, split, class name, images) with fewer than ``FEW_IMAGES`` images, in splits that have any.
        copies_across: number of valid and test images with the pixels of a training image of another site.
        copies_across_names: these images, as ``site/split/name``.
        groups_across: number of valid and test images with the group id of a training image of another site.
        groups_across_names: these images.
        copies_selected: test images with the pixels of a validation image of another site.
        groups_selected: test images with the group id of a validation image of another site.
        passed_over: folder to the files in it that no table names: their number, by kind.
        lone: (site, images) whose last training batch would hold one image; it is added to the one before.
    """

    counts: dict[str, list[int]]
    missing: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    contradictions: list[list[str]] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    selected: list[Leak] = field(default_factory=list)
    without_groups: list[ClientId] = field(default_factory=list)
    empty: list[tuple[ClientId, Split]] = field(default_factory=list)
    few: list[tuple[ClientId, Split, str, int]] = field(default_factory=list)
    copies_across: int = 0
    copies_across_names: list[str] = field(default_factory=list)
    groups_across: int = 0
    groups_across_names: list[str] = field(default_factory=list)
    copies_selected: list[str] = field(default_factory=list)
    groups_selected: list[str] = field(default_factory=list)
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)
    lone: list[tuple[ClientId, int]] = field(default_factory=list)


def check(
    entries: Sequence[Entry],
    classes: Sequence[str],
    batch: int = 16,
    seen: Callable[[int], None] | None = None,
) -> Findings:
    """Check every image of a data set, and report all faults.

    Args:
        entries: images of all sites.
        classes: names of the labels 0, 1, ...
        batch: images per training step.
        seen: called with the number of images read so far.
    """
    sites = sorted({e.site for e in entries})
    counts = Counter((e.site, e.split, e.label) for e in entries)
    digests, missing, broken = _digests(entries, seen)
    same: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry, digest in digests:
        same[digest].append(entry)
    grouped = {site for site in sites if any(e.group for e in entries if e.site == site)}
    of_split = Counter((e.site, e.split) for e in entries)
    copies = [group for group in same.values() if len(group) > 1]
    known = [(e, e.group) for e in entries if e.group]
    copies_across, groups_across = (_across(keyed, "train") for keyed in (digests, known))
    return Findings(
        counts={
            f"{site}/{split}": [counts[site, split, k] for k in range(len(classes))]
            for site in sites
            for split in SPLITS
        },
        missing=missing,
        broken=broken,
        duplicates=[[_named(e) for e in group] for group in copies],
        contradictions=[
            [f"{_named(e)} ({classes[e.label]})" for e in group]
            for group in copies
            if len({e.label for e in group}) > 1
        ],
        leaks=[leak for site in sorted(grouped) for leak in _leaks(entries, site, "train")],
        selected=[leak for site in sorted(grouped) for leak in _leaks(entries, site, "valid")],
        without_groups=[site for site in sites if site not in grouped],
        empty=[(site, split) for site in sites for split in SPLITS if not of_split[site, split]],
        few=[
            (site, split, name, counts[site, split, k])
            for site in sites
            for split in SPLITS
            for k, name in enumerate(classes)
            if of_split[site, split] and counts[site, split, k] < FEW_IMAGES
        ],
        copies_across=len(copies_across),
        copies_across_names=copies_across,
        groups_across=len(groups_across),
        groups_across_names=groups_across,
        copies_selected=_across(digests, "valid"),
        groups_selected=_across(known, "valid"),
        passed_over=_passed_over(entries),
        lone=[(site, n) for site in sites if (n := of_split[site, "train"]) > 1 and n % batch == 1],
    )


def _leaks(entries: Sequence[Entry], site: ClientId, earlier: Split) -> Iterator[Leak]:
    """Yield the leaks of a site from a split to each of those after it."""
    here = [e for e in entries if e.site == site]
    known = {e.group for e in here if e.split == earlier and e.group}
    for split in _after(earlier):
        part = [e for e in here if e.split == split]
        leaking = [_named(e) for e in part if e.group in known]
        yield Leak(site, split, len(leaking), len(part), leaking)


def _after(split: Split) -> tuple[Split, ...]:
    return SPLITS[SPLITS.index(split) + 1 :]


def _named(entry: Entry) -> str:
    return f"{entry.site}/{entry.split}/{entry.name}"


def _passed_over(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Return the files next to the images that no table names: their number by folder and kind."""
    named = {entry.path for entry in entries}
    found: dict[str, dict[str, int]] = {}
    for folder in sorted({path.parent for path in named}):
        others = Counter(
            unread_kind(path, IMAGE_SUFFIXES) or "images that no table names"
            for path in (folder.iterdir() if folder.is_dir() else ())
            if path not in named and (is_hidden(path.name) or not path.is_dir())
        )
        if others:
            found[str(folder)] = dict(others)
    return found


def _across(keyed: Sequence[tuple[Entry, str]], earlier: Split) -> list[str]:
    """Return the images of later splits with a key (pixels or group) in an earlier split of another site."""
    known: defaultdict[str, set[ClientId]] = defaultdict(set)
    for entry, key in keyed:
        if entry.split == earlier:
            known[key].add(entry.site)
    return [_named(e) for e, key in keyed if e.split in _after(earlier) and known[key] - {e.site}]


def _digests(
    entries: Sequence[Entry], seen: Callable[[int], None] | None
) -> tuple[list[tuple[Entry, str]], list[str], dict[str, str]]:
    digests: list[tuple[Entry, str]] = []
    missing: list[str] = []
    broken: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for count, (entry, result) in enumerate(
            zip(entries, pool.map(digest, entries), strict=True), start=1
        ):
            if result is None:
                missing.append(str(entry.path))
            elif isinstance(result, DataError):
                broken[str(entry.path)] = str(result)
            else:
                digests.append((entry, result))
            if seen:
                seen(count)
    return digests, missing, broken


def digest(entry: Entry) -> str | DataError | None:
    """Return a hash of an image's pixels and shape, an error if it is broken, ``None`` if it is missing."""
    if not is_file(entry.path):
        return None
    try:
        pixels = read_image(entry.path)
    except DataError as cause:
        return cause
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()


def hashes(entries: Sequence[Entry], seen: Callable[[int], None] | None = None) -> dict[str, str]:
    """Return the hashes of all images that can be read, by path."""
    return {str(entry.path): found for entry, found in _digests(entries, seen)[0]}
