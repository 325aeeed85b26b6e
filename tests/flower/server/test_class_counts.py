"""Losses that need the class counts of all sites, and prototypes, over real sites."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from prrfl.config import checked
from prrfl.errors import ConfigError, ParticipationError
from prrfl.flower.federation import federate
from prrfl.flower.messages import COUNTING, Answer, from_records, to_records
from prrfl.runs.run import train
from prrfl.runs.setup import load_data
from prrfl.storage.tensor_files import read_tensors
from tests.flower.grid import NAMES, SETTINGS, absences, grid_of, networks, run
from tests.sites_on_disk import write_layout

FOLLOW_UP = {"method": "prrfl-imbalance", "prototypes": "per-round", "init_iter": 1, "rounds": 3}
AGREED = "prrfl-imbalance"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Three sites with (3, 3, 3), (3, 0, 3) and (1, 1, 0) training images of the three classes."""
    folder = write_layout(tmp_path_factory.mktemp("uneven"), sites=3)
    for site, kept in {"clientB": ("0", "2"), "clientC": ("0", "1")}.items():
        table = folder / "csv_folder" / site / f"train_{site}.csv"
        head, *rows = table.read_text().splitlines()
        rows = [row for row in rows if row.rsplit(",", 1)[1] in kept]
        table.write_text("\n".join([head, *(rows if site == "clientB" else rows[:2])]) + "\n")
    return folder


