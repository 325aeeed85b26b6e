"""``prrfl new``: skeletons of parts of your own."""

from pathlib import Path
from shlex import quote
from typing import Annotated, cast

import typer

from prrfl.cli.screen import console
from prrfl.errors import ConfigError, nearest

KINDS = ("method", "network", "project")


def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"one of {', '.join(KINDS)}")],
    name: Annotated[str, typer.Argument(help="its name, such as part-way")],
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path(),
) -> None:
    """Write a small working method, network or project of your own, with a test."""
    from prrfl.cli.skeleton import Kind, title_of, write_skeleton

    if kind not in KINDS:
        raise ConfigError(f"unknown kind '{kind}'{nearest(kind, KINDS)}; choose one of {', '.join(KINDS)}")
    files = write_skeleton(cast(Kind, kind), name, out)
    for path in files:
        console.print(f"{path}", soft_wrap=True, highlight=False)
    if kind == "project":
        console.print(
            f"Try it: cd {quote(str(out / name))}; pip install -e .; python -m pytest", soft_wrap=True
        )
        return
    part, test = (quote(str(path)) for path in files)
    command = f"prrfl train --{kind} {part}:{title_of(name)}"
    console.print(f"Try it: python -m pytest {test}; {command}", soft_wrap=True)
