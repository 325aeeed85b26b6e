"""Search each method's settings by validation scores, with the same number of trials for all methods.

The folder of a search holds:

runs/<method>-seed<n>/config.toml   the settings of each method's first trial
search.json   number of trials, and the values that are tried
data.json     fingerprints of the data, without test images
trials.log    all finished trials, a journal of Optuna
tuning.csv    the same as a table
tuned.toml    the best settings, see prrfl.runs.tuned
.lock         lets no other process search in the folder
.rest-<id>/   states of a running trial's sites if memory is short
log.txt       warnings and errors, with the traceback of what a part of the user's own raised
"""

import csv
import fcntl
import io
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.random import SeedSequence
from pydantic import TypeAdapter, ValidationError

from prrfl.capture import on_gpu
from prrfl.config import TrainConfig, checked, merged
from prrfl.data.fingerprint import fingerprints
from prrfl.errors import ConfigError, PRRFLError, nearest
from prrfl.machine import usable_cores
from prrfl.parts import PartError, Search
from prrfl.parts.search import as_choice
from prrfl.runs.compare import Planned
from prrfl.runs.folder import RunFolder, first_candidate
from prrfl.runs.run import log_file
from prrfl.runs.setup import load_data
from prrfl.runs.trials import TrialProcess, without_test
from prrfl.runs.tuned import Settings, Tuned, TunedMethod, as_given, write_tuned
from prrfl.storage.atomic import write_json, write_text
from prrfl.storage.reading import read_bytes
from prrfl.types import SiteData

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "trials.log"
LOG = "log.txt"

BATCH = 4
"""Number of trials that are proposed together, from the results of all batches before.

It does not depend on the number of processes, so that neither do the trials.
"""

RANDOM = 2 * BATCH
"""Number of first trials that are drawn at random; later ones follow from the scores of earlier ones."""

EQUAL = frozenset({"rounds", "epochs"})
"""Settings that decide how long a trial trains, so that no method may search them."""


@dataclass(frozen=True)
class MethodSearch:
    """The search of one method.

    Attributes:
        planned: its name, and the settings that it starts from.
        searches: the values to try, by setting; ``method.step`` is a setting of a method of the user's own.
        trials: number of trials.
    """

    planned: Planned
    searches: Mapping[str, Search]
    trials: int

    @property
    def name(self) -> str:
        """The method's name in tables."""
        return self.planned.method

    @property
    def rounds(self) -> int:
        """Rounds of each trial."""
        return self.planned.config.rounds

    def start(self) -> dict[str, Any]:
        """Return the values that the search starts from."""
        return {key: _value(self.planned.config, key) for key in self.searches}


def _value(config: TrainConfig, key: str) -> Any:
    kind, dot, name = key.rpartition(".")
    return config.set[kind][name] if dot else getattr(config, key)


def plan_searches(planned: Sequence[Planned], given: Mapping[str, Search], trials: int) -> list[MethodSearch]:
    """Return the search of each method: what it declares, with the user's ranges in place of its own.

    Args:
        planned: one run of each method.
        given: values to try, by setting, for each method that has the setting.
        trials: number of trials of each method.

    Raises:
        ConfigError: if a setting is unknown or cannot be searched, or a search does not hold its start.
    """
    for name in given:
        _check_searchable(name, planned)
    found = []
    for one in planned:
        keys = {key: search for name, search in given.items() if (key := _key(one.config, name))}
        searches = {**one.config.searches(), **keys}
        # What the method's name fixes is part of the method.
        free = {key: of for key, of in searches.items() if key.rpartition(".")[2] not in one.named}
        if not free:
            raise ConfigError(f"method '{one.method}': its name fixes all settings that would be searched")
        for key, search in free.items():
            _check_start(one, key, search)
        found.append(MethodSearch(one, free, trials))
    return found


def _key(config: TrainConfig, name: str) -> str | None:
    """Return the key of a setting for a method; ``None`` if it has no effect there."""
    own = name.removeprefix("method.")
    if own in config.set.get("method", {}):
        return f"method.{own}"
    return name if name in TrainConfig.model_fields and name not in config.idle() else None


