"""``prrfl onboard``, and ``prrfl evaluate --data``: a finished run at sites that took no part in it."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from prrfl.cli.screen import console, print_table, score_cells, score_table
from prrfl.reports.formatting import percent
from prrfl.storage.atomic import write_json

if TYPE_CHECKING:
    from prrfl.inference.onboarding import LastRound
    from prrfl.reports.assessment import Assessment
    from prrfl.runs.deployed import Which
    from prrfl.types import Scores, SiteData, Split

log = logging.getLogger("prrfl")

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]
Data = Annotated[
    Path, typer.Option(metavar="DIR", help="data of the new sites, in any format that train reads")
]


def evaluate_new_sites(run_folder: Path, data: Path, which: "Which") -> dict[str, dict[str, "Assessment"]]:
    """Score all networks, their ensemble and their mean on sites that took no part; print and return that."""
    from prrfl.inference.onboarding import evaluate_at_new_site, read_deployed, read_last_round

    last = read_last_round(run_folder)
    deployed = read_deployed(run_folder, which, last.run.settings.device)
    found = {}
    for site in _sites(data, last, ("test",)):
        found[site.name] = evaluate_at_new_site(last, deployed, site)
        title = f"{which} networks on the {len(site.test)} test images of {site.name}"
        table = score_table(title, ("network",), last.run.settings.classes)
        for name, assessment in found[site.name].items():
            table.add_row(name, *score_cells(assessment))
        print_table(table)
    return found


def onboard(
    run_folder: _Run,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for the new networks and their scores")],
    epochs: Annotated[int, typer.Option(min=1, max=10_000, help="local epochs of training")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="same seed, same bits")] = 0,
) -> None:
    """Train a network for a new site, starting from a finished run.

    It prints the gain over the starting network and over training alone. The site needs training and test
    images, but no validation images.
    """
    from prrfl.inference.onboarding import onboard as make_network
    from prrfl.inference.onboarding import read_last_round
    from prrfl.runs.folder import RunFolder
    from prrfl.storage.tensor_files import write_tensors

    RunFolder(out).check_free()
    last = read_last_round(run_folder)
    for site in _sites(data, last, ("train", "test")):
        with console.status(Text(f"{site.name}: training on {len(site.train)} images, twice")):
            result = make_network(last, site, epochs, seed)
        write_tensors(out / site.name / "model.safetensors", result.network, {"run": str(run_folder)})
        write_json(out / site.name / "scores.json", {k: asdict(v) for k, v in result.scores.items()})
        _print(f"{site.name}: {len(site.test)} test images (%)", result.scores, last.run.settings.classes)
        start, _, own, alone = (scores.macro_f1 for scores in result.scores.values())
        console.print(
            f"{site.name} {change(own, start)} of macro-F1 against the {last.mean_name}, "
            f"{change(own, alone)} of macro-F1 against training alone; "
            f"network: {out / site.name / 'model.safetensors'}",
            soft_wrap=True,
        )


def change(after: float, before: float) -> str:
    """Return the difference of two fractions, in percentage points."""
    points = round(100 * (after - before), 2)
    return f"{'lost' if points < 0 else 'gained'} {abs(points):.2f} points"


def _sites(data: Path, last: "LastRound", needed: "Sequence[Split]") -> "list[SiteData]":
    from prrfl.data.sources import load_sites
    from prrfl.engine.in_process import POOL

    config = last.run.settings
    same = config.data is not None and os.path.realpath(config.data) == os.path.realpath(data)
    sites = load_sites(
        data,
        image_size=config.image_size,
        classes=config.classes,
        allow_missing=config.allow_missing,
        needed=needed,
        settings=config.set.get("data", {}) if same else {},
    )
    known = [site.name for site in sites if same and last.states.keys() & {site.name, POOL}]
    if known:
        log.warning(
            "%s took part in the run with this data; the scores are not those of a new site",
            ", ".join(known),
        )
    return sites


def _print(title: str, scores: "Mapping[str, Scores]", classes: tuple[str, ...]) -> None:
    table = Table(title=title)
    table.add_column("network")
    for name in ("macro-F1", "AUC", *(f"recall {name}" for name in classes)):
        table.add_column(name, justify="right")
    for name, value in scores.items():
        table.add_row(name, percent(value.macro_f1), percent(value.auc), *map(percent, value.recall))
    print_table(table)
