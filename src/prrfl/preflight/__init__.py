"""What there is to say of a machine, an installation and a data set before anything is trained on them.

Every function looks at one thing and returns findings; nothing is changed, and what a user could mend is a
finding, not an error.
"""

import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import prrfl
from prrfl.config import TrainConfig, checked, load_config
from prrfl.data.check import FEW, Findings, check
from prrfl.data.images import SPLITS, Entry
from prrfl.data.sources import npz_files, read_entries
from prrfl.data.synthetic import GeneratedData, cache_folder
from prrfl.errors import PRRFLError
from prrfl.machine import available_memory, multiplies_bfloat16, prepared, system, usable_cores
from prrfl.runs.checkpoint import CHECKPOINTS_KEPT
from prrfl.runs.setup import load_data, make_recipe, resolved
from prrfl.storage.tensor_files import to_bytes
from prrfl.tensors import count_bytes, norm_keys
from prrfl.training import Recipe, Site
from prrfl.types import Examples, RoundContext, SiteData

Level = Literal["ok", "note", "problem"]

LEAST_MEMORY = 600 * 2**20
"""Bytes without which no step is tried: a process that trained at the smallest size took 549 MiB."""

EPOCH = 320
"""Images of the epoch that a measured step is extrapolated to."""

CHECK, SPLIT = "`prrfl data check` says which", "`prrfl data split` makes splits without"

NVIDIA = Path("/proc/driver/nvidia/version")
"""There where NVIDIA's driver is loaded."""

FOR_DEVELOPERS = {"dev", "docs"}
"""Extras that no user of the package needs."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``note`` for what a user should know, ``problem`` for what training fails on.
        topic: what was looked at, in a word or two.
        words: what was found.
        mend: what to do about it.
    """

    level: Level
    topic: str
    words: str
    mend: str = ""


def examine(
    config: Path | None = None,
    data: Path | None = None,
    seen: Callable[[int, int], None] | None = None,
) -> Iterator[Finding]:
    """Yield all findings.

    Args:
        config: a TOML file of settings; the paper's, if not given.
        data: a data set in any form that ``prrfl train`` takes.
        seen: is told how many images of how many were looked at.
    """
    if installed_version("prrfl") is None:
        words = f"imported from {Path(prrfl.__file__).parent}, but not installed: its metadata is not there"
        yield Finding("problem", "prrfl", words, "pip install it, by --editable where it is a working copy")
        return
    yield python()
    if platform.system() != "Linux":
        yield Finding(
            "problem", "system", f"{platform.system()}: prrfl runs on Linux only", "use a Linux machine"
        )
        return
    yield Finding("ok", "system", system())
    yield from installation()
    yield from packages()
    yield from extras()
    yield cores()
    yield from graphics()
    memory = available_memory()
    settings, faults = read_settings(config, data)
    yield from faults
    data = settings.data  # given, or named by the file
    source = DataSet((), len(npz_files(data)) if data else settings.sites)
    if data and not npz_files(data):
        source, faults = images(settings, data, seen)
        yield from faults
    try:
        chosen = resolved(settings, max(1, source.sites))
    except PRRFLError as cause:
        yield Finding("problem", "settings", str(cause))
        return
    yield choice(chosen)
    try:
        recipe = make_recipe(chosen)
    except (ImportError, PRRFLError) as cause:
        yield Finding("problem", "network", f"{chosen.network} cannot be made: {cause}")
        return
    yield from disk(chosen, source.sites, recipe)
    yield from training(chosen, source, memory, recipe)
    if data and source.usable:
        yield from loading(settings, source, memory)


def verdict(findings: Iterable[Finding]) -> str:
    """Return what follows from all findings, in one line."""
    levels = [finding.level for finding in findings]
    notes = _count(levels.count("note"), "note")
    if problems := levels.count("problem"):
        return f"Not ready to train: {_count(problems, 'problem')}, {notes}."
    return f"Ready to train: no problem, {notes}."


