"""Methods × seeds on one data set: plan the runs, do those that are not done, put them side by side.

A comparison folder holds ``runs/<method>-seed<n>/`` (run folders), ``comparison.{csv,md,tex,png}``,
``retrogress.csv``, ``scores.csv`` and ``report.html``.
"""

import csv
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from prrfl.algorithms import ALGORITHMS
from prrfl.config import TrainConfig, load_config
from prrfl.data.fingerprint import difference, fingerprints
from prrfl.data.synthetic import GeneratedData, cached
from prrfl.engine.in_process import POOL
from prrfl.errors import ConfigError, DataError
from prrfl.machine import usable_cores
from prrfl.reports import comparison, scores, tables
from prrfl.reports.meter import measure
from prrfl.reports.overlay import draw_comparison
from prrfl.reports.page import comparison_page
from prrfl.runs import folder as run_folder
from prrfl.runs.deployed import kept_path, predictions_path, read_about
from prrfl.runs.run import load_data
from prrfl.storage.atomic import write_text
from prrfl.storage.records import read_predictions, read_records
from prrfl.types import ClientId, Predictions

log = logging.getLogger("prrfl")
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Planned:
    """One run of a comparison; the method ``prrfl:transfer=off`` is PRR-FL with a setting changed."""

    method: str
    seed: int
    config: TrainConfig
    folder: Path


def plan(
    config: Path | None, flags: Mapping[str, object], methods: Sequence[str], seeds: Sequence[int], out: Path
) -> list[Planned]:
    """Return the runs of a comparison, seed by seed. With the same seed all methods have the same start.

    Args:
        config: a TOML file of settings, or ``None``.
        flags: settings that override it.
        methods: names, each with any settings of its own: ``name:key=value+key=value``.
        seeds: whole numbers.
        out: the comparison's folder.

    Raises:
        ConfigError: naming the method, setting or run folder at fault.
        DataError: if the data is not there, or not what runs that are there were begun with.
    """
    base = load_config(config, {**flags, "workers": 1})
    if base.data and not base.data.exists():  # said once, not by every run
        raise DataError(f"--data {base.data} is not there; expected a folder, a manifest .csv or an .npz")
    data = base.data or cached(GeneratedData(base.sites, base.images, base.image_size, base.seed))
    for what, listed in (("method", methods), ("seed", seeds)):
        if not listed:
            raise ConfigError(f"no {what} given; name at least one")
        if twice := [item for item in listed if list(listed).count(item) > 1]:
            raise ConfigError(f"{what} {twice[0]} is named twice; name each once")
    planned = []
    for seed in seeds:
        for method in methods:
            settings = {**flags, **_settings(method), "seed": seed, "data": data}
            folder = out / "runs" / f"{method.replace(':', '-').replace('=', '-')}-seed{seed}"
            # The base as a whole, so that a quickstart's or file's settings hold for every run.
            whole = {**base.model_dump(exclude_none=True), **settings}
            planned.append(Planned(method, seed, load_config(None, whole), folder))
    begun = {folder: run_folder.settings_of(folder) for folder in _run_folders(out)}
    _check_alike({one.folder: one.config for one in planned} | begun)
    for one in planned:
        if one.folder in begun:
            _check_same(begun[one.folder], one)
    if any(not run_folder.is_finished(one.folder) for one in planned):
        _check_data_is_theirs(list(begun), planned[0].config)
    return planned


SHARED = frozenset({"data", "classes", "image_size", "allow_missing", "sites", "images", "method", "seed"})
"""Settings that no method may have of its own, because it would not be compared with the others then."""

FREE = frozenset({"device", "workers", "threads", "tensorboard"})
"""Settings that may differ from run to run: they change how a run is done, not what it is."""


def _settings(method: str) -> dict[str, object]:
    name, _, rest = method.partition(":")
    settings: dict[str, object] = {"method": name}
    own = {field.name for field in fields(ALGORITHMS[name])} if name in ALGORITHMS else set()
    others = {field.name for kind in ALGORITHMS.values() for field in fields(kind)} - own
    for part in rest.split("+") if rest else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"method '{method}': expected name:key=value, as in prrfl:transfer=off")
        if key in TrainConfig.where(comparison="same") | TrainConfig.where(comparison="free"):
            raise ConfigError(f"method '{method}': {key} is the same for all methods; give --{key} instead")
        if key in others:
            known = f"its own are {', '.join(sorted(own))}" if own else "it has none of its own"
            raise ConfigError(f"method '{method}': {name} has no setting {key}; {known}")
        settings[key] = value
    return settings


