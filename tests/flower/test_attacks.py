"""A federation under attack: what a malicious site or server tries, and what it gets."""

import io
import json
import shutil
import stat
from dataclasses import fields, replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from prrfl.errors import ConfigError, ParticipationError, StateMismatchError
from prrfl.flower.federation import federate
from prrfl.flower.messages import Answer, Order, OrderRefusedError, from_records, to_records
from prrfl.flower.secure_sum import LARGEST_SUM, is_plausible, read_roster
from prrfl.flower.server import app as server_app
from prrfl.flower.site.app import settings_of
from prrfl.flower.site.orders import carry_out
from prrfl.types import Share
from tests.flower.grid import NAMES, SETTINGS, GridReply, absences, grid_of, networks, run, same
from tests.sites_on_disk import write_layout

FOUR = [*NAMES, "clientD"]


class Raw:
    """A reply with any records, or with a content that cannot even be looked at."""

    def __init__(self, content, reply):
        self._content, self.metadata = content, reply.metadata

    @property
    def content(self):
        if isinstance(self._content, Exception):
            raise self._content
        return self._content

    def has_error(self):
        return False


def archive():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3, np.float32))
    return file.getvalue()


def with_array(records, data):
    """Return records in which every array has other bytes."""
    arrays = {
        key: Array(dtype=one.dtype, shape=one.shape, stype=one.stype, data=data)
        for key, one in records.array_records["arrays"].items()
    }
    return RecordDict({"plain": records.config_records["plain"], "arrays": ArrayRecord(arrays)})


def with_plain(whole, /, **more):
    plain = {**whole.config_records["plain"], **more}
    return RecordDict({"plain": ConfigRecord(plain), "arrays": whole.array_records["arrays"]})


def deep(character):
    return character * 100_000


BAD_ANSWERS = {
    "an archive": lambda records: with_array(records, archive()),
    "no array": lambda records: with_array(records, b"no array"),
    "empty": lambda records: RecordDict(),
    "another kind": lambda records: RecordDict({"plain": ArrayRecord({}), "arrays": ConfigRecord()}),
    "an exception": lambda records: ZeroDivisionError("inside"),
    "too little memory": lambda records: MemoryError(),
    "deep layout": lambda records: with_plain(records, **{"share.layout": deep("[")}),
    "deep records": lambda records: with_plain(records, records=deep("["), key=deep("["), seed=deep("[")),
    "wrong types": lambda records: with_plain(records, round=1.5),
    "a huge round": lambda records: with_plain(records, round=2**62),
    "another site": lambda records: with_plain(records, site="clientC"),
    "control characters": lambda records: with_plain(records, error="\x1b[2J\n" + deep("x")),
    "an empty key": lambda records: with_plain(records, key="{}", seed="zz", **{"share.layout": "[]"}),
}


WITHOUT_ARRAYS = ("another kind", "an exception", "control characters")


@pytest.mark.parametrize(
    ("step", "what"),
    [("train", what) for what in BAD_ANSWERS]
    + [(step, what) for step in ("receive", "keep", "end") for what in WITHOUT_ARRAYS],
)
def test_whatever_a_site_answers_costs_only_that_site(data, tmp_path, step, what):
    def spoil(order, reply):
        if (order.site, order.step) != ("clientB", step):
            return reply
        return Raw(BAD_ANSWERS[what](reply.content), reply)

    grid = grid_of(data, tmp_path, methods="fedavg", spoil=spoil)
    records = run(grid, tmp_path / "run", quorum=2, rounds=1, method="fedavg")
    missing = [(index, site) for index, site, _ in absences(records)]
    assert missing == ([(0, "clientB")] if step in ("train", "receive") else [])
    assert all(len(reason) <= 1000 and reason.isprintable() for *_, reason in absences(records))


