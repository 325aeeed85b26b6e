"""Which answers enter a round, and when a round has too few sites."""

import json
from dataclasses import replace

import pytest

from prrfl.errors import ParticipationError
from prrfl.flower.messages import Answer, from_records
from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_records
from prrfl.types import ExchangeRecord
from tests.flower.grid import NAMES, SETTINGS, GridReply, absences, grid_of, run


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
def test_an_invalid_answer_is_refused_by_name_and_the_others_continue(data, tmp_path, change, reason):
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


def test_without_a_quorum_at_the_mean_the_run_stops_as_it_does_at_the_shares(data, tmp_path):
    def silent(order, reply):
        return None if order.step == "receive" else reply

    with pytest.raises(ParticipationError, match=r"round 1: 0 of 3 .* quorum is 2 \(clientA: no answer"):
        run(grid_of(data, tmp_path, spoil=silent), tmp_path / "run", quorum=2, deadline=0.5, rounds=1)
    run(grid_of(data, tmp_path), tmp_path / "run", quorum=2, deadline=0.5, rounds=1)


def test_without_a_quorum_the_run_stops_and_says_who_was_missing(data, tmp_path):
    grid = grid_of(data, tmp_path)
    grid.online["clientC"] = "away"
    with pytest.raises(ParticipationError, match=r"round 1: 2 of 3 .* quorum is 3 \(clientC: no answer"):
        run(grid, tmp_path / "run", deadline=0.5)


def test_the_run_continues_without_a_site_that_never_connects(data, tmp_path):
    grid = grid_of(data, tmp_path)
    grid.online["clientC"] = "away"
    records = run(grid, tmp_path / "run", deadline=0.5, quorum=2)
    assert absences(records) == [(k, "clientC", "no answer within 0.5 s") for k in (0, 1)]


def test_the_exit_code_and_the_report_tell_of_a_site_that_was_absent(data, certs, tmp_path, prrfl):
    grid, folder = grid_of(data, tmp_path), tmp_path / "run"
    grid.online["clientC"] = "away"
    run(grid, folder, deadline=0.5, quorum=2, rounds=1)
    assert RunFolder(folder).summary()["absent"] == {"clientC": [0]}
    settings = tmp_path / "federation.toml"
    given = {**SETTINGS, "rounds": 1}
    settings.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
    terms = ("--sites", ",".join(NAMES), "--quorum", 2, "--deadline", 0.5, "--certs", certs.parent / "server")
    code, out, err = prrfl("server", "--config", settings, *terms, "--out", folder)
    assert code == 3, err
    assert "round 1 continued without clientC: no answer within 0.5 s" in out
    assert prrfl("report", folder)[0] == 0
    assert "Without clientC in round(s) 1." in (folder / "report.html").read_text("utf-8")


def test_scores_and_network_of_a_site_that_left_name_the_round_that_they_are_of(data, tmp_path, prrfl):
    def leaves(order, reply):
        if (order.site, order.step) == ("clientC", "receive"):
            grid.online["clientC"] = "away"
        return reply

    grid = grid_of(data, tmp_path, spoil=leaves)
    run(grid, tmp_path / "run", deadline=0.5, quorum=2, rounds=3)
    last = RunFolder(tmp_path / "run").summary()["last"]
    assert [last["sites"][name]["round"] for name in NAMES] == [2, 2, 0]
    code, out, err = prrfl("report", tmp_path / "run")
    assert code == 0, err
    assert "clientC was absent at the end: its last scores are of round 1 of 3.\n" in out
    assert "The mean of last scores mixes rounds 1, 3.\n" in out
    assert "clientA was absent" not in out
    code, _, err = prrfl("report", tmp_path / "run", "--data", data)
    assert (code, err.count("\n")) == (2, 1)
    assert "--data has no effect: the images of" in err
    (own,) = (path.parent for path in tmp_path.glob("clientC/*/models"))
    code, out, err = prrfl("evaluate", own, "--network", "last")
    assert code == 0, err
    assert "Scored: the last network of clientC, of round 1 of 3.\n" in out
    (own,) = (path.parent for path in tmp_path.glob("clientA/*/models"))
    assert "Scored:" not in prrfl("evaluate", own, "--network", "last")[1]
