"""Options that several commands share. Importing them is quick; flags made from settings are not here."""

from pathlib import Path
from typing import Annotated

import typer


def names_in(text: str) -> list[str]:
    """Return the names in a list that is separated by commas; empty ones are left out."""
    return [name.strip() for name in text.split(",") if name.strip()]


TimeLimit = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="MINUTES",
        help="stop after the last complete round that fits into so many minutes; continue later",
        show_default=False,
    ),
]

Subgroups = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMNS",
        help="also score subgroups of the test images, by columns of the data's tables, separated by commas; "
        "numbers are divided at edges, as in age:40+60,sex",
        show_default=False,
    ),
]

# The flag is `--data`; for `evaluate` it is `--own-data`, because its `--data` is that of new sites.
MovedData = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="where the run's data is now, if it was moved", show_default=False),
]
