"""Orders and answers that are lost, and processes that fail."""

import pytest

from prrfl.flower.federation import federate
from prrfl.flower.server.transport import Transport
from tests.flower.grid import NAMES, SETTINGS, absences, failure, grid_of, networks, run, same


def test_an_order_that_is_lost_is_sent_again_until_it_arrives(data, tmp_path):
    lost = []

    def lose(order, reply):
        if (order.site, order.step, order.round) == ("clientB", "train", 0) and len(lost) < 7:
            lost.append(order)
            return failure(reply.metadata.reply_to_message_id, "lost", (3, 4, 5)[len(lost) % 3])
        return reply

    assert not absences(run(grid_of(data, tmp_path, spoil=lose), tmp_path / "run", rounds=1))
    assert len(lost) == 7


@pytest.mark.parametrize("code", [1, 2, 8])
def test_a_site_whose_process_fails_gets_three_tries(data, tmp_path, code):
    def fail(order, reply):
        return (
            failure(reply.metadata.reply_to_message_id, "it died", code) if order.site == "clientB" else reply
        )

    grid = grid_of(data, tmp_path, spoil=fail)
    records = run(grid, tmp_path / "run", quorum=2, rounds=1)
    assert absences(records) == [(0, "clientB", "its process failed 3 times: it died")]
    assert len([o for o in grid.orders if o.site == "clientB"]) == 3


def test_a_lost_reply_is_asked_for_again_and_no_round_is_trained_twice(data, tmp_path, undisturbed):
    lost = []

    def lose(order, reply):
        first = (order.site, order.step, order.round)
        if order.site == "clientB" and first not in lost:
            lost.append(first)
            return failure(reply.metadata.reply_to_message_id, "Node Unavailable", 5)
        return reply

    records = run(grid_of(data, tmp_path, spoil=lose), tmp_path / "run")
    assert len(lost) == 6  # two rounds of train and receive, the best once, and the end
    assert not absences(records)
    assert same(networks(tmp_path), undisturbed[1])


def test_a_node_that_reconnects_gets_its_order_again(data, tmp_path, undisturbed):
    def swallow(order, reply):
        if order.site == "clientB" and order.round == 1 and grid.online.get("clientB") != "again":
            grid.online["clientB"] = "again"
            return None
        return reply

    grid = grid_of(data, tmp_path, spoil=swallow)
    run(grid, tmp_path / "run")
    assert same(networks(tmp_path), undisturbed[1])


def test_the_server_knows_which_sites_have_answered(data, tmp_path):
    folder = tmp_path / "run"
    seen = []

    def look(order, reply):
        if (order.step, order.round) != ("train", 0):
            return reply
        if order.site == "clientB":
            seen.append(transport.position(0))
        return None if order.site == "clientC" else reply

    grid = grid_of(data, tmp_path, spoil=look)
    transport = Transport(grid, federate(folder, SETTINGS, NAMES, 2, 0.5))
    assert transport.position(0).sites == {}
    for name, _ in transport.ask("train", 0, NAMES, lambda answer: answer):
        seen.append((name, transport.position(0)))
    early, (first, one), *_, (last, all_asked) = seen
    assert {name: site.state for name, site in early.sites.items()} == {
        "clientA": "asked",
        "clientB": "not connected",
        "clientC": "not connected",
    }
    assert (first, one.step, one.sites["clientC"].state) == ("clientA", "train", "asked")
    assert (last, all_asked.done) == ("clientC", 1 / 3)
    list(transport.ask("receive", 0, NAMES[:2], lambda answer: answer))
    later = transport.position(0)
    assert {name: site.state for name, site in later.sites.items()}["clientC"] == "absent"
    # Of two rounds the first is not complete as long as it has no checkpoint.
    assert (later.round, later.done) == (0, 0.5)
    assert transport.position(1).sites == {}
