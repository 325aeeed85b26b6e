"""Output in the terminal: progress of a run, and the tables at its end."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from prrfl.errors import Stopped
from prrfl.reports.formatting import percent

if TYPE_CHECKING:
    from prrfl.config import TrainConfig
    from prrfl.reports.assessment import Assessment, Measured
    from prrfl.reports.subgroups import Subgroup
    from prrfl.runs.afterwards import NextStep
    from prrfl.runs.position import Position
    from prrfl.types import RoundRecord

# Names of sites, classes and images are printed as they are: [b] is not markup, :x: is not an emoji.
console = Console(markup=False, emoji=False)


class PositionProgress(Progress):
    """A bar for one work, which asks where the work is each time it is drawn."""

    def __init__(self, look: "Callable[[], Shown | None]") -> None:
        """Draw a bar.

        Args:
            look: returns what to show now; ``None`` leaves the bar as it is.
        """
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(None),  # as wide as the texts leave room for
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._look = look
        super().__init__(*columns, console=console, refresh_per_second=4)
        self.add_task("starting", total=1.0, left="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the bar as it is now."""
        # Asked here, because the thread that trains is busy.
        if self.task_ids and (now := self._look()) is not None:
            self.update(self.task_ids[0], completed=now.done, description=now.text, left=now.left)
        return super().get_renderables()


@dataclass(frozen=True)
class Shown:
    """What a bar shows: a text, the part that is done (0 to 1), and the time that is left, as text."""

    text: str
    done: float
    left: str = ""


def show_progress(records: "Iterable[RoundRecord]", folder: Path, settings: "TrainConfig") -> None:
    """Consume the records of a run, and show its round, site, epoch, batch and remaining time.

    Args:
        records: the records, as the run yields them.
        folder: the run's folder, where it writes its position.
        settings: the run's settings.
    """
    from prrfl.runs.position import read_position

    def look() -> Shown | None:
        now = read_position(folder)
        return Shown(position_text(now, settings), now.done, time_left(now.seconds_left)) if now else None

    with PositionProgress(look):
        for record in records:
            if record.kind == "exchange" and not console.is_terminal:
                console.print(f"round {record.round + 1}/{settings.rounds} done")


def position_text(now: "Position", settings: "TrainConfig") -> str:
    """Return a run's round, with the site that is furthest behind among those that train."""
    text = f"round {min(now.round + 1, settings.rounds)}/{settings.rounds}"
    training = {name: site for name, site in now.sites.items() if site.state == "training"}
    if not training:
        return text
    name, site = min(training.items(), key=lambda item: item[1].epoch + item[1].images / item[1].size)
    batch, batches = site.batches(settings.batch)
    return f"{text} {name} epoch {site.epoch + 1}/{settings.epochs} batch {batch}/{batches}"


def time_left(seconds: float | None) -> str:
    """Return a time as ``left 1:23:45``; empty if it is unknown."""
    return "" if seconds is None else f"left {timedelta(seconds=round(seconds))}"


def print_watch(folder: Path) -> None:
    """Print how to follow, in a browser, what happens in a folder."""
    from prrfl.runs.afterwards import command

    console.print(f"Follow it in a browser: {command('watch', folder)}", soft_wrap=True, highlight=False)


def print_next(steps: "Iterable[NextStep]") -> None:
    """Print commands that may follow, each with its purpose."""
    console.print("Next:")
    for step in steps:
        # Not wrapped, so that a long line can be copied.
        console.print(f"  {step.command}  # {step.purpose}", soft_wrap=True, highlight=False)


@contextmanager
def noting_how_to_resume(how: Callable[[], str]) -> Iterator[None]:
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
    table = Table(title="Test scores of each site's own network (%)")
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

    shown = subgroup_table(rows, classes)
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
