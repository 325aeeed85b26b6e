"""``prrfl tune``: search each method's settings by validation scores, with the same budget for all."""

from contextlib import closing
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from prrfl.cli.comparing import DEFAULT_METHODS
from prrfl.cli.flags import described, given_flags, with_flags
from prrfl.cli.options import names_in
from prrfl.cli.screen import console, noting_how_to_resume, print_table
from prrfl.errors import ConfigError
from prrfl.reports.formatting import percent

if TYPE_CHECKING:
    from prrfl.runs.tune import MethodSearch
    from prrfl.runs.tuned import Tuned

_OF_SERVER = tuple(setting.name for setting in described().settings if setting.of_server)


@with_flags(
    {
        "methods": Annotated[
            str,
            typer.Option(
                help=escape(f"methods, separated by commas, as in `compare` [default: {DEFAULT_METHODS}]"),
                show_default=False,
            ),
        ],
        "trials": Annotated[
            int, typer.Option(min=2, help="trials of each method; the first has the defaults")
        ],
        "search": Annotated[
            str | None,
            typer.Option(
                help="settings to search besides those that the methods declare, or other ranges for these: "
                "lr=1e-4..1e-1:log,optimizer=sgd|adam",
                show_default=False,
            ),
        ],
        "seed": Annotated[
            int, typer.Option(min=0, help="seed of all trials; `compare --tuned` refuses it as its own")
        ],
        "workers": Annotated[
            int | None, typer.Option(min=1, help="trials at a time; by default one per core, one on a GPU")
        ],
    },
    defaults={"methods": DEFAULT_METHODS, "trials": 20, "search": None, "seed": 1000, "workers": None},
    leave_out=("method", "seed", "workers", "threads", *_OF_SERVER),
)
def tune(methods: str, trials: int, seed: int, config: Path | None, out: Path | None, **flags: Any) -> None:
    """Search each method's settings by validation scores, with as many trials for each method.

    Test images take no part. `prrfl compare --tuned OUT` uses what was found. If --out holds an unfinished
    search, it is resumed.
    """
    from prrfl.parts.search import parse_searches
    from prrfl.runs.compare import plan
    from prrfl.runs.tune import finish_search, open_search, plan_searches, run_trials
    from prrfl.runs.tuned import TUNED

    if find_spec("optuna") is None:
        raise ConfigError("the package optuna is missing; pip install 'prrfl[tune]'")
    search, workers = flags.pop("search"), flags.pop("workers")
    given = {} if search is None else parse_searches(search)
    folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-tune"
    planned = plan(config, given_flags(flags), names_in(methods), [seed], folder)
    searches = plan_searches(planned, given, trials)
    with open_search(folder, searches) as sites:
        for one in searches:
            tried = ", ".join(f"{key} {search}" for key, search in one.searches.items())
            console.print(f"{one.name}: {tried}", soft_wrap=True)
        total = sum(one.trials * one.rounds for one in searches)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} rounds"),
            TimeElapsedColumn(),
            TextColumn("left at most"),
            TimeRemainingColumn(),
        )
        with (
            Progress(*columns, console=console, speed_estimate_period=3600) as progress,
            noting_how_to_resume(
                lambda: (
                    f"finished trials are saved; repeat the command with --out {quote(str(folder))} to resume"
                )
            ),
            closing(run_trials(searches, sites, folder, workers)) as done,
        ):
            task = progress.add_task("tuning", total=total, completed=next(done))
            for rounds in done:
                progress.update(task, completed=rounds)
        found = finish_search(folder, searches[0].rounds)
    _print_found(searches, found)
    console.print(
        f"Settings: {folder / TUNED}; use them with `prrfl compare --tuned {quote(str(folder))}`",
        soft_wrap=True,
    )


def _print_found(searches: "list[MethodSearch]", found: "Tuned") -> None:
    table = Table(title=f"Best of {found.trials} trials of {found.rounds} rounds (macro-F1 on validation, %)")
    for index, name in enumerate(("method", "best", "first trial", "stopped early", "settings")):
        table.add_column(name, justify="right" if 0 < index < 4 else "left", overflow="fold")
    for search in searches:
        method = found.methods[search.name]
        settings = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in method.settings.items()
        )
        scores = percent(method.score), percent(method.default_score)
        table.add_row(search.name, *scores, str(method.pruned), settings)
    print_table(table)
