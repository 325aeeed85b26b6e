"""DET: the stage rule, the losses worked out by hand, and what each stage may change."""

import math

import pytest
import torch

from prrfl.det import Schedule, Stage, det_epoch, learning, next_stage, transfer_losses
from prrfl.training import Learner, Recipe, Site
from prrfl.types import RoundContext
from tests.sites import tiny_network, tiny_sites

RECOVER, EXCHANGE, SUBLIMATE = Stage


@pytest.mark.parametrize(
    ("before", "deputy", "personalised", "wanted"),
    [
        (None, 1.0, 0.1, RECOVER),
        (EXCHANGE, 0.69, 1.0, RECOVER),
        (SUBLIMATE, 0.34, 0.5, RECOVER),
        (RECOVER, 0.69, 1.0, RECOVER),
        (RECOVER, 0.70, 1.0, EXCHANGE),
        (RECOVER, 1.00, 1.0, EXCHANGE),  # after RECOVER, EXCHANGE at best
        (EXCHANGE, 0.89, 1.0, EXCHANGE),
        (EXCHANGE, 0.90, 1.0, SUBLIMATE),
        (SUBLIMATE, 0.80, 1.0, EXCHANGE),
        (SUBLIMATE, 0.90, 0.5, SUBLIMATE),
        (EXCHANGE, 0.0, 0.0, SUBLIMATE),
    ],
)
def test_next_stage(before, deputy, personalised, wanted):
    assert next_stage(before, deputy, personalised) is wanted


def test_thresholds_are_the_users():
    assert next_stage(EXCHANGE, 0.5, 1.0, alpha1=0.4, alpha2=0.5) is SUBLIMATE
    assert next_stage(EXCHANGE, 0.5, 1.0, alpha1=0.6, alpha2=0.7) is RECOVER


def test_losses_by_hand():
    # p = (1/2, 1/2), d = (3/4, 1/4).
    p = torch.zeros(1, 2, requires_grad=True)
    d = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)
    kl_dp = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    kl_pd = 0.5 * math.log(2 / 3) + 0.5 * math.log(2.0)
    for_p, for_d = transfer_losses(learning(EXCHANGE), p, d)
    assert for_p.item() == pytest.approx(kl_dp)
    assert for_d.item() == pytest.approx(kl_pd)
    for_p.backward()
    assert d.grad is None  # the teacher is detached
    torch.testing.assert_close(p.grad, torch.tensor([[-0.25, 0.25]]))
    assert transfer_losses(learning(RECOVER), p, d)[0] == 0.0
    assert transfer_losses(learning(SUBLIMATE), p, d)[1] == 0.0
    assert transfer_losses(learning(RECOVER), p, d)[1].item() == pytest.approx(kl_pd)
    assert transfer_losses(learning(SUBLIMATE), p, d)[0].item() == pytest.approx(kl_dp)


def test_kl_is_summed_over_classes_and_averaged_over_the_batch():
    p, d = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    wanted = (d.softmax(1) * (d.softmax(1) / p.softmax(1)).log()).sum(1).mean()
    assert transfer_losses(learning(SUBLIMATE), p, d)[0].item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(("epoch", "epochs", "wanted"), [(0, 2, RECOVER), (1, 2, EXCHANGE), (0, 1, EXCHANGE)])
def test_a_round_begins_with_recover_unless_it_has_one_epoch(epoch, epochs, wanted):
    site = Site(tiny_sites(1)[0], Recipe(tiny_network(), batch=8))
    start = Learner(site.recipe.network.state_dict())
    after = det_epoch(start, start, RECOVER, site, RoundContext(0, 1, epoch, epochs, 0))
    assert after.stage is wanted
    assert after.metrics["stage"] == wanted


@pytest.mark.parametrize(("epoch", "listens"), [(0, False), (1, True)])
def test_the_personalised_network_listens_to_the_deputy_only_after_recover(epoch, listens):
    network = tiny_network()
    network[3].p = 0.0  # dropout would draw for both networks from one source
    site = Site(tiny_sites(1)[0], Recipe(network, batch=8))
    own = Learner(network.state_dict())
    other = Learner({**own.weights, "6.weight": own.weights["6.weight"].flip(0)})
    ctx = RoundContext(0, 1, epoch, 2, 0)
    alone, taught = (
        det_epoch(own, deputy, RECOVER, site, ctx, Schedule(alpha1=0.0)).personalised.weights
        for deputy in (own, other)
    )
    assert torch.equal(alone["6.weight"], taught["6.weight"]) is not listens
