"""``prrfl doctor``: preflight checks of the installation, the machine and the data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from prrfl.cli.screen import console

if TYPE_CHECKING:
    from prrfl.preflight import Finding

_MARKS = {"ok": Text("✓", "green"), "note": Text("!", "yellow"), "problem": Text("✗", "bold red")}


def doctor(
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="check this data, too, in any format that train reads")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file with settings, instead of the defaults")
    ] = None,
) -> None:
    """Check the installation, the machine and the data, and train a few batches.

    The exit code is 1 if training would fail.
    """
    from prrfl.preflight import preflight, verdict

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("reading images", visible=False)
        findings = list(
            preflight(
                config, data, lambda done, of: progress.update(task, completed=done, total=of, visible=True)
            )
        )
    console.print(_table(findings))
    console.print(verdict(findings))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _table(findings: "list[Finding]") -> Table:
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    topic = ""
    for finding in findings:
        text = finding.message + (f"\n→ {finding.advice}" if finding.advice else "")
        # Text, so that brackets in a path are not read as markup.
        table.add_row(_MARKS[finding.level], finding.topic if finding.topic != topic else "", Text(text))
        topic = finding.topic
    return table
