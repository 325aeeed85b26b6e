"""Temperature scaling on the few validation images of a site, for simulated sites of known probabilities."""

import numpy as np
import pytest
import torch

from prrfl.calibration import BOUNDS, at_temperature, fit_temperature
from prrfl.types import Predictions

SEEDS = range(100)


def of_logits(logits, labels):
    return Predictions(
        tuple(map(str, range(len(labels)))), torch.from_numpy(labels), torch.from_numpy(logits).softmax(1)
    )


def confident(n, seed):
    """A calibrated site of three classes that is right on 99 % of images."""
    draw = np.random.default_rng(seed)
    logits = np.zeros((n, 3))
    logits[np.arange(n), draw.integers(3, size=n)] = draw.normal(6, 1, n)
    labels = (logits + draw.gumbel(size=(n, 3))).argmax(1)
    return of_logits(logits, labels)


def uninformative(n, seed=0):
    """An overconfident site of three classes whose predictions have nothing to do with the labels."""
    draw = np.random.default_rng(seed)
    return of_logits(draw.normal(0, 4, (n, 3)), draw.integers(3, size=n))


def log_loss(predictions):
    return float(-predictions.probabilities.gather(1, predictions.labels[:, None]).log().mean())


def expected_log_loss(calibrated, temperature):
    """Log loss at a temperature over all labels that calibrated predictions allow: no chance of labels."""
    given = at_temperature(calibrated, temperature).probabilities
    return float(-(calibrated.probabilities * given.log()).sum(1).mean())


@pytest.mark.parametrize("n", [24, 50, 100])
def test_few_validation_images_without_errors_do_not_sharpen_probabilities(n):
    """Without a prior, T was below 0.3 in 38 to 83 % of these fits, and the mean loss rose by up to 0.33."""
    test = confident(2000, 1000)
    assert (test.probabilities.argmax(1) == test.labels).double().mean() == pytest.approx(0.99, abs=0.005)
    base = expected_log_loss(test, 1.0)
    assert base == pytest.approx(0.04, abs=0.01)
    fitted = [fit_temperature(confident(n, seed)) for seed in SEEDS]
    rise = [expected_log_loss(test, t) - base for t in fitted]
    assert min(fitted) > 0.6
    assert np.mean(rise) < 0.01
    assert max(rise) < 0.09


def test_a_perfect_site_is_sharpened_less_the_fewer_its_images():
    def perfect(n):
        return of_logits(np.tile([4.0, 0.0, 0.0], (n, 1)), np.zeros(n, dtype=np.int64))

    temperatures = [fit_temperature(perfect(n)) for n in (10, 100, 1000)]
    assert 1 > temperatures[0] > temperatures[1] > temperatures[2] > 0.3


def test_the_temperature_is_the_lowest_point_of_likelihood_and_prior():
    """Found by a fine grid, also where the sum has two minima: weak logits, all of them right."""
    weak = of_logits(np.tile([0.025, 0.0, 0.0], (100, 1)), np.zeros(100, dtype=np.int64))
    for known in (confident(60, 1), uninformative(60), weak):
        grid = np.linspace(*np.log(BOUNDS), 3001)
        sums = [
            len(known.labels) * log_loss(at_temperature(known, np.exp(u))) + u**2 / (2 * 0.5**2) for u in grid
        ]
        assert np.log(fit_temperature(known)) == pytest.approx(grid[np.argmin(sums)], abs=0.003)


def test_an_uninformative_network_loses_its_overconfidence():
    known, test = uninformative(400), uninformative(4000, seed=1)
    assert log_loss(test) == pytest.approx(3.6, abs=0.3)
    assert log_loss(at_temperature(test, fit_temperature(known))) == pytest.approx(np.log(3), abs=0.03)


def test_a_temperature_at_its_bound_stays_there_and_is_reported_with_the_site(caplog):
    draw = np.random.default_rng(0)
    hopeless = of_logits(draw.normal(0, 60, (400, 3)), draw.integers(3, size=400))
    assert fit_temperature(hopeless, "site north") == BOUNDS[1]
    (warning,) = caplog.messages
    assert warning.startswith("site north: ")
    assert "at its bound, 20," in warning
    assert "\n" not in warning
