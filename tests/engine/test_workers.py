"""Sites in processes, and states on disk: the same bits, whatever goes wrong said in one line."""

import os
import signal
import threading
import time
from functools import partial

import pytest
import torch

from prrfl import PRRFL, InProcess, NonFiniteShareError, PRRFLError, Recipe, run_rounds
from prrfl.algorithms import FedAvg
from prrfl.engine import rounds_from, workers
from prrfl.engine.workers import Workers, shared_out
from prrfl.errors import StateMismatchError
from prrfl.evaluation import score
from prrfl.parts import blame
from prrfl.storage.tensor_files import StatesOnDisk, from_bytes, to_bytes
from prrfl.testing.contract import moment, recipe_of
from prrfl.training import predict
from prrfl.types import ExchangeRecord, RoundContext, ScoreRecord, Share, SiteData
from tests.contract.test_algorithms import METHODS
from tests.sites import tiny_examples, tiny_network, tiny_sites


def run(engine, method, folder, rounds=2):
    records = list(rounds_from(moment(recipe_of(method), rounds, seed=3), method, engine))
    engine.save(folder)
    outputs = [(one.client, one.model, one.valid, one.test, one.weights) for one in engine.deployed()]
    return records, {path.name: path.read_bytes() for path in folder.iterdir()}, outputs


