"""A federation's rules: who is refused and why, what is done once, what a round goes on without."""

import dataclasses
import json
import shutil
import tomllib
from dataclasses import replace
from functools import partial
from importlib import resources
from importlib.metadata import version

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from prrfl.algorithms import ALGORITHMS
from prrfl.errors import ConfigError, ParticipationError
from prrfl.flower.certs import make_certs
from prrfl.flower.federation import federate
from prrfl.flower.messages import Answer, Order, OrderRefusedError, from_records, to_records
from prrfl.flower.server import app as server_app
from prrfl.flower.server import transport
from prrfl.flower.server.app import run_federation
from prrfl.flower.site import app as client_app
from prrfl.flower.site.orders import SiteSettings, carry_out
from prrfl.flower.wire import measure
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from prrfl.types import AbsenceRecord, ExchangeRecord
from tests.flower.grid import GridHere, failure
from tests.sites_on_disk import write_layout

NAMES = ["clientA", "clientB", "clientC"]
SETTINGS = {
    "rounds": 2,
    "epochs": 1,
    "batch": 8,
    "image_size": 32,
    "precision": "float32",
    "network": "vgg16_slim",
    "augment": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("sites"), sites=3)


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "certs"
    make_certs(folder, NAMES, ["localhost"])
    return folder / "sites"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(transport, "POLL", 0.01)


def grid_of(data, home, certs=None, methods="prrfl", names=NAMES, **more):
    def config(name):
        own = {"name": name, "data": str(data), "home": str(home / name), "threads": 1, "device": "cpu"}
        own |= {"methods": methods}
        if certs:
            own |= {
                "roster": str(certs / name / "roster.txt"),
                "signing-key": str(certs / name / "sign.key"),
            }
        return own

    return GridHere({name: config(name) for name in names}, **more)


def run(grid, folder, secure=False, quorum=0, deadline=0.0, names=NAMES, **settings):
    federation = federate(folder, {**SETTINGS, **settings}, names, quorum, deadline, secure)
    return list(run_federation(grid, federation, folder))


def absences(records):
    return [(r.round, r.client, r.reason) for r in records if isinstance(r, AbsenceRecord)]


def networks(home, which="last"):
    return {
        name: read_tensors(next((home / name).glob(f"*/models/{name}/{which}.safetensors"))) for name in NAMES
    }


def same(first, second):
    return all(torch.equal(first[n][key], second[n][key]) for n in NAMES for key in first[n])


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    before, transport.POLL = transport.POLL, 0.01
    records = run(grid_of(data, home), home / "run")
    transport.POLL = before
    return records, networks(home)


def test_what_travels_is_what_the_records_say_and_nothing_else(data, tmp_path):
    seen = []

    def look(order, reply):
        seen.append((order, reply.content))
        return reply

    run(grid_of(data, tmp_path, spoil=look), tmp_path / "run", rounds=1)
    images = {path.stem for path in data.rglob("*.png")}
    for order, content in seen:
        assert set(content) == {"plain", "arrays"}
        assert set(content["plain"]) == {
            *("experiment", "site", "round", "error", "records", "share.layout", "weight", "key", "seed")
        }
        text = " ".join(map(str, content["plain"].values()))
        assert not any(name in text for name in images), "an image's name left the site"
        answer = from_records(Answer, content)
        if order.step == "train":
            # Low-band amplitudes of the deputy: less than a tenth of both networks.
            assert set(content["arrays"]) == {"share.float32"}
            assert all(array.stype == "numpy.ndarray" for array in content["arrays"].values())
            assert sum(t.numel() for t in answer.share.values()) > 0
        else:
            assert not answer.share


def a_missing_image(folder):
    next(folder.glob("data/clientA/*/clientA_train_3.png")).unlink()
    return "1 of 9 images", "clientA_train_3"


def a_bad_label(folder):
    table = folder / "csv_folder/clientA/train_clientA.csv"
    table.write_text(table.read_text().replace(",1\n", ",SMITH-JOHN-1962\n"))
    return "SMITH-JOHN-1962", "train_clientA.csv"