@pytest.fixture(scope="module")
def in_one_process(uneven, tmp_path_factory):
    """The networks of a run of the follow-up in one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    config = checked({**SETTINGS, **FOLLOW_UP, "data": uneven, "workers": 1, "threads": 1}, "here")
    list(train(config, load_data(config), folder))
    assert json.loads((folder / "class_counts.json").read_text()) == [7, 4, 6]
    return {name: read_tensors(folder / "models" / name / "last.safetensors") for name in NAMES}


def near(ours, theirs, tolerance):
    return all(
        torch.allclose(ours[name][key], theirs[name][key], atol=tolerance, rtol=0)
        for name in NAMES
        for key in theirs[name]
    )


def counting(grid):
    return [order.site for order in grid.orders if order.step == "count"]


def test_sites_with_and_without_a_class_give_the_tensors_of_one_process(uneven, tmp_path, in_one_process):
    grid = grid_of(uneven, tmp_path, methods=AGREED)
    assert not absences(run(grid, tmp_path / "run", **FOLLOW_UP))
    assert counting(grid) == NAMES
    assert {order.class_counts for order in grid.orders if order.step == "train"} == {"[7, 4, 6]"}
    assert near(networks(tmp_path), in_one_process, 0)


def test_under_secure_summation_counts_and_prototypes_are_masked(uneven, certs, tmp_path, in_one_process):
    sent = {}

    def look(order, reply):
        answer = from_records(Answer, reply.content)
        sent.setdefault((order.step, order.round == COUNTING), set()).update(answer.share)
        return reply

    grid = grid_of(uneven, tmp_path, certs, methods=AGREED, spoil=look)
    run(grid, tmp_path / "run", secure=True, **{**FOLLOW_UP, "seed": 0})
    assert json.loads((tmp_path / "run" / "class_counts.json").read_text()) == [7, 4, 6]
    assert sent["count", True] == sent["train", False] == set()
    assert sent["share", True] == sent["share", False] == {"masked"}
    assert near(networks(tmp_path), in_one_process, 5e-3)


def test_counts_are_asked_for_once_also_by_a_server_that_resumes(uneven, tmp_path, in_one_process):
    def die(grid, order, reply):
        if order.step == "train" and order.site == "clientB":
            raise KeyboardInterrupt
        return reply

    grid = grid_of(uneven, tmp_path, methods=AGREED)
    grid.spoil = partial(die, grid)
    with pytest.raises(KeyboardInterrupt):
        run(grid, tmp_path / "run", **FOLLOW_UP)
    again = grid_of(uneven, tmp_path, methods=AGREED)
    run(again, tmp_path / "run", **FOLLOW_UP)
    assert (counting(grid), counting(again)) == (NAMES, [])
    assert near(networks(tmp_path), in_one_process, 0)


def test_a_site_that_misses_the_counting_takes_part_later(uneven, tmp_path):
    def late(order, reply):
        return None if (order.site, order.step) == ("clientC", "count") else reply

    grid = grid_of(uneven, tmp_path, methods=AGREED, spoil=late)
    records = run(grid, tmp_path / "run", quorum=2, deadline=0.5, **FOLLOW_UP)
    assert not absences(records)
    assert json.loads((tmp_path / "run" / "class_counts.json").read_text()) == [6, 3, 6]


def test_a_site_that_misses_a_round_keeps_its_prototypes(uneven, tmp_path):
    def away(order, reply):
        return None if (order.site, order.step, order.round) == ("clientB", "train", 1) else reply

    grid = grid_of(uneven, tmp_path, methods=AGREED, spoil=away)
    records = run(grid, tmp_path / "run", quorum=2, deadline=0.5, **FOLLOW_UP)
    assert [(index, name) for index, name, _ in absences(records)] == [(1, "clientB")]


def test_a_site_refuses_other_counts_than_it_was_told_before(uneven, tmp_path):
    grid = grid_of(uneven, tmp_path, methods=AGREED)
    run(grid, tmp_path / "run", **{**FOLLOW_UP, "rounds": 1})
    (tmp_path / "run" / "class_counts.json").write_text("[9, 9, 9]")
    for path in (tmp_path / "run").glob("state/*"):
        path.rename(tmp_path / path.name)
    for name in ("metrics.jsonl", "summary.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(
        ParticipationError, match=r"received class counts \(9, 9, 9\), but \(7, 4, 6\) before"
    ):
        run(grid_of(uneven, tmp_path, methods=AGREED), tmp_path / "run", **{**FOLLOW_UP, "rounds": 1})


@pytest.mark.parametrize(
    ("settings", "missing", "agreed"),
    [
        ({"loss": "cpa", "prototypes": "per-round"}, "prototypes", "prrfl,prototypes"),
        ({"loss": "weighted", "counts": "federation"}, "class-counts", "prrfl,class-counts"),
        ({"aggregation": "pfa-phase"}, "prrfl-phases", "prrfl-phases"),
        (FOLLOW_UP, "prrfl-imbalance", "prrfl-imbalance"),
        ({"weighting": "images"}, "image-count", "prrfl,image-count"),
    ],
)
def test_a_site_agrees_by_name_to_what_a_loss_sends(uneven, tmp_path, settings, missing, agreed):
    settings = {**settings, "rounds": 1}
    words = f"site clientA does not agree to {missing}, only to prrfl; .* --methods {agreed}"
    with pytest.raises(ParticipationError, match=words):
        run(grid_of(uneven, tmp_path), tmp_path / "run", **settings)
    assert not list(tmp_path.glob("*/*/own_counts.safetensors"))
    run(grid_of(uneven, tmp_path, methods=agreed), tmp_path / "agreed", **settings)


def test_what_needs_no_counts_asks_for_none(uneven, tmp_path):
    grid = grid_of(uneven, tmp_path)
    run(grid, tmp_path / "run", rounds=1, loss="weighted", counts="site")
    assert counting(grid) == []


def test_prototypes_after_every_epoch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"real sites cannot do; .*--prototypes per-round"):
        federate(tmp_path / "run", {"method": "prrfl-imbalance"}, NAMES)


@pytest.mark.parametrize("secure", [False, True])
def test_sites_are_weighted_by_images_as_in_one_process(uneven, certs, tmp_path, secure):
    chosen = {"method": "fedavg", "weighting": "images", "rounds": 1, "seed": 0}
    config = checked({**SETTINGS, **chosen, "data": uneven, "workers": 1, "threads": 1}, "here")
    list(train(config, load_data(config), tmp_path / "one"))
    theirs = {name: read_tensors(tmp_path / "one" / "models" / name / "last.safetensors") for name in NAMES}
    grid = grid_of(uneven, tmp_path, certs if secure else None, methods="fedavg,image-count")
    assert not absences(run(grid, tmp_path / "run", secure=secure, **chosen))
    assert near(networks(tmp_path), theirs, 5e-3 if secure else 0)


def test_a_weight_that_is_no_number_of_images_is_refused(uneven, tmp_path):
    def lie(order, reply):
        if order.step != "train" or order.site != "clientB":
            return reply
        answer = from_records(Answer, reply.content)
        reply.content = to_records(replace(answer, weight=6.5))
        return reply

    grid = grid_of(uneven, tmp_path, methods="fedavg,image-count", spoil=lie)
    with pytest.raises(ParticipationError, match=r"clientB: its share: the weight is 6.5; expected a number"):
        run(grid, tmp_path / "run", method="fedavg", weighting="images", rounds=1)
