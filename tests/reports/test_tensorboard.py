"""TensorBoard events hold what the records hold."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prrfl.config import load_config
from prrfl.runs import run, setup
from prrfl.types import ScoreRecord
from tests.sites_on_disk import write_layout


def test_events_hold_the_scores(tmp_path, undrawn):
    data = write_layout(tmp_path / "data")
    flags = {"data": data, "image_size": 32, "rounds": 2, "epochs": 2, "batch": 8, "tensorboard": True}
    flags |= {"network": "tiny", "workers": 1}
    settings = load_config(None, flags)
    records = list(run.train(settings, setup.load_data(settings), tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    expected = [
        (r.round * 2 + r.epoch + 1, r.scores.macro_f1)
        for r in records
        if isinstance(r, ScoreRecord) and (r.client, r.split, r.moment) == ("clientB", "test", "epoch")
    ]
    found = events.Scalars("clientB/test, personalised, epoch/macro_f1")
    assert [(e.step, round(e.value, 5)) for e in found] == [(step, round(f1, 5)) for step, f1 in expected]
    assert [e.step for e in events.Scalars("bytes/up")] == [1, 2]
