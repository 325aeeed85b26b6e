"""``prrfl doctor``: what there is to say of a machine, an installation and a data set before training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from prrfl.cli.screen import console

if TYPE_CHECKING:
    from prrfl.preflight import Finding

MARKS = {"ok": Text("✓", "green"), "note": Text("!", "yellow"), "problem": Text("✗", "bold red")}


def doctor(
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="look at this data too, in any form that train takes")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="settings from a TOML file, instead of the defaults")
    ] = None,
) -> None:
    """Look at machine, versions and data, and train a few batches. Exit code 1 if training would fail."""
    from prrfl.preflight import examine, verdict

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("reading images", visible=False)
        findings = list(
            examine(
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
        words = finding.words + (f"\n→ {finding.mend}" if finding.mend else "")
        # Text, so that brackets in a path are not taken for markup.
        table.add_row(MARKS[finding.level], finding.topic if finding.topic != topic else "", Text(words))
        topic = finding.topic
    return table
