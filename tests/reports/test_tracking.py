"""Trackers hold what the records hold, once, and never stop a run."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prrfl.config import load_config
from prrfl.reports.tracking import TensorBoard, values_of_round
from prrfl.runs import run, setup
from prrfl.runs.folder import RunFolder
from prrfl.types import ExchangeRecord, ScoreRecord
from tests import wandb_files
from tests.runs.test_resume import files_of
from tests.sites_on_disk import write_layout

SMALL = {"network": "tiny", "image_size": 32, "rounds": 3, "epochs": 2, "batch": 8, "workers": 1}
DROP = "clientB/test/deputy/drop/macro_f1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("data"))


@pytest.fixture
def drawn(monkeypatch):
    """Draw a small figure instead of the curves, which take longer than the run."""
    picture = Image.fromarray(np.full((4, 6, 3), 200, np.uint8))
    monkeypatch.setattr("prrfl.runs.report.draw_retrogress", lambda records, path, epochs: picture.save(path))


def settings_of(data, track, **more):
    return load_config(None, {**SMALL, "data": data, "track": track, **more})


def interrupted(settings, folder, meanwhile=lambda: None):
    """Stop a run in its third round, some records after the second, and resume it; return its records."""
    records, sites = [], setup.load_data(settings)
    steps = run.train(settings, sites, folder)
    for record in steps:
        done = sum(isinstance(r, ExchangeRecord) for r in records)
        if done == 2 and isinstance(record, ScoreRecord):
            break
        records.append(record)
    steps.close()
    meanwhile()
    records = [r for r in records if r.round < 2]
    return [*records, *run.train(settings, sites, folder, resume=True)]


def drops(records):
    """Return the deputy's drop in macro-F1 at clientB in each round, from the records."""
    found = {
        (r.round, r.moment): r.scores.macro_f1
        for r in records
        if isinstance(r, ScoreRecord) and (r.client, r.split, r.model) == ("clientB", "test", "deputy")
    }
    return [
        (index + 1, pytest.approx(found[index, "before"] - found[index, "after"], abs=1e-6))
        for index in range(3)
    ]


def test_values_of_a_round_are_scores_drops_and_means(data, tmp_path, undrawn):
    settings = settings_of(data, ())
    records = list(run.train(settings, setup.load_data(settings), tmp_path / "run"))
    second = [r for r in records if r.round == 1]
    values = values_of_round(second)
    scores = {
        (r.client, r.model, r.moment): r.scores
        for r in second
        if isinstance(r, ScoreRecord) and r.split == "test"
    }
    for site in ("clientA", "clientB"):
        before, after = (scores[site, "deputy", moment] for moment in ("before", "after"))
        assert values[f"{site}/test/deputy/before/auc"] == before.auc
        assert values[f"{site}/test/deputy/drop/macro_f1"] == before.macro_f1 - after.macro_f1
    both = [values[f"client{letter}/test/personalised/after/macro_f1"] for letter in "AB"]
    assert values["mean of sites/test/personalised/after/macro_f1"] == fmean(both)
    assert values["mean of sites/test/personalised/drop/macro_f1"] == 0
    (exchange,) = (r for r in second if isinstance(r, ExchangeRecord))
    assert values["bytes/up"] == sum(exchange.bytes_up.values()) > 0
    last = [r for r in second if r.kind == "train" and r.client == "clientA"][-1]
    assert values["clientA/train/loss_deputy"] == last.metrics["loss_deputy"]