def _run_folders(out: Path) -> list[Path]:
    """Return the folders of all runs of a comparison, PRR-FL's first."""
    folders = [path.parent for path in (out / "runs").glob("*-seed*/config.toml")]
    return sorted(folders, key=lambda path: (_method(path) != comparison.REFERENCE, path.name))


def _check_same(found: TrainConfig, planned: Planned) -> None:
    expected = planned.config.model_dump()
    for key, value in found.model_dump(exclude=set(FREE)).items():
        if value != expected[key]:
            raise ConfigError(
                f"{planned.folder} holds a run with {key} = {value}, now asked for with {expected[key]}; "
                "choose another --out, or remove that folder"
            )


def _check_alike(runs: Mapping[Path, TrainConfig]) -> None:
    """Raise unless all runs have the same settings, but for those that their methods name."""
    found: dict[str, tuple[Path, object]] = {}
    for folder, config in runs.items():
        named = _settings(_method(folder)).keys() | {"seed"} | FREE
        for key, value in config.model_dump(exclude=set(named)).items():
            first, expected = found.setdefault(key, (folder, value))
            if value != expected:
                raise ConfigError(
                    f"{first} has {key} = {expected}, but {folder} has {value}; they cannot be "
                    "compared: choose another --out, or remove one of the folders"
                )


@dataclass(frozen=True)
class State:
    """How far a comparison came: complete rounds of all runs, and the last words of runs that failed."""

    rounds: int
    failed: Mapping[str, str]


def run_all(planned: Sequence[Planned], workers: int | None = None) -> Iterator[State]:
    """Do all runs that are not finished, each in a process of its own; resume those that were begun.

    Args:
        planned: the runs.
        workers: processes at a time; as many as there are cores if not given, one on a GPU.

    Yields:
        How far it came, a few times a second.
    """
    cores = usable_cores()
    on_gpu = any(one.config.device.startswith("cuda") for one in planned)
    workers = min(workers or (1 if on_gpu else cores), len(planned))
    # Threads depend on the plan, not on what is left of it, because sums in threads round differently.
    threads = max(1, cores // workers)
    failed: dict[str, str] = {}
    waiting = [one for one in planned if not run_folder.is_finished(one.folder)]
    running: list[_Process] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(0), threads))
            time.sleep(POLL_SECONDS)
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                if words := ended.last_words():
                    failed[f"{ended.planned.method}, seed {ended.planned.seed}"] = words
            yield State(sum(run_folder.rounds_done(one.folder) for one in planned), failed)
    finally:
        # Reached early when the user interrupts: no process outlives the command that started it.
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()


@dataclass(frozen=True)
class _Process:
    """A run that goes on in a process of its own, and what it says on standard error."""

    planned: Planned
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_words(self) -> str:
        """Return the last line of a run that failed, nothing of one that ended well."""
        with self.said:
            self.said.seek(0)
            lines = self.said.read().decode(errors="replace").strip().splitlines()
        if self.process.returncode == 0:
            return ""
        return lines[-1] if lines else f"ended with exit code {self.process.returncode}"


