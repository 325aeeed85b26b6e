"""Methods × seeds on the same data: plan the runs, do those that are missing, and tabulate the results.

A comparison folder holds ``runs/<method>-seed<n>/`` (run folders), ``comparison.{csv,md,tex,png}``,
``retrogress.csv``, ``scores.csv`` and ``report.html``; ``position.json``, for those who follow it; and what
the command was given for later reports: ``margin.json``, ``scorers.json`` and ``tuned.toml``.
"""

import csv
import io
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from prrfl.algorithms import ALGORITHMS, BASELINE, DEFAULT, Traits, traits_of
from prrfl.capture import on_gpu
from prrfl.config import TrainConfig, checked, given_settings, merged
from prrfl.data.fingerprint import Fingerprints, difference, fingerprints
from prrfl.data.own import absolute, is_own_data
from prrfl.data.synthetic import GeneratedData, cached
from prrfl.errors import ConfigError, DataError
from prrfl.machine import usable_cores
from prrfl.parts import is_reference, label, placed
from prrfl.reports import comparison, documents, scores, tables
from prrfl.reports.meter import measure
from prrfl.reports.overlay import draw_comparison
from prrfl.reports.page import ComparisonResults, comparison_page
from prrfl.runs.folder import RunFolder
from prrfl.runs.report import heading, read_run
from prrfl.runs.scorers import read_scorers
from prrfl.runs.setup import load_data
from prrfl.runs.tuned import TUNED, Tuned, read_tuned
from prrfl.storage.atomic import write_json, write_text
from prrfl.storage.reading import parse_json, read_text
from prrfl.types import ClientId, Predictions

log = logging.getLogger("prrfl")
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Planned:
    """One run of a comparison.

    Attributes:
        method: name in the table; ``prrfl:transfer=off`` is ``prrfl`` with one setting changed.
        seed: its seed.
        config: its settings.
        folder: its run folder.
    """

    method: str
    seed: int
    config: TrainConfig
    folder: Path

    @property
    def named(self) -> set[str]:
        """The settings that its name gives."""
        return _changed(self.method)


def plan(
    config: Path | None,
    flags: Mapping[str, object],
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    tuned: Tuned | None = None,
) -> list[Planned]:
    """Return the runs of a comparison, seed by seed. All methods start from the same weights for a seed.

    Args:
        config: a TOML file of settings, or ``None``.
        flags: settings that override it.
        methods: names, each with settings of its own if any: ``name:key=value+key=value``.
        seeds: integers.
        out: the comparison's folder.
        tuned: where each method's settings come from; ``None`` for the defaults.

    Raises:
        ConfigError: with the method, setting or run folder at fault.
        DataError: if the data is missing, or has changed since runs in the folder were started.
    """
    source, given = given_settings(config, {**flags, "workers": 1})
    if (of_method := given.get("set", {}).get("method")) and "method" not in given:
        key, value = next(iter(of_method.items()))
        raise ConfigError(
            f"method.{key} is a setting of one method; give it with that method's name: --methods "
            f"NAME:{key}={value}"
        )
    base = checked(given, source, flags)
    named = _by_name(methods, seeds)
    data = _data_of(base)
    of_all = given if config else flags  # the quickstart's settings give way to tuned ones
    explicit = {name: _explicit(method, of_all, base) for name, method in named.items()}
    best = _tuned_settings(tuned, explicit, seeds)
    planned = []
    for seed in seeds:
        for name, method in named.items():
            settings = {**_settings_of_run(method, given, base), "seed": seed, "data": data}
            resolved = checked(merged(settings, best[name]), f"method '{method}'", flags)
            planned.append(Planned(name, seed, resolved, _run_path(out, name, seed)))
    _warn_of_idle(planned, generated=base.data is None)
    if not any(_is_that_of(base, method) for method in methods):
        for setting in given.get("set", {}).get("method", {}):
            log.warning("method.%s: no effect on any run", setting)
    _check_folder(out, planned, tuned)
    return planned