def test_tensorboard_holds_each_round_of_a_resumed_run_once(data, tmp_path, drawn):
    records = interrupted(settings_of(data, "tensorboard"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars(DROP)] == drops(records)
    assert [e.step for e in events.Scalars("bytes/up")] == [1, 2, 3]
    (picture,) = events.Images("retrogress")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)
    *_, text = events.Tensors("settings/text_summary")
    assert b"| method | prrfl |" in text.tensor_proto.string_val[0]


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")
def test_wandb_holds_each_round_of_a_resumed_run_once_and_sends_nothing(data, tmp_path, drawn, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")  # which must not matter
    folder, ids = tmp_path / "run", []

    def remember():
        ids.extend(path.name.rpartition("-")[2] for path in folder.glob("wandb/offline-run-*"))

    records = interrupted(settings_of(data, "wandb"), folder, remember)
    found = wandb_files.records(folder)
    points = wandb_files.history(found)
    assert points[DROP] == drops(records)
    assert [step for step, _ in points["bytes/up"]] == [1, 2, 3]
    assert points["retrogress/width"] == [(3, 6)]
    (begun,) = (record.run for record in found if record.WhichOneof("record_type") == "run")
    assert [begun.run_id] == ids
    assert begun.display_name == "run"
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["epochs"] == 2
    data_tag = json.loads((folder / "environment.json").read_text())["data"]
    assert {"method: prrfl", "seed: 0", f"data: {data_tag}"} <= set(begun.tags)
    (networks,) = (r.artifact for r in found if r.WhichOneof("record_type") == "artifact")
    kept = {item.path: item.local_path for item in networks.manifest.contents}
    assert kept == {
        f"{site}/{which}.safetensors": str(folder / f"models/{site}/{which}.safetensors")
        for site in ("clientA", "clientB")
        for which in ("best", "last")
    }


def has(client, folder, identity):
    """Return the names of a run's artefacts in a folder and those below it."""
    found = []
    for item in client.list_artifacts(identity, folder):
        found += has(client, item.path, identity) if item.is_dir else [item.path]
    return found


def check_mlflow(client, records, folder):
    """Check that a store holds one run, with each round once, and its results."""
    (experiment,) = client.search_experiments(filter_string="name = 'prrfl'")
    (found,) = client.search_runs([experiment.experiment_id])
    identity = found.info.run_id
    history = sorted(client.get_metric_history(identity, DROP), key=lambda metric: metric.step)
    assert [(metric.step, metric.value) for metric in history] == drops(records)
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert (found.data.params["epochs"], found.data.tags["method"]) == ("2", "prrfl")
    assert found.data.tags["data"] == json.loads((folder / "environment.json").read_text())["data"]
    assert found.data.tags["prrfl"]
    networks = [f"networks/{p.parent.name}/{p.name}" for p in folder.glob("models/*/*.safetensors")]
    assert len(networks) == 4
    assert sorted(has(client, None, identity)) == ["figures/retrogress.png", *sorted(networks)]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the package mlflow-skinny")
def test_mlflow_without_a_server_is_a_database_in_the_runs_folder(data, tmp_path, drawn, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    records = interrupted(settings_of(data, "mlflow"), tmp_path / "run")
    from mlflow import MlflowClient

    check_mlflow(MlflowClient(f"sqlite:///{tmp_path}/run/mlflow/mlflow.db"), records, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing is written beside it


class Server:
    """A tracking server of MLflow on this machine."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self.start()

    def start(self):
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        store += ["--artifacts-destination", str(self._folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *where, *store],
                stdout=log,
                stderr=log,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
                start_new_session=True,
            )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            time.sleep(0.2)
        raise TimeoutError("MLflow's server did not start")

    def stop(self):
        if self._process.poll() is None:
            os.killpg(self._process.pid, 15)
            self._process.wait()


@pytest.fixture
def server(tmp_path):
    if find_spec("flask") is None or find_spec("mlflow") is None:
        pytest.skip("needs MLflow with its server: pip install mlflow")
    (tmp_path / "server").mkdir()
    started = Server(tmp_path / "server")
    yield started
    started.stop()


@pytest.mark.slow
def test_mlflow_server_gets_what_it_missed_while_it_was_gone(
    data, tmp_path, drawn, monkeypatch, server, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//user:secret@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings, folder = settings_of(data, "mlflow"), tmp_path / "run"
    steps, records = run.train(settings, setup.load_data(settings), folder), []
    for record in steps:
        records.append(record)
        if isinstance(record, ExchangeRecord) and record.round == 0:
            server.stop()
        if isinstance(record, ExchangeRecord) and record.round == 1:
            break  # this round was complete, and the tracker failed
    steps.close()
    (warning,) = (r.message for r in caplog.records if r.levelname == "WARNING")
    assert warning.startswith("tracker mlflow failed, and the run continues without it: ")
    assert "secret" not in (folder / "mlflow/run.json").read_text()
    server.start()
    records += run.train(settings, setup.load_data(settings), folder, resume=True)
    from mlflow import MlflowClient

    check_mlflow(MlflowClient(server.uri), records, folder)


def test_a_tracker_that_fails_costs_a_warning_and_no_bit(data, tmp_path, drawn, monkeypatch, caplog):
    settings = settings_of(data, ())
    list(run.train(settings, setup.load_data(settings), tmp_path / "alone"))
    calls = []

    def full(self, step, values):
        calls.append(step)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoard, "add", full)
    settings = settings_of(data, "tensorboard")
    list(run.train(settings, setup.load_data(settings), tmp_path / "run"))
    assert calls == [1]
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "tracker tensorboard failed, and the run continues without it: [Errno 28] No space left on device"
    ]
    assert RunFolder(tmp_path / "run").is_finished
    assert files_of(tmp_path / "run") == files_of(tmp_path / "alone")


def test_a_tracker_that_cannot_be_opened_costs_a_warning(data, tmp_path, undrawn, caplog):
    settings = settings_of(data, "wandb,tensorboard")
    steps = run.train(settings, setup.load_data(settings), tmp_path / "run")
    next(steps)
    steps.close()
    shutil.rmtree(tmp_path / "run/wandb", ignore_errors=True)
    (tmp_path / "run/wandb").write_text("no folder")
    caplog.clear()
    list(run.train(settings, setup.load_data(settings), tmp_path / "run", resume=True))
    (warning,) = (r.message for r in caplog.records if r.levelname == "WARNING")
    assert warning.startswith("tracker wandb failed")
    assert list(Path(tmp_path / "run/tensorboard").iterdir())


def lacking(monkeypatch, package):
    monkeypatch.setattr(
        "prrfl.config.settings.find_spec", lambda name: None if name == package else find_spec(name)
    )


def test_a_missing_package_is_named_before_anything_is_written(data, tmp_path, prrfl, monkeypatch):
    lacking(monkeypatch, "wandb")
    small = ["--image-size", 32, "--network", "tiny", "--rounds", 1]
    for command in ("train", "compare"):
        where = ["--data", data, *small, "--out", tmp_path / "run"]
        code, _, err = prrfl(command, "--track", "tensorboard,wandb", *where)
        assert (code, err) == (
            2,
            "error: --track: the package wandb is missing; pip install 'prrfl[wandb]', got "
            "'tensorboard,wandb'\n",
        )
        assert not (tmp_path / "run").exists()


def test_a_tracked_run_is_read_and_resumed_where_its_package_is_missing(
    data, tmp_path, undrawn, prrfl, monkeypatch, caplog
):
    settings = settings_of(data, "tensorboard")
    steps = run.train(settings, setup.load_data(settings), tmp_path / "run")
    next(r for r in steps if isinstance(r, ExchangeRecord))
    steps.close()
    lacking(monkeypatch, "tensorboard")
    assert prrfl("report", tmp_path / "run")[0] == 0
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert prrfl("resume", tmp_path / "run")[0] == 0
    assert "tracker tensorboard failed, and the run continues without it" in caplog.text


def test_an_unknown_tracker_is_named_with_the_nearest(prrfl, tmp_path):
    code, _, err = prrfl("train", "--track", "mflow", "--out", tmp_path / "run")
    assert code == 2
    assert "--track: expected one of mlflow, tensorboard, wandb (did you mean 'mlflow'?)" in err


@pytest.mark.parametrize(("old", "now"), [("true", ("tensorboard",)), ("false", ())])
def test_settings_of_version_0_1_0_are_read(data, tmp_path, old, now):
    path = tmp_path / "config.toml"
    path.write_text(settings_of(data, ()).to_toml().replace("track = []", f"tensorboard = {old}"))
    assert load_config(path, {}).track == now
    assert RunFolder(tmp_path).settings().track == now


@pytest.mark.usefixtures("forked")
def test_a_comparison_tracks_its_runs(data, tmp_path, prrfl, undrawn, monkeypatch):
    small = ["--image-size", 32, "--network", "tiny", "--rounds", 1, "--epochs", 1, "--seeds", 0]
    out = tmp_path / "c"
    methods = ["--methods", "local,fedavg", "--track", "tensorboard"]
    code, _, err = prrfl("compare", "--data", data, *small, *methods, "--out", out)
    assert code == 0, err
    for method in ("local", "fedavg"):
        assert list((out / f"runs/{method}-seed0/tensorboard").iterdir()), method
