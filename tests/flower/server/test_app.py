"""A whole run at the server: its results, and how it starts and resumes."""

import json
import tomllib
from functools import partial
from importlib import resources

import pytest
import torch
from flwr.app import Context, RecordDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prrfl.algorithms import ALGORITHMS
from prrfl.config import checked
from prrfl.errors import ConfigError, ParticipationError
from prrfl.flower.consent import METHODS
from prrfl.flower.federation import federate
from prrfl.flower.server import app as server_app
from prrfl.runs.run import train
from prrfl.runs.setup import load_data
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from prrfl.types import ExchangeRecord
from tests.flower.grid import NAMES, SETTINGS, grid_of, networks, run, same
from tests.sites_on_disk import write_layout


def die(grid, stop, order, reply):
    if len(grid.orders) == stop:
        raise KeyboardInterrupt
    return reply


def test_a_server_that_was_killed_resumes_after_the_last_complete_round(data, tmp_path, undisturbed):
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


def test_the_server_tracks_the_run_and_the_sites_do_not(data, tmp_path):
    run(grid_of(data, tmp_path), tmp_path / "run", rounds=1, track="tensorboard")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    for site in NAMES:
        assert [e.step for e in events.Scalars(f"{site}/test/deputy/drop/macro_f1")] == [1]
        assert list((tmp_path / site).glob("*/models"))
    assert [path.parent.name for path in tmp_path.rglob("tensorboard")] == ["run"]


def test_other_settings_under_the_same_folder_are_refused(data, tmp_path):
    run(grid_of(data, tmp_path), tmp_path / "run", rounds=1)
    with pytest.raises(ConfigError, match="was started with settings"):
        run(grid_of(data, tmp_path), tmp_path / "run", rounds=3)


def test_a_network_that_explodes_at_one_site_is_named(data, tmp_path):
    with pytest.raises(ParticipationError, match=r"0 of 3 sites .*clientB: site clientB.* gives NaN"):
        run(grid_of(data, tmp_path), tmp_path / "run", lr=1e30)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("two sites"))


# The follow-up is tested in test_class_counts.py: in one process, it exchanges prototypes more often.
@pytest.mark.parametrize("method", [m for m in METHODS if m in ALGORITHMS and m != "prrfl-imbalance"])
def test_every_method_runs_over_sites_as_it_does_in_one_process(two, tmp_path, method):
    names = NAMES[:2]
    grid = grid_of(two, tmp_path, methods=method, names=names)
    records = run(grid, tmp_path / "run", names=names, method=method)
    config = checked({**SETTINGS, "method": method, "data": two, "workers": 1, "threads": 1}, "here")
    there = list(train(config, load_data(config), tmp_path / "simulated"))
    assert [r for r in records if isinstance(r, ExchangeRecord)] == [
        r for r in there if isinstance(r, ExchangeRecord)
    ]
    for name, ours in networks(tmp_path, names=names).items():
        theirs = read_tensors(tmp_path / "simulated" / "models" / name / "last.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("settings", "secure", "words"),
    [
        ({"method": "centralised"}, False, "pools the images"),
        ({"method": "local"}, False, "shares nothing"),
        ({"method": "ida"}, True, "every single share"),
        ({"data": "somewhere"}, False, "each site chooses its data and machine"),
        ({"round": 3}, False, "did you mean 'rounds'"),
    ],
)
def test_a_run_that_cannot_be_federated_is_refused_at_the_start(tmp_path, settings, secure, words):
    with pytest.raises(ConfigError, match=words):
        federate(tmp_path / "run", settings, NAMES, secure=secure)
    assert not (tmp_path / "run").exists()


def test_flwr_run_alone_runs_a_federation_from_the_apps_run_config(data, tmp_path, undisturbed):
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
