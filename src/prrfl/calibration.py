"""Temperature scaling: logits are divided by one number, so that probabilities match frequencies.

Guo, Pleiss, Sun, Weinberger: *On Calibration of Modern Neural Networks*, ICML 2017. The predicted class
never changes, hence neither do F1, recall and accuracy; only the probabilities change.
"""

import logging
from dataclasses import replace

import numpy as np
from torch import Tensor

from prrfl.errors import DataError
from prrfl.types import Predictions

BOUNDS = (0.05, 20.0)
"""Bounds of the temperature. The fit ends at one of them only if all predictions are right, or all are wrong,
as can happen on few images."""

log = logging.getLogger("prrfl")


def fit_temperature(predictions: Predictions, whose: str = "the predictions") -> float:
    """Return the temperature that maximises the likelihood of the true classes of validation images.

    Args:
        predictions: the network's predictions on validation images, at temperature 1. Do not use test images,
            whose scores would then be too good.
        whose: name of the predictions, for messages.

    Returns:
        The temperature; 1, with a warning, if none fits best.

    Raises:
        DataError: if there is no image.
    """
    if not len(predictions.labels):
        raise DataError(f"{whose} hold no image; a temperature needs validation images")
    # Takes half a second, and training fits no temperature.
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    logits = _logits(predictions).numpy()
    truth = logits[np.arange(len(logits)), predictions.labels.numpy()]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(logsumexp(logits * scale, axis=1) - truth * scale))

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    if not BOUNDS[0] * 1.02 < temperature < BOUNDS[1] * 0.98:
        log.warning("%s: no temperature fits best; probabilities stay unchanged", whose)
        return 1.0
    return temperature


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Return predictions, which were made at temperature 1, at another temperature."""
    return replace(predictions, probabilities=(_logits(predictions) / temperature).softmax(1))


def _logits(predictions: Predictions) -> Tensor:
    """Return (N, C) logits, up to a constant for each image, which does not matter."""
    return predictions.probabilities.double().clamp_min(1e-300).log()
