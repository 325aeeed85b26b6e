"""What a command shows while it works, and what it says can be done afterwards."""

import re
import shlex
from importlib.util import find_spec

import pytest

from prrfl.cli.screen import PositionProgress, Shown, position_text, time_left
from prrfl.config import TrainConfig
from prrfl.runs.position import Position, SitePosition
from tests.sites_on_disk import write_layout

SMALL = ["--image-size", 32, "--rounds", 1, "--epochs", 1, "--batch", 8, "--network", "tiny", "--workers", 1]


def next_commands(out):
    """Return the commands that an output ends with, as a shell reads them."""
    lines = out.rpartition("Next:\n")[2].splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def test_what_a_run_says_to_do_next_works_as_printed(prrfl, undrawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_layout(tmp_path / "sites")
    code, out, err = prrfl("train", "--data", data, *SMALL, "--out", "it's a run")
    assert code == 0, err
    watch = re.search(r"Follow it in a browser: (.*)", out)[1]
    assert shlex.split(watch) == ["prrfl", "watch", "it's a run"]
    commands = next_commands(out)
    assert [words[1] for words in commands] == ["report", "evaluate", "export"]
    for words in commands:
        if words[1] == "export" and find_spec("onnxruntime") is None:
            continue
        code, _, err = prrfl(*words[1:])
        assert code == 0, err


def test_the_bar_moves_whenever_it_is_drawn():
    parts = iter([0.25, 0.5])
    bar = PositionProgress(lambda: Shown("round 1/2", next(parts), "left 0:00:10"))
    for part in (0.25, 0.5):
        bar.get_renderables()
        assert bar.tasks[0].completed == part
    assert (bar.tasks[0].description, bar.tasks[0].fields["left"]) == ("round 1/2", "left 0:00:10")


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ({"A": SitePosition("waiting", 0, 0, 20)}, "round 2/5"),
        ({"A": SitePosition("training", 1, 16, 20)}, "round 2/5 A epoch 2/3 batch 2/3"),
        (
            {"A": SitePosition("training", 1, 8, 20), "B": SitePosition("training", 0, 8, 17)},
            "round 2/5 B epoch 1/3 batch 1/2",
        ),
        ({"A": SitePosition("trained", 3, 0, 20)}, "round 2/5"),
    ],
)
def test_of_sites_that_train_together_the_last_is_named(sites, expected):
    settings = TrainConfig(rounds=5, epochs=3, batch=8)
    assert position_text(Position(1, 0.3, sites), settings) == expected


def test_time_left():
    assert time_left(None) == ""
    assert time_left(3723.4) == "left 1:02:03"
