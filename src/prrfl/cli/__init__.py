"""The command line. ``commands`` names every command and the module that holds it."""

import atexit
import gc
import io
import logging
import signal
import sys
from typing import Annotated, Any
from warnings import catch_warnings, simplefilter

import typer

import prrfl
from prrfl.cli.commands import CommandGroup
from prrfl.errors import PRRFLError, Stopped, one_line
from prrfl.parts.blame import blamed

__all__ = ["app", "guarded", "main"]

app = typer.Typer(
    cls=CommandGroup,
    help="Personalised, retrogress-resilient federated learning on medical images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"prrfl {prrfl.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a folder need not be valid text
    # The interpreter's last collection would visit every object of PyTorch's, which takes about a second.
    atexit.register(gc.freeze)
    sys.exit(guarded(app))


def guarded(command: Any) -> int:
    """Call a command and return its exit code; print a user's error as one line on standard error."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("warning: %(message)s"))
    # Errors are printed once, below; a run writes them into its log file with a handler of its own.
    warnings.addFilter(lambda record: record.levelno == logging.WARNING)
    # Ours alone: what libraries log or warn of is meant for programmers. Python's own switch shows it.
    warnings.addFilter(logging.Filter("prrfl"))
    logging.basicConfig(handlers=[warnings], level=logging.WARNING)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with catch_warnings():
            if not sys.warnoptions:
                simplefilter("ignore")
            command()
    except PRRFLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print("; ".join(["stopped", *getattr(stop, "__notes__", ())]), file=sys.stderr)
        return 128 + stop.signal
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception as cause:
        part = blamed(cause)
        if part is None and not isinstance(cause, OSError):
            raise
        said = part or f"{one_line(str(cause))}; files written before are complete"
        print(f"error: {said}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _stop(number: int, _: object) -> None:
    """Raise an exception, so that files are closed and worker processes end."""
    raise Stopped(number)