@pytest.mark.parametrize(
    ("step", "what"),
    [("train", what) for what in (*WITHOUT_ARRAYS, "deep records", "an empty key")]
    + [("share", what) for what in (*WITHOUT_ARRAYS, "an archive", "deep layout", "an empty key")],
)
def test_whatever_a_site_answers_under_masks_costs_only_that_site(four, certs, tmp_path, step, what):
    def spoil(order, reply):
        if (order.site, order.step) != ("clientB", step):
            return reply
        return Raw(BAD_ANSWERS[what](reply.content), reply)

    grid = grid_of(four, tmp_path, certs, methods="fedavg", names=FOUR, spoil=spoil)
    records = run(grid, tmp_path / "run", secure=True, quorum=3, rounds=1, names=FOUR, method="fedavg")
    assert [(index, site) for index, site, _ in absences(records)] == [(0, "clientB")]


@pytest.mark.parametrize("what", [*WITHOUT_ARRAYS, "deep records", "an empty key"])
def test_whatever_a_site_reveals_is_told_by_its_name_and_the_round_can_be_completed(
    data, certs, tmp_path, what
):
    def spoil(order, reply):
        if (order.site, order.step) != ("clientB", "reveal"):
            return reply
        return Raw(BAD_ANSWERS[what](reply.content), reply)

    with pytest.raises(ParticipationError, match=r"was started and lacks clientB \(clientB: "):
        run(grid_of(data, tmp_path, certs, spoil=spoil), tmp_path / "run", secure=True, rounds=1)
    assert not absences(run(grid_of(data, tmp_path, certs), tmp_path / "run", secure=True, rounds=1))


def test_a_reply_that_cannot_be_unpacked_costs_only_its_site(data, tmp_path):
    grid = grid_of(data, tmp_path)
    pull = grid.pull_messages

    def break_one(ids):
        names = {f"message {k}": order for k, order in enumerate(grid.orders)}
        if any(names[i].site == "clientB" and names[i].step == "train" for i in ids):
            raise ValueError("invalid object tree")
        return pull(ids)

    grid.pull_messages = break_one
    ((_, site, reason),) = absences(run(grid, tmp_path / "run", quorum=2, rounds=1))
    assert site == "clientB"
    assert "its answer cannot be used (ValueError: invalid object tree)" in reason


def test_a_share_of_huge_numbers_does_not_reach_the_others(data, tmp_path):
    def spoil(order, reply):
        if (order.site, order.step) != ("clientB", "train"):
            return reply
        answer = from_records(Answer, reply.content)
        share = {key: torch.full_like(tensor, 3e38) for key, tensor in answer.share.items()}
        return GridReply(replace(answer, share=share), reply)

    ((_, site, reason),) = absences(
        run(grid_of(data, tmp_path, spoil=spoil), tmp_path / "run", quorum=2, rounds=1)
    )
    assert site == "clientB"
    assert "holds 3e+38; expected at most 1.07e+09" in reason


def test_a_poisoned_part_does_not_blame_the_others(data, certs, tmp_path):
    def spoil(order, reply):
        if (order.site, order.step) != ("clientB", "share"):
            return reply
        answer = from_records(Answer, reply.content)
        part = answer.share["masked"].clone()
        part[:-1] += 3 * 2**61
        return GridReply(replace(answer, share={"masked": part}), reply)

    with pytest.raises(StateMismatchError, match="one of these sites sent a wrong part"):
        run(grid_of(data, tmp_path, certs, spoil=spoil), tmp_path / "run", secure=True, rounds=1)


def test_a_sum_is_plausible_up_to_the_range_that_sites_check():
    assert is_plausible(Share({"a": torch.tensor([LARGEST_SUM / 3])}, 3.0), 3.0)
    for number, weight in ((LARGEST_SUM / 2, 3.0), (float("nan"), 3.0), (1.0, 2.0), (1.0, float("nan"))):
        assert not is_plausible(Share({"a": torch.tensor([number])}, weight), 3.0)