def _by_name(methods: Sequence[str], seeds: Sequence[int]) -> dict[str, str]:
    """Return the methods by their names in tables; raise unless there are some, and seeds, each once."""
    for what, listed in (("method", methods), ("seed", seeds)):
        if not listed:
            raise ConfigError(f"no {what} given; expected at least one")
        if twice := [item for item in listed if list(listed).count(item) > 1]:
            raise ConfigError(f"{what} {twice[0]} is given twice; give each once")
    named: dict[str, str] = {}
    for method in methods:
        name = _labelled(method)
        if name in named:
            raise ConfigError(
                f"methods {named[name]} and {method} are both called {name} in tables and folders; rename "
                "the class or file of one"
            )
        named[name] = method
    return named


def _data_of(base: TrainConfig) -> Path:
    """Return where the data of all runs is; raise if it is missing, once instead of in every run."""
    if base.data is None:
        return cached(GeneratedData(base.sites, base.images, base.image_size, base.seed))
    if not base.data.exists() and not is_own_data(base.data):
        raise DataError(f"--data {base.data} does not exist; expected a folder, a manifest .csv or an .npz")
    return absolute(base.data)


def _check_folder(out: Path, planned: Sequence[Planned], tuned: Tuned | None) -> None:
    """Raise unless the runs in a comparison's folder, if any, can be compared with the planned ones."""
    if tuned and (out / TUNED).exists() and read_tuned(out) != tuned:
        raise ConfigError(f"{out} holds a comparison with other tuned settings; choose another --out")
    data = planned[0].config.data
    before = {folder: RunFolder(folder).settings() for folder in _run_folders(out)}
    started = {folder: _at(folder, config, data) for folder, config in before.items()}
    _check_alike({one.folder: one.config for one in planned} | started, tuned)
    for one in planned:
        if one.folder in started:
            _check_same(started[one.folder], one)
    if tuned and not (out / TUNED).exists():  # later, the runs' own data is checked
        _check_data_of_search(tuned, planned)
    moved = any(_place(config.data) != _place(data) for config in before.values())
    if moved or any(not RunFolder(one.folder).is_finished for one in planned):
        _check_data_unchanged(list(started), planned[0].config)


def _warn_of_idle(planned: Sequence[Planned], generated: bool) -> None:
    """Warn of settings without effect: on a method if they were given for it alone, else on all methods."""
    used = TrainConfig.where(of_generator=True) if generated else frozenset()
    idle = {one.method: [n for n in one.config.without_effect() if n not in used] for one in planned}
    own = {method: [name for name in names if name in _changed(method)] for method, names in idle.items()}
    everywhere = [name for name in TrainConfig.model_fields if all(name in names for names in idle.values())]
    for method, names in own.items():
        if names:
            log.warning("%s: %s has no effect", method, ", ".join(names))
    if shared := [name for name in everywhere if not any(name in names for names in own.values())]:
        log.warning("%s: no effect on any run", ", ".join(shared))