def _check_searchable(name: str, planned: Sequence[Planned]) -> None:
    if name in EQUAL | TrainConfig.where(comparison="same") | TrainConfig.where(comparison="free"):
        raise ConfigError(f"--search {name}: it is the same for all trials; give it as --{name} instead")
    keys = [(one, key) for one in planned if (key := _key(one.config, name))]
    if not keys:
        own = {setting for one in planned for setting in one.config.set.get("method", {})}
        known = {
            setting for one in planned for setting in TrainConfig.model_fields.keys() - one.config.idle()
        }
        raise ConfigError(f"--search {name}: no method here has this setting{nearest(name, own | known)}")
    one, key = keys[0]
    if not isinstance(_value(one.config, key), int | float | str):
        raise ConfigError(f"--search {name}: only numbers, texts and booleans can be searched")


def _check_start(one: Planned, key: str, search: Search) -> None:
    value = _value(one.config, key)
    if not search.holds(value):
        raise ConfigError(
            f"method '{one.method}': the search starts from {key} = {value}, which is not in {search}; give "
            f"--search {key.rpartition('.')[2]} with a range that holds it, or start elsewhere"
        )
    if _is_whole(value) and not search.choices and (search.low % 1 or search.high % 1):
        raise ConfigError(f"--search {key}: it is a whole number, but the range is {search}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Plan:
    """What ``search.json`` holds: the number and seed of the trials, and the values to try, by method."""

    trials: int
    seed: int
    searches: Mapping[str, Mapping[str, str]]


@contextmanager
def open_search(out: Path, methods: Sequence[MethodSearch]) -> Iterator[list[SiteData]]:
    """Make or reopen the folder of a search; yield the sites' data, without test images.

    Raises:
        ConfigError: if the folder holds a search with other settings, or another process uses it.
        DataError: if the data cannot be used, or has changed since the search was started.
    """
    searches = {one.name: {key: str(of) for key, of in one.searches.items()} for one in methods}
    plan = _Plan(methods[0].trials, methods[0].planned.seed, searches)
    before = _read_plan(out)
    if before:
        _check_same_plan(out, before, plan)
        plan = replace(plan, searches={**before.searches, **searches})
    sites = without_test(load_data(methods[0].planned.config))
    if before:
        RunFolder(out).check_data(fingerprints(sites))
    out.mkdir(parents=True, exist_ok=True)
    with _locked_journal(out), log_file(out / LOG):
        if not before:
            RunFolder(out).write_data(fingerprints(sites))
        for one in methods:
            RunFolder(one.planned.folder).begin(one.planned.config)
        write_json(out / "search.json", asdict(plan))
        yield sites


@contextmanager
def _locked_journal(out: Path) -> Iterator[None]:
    """Let no other process search in the folder during the block, and remove what a killed one left."""
    # Locked for this process: trials, which are forked, must not hold the lock when it is killed. Such a lock
    # ends when the process closes the file, hence not the journal, which Optuna opens and closes.
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ConfigError(
                f"another process is searching in {out}; wait until it ends, or stop it"
            ) from None
        with (out / JOURNAL).open("a+b") as journal:
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)  # part of a line
        (out / f"{JOURNAL}.lock").unlink(missing_ok=True)  # Optuna's own, for which it would wait
        for path in out.glob(".rest-*"):
            shutil.rmtree(path, ignore_errors=True)  # its process may still be ending
        yield


def _read_plan(out: Path) -> _Plan | None:
    path = out / "search.json"
    try:
        return TypeAdapter(_Plan).validate_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as cause:
        raise ConfigError(f"{path} is damaged; choose another --out, or remove that folder") from cause


def _check_same_plan(out: Path, before: _Plan, plan: _Plan) -> None:
    both: list[tuple[str, object, object]] = [
        ("trials", before.trials, plan.trials),
        ("seed", before.seed, plan.seed),
    ]
    for name, tried in plan.searches.items():
        old = before.searches.get(name, tried)
        both += [(f"{name}: {key}", old.get(key), tried.get(key)) for key in {**old, **tried}]
    for what, found, asked in both:
        if found != asked:
            raise ConfigError(
                f"{out} holds a search with {what} = {found or 'fixed'}, but the command asks for "
                f"{asked or 'fixed'}; choose another --out"
            )