def _start(one: Planned, threads: int) -> _Process:
    if not (one.folder / "config.toml").is_file():
        run_folder.begin(one.config.model_copy(update={"threads": threads}), one.folder)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    said = TemporaryFile()  # noqa: SIM115 - not a pipe, which would stop the run when nobody reads
    command = [sys.executable, "-m", "prrfl", "resume", str(one.folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
    return _Process(one, process, said)


def read_runs(folder: Path) -> tuple[list[comparison.Run], TrainConfig]:
    """Return a comparison's finished runs, in the order of its table, and their settings.

    Raises:
        ConfigError: if the folder holds no finished run, or runs whose settings differ.
        DataError: if runs were trained or judged on different data.
    """
    finished = {
        path: run_folder.settings_of(path) for path in _run_folders(folder) if run_folder.is_finished(path)
    }
    if not finished:
        raise ConfigError(f"{folder} holds no finished run; expected the folder of a comparison")
    _check_alike(finished)
    runs = [_read_run(path, config) for path, config in finished.items()]
    for one, path in zip(runs, finished, strict=True):
        _check_tests(runs[0].predictions, one.predictions, path)
    _check_data(list(finished))
    return runs, next(iter(finished.values()))


def _read_run(folder: Path, config: TrainConfig) -> comparison.Run:
    summary = run_folder.read_summary(folder)
    sites = summary["best"]["sites"]
    if config.method != _method(folder).partition(":")[0]:
        raise ConfigError(f"{folder} holds a run of method {config.method}; rename the folder, or remove it")
    return comparison.Run(
        method=_method(folder),
        seed=config.seed,
        records=read_records(folder / "metrics.jsonl", classes=len(config.classes)),
        predictions={
            site: read_predictions(predictions_path(folder, site, "best", "test"), config.classes)
            for site in sites
        },
        seconds=summary["seconds"],
        rounds=config.rounds,
        epochs=config.epochs,
        training={site: counts for site in sites if (counts := _training_counts(folder, site))},
    )


def _training_counts(folder: Path, site: ClientId) -> tuple[int, ...] | None:
    """Return how many training images of each class a site's network saw; ``None`` if none is kept."""
    paths = (kept_path(folder, whose, "best") for whose in (site, POOL))
    path = next((path for path in paths if path.is_file()), None)
    return read_about(path).images["train"] if path else None


def _check_data_is_theirs(folders: Sequence[Path], config: TrainConfig) -> None:
    """Raise unless the data is what runs were begun with: before others are trained, not in the table."""
    # One without a complete round begins anew, on the data that is there.
    begun = [one for one in folders if run_folder.rounds_done(one) and run_folder.read_data(one) is not None]
    if begun:
        now = fingerprints(load_data(config))
        for folder in begun:
            run_folder.check_data(folder, now)


def _check_data(folders: Sequence[Path]) -> None:
    """Raise unless all runs were trained on the same data; a warning says where that was not noted."""
    found = {folder: run_folder.read_data(folder) for folder in folders}
    if unknown := [folder for folder, data in found.items() if data is None]:
        log.warning(
            "%d of %d runs hold no data.json, %s first: nobody can tell whether they were trained on "
            "the data of the others",
            len(unknown),
            len(folders),
            unknown[0],
        )
    noted = [(folder, data) for folder, data in found.items() if data is not None]
    for folder, data in noted[1:]:
        first, expected = noted[0]
        if changed := difference(expected, data):
            raise DataError(
                f"{folder} was trained on other data than {first}: {changed}; remove one of the folders, and "
                "run it again"
            )


def _check_tests(
    expected: Mapping[ClientId, Predictions], found: Mapping[ClientId, Predictions], folder: Path
) -> None:
    for site in expected.keys() | found.keys():
        mine, theirs = expected.get(site), found.get(site)
        if mine is None or theirs is None or mine.ids != theirs.ids or not mine.labels.equal(theirs.labels):
            raise DataError(
                f"{folder}: the test images of site {site} are not those of the other runs; the data has "
                "changed since, so remove that folder and run it again"
            )


def _method(folder: Path) -> str:
    """Return a method's name in the table from its run folder: ``prrfl-transfer-off-seed0``."""
    name, *settings = folder.name.rpartition("-seed")[0].split("-", 1)
    if not settings:
        return name
    parts = [part.replace("-", "=", 1) for part in settings[0].split("+")]
    return f"{name}:{'+'.join(parts)}"


def tabulate(folder: Path) -> list[comparison.Row]:
    """Write a comparison's tables and pictures from its finished runs; return the rows."""
    runs, config = read_runs(folder)
    rows = comparison.compare(runs)
    of_runs = [(run.method, run.seed, run.records) for run in runs]
    write_text(folder / "scores.csv", scores.to_csv(of_runs, config.classes))
    write_text(folder / "comparison.csv", tables.to_csv(rows))
    write_text(folder / "comparison.md", tables.to_markdown(rows, config.classes))
    write_text(folder / "comparison.tex", tables.to_latex(rows, config.classes))
    write_text(folder / "retrogress.csv", _drops_to_csv(runs))
    draw_comparison(runs, folder / "comparison.png")
    own = {"seed"}.union(*(_settings(run.method) for run in runs))
    shared = config.model_dump(mode="json", exclude_none=True, exclude=own)
    write_text(folder / "report.html", comparison_page(runs, rows, shared))
    return rows


def _drops_to_csv(runs: Sequence[comparison.Run]) -> str:
    text = io.StringIO()
    lines = [
        {
            "method": one.method,
            "seed": one.seed,
            **asdict(replace(drop, round=drop.round + 1)),  # counted as users do
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