@pytest.mark.parametrize("spoil", [a_missing_image, a_bad_label])
@pytest.mark.parametrize("secure", [False, True])
def test_why_data_cannot_be_used_stays_at_the_site(certs, tmp_path, capfd, spoil, secure):
    folder = write_layout(tmp_path / "sites", sites=1)
    secrets = *spoil(folder), str(tmp_path)
    grid = grid_of(folder, tmp_path, certs if secure else None)
    order = Order("train", "e", "clientA", 0, json.dumps(SETTINGS), version("prrfl"), secure)
    reply = asked(grid, order)
    assert not any(secret in str(reply.content) for secret in secrets)
    assert "site clientA: its data cannot be used; the site's operator finds the reason" in str(reply.content)
    said = capfd.readouterr().err
    assert all(secret in said for secret in secrets)


def test_what_nobody_foresaw_stays_at_the_site_too(data, tmp_path, capfd, monkeypatch):
    def fail(*_):
        raise RuntimeError("GEN_A_000009 is in the way")

    monkeypatch.setattr(client_app, "carry_out", fail)
    order = Order("train", "e", "clientA", 0, json.dumps(SETTINGS), version("prrfl"))
    reply = asked(grid_of(data, tmp_path), order)
    assert "site clientA: its process failed" in reply.error.reason
    assert "GEN_A" not in reply.error.reason
    assert "GEN_A_000009" in capfd.readouterr().err


def asked(grid, order):
    """Return the reply to one order."""
    (sent,) = grid.push_messages([Message(to_records(order), NAMES.index(order.site), "train.train")])
    return grid.pull_messages([sent])[0]


@pytest.mark.parametrize("secure", [False, True])
def test_inspect_lists_each_field_of_both_messages_and_no_other(prrfl, secure):
    code, out, err = prrfl("inspect", "--wire", *(["--secure"] if secure else []))
    assert (code, err) == (0, "")
    items = measure({}, secure)
    fields = {f.name for kind in (Order, Answer) for f in dataclasses.fields(kind)}
    assert {item.name.partition(".")[0] for item in items} <= fields
    sent = {(i.step, i.name): i.bytes for i in items if i.to == "server" and i.name.startswith("share.")}
    plain = 579_857  # numbers in the deputy's low-band amplitudes in the first round, 0.244 of the weights
    if secure:
        assert {key: size for key, size in sent.items() if "layout" not in key[1]} == {
            ("share", "share.int64"): 8 * (plain + 1)
        }
    else:
        assert sent["train", "share.float32"] == 4 * plain
    for item in items:
        assert item.name in out
        assert f"{item.bytes:,}" in out or item.name == "settings"  # of which none were given here


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nan": True}, "holds NaN or infinity"),
        ({"shape": True}, "has shape"),
        ({"dtype": True}, "is torch.float64"),
        ({"round": 7}, "is for round 8"),
        ({"experiment": "another"}, "of experiment another"),
        ({"site": "clientA"}, "answers as site 'clientA'"),
        ({"weight": 5.0}, "the weight is 5.0; expected 1.0"),
        ({"records": "no json"}, "its records cannot be parsed"),
        (
            {"records": '{"round": 0, "client": "x", "reason": "", "kind": "absence"}'},
            "do not match the site",
        ),
        ({"records": ""}, "do not match the site"),
        ({"records": " " * 10**6}, "characters; expected"),
    ],
)
def test_a_bad_share_is_refused_by_name_and_the_others_go_on(data, tmp_path, change, reason):
    def spoil(order, reply):
        if order.site != "clientB" or order.step != "train" or order.round != 0:
            return reply
        answer = from_records(Answer, reply.content)
        share = {key: tensor.clone() for key, tensor in answer.share.items()}
        first = next(iter(share))
        if "nan" in change:
            share[first].view(-1)[0] = float("nan")
        elif "shape" in change:
            share[first] = share[first][..., :-1]
        elif "dtype" in change:
            share[first] = share[first].double()
        fields = {key: value for key, value in change.items() if key not in ("nan", "shape", "dtype")}
        return GridReply(replace(answer, share=share, **fields), reply)

    records = run(grid_of(data, tmp_path, spoil=spoil), tmp_path / "run", quorum=2)
    ((index, client, words),) = absences(records)
    assert (index, client) == (0, "clientB")
    assert reason in words
    shared = [set(r.bytes_up) for r in records if isinstance(r, ExchangeRecord)]
    assert shared == [{"clientA", "clientC"}, set(NAMES)]