def _tuned_settings(
    tuned: Tuned | None, explicit: Mapping[str, Mapping[str, object]], seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    if tuned is None:
        return {name: {} for name in explicit}
    if tuned.seed in seeds:
        raise ConfigError(
            f"seed {tuned.seed} is that of the search in {tuned.source}, whose settings may suit it by "
            "chance; choose other --seeds"
        )
    return tuned.settings_of(explicit)


def _run_path(out: Path, method: str, seed: int) -> Path:
    return out / "runs" / f"{method.replace(':', '-').replace('=', '-')}-seed{seed}"


def _searched_from(tuned: Tuned, planned: Sequence[Planned]) -> dict[str, TrainConfig]:
    """Return the settings that the search of each method started from, as far as its folder is there."""
    folders = {one.method: _run_path(Path(tuned.source), one.method, tuned.seed) for one in planned}
    return {
        name: RunFolder(path).settings() for name, path in folders.items() if (path / "config.toml").is_file()
    }


def _check_data_of_search(tuned: Tuned, planned: Sequence[Planned]) -> None:
    """Raise unless training and validation images are those of the search; warn if that is unknown."""
    before = RunFolder(Path(tuned.source)).data()
    if before is None:
        log.warning(
            "%s has no data.json: it cannot be checked whether the settings were searched on this data",
            tuned.source,
        )
        return
    config = planned[0].config
    # Pixels are compared at the size of the search, which may be another one.
    started = next(iter(_searched_from(tuned, planned).values()), config)
    now = fingerprints(load_data(config.model_copy(update={"image_size": started.image_size})))
    if changed := difference(_without_test(before), _without_test(now)):
        raise DataError(
            f"{config.data} is not the data of the search in {tuned.source}: {changed}; search again on "
            "this data, or compare without --tuned"
        )


def _without_test(data: Fingerprints) -> Fingerprints:
    return {
        site: {split: one for split, one in splits.items() if split != "test"}
        for site, splits in data.items()
    }


def differs_from_search(tuned: Tuned, planned: Sequence[Planned]) -> str:
    """Return which settings were others in a search, apart from those that it searched; empty if none."""
    before = _searched_from(tuned, planned)
    found = {}
    for one in planned:
        if one.method not in before:
            continue
        then, now = before[one.method].model_dump(), one.config.model_dump()
        passed_over = FREE | {"seed", "data"} | one.config.idle() | tuned.searched(one.method)
        for key in now.keys() - passed_over:
            if key != "set" and _place(then[key]) != _place(now[key]):
                found[key] = f"{key} {then[key]} (here {now[key]})"
    return ", ".join(found[key] for key in sorted(found))


def _at(folder: Path, config: TrainConfig, data: Path | None) -> TrainConfig:
    """Return a run's settings with its data at the given place, if it has fingerprints to check it by."""
    return config.model_copy(update={"data": data}) if (folder / "data.json").is_file() else config


def _place(value: object) -> object:
    """Return a path's real place, however it was written; other values as they are."""
    return os.path.realpath(value) if isinstance(value, Path) else value


FREE = TrainConfig.where(comparison="free")
"""Settings that may differ between the runs of a comparison: they say where a run is computed, not what."""


def _split(method: str) -> tuple[str, str]:
    """Return a method's name, which may be a reference with a colon of its own, and its settings."""
    name, colon, rest = method.rpartition(":")
    known = "=" in rest or name in set(ALGORITHMS) or not is_reference(method)
    return (name, rest) if colon and known else (method, "")


def _labelled(method: str) -> str:
    """Return a method as the table shows it: a reference without its module or file."""
    name, rest = _split(method)
    rest = rest.replace("/", "-")  # it is also the name of a folder
    return f"{label(name)}:{rest}" if rest else label(name)


def _assignment(method: str, part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals:
        raise ConfigError(f"method '{method}': expected name:key=value, as in prrfl:transfer=off")
    return key, value


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of own parts that apply to all methods: those of all parts but the method."""
    return {kind: table for kind, table in settings.get("set", {}).items() if kind != "method"}


def _settings(method: str) -> dict[str, Any]:
    name, rest = _split(method)
    settings: dict[str, Any] = {"method": name}
    if ALGORITHMS.is_own(name):
        given = dict(_assignment(method, part) for part in rest.split("+") if rest)
        return {**settings, "set": {"method": given}}
    own = {field.name for field in fields(ALGORITHMS[name])} if name in ALGORITHMS else set()
    others = {field.name for kind in ALGORITHMS.builtin.values() for field in fields(kind)} - own
    for part in rest.split("+") if rest else ():
        key, value = _assignment(method, part)
        if key in TrainConfig.where(comparison="same") | TrainConfig.where(comparison="free"):
            raise ConfigError(f"method '{method}': {key} is the same for all methods; use --{key} instead")
        if key in others:
            known = f"it has {', '.join(sorted(own))}" if own else "it has no settings of its own"
            raise ConfigError(f"method '{method}': {name} has no setting {key}; {known}")
        settings[key] = value
    return settings


def _is_that_of(base: TrainConfig, method: str) -> bool:
    """Return whether a method is the one whose settings a file holds, in ``[set.method]``."""
    return placed(_split(method)[0]) == base.method


def _settings_of_run(method: str, given: Mapping[str, Any], base: TrainConfig) -> dict[str, Any]:
    """Return what is given for all runs, overridden by the settings in the method's name."""
    parts = given.get("set", {}) if _is_that_of(base, method) else _shared(given)
    return merged({**given, "set": parts}, _settings(method))


def _explicit(method: str, given: Mapping[str, Any], base: TrainConfig) -> dict[str, object]:
    """Return what is given for a method otherwise than in its name, by the keys of a search."""
    own = given.get("set", {}).get("method", {}) if _is_that_of(base, method) else {}
    return {**given, **{f"method.{name}": base.set["method"][name] for name in own}}


def _run_folders(out: Path) -> list[Path]:
    """Return the folders of all runs of a comparison, those of the default method first."""
    folders = [path.parent for path in (out / "runs").glob("*-seed*/config.toml")]
    return sorted(folders, key=lambda path: (_method(path) != DEFAULT, path.name))


def _check_same(found: TrainConfig, planned: Planned) -> None:
    expected = planned.config.model_dump()
    for key, value in found.model_dump(exclude=set(FREE)).items():
        if _place(value) != _place(expected[key]):
            raise ConfigError(
                f"{planned.folder} holds a run with {key} = {value}, but the command asks for "
                f"{expected[key]}; choose another --out, or remove that folder"
            )


def _check_alike(runs: Mapping[Path, TrainConfig], tuned: Tuned | None = None) -> None:
    """Raise unless all runs have the same settings, apart from those in their names and tuned ones."""
    found: dict[str, tuple[Path, object]] = {}
    for folder, config in runs.items():
        named = _changed(_method(folder)) | _of_method(config) | {"method", "seed"} | FREE
        named |= tuned.searched(_method(folder)) if tuned else set()
        shared = {**config.model_dump(), "set": _shared(config.model_dump())}
        for key, value in shared.items():
            if key in named:
                continue
            first, expected = found.setdefault(key, (folder, value))
            if _place(value) != _place(expected):
                raise ConfigError(
                    f"{first} has {key} = {expected}, but {folder} has {value}, so they cannot be compared; "
                    "choose another --out, or remove one of the folders"
                )


def _changed(method: str) -> set[str]:
    """Return the settings that an ablation changes, from its name in the table."""
    _, _, rest = method.partition(":")
    return {part.partition("=")[0] for part in rest.split("+") if rest}


def _of_method(config: TrainConfig) -> set[str]:
    """Return the settings for which the method of a run has a default of its own."""
    kind = ALGORITHMS[config.method]
    if ALGORITHMS.is_own(config.method):
        return {"loss"} if traits_of(kind).loss != Traits.loss else set()
    known = TrainConfig.model_fields
    own = {part.name for part in fields(kind) if part.default != known[part.name].default}
    return own | ({"loss"} if traits_of(kind).loss != Traits.loss else set())


def run_all(
    planned: Sequence[Planned], workers: int | None = None, time_limit: float | None = None
) -> Iterator[Mapping[str, str]]:
    """Do all unfinished runs, each in a process of its own; resume those that were started before.

    Args:
        planned: the runs.
        workers: number of processes at a time; by default one per core, or one on a GPU, which one run fills.
        time_limit: minutes from now, after which no run begins another round; ``None`` for no limit.

    Yields:
        A few times per second, the last line of output of each run that has failed, by method and seed.
    """
    cores = usable_cores()
    any_on_gpu = any(on_gpu(one.config.device) for one in planned)
    workers = min(workers or (1 if any_on_gpu else cores), len(planned))
    # Threads depend on the whole plan, not on the runs that remain: results depend on the number of threads.
    threads = max(1, cores // workers)
    ends = math.inf if time_limit is None else time.monotonic() + 60 * time_limit
    failed: dict[str, str] = {}
    waiting = [one for one in planned if not RunFolder(one.folder).is_finished]
    running: list[_Process] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() < ends:
                running.append(_start(waiting.pop(0), threads, ends - time.monotonic()))
            if not running:
                break  # the time is over
            time.sleep(POLL_SECONDS)
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                if message := ended.error():
                    failed[f"{ended.planned.method}, seed {ended.planned.seed}"] = message
            yield failed
    finally:
        # Also reached when the user interrupts the command: no run outlives it.
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()


@dataclass(frozen=True)
class _Process:
    """A run in a process of its own, and the file that takes its standard error."""

    planned: Planned
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]

    def error(self) -> str:
        """Return the last line of standard error of a run that failed; empty if it succeeded."""
        with self.stderr:
            self.stderr.seek(0)
            lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        if self.process.returncode == 0:
            return ""
        return lines[-1] if lines else f"ended with exit code {self.process.returncode}"


def _start(one: Planned, threads: int, seconds: float) -> _Process:
    if not (one.folder / "config.toml").is_file():
        RunFolder(one.folder).begin(one.config.model_copy(update={"threads": threads}))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    stderr = TemporaryFile()  # noqa: SIM115 - not a pipe, which blocks the run once it is full
    # The data may have been moved since the run was started.
    command = [sys.executable, "-m", "prrfl", "resume", str(one.folder), "--data", str(one.config.data)]
    if seconds < math.inf:
        command += ["--time-limit", f"{seconds / 60:.3f}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
    return _Process(one, process, stderr)


def read_runs(folder: Path) -> tuple[list[comparison.FinishedRun], TrainConfig]:
    """Return a comparison's finished runs, in the order of its table, and their settings.

    Raises:
        ConfigError: if the folder holds no finished run, or runs with different settings.
        DataError: if runs were trained or tested on different data.
    """
    folders = [RunFolder(path) for path in _run_folders(folder)]
    finished = {there.path: there.settings() for there in folders if there.is_finished}
    if not finished:
        raise ConfigError(f"{folder} holds no finished run; give the folder of a comparison")
    data = next(iter(finished.values())).data
    finished = {path: _at(path, config, data) for path, config in finished.items()}
    _check_alike(finished, tuned_settings(folder))
    runs = [_read_run(path, config) for path, config in finished.items()]
    for one, path in zip(runs, finished, strict=True):
        _check_tests(runs[0].predictions, one.predictions, path)
    _check_data(list(finished))
    return runs, next(iter(finished.values()))


def _read_run(folder: Path, config: TrainConfig) -> comparison.FinishedRun:
    if label(config.method) != _method(folder).partition(":")[0]:
        raise ConfigError(f"{folder} holds a run of method {config.method}; rename the folder, or remove it")
    return read_run(folder, config, _method(folder))


def _check_data_unchanged(folders: Sequence[Path], config: TrainConfig) -> None:
    """Raise if the data has changed since runs were started: before others are trained, not afterwards."""
    # A run without a complete round starts again, with the present data.
    started = [there for there in map(RunFolder, folders) if there.rounds_done and there.data() is not None]
    if started:
        now = fingerprints(load_data(config))
        for there in started:
            there.check_data(now)


def _check_data(folders: Sequence[Path]) -> None:
    """Raise unless all runs were trained on the same data; warn if that is unknown for some."""
    found = {folder: RunFolder(folder).data() for folder in folders}
    if unknown := [folder for folder, data in found.items() if data is None]:
        log.warning(
            "%d of %d runs have no data.json, the first is %s: it cannot be checked whether they were "
            "trained on the same data as the others",
            len(unknown),
            len(folders),
            unknown[0],
        )
    noted = [(folder, data) for folder, data in found.items() if data is not None]
    for folder, data in noted[1:]:
        first, expected = noted[0]
        if changed := difference(expected, data):
            raise DataError(
                f"{folder} was trained on other data than {first}: {changed}; remove one of the folders and "
                "repeat that run"
            )


def _check_tests(
    expected: Mapping[ClientId, Predictions], found: Mapping[ClientId, Predictions], folder: Path
) -> None:
    for site in expected.keys() | found.keys():
        mine, theirs = expected.get(site), found.get(site)
        if mine is None or theirs is None or mine.ids != theirs.ids or not mine.labels.equal(theirs.labels):
            raise DataError(
                f"{folder}: site {site} has other test images than in the other runs, because the data has "
                "changed; remove that folder and repeat the run"
            )


def _method(folder: Path) -> str:
    """Return a method's name in the table from its run folder, such as ``prrfl-transfer-off-seed0``."""
    whole = folder.name.rpartition("-seed")[0]
    # Names of methods may contain hyphens; the longest that fits is meant.
    fitting = [name for name in ALGORITHMS if f"{whole}-".startswith(f"{name}-")]
    name = max(fitting, key=len, default=whole.partition("-")[0])
    settings = whole[len(name) + 1 :]
    if not settings:
        return name
    parts = [part.replace("-", "=", 1) for part in settings.split("+")]
    return f"{name}:{'+'.join(parts)}"


MARGIN = "margin.json"
"""File of a comparison's margin of equivalence, in points; absent if none was given."""


def keep_margin(folder: Path, margin: float) -> None:
    """Write the margin of equivalence of a comparison to its folder.

    Args:
        folder: the comparison's folder.
        margin: in points of the scores, more than 0 and less than 100.

    Raises:
        ConfigError: if the margin is out of range.
    """
    if not 0 < margin < 100:
        raise ConfigError(
            f"--margin: expected points of a score, more than 0 and less than 100, got {margin:g}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARGIN, {"margin": margin})


def read_margin(folder: Path) -> float | None:
    """Return the margin of equivalence of a comparison, as a fraction; ``None`` without one.

    Raises:
        ConfigError: if its file is damaged.
    """
    path = folder / MARGIN
    if not path.is_file():
        return None
    try:
        margin = float(parse_json(read_text(path))["margin"])
    except (ValueError, TypeError, KeyError) as cause:
        raise ConfigError(
            f'{path}: expected {{"margin": points}}; repeat `prrfl compare` with --margin, or remove the file'
        ) from cause
    return margin / 100


def tuned_settings(folder: Path) -> Tuned | None:
    """Return where a comparison's settings come from; ``None`` if they were not tuned.

    Raises:
        ConfigError: if its file is damaged.
    """
    return read_tuned(folder) if (folder / TUNED).is_file() else None


def tabulate(folder: Path) -> list[comparison.Row]:
    """Write the tables and figures of a comparison from its finished runs; return the rows."""
    runs, config = read_runs(folder)
    rows = comparison.compare(runs, DEFAULT, read_margin(folder), further=read_scorers(folder))
    of_runs = [(run.method, run.seed, run.records) for run in runs]
    write_text(folder / "scores.csv", scores.scores_to_csv(of_runs, config.classes))
    write_text(folder / "comparison.csv", tables.comparison_to_csv(rows, DEFAULT))
    write_text(folder / "comparison.md", documents.to_markdown(rows, config.classes))
    write_text(folder / "comparison.tex", documents.to_latex(rows, config.classes))
    write_text(folder / "retrogress.csv", _drops_to_csv(runs))
    draw_comparison(runs, DEFAULT, folder / "comparison.png")
    own = {"method", "seed", "set"}.union(*(_changed(run.method) for run in runs))
    if tuned := tuned_settings(folder):
        own = own.union(*map(tuned.searched, tuned.methods))
    shared = config.model_dump(mode="json", exclude_none=True, exclude=own)
    title = heading(RunFolder(_run_folders(folder)[0]), config, folder.resolve().name)
    page = comparison_page(
        ComparisonResults(title, runs, rows, DEFAULT, BASELINE, shared, _unfinished(folder))
    )
    write_text(folder / "report.html", page)
    return rows


def _unfinished(folder: Path) -> list[str]:
    """Return a comparison's unfinished runs in words."""
    going = [there for there in map(RunFolder, _run_folders(folder)) if not there.is_finished]
    settings = [there.settings() for there in going]
    return [
        f"{_method(there.path)}, seed {config.seed} (round {there.rounds_done} of {config.rounds})"
        for there, config in zip(going, settings, strict=True)
    ]


def _drops_to_csv(runs: Sequence[comparison.FinishedRun]) -> str:
    text = io.StringIO()
    lines = [
        {
            "method": one.method,
            "seed": one.seed,
            **asdict(replace(drop, round=drop.round + 1)),  # counted from 1
            "drop_f1": drop.f1,
            "drop_auc": drop.auc,
        }
        for one in runs
        for drop in measure(one.records)
    ]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