def python(version: str | None = None) -> Finding:
    """Compare Python's version with those that the package is made for."""
    version = version or platform.python_version()
    wanted = metadata.metadata("prrfl")["Requires-Python"]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("ok", "Python", f"{version} ({sys.executable}); prrfl takes {wanted}")
    return Finding(
        "problem", "Python", f"{version}; prrfl takes {wanted}", "install it anew under a newer Python"
    )


def installation() -> Iterator[Finding]:
    """Say which prrfl is imported, and whether another one stands in its light."""
    folder = Path(prrfl.__file__).parent
    here = Finding("ok", "prrfl", f"{prrfl.__version__} from {folder}")
    versions = {one.version: str(one.locate_file("")) for one in metadata.distributions(name="prrfl")}
    others = {version: where for version, where in versions.items() if version != prrfl.__version__}
    if others:
        named = ", ".join(f"{version} in {where}" for version, where in others.items())
        here = Finding(
            "problem",
            "prrfl",
            f"{prrfl.__version__} is imported from {folder}, but installed is also {named}",
            "pip uninstall prrfl until none is left, take its folder off PYTHONPATH, and install it once",
        )
    elif not _is_installed(folder):
        here = Finding(
            "note",
            "prrfl",
            f"{prrfl.__version__} is imported from {folder}, which is not where it is installed",
            "take that folder off PYTHONPATH, or leave the folder that you are in, unless this is meant",
        )
    yield here
    command = shutil.which("prrfl")
    if command and Path(command).parent.resolve() != Path(sys.executable).parent.resolve():
        yield Finding(
            "note",
            "prrfl",
            f"the shell's `prrfl` is {command}, of another installation than this one",
            f"give {Path(sys.executable).parent / 'prrfl'}, or put its folder first on PATH",
        )


def _is_installed(folder: Path) -> bool:
    """Return whether a distribution says that the package lives in this folder."""
    for one in metadata.distributions(name="prrfl"):
        editable = one.read_text("direct_url.json") or ""
        if Path(str(one.locate_file("prrfl"))).resolve() == folder.resolve() and one.read_text("RECORD"):
            return True
        if any(f'"{parent.as_uri()}"' in editable for parent in folder.parents):
            return True
    return False


def packages(
    requires: Sequence[str] | None = None, version: Callable[[str], str | None] | None = None
) -> Iterator[Finding]:
    """Compare the versions of what prrfl needs with the ranges that it is made for.

    Args:
        requires: lines of requirements; those of the installed prrfl, if not given.
        version: gives a package's installed version, ``None`` where it is not there.
    """
    needed = requirements(requires)
    fitting, unfit = _compared(needed, version or installed_version)
    if not unfit:
        yield Finding("ok", "packages", ", ".join(fitting))
    for requirement, words in unfit.items():
        yield Finding("problem", "packages", words, f"pip install '{requirement}'")


def extras(
    requires: Sequence[str] | None = None,
    version: Callable[[str], str | None] | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Finding]:
    """Say of every extra whether it is there, or how to get it.

    Args:
        requires: as for :func:`packages`.
        version: as for :func:`packages`.
        names: of the extras; all but the developers', if not given.
    """
    known = metadata.metadata("prrfl").get_all("Provides-Extra") or []
    for extra in known if names is None else names:
        if extra in FOR_DEVELOPERS and names is None:
            continue
        fitting, unfit = _compared(requirements(requires, extra), version or installed_version)
        if unfit:
            words = "; ".join(unfit.values())
            yield Finding("note", f"extra {extra}", words, f"pip install 'prrfl[{extra}]', if you need it")
        else:
            yield Finding("ok", f"extra {extra}", ", ".join(fitting))


def requirements(lines: Sequence[str] | None = None, extra: str = "") -> list[Requirement]:
    """Return what prrfl needs here, or what an extra adds to that."""
    lines = lines if lines is not None else metadata.requires("prrfl") or []
    found: list[Requirement] = []
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        holds = marker is None or marker.evaluate({"extra": extra})
        if not holds or (extra and (marker is None or marker.evaluate({"extra": ""}))):
            continue
        if requirement.name == "prrfl":
            found += [inner for name in sorted(requirement.extras) for inner in requirements(lines, name)]
        else:
            found.append(requirement)
    return found