def sums_of(grid, tmp_path, folder, **settings):
    """Return the mean of a secure run of one round."""
    run(grid, tmp_path / folder, secure=True, rounds=1, **settings)
    return next(order.mean for order in grid.orders if order.step == "receive")


def test_a_share_goes_into_one_sum_also_in_another_run(four, certs, tmp_path):
    """Otherwise the sum of all minus the sum without one site would be the share of that site."""
    together = grid_of(four, tmp_path, certs, names=FOUR)
    first = sums_of(together, tmp_path, "first", names=FOUR)
    with pytest.raises(ParticipationError, match=r"added this very share .*another --seed"):
        sums_of(grid_of(four, tmp_path, certs), tmp_path, "second")
    # The same sites give the same sum, from which nobody learns anything; another seed gives other shares.
    again = sums_of(grid_of(four, tmp_path, certs, names=FOUR), tmp_path, "third", names=FOUR)
    assert all(torch.equal(first[key], again[key]) for key in first)
    sums_of(grid_of(four, tmp_path, certs), tmp_path, "fourth", seed=5)


def test_a_new_run_under_masks_draws_a_new_seed_unless_told_otherwise(tmp_path):
    settings = {key: value for key, value in SETTINGS.items() if key != "seed"}
    one, two = (federate(tmp_path / name, settings, NAMES, secure=True) for name in ("one", "two"))
    assert one.config.seed != two.config.seed
    assert federate(tmp_path / "one", settings, NAMES, secure=True) == one
    told = federate(tmp_path / "three", {**settings, "seed": 7}, NAMES, secure=True)
    assert told.config.seed == 7
    assert federate(tmp_path / "four", settings, NAMES).config.seed == 0
    with pytest.raises(ConfigError, match="was started with settings"):
        federate(tmp_path / "one", {**settings, "seed": 7}, NAMES, secure=True)


def test_a_server_that_sends_one_site_the_mean_and_zeros_to_the_others_gets_no_sum(data, certs, tmp_path):
    """Otherwise it would know what the others share next, and so the share of the one."""
    grid = grid_of(data, tmp_path, certs)
    push = grid.push_messages

    def deceive(messages):
        for message in messages:
            order = from_records(Order, message.content)
            if order.step == "receive" and order.site != "clientA":
                zeros = {key: torch.zeros_like(tensor) for key, tensor in order.mean.items()}
                message.content = to_records(replace(order, mean=zeros))
        return push(messages)

    grid.push_messages = deceive
    with pytest.raises(ParticipationError, match=r"0 of 3 .*another mean of round 1 than other sites"):
        run(grid, tmp_path / "run", secure=True)


def test_a_site_that_missed_a_mean_takes_part_in_the_next_sum(four, certs, tmp_path):
    def lose(order, reply):
        return None if (order.site, order.step, order.round) == ("clientD", "receive", 0) else reply

    grid = grid_of(four, tmp_path, certs, names=FOUR, spoil=lose)
    records = run(grid, tmp_path / "run", secure=True, quorum=3, deadline=0.5, names=FOUR)
    assert [(index, site) for index, site, _ in absences(records)] == [(0, "clientD")]


def test_the_mask_of_a_share_is_its_own(data, certs, tmp_path):
    """A folder that was restored from a copy has lost what its masks were used for."""
    grid = grid_of(data, tmp_path, certs)
    run(grid, tmp_path / "run", secure=True, rounds=1)
    local = settings_of(grid.configs["clientA"])
    orders = {order.step: order for order in grid.orders if order.site == "clientA"}
    shutil.rmtree(tmp_path / "clientA")
    key = json.loads(carry_out(orders["train"], local).key)
    cohort = [one for one in json.loads(orders["reveal"].cohort) if one["site"] != "clientA"] + [key]
    reveal = replace(orders["reveal"], cohort=json.dumps(cohort))
    before = carry_out(reveal, local).seed
    experiment = tmp_path / "clientA" / reveal.experiment
    for name in ("revealed.json", "data.json"):
        (experiment / name).unlink()
    shutil.rmtree(experiment / "state")
    settings = json.dumps({**json.loads(reveal.settings), "lr": 0.02}, sort_keys=True)
    (experiment / "settings.json").unlink()
    carry_out(replace(orders["train"], settings=settings), local)
    assert carry_out(replace(reveal, settings=settings), local).seed != before


