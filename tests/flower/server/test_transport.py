"""Orders and answers that are lost, and processes that fail."""

import pytest

from tests.flower.grid import absences, failure, grid_of, networks, run, same


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
