"""Two clients, numbers worked out by hand beside each method."""

import pytest
import torch

from prrfl import PRRFL, Examples, Recipe, SiteData
from prrfl.algorithms import FML, IDA, FedAvg, FedBN, FedProx, Local, SiloBN
from prrfl.det import Stage
from prrfl.training import Learner, Site
from prrfl.types import RoundContext

NORM = frozenset({"bn.weight", "bn.running_mean", "bn.num_batches_tracked"})
CTX = RoundContext(0, 1, 0, 2, 0, NORM)


def weights(w, scale, mean, count):
    return {
        "w": torch.tensor(w),
        "bn.weight": torch.tensor([scale]),
        "bn.running_mean": torch.tensor([mean]),
        "bn.num_batches_tracked": torch.tensor(count),
    }


A = weights([1.0, 2.0], 1.0, 10.0, 3)
B = weights([3.0, 6.0], 2.0, 30.0, 5)


def exchange(method, wrap=Learner):
    """Let both sites share; return what the first and second have after receiving."""
    first, second = wrap(A), wrap(B)
    aggregator = method.aggregator(CTX)
    for name, client in (("a", first), ("b", second)):
        aggregator.add(name, method.share(client, CTX))
    mean = aggregator.result()
    return [
        {
            key: t.tolist()
            for key, t in next(iter(method.models(method.receive(client, mean, CTX)).values())).items()
        }
        for client in (first, second)
    ]


def plain(w, scale, mean, count):
    return {"w": w, "bn.weight": [scale], "bn.running_mean": [mean], "bn.num_batches_tracked": count}


def test_fedavg_averages_everything():
    assert exchange(FedAvg()) == [plain([2.0, 4.0], 1.5, 20.0, 4)] * 2


def test_fedbn_keeps_norm_layers():
    assert exchange(FedBN()) == [plain([2.0, 4.0], 1.0, 10.0, 3), plain([2.0, 4.0], 2.0, 30.0, 5)]


def test_silobn_keeps_statistics_and_shares_scales():
    assert exchange(SiloBN()) == [plain([2.0, 4.0], 1.5, 10.0, 3), plain([2.0, 4.0], 1.5, 30.0, 5)]


def test_local_keeps_everything_and_sends_nothing():
    assert exchange(Local()) == [plain([1.0, 2.0], 1.0, 10.0, 3), plain([3.0, 6.0], 2.0, 30.0, 5)]
    assert Local().share(Learner(A), CTX).tensors == {}


def test_ida_weighs_by_inverse_distance():
    # Three networks 0, 0 and 9: the plain mean is 3, distances 3, 3 and 6, weights 1/3, 1/3, 1/6:
    # (0/3 + 0/3 + 9/6) / (5/6) = 1.8.
    aggregator = IDA().aggregator(CTX)
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 9.0)):
        aggregator.add(name, IDA().share(Learner({"w": torch.tensor([value])}), CTX))
    assert aggregator.result()["w"].item() == pytest.approx(1.8)
    assert exchange(IDA())[0]["w"] == [2.0, 4.0]  # two networks are always equally far from their mean
    # Weights agree, running means 0, 0 and 9 do not, and they count: 1.8 again; counts of batches do not.
    aggregator = IDA().aggregator(CTX)
    for name, value, count in (("a", 0.0, 0), ("b", 0.0, 0), ("c", 9.0, 300)):
        aggregator.add(name, IDA().share(Learner(weights([1.0, 2.0], 1.0, value, count)), CTX))
    assert aggregator.result()["bn.running_mean"].item() == pytest.approx(1.8)
    same = IDA().aggregator(CTX)
    for name in ("a", "b"):
        same.add(name, IDA().share(Learner(A), CTX))
    assert same.result()["w"].tolist() == [1.0, 2.0]


def line_site(lr=0.1, x=1.0, label=0):
    """One batch of two examples x of one class, and a network with logits (w0 x, w1 x), both zero."""
    network = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.zeros_(network.weight)
    data = Examples(torch.full((2, 1), x), torch.tensor([label, label]))
    recipe = Recipe(network, lr=lr, weight_decay=0.0, normalise=lambda x: x)
    return Site(SiteData("a", data, data, data), recipe)


def column(*values):
    """The weights of :func:`line_site`'s network."""
    return torch.tensor(values).unsqueeze(1)


def communicate(method, *clients):
    """Average the clients' shares; return the mean's weights and what each client has after it."""
    aggregator = method.aggregator(CTX)
    for name, client in enumerate(clients):
        aggregator.add(str(name), method.share(client, CTX))
    mean = aggregator.result()
    return mean["weight"], [method.receive(client, mean, CTX) for client in clients]


def test_fedprox_pulls_towards_what_was_received():
    site, method = line_site(), FedProx(mu=0.5)
    client = method.start(site.recipe.network.state_dict())
    client, _ = method.train(client, site, CTX)
    # At the anchor the pull is zero: the gradient is that of cross-entropy, (-1/2, 1/2).
    torch.testing.assert_close(client.learner.weights["weight"], torch.tensor([[0.05], [-0.05]]))
    client, _ = method.train(client, site, CTX)
    # softmax(0.05, -0.05)[1] = 0.4750208; plus mu times the distance 0.05 from the anchor.
    step = 0.1 * (0.4750208 - 0.5 * 0.05)
    torch.testing.assert_close(
        client.learner.weights["weight"], torch.tensor([[0.05 + step], [-0.05 - step]])
    )
    received = method.receive(client, {"weight": torch.tensor([[2.0], [4.0]])}, CTX)
    assert received.anchor["weight"].tolist() == received.learner.weights["weight"].tolist() == [[2.0], [4.0]]


