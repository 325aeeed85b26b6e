"""No mask of a site is used twice."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from prrfl.errors import ParticipationError
from prrfl.flower.messages import OrderRefusedError
from prrfl.flower.secure_sum import Identity
from prrfl.flower.site.app import settings_of
from prrfl.flower.site.ledger import Ledger
from prrfl.flower.site.orders import carry_out
from prrfl.types import Share
from tests.flower.grid import grid_of, run


def test_a_mask_is_never_put_on_a_second_share(data, certs, tmp_path):
    def end_after_the_second_sum(order, reply):
        if (order.step, order.round, order.site) == ("share", 1, "clientC"):
            raise KeyboardInterrupt
        return reply

    grid = grid_of(data, tmp_path, certs, spoil=end_after_the_second_sum)
    with pytest.raises(KeyboardInterrupt):
        run(grid, tmp_path / "run", secure=True)
    first, again = [o for o in grid.orders if o.site == "clientA" and o.step == "share"]
    local = settings_of(grid.configs["clientA"])
    # Asked again, the site sends the same masked share.
    assert torch.equal(carry_out(again, local).share["masked"], carry_out(again, local).share["masked"])
    # After another mean of the previous round, which it refuses unless its folder was restored from a copy
    # without it, the site has another share.
    receive = next(o for o in grid.orders if o.site == "clientA" and o.step == "receive")
    (received,) = (tmp_path / "clientA").glob("*/received.json")
    noted = received.read_text()
    received.unlink()
    shutil.rmtree(next((tmp_path / "clientA").glob("*/state/*received")))
    carry_out(replace(receive, mean={key: 1.1 * t for key, t in receive.mean.items()}), local)
    received.write_text(noted)
    carry_out(next(o for o in grid.orders if o.round == 1 and o.site == "clientA"), local)
    capitals = [key | {"key": key["key"].upper(), "more": "x"} for key in json.loads(again.cohort)]
    for cohort in (again.cohort, json.dumps(capitals)):
        with pytest.raises(OrderRefusedError, match="already sent another share of round 2"):
            carry_out(replace(again, cohort=cohort), local)
    assert first.round == 0


def test_a_share_goes_into_one_sum_a_round(data, certs, tmp_path):
    def lose(order, reply):
        return None if (order.step, order.site) == ("reveal", "clientC") else reply

    lost = grid_of(data, tmp_path, certs, spoil=lose)
    words = r"round 1: the masked sum of clientA, clientB, clientC was started and lacks clientC"
    with pytest.raises(ParticipationError, match=words):
        run(lost, tmp_path / "run", secure=True, deadline=0.5, rounds=1)
    local = settings_of(lost.configs["clientA"])
    reveal = next(o for o in lost.orders if o.step == "reveal" and o.site == "clientA")
    assert carry_out(reveal, local).seed == carry_out(reveal, local).seed
    # A site whose folder was lost has another key, which makes another cohort.
    shutil.rmtree(tmp_path / "clientB")
    key = carry_out_at(lost, "clientB", "train")
    cohort = [one for one in json.loads(reveal.cohort) if one["site"] != "clientB"] + [json.loads(key)]
    with pytest.raises(OrderRefusedError, match=r"to the sum of other sites; .* a round has one sum"):
        carry_out(replace(reveal, cohort=json.dumps(cohort)), local)


def test_of_two_runs_at_once_one_gets_the_sum_of_a_share(tmp_path):
    """Both have masked it before either asks for the seed that completes its sum."""
    keys = {name: Ed25519PrivateKey.generate() for name in "abcd"}
    roster = {name: key.public_key() for name, key in keys.items()}
    share = Share({"w": torch.ones(2)})

    def mask(experiment, sites):
        identities = [
            Identity(name, experiment, roster, keys[name], X25519PrivateKey.generate()) for name in sites
        ]
        cohort = [one.signed_key() for one in identities]
        (tmp_path / experiment).mkdir()
        ledger = Ledger(tmp_path / experiment, "a")
        ledger.mask(share, identities[0], cohort, 0)
        return lambda: ledger.reveal(share, identities[0], cohort, 0)

    first, second = mask("first", "abcd"), mask("second", "abc")
    first()
    first()
    with pytest.raises(OrderRefusedError, match=r"added this very share to the sum of other sites"):
        second()


def carry_out_at(grid, name, step):
    """Carry out the first order of a step at a site again; return the key that it answers with."""
    order = next(o for o in grid.orders if o.step == step and o.site == name)
    return carry_out(order, settings_of(grid.configs[name])).key
