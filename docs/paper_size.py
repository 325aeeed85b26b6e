"""Draw the README's first picture: what each communication does, at the paper's image size.

python docs/paper_size.py RUNS    # such as runs/paper-size/runs, with the run folders of `prrfl compare`

The name of a run folder begins with its method. The picture needs only `config.toml` and `metrics.jsonl`
(or `metrics.jsonl.gz`).
"""

import gzip
import sys
import tomllib
from pathlib import Path

from matplotlib.figure import Figure

from figures import save
from prrfl.reports.retrogress import MEASURES, band, curve, draw, dress
from prrfl.reports.styles import OURS, Style
from prrfl.storage.records import from_line
from prrfl.types import RoundRecord

OUT = Path(__file__).parent / "images" / "paper-size.png"
METHODS = {
    "fedavg": ("FedAvg", Style("#d9730d"), 1.1),
    "fedbn": ("FedBN", Style("#448361"), 1.1),
    "local": ("training alone", Style("#777777", (3.0, 1.5)), 1.3),
    "prrfl": ("PRR-FL, personalised network", Style(OURS), 2.4),
}
"""Each method's name in the legend, look and line width; later ones are drawn on top."""


def read_run(folder: Path) -> tuple[list[RoundRecord], int]:
    """Return a run's records and its number of local epochs per round."""
    plain = folder / "metrics.jsonl"
    text = (
        plain.read_text("utf-8")
        if plain.is_file()
        else gzip.decompress(plain.with_name("metrics.jsonl.gz").read_bytes()).decode()
    )
    settings = tomllib.loads((folder / "config.toml").read_text("utf-8"))
    return [from_line(line) for line in text.splitlines()], settings["epochs"]


def draw_paper_size(runs: Path, path: Path) -> None:
    """Draw the deployed networks' mean scores over the rounds that all methods completed.

    Args:
        runs: folder that holds one run folder for each method.
        path: the PNG to write.
    """
    read = {method: read_run(*runs.glob(f"{method}*")) for method in METHODS}
    common = min(max(record.round for record in records) for records, _ in read.values())
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, (measure, label) in zip(axes, MEASURES, strict=True):
        for method, (name, style, width) in METHODS.items():
            records, epochs = read[method]
            shown = [record for record in records if record.round <= common]
            draw(axis, band([curve(shown, None, None, measure, epochs)]), style, width, label=name)
        dress(axis)
        axis.set_ylabel(label)
    axes[-1].set_xlabel("communication round")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=4, frameon=False)
    save(figure, path)


if __name__ == "__main__":
    draw_paper_size(Path(sys.argv[1]), OUT)
