"""Where a run is: position_of at each step, in whatever process, and written beside the run."""

import logging
from dataclasses import replace
from functools import partial

import pytest

from prrfl import PRRFL, InProcess
from prrfl.config import TrainConfig
from prrfl.engine import rounds_from
from prrfl.engine.workers import Workers
from prrfl.runs import position
from prrfl.runs.folder import RunFolder
from prrfl.runs.position import Position, SitePosition, position_of, reporting, seconds_left
from prrfl.testing.contract import moment, recipe_of
from prrfl.training import ImageCounter
from tests.sites import tiny_sites

SIZES = {"s0": 21, "s1": 21, "s2": 21}


def test_every_batch_is_counted_in_each_process():
    recipe = replace(recipe_of(PRRFL()), counter=ImageCounter(SIZES), batch=8)
    start = moment(recipe, 2, seed=3)
    with Workers(partial(InProcess, PRRFL(), recipe=recipe), tiny_sites(), 2) as engine:
        for record in rounds_from(start, PRRFL(), engine):
            if record.kind == "exchange":
                trained = (record.round + 1) * start.epochs * 21
                assert recipe.counter.read() == dict.fromkeys(SIZES, trained)


def test_counting_goes_batch_by_batch():
    counter = ImageCounter(SIZES)
    seen = []
    counter.note = lambda site, images: seen.append((site, images))
    recipe = replace(recipe_of(PRRFL()), counter=counter, batch=8)
    start = replace(moment(recipe, 1, seed=3), epochs=2)
    list(rounds_from(start, PRRFL(), InProcess(PRRFL(), tiny_sites(1), recipe)))
    assert seen == [("s0", images) for images in (8, 16, 21, 29, 37, 42)]


@pytest.mark.parametrize(
    ("images", "index", "expected", "done"),
    [
        (0, 0, SitePosition("waiting", 0, 0, 10), 0),
        (13, 0, SitePosition("training", 1, 3, 10), 13 / 40),
        (20, 0, SitePosition("trained", 2, 0, 10), 0.5),
        (20, 1, SitePosition("waiting", 0, 0, 10), 0.5),
        (0, 1, SitePosition("waiting", 0, 0, 10), 0.5),  # resumed, or absent before
        (25, 1, SitePosition("training", 0, 5, 10), 25 / 40),
        (25, 0, SitePosition("trained", 2, 0, 10), 0.5),  # its round is not committed yet
        (40, 2, SitePosition("trained", 2, 0, 10), 1),
    ],
)
def test_a_count_tells_round_epoch_and_image(images, index, expected, done):
    counter = ImageCounter({"A": 10})
    counter.note("A", images)
    counter.note("elsewhere", 3)
    found = position_of(counter, index, TrainConfig(rounds=2, epochs=2))
    assert found.done == done
    if index < 2:
        assert found.sites == {"A": expected}


def test_time_left_is_that_of_the_mean_speed_since_the_start():
    assert seconds_left(60, 0.25, 0.5) == 120
    assert seconds_left(60, 0.5, 0.5) is None
    assert seconds_left(60, 0, 1) == 0


def test_a_position_is_there_while_a_process_works_only(tmp_path):
    with reporting(RunFolder(tmp_path), lambda: Position(3, 0.5)):
        while (found := position.read_position(tmp_path)) is None:
            pass
        assert (found.round, found.done, found.is_current) == (3, 0.5, True)
    assert list(tmp_path.iterdir()) == []


def test_a_position_that_cannot_be_written_stops_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(position, "WRITE_SECONDS", 0.001)
    (tmp_path / "position.json").mkdir()
    with caplog.at_level(logging.WARNING, "prrfl"), reporting(RunFolder(tmp_path), lambda: Position(0, 0.5)):
        while not caplog.messages:
            pass
    (line,) = caplog.messages
    assert line == f"{tmp_path}/position.json cannot be written: Is a directory; the run continues"
    assert [path.name for path in tmp_path.iterdir()] == ["position.json"]
