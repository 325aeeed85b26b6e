"""What every method must keep to, whatever it does inside."""

from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
import torch

from prrfl import PRRFL, InProcess, NonFiniteShareError, ParticipationError, Recipe, norm_keys, run_rounds
from prrfl.algorithms import ALGORITHMS, FedAvg, traits_of
from prrfl.algorithms.prototyped import Prototyped
from prrfl.engine import Pooled, rounds_from
from prrfl.losses import CPA
from prrfl.storage.tensor_files import read_state, write_state
from prrfl.tensors import head_keys
from prrfl.training import Site
from prrfl.types import Examples, RoundContext, ScoreRecord, SiteData
from tests.sites import tiny_network, tiny_sites

METHODS = {
    **{name: kind() for name, kind in ALGORITHMS.items()},
    "no pfa": PRRFL(aggregation="mean"),
    "fixed ratio": PRRFL(r1=0.7),
    "no det": PRRFL(transfer="off"),
    "sublimate": PRRFL(transfer="sublimate"),
    "phases": PRRFL(aggregation="pfa-phase"),
    **{
        f"prototypes {when}": Prototyped(FedAvg(), CPA(init_iter=0, prototypes=when), "6.weight")
        for when in ("per-epoch", "per-round")
    },
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def run(method, sites, *, present=None, seed=3, **recipe):
    made = recipe_of(method, **recipe)
    engine = InProcess(method, sites, made, present)
    start = moment(made, seed=seed)
    return list(rounds_from(start, method, engine)), engine.models()


def recipe_of(method, **recipe):
    loss = {"loss": method.loss} if isinstance(method, Prototyped) else {}
    return Recipe(network_of(method), **{"batch": 8, **loss, **recipe})


def network_of(method):
    return traits_of(method).network(tiny_network())


def moment(recipe, rounds=2, epochs=2, seed=7):
    keys = norm_keys(recipe.network), head_keys(recipe.network)
    return RoundContext(0, rounds, 0, epochs, seed, *keys, (30, 20, 10))


def same_bits(first, second):
    return all(
        torch.equal(first[client][role][key], tensor)
        for client, roles in second.items()
        for role, tensors in roles.items()
        for key, tensor in tensors.items()
    )


def tensors_of(state):
    """Return all tensors in a state: dataclasses and mappings, nested."""
    if isinstance(state, torch.Tensor):
        return [state]
    if is_dataclass(state):
        return [t for f in fields(state) for t in tensors_of(getattr(state, f.name))]
    if isinstance(state, dict):
        return [t for key in sorted(state) for t in tensors_of(state[key])]
    return []


@every_method
def test_same_seed_same_bits_whatever_the_order_of_sites(method):
    sites = tiny_sites()
    # Adam, because it has a memory.
    first, second, other = (
        run(method, order, seed=seed, optimizer="adam")
        for order, seed in ((sites, 3), (sites[::-1], 3), (sites, 4))
    )
    assert first[0] == second[0]
    assert same_bits(first[1], second[1])
    assert not same_bits(first[1], other[1])


@every_method
def test_no_input_is_changed(method):
    site = Site(tiny_sites()[0], recipe_of(method))
    ctx = moment(site.recipe)
    start = method.start(site.recipe.network.state_dict())
    untouched = [t.clone() for t in tensors_of(start)]
    trained, _ = method.train(start, site, ctx)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(start), untouched, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors_of(trained), untouched, strict=True))
    untouched = [t.clone() for t in tensors_of(trained)]
    aggregator = method.aggregator(ctx)
    aggregator.add("a", method.share(trained, ctx))
    aggregator.add("b", method.share(start, ctx))
    method.receive(trained, aggregator.result(), ctx)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(trained), untouched, strict=True))


@every_method
def test_an_absent_site_keeps_what_it_has(method):
    away = run(method, tiny_sites(), present=lambda ctx: {"s0", "s2"} if ctx.round == 0 else {"s0"})
    initial = network_of(method).state_dict()
    for tensors in away[1]["s1"].values():
        assert all(torch.equal(tensors[key], initial[key]) for key in initial)
    assert {r.client for r in away[0] if isinstance(r, ScoreRecord) and r.round == 1} == {"s0"}


@every_method
def test_a_batch_of_one_a_large_batch_and_one_epoch_are_no_trouble(method):
    for n, batch, epochs in ((17, 8, 1), (9, 64, 1), (17, 16, 2)):
        made = recipe_of(method, batch=batch)
        engine = InProcess(method, tiny_sites(2, n), made)
        records = list(rounds_from(moment(made, 1, epochs), method, engine))
        assert sum(r.kind == "train" for r in records) == 2 * epochs


@every_method
def test_training_that_breaks_down_is_named(method):
    with pytest.raises(NonFiniteShareError, match="s0, round 1, epoch 1"):
        run(method, tiny_sites(), lr=1e30)


