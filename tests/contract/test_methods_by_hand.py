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
    same = IDA().aggregator(CTX)
    for name in ("a", "b"):
        same.add(name, IDA().share(Learner(A), CTX))
    assert same.result()["w"].tolist() == [1.0, 2.0]


def line_site(lr=0.1):
    """One batch of two examples x = 1 of class 0, and a network with logits (w0 x, w1 x), both zero."""
    network = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.zeros_(network.weight)
    data = Examples(torch.ones(2, 1), torch.tensor([0, 0]))
    recipe = Recipe(network, lr=lr, weight_decay=0.0, normalise=lambda x: x)
    return Site(SiteData("a", data, data, data), recipe)


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


def test_fml_mixes_labels_and_the_other_network():
    site = line_site()
    method = FML(private_weight=0.25, meme_weight=1.0)
    client = method.start({"weight": torch.zeros(2, 1)})
    client = method.receive(client, {"weight": torch.tensor([[0.0], [2.0]])}, CTX)
    assert client.private.weights["weight"].tolist() == [[0.0], [0.0]]
    trained, _ = method.train(client, site, CTX)
    # softmax of the meme is (0.1192029, 0.8807971), of the private network (1/2, 1/2).
    # private: 0.25 · (p - y) + 0.75 · (p - meme) = 0.25 · (-0.5) + 0.75 · 0.3807971 for class 0.
    gradient = 0.25 * -0.5 + 0.75 * (0.5 - 0.1192029)
    torch.testing.assert_close(
        trained.private.weights["weight"], torch.tensor([[-0.1 * gradient], [0.1 * gradient]])
    )
    # meme: labels alone, p - y = (-0.8807971, 0.8807971).
    torch.testing.assert_close(trained.meme.weights["weight"], torch.tensor([[0.08807971], [2 - 0.08807971]]))
    assert set(method.share(trained, CTX).tensors) == {"weight"}
    assert torch.equal(method.share(trained, CTX).tensors["weight"], trained.meme.weights["weight"])


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