def changed_records(order, reply, step, change):
    """Return a reply whose records, each as its JSON says, a function changes."""
    if (order.site, order.step) != ("clientB", step):
        return reply
    answer = from_records(Answer, reply.content)
    records = [change(json.loads(line)) for line in answer.records.splitlines()]
    return GridReply(replace(answer, records="".join(json.dumps(r) + "\n" for r in records if r)), reply)


def a_class_more(record):
    if record["kind"] == "score":
        scores = record["scores"]
        scores["recall"].append(None)
        scores["confusion"] = [[*row, 0] for row in scores["confusion"]] + [[0] * 4]
    return record


@pytest.mark.parametrize(
    ("step", "change", "reason"),
    [
        ("train", a_class_more, "of 3 classes"),
        ("receive", a_class_more, "of 3 classes"),
        ("train", lambda r: r | {"epoch": 10**9}, "do not match the site"),
        ("train", lambda r: r | ({"model": "<b>x"} if "model" in r else {}), "do not match the site"),
        ("train", lambda r: r if r["kind"] == "train" else None, "do not match the site"),
        (
            "train",
            lambda r: r | ({"metrics": {"<b>": 1.0}} if "metrics" in r else {}),
            "training metrics are invalid",
        ),
        (
            "train",
            lambda r: r | ({"metrics": {"stage": 9.0}} if "metrics" in r else {}),
            "training metrics are invalid",
        ),
        ("receive", lambda r: None, "do not match the site"),
        ("receive", lambda r: r | {"moment": "before"}, "do not match the site"),
    ],
)
def test_records_that_no_reader_could_use_are_refused(data, tmp_path, step, change, reason):
    grid = grid_of(data, tmp_path, spoil=lambda order, reply: changed_records(order, reply, step, change))
    records = run(grid, tmp_path / "run", quorum=2, rounds=1)
    ((_, client, words),) = absences(records)
    assert client == "clientB"
    assert reason in words
    assert len(read_records(tmp_path / "run" / "metrics.jsonl", classes=3)) == len(records)


def test_without_a_quorum_at_the_mean_the_run_ends_as_without_one_at_the_shares(data, tmp_path):
    def silent(order, reply):
        return None if order.step == "receive" else reply

    with pytest.raises(ParticipationError, match=r"round 1: 0 of 3 .* quorum is 2 \(clientA: no answer"):
        run(grid_of(data, tmp_path, spoil=silent), tmp_path / "run", quorum=2, deadline=5, rounds=1)
    run(grid_of(data, tmp_path), tmp_path / "run", quorum=2, deadline=5, rounds=1)


def test_what_is_lost_on_the_way_is_sent_again_as_often_as_it_takes(data, tmp_path):
    lost = []

    def lose(order, reply):
        if (order.site, order.step, order.round) == ("clientB", "train", 0) and len(lost) < 7:
            lost.append(order)
            return failure(reply.metadata.reply_to_message_id, "lost", (3, 4, 5)[len(lost) % 3])
        return reply

    assert not absences(run(grid_of(data, tmp_path, spoil=lose), tmp_path / "run", rounds=1))
    assert len(lost) == 7


@pytest.mark.parametrize("code", [1, 2, 8])
def test_a_process_that_fails_is_asked_three_times(data, tmp_path, code):
    def fail(order, reply):
        return (
            failure(reply.metadata.reply_to_message_id, "it died", code) if order.site == "clientB" else reply
        )

    grid = grid_of(data, tmp_path, spoil=fail)
    records = run(grid, tmp_path / "run", quorum=2, rounds=1)
    assert absences(records) == [(0, "clientB", "its process failed 3 times: it died")]
    assert len([o for o in grid.orders if o.site == "clientB"]) == 3


class GridReply:
    """A reply with another content."""

    def __init__(self, answer, reply):
        self.content, self.metadata = to_records(answer), reply.metadata

    def has_error(self):
        return False


def test_without_a_quorum_the_run_ends_and_says_who_was_there(data, tmp_path):
    grid = grid_of(data, tmp_path)
    grid.online["clientC"] = "away"
    with pytest.raises(ParticipationError, match=r"round 1: 2 of 3 .* quorum is 3 \(clientC: no answer"):
        run(grid, tmp_path / "run", deadline=0.5)


