"""Temperature scaling: logits are divided by one number, so that probabilities match frequencies.

Guo, Pleiss, Sun, Weinberger: *On Calibration of Modern Neural Networks*, ICML 2017. The predicted class
never changes, hence neither do F1, recall and accuracy; only the probabilities change. Unlike there, the
temperature has a prior, because a site has few validation images.
"""

import logging
from dataclasses import replace
from math import isclose

import numpy as np
from torch import Tensor

from prrfl.errors import DataError
from prrfl.types import Predictions

BOUNDS = (0.05, 20.0)
"""Bounds of the temperature. The fit ends at one of them only if probabilities and labels hardly agree."""

PRIOR = 0.5
"""Standard deviation of ln T in the prior, whose mean is 0: 95 % of it is between T = 0.38 and 2.7."""

log = logging.getLogger("prrfl")


def fit_temperature(predictions: Predictions, whose: str = "the predictions") -> float:
    """Return the temperature T that is most probable, given the true classes of validation images.

    It minimises Σ NLL(T) + (ln T)² / (2 · 0.5²): the negative log-likelihood, summed over images, and a
    normal prior on ln T. The few validation images of a site often show no error. Without a prior, T then
    falls until all predictions are certain, and the first error on a test image costs many nats. With
    hundreds of images that show errors the prior hardly matters.

    Args:
        predictions: the network's predictions on validation images, at temperature 1. Do not use test images,
            whose scores would then be too good.
        whose: name of the site, for messages.

    Returns:
        The temperature, within ``BOUNDS``; with a warning if it is one of them.

    Raises:
        DataError: if there is no image.
    """
    if not len(predictions.labels):
        raise DataError(f"{whose}: there is no validation image; a temperature needs some")
    # Takes half a second, and training fits no temperature.
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits = _logits(predictions).numpy()
    truth = logits[np.arange(len(logits)), predictions.labels.numpy()]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        likelihood = np.sum(logsumexp(logits * scale, axis=1) - truth * scale)
        return float(likelihood + log_temperature**2 / (2 * PRIOR**2))

    # Weak logits, all of them right, give the sum two minima: the grid finds the lower one.
    low, high = np.log(BOUNDS)
    grid = np.linspace(low, high, 61)
    lowest = int(np.argmin([loss(point) for point in grid]))
    around = (grid[max(lowest - 1, 0)], grid[min(lowest + 1, len(grid) - 1)])
    found = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6})
    # The search looks between its bounds only, never at them.
    temperature = float(np.exp(min((found.x, *around), key=loss)))
    for bound in BOUNDS:
        if isclose(temperature, bound):
            log.warning(
                "%s: the temperature is at its bound, %g, because probabilities and labels of the validation "
                "images hardly agree; check these labels before you use the calibrated probabilities",
                whose,
                bound,
            )
            return bound
    return temperature


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Return predictions, which were made at temperature 1, at another temperature."""
    return replace(predictions, probabilities=(_logits(predictions) / temperature).softmax(1))


def _logits(predictions: Predictions) -> Tensor:
    """Return (N, C) logits, up to a constant for each image, which does not matter."""
    return predictions.probabilities.double().clamp_min(1e-300).log()