def installed_version(name: str) -> str | None:
    """Return a package's version without importing it, ``None`` where it is not there."""
    try:
        return metadata.version(name) or None  # None of a folder that a broken installation left
    except metadata.PackageNotFoundError:
        return None


def _compared(
    needed: Iterable[Requirement], version: Callable[[str], str | None]
) -> tuple[list[str], dict[str, str]]:
    """Return the names and versions that fit, and for each requirement that is not met what is wrong."""
    fitting: list[str] = []
    unfit: dict[str, str] = {}
    for requirement in needed:
        wanted, there = f"{requirement.name}{requirement.specifier}", version(requirement.name)
        if there is None:
            unfit[wanted] = f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(there, prereleases=True):
            unfit[wanted] = f"{requirement.name} {there} is installed, prrfl takes {requirement.specifier}"
        else:
            fitting.append(f"{requirement.name} {there}")
    return fitting, unfit


def cores() -> Finding:
    """Count the cores that training can use."""
    usable, machine = usable_cores(), os.cpu_count() or 1
    if usable >= machine:
        return Finding("ok", "cores", f"{usable}, all of the machine's")
    return Finding(
        "note", "cores", f"{usable} of the machine's {machine}: affinity or a container allows no more"
    )


def graphics() -> Iterator[Finding]:
    """Say what torch computes on, why there is no GPU where there is none, and how well it does bfloat16."""
    versions = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = next((f"{name} {version}" for name, version in versions.items() if version), "the CPU")
    yield Finding("ok", "torch", f"torch {torch.__version__}, for {build}")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        words = f"cuda:{index}: {torch.cuda.get_device_name(index)}, {size(free)} of {size(total)} free"
        yield _bfloat16("GPU", f"cuda:{index}", words)
    if torch.cuda.is_available():
        return
    if build != "the CPU":
        words = f"none that torch can use: {_why_no_gpu()}"
        yield Finding("note", "GPU", words, "without one, training runs on the CPU")
    elif NVIDIA.exists():
        words = "there is an NVIDIA driver, but this torch is built for the CPU"
        yield Finding("note", "GPU", words, "for the GPU install torch's CUDA build; see docs/install.md")
    yield _bfloat16("CPU", "cpu", platform.machine())


def _bfloat16(topic: str, device: str, words: str) -> Finding:
    has = "bfloat16 in hardware" if multiplies_bfloat16(device) else "no bfloat16 in hardware: float32"
    return Finding("ok", topic, f"{words}; {has}")


def _why_no_gpu() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as cause:
        return " ".join(str(cause).split()).partition(". ")[0]
    return "torch counts no device"


def read_settings(config: Path | None, data: Path | None) -> tuple[TrainConfig, list[Finding]]:
    """Return the settings to look at, the defaults where a file's do not hold, and what is wrong."""
    given = {} if data is None else {"data": data}
    defaults = checked(given, "defaults")
    if config is None:
        return defaults, []
    try:
        return load_config(config, given), []
    except PRRFLError as cause:
        return defaults, [Finding("problem", "settings", str(cause))]


