"""``prrfl train``, ``resume`` and ``report``: make a run folder, complete it, and draw its report."""

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from prrfl.cli.comparing import print_comparison
from prrfl.cli.flags import given_flags, with_flags
from prrfl.cli.options import MovedData, Subgroups, TimeLimit, names_in
from prrfl.cli.screen import (
    console,
    noting_how_to_resume,
    print_next,
    print_subgroups,
    print_summary,
    print_watch,
    show_progress,
)
from prrfl.errors import ConfigError

if TYPE_CHECKING:
    from prrfl.config import TrainConfig

log = logging.getLogger("prrfl")

_OF_PAPER = "With --for paper"
"""Heading of the flags that have an effect only there."""

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]


@with_flags({"time_limit": TimeLimit}, defaults={"time_limit": None})
def train(time_limit: float | None, config: Path | None, out: Path | None, **flags: Any) -> None:
    """Train on a data set, or on generated images if no --data is given.

    Settings are read from --config (TOML); flags override them. Without either, a built-in quickstart runs.
    """
    from prrfl.config import load_config

    given = given_flags(flags)
    settings = load_config(config, given)
    if idle := settings.without_effect():
        data = "" if settings.data is None else f" on {settings.data}"
        log.warning("%s: no effect on a run of %s%s", ", ".join(idle), settings.method, data)
    folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{settings.method}"
    run_training(settings, folder, time_limit=time_limit)


def run_training(
    settings: "TrainConfig", folder: Path, *, resume: bool = False, time_limit: float | None = None
) -> None:
    """Load the data, train while showing progress, and print the table of sites.

    Args:
        settings: the run's settings.
        folder: the run's folder.
        resume: resume the run in the folder.
        time_limit: minutes from now, after which no further round begins; ``None`` for no limit.
    """
    from prrfl.algorithms import traits_of
    from prrfl.runs import run, setup
    from prrfl.runs.afterwards import after_run, command
    from prrfl.runs.folder import RunFolder

    started = time.monotonic()
    seconds = None if time_limit is None else 60 * time_limit
    there = RunFolder(folder)
    if not resume:
        there.check_free()  # before reading the data, which may take a while
    if settings.data is None:
        console.print(f"No --data given: {settings.sites} generated sites of {settings.images} images.")
    done = there.rounds_done
    # A site that is missing at a resumption is named when the data is compared with that of the start.
    sites = setup.read_sites(settings) if done else setup.load_data(settings)
    settings = setup.resolved(settings, len(sites))
    loss = "" if settings.loss == traits_of(settings.algorithm()).loss else f" with loss {settings.loss}"
    console.print(
        f"{settings.method}{loss} on {len(sites)} sites ({', '.join(s.name for s in sites)}), "
        f"{sum(len(s.train) for s in sites)} training images of {settings.image_size} px, "
        f"{settings.rounds} rounds x {settings.epochs} epochs, "
        f"{settings.device}, processes: {settings.workers}, threads of each: {settings.threads}, "
        f"{settings.precision}"
    )
    if done:
        console.print(f"Resuming after round {done} of {settings.rounds}.")
    print_watch(folder)
    with (
        noting_how_to_resume(
            lambda: (
                f"{there.rounds_done} of {settings.rounds} rounds are saved; "
                f"continue with `{command('resume', folder)}`"
            )
        ),
        closing(run.train(settings, sites, folder, resume=resume)) as records,
    ):
        show_progress(run.in_time(records, settings.rounds, seconds, started), folder, settings)
    if not there.is_finished:
        console.print(
            f"Time limit: {there.rounds_done} of {settings.rounds} rounds are saved; "
            f"continue with `{command('resume', folder)}`",
            soft_wrap=True,
        )
        return
    print_summary(folder)
    console.print(f"Run folder: {folder}", soft_wrap=True)
    print_next(after_run(folder))


