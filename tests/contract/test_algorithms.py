"""What every method must keep to, whatever it does inside."""

from dataclasses import dataclass

import pytest
import torch

from prrfl import PRRFL, InProcess, ParticipationError, Recipe, run_rounds
from prrfl.algorithms import ALGORITHMS, FedAvg
from prrfl.algorithms.prototyped import Prototyped
from prrfl.engine import Pooled
from prrfl.losses import CPA
from prrfl.storage.tensor_files import read_state, write_state
from prrfl.testing.contract import METHOD_CHECKS, moment, recipe_of, run, same_bits
from prrfl.types import Examples, ScoreRecord, SiteData
from tests.sites import tiny_network, tiny_sites

METHODS = {
    **{name: kind() for name, kind in ALGORITHMS.builtin.items()},
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


@every_method
@pytest.mark.parametrize("check", METHOD_CHECKS)
def test_every_method_keeps_the_contract(method, check):
    check(method)


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
