"""The command line: every command is a function in one of this room's modules, named here."""

import io
import logging
import signal
import sys
from typing import Any

import typer

from prrfl.cli.comparing import compare
from prrfl.cli.data import data
from prrfl.cli.doctor import doctor
from prrfl.cli.federating import certs, server, site
from prrfl.cli.newcomers import onboard
from prrfl.cli.tools import generate, inspect
from prrfl.cli.training import report, resume, run_training, train
from prrfl.cli.using import evaluate, export, predict
from prrfl.errors import PRRFLError, Stopped, one_line

__all__ = ["app", "guarded", "main", "run_training"]

app = typer.Typer(
    help="Personalised, retrogress-resilient federated learning on medical images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")
COMMANDS = (
    *(train, compare, resume, report),
    *(predict, evaluate, export, onboard),
    *(inspect, generate, doctor),
    *(server, site, certs),
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a folder's name need not be text
    sys.exit(guarded(app))


def guarded(command: Any) -> int:
    """Call a command; turn a user's error into one line on standard error. Return the exit code."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("warning: %(message)s"))
    # Errors are said once, below; they reach the log file of a run by a handler of its own.
    warnings.addFilter(lambda record: record.levelno == logging.WARNING)
    logging.basicConfig(handlers=[warnings], level=logging.WARNING)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        command()
    except PRRFLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {one_line(str(error))}; what was written before is whole", file=sys.stderr)
        return 2
    except Stopped as stop:
        print("; ".join(["stopped", *getattr(stop, "__notes__", ())]), file=sys.stderr)
        return 128 + stop.signal
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _stop(number: int, _: object) -> None:
    """End as after an exception, so that files are closed and no process of ours lives on."""
    raise Stopped(number)