def test_a_site_that_never_comes_is_gone_on_without(data, tmp_path):
    grid = grid_of(data, tmp_path)
    grid.online["clientC"] = "away"
    records = run(grid, tmp_path / "run", deadline=0.5, quorum=2)
    assert absences(records) == [(k, "clientC", "no answer within 0.5 s") for k in (0, 1)]


def test_a_lost_reply_is_asked_for_again_and_no_round_is_trained_twice(data, tmp_path, undisturbed):
    lost = []

    def lose(order, reply):
        first = (order.site, order.step, order.round)
        if order.site == "clientB" and first not in lost:
            lost.append(first)
            return failure(reply.metadata.reply_to_message_id, "Node Unavailable", 5)
        return reply

    records = run(grid_of(data, tmp_path, spoil=lose), tmp_path / "run")
    assert len(lost) == 5  # two rounds of train and receive, and the best once
    assert not absences(records)
    assert same(networks(tmp_path), undisturbed[1])


def test_a_node_that_came_back_gets_its_order_again(data, tmp_path, undisturbed):
    def swallow(order, reply):
        if order.site == "clientB" and order.round == 1 and grid.online.get("clientB") != "again":
            grid.online["clientB"] = "again"
            return None
        return reply

    grid = grid_of(data, tmp_path, spoil=swallow)
    run(grid, tmp_path / "run")
    assert same(networks(tmp_path), undisturbed[1])


def die(grid, stop, order, reply):
    if len(grid.orders) == stop:
        raise KeyboardInterrupt
    return reply


def test_a_server_that_was_killed_goes_on_from_the_last_complete_round(data, tmp_path, undisturbed):
    for stop in (3, 5, 8, 10):  # orders in the training and the end of rounds 0 and 1
        home = tmp_path / str(stop)

        grid = grid_of(data, home)
        grid.spoil = partial(die, grid, stop)
        with pytest.raises(KeyboardInterrupt):
            run(grid, home / "run")
        run(grid_of(data, home), home / "run")
        assert same(networks(home), undisturbed[1]), stop
        records = read_records(home / "run" / "metrics.jsonl")
        assert len(records) == len(undisturbed[0])


def test_other_settings_under_the_same_folder_are_refused(data, tmp_path):
    run(grid_of(data, tmp_path), tmp_path / "run", rounds=1)
    with pytest.raises(ConfigError, match="was begun with settings"):
        run(grid_of(data, tmp_path), tmp_path / "run", rounds=3)


def test_a_site_far_ahead_of_the_server_is_not_led_back(data, tmp_path):
    run(grid_of(data, tmp_path), tmp_path / "run")
    done = json.loads((tmp_path / "run" / "federation.json").read_text())
    order = Order("train", done["experiment"], "clientA", 0, json.dumps(SETTINGS, sort_keys=True), "")
    home = tmp_path / "clientA"
    local = SiteSettings("clientA", data, home, "cpu", 1)
    with pytest.raises(Exception, match="is in round 2 of experiment"):
        carry_out(replace(order, version=version("prrfl")), local)
    with pytest.raises(OrderRefusedError, match="install the same"):
        carry_out(replace(order, version="0.0"), local)
    other = json.dumps({**SETTINGS, "rounds": 9}, sort_keys=True)
    with pytest.raises(OrderRefusedError, match=r"started experiment .* with rounds = 2"):
        carry_out(replace(order, version=version("prrfl"), settings=other), local)


def test_a_network_that_explodes_at_one_site_is_named(data, tmp_path):
    with pytest.raises(ParticipationError, match=r"0 of 3 sites .*clientB: site clientB.* gives NaN"):
        run(grid_of(data, tmp_path), tmp_path / "run", lr=1e30)