def choice(config: TrainConfig) -> Finding:
    """Say what training picks where it is left to pick."""
    return Finding(
        "ok",
        "train picks",
        f"device {config.device}, {config.precision}, processes: {config.workers}, "
        f"threads of each: {config.threads}",
    )


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set's images before they are loaded.

    Attributes:
        entries: the images that have files of their own.
        sites: number of sites.
        usable: whether loading is worth trying.
    """

    entries: Sequence[Entry]
    sites: int
    usable: bool = True


def images(
    config: TrainConfig, data: Path, seen: Callable[[int, int], None] | None = None
) -> tuple[DataSet, list[Finding]]:
    """Look at every image of a data set that has files."""
    try:
        entries = read_entries(data, image_size=config.image_size, classes=config.classes)
    except PRRFLError as cause:
        return DataSet((), config.sites, usable=False), [Finding("problem", "data", str(cause))]
    found = check(
        entries, config.classes, config.batch, (lambda done: seen(done, len(entries))) if seen else None
    )
    usable = not found.broken and (config.allow_missing or not found.missing)
    counted = Counter((entry.site, entry.split) for entry in entries)
    counts = {site: [counted[site, split] for split in SPLITS] for site, _ in counted}
    return DataSet(entries, len(counts), usable), [_overview(counts), *_in_brief(found, config.allow_missing)]


def _overview(counts: Mapping[str, Sequence[int]]) -> Finding:
    """Say which sites there are, given each one's images of every split."""
    named = ", ".join(f"{site} {'/'.join(map(str, of))}" for site, of in sorted(counts.items()))
    return Finding("ok", "data", f"{_count(len(counts), 'site')}, images of {'/'.join(SPLITS)}: {named}")


def _in_brief(found: Findings, allow_missing: bool) -> Iterator[Finding]:
    """Yield the findings of ``prrfl data check``, a line for each kind."""
    if found.missing:
        words = f"{_count(len(found.missing), 'image')} missing, such as {found.missing[0]}"
        yield Finding("note" if allow_missing else "problem", "data", words, CHECK)
    if found.broken:
        yield Finding(
            "problem", "data", f"{len(found.broken)} broken: {next(iter(found.broken.values()))}", CHECK
        )
    leaking = sum(leak.images for leak in found.leaks)
    copies = sum(len(group) for group in found.duplicates)
    across = found.copies_across + found.groups_across
    notes = (
        (leaking, "valid or test images show a lesion or patient that their site trains on", SPLIT),
        (copies, "images have the same pixels as another one", CHECK),
        (across, "valid or test images have the pixels or group of one that another site trains on", CHECK),
        (
            len(found.few),
            f"times a split has fewer than {FEW} images of a class, whose scores are mostly chance",
            CHECK,
        ),
    )
    for count, what, mend in notes:
        if count:
            yield Finding("note", "data", f"{count} {what}", mend)


def disk(config: TrainConfig, sites: int, recipe: Recipe) -> Iterator[Finding]:
    """Look at the folders that are written to: runs, and the cache of generated data where it is used."""
    yield folder("runs", Path("runs"), run_bytes(config, sites, recipe))
    if config.data is None:
        spec = GeneratedData(config.sites, config.images, config.image_size, config.seed)
        yield folder("generated data", cache_folder(), spec.bytes)


def run_bytes(config: TrainConfig, sites: int, recipe: Recipe) -> int:
    """Return about how many bytes a run's folder takes at most."""
    weights = recipe.network.state_dict()
    state = len(to_bytes(config.algorithm().start(weights)))
    # One round's states more than are kept, while they are committed; the best and the last network.
    return sites * ((CHECKPOINTS_KEPT + 1) * state + 2 * count_bytes(weights))


