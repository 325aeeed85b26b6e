"""Sums under masks, and what happens to them without a site."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from prrfl.errors import ParticipationError
from prrfl.flower.certs import make_certs
from prrfl.flower.messages import Answer, from_records
from prrfl.types import ExchangeRecord
from tests.flower.grid import NAMES, GridReply, absences, grid_of, networks, run
from tests.sites_on_disk import write_layout


def test_secure_summation_gives_the_mean_and_hides_the_shares(data, certs, tmp_path, undisturbed):
    parts = []

    def look(order, reply):
        if order.step == "share":
            parts.append(from_records(Answer, reply.content).share["masked"])
        return reply

    records = run(grid_of(data, tmp_path, certs, spoil=look), tmp_path / "run", secure=True)
    assert not absences(records)
    ours, theirs = networks(tmp_path), undisturbed[1]
    for name in NAMES:
        for key, tensor in ours[name].items():
            assert torch.allclose(tensor, theirs[name][key], atol=2e-3), (name, key)
    for part in parts:
        # A masked share is uniform over 64 bits: as many bits set as not, in every position.
        bits = (part[:, None] >> torch.arange(64)) & 1
        assert (bits.double().mean(0) - 0.5).abs().max() < 0.05


def test_a_site_that_drops_out_voids_the_sum_which_is_repeated_without_it(data, certs, tmp_path):
    grid = None

    late = []

    def drop(order, reply):
        if order.step == "share" and len(json.loads(order.cohort)) == 4:
            late.append(from_records(Answer, reply.content).share["masked"])
        return None if order.site == "clientD" and order.step == "share" else reply

    four = write_layout(tmp_path / "four", sites=4)
    names = [*NAMES, "clientD"]
    make_certs(tmp_path / "keys", names, ["localhost"])
    grid = grid_of(four, tmp_path, tmp_path / "keys" / "sites", spoil=drop)
    own = tmp_path / "keys" / "sites" / "clientD"
    grid.configs["clientD"] = {
        **grid.configs["clientA"],
        "name": "clientD",
        "home": str(tmp_path / "clientD"),
        "roster": str(own / "roster.txt"),
        "signing-key": str(own / "sign.key"),
    }
    records = run(grid, tmp_path / "run", secure=True, quorum=3, deadline=0.5, names=names, rounds=1)
    assert absences(records) == [(0, "clientD", "no answer within 0.5 s")]
    (exchange,) = [r for r in records if isinstance(r, ExchangeRecord)]
    assert set(exchange.bytes_up) == set(NAMES)
    # What comes late from the fourth is of no use: the sum of all four stays uniform over 64 bits.
    bits = (sum(late)[:, None] >> torch.arange(64)) & 1
    assert len(late) == 4
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.05
    plain = run(grid_of(four, tmp_path / "plain"), tmp_path / "plain" / "run", rounds=1)
    means = [
        next(o.mean for o in g.orders if o.step == "receive")
        for g in (grid, _again(four, tmp_path / "plain again"))
    ]
    assert plain
    for key, tensor in means[0].items():
        assert torch.allclose(tensor, means[1][key], atol=1e-6, rtol=0), key


def _again(data, home):
    grid = grid_of(data, home)
    run(grid, home / "run", rounds=1)
    return grid


def test_a_swapped_key_is_refused_by_every_site(data, certs, tmp_path):
    said = []

    def swap(order, reply):
        if order.step == "share":
            said.append((order.site, from_records(Answer, reply.content).error))
        if order.step == "train" and order.site == "clientB":
            answer = from_records(Answer, reply.content)
            key = json.loads(answer.key) | {"key": "ab" * 32}
            return GridReply(replace(answer, key=json.dumps(key)), reply)
        return reply

    with pytest.raises(ParticipationError, match="0 of 3 sites"):
        run(grid_of(data, tmp_path, certs, spoil=swap), tmp_path / "run", secure=True)
    assert [name for name, _ in said] == NAMES
    assert all("the key of site clientB is invalid, or not signed" in words for _, words in said)


def test_a_sum_that_lacks_a_seed_is_completed_by_the_same_sites(certs, tmp_path):
    data, names = write_layout(tmp_path / "four", sites=4), [*NAMES, "clientD"]
    make_certs(tmp_path / "keys", names, ["localhost"])
    run_of = partial(run, folder=tmp_path / "run", secure=True, quorum=3, deadline=0.5, names=names, rounds=1)

    def grid_without(name, step, site):
        def lose(order, reply):
            return None if (order.step, order.site) == (step, site) else reply

        grid = grid_of(data, tmp_path, tmp_path / "keys" / "sites", names=names, spoil=lose)
        grid.online[name] = "away"
        return grid

    with pytest.raises(ParticipationError, match="was started and lacks clientC"):
        run_of(grid_without("clientD", "reveal", "clientC"))
    with pytest.raises(ParticipationError, match="clientC: no answer"):
        run_of(grid_without("clientC", "", ""))
    # The fourth is there again, but three sites have revealed what their sum without it needs.
    records = run_of(grid_without("", "", ""))
    assert absences(records) == [(0, "clientD", "the masked sum of this round was started without it")]