def test_fedprox_trains_two_clients_about_their_common_mean():
    method = FedProx(mu=0.5)
    sites = line_site(), line_site(x=2.0, label=1)
    clients = [method.train(method.start(site.recipe.network.state_dict()), site, CTX)[0] for site in sites]
    # Both start at the anchor: gradients x (p - y) are (-1/2, 1/2) at the first, 2 (1/2, -1/2) at the second.
    torch.testing.assert_close(clients[0].learner.weights["weight"], column(0.05, -0.05))
    torch.testing.assert_close(clients[1].learner.weights["weight"], column(-0.1, 0.1))
    mean, clients = communicate(method, *clients)
    torch.testing.assert_close(mean, column(-0.025, 0.025))
    # The mean is the new anchor, so the pull is zero again. At the first site p(0) = 1 / (1 + e^0.05) =
    # 0.4875026 and y = (1, 0); at the second p(0) = 1 / (1 + e^0.1) = 0.4750208, y = (0, 1), times x = 2.
    first, second = (method.train(client, site, CTX)[0] for client, site in zip(clients, sites, strict=True))
    torch.testing.assert_close(first.learner.weights["weight"], column(0.02624974, -0.02624974))
    torch.testing.assert_close(second.learner.weights["weight"], column(-0.12000416, 0.12000416))
    # A second epoch is pulled back to the mean: the first is 0.05124974 away, the second -0.09500416.
    # p(0) = 1 / (1 + e^-0.05249948) = 0.5131219, so w0 falls by 0.1 (-0.4868781 + 0.5 * 0.05124974);
    # p(0) = 1 / (1 + e^0.48001664) = 0.3822482, so w0 falls by 0.1 (2 * 0.3822482 - 0.5 * 0.09500416).
    first, second = (method.train(c, site, CTX)[0] for c, site in zip((first, second), sites, strict=True))
    torch.testing.assert_close(first.learner.weights["weight"], column(0.07237506, -0.07237506))
    torch.testing.assert_close(second.learner.weights["weight"], column(-0.19170359, 0.19170359))


def test_fml_mixes_labels_and_the_other_network_at_two_clients():
    method = FML(private_weight=0.25, meme_weight=0.5)
    sites = line_site(), line_site(x=2.0, label=1)
    start = method.start({"weight": column(0.0, 0.0)})
    client = method.receive(start, {"weight": column(0.0, 2.0)}, CTX)
    assert client.private.weights["weight"].tolist() == [[0.0], [0.0]]
    first, second = (method.train(client, site, CTX)[0] for site in sites)
    # The gradient of KL(teacher || student) is x (student - teacher), of cross-entropy x (student - y).
    # First site, x = 1 and y = (1, 0): private p = (1/2, 1/2), meme q = (0.1192029, 0.8807971).
    # private: 0.25 (1/2 - 1) + 0.75 (1/2 - q0) = 0.1605978; meme: 0.5 (q0 - 1) + 0.5 (q0 - 1/2) = -0.6307971.
    torch.testing.assert_close(first.private.weights["weight"], column(-0.01605978, 0.01605978))
    torch.testing.assert_close(first.meme.weights["weight"], column(0.06307971, 2 - 0.06307971))
    # Second site, x = 2, y = (0, 1): private p = (1/2, 1/2), meme q = softmax(0, 4) = (0.0179862, 0.9820138).
    # private: 2 (0.25 * 1/2 + 0.75 (1/2 - q0)) = 0.9730207; meme: 2 (0.5 q0 + 0.5 (q0 - 1/2)) = -0.4640276.
    torch.testing.assert_close(second.private.weights["weight"], column(-0.09730207, 0.09730207))
    torch.testing.assert_close(second.meme.weights["weight"], column(0.04640276, 2 - 0.04640276))
    assert set(method.share(first, CTX).tensors) == {"weight"}
    mean, after = communicate(method, first, second)
    torch.testing.assert_close(mean, column(0.05474124, 2 - 0.05474124))
    for client, trained in zip(after, (first, second), strict=True):
        assert torch.equal(client.meme.weights["weight"], mean)
        assert torch.equal(client.private.weights["weight"], trained.private.weights["weight"])


def test_prrfl_never_lets_the_server_touch_the_personalised_network():
    method = PRRFL()
    client = method.start({"w": torch.ones(4, 4)})
    aggregator = method.aggregator(CTX)
    aggregator.add("a", method.share(client, CTX))
    aggregator.add("b", method.share(method.start({"w": 3 * torch.ones(4, 4)}), CTX))
    after = method.receive(client, aggregator.result(), CTX)
    assert after.personalised is client.personalised
    # A constant matrix has one frequency, 0, which is in the band: amplitudes 16 and 48 average to 32.
    torch.testing.assert_close(after.deputy.weights["w"], torch.full((4, 4), 2.0))


def test_prrfl_without_pfa_is_a_mean_outside_norm_layers():
    assert exchange(PRRFL(aggregation="mean", transfer="off"), lambda w: PRRFL().start(w)) == [
        plain([2.0, 4.0], 1.0, 10.0, 3),
        plain([2.0, 4.0], 2.0, 30.0, 5),
    ]


def test_prrfl_ablations_of_the_transfer():
    site = line_site()
    for name in ("recover", "exchange", "sublimate"):
        method = PRRFL(transfer=name)
        trained, _ = method.train(method.start(site.recipe.network.state_dict()), site, CTX)
        assert trained.stage is Stage[name.upper()]
    method = PRRFL(transfer="off")
    trained, _ = method.train(method.start(site.recipe.network.state_dict()), site, CTX)
    assert trained.personalised is trained.deputy
    torch.testing.assert_close(trained.deputy.weights["weight"], torch.tensor([[0.05], [-0.05]]))