def test_a_key_under_several_names_counts_once(certs, tmp_path):
    lines = (certs / "clientA" / "roster.txt").read_text().splitlines()
    twice = lines[0].replace("clientA", "another")
    (tmp_path / "roster.txt").write_text("\n".join([*lines, twice]))
    with pytest.raises(ConfigError, match=r"roster.txt:5: site another has the key of site clientA"):
        read_roster(tmp_path / "roster.txt")


def test_the_key_that_opens_all_masks_is_deleted_at_the_end(data, certs, tmp_path):
    grid = grid_of(data, tmp_path, certs)
    during = []

    def look(order, reply):
        if order.step != "end":
            during.extend((tmp_path / order.site).glob("*/sum.key"))
        return reply

    grid.spoil = look
    run(grid, tmp_path / "run", secure=True, rounds=1)
    assert during
    assert not list(tmp_path.glob("*/*/sum.key"))
    end = next(order for order in grid.orders if order.step == "end")
    (tmp_path / "clientA" / end.experiment / "sum.key").touch()
    other = replace(end, settings=json.dumps({**json.loads(end.settings), "rounds": 1}, sort_keys=True))
    shutil.rmtree(next((tmp_path / "clientA").glob("*/state")))
    with pytest.raises(OrderRefusedError, match="has not taken the mean of the last round"):
        carry_out(other, settings_of(grid.configs["clientA"]))


def test_a_round_has_one_mean(data, tmp_path):
    grid = grid_of(data, tmp_path)
    run(grid, tmp_path / "run", rounds=1)
    receive = next(o for o in grid.orders if (o.site, o.step) == ("clientA", "receive"))
    local = settings_of(grid.configs["clientA"])
    assert carry_out(receive, local).records == carry_out(receive, local).records
    other = replace(receive, mean={key: 1.1 * tensor for key, tensor in receive.mean.items()})
    for damaged in (False, True):
        if damaged:
            shutil.rmtree(next((tmp_path / "clientA").glob("*/state/*received")))
        with pytest.raises(OrderRefusedError, match="already received another mean of round 1"):
            carry_out(other, local)
    broken = replace(receive, mean={key: tensor * float("nan") for key, tensor in receive.mean.items()})
    with pytest.raises(OrderRefusedError, match="holds NaN or infinity"):
        carry_out(broken, local)


def test_a_round_that_is_repeated_with_other_sites_has_the_mean_that_was_sent(data, tmp_path):
    def die(order, reply):
        if (order.site, order.step) == ("clientB", "receive"):
            raise KeyboardInterrupt
        return reply

    grid = grid_of(data, tmp_path, spoil=die)
    grid.online["clientC"] = "away"
    with pytest.raises(KeyboardInterrupt):
        run(grid, tmp_path / "run", quorum=2, deadline=0.5, rounds=1)
    again = grid_of(data, tmp_path)
    assert not absences(run(again, tmp_path / "run", quorum=2, deadline=0.5, rounds=1))
    sent = [order.mean for order in grid.orders + again.orders if order.step == "receive"]
    assert all(torch.equal(sent[0][key], mean[key]) for mean in sent for key in mean)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def relabelled(folder):
    table = next(folder.glob("csv_folder/clientB/train_*.csv"))
    lines = table.read_text().splitlines()
    other = [line[:-1] + str((int(line[-1]) + 1) % 3) for line in lines[1:]]
    table.write_text("\n".join([lines[0], *other]) + "\n")


