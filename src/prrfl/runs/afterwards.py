"""What to do after a run, a comparison or a federation: commands that work as they are printed."""

import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prrfl.runs.folder import RunFolder


def command(*words: str | Path) -> str:
    """Return a command of prrfl as a shell reads it, whatever characters its paths have."""
    return shlex.join(["prrfl", *map(str, words)])


@dataclass(frozen=True)
class NextStep:
    """A command that may follow, and what it is for."""

    command: str
    purpose: str


def after_run(folder: Path) -> list[NextStep]:
    """Return what may follow a finished run, or a finished federation at its server."""
    report = NextStep(command("report", folder), "curves, scores and images on one page, report.html")
    if RunFolder(folder).is_federation:  # its networks are at the sites
        return [NextStep(report.command, "curves and scores of all sites on one page, report.html")]
    return [report, *with_networks(folder)]


def with_networks(folder: Path) -> list[NextStep]:
    """Return what can be done with the networks of a finished run, or of a site's folder of a federation."""
    site = min((path.name for path in (folder / "models").glob("*")), default=None)
    if site is None:
        return []
    exported = folder.with_name(f"{folder.name}-{site}-onnx".replace(" ", "-"))
    needs = "" if find_spec("onnxruntime") else "; needs pip install 'prrfl[onnx]'"
    return [
        NextStep(command("evaluate", folder), "scores with intervals"),
        NextStep(
            command("export", folder, "--site", site, "--out", exported),
            f"the network of {site} as ONNX, with a model card{needs}",
        ),
    ]


def after_comparison(folder: Path) -> list[NextStep]:
    """Return what may follow a finished comparison."""
    return [
        NextStep(command("report", folder), "tables, figures and report.html again, from the runs"),
        *(
            NextStep(command("evaluate", run), f"scores of {run.name} with intervals of each class")
            for run in sorted((folder / "runs").iterdir())[:1]
        ),
    ]
