"""What a site does and refuses to do, and what it tells the server of its errors."""

import json
from dataclasses import replace
from importlib.metadata import version

import pytest
from flwr.app import Message

from prrfl.errors import ParticipationError
from prrfl.flower.messages import Answer, Order, OrderRefusedError, from_records, to_records
from prrfl.flower.site import app as client_app
from prrfl.flower.site.orders import SiteSettings, carry_out
from tests.flower.grid import NAMES, SETTINGS, grid_of, run
from tests.sites_on_disk import write_layout


def a_missing_image(folder):
    next(folder.glob("data/clientA/*/clientA_train_3.png")).unlink()
    return "1 of 9 images", "clientA_train_3"


def a_bad_label(folder):
    table = folder / "csv_folder/clientA/train_clientA.csv"
    table.write_text(table.read_text().replace(",1\n", ",SMITH-JOHN-1962\n"))
    return "SMITH-JOHN-1962", "train_clientA.csv"


@pytest.mark.parametrize("spoil", [a_missing_image, a_bad_label])
@pytest.mark.parametrize("secure", [False, True])
def test_the_reason_why_data_cannot_be_used_stays_at_the_site(certs, tmp_path, capfd, spoil, secure):
    folder = write_layout(tmp_path / "sites", sites=1)
    secrets = *spoil(folder), str(tmp_path)
    grid = grid_of(folder, tmp_path, certs if secure else None)
    order = Order("train", "e", "clientA", 0, json.dumps(SETTINGS), version("prrfl"), secure)
    reply = asked(grid, order)
    assert not any(secret in str(reply.content) for secret in secrets)
    assert "site clientA: its data cannot be used; the site's operator finds the reason" in str(reply.content)
    said = capfd.readouterr().err
    assert all(secret in said for secret in secrets)


def test_the_message_of_an_unexpected_error_stays_at_the_site(data, tmp_path, capfd, monkeypatch):
    def fail(*_):
        raise RuntimeError("GEN_A_000009 is in the way")

    monkeypatch.setattr(client_app, "carry_out", fail)
    order = Order("train", "e", "clientA", 0, json.dumps(SETTINGS), version("prrfl"))
    reply = asked(grid_of(data, tmp_path), order)
    assert "site clientA: its process failed" in reply.error.reason
    assert "GEN_A" not in reply.error.reason
    assert "GEN_A_000009" in capfd.readouterr().err


def train_by_a_part(data, folder, monkeypatch, line):
    """Return the name of a module, and a site's reply to an order to train by a method that runs a line."""
    module = f"acme{len(line)}"
    (folder / f"{module}.py").write_text(
        "from prrfl.algorithms import FedAvg\n\nclass Fails(FedAvg):\n"
        f"    def train(self, client, site, ctx):\n        {line}\n"
    )
    monkeypatch.syspath_prepend(folder)
    grid = grid_of(data, folder)
    grid.configs["clientA"] = {**grid.configs["clientA"], "methods": f"{module}:Fails"}
    settings = json.dumps({**SETTINGS, "method": f"{module}:Fails"}, sort_keys=True)
    return module, asked(grid, Order("train", "e", "clientA", 0, settings, version("prrfl")))


@pytest.mark.parametrize("how", ["raise ValueError", "import sys; sys.exit"])
def test_a_part_that_raises_at_a_site_is_named_there(data, tmp_path, monkeypatch, capfd, how):
    module, reply = train_by_a_part(data, tmp_path, monkeypatch, f"{how}('GEN_A is in the way')")
    assert "site clientA: its process failed" in from_records(Answer, reply.content).error
    said = capfd.readouterr().err
    error = "SystemExit" if "exit" in how else "ValueError"
    place = f"{tmp_path}/{module}.py, line 5, in train: {error}: GEN_A is in the way"
    assert f"site clientA: method {module}:Fails: {place}\n" in said


def test_a_site_that_flower_stops_while_a_part_trains_sends_no_answer(data, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        train_by_a_part(data, tmp_path, monkeypatch, "exec('raise SystemExit', {'__name__': 'flwr.exit'})")


def asked(grid, order):
    """Return the reply to one order."""
    (sent,) = grid.push_messages([Message(to_records(order), NAMES.index(order.site), "train.train")])
    return grid.pull_messages([sent])[0]


def test_a_site_says_when_it_trains_sends_waits_and_is_done(data, tmp_path, caplog):
    caplog.set_level("INFO", "prrfl")
    run(grid_of(data, tmp_path), tmp_path / "run", rounds=1)
    (networks,) = (tmp_path / "clientA").glob("*/models")
    assert [said for said in caplog.messages if said.startswith("site clientA: r")] == [
        "site clientA: round 1/1: trains",
        "site clientA: round 1/1, epoch 1/1 done",
        "site clientA: round 1/1: sends its share, and waits for the mean of all",
        "site clientA: round 1/1: took the mean",
    ]
    assert f"site clientA: the run is done; its networks are in {networks.parent}" in caplog.messages


def test_a_site_refuses_a_server_that_is_far_behind_it(data, tmp_path):
    run(grid_of(data, tmp_path), tmp_path / "run")
    done = json.loads((tmp_path / "run" / "federation.json").read_text())
    order = Order("train", done["experiment"], "clientA", 0, json.dumps(SETTINGS, sort_keys=True), "")
    local = SiteSettings("clientA", data, tmp_path / "clientA", "cpu", 1)
    with pytest.raises(Exception, match="is in round 2 of experiment"):
        carry_out(replace(order, version=version("prrfl")), local)
    with pytest.raises(OrderRefusedError, match="install the same"):
        carry_out(replace(order, version="0.0"), local)
    other = json.dumps({**SETTINGS, "rounds": 9}, sort_keys=True)
    with pytest.raises(OrderRefusedError, match=r"started experiment .* with rounds = 2"):
        carry_out(replace(order, version=version("prrfl"), settings=other), local)


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"method": "fedavg"}, "fedavg"),
        ({"aggregation": "mean"}, "prrfl-ablated"),
        ({"transfer": "off"}, "prrfl-ablated"),
    ],
)
def test_a_site_sends_nothing_by_a_method_that_it_did_not_agree_to(data, tmp_path, capfd, settings, asked):
    words = f"site clientA does not agree to {asked}, only to prrfl"
    with pytest.raises(ParticipationError, match=f"0 of 3 sites .*clientA: {words}"):
        run(grid_of(data, tmp_path), tmp_path / "run", **settings)
    assert f"site clientA: {words}" in capfd.readouterr().err
    assert not list(tmp_path.glob("*/*/state"))
    run(grid_of(data, tmp_path, methods=f"ida, {asked}"), tmp_path / "agreed", rounds=1, **settings)


def test_a_site_with_a_roster_shares_only_under_masks(data, certs, tmp_path):
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
    assert "is a site's folder of a federation" in err
    # At the server there is no network to use.
    code, _, err = prrfl("predict", tmp_path / "run", images, "--out", tmp_path / "q.csv")
    assert code == 2
    assert "holds no network" in err