def folder(topic: str, path: Path, needed: int) -> Finding:
    """See whether a folder, there or not, can be written to and has room for some bytes."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as cause:
        return Finding(
            "problem",
            topic,
            f"{path.absolute()} cannot be written to ({cause.strerror})",
            "go where you may write, or give --out"
            if topic == "runs"
            else "set XDG_CACHE_HOME to such a folder",
        )
    words = f"{path.absolute()}: {size(free)} free, about {size(needed)} needed"
    if free < needed:
        return Finding("problem", topic, words, "make room, or go to another disk")
    return Finding("ok", topic, words)


def training(config: TrainConfig, source: DataSet, memory: int, recipe: Recipe) -> Iterator[Finding]:
    """Train a few batches with the chosen settings; say how long an epoch takes, and how much memory.

    Args:
        config: the settings, with nothing left to choose.
        source: the data set.
        memory: bytes that may be taken.
        recipe: that the settings describe.
    """
    if memory < LEAST_MEMORY:
        words = f"{size(memory)} available, at least {size(LEAST_MEMORY)} needed"
        yield Finding("problem", "memory", words, "end other programs, or give the container more")
        return
    try:
        each = seconds_per_image(config, recipe)
    # Whatever goes wrong here, such as a GPU that this torch has no code for, would go wrong in training.
    except Exception as cause:
        reason = " ".join(str(cause).split())
        yield Finding("problem", "training", f"a step of {config.network} fails: {reason}")
        return
    yield Finding(
        "ok",
        "speed",
        f"one local epoch of {EPOCH} images: about {duration(EPOCH * each)} "
        f"({config.method}, {config.network}, {config.image_size} px; measured now, on random images, "
        f"in one process of {_count(config.threads, 'thread')})",
    )
    if learnt := sum(entry.split == "train" for entry in source.entries):
        whole = learnt * config.epochs * config.rounds * each / config.workers
        yield Finding(
            "ok",
            "speed",
            f"{_count(config.rounds, 'round')} of {_count(config.epochs, 'epoch')} on {learnt:,} training "
            f"images: about {duration(whole)} by that measure, without scoring",
        )
    yield enough(memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, config, source)


def enough(memory: int, process: int, config: TrainConfig, source: DataSet) -> Finding:
    """Compare the memory that training takes with what there is.

    Args:
        memory: bytes that may be taken.
        process: bytes that a process took at most which trained a few batches.
        config: the settings, with nothing left to choose.
        source: the data set.
    """
    count = len(source.entries) or source.sites * config.images
    pixels = count * 3 * config.image_size**2
    words = (
        f"{size(memory)} available; {_count(config.workers, 'process')} of up to {size(process)} "
        f"(measured now), {count:,} decoded images {size(pixels)}"
    )
    if process + pixels > memory:
        mend = "end other programs, or take a smaller --image-size, --batch or --network"
        return Finding("problem", "memory", words, mend)
    if config.workers * process + pixels > memory:
        return Finding(
            "note", "memory", f"{words}: it may run out", f"give less than {config.workers} --workers"
        )
    return Finding("ok", "memory", words)


def seconds_per_image(config: TrainConfig, recipe: Recipe, at_least: float = 0.5) -> float:
    """Return how long an image takes in a local epoch of the method, from batches of random images.

    Args:
        config: the settings, with nothing left to choose.
        recipe: that they describe.
        at_least: seconds of measuring, after a batch that does not count: it takes memory and picks kernels.
    """
    method = config.algorithm()
    state = method.start(recipe.network.state_dict())
    moment = RoundContext(0, config.rounds, 0, config.epochs, config.seed, norm_keys(recipe.network))

    def seconds(count: int) -> float:
        examples = Examples(
            torch.randint(256, (count, 3, config.image_size, config.image_size), dtype=torch.uint8),
            torch.arange(count) % len(config.classes),
        )
        site = Site(SiteData("random", examples, examples, examples).to(recipe.device), recipe)
        started = time.perf_counter()
        method.train(state, site, moment)
        return time.perf_counter() - started

    with prepared(config.threads):
        seconds(config.batch)
        count = config.batch
        while (taken := seconds(count)) < at_least and count < EPOCH:
            count = min(2 * count, EPOCH)
    return taken / count


def loading(config: TrainConfig, source: DataSet, memory: int) -> Iterator[Finding]:
    """Load the data as training does, and say where it would be refused."""
    if 3 * len(source.entries) * config.image_size**2 > memory:
        return  # said already
    try:
        sites = load_data(config)
    except PRRFLError as cause:
        yield Finding("problem", "data", str(cause))
        return
    if not source.entries:
        yield _overview({site.name: [len(site.split(split)) for split in SPLITS] for site in sites})


def size(count: float) -> str:
    """Return a number of bytes for people."""
    if count < 2**20:
        return "less than 1 MiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Return a time for people, with two digits that mean something."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _count(number: int, thing: str) -> str:
    plural = {"process": "processes"}.get(thing, f"{thing}s")
    return f"{number} {thing if number == 1 else plural}"
