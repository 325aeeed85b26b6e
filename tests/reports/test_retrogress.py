"""The summary and the curve of retrogress, from records made by hand."""

from math import isnan

import pytest
from PIL import Image

from prrfl.reports.retrogress import caption, curve, draw_retrogress
from prrfl.reports.summary import best_round, summarise
from prrfl.types import ExchangeRecord, ScoreRecord, Scores


def scores(f1, auc=0.8):
    return Scores(10, 1.0, f1, auc, f1, (f1, f1, None), ((1, 0, 0), (0, 1, 0), (0, 0, 0)))


def history(clients, drop=0.25):
    records = []
    for t in range(3):
        for k, client in enumerate(clients):
            f1 = 0.4 + 0.1 * t + 0.01 * k
            records += [
                ScoreRecord(t, 1, client, "test", "model", True, "epoch", scores(f1)),
                ScoreRecord(t, 1, client, "test", "model", True, "before", scores(f1)),
                ScoreRecord(t, 1, client, "test", "model", True, "after", scores(f1 - drop, None)),
                ScoreRecord(t, 1, client, "valid", "model", True, "after", scores(0.9 - 0.2 * t)),
            ]
        records.append(ExchangeRecord(t, dict.fromkeys(clients, 100), 50))
    return records


def test_the_summary_by_hand():
    summary = summarise(history(["a", "b"]), first_candidate=1)
    assert summary["rounds"] == 3
    assert summary["best_round"] == 1  # the best on validation among the candidates, not of all
    assert abs(summary["retrogress"]["model"]["macro_f1"] - 0.25) < 1e-12
    assert "auc" not in summary["retrogress"]["model"]  # none after the mean was received
    assert abs(summary["last"]["mean"]["macro_f1"] - (0.6 + 0.005 - 0.25)) < 1e-12
    assert summary["last"]["mean"]["auc"] is None
    assert (summary["bytes_up_per_site_and_round"], summary["bytes_down_per_site_and_round"]) == (100, 50)


def test_last_scores_of_a_site_that_was_absent_at_the_end_name_their_round():
    records = [r for r in history(["a", "b"]) if getattr(r, "client", "") != "b" or r.round == 0]
    last = summarise(records)["last"]
    assert {site: figures["round"] for site, figures in last["sites"].items()} == {"a": 2, "b": 0}
    assert last["sites"]["b"]["macro_f1"] == pytest.approx(0.41 - 0.25)
    assert last["mean"]["macro_f1"] == pytest.approx((0.6 + 0.41) / 2 - 0.25)
    assert last["mean"]["rounds"] == [0, 2]
    # A site that trained in the last round, but did not get its mean, has the network of the round before.
    records = [r for r in history(["a", "b"]) if getattr(r, "client", "") != "b" or r.round < 2]
    records.insert(-1, ScoreRecord(2, 1, "b", "test", "model", True, "before", scores(0.9)))
    assert summarise(records)["last"]["sites"]["b"]["round"] == 1
    assert summarise(history(["a", "b"]))["last"]["mean"]["rounds"] == [2]


def test_a_round_without_a_weak_site_is_not_the_best_for_that():
    found = history(["a", "b"])
    for t in range(3):
        found.append(ScoreRecord(t, 1, "weak", "valid", "model", True, "after", scores(0.1)))
    assert [best_round(found, first) for first in (0, 1, 2, 9)] == [0, 1, 2, 2]
    without = [r for r in found if getattr(r, "client", "") != "weak" or r.round != 1]
    assert best_round(without, 1) == 2  # though the mean of round 1 is the highest now


def test_the_curve_of_many_sites_takes_more_rows(tmp_path):
    heights = []
    for count in (2, 9):
        path = tmp_path / f"{count}.png"
        draw_retrogress(history([f"s{k}" for k in range(count)]), path, epochs=2)
        with Image.open(path) as picture:
            heights.append(picture.height)
            assert len(picture.convert("RGB").getcolors(1_000_000)) > 20
    assert heights[1] > 1.8 * heights[0]
    assert {p.name for p in tmp_path.iterdir()} == {"2.png", "9.png"}


def test_a_network_scored_only_at_communications_is_strokes_with_gaps():
    followed = curve(history(["a"]), "model", "a", "macro_f1", 2)
    assert [x for x, _ in followed] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert not any(isnan(y) for _, y in followed)
    records = [r for r in history(["a"]) if getattr(r, "moment", "") != "epoch"]
    strokes = curve(records, "model", "a", "macro_f1", 2)
    assert [x for x, _ in strokes] == [1, 1, 2, 2, 2, 3, 3, 3]
    values = [round(y, 6) for _, y in strokes if not isnan(y)]
    assert values == [40, 15, 50, 25, 60, 35]
    assert [k for k, (_, y) in enumerate(strokes) if isnan(y)] == [2, 5]
    assert caption(history(["a"])) == ""
    assert caption(records).startswith("model: scored only before and after")
