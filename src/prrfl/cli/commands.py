"""The commands by name. The module of a command is imported when the command is called.

Importing PyTorch takes seconds. ``prrfl --help`` and ``prrfl --version`` must not wait for it, so the list of
commands is kept here. For the same reason, commands import what does their work inside the function.
"""

import gc
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command

MODULES = {
    "train": "training",
    "resume": "training",
    "report": "training",
    "watch": "watching",
    "compare": "comparing",
    "tune": "tuning",
    "predict": "inference",
    "evaluate": "inference",
    "export": "inference",
    "onboard": "onboarding",
    "data": "data",
    "generate": "data",
    "inspect": "inspecting",
    "doctor": "doctor",
    "new": "new",
    "server": "federating",
    "site": "federating",
    "certs": "federating",
}
"""The module of ``prrfl.cli`` in which each command is a function of the same name."""

SUMMARIES = {
    "train": "Train on a data set, or on generated images if no --data is given.",
    "resume": "Resume a run that was stopped, from its last complete round; the bits are the same.",
    "report": "Write report.html for a run or a comparison, and redraw its tables and figures.",
    "watch": "Show a run, a comparison or a federation in the browser while it goes on.",
    "compare": "Run methods x seeds from shared starts, and write one table with confidence intervals.",
    "tune": "Search each method's settings by validation scores, with as many trials for each method.",
    "predict": "Write the class probabilities of images, and their entropy, as CSV.",
    "evaluate": "Score each site's network on the site's test images, or all networks on new sites.",
    "export": "Export a site's network as ONNX, with a model card and a calibration plot.",
    "onboard": "Train a network for a new site, starting from a finished run.",
    "data": "Import, check, split, partition, convert and build data sets.",
    "generate": "Write a data set of generated, dermoscopy-like images.",
    "inspect": "List what PFA does with each tensor of a network, and how much leaves a site.",
    "doctor": "Check the installation, the machine and the data, and train a few batches.",
    "new": "Write a small working method, network or project of your own, with a test.",
    "server": "Run a federation over real sites, or resume the one in --out.",
    "site": "Take part in a federation until stopped.",
    "certs": "Make certificates and keys for a federation, or renew the server's.",
}
"""What each command does, as listed by ``prrfl --help``: the first sentence of its docstring."""


class _Commands(Mapping[str, click.Command]):
    """All commands by name; each is imported when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        with _nothing_collected():
            found = getattr(import_module(f"prrfl.cli.{MODULES[name]}"), name)
        if isinstance(found, typer.Typer):
            return get_command(found)
        app = typer.Typer(add_completion=False)
        app.command(name, help=_unwrapped(inspect.getdoc(found) or ""))(found)
        return get_command(app)

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Pause the collection of garbage: an import makes little, and the search for it takes half a second."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unwrapped(text: str) -> str:
    """Return a docstring with one line per paragraph, which the help wraps to the width of the terminal."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


class CommandGroup(TyperGroup):
    """A group that lists its commands without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Mapping[str, click.Command] = _Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a stand-in for a command, which shows its summary in the list of commands."""
        return click.Command(cmd_name, help=SUMMARIES[cmd_name]) if cmd_name in MODULES else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command to run, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.commands[name] if name in MODULES else command, rest