@every_method
def test_a_share_counts_by_its_weight(method):
    initial = network_of(method).state_dict()
    ctx = moment(recipe_of(method))
    aggregator = method.aggregator(ctx)
    if not aggregator.only_adds:
        return
    shares = [method.share(method.start({k: t * c for k, t in initial.items()}), ctx) for c in (1, 5)]
    for name, share, weight in zip("ab", shares, (1.0, 3.0), strict=True):
        aggregator.add(name, replace(share, weight=weight))
    for key, found in aggregator.result().items():
        first, second = (share.tensors[key].double() for share in shares)
        torch.testing.assert_close(found, ((first + 3 * second) / 4).to(found.dtype))


def test_sites_weigh_by_their_training_images_if_asked():
    for weighting, weight in (("uniform", 1.0), ("images", 21.0)):
        made = recipe_of(FedAvg(), weighting=weighting)
        *_, arrival = InProcess(FedAvg(), tiny_sites(1, 21), made).train(moment(made, 1, 1))
        assert arrival.share.weight == weight


def test_nobody_present_and_equal_names():
    method = ALGORITHMS["prrfl"]()
    with pytest.raises(ParticipationError, match="round 1"):
        run(method, tiny_sites(), present=lambda ctx: set())
    with pytest.raises(ParticipationError, match="s0"):
        InProcess(method, [*tiny_sites(1), *tiny_sites(1)], Recipe(tiny_network()))


def test_records_come_in_the_order_of_time_and_say_what_is_deployed():
    records, _ = run(ALGORITHMS["prrfl"](), tiny_sites(2))
    scores = [r for r in records if isinstance(r, ScoreRecord) and r.round == 1 and r.client == "s1"]
    assert [(r.split, r.model, r.moment, r.epoch) for r in scores] == [
        ("test", "personalised", "epoch", 0),
        ("test", "personalised", "epoch", 1),
        ("test", "personalised", "before", 1),
        ("test", "deputy", "before", 1),
        ("test", "personalised", "after", 1),
        ("test", "deputy", "after", 1),
        ("valid", "personalised", "after", 1),
    ]
    assert {r.model for r in scores if r.deployed} == {"personalised"}
    by = {(r.model, r.moment): r.scores for r in scores if r.split == "test"}
    assert by["personalised", "before"] == by["personalised", "after"]
    assert by["deputy", "before"] != by["deputy", "after"]


@every_method
def test_the_state_survives_the_store(method, tmp_path):
    site = Site(tiny_sites()[0], recipe_of(method, optimizer="adam"))
    ctx = moment(site.recipe)
    state, _ = method.train(method.start(site.recipe.network.state_dict()), site, ctx)
    write_state(tmp_path / "s.safetensors", state)
    back = read_state(tmp_path / "s.safetensors", type(state))
    assert type(back) is type(state)
    assert getattr(back, "stage", None) is getattr(state, "stage", None)
    later = replace(ctx, epoch=1)
    expected, found = method.train(state, site, later)[0], method.train(back, site, later)[0]
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(expected), tensors_of(found), strict=True))


@dataclass(frozen=True)
class Named:
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Unnamed:
    count: int
    tensor: torch.Tensor


def test_a_state_that_cannot_be_stored_says_which_field_and_what_could(tmp_path):
    write_state(tmp_path / "s.safetensors", Named({"a": torch.ones(2)}))
    assert torch.equal(read_state(tmp_path / "s.safetensors", Named).tensors["a"], torch.ones(2))
    with pytest.raises(TypeError, match=r"Unnamed.tensor: a site's state cannot hold .*; expected Tensors"):
        write_state(tmp_path / "s.safetensors", Unnamed(1, torch.ones(2)))


def test_centralised_trains_on_all_images_and_is_scored_at_each_site():
    method, sites, network = ALGORITHMS["centralised"](), tiny_sites(3), tiny_network()
    engine = Pooled(method, sites, Recipe(network, batch=8))
    records = list(run_rounds(method, engine, rounds=2, epochs=1, network=network))
    pooled = SiteData(
        "all sites",
        *(
            Examples(
                torch.cat([s.split(split).inputs for s in sites]),
                torch.cat([s.split(split).labels for s in sites]),
            )
            for split in ("train", "valid", "test")
        ),
    )
    alone = InProcess(ALGORITHMS["local"](), [pooled], Recipe(network, batch=8))
    list(run_rounds(ALGORITHMS["local"](), alone, rounds=2, epochs=1, network=network))
    assert same_bits(engine.models(), alone.models())
    last = [r for r in records if isinstance(r, ScoreRecord) and (r.round, r.moment) == (1, "after")]
    assert {(r.client, r.split) for r in last} == {(s.name, k) for s in sites for k in ("test", "valid")}
    assert {r.scores.n for r in last if r.split == "test"} == {12}
    (deployed,) = engine.deployed()
    assert set(deployed.test) == set(deployed.valid) == {"s0", "s1", "s2"}
