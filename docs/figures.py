"""Draw the pictures of docs/method.md, from the package's own functions and two small real runs.

python docs/figures.py     # about four minutes on two cores
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from torch import Tensor

from prrfl.config import load_config
from prrfl.det import Stage
from prrfl.engine import InProcess, run_rounds
from prrfl.pfa import _as_matrix, _half_side, progressive_fourier_aggregation, treatment
from prrfl.reports.retrogress import MEASURES, band, curve, draw, dress
from prrfl.reports.retrogress import save as save_png
from prrfl.reports.styles import OURS, PALETTE, Style
from prrfl.runs.setup import load_data, make_recipe
from prrfl.tensors import norm_keys
from prrfl.types import RoundRecord, ScoreRecord, Tensors, TrainRecord

IMAGES = Path(__file__).parent / "images"
ROUNDS, EPOCHS = 6, 4
COLOURS = 96
CONVOLUTION = "layer1.1.conv.weight"
RATIOS = {0.7: "#1a1a1a", 0.95: "#d9730d"}
STAGES = {Stage.RECOVER: "#c9d6de", Stage.EXCHANGE: "#6ba5c2", Stage.SUBLIMATE: "#0b4f6e"}


@dataclass(frozen=True, eq=False)
class Run:
    """What the pictures need of a run.

    Attributes:
        records: all of them.
        before: per site, the network that takes part in communications, just before the last one.
        local: names of the tensors of normalisation layers.
    """

    records: Sequence[RoundRecord]
    before: Sequence[Tensors]
    local: frozenset[str]


def run(method: str) -> Run:
    """Run a method on the quickstart's sites, with more local epochs than the quickstart has."""
    torch.set_num_threads(1)
    config = load_config(
        None, {"method": method, "rounds": ROUNDS, "epochs": EPOCHS, "precision": "bfloat16"}
    )
    algorithm, recipe = config.algorithm(), make_recipe(config)
    engine = InProcess(algorithm, load_data(config), recipe)
    local = norm_keys(recipe.network)
    records: list[RoundRecord] = []
    before: list[Tensors] = []
    for record in run_rounds(algorithm, engine, rounds=ROUNDS, epochs=EPOCHS, network=recipe.network):
        last = isinstance(record, ScoreRecord) and record.round == ROUNDS - 1 and record.moment == "after"
        if last and not before:
            # The engine takes a state over when a visit has ended; no site's has the mean in it yet.
            before = [list(networks.values())[-1] for networks in engine.models().values()]
        records.append(record)
    return Run(records, before, local)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of few colours, which is less than half of the bytes."""
    save_png(figure, path)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(COLOURS)
    few.save(path, optimize=True)


def draw_runs(fedavg: Run, ours: Run, path: Path) -> None:
    """Draw FedAvg's and PRR-FL's scores over communication rounds."""
    figure = Figure(figsize=(9.4, 3.6), layout="constrained")
    for axis, (measure, label) in zip(figure.subplots(1, 2), MEASURES, strict=True):
        for name, records, model, style in (
            ("FedAvg", fedavg.records, "model", Style(PALETTE[2])),
            ("PRR-FL, personalised", ours.records, "personalised", Style(OURS)),
            ("PRR-FL, deputy", ours.records, "deputy", Style(PALETTE[1])),
        ):
            draw(axis, band([curve(records, model, None, measure, EPOCHS)]), style, 1.6, label=name)
        dress(axis)
        axis.set_ylabel(label)
        axis.set_xlabel("communication round")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
    save(figure, path)


def draw_pfa(ours: Run, path: Path) -> None:
    """Draw what PFA mixes of a convolution, and how far it moves the deputies."""
    weight = ours.before[0][CONVOLUTION]
    matrix = _as_matrix(weight)
    spectrum = torch.fft.fftshift(torch.fft.fft2(matrix))
    figure = Figure(figsize=(12.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    n, c, d1, d2 = weight.shape
    most = matrix.abs().max().item()
    _matrix(axes[0], matrix, f"weights: ({n}, {c}, {d1}, {d2}) as {c * d1} × {d2 * n}", "RdBu", most)
    _matrix(axes[1], spectrum.abs().log(), "amplitude (log); the low bands", "viridis")
    _matrix(axes[2], spectrum.angle(), "phase: stays at the site", "twilight", torch.pi)
    height, width = matrix.shape
    for ratio, colour in RATIOS.items():
        rows, columns = _half_side(height, ratio), _half_side(width, ratio)
        corner = (width // 2 - columns - 0.5, height // 2 - rows - 0.5)
        axes[1].add_patch(
            Rectangle(
                corner, 2 * columns, 2 * rows, fill=False, edgecolor=colour, linewidth=2, label=f"r = {ratio}"
            )
        )
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)
    ratios = np.linspace(0, 1, 21)
    axis = axes[3]
    axis.plot(ratios, [moved(ours, pfa(ours, ratio)) for ratio in ratios], color=OURS, label="PFA")
    axis.axhline(moved(ours, plain_mean(ours)), color=PALETTE[2], linestyle="--", label="plain mean")
    for ratio, colour in RATIOS.items():
        axis.axvline(ratio, color=colour, linewidth=1, linestyle=":")
    axis.set(
        xlabel="low-frequency ratio r",
        title="how far weights move: ‖w′ − w‖ / ‖w‖",
        ylim=(0, None),
        xlim=(0, 1),
    )
    axis.title.set_fontsize(10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left")
    save(figure, path)


def _matrix(axis: Axes, values: Tensor, title: str, colours: str, most: float | None = None) -> None:
    bounds = {} if most is None else {"vmin": -most, "vmax": most}
    axis.imshow(values.numpy(), cmap=colours, interpolation="nearest", **bounds)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)


def pfa(ours: Run, ratio: float) -> Sequence[Tensors]:
    """Return the deputies after PFA at a ratio."""
    return progressive_fourier_aggregation(ours.before, float(ratio), ours.local)


def plain_mean(ours: Run) -> Sequence[Tensors]:
    """Return the deputies after a plain mean."""
    mean = {
        key: torch.stack([state[key].double() for state in ours.before]).mean(0) for key in ours.before[0]
    }
    return [mean] * len(ours.before)


def moved(ours: Run, after: Sequence[Tensors]) -> float:
    """Return ‖w′ − w‖ / ‖w‖ of all convolutions and linear weights, mean over sites."""

    def one(old: Tensors, new: Tensors) -> float:
        keys = [key for key, tensor in old.items() if treatment(key, tensor, ours.local) == "fourier"]
        way = sum((new[key] - old[key]).square().sum().item() for key in keys)
        return float((way / sum(old[key].square().sum().item() for key in keys)) ** 0.5)

    return float(np.mean([one(old, new) for old, new in zip(ours.before, after, strict=True)]))


def draw_det(ours: Run, path: Path) -> None:
    """Draw each local epoch's stage at each site, and the ratio of scores by which it was chosen."""
    epochs = [r for r in ours.records if isinstance(r, TrainRecord)]
    clients = sorted({r.client for r in epochs})
    shape = (len(clients), ROUNDS * EPOCHS)
    stages, ratios = np.zeros(shape), np.full(shape, np.nan)
    for r in epochs:
        place = clients.index(r.client), r.round * EPOCHS + r.epoch
        stages[place] = r.metrics["stage"]
        ratios[place] = r.metrics["f1_deputy"] / r.metrics["f1_personalised"]
    figure = Figure(figsize=(9.4, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    above.imshow(
        stages,
        cmap=ListedColormap(list(STAGES.values())),
        vmin=0.5,
        vmax=3.5,
        aspect="auto",
        extent=(0, ROUNDS, len(clients), 0),
        interpolation="nearest",
    )
    above.set_yticks(np.arange(len(clients)) + 0.5, clients)
    above.tick_params(left=False)
    for round_index in range(1, ROUNDS):
        above.axvline(round_index, color="white", linewidth=2)
    handles = [Patch(color=colour, label=stage.name.lower()) for stage, colour in STAGES.items()]
    above.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    middles = (np.arange(EPOCHS) + 0.5) / EPOCHS
    for client, row, colour in zip(clients, ratios, PALETTE, strict=False):
        for round_index in range(ROUNDS):
            part = row[round_index * EPOCHS : (round_index + 1) * EPOCHS]
            label = client if round_index == 0 else None
            below.plot(
                round_index + middles,
                part,
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1.2,
                label=label,
            )
    for name, threshold in (("α₁", 0.7), ("α₂", 0.9)):
        below.axhline(threshold, color="#888888", linestyle="--", linewidth=0.9)
        below.annotate(name, (ROUNDS, threshold), xytext=(3, 0), textcoords="offset points", va="center")
    below.set(
        xlabel="communication round",
        ylabel="F1: deputy / personalised",
        xlim=(0, ROUNDS),
        xticks=range(ROUNDS + 1),
    )
    below.spines[["top", "right"]].set_visible(False)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def main() -> None:
    """Draw everything."""
    with ProcessPoolExecutor(2) as processes:
        fedavg, ours = processes.map(run, ("fedavg", "prrfl"))
    draw_runs(fedavg, ours, IMAGES / "method-retrogress.png")
    draw_pfa(ours, IMAGES / "method-pfa.png")
    draw_det(ours, IMAGES / "method-det.png")


if __name__ == "__main__":
    main()
