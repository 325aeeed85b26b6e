"""Output in the terminal: progress of a run, and the tables at its end."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from prrfl.errors import Stopped
from prrfl.reports.formatting import percent

if TYPE_CHECKING:
    from prrfl.config import TrainConfig
    from prrfl.reports.assessment import Assessment, Measured
    from prrfl.reports.subgroups import Subgroup
    from prrfl.types import RoundRecord, SiteData

# Names of sites, classes and images are printed as they are: [b] is not markup, :x: is not an emoji.
console = Console(markup=False, emoji=False)


def show_progress(
    records: "Iterable[RoundRecord]", sites: "list[SiteData]", settings: "TrainConfig", done: int = 0
) -> None:
    """Consume the records of a run, and show its round, site, stage and remaining time.

    Args:
        records: the records, as the run yields them.
        sites: the sites that train.
        settings: the run's settings.
        done: rounds that were complete before.
    """
    from prrfl.algorithms import ALGORITHMS, traits_of

    stages = ("", *traits_of(ALGORITHMS[settings.method]).stages)
    sizes = {site.name: len(site.train) for site in sites}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=3600) as progress:
        total = (settings.rounds - done) * settings.epochs * sum(sizes.values())
        task = progress.add_task(f"round {done + 1}/{settings.rounds}", total=total)
        for record in records:
            if record.kind == "train":
                stage = stages[int(record.metrics.get("stage", 0))]
                progress.update(
                    task,
                    # All sites at once if their images are pooled.
                    advance=sizes.get(record.client, sum(sizes.values())),
                    description=f"round {record.round + 1}/{settings.rounds} {record.client} {stage}",
                )
            elif record.kind == "exchange" and not console.is_terminal:
                console.print(f"round {record.round + 1}/{settings.rounds} done")


@contextmanager
def going_on(how: Callable[[], str]) -> Iterator[None]:
    """If the user stops the block, add how to resume to the message."""
    try:
        yield
    except Stopped as stop:
        stop.add_note(how())
        raise


FRAME = 3
"""Characters that padding and border add to each column of a table."""


def print_table(table: Table, names: int = 1) -> None:
    """Print a table so that no digit is lost: columns that do not fit follow in further tables.

    Args:
        table: columns with numbers are aligned to the right and never wrapped; others are.
        names: number of first columns, which name the rows and are repeated in each table.
    """
    room = console.width - 1
    least = [_least(column) + FRAME for column in table.columns]
    share = room // (2 * names)  # of a name, so that names of any length leave space for numbers
    least[:names] = [min(width, share) for width in least[:names]]
    space = room - sum(least[:names])
    blocks: list[list[int]] = [[]]
    for index in range(names, len(table.columns)):
        least[index] = min(least[index], space)
        if blocks[-1] and sum(least[k] for k in blocks[-1]) + least[index] > space:
            blocks.append([])
        blocks[-1].append(index)
    for number, block in enumerate(blocks):
        chosen = [*range(names), *block]
        title = f"{table.title}, continued" if number else table.title
        console.print(_part(table, chosen, [least[k] for k in chosen], room, title))


def _part(table: Table, chosen: Sequence[int], least: Sequence[int], room: int, title: Any) -> Table:
    """Return some columns of a table, each as wide as it needs, as far as there is room."""
    part, spare = Table(title=title), room - sum(least)
    for index, width in zip(chosen, least, strict=True):
        column = table.columns[index]
        wider = max(0, min(_lines(column) + FRAME - width, spare))
        spare -= wider
        part.add_column(
            column.header, justify=column.justify, overflow="fold", width=max(1, width + wider - FRAME)
        )
    cells = [list(table.columns[index].cells) for index in chosen]
    for row, line in zip(table.rows, zip(*cells, strict=True), strict=True):
        part.add_row(*line, style=row.style)
    return part


def _least(column: Column) -> int:
    """Return the least width of a column: its longest number, or else its longest word."""
    of_numbers = column.justify == "right"
    cells = (
        part
        for cell in column.cells
        for part in (str(cell).splitlines() if of_numbers else str(cell).split())
    )
    return max(map(cell_len, (*cells, *str(column.header).split())), default=1)


def _lines(column: Column) -> int:
    """Return the width of a column without any wrapping."""
    lines = (line for cell in (column.header, *column.cells) for line in str(cell).splitlines())
    return max(map(cell_len, lines), default=1)


def print_summary(folder: Path) -> None:
    """Print the table of sites of a finished run."""
    from prrfl.runs.folder import RunFolder

    summary = RunFolder(folder).summary()
    table = Table(title="Test scores of each site's own model (%)")
    table.add_column("site")
    for name in ("macro-F1, last", "AUC, last", "macro-F1, best on validation", "AUC, best on validation"):
        table.add_column(name, justify="right")
    # In a federation over real sites, a site may have been absent in the best round, or in all of them.
    sites = dict.fromkeys([*summary["last"]["sites"], *summary["best"]["sites"]])
    for site in (*sites, None):
        last, best = (
            summary[which]["sites"].get(site, {}) if site else summary[which]["mean"]
            for which in ("last", "best")
        )
        cells = (last.get("macro_f1"), last.get("auc"), best.get("macro_f1"), best.get("auc"))
        table.add_row(site or "mean", *map(percent, cells), style=None if site else "bold")
    print_table(table)
    for line in _of_earlier_rounds(summary):
        console.print(line, soft_wrap=True)
    for model, drop in summary["retrogress"].items():
        console.print(
            f"Mean drop at communication, {model}: macro-F1 {percent(drop.get('macro_f1'))}, "
            f"AUC {percent(drop.get('auc'))} points"
        )


def _of_earlier_rounds(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each site whose last scores are not of the last round, and one for their mean."""
    last, rounds = summary["last"], summary["rounds"]
    # Summaries of older versions have scores of the last round only, and do not name it.
    done = {site: 1 + figures.get("round", rounds - 1) for site, figures in last["sites"].items()}
    for site, index in done.items():
        if index < rounds:
            yield f"{site} was absent at the end: its last scores are of round {index} of {rounds}."
    if len(mixed := sorted(set(done.values()))) > 1:
        yield f"The mean of last scores mixes rounds {', '.join(map(str, mixed))}."