def other_pixels(folder):
    first, second = sorted(folder.glob("data/clientB/*/clientB_train_*.png"))[:2]
    shutil.copyfile(first, second)


def moved_to_test(folder):
    train, test = (next(folder.glob(f"csv_folder/clientB/{split}_*.csv")) for split in ("train", "test"))
    *lines, last = train.read_text().splitlines()
    train.write_text("\n".join(lines) + "\n")
    test.write_text(test.read_text().rstrip("\n") + f"\n{last}\n")


@pytest.mark.parametrize("change", [relabelled, other_pixels, moved_to_test])
def test_data_that_changes_between_rounds_is_refused(tmp_path, capfd, change):
    folder = write_layout(tmp_path / "data", sites=3)

    def between(order, reply):
        if (order.site, order.step, order.round) == ("clientC", "receive", 0):
            change(folder)
        return reply

    records = run(grid_of(folder, tmp_path, spoil=between), tmp_path / "run", quorum=2)
    ((index, site, reason),) = absences(records)
    assert (index, site) == (1, "clientB")
    assert "site clientB: its data has changed since the run began" in reason
    assert "site clientB, t" in capfd.readouterr().err  # the split is told at the site only
    assert "train:" not in reason


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        *[(name, False) for name in ("", "flower", "Flower", "-rf", "Ⅷ½²", ".x", "a/b", "..", "a b", "a\n")],
        *[(name, False) for name in ("\u212a", "a\u017f")],  # which are k and s, but for their case
        ("x" * 241, False),
        ("x" * 240, True),
        ("pilot-2f6d", True),
    ],
    ids=ascii,
)
def test_names_of_experiments_that_no_server_sends_are_refused(data, tmp_path, name, fits):
    order = Order("train", name, "clientA", 0, json.dumps(SETTINGS), version("prrfl"))
    local = settings_of(grid_of(data, tmp_path).configs["clientA"])
    if fits:
        assert carry_out(order, local).records
        return
    with pytest.raises(OrderRefusedError, match="refuses the experiment name"):
        carry_out(order, local)
    assert not (tmp_path / "clientA").exists()


@pytest.mark.parametrize("index", [-1, 2, 10**6, 2**62, -(2**62)])
@pytest.mark.parametrize("step", ["train", "receive", "share", "end"])
def test_rounds_that_the_run_does_not_have_are_refused(data, tmp_path, index, step):
    order = Order(step, "e", "clientA", index, json.dumps(SETTINGS), version("prrfl"))
    with pytest.raises(OrderRefusedError, match="expected 1 to 2"):
        carry_out(order, settings_of(grid_of(data, tmp_path).configs["clientA"]))
    assert not (tmp_path / "clientA").exists()


def test_what_a_run_writes_is_only_for_its_user(data, certs, tmp_path):
    """At the sites and at the server, whatever the umask."""
    federate(tmp_path / "run", {**SETTINGS, "rounds": 1}, NAMES, secure=True)
    shutil.rmtree(tmp_path / "run" / "flower", ignore_errors=True)
    before = set(tmp_path.rglob("*"))
    config = {"folder": str(tmp_path / "run"), "sites": ""}
    server_app.app(grid_of(data, tmp_path, certs), Context(0, 0, {}, RecordDict(), config))
    written = set(tmp_path.rglob("*")) - before
    assert {path.name for path in written} >= {"state", "summary.json", "metrics.jsonl", "last.safetensors"}
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_order_has_no_field_without_a_bound():
    """Who adds a field checks it at the site, and adds it here."""
    assert [one.name for one in fields(Order)] == [
        *("step", "experiment", "site", "round", "settings", "version", "secure", "cohort", "mean"),
        "class_counts",
    ]


def test_an_undisturbed_run_is_not_changed_by_any_of_this(data, tmp_path, undisturbed):
    run(grid_of(data, tmp_path), tmp_path / "run")
    assert same(networks(tmp_path), undisturbed[1])