@pytest.mark.parametrize("method", sorted(set(ALGORITHMS) - {"centralised", "local"}))
def test_every_method_runs_over_sites_as_it_does_in_one_process(data, tmp_path, method):
    from prrfl.config import checked
    from prrfl.runs.run import train
    from prrfl.runs.setup import load_data

    records = run(grid_of(data, tmp_path, methods=method), tmp_path / "run", method=method)
    config = checked({**SETTINGS, "method": method, "data": data, "workers": 1, "threads": 1}, "here")
    there = list(train(config, load_data(config), tmp_path / "simulated"))
    assert [r for r in records if isinstance(r, ExchangeRecord)] == [
        r for r in there if isinstance(r, ExchangeRecord)
    ]
    for name, ours in networks(tmp_path).items():
        theirs = read_tensors(tmp_path / "simulated" / "models" / name / "last.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"method": "fedavg"}, "fedavg"),
        ({"aggregation": "mean"}, "prrfl-ablated"),
        ({"transfer": "off"}, "prrfl-ablated"),
    ],
)
def test_a_site_sends_nothing_by_a_method_that_it_did_not_agree_to(data, tmp_path, capfd, settings, asked):
    words = f"site clientA does not agree to method {asked}, only to prrfl"
    with pytest.raises(ParticipationError, match=f"0 of 3 sites .*clientA: {words}"):
        run(grid_of(data, tmp_path), tmp_path / "run", **settings)
    assert f"site clientA: {words}" in capfd.readouterr().err
    assert not list(tmp_path.glob("*/*/state"))
    run(grid_of(data, tmp_path, methods=f"ida, {asked}"), tmp_path / "agreed", rounds=1, **settings)


@pytest.mark.parametrize(
    ("settings", "secure", "words"),
    [
        ({"method": "centralised"}, False, "pools images"),
        ({"method": "local"}, False, "shares nothing"),
        ({"method": "ida"}, True, "every single share"),
        ({"data": "somewhere"}, False, "each site has its own"),
        ({"round": 3}, False, "did you mean 'rounds'"),
    ],
)
def test_what_cannot_be_federated_is_refused_at_the_start(tmp_path, settings, secure, words):
    with pytest.raises(ConfigError, match=words):
        federate(tmp_path / "run", settings, NAMES, secure=secure)
    assert not (tmp_path / "run").exists()


def test_flwr_run_alone_does_it_from_the_apps_run_config(data, tmp_path, undisturbed):
    app = tomllib.loads(resources.files("prrfl.flower").joinpath("app/pyproject.toml").read_text("utf-8"))
    config = app["tool"]["flwr"]["app"]["config"]
    (tmp_path / "training.toml").write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in SETTINGS.items())
    )
    config |= {
        "folder": str(tmp_path / "run"),
        "config": str(tmp_path / "training.toml"),
        "sites": ", ".join(NAMES),
    }
    grid = grid_of(data, tmp_path)
    server_app.app(grid, Context(0, 0, {}, RecordDict(), config))
    assert same(networks(tmp_path), undisturbed[1])
    server_app.app(grid, Context(0, 0, {}, RecordDict(), config))  # finished: nothing to do
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) == len(undisturbed[0])
    (tmp_path / "training.toml").write_text("lrr = 1\n")
    config["folder"] = str(tmp_path / "another")
    with pytest.raises(ConfigError, match="unknown key 'lrr'"):
        server_app.app(grid, Context(0, 0, {}, RecordDict(), config))


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


def test_a_site_that_drops_out_voids_the_sum_which_is_redone_without_it(data, certs, tmp_path):
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
    records = run(grid, tmp_path / "run", secure=True, quorum=3, deadline=5, names=names, rounds=1)
    assert absences(records) == [(0, "clientD", "no answer within 5 s")]
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
    assert all("the key of site clientB is not signed as the roster asks" in words for _, words in said)


def test_a_mask_is_never_put_on_a_second_share(data, certs, tmp_path):
    def end_after_the_second_sum(order, reply):
        if (order.step, order.round, order.site) == ("share", 1, "clientC"):
            raise KeyboardInterrupt
        return reply

    grid = grid_of(data, tmp_path, certs, spoil=end_after_the_second_sum)
    with pytest.raises(KeyboardInterrupt):
        run(grid, tmp_path / "run", secure=True)
    first, again = [o for o in grid.orders if o.site == "clientA" and o.step == "share"]
    own = certs / "clientA"
    local = SiteSettings(
        *("clientA", data, tmp_path / "clientA", "cpu", 1, False, own / "roster.txt", own / "sign.key")
    )
    # The same share comes again as it was, ...
    assert torch.equal(carry_out(again, local).share["masked"], carry_out(again, local).share["masked"])
    # ... and after another mean for the round before, there is another share.
    receive = next(o for o in grid.orders if o.site == "clientA" and o.step == "receive")
    carry_out(replace(receive, mean={key: 1.1 * t for key, t in receive.mean.items()}), local)
    carry_out(next(o for o in grid.orders if o.round == 1 and o.site == "clientA"), local)
    shouted = [key | {"key": key["key"].upper(), "more": "x"} for key in json.loads(again.cohort)]
    for cohort in (again.cohort, json.dumps(shouted)):
        with pytest.raises(OrderRefusedError, match="already sent another share of round 2"):
            carry_out(replace(again, cohort=cohort), local)
    assert first.round == 0


