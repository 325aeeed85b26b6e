"""The CPA loss and its prototypes, by hand."""

import math

import pytest
import torch

from prrfl.errors import ConfigError
from prrfl.losses import CPA
from prrfl.losses.cpa import (
    EPSILON,
    FACTORS,
    class_means,
    factors,
    global_prototypes,
    rarity_losses,
    rarity_weights,
)
from prrfl.training import Recipe, Site
from prrfl.types import RoundContext
from tests.sites import tiny_network, tiny_sites

COUNTS = torch.tensor([5408, 941, 994])


def test_rarity_weights_of_the_published_counts():
    expected = [[1, 0.246855, 0.257917], [1, 1, 1], [1, 0.957112, 1]]
    torch.testing.assert_close(
        rarity_weights(COUNTS, 0.8), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert rarity_weights(COUNTS, 0.0).tolist() == [[1.0] * 3] * 3


def test_classes_that_nobody_has_and_equal_ones():
    assert rarity_weights(torch.tensor([4, 0, 4]), 0.5).tolist() == [[1, 0, 1], [1, 1, 1], [1, 0, 1]]


def test_loss_of_two_images_by_hand():
    # Image 0 is of the most frequent class: its rivals count 1/2 and 1/4. Image 1 is of the rarest.
    rarity = rarity_weights(torch.tensor([16, 8, 4]), 1.0)
    logits = torch.tensor([[0.0, math.log(2), 0.0], [math.log(3), 0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    first = (1 / 2) / (1 / 2 + 1 / 2 * 1 + 1 / 4 * (1 / 2) + EPSILON)
    second = (1 / 3) / (1 / 3 + 1 + 1 / 3 + EPSILON)
    expected = [-math.log(first + EPSILON), -math.log(second + EPSILON)]
    torch.testing.assert_close(rarity_losses(logits, labels, rarity).tolist(), expected)
    constants = {**CPA(beta=1.0).constants(torch.tensor([16, 8, 4]))}
    assert CPA()(logits, labels, constants).item() == pytest.approx(sum(expected) / 2)
    # With factors it is still divided by the number of images.
    constants[FACTORS] = torch.tensor([2.0, 1.0, 1.5])
    assert CPA()(logits, labels, constants).item() == pytest.approx((2 * expected[0] + 1.5 * expected[1]) / 2)


def test_an_images_loss_is_bounded():
    loss = rarity_losses(torch.tensor([[0.0, 1e4]]), torch.tensor([0]), torch.ones(2, 2))
    assert loss.item() == pytest.approx(-math.log(EPSILON))


def test_factors_by_hand():
    local = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    everyones = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    same = 4 / (25 / (25 + EPSILON) + 3)
    torch.testing.assert_close(factors(local, everyones, 3.0).tolist(), [same, 4 / 3, 4 / 3])
    assert factors(-local, local, 3.0)[0].item() == pytest.approx(4 / 2)


def test_class_means_leave_out_what_a_site_lacks():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    means, present = class_means(outputs, torch.tensor([0, 0, 2]), 3)
    assert means.tolist() == [[2, 4], [0, 0], [5, 5]]
    assert present.tolist() == [1, 0, 1]


def test_a_gaussian_prototype_spreads_at_least_by_one():
    mean, noise = torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([[1.0, -1.0, 0.5]])
    deviation = torch.tensor([[0.2, 3.0, 1.0]])
    assert global_prototypes(mean, deviation, noise).tolist() == [[3.0, -1.0, 2.5]]


def test_counts_that_nobody_gave_are_asked_for():
    from prrfl.algorithms.single import train_one
    from prrfl.training import Learner

    recipe = Recipe(tiny_network(), batch=8, loss=CPA())
    learner = Learner(recipe.network.state_dict())
    with pytest.raises(ConfigError, match=r"CPA needs the class counts of all sites; .*class_counts"):
        train_one(learner, Site(tiny_sites()[0], recipe), RoundContext(0, 1, 0, 1, 0))
