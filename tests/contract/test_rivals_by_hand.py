"""The methods of other authors for personalised networks: two clients, numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from prrfl import Examples, Recipe, SiteData
from prrfl.algorithms import MOON, Ditto, FedPer, FedRep, FineTune
from prrfl.algorithms.moon import contrastive
from prrfl.training import Learner, Site
from tests.contract.test_methods_by_hand import CTX, column, communicate, line_site

DEEP = replace(CTX, head_keys=frozenset({"1.weight"}))
"""Two local epochs of :func:`deep_site`, whose second layer is the head."""


def near(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected).reshape(found.shape))


def deep_site(x, label, width=1):
    """Return one batch of two examples x, and a network with features b x and logits h b x; its lr is 0.1."""
    network = nn.Sequential(nn.Linear(1, width, bias=False), nn.Linear(width, 2, bias=False))
    data = Examples(torch.full((2, 1), x), torch.tensor([label, label]))
    recipe = Recipe(network, lr=0.1, weight_decay=0.0, normalise=lambda x: x)
    return Site(SiteData("a", data, data, data), recipe)


DEEP_SITES = deep_site(1.0, 0), deep_site(2.0, 1)
START = {"0.weight": torch.tensor([[1.0]]), "1.weight": column(1.0, -1.0)}


def exchange(method, *clients):
    """Average the shares; return the mean and what each client has after it."""
    aggregator = method.aggregator(DEEP)
    for name, client in enumerate(clients):
        aggregator.add(str(name), method.share(client, DEEP))
    mean = aggregator.result()
    return mean, [method.receive(client, mean, DEEP) for client in clients]


def test_fine_tuning_deploys_the_mean_after_its_first_epochs():
    method = FineTune(tune_epochs=1)
    sites = line_site(), line_site(x=2.0, label=1)
    clients = [method.train(method.start(site.recipe.network.state_dict()), site, CTX)[0] for site in sites]
    mean, clients = communicate(method, *clients)
    # As FedAvg: gradients x (p - y) at zero are (-1/2, 1/2) and 2 (1/2, -1/2).
    near(mean, -0.025, 0.025)
    for client, site, first, second in (
        # p(0) = 1 / (1 + e^0.05) = 0.4875026: the mean falls by 0.1 (0.4875026 - 1).
        (clients[0], sites[0], 0.05, 0.02624974),
        # p(0) = 1 / (1 + e^0.1) = 0.4750208: it falls by 0.1 * 2 * 0.4750208.
        (clients[1], sites[1], -0.1, -0.12000416),
    ):
        near(method.models(client)["tuned"]["weight"], first, -first)
        near(method.models(client)["global"]["weight"], -0.025, 0.025)
        tuned, _ = method.train(client, site, CTX)
        near(method.models(tuned)["tuned"]["weight"], second, -second)
        later, _ = method.train(tuned, site, replace(CTX, epoch=1))
        assert later.tuned is tuned.tuned
        assert not torch.equal(later.learner.weights["weight"], tuned.tuned["weight"])
        # By default all epochs of the round tune.
        assert method.share(later, CTX).tensors is later.learner.weights
        every, _ = FineTune().train(tuned, site, replace(CTX, epoch=1))
        assert every.tuned is every.learner.weights


def test_fedper_shares_the_body_and_trains_both():
    method = FedPer()
    clients = [method.train(method.start(START), site, DEEP)[0] for site in DEEP_SITES]
    # First site, x = 1, y = 0, logits (1, -1): p0 = 1 / (1 + e^-2) = 0.8807971, so p - y = -/+0.1192029.
    # The head's gradient is that times b x = 1, the body's 2 * -0.1192029 * x.
    near(clients[0].weights["1.weight"], 1.01192029, -1.01192029)
    # Second, x = 2, y = 1, logits (2, -2): p0 = 1 / (1 + e^-4) = 0.9820138. Head: 2 p0; body: 2 * p0 * x.
    near(clients[1].weights["1.weight"], 0.80359724, -0.80359724)
    assert set(method.share(clients[0], DEEP).tensors) == {"0.weight"}
    mean, after = exchange(method, *clients)
    near(mean["0.weight"], (1.02384058 + 0.60719448) / 2)
    near(after[0].weights["1.weight"], 1.01192029, -1.01192029)
    near(after[1].weights["1.weight"], 0.80359724, -0.80359724)
    assert (
        after[0].weights["0.weight"].item() == after[1].weights["0.weight"].item() == mean["0.weight"].item()
    )


def test_fedrep_trains_the_head_then_the_body():
    method, last = FedRep(), replace(DEEP, epoch=1)
    heads = [method.train(method.start(START), site, DEEP)[0] for site in DEEP_SITES]
    # The same gradients for the heads as in FedPer, and none for the bodies.
    for client, head in zip(heads, (1.01192029, 0.80359724), strict=True):
        near(client.weights["1.weight"], head, -head)
        near(client.weights["0.weight"], 1.0)
    clients = [method.train(c, site, last)[0] for c, site in zip(heads, DEEP_SITES, strict=True)]
    # First: p0 = 1 / (1 + e^-2.02384058) = 0.8832776; the body rises by 0.1 * 2 * 1.01192029 * (1 - p0).
    near(clients[0].weights["0.weight"], 1.02362276)
    # Second: p0 = 1 / (1 + e^-3.21438895) = 0.9613722; it falls by 0.1 * 2 * 0.80359724 * p0 * 2.
    near(clients[1].weights["0.weight"], 0.69097759)
    for client, before in zip(clients, heads, strict=True):
        assert torch.equal(client.weights["1.weight"], before.weights["1.weight"])
    assert set(method.share(clients[0], DEEP).tensors) == {"0.weight"}
    mean, after = exchange(method, *clients)
    near(mean["0.weight"], (1.02362276 + 0.69097759) / 2)
    near(after[1].weights["1.weight"], 0.80359724, -0.80359724)


@pytest.mark.parametrize(
    ("epochs", "body_epochs", "parts"),
    [
        (1, 1, ["both"]),
        (3, 1, ["head", "head", "body"]),
        (3, 2, ["head", "body", "body"]),
        (2, 9, ["head", "body"]),
    ],
)
def test_fedrep_splits_the_epochs_of_a_round(epochs, body_epochs, parts):
    client, found = Learner(START), []
    for epoch in range(epochs):
        now = replace(DEEP, epoch=epoch, epochs=epochs)
        after, _ = FedRep(body_epochs).train(client, DEEP_SITES[0], now)
        moved = [not torch.equal(after.weights[key], client.weights[key]) for key in ("0.weight", "1.weight")]
        found.append({(True, False): "body", (False, True): "head", (True, True): "both"}[tuple(moved)])
        client = after
    assert found == parts


def test_what_is_frozen_does_not_decay():
    site = DEEP_SITES[0]
    decaying = replace(site, recipe=replace(site.recipe, weight_decay=0.5))
    after, _ = FedRep().train(Learner(START), decaying, DEEP)
    assert after.weights["0.weight"].item() == 1.0


def test_ditto_pulls_the_personalised_network_to_what_was_received():
    method = Ditto(lam=0.5)
    sites = line_site(), line_site(x=2.0, label=1)
    clients = [method.train(method.start(site.recipe.network.state_dict()), site, CTX)[0] for site in sites]
    # Both networks start at what was received, zero: the pull is zero, and both learn alike.
    for client, value in zip(clients, (0.05, -0.1), strict=True):
        near(client.personalised.weights["weight"], value, -value)
        near(client.shared.weights["weight"], value, -value)
    mean, clients = communicate(method, *clients)
    near(mean, -0.025, 0.025)
    first, second = (method.train(c, site, CTX)[0] for c, site in zip(clients, sites, strict=True))
    # Personalised, first: p(0) = 1 / (1 + e^-0.1) = 0.5249792; v0 falls by 0.1 (p(0) - 1 + 0.5 * 0.075).
    near(first.personalised.weights["weight"], 0.09375208, -0.09375208)
    # Second: p(0) = 1 / (1 + e^0.4) = 0.4013123; v0 falls by 0.1 (2 p(0) - 0.5 * 0.075).
    near(second.personalised.weights["weight"], -0.17651247, 0.17651247)
    # Global: plain steps from the mean, as in FedAvg.
    near(first.shared.weights["weight"], 0.02624974, -0.02624974)
    near(second.shared.weights["weight"], -0.12000416, 0.12000416)
    assert method.share(first, CTX).tensors is first.shared.weights
    assert list(method.models(first)) == ["personalised", "global"]


def test_moon_moves_features_from_the_previous_to_the_received_network():
    method = MOON(contrast=1.0, temperature=0.5)
    sites = deep_site(1.0, 0, width=2), deep_site(1.0, 1, width=2)
    bodies = column(1.0, 1.0), column(1.0, -1.0)
    clients = [method.start({"0.weight": body, "1.weight": torch.zeros(2, 2)}) for body in bodies]
    mean, clients = exchange(method, *clients)
    assert mean["0.weight"].tolist() == [[1.0], [0.0]]
    # Features z are the body's weights. With z and received (1, 0), the cosine is 1 and has no gradient; with
    # previous (1, +-1) it is 0.7071068 with gradient (0, +-0.7071068). So the term's gradient is
    # s(2 (0.7071068 - 1)) * 2 * (0, +-0.7071068), with s(-0.5857864) = 0.3576022: (0, +-0.5057259).
    # The head is zero, so the labels have no gradient in the body; in the head it is z times -/+1/2.
    for client, site, sign in zip(clients, sites, (1, -1), strict=True):
        trained, _ = method.train(client, site, CTX)
        near(trained.learner.weights["0.weight"], 1.0, -sign * 0.05057259)
        near(trained.learner.weights["1.weight"], sign * 0.05, 0.0, -sign * 0.05, 0.0)


def test_moon_learns_as_fedavg_in_the_first_round():
    state = MOON().start({"0.weight": column(1.0, 0.5), "1.weight": torch.eye(2)})
    site = deep_site(1.0, 0, width=2)
    ours, theirs = (MOON(contrast=c).train(state, site, CTX)[0].learner.weights for c in (5.0, 0.0))
    torch.testing.assert_close(ours, theirs)


def test_the_contrast_of_moon():
    # Cosines 0.7071068 and 0: log(1 + e^(-0.7071068 / 0.5)) = 0.2176217.
    z, positive, negative = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]])
    assert contrastive(z, positive, negative, 0.5).item() == pytest.approx(0.2176217)
