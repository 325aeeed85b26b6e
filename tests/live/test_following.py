"""What is shown of a folder: while a run goes on, after it was killed, when it is resumed."""

import json
import time

import pytest

from prrfl.errors import ConfigError
from prrfl.live.following import follow
from prrfl.runs.folder import RunFolder
from prrfl.runs.position import read_position
from tests.live.conftest import until


def listing(folder):
    """Return each file's content and time of change, but for the one that says where the run is."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and "position.json" not in path.name
    }


def test_watching_neither_locks_nor_writes(going):
    folder, records = going
    until(records, "exchange")
    before = listing(folder)
    with pytest.raises(ConfigError, match="another process is using"), RunFolder(folder).locked():
        pass
    state = follow(folder).state()
    assert state["status"] == "running"
    assert state["says"] == "round 2 of 3"
    assert listing(folder) == before


def test_vertical_steps_are_communications(going):
    folder, records = going
    for _ in records:
        pass
    followed = follow(folder)
    followed.state()
    mean, *_ = followed.curves()["panels"]
    test, validation = mean["lines"]
    # Two epochs and the scores before and after the mean, three times.
    assert [x for x, _ in test["points"]] == [0.5, 1, 1, 1, 1.5, 2, 2, 2, 2.5, 3, 3, 3]
    assert [x for x, _ in validation["points"]] == [1, 2, 3]
    last = RunFolder(folder).summary()["last"]["mean"]["macro_f1"]
    assert test["points"][-1][1] == round(100 * last, 2)


def test_a_killed_run_says_how_to_continue(going):
    folder, records = going
    until(records, "exchange")
    position = json.loads((folder / "position.json").read_text())
    records.close()
    assert not (folder / "position.json").exists()
    (folder / "position.json").write_text(json.dumps({**position, "written": time.time() - 3600}))
    state = follow(folder).state()
    assert state["status"] == "stopped"
    assert state["says"].startswith(
        "no process works on it; 1 of 3 rounds are complete; to continue: `prrfl res"
    )
    assert state["seconds_left"] is None


def test_a_damaged_position_is_no_position(tmp_path):
    for text in (
        "",
        "[]",
        '{"round": -1, "done": 0.5}',
        '{"round": 1, "done": 2}',
        '{"round": 1, "done": NaN}',
    ):
        (tmp_path / "position.json").write_text(text)
        assert read_position(tmp_path) is None


def test_a_folder_that_is_removed_while_it_is_watched_is_no_end(going):
    folder, records = going
    until(records, "exchange")
    followed = follow(folder)
    followed.state()
    records.close()
    folder.rename(folder.with_name("elsewhere"))
    assert followed.state()["status"] == "stopped"


def test_records_that_were_cut_off_are_read_again(going):
    folder, records = going
    for _ in range(2):
        until(records, "exchange")
    followed = follow(folder)
    followed.state()
    two = followed.drawn
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    first = next(k for k, line in enumerate(lines) if b'"exchange"' in line) + 1
    path.write_bytes(b"".join(lines[:first]))
    followed.state()
    assert followed.drawn == two / 2
    path.write_bytes(b"".join(lines))
    followed.state()
    assert followed.drawn == two


def test_a_comparison_has_a_line_for_each_method(prrfl, forked, undrawn, data, tmp_path):
    small = [
        "--image-size",
        32,
        "--rounds",
        2,
        "--epochs",
        1,
        "--batch",
        8,
        "--network",
        "tiny",
        "--seeds",
        "0,1",
    ]
    folder = tmp_path / "c"
    code, out, err = prrfl("compare", "--methods", "fedavg,local", "--data", data, *small, "--out", folder)
    assert code == 0, err
    assert f"Follow it in a browser: prrfl watch {folder}\n" in out
    followed = follow(folder)
    state = followed.state()
    assert (state["status"], state["says"]) == ("finished", "4 of 4 runs finished")
    test, validation, *sites = followed.curves()["panels"]
    assert [panel["title"] for panel in sites] == ["test, clientA", "test, clientB"]
    for panel in (test, validation, *sites):
        assert [line["name"] for line in panel["lines"]] == ["fedavg", "local"]
    of_seeds = [
        RunFolder(folder / f"runs/fedavg-seed{k}").summary()["last"]["mean"]["macro_f1"] for k in (0, 1)
    ]
    assert test["lines"][0]["points"][-1] == [2, round(50 * sum(of_seeds), 2)]
    assert [row["name"] for row in state["rows"]] == [
        f"{m}-seed{k}" for m in ("fedavg", "local") for k in (0, 1)
    ]
