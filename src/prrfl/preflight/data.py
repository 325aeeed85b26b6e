"""Checks of a data set: what ``prrfl data check`` finds, in brief, and whether it can be loaded."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prrfl.config import TrainConfig
from prrfl.data.check import FEW_IMAGES, Findings, check
from prrfl.data.images import SPLITS, Entry
from prrfl.data.sources import read_entries
from prrfl.errors import PRRFLError
from prrfl.preflight.findings import Finding
from prrfl.reports.formatting import counted
from prrfl.runs.setup import load_data

_CHECK = "`prrfl data check` lists them, and with --json FILE all of them"
_SPLIT = "`prrfl data split` makes splits without them"


@dataclass(frozen=True)
class DataSet:
    """A data set's images, before they are loaded.

    Attributes:
        entries: the images that are files; empty for arrays and for data that the user's own code loads.
        sites: number of sites, or the setting's if the user's own code loads them.
        usable: whether no fault is known that loading would fail on.
    """

    entries: Sequence[Entry]
    sites: int
    usable: bool = True


def check_images(
    config: TrainConfig, data: Path, seen: Callable[[int, int], None] | None = None
) -> tuple[DataSet, list[Finding]]:
    """Check every image of a data set of image files."""
    try:
        entries = read_entries(data, image_size=config.image_size, classes=config.classes)
    except PRRFLError as cause:
        return DataSet((), config.sites, usable=False), [Finding("problem", "data", str(cause))]
    found = check(
        entries, config.classes, config.batch, (lambda done: seen(done, len(entries))) if seen else None
    )
    usable = not found.broken and (config.allow_missing or not found.missing)
    images = Counter((entry.site, entry.split) for entry in entries)
    counts = {site: [images[site, split] for split in SPLITS] for site, _ in images}
    return DataSet(entries, len(counts), usable), [_overview(counts), *_in_brief(found, config.allow_missing)]


def _overview(counts: Mapping[str, Sequence[int]]) -> Finding:
    """Return a finding that names the sites, given the number of images of each split of each site."""
    named = ", ".join(f"{site} {'/'.join(map(str, of))}" for site, of in sorted(counts.items()))
    return Finding("ok", "data", f"{counted(len(counts), 'site')}, images of {'/'.join(SPLITS)}: {named}")


def _in_brief(found: Findings, allow_missing: bool) -> Iterator[Finding]:
    """Yield the findings of ``prrfl data check``, one for each kind."""
    if found.missing:
        message = f"{counted(len(found.missing), 'image')} missing, such as {found.missing[0]}"
        yield Finding("note" if allow_missing else "problem", "data", message, _CHECK)
    if found.broken:
        yield Finding(
            "problem", "data", f"{len(found.broken)} broken: {next(iter(found.broken.values()))}", _CHECK
        )
    leaking = sum(leak.images for leak in found.leaks)
    copies = sum(len(group) for group in found.duplicates)
    contradicting = sum(len(group) for group in found.contradictions)
    across = found.copies_across + found.groups_across
    selected = sum(leak.images for leak in found.selected)
    selected += len(found.copies_selected) + len(found.groups_selected)
    few = "one split has" if len(found.few) == 1 else f"in {len(found.few)} cases, a split has"
    held_out = "valid or test image"
    notes = (
        (
            leaking,
            f"{counted(leaking, held_out)} of a lesion or patient that the same site trains on",
            _SPLIT,
        ),
        (selected, f"{counted(selected, 'test image')} of a group or copy in a validation set", _CHECK),
        (copies, f"{counted(copies, 'image')} with the same pixels as another one", _CHECK),
        (contradicting, f"{counted(contradicting, 'image')} with copies that have another label", _CHECK),
        (
            across,
            f"{counted(across, held_out)} with the pixels or group of a training image of another site",
            _CHECK,
        ),
        (
            len(found.few),
            f"{few} fewer than {FEW_IMAGES} images of a class, whose scores are mostly chance",
            _CHECK,
        ),
    )
    for count, message, advice in notes:
        if count:
            yield Finding("note", "data", message, advice)


def check_loading(config: TrainConfig, source: DataSet, memory: int) -> Iterator[Finding]:
    """Load the data as training does, and report an error if there is one."""
    if 3 * len(source.entries) * config.image_size**2 > memory:
        return  # check_memory_use has reported it
    try:
        sites = load_data(config)
    except PRRFLError as cause:
        yield Finding("problem", "data", str(cause))
        return
    if not source.entries:
        yield _overview({site.name: [len(site.split(split)) for split in SPLITS] for site in sites})