def run_trials(
    methods: Sequence[MethodSearch], sites: Sequence[SiteData], out: Path, workers: int | None = None
) -> Generator[int]:
    """Do all missing trials, each in a process of its own; store them in order.

    Args:
        methods: the searches.
        sites: the data, from :func:`open_search`.
        out: the search's folder.
        workers: number of processes at a time; by default one per core, or one on a GPU. The trials do not
            depend on it.

    Yields:
        The number of rounds that need not be done any more, of all trials together, first those of before.

    Raises:
        ConfigError: if the journal is damaged.
        PRRFLError: if a trial fails otherwise than by diverging; trials before it are stored.
    """
    gpu = any(on_gpu(one.planned.config.device) for one in methods)
    workers = workers or (1 if gpu else usable_cores())
    studies = _studies(out, [one.name for one in methods])
    going = [_Progress(one, studies[one.name], out) for one in methods]
    waiting = deque(due for one in going for due in one.due())
    running: dict[Connection, _Running] = {}
    yield sum(one.rounds_done for one in going)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                trial = waiting.popleft()
                if (started := trial.started(sites)) is None:
                    waiting.extend(trial.of.due())
                else:
                    running[started.connection] = trial
            for connection in wait(list(running)) if running else ():
                trial = running[connection]  # type: ignore[index]
                if trial.goes_on():
                    continue
                del running[connection]  # type: ignore[arg-type]
                waiting.extend(trial.of.due())
            yield sum(one.rounds_done for one in going) + sum(len(one.scores) for one in running.values())
    finally:
        # Also reached when the user interrupts the command: no trial outlives it.
        for trial in running.values():
            trial.close()


@dataclass(eq=False)
class _Progress:
    """A method's trials so far. Those that ended early wait here, so that trials are stored in order."""

    search: MethodSearch
    study: "Study"
    out: Path
    ended: "dict[int, FrozenTrial]" = field(default_factory=dict)
    proposed: int = 0

    def __post_init__(self) -> None:
        self.stored = len(self.study.trials)
        self.proposed = self.stored

    @property
    def rounds_done(self) -> int:
        return (self.stored + len(self.ended)) * self.search.rounds

    def due(self) -> "list[_Running]":
        """Return the trials to do next: the missing ones of a batch, once the batches before are stored."""
        if self.stored < self.proposed or self.stored == self.search.trials:
            return []
        trials = propose(self.search, self.study.trials)
        self.proposed += len(trials)
        return [_Running(self, trial) for trial in trials]

    def end(self, number: int, trial: "FrozenTrial") -> None:
        self.ended[number] = trial
        while self.stored in self.ended:
            self.study.add_trial(self.ended.pop(self.stored))
            self.stored += 1


@dataclass(eq=False)
class _Running:
    """A trial that is due or running."""

    of: _Progress
    trial: "Trial"
    scores: list[float] = field(default_factory=list)
    process: TrialProcess | None = None

    def started(self, sites: Sequence[SiteData]) -> TrialProcess | None:
        """Start the process; return ``None`` if the settings contradict each other, which ends the trial."""
        search = self.of.search
        try:
            config = with_settings(search, self.trial.params)
        except ConfigError as cause:
            self._end("invalid", str(cause))
            return None
        self.process = TrialProcess(config, sites, self.of.out)
        return self.process

    def goes_on(self) -> bool:
        """Take a message of the process; return whether the trial goes on."""
        assert self.process is not None
        whose = f"{self.of.search.name}, trial {self.trial.number}"
        try:
            message = self.process.receive()
        except PRRFLError as cause:
            raise PRRFLError(f"{whose}: {cause}") from None
        if message.details:
            error = PartError(f"{whose}: {message.said}; the traceback is in {self.of.out / LOG}")
            error.add_note(message.details)
            raise error
        if message.kind == "failed":
            raise PRRFLError(f"{whose}: {message.said}")
        if message.kind == "round":
            self.scores.append(message.score)
            self.trial.report(message.score, len(self.scores) - 1)
            last = len(self.scores) == self.of.search.rounds
            if last or not self.trial.should_prune():
                self.process.proceed()
                return True
        self._end({"round": "pruned", "done": "complete"}.get(message.kind, message.kind), message.said)
        self.close()
        return False

    def _end(self, outcome: str, why: str = "") -> None:
        from optuna.trial import TrialState, create_trial

        complete = outcome == "complete"
        ended = create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            value=max(self.scores[first_candidate(self.of.search.rounds) :]) if complete else None,
            params=self.trial.params,
            distributions=self.trial.distributions,
            intermediate_values=dict(enumerate(self.scores)),
            user_attrs={"outcome": outcome, "why": why},
        )
        self.of.end(self.trial.number, ended)

    def close(self) -> None:
        if self.process is not None:
            self.process.close()