def same_tensors(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


KINDS = ("prrfl", "fedavg", "fml", "finetune", "ditto", "moon", "apfl", "fedrod", "fedala", "fenda")
every_kind_of_state = pytest.mark.parametrize(
    "method", [METHODS[name] for name in (*KINDS, "prototypes per-epoch", "prototypes per-round")], ids=repr
)
"""Methods that differ in what a site keeps, or in when it meets others."""


@every_kind_of_state
def test_processes_and_disk_give_the_bits_of_one_process_in_memory(method, tmp_path):
    make = partial(InProcess, method, recipe=recipe_of(method))
    expected = run(make(tiny_sites()), method, tmp_path / "memory")
    resting = InProcess(method, tiny_sites(), recipe_of(method), rest_in=tmp_path / "rest")
    on_disk = run(resting, method, tmp_path / "disk")
    with Workers(make, tiny_sites()[::-1], 2) as engine:
        apart = run(engine, method, tmp_path / "apart")
    for records, states, outputs in (on_disk, apart):
        assert records == expected[0]
        assert states == expected[1]
        for (*names, valid, test, weights), wanted in zip(outputs, expected[2], strict=True):
            assert names == list(wanted[:2])
            assert same_tensors(valid, wanted[2])
            assert same_tensors(test, wanted[3])
            assert same_tensors(weights, wanted[4])


@every_kind_of_state
def test_scores_are_those_of_the_networks_at_that_moment(method):
    recipe = recipe_of(method)
    engine = InProcess(method, tiny_sites(), recipe)
    latest = {}
    for record in rounds_from(moment(recipe, rounds=3), method, engine):
        if isinstance(record, ScoreRecord) and record.moment == "after":
            latest[record.client, record.model, record.split] = record.scores
        if isinstance(record, ExchangeRecord):
            for (client, model, split), scores in latest.items():
                (site,) = [one for one in tiny_sites() if one.name == client]
                (logits,) = predict([engine.models()[client][model]], site.split(split), recipe)
                assert score(logits, site.split(split).labels) == scores


class FedAvgEachEpoch(FedAvg):
    """FedAvg whose sites also average their weights after each local epoch."""

    def meets(self, ctx):
        return True

    epoch_share, epoch_aggregator, epoch_receive = FedAvg.share, FedAvg.aggregator, FedAvg.receive


@pytest.mark.parametrize("on_disk", [False, True])
def test_weights_that_change_at_a_meeting_are_scored_again(on_disk, tmp_path):
    method, sites = FedAvgEachEpoch(), tiny_sites()
    recipe = recipe_of(method, lr=0.1)
    engine = InProcess(method, sites, recipe, rest_in=tmp_path / "rest" if on_disk else None)
    records = list(rounds_from(moment(recipe), method, engine))
    losses = {
        (r.round, r.client, r.moment): r.scores.loss
        for r in records
        if isinstance(r, ScoreRecord) and r.split == "test"
    }
    for index in range(2):
        for site in sites:
            # All sites have the same weights since the last meeting, so the communication changes nothing.
            after = losses[index, site.name, "after"]
            assert losses[index, site.name, "before"] == pytest.approx(after, rel=1e-5)
            assert losses[index, site.name, "epoch"] != pytest.approx(after, rel=1e-5)


def test_states_on_disk_are_scored_no_more_often_than_those_in_memory(tmp_path, monkeypatch):
    from prrfl.engine import site

    calls = []
    real = site.predict
    monkeypatch.setattr(site, "predict", lambda *a, **k: calls.append(1) or real(*a, **k))
    counts = []
    for rest in (None, tmp_path / "rest"):
        engine = InProcess(PRRFL(), tiny_sites(), Recipe(tiny_network(), batch=8), rest_in=rest)
        run(engine, PRRFL(), tmp_path / f"saved-{rest is None}")
        counts.append(len(calls))
    assert counts[0] > 0
    assert counts[1] == 2 * counts[0]


def test_saved_states_do_not_change_when_training_goes_on(tmp_path):
    engine = InProcess(FedAvg(), tiny_sites(), Recipe(tiny_network(), batch=8), rest_in=tmp_path / "rest")
    _, saved, _ = run(engine, FedAvg(), tmp_path / "saved")
    run(engine, FedAvg(), tmp_path / "later")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == saved
    engine.load(tmp_path / "saved")
    engine.save(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == saved


def test_processes_that_have_hardly_started_are_ended(monkeypatch):
    def busy(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as if the signal had been lost
        time.sleep(60)

    monkeypatch.setattr(workers, "_serve", busy)
    before = time.monotonic()
    with Workers(partial(InProcess, FedAvg(), recipe=Recipe(tiny_network())), tiny_sites(), 2):
        time.sleep(0.2)
    assert time.monotonic() - before < 20


def test_absent_sites_are_not_visited():
    present = lambda ctx: {"s0", "s2"} if ctx.round == 0 else {"s1"}  # noqa: E731
    make = partial(InProcess, FedAvg(), recipe=Recipe(tiny_network(), batch=8))
    with Workers(make, tiny_sites(), 2, present=present) as engine:
        records = list(run_rounds(FedAvg(), engine, rounds=2, epochs=1, network=tiny_network()))
    assert [set(r.bytes_up) for r in records if isinstance(r, ExchangeRecord)] == [{"s0", "s2"}, {"s1"}]


def test_sites_are_shared_out_by_their_images():
    sites = [SiteData(name, tiny_examples(n, 0), *2 * [tiny_examples(3, 0)]) for name, n in
             (("a", 20), ("b", 27), ("c", 11), ("d", 14))]  # fmt: skip
    assert [[site.name for site in part] for part in shared_out(sites, 2)] == [["b", "c"], ["a", "d"]]
    assert [len(part) for part in shared_out(sites, 9)] == [1, 1, 1, 1]


def test_what_a_site_runs_into_is_said_as_in_one_process():
    make = partial(InProcess, FedAvg(), recipe=Recipe(tiny_network(), batch=8, lr=1e30))
    with pytest.raises(NonFiniteShareError) as alone:
        list(run_rounds(FedAvg(), make(tiny_sites()), rounds=2, epochs=2, network=tiny_network()))
    with Workers(make, tiny_sites(), 2) as engine, pytest.raises(NonFiniteShareError) as apart:
        list(run_rounds(FedAvg(), engine, rounds=2, epochs=2, network=tiny_network()))
    assert str(apart.value) == str(alone.value)


def test_a_process_that_dies_is_named_and_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(blame, "_FOREIGN", {})  # otherwise a part that another test loaded is blamed

    class Deadly(FedAvg):
        def train(self, client, site, ctx):
            if site.name == "s1":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().train(client, site, ctx)

    class Faulty(FedAvg):
        def share(self, client, ctx):
            raise ZeroDivisionError("ours")

    for method, kind, words in (
        (Deadly(), PRRFLError, "the process of s1 ended with exit code -9"),
        (Faulty(), RuntimeError, "ZeroDivisionError: ours"),
    ):
        recipe = Recipe(tiny_network(), batch=8)
        make = partial(InProcess, method, recipe=recipe)
        with Workers(make, tiny_sites(), 3) as engine, pytest.raises(kind, match=words):
            list(run_rounds(method, engine, rounds=1, epochs=1, network=tiny_network()))


def test_threads_work_in_a_process_forked_from_one_that_used_them():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(512, 512) @ torch.randn(512, 512)  # a team of threads, which a fork does not copy
        torch.randn(2**20).exp()
        make = partial(InProcess, FedAvg(), recipe=Recipe(tiny_network(), batch=8))
        found = []

        def work():
            with Workers(make, tiny_sites(), 2, threads=2) as engine:
                found.extend(run_rounds(FedAvg(), engine, rounds=1, epochs=1, network=tiny_network()))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive(), "the forked process waits for threads that are not there"
        assert found
    finally:
        torch.set_num_threads(before)


def test_shares_of_16_bits_halve_the_bytes_and_round_what_comes_back(tmp_path):
    method, network = PRRFL(), tiny_network()
    sizes, deputies = [], []
    for dtype in (None, torch.float16):
        engine = InProcess(method, tiny_sites(), Recipe(network, batch=8), share_dtype=dtype)
        records, _, _ = run(engine, method, tmp_path / str(dtype), rounds=1)
        exchange = records[-1]
        sizes.append((exchange.bytes_up["s0"], exchange.bytes_down))
        deputies.append(engine.models()["s0"]["deputy"])
    assert sizes[1] == (sizes[0][0] / 2, sizes[0][1] / 2)
    for key, tensor in deputies[0].items():
        assert deputies[1][key].dtype == tensor.dtype
        torch.testing.assert_close(deputies[1][key], tensor, rtol=2e-3, atol=2e-3)
    assert not all(torch.equal(deputies[1][key], t) for key, t in deputies[0].items())


def test_bytes_are_read_back_and_what_is_foreign_is_refused():
    share = Share({"a.b": torch.arange(3), "c": torch.ones(2, 2)}, 0.1 + 0.2)
    back = from_bytes(Share, to_bytes(share))
    assert back.weight == share.weight
    assert same_tensors(back.tensors, share.tensors)
    for torn in (b"", to_bytes(share)[:-3], b"\xff" * 40, to_bytes(RoundContext(0, 1, 0, 1, 0))):
        with pytest.raises(StateMismatchError, match="not a Share"):
            from_bytes(Share, torn)


def test_states_on_disk_are_a_mapping(tmp_path):
    states = StatesOnDisk(tmp_path / "none", Share)
    assert list(states) == []
    with pytest.raises(KeyError):
        states["a"]
    states["a"] = Share({"w": torch.ones(1)}, 2.0)
    assert (list(states), len(states), states["a"].weight) == (["a"], 1, 2.0)
    del states["a"]
    assert "a" not in states
