"""The methods of other authors for personalised networks: two clients, numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from prrfl import Examples, Recipe, SiteData
from prrfl.algorithms import APFL, FENDA, MOON, Ditto, FedALA, FedPer, FedRep, FedRoD, FineTune
from prrfl.algorithms.apfl import mixture
from prrfl.algorithms.fedala import FedALAState, has_converged, last_layers
from prrfl.algorithms.moon import contrastive
from prrfl.algorithms.prototyped import Prototyped
from prrfl.losses import CPA
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
HEAD = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) / 2**0.5
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


def test_apfl_learns_both_networks_and_how_to_mix_them():
    method = APFL(alpha=0.5)
    sites = line_site(), line_site(x=2.0, label=1)
    clients = [method.train(method.start({"weight": column(0.0, 0.0)}), site, CTX)[0] for site in sites]
    # All start at zero. Gradients of both losses are (-1/2, 1/2) and (1, -1); v's are times alpha. v equals
    # w, so alpha has no gradient.
    for client, w, v in zip(clients, (0.05, -0.1), (0.025, -0.05), strict=True):
        near(client.shared["weight"], w, -w)
        near(client.personal["weight"], v, -v)
        near(method.models(client)["mixed"]["weight"], (v + w) / 2, -(v + w) / 2)
        assert client.alpha == 0.5
    mean, clients = communicate(method, *clients)
    near(mean, -0.025, 0.025)
    near(clients[0].mixed["weight"], 0.0, 0.0)
    near(clients[1].mixed["weight"], -0.0375, 0.0375)
    first, second = (method.train(c, site, CTX)[0] for c, site in zip(clients, sites, strict=True))
    # First: the mixture is zero, its gradient (-1/2, 1/2), v - w (0.05, -0.05): alpha rises by 0.1 * 0.05.
    # Then the mixture is 0.00025, p(0) = 1 / (1 + e^-0.0005) = 0.5001250, and v0 rises by
    # 0.1 * 0.505 (1 - p(0)); w as in FedAvg.
    assert first.alpha == pytest.approx(0.505)
    near(first.personal["weight"], 0.05024369, -0.05024369)
    near(first.shared["weight"], 0.02624974, -0.02624974)
    near(first.mixed["weight"], 0.03836668, -0.03836668)
    # Second: p(0) = 1 / (1 + e^0.15) = 0.4625702, the gradient 2 * p(0) = 0.9251403, v - w (-0.025, 0.025):
    # alpha rises by 0.1 * 0.05 * 0.9251403. Then the mixture is -0.03761564, p(0) = 0.4624552.
    assert second.alpha == pytest.approx(0.5046257)
    near(second.personal["weight"], -0.09667335, 0.09667335)
    near(second.shared["weight"], -0.12000416, 0.12000416)
    near(second.mixed["weight"], -0.10823084, 0.10823084)
    # Alpha takes one step in a round.
    later, _ = method.train(first, sites[0], replace(CTX, epoch=1))
    assert later.alpha == first.alpha
    assert not torch.equal(later.personal["weight"], first.personal["weight"])
    fixed = APFL(alpha=0.5, adaptive=False)
    assert fixed.train(clients[0], sites[0], CTX)[0].alpha == 0.5


def test_apfl_mixes_weights_but_not_statistics():
    own = {
        "w": torch.tensor([1.0]),
        "bn.running_var": torch.tensor([1.0]),
        "bn.num_batches_tracked": torch.tensor(3),
    }
    other = {key: tensor + 4 for key, tensor in own.items()}
    mixed = mixture(own, other, 0.25)
    assert {key: tensor.item() for key, tensor in mixed.items()} == {
        "w": 4.0,
        "bn.running_var": 1.0,
        "bn.num_batches_tracked": 3,
    }


def test_fedrod_balances_the_shared_head_and_not_the_personal_one():
    method, now = FedRoD(), replace(CTX, head_keys=frozenset({"weight"}))
    sites = line_site(), line_site(x=2.0, label=1)
    clients = [method.train(method.start({"weight": column(0.0, 0.0)}), site, now)[0] for site in sites]
    # Each site has two images of its class, and counts one of the other: frequencies 2/3 and 1/3. All logits
    # are zero, so the balanced probability of the class is 2/3, the plain one 1/2. The gradients of the
    # generic head are x times -/+1/3, those of the personal head -/+1/2.
    for client, generic, personal in zip(clients, (0.1 / 3, -0.2 / 3), (0.05, -0.1), strict=True):
        near(client.generic["weight"], generic, -generic)
        near(client.head["weight"], personal, -personal)
        near(client.deployed["weight"], generic + personal, -generic - personal)
    mean, clients = communicate(method, *clients)
    near(mean, -0.05 / 3, 0.05 / 3)
    near(clients[0].deployed["weight"], 0.1 / 3, -0.1 / 3)
    near(clients[1].deployed["weight"], -0.35 / 3, 0.35 / 3)
    first, second = (method.train(c, site, now)[0] for c, site in zip(clients, sites, strict=True))
    # First: balanced p(0) = 1 / (1 + e^(0.1/3 - ln 2)) = 0.6592186, plain 1 / (1 + e^(-0.2/3)) = 0.5166605.
    near(first.generic["weight"], 0.01741148, -0.01741148)
    near(first.deployed["weight"], 0.11574543, -0.11574543)
    # Second: balanced p(0) = 1 / (1 + e^(0.2/3 + ln 2)) = 0.3186867, plain 1 / (1 + e^(1.4/3)) = 0.3854055.
    near(second.generic["weight"], -0.08040400, 0.08040400)
    near(second.deployed["weight"], -0.25748510, 0.25748510)
    assert set(method.share(first, now).tensors) == {"weight"}
    assert method.share(first, now).tensors is first.generic


@pytest.mark.parametrize(("values", "taken"), [((0.1, 0.05), (0.1, 0.05)), ((0.05, 0.1), (0.075, 0.075))])
def test_fedala_takes_in_the_mean_only_where_it_helps(values, taken):
    # Label 0 wants the first weight high, label 1 low; steps of W are so large that they end at 0 or 1.
    method = FedALA(adapt_lr=1000.0)
    sites = line_site(), line_site(x=2.0, label=1)
    clients = [method.start({"weight": column(value, -value)}) for value in values]
    _, clients = communicate(method, *clients)
    for client, site, own, theirs in zip(clients, sites, values, taken, strict=True):
        near(method.models(client)["model"]["weight"], own, -own)
        still = replace(site, recipe=replace(site.recipe, lr=1e-12))
        near(method.train(client, still, CTX)[0].learner.weights["weight"], theirs, -theirs)


def test_fedala_learns_weights_for_one_pass_in_later_rounds():
    own, mean = {"weight": column(0.05, -0.05)}, {"weight": column(-0.025, 0.025)}
    client = FedALAState(Learner(own), mean, {"weight": column(0.5, 0.5)})
    after, _ = FedALA().train(client, line_site(), CTX)
    # Between: 0.0125, p(0) = 1 / (1 + e^-0.025) = 0.5062497. W's gradient is -(1 - p(0)) * -0.075.
    near(after.weights["weight"], 0.46296873, 0.46296873)
    # Then Θ = 0.05 - 0.075 W = 0.01527735, p(0) = 0.5076381, and an epoch adds 0.1 (1 - p(0)).
    near(after.learner.weights["weight"], 0.06451354, -0.06451354)
    assert after.received == {}


def test_fedala_learns_all_passes_of_a_round_on_the_same_images():
    seen = []
    data = Examples(torch.arange(10.0).unsqueeze(1) / 10, torch.zeros(10, dtype=torch.int64))
    site = line_site()
    recipe = replace(site.recipe, normalise=lambda x: seen.append(x) or x)
    client = FedALAState(Learner({"weight": column(0.0, 0.0)}), {"weight": column(0.1, -0.1)}, {})
    FedALA(adapt_images=0.5).train(
        client, replace(site, data=SiteData("a", data, data, data), recipe=recipe), CTX
    )
    *passes, epoch = seen
    assert len(passes) >= 11
    assert len(epoch) == 10
    assert len(torch.cat(passes).unique()) == 5


def test_fedala_leaves_lower_layers_to_the_mean():
    client = FedALAState(
        Learner(START), {"0.weight": torch.tensor([[3.0]]), "1.weight": column(1.0, -1.0)}, {}
    )
    site = deep_site(1.0, 0)
    after, _ = FedALA().train(client, replace(site, recipe=replace(site.recipe, lr=1e-12)), DEEP)
    near(after.learner.weights["0.weight"], 3.0)
    assert set(after.weights) == {"1.weight"}
    assert last_layers(site.recipe, 2) == ["0.weight", "1.weight"]


def test_fedala_converges_when_the_last_losses_differ_little():
    assert not has_converged([1.0] * 10)
    assert has_converged([9.0] + [1.0, 1.1] * 5)
    assert not has_converged([1.0, 1.3] * 6)
    assert has_converged([1.0, 1.3] * 50)


def test_fenda_shares_one_of_two_extractors():
    method = FENDA()
    sites = [
        replace(site, recipe=replace(site.recipe, network=method.traits.network(site.recipe.network)))
        for site in DEEP_SITES
    ]
    for site in sites:
        site.recipe.network.load_state_dict(
            {"local.0.weight": START["0.weight"], "shared.0.weight": START["0.weight"], "head.weight": HEAD}
        )
    clients = [method.train(method.start(site.recipe.network.state_dict()), site, DEEP)[0] for site in sites]
    # First: both features are 1, logits +-1.4142136, p(0) = 1 / (1 + e^-2.8284271) = 0.9441928. Both columns
    # of the head rise by 0.1 (1 - p(0)), both bodies by 0.1 * 1.4142136 (1 - p(0)).
    near(clients[0].weights["head.weight"], 0.71268750, 0.71268750, -0.71268750, -0.71268750)
    near(clients[0].weights["local.0.weight"], 1.00789233)
    near(clients[0].weights["shared.0.weight"], 1.00789233)
    # Second: features 2, p(0) = 1 / (1 + e^-5.6568542) = 0.9965187; bodies fall by 0.2 * 1.4142136 p(0).
    near(clients[1].weights["local.0.weight"], 0.71814196)
    assert set(method.share(clients[0], DEEP).tensors) == {"shared.0.weight"}
    mean, after = exchange(method, *clients)
    near(mean["shared.0.weight"], 0.86301714)
    for client, before in zip(after, clients, strict=True):
        assert torch.equal(client.weights["shared.0.weight"], mean["shared.0.weight"])
        for key in ("local.0.weight", "head.weight"):
            assert torch.equal(client.weights[key], before.weights[key])


def test_fenda_starts_with_the_head_twice_mirrored():
    network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    both = FENDA.traits.network(network)
    near(both.head.weight * 2**0.5, 1.0, 2.0, 2.0, 1.0, 3.0, 4.0, 4.0, 3.0)
    assert torch.equal(both.head.bias, network[1].bias)
    assert set(both.state_dict()) == {"local.0.weight", "shared.0.weight", "head.weight", "head.bias"}


def test_prototypes_are_of_the_features_that_are_deployed():
    cpa, ctx = CPA(init_iter=0, prototypes="per-round"), replace(DEEP, rounds=2, class_counts=(2, 2))
    site = DEEP_SITES[1]
    site = replace(site, recipe=replace(site.recipe, loss=cpa))
    method = Prototyped(APFL(adaptive=False), cpa, "1.weight")
    start, other = method.start(START), {**START, "0.weight": torch.tensor([[4.0]])}
    mixed = replace(start, inner=replace(start.inner, shared=other))
    # The mixture's body is (1 + 4) / 2, the image 2.
    assert method.train(mixed, site, ctx)[0].own["mean"].tolist() == [[1.0], [5.0]]
    method = Prototyped(FedRoD(), cpa, "1.weight")
    assert method.train(method.start(other), site, ctx)[0].own["mean"].tolist() == [[1.0], [8.0]]