def score_table(title: str, of: Sequence[str], classes: Sequence[str]) -> Table:
    """Return an empty table of test scores, whose first columns name what was scored."""
    table = Table(title=f"{title} (%, 95 % intervals over images)")
    recalls = (f"recall {name}" for name in classes)
    for index, name in enumerate((*of, "macro-F1", "AUC", *recalls, "ECE")):
        table.add_column(name, justify="right" if index else "left")
    return table


def score_cells(assessment: "Assessment") -> list[str]:
    """Return the cells of a row of :func:`score_table` after its first columns."""
    scores = (assessment.macro_f1, assessment.auc, *assessment.recall)
    error = f"{percent(assessment.calibration_error)}\nby chance {100 * assessment.chance_error:.0f}"
    return [*map(_with_interval, scores), error]


def print_subgroups(rows: "Sequence[Subgroup]", classes: Sequence[str]) -> None:
    """Print the table of subgroups, and what it shows."""
    from prrfl.reports.subgroups import findings, subgroup_table

    shown = subgroup_table(rows, classes, between="\n")
    table = Table(title=f"{shown.title} (%, 95 % intervals over images)")
    for index, name in enumerate(shown.heads):
        table.add_column(name, justify="left" if index < 2 else "right")
    for row, line in zip(rows, shown.body, strict=True):
        table.add_row(*line, style="bold" if row.told_apart else None)
    print_table(table, names=2)
    for line in findings(rows, classes):
        console.print(line, soft_wrap=True)


def _with_interval(score: "Measured") -> str:
    if score.value is None or score.interval is None:
        return percent(score.value)
    low, high = score.interval
    return f"{percent(score.value)}\n{100 * low:.0f}–{100 * high:.0f}"
