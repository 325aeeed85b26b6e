"""``prrfl train`` and ``report``: from settings to a run folder, and from a run folder to its pictures."""

import logging
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from prrfl.cli.comparing import print_comparison
from prrfl.cli.flags import with_flags
from prrfl.cli.screen import console, going_on, print_summary, show_progress
from prrfl.config import TrainConfig, load_config
from prrfl.errors import ConfigError

log = logging.getLogger("prrfl")

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]


@with_flags()
def train(config: Path | None, out: Path | None, **flags: Any) -> None:
    """Train on a folder of sites, or on generated ones where no --data is given.

    Settings come from --config (TOML), then from flags. Without either, the embedded quickstart runs.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    settings = load_config(config, given)
    if idle := settings.without_effect():
        data = "" if settings.data is None else f" on {settings.data}"
        log.warning("%s: no effect in a run of %s%s", ", ".join(idle), settings.method, data)
    run_training(settings, out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{settings.method}")


def run_training(settings: TrainConfig, folder: Path, resume: bool = False) -> None:
    """Load the data, train with live progress, and print the table of sites."""
    # Imported here so that `prrfl --help` does not wait for networks and pictures.
    from prrfl.runs import run, setup
    from prrfl.runs.folder import RunFolder

    there = RunFolder(folder)
    if not resume:
        there.check_free()  # before the data is read, which may take a while
    if settings.data is None:
        console.print(f"No --data given: {settings.sites} generated sites of {settings.images} images.")
    sites = setup.load_data(settings)
    settings = setup.resolved(settings, len(sites))
    console.print(
        f"{settings.method} on {len(sites)} sites ({', '.join(s.name for s in sites)}), "
        f"{sum(len(s.train) for s in sites)} training images of {settings.image_size} px, "
        f"{settings.rounds} rounds x {settings.epochs} epochs, "
        f"{settings.device}, processes: {settings.workers}, threads of each: {settings.threads}, "
        f"{settings.precision}"
    )
    done = there.rounds_done
    if done:
        console.print(f"Going on after round {done} of {settings.rounds}.")
    with going_on(
        lambda: f"{there.rounds_done} of {settings.rounds} rounds are kept, `prrfl resume {folder}` goes on"
    ):
        show_progress(run.train(settings, sites, folder, resume=resume), sites, settings, done)
    print_summary(folder)
    console.print(f"Run folder: {folder}", soft_wrap=True)


def resume(run_folder: RunPath) -> None:
    """Go on with a run that was stopped, after its last complete round: same bits as without the stop.

    Data that changed meanwhile is refused by site and split. Where the run's device is not there, another is
    taken, and a warning says so.
    """
    from prrfl.runs.folder import RunFolder

    there = RunFolder(run_folder)
    if there.is_finished:
        print_summary(run_folder)
        console.print(f"{run_folder} is finished; nothing to do.", soft_wrap=True)
        return
    if there.is_federation:
        raise ConfigError(f"{run_folder} is a run over real sites; give its `prrfl server` command again")
    if there.is_site:
        raise ConfigError(
            f"{run_folder} is a site's folder of a run over real sites; give its `prrfl site` command again"
        )
    run_training(there.settings_here(), run_folder, resume=True)


def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run or comparison")],
) -> None:
    """Make report.html of a run or a comparison: one page for any browser. Remake tables and pictures too."""
    if (run_folder / "runs").is_dir():
        from prrfl.runs.compare import tabulate

        print_comparison(tabulate(run_folder))
        console.print(f"Page: {run_folder / 'report.html'}", soft_wrap=True)
        return
    from prrfl.runs.report import report as remake

    remake(run_folder)
    print_summary(run_folder)
    console.print(f"Page: {run_folder / 'report.html'}", soft_wrap=True)
