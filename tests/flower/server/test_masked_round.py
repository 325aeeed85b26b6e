"""Sums under masks, and what happens to them without a site."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from prrfl.errors import ParticipationError
from prrfl.flower.messages import Answer, from_records
from prrfl.types import ExchangeRecord
from tests.flower.grid import NAMES, GridReply, absences, grid_of, networks, run


def chance(n):
    """Return six standard deviations of the mean of n fair bits; masks are drawn without a seed."""
    return 6 * 0.5 / n**0.5


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
        assert (bits.double().mean(0) - 0.5).abs().max() < chance(len(bits))


def test_a_site_that_drops_out_voids_the_sum_which_is_repeated_without_it(data, four, certs, tmp_path):
    late = []

    def drop(order, reply):
        if order.step == "share" and len(json.loads(order.cohort)) == 4:
            late.append(from_records(Answer, reply.content).share["masked"])
        return None if order.site == "clientD" and order.step == "share" else reply

    masked = grid_of(four, tmp_path, certs, names=[*NAMES, "clientD"], spoil=drop)
    settings = {"quorum": 3, "deadline": 0.5, "names": [*NAMES, "clientD"], "rounds": 1}
    records = run(masked, tmp_path / "run", secure=True, **settings)
    assert absences(records) == [(0, "clientD", "no answer within 0.5 s")]
    (exchange,) = [r for r in records if isinstance(r, ExchangeRecord)]
    assert set(exchange.bytes_up) == set(NAMES)
    # A masked share that arrives late is useless: the sum of all four stays uniform over 64 bits.
    bits = (sum(late)[:, None] >> torch.arange(64)) & 1
    assert len(late) == 4
    assert (bits.double().mean(0) - 0.5).abs().max() < chance(len(bits))
    plain = grid_of(data, tmp_path / "plain")
    run(plain, tmp_path / "plain" / "run", rounds=1)
    ours, theirs = (next(o.mean for o in grid.orders if o.step == "receive") for grid in (masked, plain))
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=1e-6, rtol=0), key


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


def test_a_sum_that_lacks_a_seed_is_completed_by_the_same_sites(four, certs, tmp_path):
    names = [*NAMES, "clientD"]
    run_of = partial(run, folder=tmp_path / "run", secure=True, quorum=3, deadline=0.5, names=names, rounds=1)

    def grid_without(name, step, site):
        def lose(order, reply):
            return None if (order.step, order.site) == (step, site) else reply

        grid = grid_of(four, tmp_path, certs, names=names, spoil=lose)
        grid.online[name] = "away"
        return grid

    with pytest.raises(ParticipationError, match="was started and lacks clientC"):
        run_of(grid_without("clientD", "reveal", "clientC"))
    with pytest.raises(ParticipationError, match="clientC: no answer"):
        run_of(grid_without("clientC", "", ""))
    # The fourth site is back, but three sites have revealed their seeds for the sum without it.
    records = run_of(grid_without("", "", ""))
    assert absences(records) == [(0, "clientD", "the masked sum of this round was started without it")]
