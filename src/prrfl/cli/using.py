"""``prrfl predict``, ``evaluate`` and ``export``: trained networks put to use."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prrfl.cli.newcomers import evaluate_newcomers
from prrfl.cli.screen import console, judgement_cells, judgement_table
from prrfl.errors import ConfigError

if TYPE_CHECKING:
    from prrfl.reports.judgement import Judgement
    from prrfl.runs.deployed import Which

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="folder of a run, or a site's own of one over real sites")
]
SiteName = Annotated[str | None, typer.Option(help="whose network; may be left out where there is one")]
Network = Annotated[
    Literal["best", "last"],
    typer.Option(help="the best round on validation among the last 20 %, or the last round"),
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="scale probabilities by a temperature fitted on validation images")
]


def predict(
    run_folder: Run,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="image files, or folders of them")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the CSV to write")],
    site: SiteName = None,
    network: Network = "best",
    calibrate: Calibrate = False,
) -> None:
    """Write what a site's network says of images: class probabilities, and their entropy, as CSV.

    Columns are image, predicted, p_<class> for each class, and entropy (in nats; 0 is sure). Not a medical
    device.
    """
    from prrfl.data.images import find_images
    from prrfl.machine import best_device
    from prrfl.runs.deployed import classify, read_network
    from prrfl.storage.atomic import write_text

    found = find_images(images)
    kept = read_network(run_folder, site, network, calibrate=calibrate, device=best_device())
    classes = kept.about.classes
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "predicted", *(f"p_{name}" for name in classes), "entropy"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for path, p in progress.track(classify(kept, found), total=len(found), description="images"):
            values = p.tolist()
            entropy = float(-(p * p.clamp_min(1e-300).log()).sum())
            # Names of files may hold bytes that are no text.
            name = os.fsencode(path).decode("utf-8", "replace")
            row = [name, classes[int(p.argmax())], *(f"{v:.6g}" for v in values), f"{entropy:.4f}"]
            writer.writerow(row)
    write_text(out, table.getvalue())
    scaled = f", temperature {kept.temperature:.3g}" if calibrate else ""
    console.print(
        f"{len(found)} images by the {network} network of {kept.site}{scaled}: {out}", soft_wrap=True
    )


def evaluate(
    run_folder: Run,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="sites that took no part; without it, each site's own test images"),
    ] = None,
    network: Network = "best",
    calibrate: Calibrate = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write the scores there too")] = None,
) -> None:
    """Score each site's network anew on its own test images; with --data, all on sites that took no part.

    Where a site took no part, test images are enough; every site's network of the best or last round, their
    ensemble, and the last round's mean are scored there. What PRR-FL means are its deputies. Intervals are of
    95 %, over images. All is scored in float32, whatever the run's precision.
    """
    from prrfl.storage.atomic import write_json

    if data is None:
        found = {name: asdict(one) for name, one in _own(run_folder, network, calibrate).items()}
    elif calibrate:
        raise ConfigError("--data scores networks as they are; leave --calibrate out")
    else:
        newcomers = evaluate_newcomers(run_folder, data, network)
        found = {site: {name: asdict(s) for name, s in scores.items()} for site, scores in newcomers.items()}
    if json is not None:
        write_json(json, found)


def _own(run_folder: Path, network: "Which", calibrate: bool) -> Mapping[str, "Judgement"]:
    from prrfl.inference.evaluate import judge_own
    from prrfl.runs.folder import RunFolder

    classes: tuple[str, ...] = ()
    found: dict[str, Judgement] = {}
    with console.status("scoring"):
        for kept, judgement in judge_own(run_folder, network, calibrate):
            found[kept.site], classes = judgement, kept.about.classes
    title = f"{network} network of each site on its own test images"
    table = judgement_table(title, ("site", "images"), classes)
    for site, judgement in found.items():
        table.add_row(site, str(judgement.images), *judgement_cells(judgement))
    console.print(table)
    precision = RunFolder(run_folder).settings().precision
    if precision != "float32":
        console.print(
            f"Scored in float32; the run scored in {precision}, so that its summary may differ a little.",
            soft_wrap=True,
        )
    return found


def export(
    run_folder: Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to make")],
    site: SiteName = None,
    network: Network = "best",
    calibrate: Calibrate = False,
) -> None:
    """Write a site's network as ONNX, with its model card and a picture of its calibration.

    The file takes pixels (uint8 RGB, any number of images) and gives probabilities; onnxruntime's are checked
    against the network's before it is written.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ConfigError(f"the package {missing[0]} is not there; pip install 'prrfl[onnx]'")
    from prrfl.inference import export as exporting
    from prrfl.runs.deployed import read_network
    from prrfl.runs.folder import RunFolder

    RunFolder(out).check_free()
    kept = read_network(run_folder, site, network, calibrate=calibrate)
    with console.status("exporting"):
        off = exporting.export(kept, run_folder, network, out)
    console.print(
        f"{out / 'model.onnx'}: the {network} network of {kept.site}; onnxruntime gives its probabilities to "
        f"{off:.0e}. Read {out / 'model_card.md'} before use.",
        soft_wrap=True,
    )