def resume(run_folder: RunPath, data: MovedData = None, time_limit: TimeLimit = None) -> None:
    """Resume a run that was stopped, from its last complete round; the bits are the same.

    If the data has changed, an error names the site and split. If the run's device is not available, another
    one is used, with a warning.
    """
    from prrfl.runs.folder import RunFolder

    there = RunFolder(run_folder)
    if there.is_finished:
        print_summary(run_folder)
        console.print(f"{run_folder} is finished; nothing to do.", soft_wrap=True)
        return
    if there.is_federation:
        raise ConfigError(
            f"{run_folder} is a federation over real sites; resume it with its `prrfl server` command"
        )
    if there.is_site:
        raise ConfigError(
            f"{run_folder} is a site's folder of a federation; resume it with its `prrfl site` command"
        )
    settings = there.at(there.settings_here(), data, "--data")
    run_training(settings, run_folder, resume=True, time_limit=time_limit)


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run or comparison")],
    data: MovedData = None,
    subgroups: Subgroups = None,
    purpose: Annotated[
        Literal["paper"] | None,
        typer.Option(
            "--for",
            help="write tables (LaTeX, Markdown) and figures (PDF, SVG, PNG) ready for print, and no page",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_OF_PAPER,
            help="metrics, separated by commas: f1, auc, accuracy, balanced_accuracy, recall_<class>, "
            "sensitivity_<class> (at 90 % specificity); of a comparison also worst_f1, spread_f1 and those "
            + escape("of its --scorers [default: f1,auc]"),
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_OF_PAPER,
            help=escape(
                "methods of the comparison, separated by commas, in the order of the table [default: all]"
            ),
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_OF_PAPER,
            metavar="DIR",
            help="folder of the results; by default RUN/paper",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write report.html for a run or a comparison, and redraw its tables and figures.

    The page is one file that opens in any browser. With --subgroups, scores by age or sex, for instance, are
    added to a run's page and written to subgroups.csv. With --for paper, write tables and figures for a
    paper.
    """
    of_page = {"--data": data, "--subgroups": subgroups}
    of_paper = {"--metrics": metrics, "--methods": methods, "--out": out}
    comparison = (run_folder / "runs").is_dir()
    if purpose == "paper":
        _refuse(of_page, "is for the page of a run, and has no effect with --for paper; leave it out")
        if not comparison:
            _refuse({"--methods": methods}, f"is for comparisons, and {run_folder} is a single run")
        _write_for_paper(run_folder, metrics, methods, out)
        return
    _refuse(of_paper, "has no effect without --for paper; add that, or leave it out")
    if comparison:
        _refuse(of_page, f"is for the page of a run; give one of the runs in {run_folder / 'runs'}")
        _write_page_of_comparison(run_folder)
    else:
        _write_page_of_run(run_folder, data, subgroups)


def _refuse(flags: Mapping[str, object], why: str) -> None:
    """Raise if one of the flags is given, because it has no effect here."""
    for flag, value in flags.items():
        if value is not None:
            raise ConfigError(f"{flag} {why}")


def _write_page_of_comparison(folder: Path) -> None:
    from prrfl.runs.compare import tabulate

    print_comparison(tabulate(folder))
    _print_page(folder)


def _write_page_of_run(folder: Path, data: Path | None, subgroups: str | None) -> None:
    from prrfl.data.subgroups import parse_columns
    from prrfl.runs import report as reports
    from prrfl.runs.afterwards import with_networks
    from prrfl.runs.folder import RunFolder

    there = RunFolder(folder)
    columns = parse_columns(subgroups) if subgroups is not None else ()
    if there.is_federation:
        _refuse({"--data": data}, f"has no effect: the images of {folder} stay at its sites; leave it out")
    found = reports.subgroups(folder, columns, data) if columns else []
    reports.report(folder, data, found)
    print_summary(folder)
    if found:
        print_subgroups(found, there.settings().classes)
    _print_page(folder)
    if not there.is_federation:
        print_next(with_networks(folder))


def _print_page(folder: Path) -> None:
    console.print(f"Page: {folder / 'report.html'}", soft_wrap=True)


def _write_for_paper(folder: Path, metrics: str | None, methods: str | None, out: Path | None) -> None:
    from prrfl.runs.paper import write_comparison, write_run

    place, chosen = out or folder / "paper", names_in(metrics or "") or ["f1", "auc"]
    if (folder / "runs").is_dir():
        written = write_comparison(folder, place, chosen, names_in(methods or ""))
    else:
        written = write_run(folder, place, chosen)
    console.print(
        f"For the paper: {', '.join(path.name for path in written)} (figures also as SVG and PNG) in {place}",
        soft_wrap=True,
    )