def propose(search: MethodSearch, before: "Sequence[FrozenTrial]") -> "list[Trial]":
    """Return the next trials: those of the present batch that are missing.

    They follow from the seed and from the trials of complete batches alone. So a search that was interrupted
    gets the trials that it would have had.

    Args:
        search: the method's search.
        before: its finished trials, in order.
    """
    import optuna

    batch = len(before) // BATCH
    first = batch * BATCH
    seed = SeedSequence([search.planned.seed, batch]).generate_state(1)[0]
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=RANDOM),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=BATCH, n_warmup_steps=search.rounds // 5),
    )
    study.add_trials(before[:first])
    start = search.start()
    if batch == 0:
        study.enqueue_trial({key: _parameter(search, key, value) for key, value in start.items()})
    distributions = {key: _distribution(of, start[key]) for key, of in search.searches.items()}
    asked = [study.ask(distributions) for _ in range(min(BATCH, search.trials - first))]
    return asked[len(before) - first :]


def _parameter(search: MethodSearch, key: str, value: Any) -> Any:
    return as_choice(value) if search.searches[key].choices else value


def _distribution(search: Search, start: object) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if search.choices:
        return CategoricalDistribution(search.choices)
    if _is_whole(start):
        return IntDistribution(int(search.low), int(search.high), log=search.log)
    return FloatDistribution(search.low, search.high, log=search.log)


def with_settings(search: MethodSearch, values: Settings) -> TrainConfig:
    """Return the settings of a trial.

    One thread, because results depend on threads, and each trial is a process of its own.

    Raises:
        ConfigError: if the values contradict each other.
    """
    changed = {"workers": 1, "threads": 1, **as_given(values)}
    return checked(merged(search.planned.config.model_dump(), changed), f"a trial of {search.name}")


def _studies(out: Path, names: Iterable[str]) -> "dict[str, Study]":
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = out / JOURNAL
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return {
            name: optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
            for name in names
        }
    except (ValueError, KeyError, AssertionError) as cause:
        raise ConfigError(f"{path} is damaged: {cause}; remove {out}, and search again") from cause


def finish_search(out: Path, rounds: int) -> Tuned:
    """Write ``tuning.csv``, and ``tuned.toml`` for all methods whose trials are done; return the latter.

    Args:
        out: the search's folder.
        rounds: number of rounds of each trial.

    Raises:
        ConfigError: if no trial of a method succeeded.
    """
    plan = _read_plan(out)
    assert plan is not None
    trials = {name: study.trials for name, study in _studies(out, plan.searches).items()}
    write_text(out / "tuning.csv", trials_to_csv(trials))
    found = {name: _best(name, of) for name, of in trials.items() if len(of) == plan.trials}
    tuned = Tuned(plan.trials, rounds, plan.seed, found)
    write_tuned(out, tuned)
    return tuned


def _best(name: str, trials: "Sequence[FrozenTrial]") -> TunedMethod:
    scores = {trial.number: trial.value for trial in trials if trial.value is not None}
    if not scores:
        why = trials[0].user_attrs["why"]
        raise ConfigError(f"{name}: all {len(trials)} trials failed, the first because {why}")
    best = max(scores, key=lambda number: (scores[number], -number))
    return TunedMethod(
        score=scores[best],
        trial=best,
        pruned=len(trials) - len(scores),
        settings=trials[best].params,
        default_score=scores.get(0),
    )


def trials_to_csv(trials: "Mapping[str, Sequence[FrozenTrial]]") -> str:
    """Return all trials as CSV: outcome, rounds done, score of the best round, and settings. Fractions."""
    settings = dict.fromkeys(key for of in trials.values() for trial in of for key in trial.params)
    text = io.StringIO()
    heads = ["method", "trial", "outcome", "rounds", "validation_macro_f1", *settings, "why"]
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    for method, of in trials.items():
        for trial in of:
            cells = {"method": method, "trial": trial.number, "validation_macro_f1": trial.value}
            writer.writerow(
                {**cells, "rounds": len(trial.intermediate_values), **trial.user_attrs, **trial.params}
            )
    return text.getvalue()
