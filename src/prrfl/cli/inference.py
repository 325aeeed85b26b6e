"""``prrfl predict``, ``evaluate`` and ``export``: use the trained networks."""

import csv
import io
import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prrfl.cli.onboarding import evaluate_new_sites
from prrfl.cli.options import MovedData, Subgroups
from prrfl.cli.screen import console, print_subgroups, print_table, score_cells, score_table
from prrfl.errors import ConfigError
from prrfl.storage.atomic import write_json, write_text

if TYPE_CHECKING:
    from prrfl.runs.deployed import SavedNetwork, Which
    from prrfl.types import Predictions

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, or of a site of a federation")]
SiteName = Annotated[
    str | None, typer.Option(help="site whose network to use; optional if there is only one")
]
Network = Annotated[
    Literal["best", "last"],
    typer.Option(help="network of the best round on validation among the last 20 %, or of the last round"),
]
Calibrate = Annotated[
    bool,
    typer.Option("--calibrate", help="calibrate probabilities by a temperature fitted on validation images"),
]


def predict(
    run_folder: _Run,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="image files, or folders of them")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="CSV to write")],
    site: SiteName = None,
    network: Network = "best",
    calibrate: Calibrate = False,
) -> None:
    """Write the class probabilities of images, and their entropy, as CSV.

    The columns are image, predicted, p_<class> for each class, and entropy (in nats; 0 means certain). Not a
    medical device.
    """
    from prrfl.data.images import find_images
    from prrfl.machine import best_device
    from prrfl.runs.deployed import classify, read_network

    found = find_images(images)
    saved = read_network(run_folder, site, network, calibrate=calibrate, device=best_device())
    classes = saved.about.classes
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "predicted", *(f"p_{name}" for name in classes), "entropy"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for path, p in progress.track(classify(saved, found), total=len(found), description="images"):
            values = p.tolist()
            entropy = float(-(p * p.clamp_min(1e-300).log()).sum())
            # File names may hold bytes that are not valid text.
            name = os.fsencode(path).decode("utf-8", "replace")
            row = [name, classes[int(p.argmax())], *(f"{v:.6g}" for v in values), f"{entropy:.4f}"]
            writer.writerow(row)
    write_text(out, table.getvalue())
    scaled = f", temperature {saved.temperature:.3g}" if calibrate else ""
    console.print(f"{len(found)} images by {_named(saved, network)}{scaled}: {out}", soft_wrap=True)


def evaluate(
    run_folder: _Run,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="data of new sites; by default, each network is scored on its own site's test images",
        ),
    ] = None,
    own_data: MovedData = None,
    network: Network = "best",
    calibrate: Calibrate = False,
    subgroups: Subgroups = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the scores to this file, too")
    ] = None,
) -> None:
    """Score each site's network on the site's test images, or all networks on new sites.

    With --data, the networks of all sites, their ensemble, and the mean of the last round are scored on new
    sites, which need test images only. For PRR-FL, the mean is that of the deputies. Intervals are 95 %
    confidence intervals over images. Scoring uses float32, whatever the precision of the run.
    """
    if data is None:
        found = _own(run_folder, network, calibrate, own_data, subgroups)
    elif own_data is not None:
        raise ConfigError("--own-data cannot be used with --data, the data of new sites; choose one")
    elif calibrate or subgroups is not None:
        raise ConfigError(
            f"--{'calibrate' if calibrate else 'subgroups'} cannot be used with --data, which scores several "
            "networks as they are; leave it out"
        )
    else:
        scored = evaluate_new_sites(run_folder, data, network)
        found = {site: {name: asdict(s) for name, s in scores.items()} for site, scores in scored.items()}
    if json is not None:
        write_json(json, found)


def _own(
    run_folder: Path, network: "Which", calibrate: bool, data: Path | None, subgroups: str | None
) -> dict[str, dict[str, Any]]:
    """Score and print the networks of a run on their own sites; return all scores by site."""
    from prrfl.data.subgroups import parse_columns
    from prrfl.inference.evaluate import evaluate_own_sites, tables_of
    from prrfl.reports.assessment import assess
    from prrfl.reports.subgroups import by_subgroup
    from prrfl.runs.deployed import sites_of
    from prrfl.runs.folder import RunFolder

    columns = parse_columns(subgroups) if subgroups is not None else ()
    tables = tables_of(run_folder, sites_of(run_folder), columns, data, "--own-data")
    classes: tuple[str, ...] = ()
    predicted: dict[str, Predictions] = {}
    early: list[str] = []
    with console.status("scoring"):
        for saved, predictions in evaluate_own_sites(run_folder, network, calibrate, data):
            predicted[saved.site], classes = predictions, saved.about.classes
            if _is_early(saved, network):
                early.append(_named(saved, network))
        found = {site: assess(one) for site, one in predicted.items()}
        divided = by_subgroup(predicted, tables.divide(predicted))
    title = f"{network} network of each site on its own test images"
    table = score_table(title, ("site", "images"), classes)
    for site, assessment in found.items():
        table.add_row(site, str(assessment.images), *score_cells(assessment))
    print_table(table)
    if divided:
        print_subgroups(divided, classes)
    for which in early:
        console.print(f"Scored: {which}.", soft_wrap=True)
    precision = RunFolder(run_folder).settings().precision
    if precision != "float32":
        console.print(
            f"Scored in float32; the run scored in {precision}, so its summary may differ slightly.",
            soft_wrap=True,
        )
    scores = {site: asdict(one) for site, one in found.items()}
    if columns:
        for site in scores:
            scores[site]["subgroups"] = [asdict(row) for row in divided if row.site == site]
    return scores


def _named(saved: "SavedNetwork", which: "Which") -> str:
    """Return what a network is, for messages."""
    about = saved.about
    early = f", of round {about.round + 1} of {about.rounds}" if _is_early(saved, which) else ""
    return f"the {which} network of {saved.site}{early}"


def _is_early(saved: "SavedNetwork", which: "Which") -> bool:
    """Return whether a last network is not of the last round: its site was absent, or the run is not done."""
    return which == "last" and saved.about.round + 1 < saved.about.rounds


def export(
    run_folder: _Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to create")],
    site: SiteName = None,
    network: Network = "best",
    calibrate: Calibrate = False,
    subgroups: Subgroups = None,
    data: MovedData = None,
) -> None:
    """Export a site's network as ONNX, with a model card and a calibration plot.

    The model maps pixels (uint8 RGB, any number of images) to probabilities. Before it is written, the
    probabilities of onnxruntime are compared with those of the network.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ConfigError(f"package {missing[0]} is not installed; run pip install 'prrfl[onnx]'")
    from prrfl.data.subgroups import parse_columns
    from prrfl.inference import export as exporting
    from prrfl.inference.evaluate import tables_of
    from prrfl.runs.deployed import read_network
    from prrfl.runs.folder import RunFolder

    columns = parse_columns(subgroups) if subgroups is not None else ()
    if data is not None and not columns:
        raise ConfigError("--data: only --subgroups reads the data; leave it out, or name columns")
    RunFolder(out).check_free()
    saved = read_network(run_folder, site, network, calibrate=calibrate)
    tables = tables_of(run_folder, [saved.site], columns, data, "--data")
    with console.status("exporting"):
        difference = exporting.export(saved, run_folder, network, out, tables)
    console.print(
        f"{out / 'model.onnx'}: {_named(saved, network)}; onnxruntime's probabilities differ from its own by "
        f"at most {difference:.0e}. Read {out / 'model_card.md'} before use.",
        soft_wrap=True,
    )
