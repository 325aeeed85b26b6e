"""Temperature scaling: one number by which a network's logits are divided, so that its probabilities hold.

Guo, Pleiss, Sun, Weinberger: *On Calibration of Modern Neural Networks*, ICML 2017. What an image
is taken for never changes, and so neither do F1, recall and accuracy; only how sure the network says it is.
"""

import logging
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor

from prrfl.errors import DataError
from prrfl.types import Predictions

BOUNDS = (0.05, 20.0)
"""Between which the temperature is looked for. It would end at one of them where no error is made, or nothing
but errors, which images enough do not do."""

log = logging.getLogger("prrfl")


def fit_temperature(predictions: Predictions, whose: str = "the predictions") -> float:
    """Return the temperature that makes the true classes of validation images most likely.

    Args:
        predictions: of the network on validation images, at temperature 1; of test images, the temperature
            would flatter the scores that are reported on them.
        whose: for messages.

    Returns:
        The temperature; 1, with a warning, where the images show none.

    Raises:
        DataError: if there is no image.
    """
    if not len(predictions.labels):
        raise DataError(f"{whose} hold no image; a temperature is fitted on validation images")
    logits = _logits(predictions).numpy()
    truth = logits[np.arange(len(logits)), predictions.labels.numpy()]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(logsumexp(logits * scale, axis=1) - truth * scale))

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    if not BOUNDS[0] * 1.02 < temperature < BOUNDS[1] * 0.98:
        log.warning("%s show no temperature that fits best; probabilities stay as they are", whose)
        return 1.0
    return temperature


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """Return predictions made at temperature 1 as they are at another one."""
    return replace(predictions, probabilities=(_logits(predictions) / temperature).softmax(1))


def _logits(predictions: Predictions) -> Tensor:
    """Return (N, C) logits, up to a constant of each image, which does not count."""
    return predictions.probabilities.double().clamp_min(1e-300).log()