def test_a_share_goes_into_one_sum_a_round(data, certs, tmp_path):
    def lose(order, reply):
        return None if (order.step, order.site) == ("reveal", "clientC") else reply

    lost = grid_of(data, tmp_path, certs, spoil=lose)
    words = r"round 1: the masked sum of clientA, clientB, clientC was started and lacks clientC"
    with pytest.raises(ParticipationError, match=words):
        run(lost, tmp_path / "run", secure=True, deadline=5, rounds=1)
    own = certs / "clientA"
    local = SiteSettings(
        *("clientA", data, tmp_path / "clientA", "cpu", 1, False, own / "roster.txt", own / "sign.key")
    )
    reveal = next(o for o in lost.orders if o.step == "reveal" and o.site == "clientA")
    assert carry_out(reveal, local).seed == carry_out(reveal, local).seed
    # The same site under another key, as after its folder was lost, makes another cohort.
    shutil.rmtree(tmp_path / "clientB")
    key = carry_out_at(lost, "clientB", "train")
    cohort = [one for one in json.loads(reveal.cohort) if one["site"] != "clientB"] + [json.loads(key)]
    with pytest.raises(OrderRefusedError, match=r"to the sum of other sites; .* a round has one sum"):
        carry_out(replace(reveal, cohort=json.dumps(cohort)), local)


def test_a_sum_that_lacked_a_mask_is_gone_on_with_by_the_same_sites(certs, tmp_path):
    data, names = write_layout(tmp_path / "four", sites=4), [*NAMES, "clientD"]
    make_certs(tmp_path / "keys", names, ["localhost"])
    run_of = partial(run, folder=tmp_path / "run", secure=True, quorum=3, deadline=5, names=names, rounds=1)

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


def carry_out_at(grid, name, step):
    """Carry out the first order of a step at a site again; return the key that it answers with."""
    order = next(o for o in grid.orders if o.step == step and o.site == name)
    return carry_out(order, client_app.settings_of(grid.configs[name])).key


def test_a_site_with_a_roster_shares_under_masks_alone(data, certs, tmp_path):
    with pytest.raises(ParticipationError, match="0 of 3"):
        run(grid_of(data, tmp_path, certs), tmp_path / "run")
    assert "only under secure summation" in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(ParticipationError, match="0 of 3"):
        run(grid_of(data, tmp_path), tmp_path / "other", secure=True)
    assert "has no roster" in (tmp_path / "other" / "log.txt").read_text()


def test_a_hospital_uses_its_own_network(data, tmp_path, prrfl):
    run(grid_of(data, tmp_path), tmp_path / "run")
    (own,) = (path.parent for path in tmp_path.glob("clientA/*/models"))
    images = data / "data/clientA"
    code, out, err = prrfl("predict", own, images, "--out", tmp_path / "p.csv", "--calibrate")
    assert code == 0, err
    assert "images by the best network of clientA, temperature" in " ".join(out.split())
    code, out, _ = prrfl("evaluate", own, "--json", tmp_path / "s.json")
    assert code == 0
    assert list(json.loads((tmp_path / "s.json").read_text())) == ["clientA"]
    assert prrfl("export", own, "--out", tmp_path / "ex")[0] == 0
    assert "for site clientA" in (tmp_path / "ex/model_card.md").read_text()
    code, _, err = prrfl("resume", own)
    assert code == 2
    assert "is a site's folder of a run over real sites" in err
    # At the server there is no network to use.
    code, _, err = prrfl("predict", tmp_path / "run", images, "--out", tmp_path / "q.csv")
    assert code == 2
    assert "keeps no network" in err
