"""``prrfl compare``: run methods × seeds, and tabulate which differences are real."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from prrfl.cli.flags import described, given_flags, with_flags
from prrfl.cli.options import TimeLimit, names_in
from prrfl.cli.screen import (
    PositionProgress,
    Shown,
    console,
    noting_how_to_resume,
    print_next,
    print_table,
    print_watch,
    time_left,
)
from prrfl.errors import ConfigError, PRRFLError

if TYPE_CHECKING:
    from prrfl.reports.comparison import Row
    from prrfl.runs.compare import Planned
    from prrfl.runs.position import Position, SiteState

DEFAULT_METHODS = ",".join(described().published)
"""The methods of a comparison or search that names none: those of the paper."""

DEFAULT_SEEDS = "0,1"
"""The seeds of a comparison that gives none."""


@with_flags(
    {
        "methods": Annotated[
            str | None,
            typer.Option(
                help="methods, separated by commas; name:key=value+key=value changes settings, as in "
                + escape(f"prrfl:transfer=off [default: {DEFAULT_METHODS}]"),
                show_default=False,
            ),
        ],
        "seeds": Annotated[
            str | None,
            typer.Option(help=f"seeds, separated by commas {escape(f'[default: {DEFAULT_SEEDS}]')}"),
        ],
        "workers": Annotated[
            int | None, typer.Option(min=1, help="runs at a time; by default one per core, one on a GPU")
        ],
        "margin": Annotated[
            float | None,
            typer.Option(
                help="largest difference in points that does not matter, to test whether methods are equal "
                "within it; kept in the folder",
                show_default=False,
            ),
        ],
        "scorers": Annotated[
            str | None,
            typer.Option(
                help="further measures, separated by commas: scorers of scikit-learn, such as "
                "matthews_corrcoef, or functions of your own, such as ./file.py:name; kept in the folder",
                show_default=False,
            ),
        ],
        "across": Annotated[
            str | None,
            typer.Option(
                help="train nothing, but rank the methods over finished comparisons on at least five data "
                "sets: their folders, separated by commas",
                show_default=False,
            ),
        ],
        "tuned": Annotated[
            Path | None,
            typer.Option(
                metavar="DIR",
                help="folder of `prrfl tune`, whose settings each method gets",
                show_default=False,
            ),
        ],
        "time_limit": TimeLimit,
    },
    defaults=dict.fromkeys(
        ("methods", "seeds", "workers", "margin", "scorers", "across", "tuned", "time_limit")
    ),
    leave_out=("method", "seed", "workers", "threads"),
)
def compare(config: Path | None, out: Path | None, **flags: Any) -> None:
    """Run methods x seeds from shared starts, and write one table with confidence intervals.

    If --out holds an unfinished comparison, it is resumed.
    """
    across = flags.pop("across")
    if across is not None:
        given = {"config": config, "out": out, **flags}
        if idle := [name for name, value in given.items() if value is not None]:
            flag = idle[0].replace("_", "-")
            raise ConfigError(f"--across reads finished comparisons and trains nothing; leave out --{flag}")
        # A comparison counts once, however its path is written.
        folders = {Path(folder).resolve(): Path(folder) for folder in names_in(across)}
        _print_standings(list(folders.values()))
        return
    methods, seeds = flags.pop("methods"), flags.pop("seeds")
    methods = DEFAULT_METHODS if methods is None else methods
    seeds = DEFAULT_SEEDS if seeds is None else seeds
    from prrfl.runs import scorers as measures
    from prrfl.runs.afterwards import after_comparison
    from prrfl.runs.compare import differs_from_search, keep_margin, plan, tabulate
    from prrfl.runs.folder import RunFolder
    from prrfl.runs.tuned import read_tuned, write_tuned

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds: expected whole numbers separated by commas, got '{seeds}'") from None
    folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-compare"
    workers, margin, time_limit = flags.pop("workers"), flags.pop("margin"), flags.pop("time_limit")
    scorers = flags.pop("scorers")
    further = [] if scorers is None else names_in(scorers)
    tuned = read_tuned(source) if (source := flags.pop("tuned")) else None
    planned = plan(config, given_flags(flags), names_in(methods), numbers, folder, tuned)
    measures.try_scorers(further, len(planned[0].config.classes))
    if margin is not None:
        keep_margin(folder, margin)
    if tuned:
        if others := differs_from_search(tuned, planned):
            console.print(f"The search in {tuned.source} had {others}.", soft_wrap=True)
        write_tuned(folder, tuned)
    if further:
        measures.keep_scorers(folder, further)
    failed = _show(planned, folder, workers, time_limit)
    unfinished = [one for one in planned if not RunFolder(one.folder).is_finished]
    if len(unfinished) < len(planned):
        print_comparison(tabulate(folder))
        console.print(f"Tables, figure and runs: {folder}", soft_wrap=True)
        console.print(f"Page: {folder / 'report.html'}", soft_wrap=True)
    if not failed and not unfinished:
        print_next(after_comparison(folder))
    if not failed and unfinished:
        console.print(
            f"Time limit: {len(planned) - len(unfinished)} of {len(planned)} runs are finished; "
            f"repeat the command with --out {quote(str(folder))} to continue",
            soft_wrap=True,
        )
    if failed:
        name, line = next(iter(failed.items()))
        raise PRRFLError(
            f"{len(failed)} of {len(planned)} runs failed and are not in the table, first {name}: "
            f"{line.removeprefix('error: ')}"
        )


def _show(
    planned: "list[Planned]", folder: Path, workers: int | None, time_limit: float | None
) -> Mapping[str, str]:
    """Do the runs while showing progress; return the last line of output of each that failed."""
    from prrfl.runs.compare import run_all
    from prrfl.runs.folder import RunFolder
    from prrfl.runs.position import reporting, seconds_left

    rounds = sum(one.config.rounds for one in planned)
    before = sum(RunFolder(one.folder).rounds_done for one in planned)
    console.print(f"{len(planned)} runs, {rounds} rounds, of which {before} are done.")
    print_watch(folder)
    folder.mkdir(parents=True, exist_ok=True)
    began, first = time.monotonic(), _position(planned).done

    def look() -> Shown:
        done = _position(planned).done
        left = seconds_left(time.monotonic() - began, first, done)
        return Shown(f"{done * rounds:.1f}/{rounds} rounds", done, time_left(left))

    failed: Mapping[str, str] = {}
    with (
        reporting(RunFolder(folder), lambda: _position(planned)),
        PositionProgress(look),
        noting_how_to_resume(lambda: "complete rounds are saved; repeat the command to continue"),
    ):
        for now in run_all(planned, workers, time_limit):
            failed = now
    return failed


def _position(planned: "Sequence[Planned]") -> "Position":
    """Return the position of a comparison: its runs, by the names of their folders, in place of sites."""
    from prrfl.runs.folder import RunFolder
    from prrfl.runs.position import Position, SitePosition, part_done

    parts = {one.folder.name: part_done(RunFolder(one.folder), one.config.rounds) for one in planned}
    states: dict[str, SiteState] = {
        name: "waiting" if not part else "trained" if part == 1 else "training"
        for name, part in parts.items()
    }
    rounds = [one.config.rounds for one in planned]
    done = sum(part * of for part, of in zip(parts.values(), rounds, strict=True)) / sum(rounds)
    whole = sum(part == 1 for part in parts.values())
    return Position(whole, min(1.0, done), {name: SitePosition(state) for name, state in states.items()})


def _print_standings(folders: list[Path]) -> None:
    from prrfl.reports.across import standings_table
    from prrfl.runs.across import standings

    shown = standings_table(standings(folders), len(folders))
    table = Table(title=shown.title)
    for index, name in enumerate(shown.heads):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for line in shown.body:
        table.add_row(*line)
    print_table(table)
    console.print(
        "Rank 1 is the best. * best mean rank; = within the critical difference of it (Nemenyi, 95 %), thus "
        "not told apart. Scores are means of sites and seeds.",
        style="dim",
    )


def print_comparison(rows: "list[Row]") -> None:
    """Print the columns that fit a terminal; the files hold all of them."""
    from prrfl.reports.tables import brief, legend

    shown = brief(rows)
    table = Table(title=shown.title)
    for index, name in enumerate(shown.heads):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row, line in zip(rows, shown.body, strict=True):
        table.add_row(*line, style="bold" if row.best else None)
    print_table(table)
    console.print(legend(rows), style="dim")
