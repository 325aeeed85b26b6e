"""Calibration of a network: accuracy by confidence, the calibration error, and the reliability diagram."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prrfl.reports.plotting import Figure, MultipleLocator, default_style, fit_fonts
from prrfl.reports.retrogress import dress
from prrfl.reports.styles import PALETTE
from prrfl.types import Predictions

BINS = 15
"""Number of bins of confidence, as in Guo et al., ICML 2017."""


@dataclass(frozen=True)
class Bin:
    """The images whose predicted class has a probability in (low, high].

    Attributes:
        confidence: mean of those probabilities.
        accuracy: fraction of the images whose predicted class is the true one.
    """

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(predictions: Predictions) -> list[Bin]:
    """Return the bins, of equal width, that hold an image, in order of confidence."""
    confidence, predicted = (t.numpy() for t in predictions.probabilities.max(1))
    right = predicted == predictions.labels.numpy()
    index = _bin_of(confidence)
    return [
        Bin(
            k / BINS,
            (k + 1) / BINS,
            int(here.sum()),
            float(confidence[here].mean()),
            float(right[here].mean()),
        )
        for k in range(BINS)
        if (here := index == k).any()
    ]


def _bin_of(confidence: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    index: NDArray[np.int64] = np.ceil(confidence * BINS).astype(np.int64) - 1
    return index.clip(0, BINS - 1)


def calibration_error(predictions: Predictions) -> float:
    """Return the expected calibration error: |accuracy - confidence| of the bins, averaged over images."""
    there = reliability(predictions)
    total = sum(b.images for b in there)
    return sum(b.images * abs(b.accuracy - b.confidence) for b in there) / total


def chance_error(predictions: Predictions, seed: int = 0, draws: int = 200) -> float:
    """Return the mean calibration error for labels drawn from the predictions, which are then calibrated.

    Labels are drawn independently. If several images show one lesion, which has one label, chance does more.
    """
    values = predictions.probabilities.double()
    draw = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(values, draws, replacement=True, generator=draw)  # (N, draws)
    confidence, predicted = values.max(1)
    in_bin = np.eye(BINS)[_bin_of(confidence.numpy())]
    gaps = in_bin.T @ ((labels == predicted[:, None]).double() - confidence[:, None]).numpy()
    return float(np.abs(gaps).sum(0).mean() / len(values))


@default_style()
def draw_reliability(curves: Sequence[tuple[str, Predictions]], title: str) -> bytes:
    """Return the reliability diagram as PNG: accuracy against confidence, above a histogram of confidence.

    Args:
        curves: names and predictions on the same images, before and after calibration for example.
        title: title of the figure.
    """
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    above.plot([0, 100], [0, 100], color="0.6", linewidth=1, dashes=(4, 2), label="perfectly calibrated")
    for (name, predictions), colour in zip(curves, PALETTE, strict=False):
        there = reliability(predictions)
        error = calibration_error(predictions)
        above.plot(
            [100 * b.confidence for b in there],
            [100 * b.accuracy for b in there],
            color=colour,
            marker="o",
            markersize=4,
            label=f"{name}: off by {100 * error:.1f} points",
        )
        sure = 100 * predictions.probabilities.max(1).values.numpy()
        below.hist(sure, np.linspace(0, 100, BINS + 1), histtype="step", color=colour, linewidth=1.5)
    above.set_ylabel("accuracy (%)")
    above.set_title(title, loc="left", fontsize=10)
    above.legend(frameon=False, fontsize=9)
    below.set_ylabel("images")
    below.set_xlabel("probability of the predicted class (%)")
    for axis in (above, below):
        dress(axis)
        axis.xaxis.set_major_locator(MultipleLocator(20))
    fit_fonts(figure, "calibration.png")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()
