"""The command line: ``prrfl train``, ``report``, ``inspect``, ``generate``."""

import inspect as signatures
import logging
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from prrfl.config import TrainConfig, load_config
from prrfl.errors import PRRFLError
from prrfl.types import ExchangeRecord, RoundRecord, SiteData, TrainRecord

app = typer.Typer(
    help="Personalised, retrogress-resilient federated learning on medical images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
STAGES = {1: "recover", 2: "exchange", 3: "sublimate"}


def train(config: Path | None, out: Path | None, **flags: Any) -> None:
    """Train on a folder of sites, or on generated ones where no --data is given.

    Settings come from --config (TOML), then from flags. Without either, the embedded quickstart runs.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    settings = load_config(config, given)
    run_training(settings, out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{settings.method}")


def run_training(settings: TrainConfig, folder: Path) -> None:
    """Load the data, train with live progress, and print the table of sites."""
    # Imported here so that `prrfl --help` does not wait for networks and pictures.
    from prrfl import run

    run.check_folder_is_free(folder)  # before the data is read, which may take a while
    if settings.data is None:
        console.print(f"No --data given: {settings.sites} generated sites of {settings.images} images.")
    sites = run.load_data(settings)
    console.print(
        f"{settings.method} on {len(sites)} sites ({', '.join(s.name for s in sites)}), "
        f"{sum(len(s.train) for s in sites)} training images of {settings.image_size} px, "
        f"{settings.rounds} rounds x {settings.epochs} epochs, {settings.device}, {settings.precision}"
    )
    show_progress(run.train(settings, sites, folder), sites, settings)
    print_summary(folder)
    console.print(f"Run folder: {folder}", soft_wrap=True)


def show_progress(records: Iterable[RoundRecord], sites: list[SiteData], settings: TrainConfig) -> None:
    """Consume a run's records, showing round, site, stage and time left."""
    sizes = {site.name: len(site.train) for site in sites}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=3600) as progress:
        total = settings.rounds * settings.epochs * sum(sizes.values())
        task = progress.add_task(f"round 1/{settings.rounds}", total=total)
        for record in records:
            if isinstance(record, TrainRecord):
                stage = STAGES.get(int(record.metrics.get("stage", 0)), "")
                progress.update(
                    task,
                    advance=sizes[record.client],
                    description=f"round {record.round + 1}/{settings.rounds} {record.client} {stage}",
                )
            elif isinstance(record, ExchangeRecord) and not console.is_terminal:
                console.print(f"round {record.round + 1}/{settings.rounds} done")


def print_summary(folder: Path) -> None:
    """Print the table of sites of a finished run."""
    import json

    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    table = Table(title="Test scores of each site's own model (%)")
    table.add_column("site")
    for name in ("macro-F1, last", "AUC, last", "macro-F1, best on validation", "AUC, best on validation"):
        table.add_column(name, justify="right")
    rows = [*summary["last"]["sites"], None]
    for site in rows:
        last, best = (
            summary[which]["sites"][site] if site else summary[which]["mean"] for which in ("last", "best")
        )
        cells = (last["macro_f1"], last["auc"], best["macro_f1"], best["auc"])
        table.add_row(site or "mean", *map(percent, cells), style=None if site else "bold")
    console.print(table)
    for model, drop in summary["retrogress"].items():
        console.print(
            f"Mean drop at communication, {model}: macro-F1 {percent(drop.get('macro_f1'))}, "
            f"AUC {percent(drop.get('auc'))} points"
        )


def percent(value: float | None) -> str:
    """Return a fraction as percent with two decimals, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.2f}"


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]) -> None:
    """Remake the summary and the pictures of a run from its records."""
    from prrfl import run

    run.report(run_folder)
    print_summary(run_folder)
    console.print(f"Pictures: {run_folder / 'retrogress.png'}", soft_wrap=True)


@app.command()
def inspect(
    network: Annotated[str, typer.Option(help="network by name")] = "vgg16_slim",
    classes: Annotated[int, typer.Option(min=2, help="number of classes")] = 3,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="low-frequency ratio")] = 0.7,
) -> None:
    """List what PFA does with every tensor of a network, and how much of it leaves a site."""
    from prrfl.models import build_network
    from prrfl.pfa import low_band_amplitudes, treatment
    from prrfl.tensors import count_bytes, norm_keys

    module = build_network(network, classes)
    state, local = module.state_dict(), norm_keys(module)
    sent = low_band_amplitudes(state, ratio, local)
    table = Table(title=f"{network} at low-frequency ratio {ratio}")
    for name in ("tensor", "shape", "treatment", "sent (values)"):
        table.add_column(name, justify="right" if name.startswith("sent") else "left", overflow="fold")
    for key, tensor in state.items():
        values = sent[key].numel() if key in sent else 0
        table.add_row(key, "x".join(map(str, tensor.shape)), treatment(key, tensor, local), f"{values:,}")
    console.print(table)
    up, whole = count_bytes(sent), count_bytes(state)
    console.print(f"Each way per round: {up:,} bytes of {whole:,}, {up / whole:.3f} of the weights")


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder to make")],
    sites: Annotated[int, typer.Option(min=1, help="number of sites")] = 4,
    images: Annotated[int, typer.Option(min=18, help="images per site")] = 320,
    image_size: Annotated[int, typer.Option(min=32, help="side of the images, in pixels")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same images")] = 0,
) -> None:
    """Write a generated dermoscopy-like data set in the published layout."""
    from prrfl.data.synthetic import GeneratedData, write_generated

    write_generated(GeneratedData(sites, images, image_size, seed), folder)
    console.print(f"{sites} sites of {images} images: {folder}", soft_wrap=True)


def _with_flags(command: Any) -> Any:
    """Give a command one flag per setting of :class:`TrainConfig`, so that each is described only once."""
    parameters = [
        _parameter("config", Path, "settings from a TOML file; flags override it"),
        _parameter("out", Path, "folder of the run; a dated one under runs/ if not given"),
        *(
            _parameter(
                name, _flag_type(field.annotation), f"{field.description} [default: {_shown(field.default)}]"
            )
            for name, field in TrainConfig.model_fields.items()
        ),
    ]
    command.__signature__ = signatures.Signature(parameters)
    return command


def _parameter(name: str, kind: Any, text: str) -> signatures.Parameter:
    annotation = Annotated[kind | None, typer.Option(help=text, show_default=False)]
    return signatures.Parameter(name, signatures.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag_type(annotation: Any) -> Any:
    """Return what a flag is read as; pydantic checks the rest, so that files and flags err alike."""
    if get_origin(annotation) in (Literal, tuple):
        return str
    return next((kind for kind in get_args(annotation) if kind is Path), annotation)


def _shown(default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


app.command()(_with_flags(train))


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    sys.exit(guarded(app))


def guarded(command: Any) -> int:
    """Call a command; turn a user's error into one line on standard error. Return the exit code."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("warning: %(message)s"))
    # Errors are said once, below; they reach the log file of a run by a handler of its own.
    warnings.addFilter(lambda record: record.levelno == logging.WARNING)
    logging.basicConfig(handlers=[warnings], level=logging.WARNING)
    try:
        command()
    except PRRFLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; what was written before is whole", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished rounds are kept", file=sys.stderr)
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
