"""A run that was interrupted ends with the same bits as one that was not."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prrfl.config import load_config
from prrfl.data.fingerprint import short
from prrfl.errors import ConfigError, StateMismatchError
from prrfl.runs import run, setup
from prrfl.runs.folder import RunFolder
from prrfl.storage.records import read_predictions
from prrfl.storage.tensor_files import read_state, read_tensors, write_state
from prrfl.types import ExchangeRecord
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = {"network": "tiny", "image_size": 32, "rounds": 3, "epochs": 2, "batch": 8, "seed": 2}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    data = write_layout(tmp_path_factory.mktemp("data"))
    return load_config(None, {**SMALL, "data": data})


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    list(run.train(settings, setup.load_data(settings), folder))
    return folder


def files_of(folder):
    """Everything that must be the same: records, weights, predictions, scores."""
    kept = {
        p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.suffix in (".csv", ".jsonl")
    }
    kept |= {p.relative_to(folder): p.read_bytes() for p in (folder / "models").rglob("*.safetensors")}
    summary = json.loads((folder / "summary.json").read_text())
    return kept, {key: value for key, value in summary.items() if key != "seconds"}


def stopped(settings, folder, rounds, extra):
    """Stop a run some records into the round after the given number of complete ones."""
    steps = run.train(settings, setup.load_data(settings), folder)
    for record in steps:
        rounds -= isinstance(record, ExchangeRecord)
        if rounds <= 0:
            if extra == 0:
                break
            extra -= 1
    steps.close()


@pytest.mark.parametrize(("rounds", "extra"), [(0, 3), (1, 0), (1, 9), (2, 1)])
def test_a_stopped_run_ends_with_the_same_bits(settings, whole, tmp_path, rounds, extra):
    stopped(settings, tmp_path / "run", rounds, extra)
    assert not RunFolder(tmp_path / "run").is_finished
    list(run.train(settings, setup.load_data(settings), tmp_path / "run", resume=True))
    assert files_of(tmp_path / "run") == files_of(whole)


def test_a_report_meanwhile_ends_no_run(settings, whole, tmp_path, prrfl):
    stopped(settings, tmp_path / "run", 1, 3)
    assert prrfl("report", tmp_path / "run")[0] == 0
    assert prrfl("resume", tmp_path / "run")[0] == 0
    assert files_of(tmp_path / "run") == files_of(whole)


def test_two_processes_in_one_folder_are_refused(settings, whole, tmp_path, prrfl):
    stopped(settings, tmp_path / "run", 1, 3)
    with RunFolder(tmp_path / "run").locked():
        code, _, err = prrfl("resume", tmp_path / "run")
    assert code == 2
    assert (
        err
        == f"error: another process is using run folder {tmp_path / 'run'}; wait until it ends, or stop it\n"
    )
    code, _, err = prrfl("resume", tmp_path / "run")
    assert (code, err) == (0, "")
    assert files_of(tmp_path / "run") == files_of(whole)


def test_states_may_rest_on_disk_meanwhile(settings, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "STATES_IN_MEMORY", 0)
    stopped(settings, tmp_path / "run", 1, 9)
    list(run.train(settings, setup.load_data(settings), tmp_path / "run", resume=True))
    assert files_of(tmp_path / "run") == files_of(whole)
    assert not list((tmp_path / "run").glob(".rest*"))


def test_workers_do_not_change_a_bit(settings, tmp_path):
    found = []
    for workers in (1, 2):
        config = settings.model_copy(update={"threads": 1, "workers": workers})
        list(run.train(config, setup.load_data(config), tmp_path / str(workers)))
        found.append(files_of(tmp_path / str(workers)))
    assert found[0] == found[1]


def test_what_is_picked_for_a_machine(settings, monkeypatch):
    monkeypatch.setattr(setup, "usable_cores", lambda: 16)

    def picked(sites, **changed):
        config = setup.resolved(settings.model_copy(update=changed), sites)
        return config.workers, config.threads

    assert picked(4) == (4, 4)
    assert picked(100) == (16, 1)
    assert picked(4, threads=8) == (2, 8)
    assert picked(4, workers=2) == (2, 4)  # bits depend on threads, and must not on workers
    assert picked(4, method="centralised") == (1, 16)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert picked(4, device="cuda") == (1, 4)  # one process trains several sites at a time
    assert picked(4, device="cuda", workers=2) == (2, 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for wrong in ({"method": "centralised"}, {"device": "cuda:1"}):
        with pytest.raises(ConfigError, match="workers is 2, but"):
            picked(4, workers=2, **wrong)


def test_a_crash_between_records_and_state_is_undone(settings, whole, tmp_path):
    folder = tmp_path / "run"
    stopped(settings, folder, 2, 0)
    state = next((folder / "state").iterdir())
    shutil.copytree(state, tmp_path / "one round behind")
    for record in run.train(settings, setup.load_data(settings), folder, resume=True):
        if isinstance(record, ExchangeRecord):
            break
    (folder / "summary.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "state")
    shutil.copytree(tmp_path / "one round behind", folder / "state" / state.name)
    list(run.train(settings, setup.load_data(settings), folder, resume=True))
    assert files_of(folder) == files_of(whole)


@pytest.mark.parametrize("victim", ["clientA.safetensors", "progress.json", "metrics.jsonl"])
def test_damage_is_named_and_the_run_resumes_from_the_previous_checkpoint(
    settings, whole, tmp_path, caplog, victim
):
    folder = tmp_path / "run"
    stopped(settings, folder, 2, 0)
    assert [path.name for path in RunFolder(folder).checkpoints()] == ["round-0000", "round-0001"]
    path = folder / victim if victim.endswith("jsonl") else folder / "state/round-0001" / victim
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    events = run.train(settings, setup.load_data(settings), folder, resume=True)
    assert next(events).round == 1
    list(events)
    assert "round-0001 cannot be used" in caplog.text
    assert f"{victim} is damaged" in caplog.text
    assert files_of(folder) == files_of(whole)


def test_a_run_with_a_damaged_checkpoint_does_not_start_again(settings, tmp_path, prrfl):
    folder = tmp_path / "run"
    stopped(settings, folder, 1, 0)
    victim = folder / "state/round-0000/clientA.safetensors"
    victim.write_bytes(victim.read_bytes()[:-100] + bytes(100))
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt"
    }
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert f"{victim} is damaged: its checksum differs, and no other checkpoint can be used" in err
    assert {path: path.read_bytes() for path in before} == before


def test_records_without_a_state_are_not_thrown_away(settings, tmp_path, prrfl):
    folder = tmp_path / "run"
    stopped(settings, folder, 2, 0)
    shutil.rmtree(folder / "state")
    before = (folder / "metrics.jsonl").read_bytes()
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert "metrics.jsonl holds complete rounds" in err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_refused_process_leaves_the_states_of_another_alone(settings, whole, tmp_path, monkeypatch, prrfl):
    monkeypatch.setattr(run, "STATES_IN_MEMORY", 0)
    steps = run.train(settings, setup.load_data(settings), tmp_path / "run")
    for _ in range(9):
        next(steps)
    # Another process, by its number: this one could not tell itself apart.
    with monkeypatch.context() as other:
        other.setattr(run.os, "getpid", lambda: 1)
        code, _, err = prrfl("resume", tmp_path / "run")
    assert code == 2
    assert "another process is using" in err
    list(steps)
    assert files_of(tmp_path / "run") == files_of(whole)


def test_other_settings_are_refused_by_name(settings, whole, tmp_path, prrfl):
    folder = tmp_path / "run"
    stopped(settings, folder, 1, 3)
    config = folder / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("lr = 0.01", "lr = 0.02"))
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert "config.toml: key 'lr' is 0.02, but the run was started with 0.01; restore that value" in err
    config.write_text(text.replace("allow_missing = false", "allow_missing = true"))
    assert prrfl("resume", folder)[0] == 0
    assert files_of(folder) == files_of(whole)


def test_predictions_are_those_of_the_scores(whole):
    summary = json.loads((whole / "summary.json").read_text())
    for site, scores in summary["last"]["sites"].items():
        predictions = read_predictions(whole / "predictions" / site / "last.csv")
        right = predictions.probabilities.argmax(1) == predictions.labels
        assert right.double().mean().item() == pytest.approx(scores["accuracy"])
        assert predictions.ids[0] == f"{site}_test_0"
        assert read_tensors(whole / "models" / site / "last.safetensors")


def test_a_state_of_another_method_is_refused(tmp_path):
    from prrfl.algorithms import PRRFL, FedAvg
    from tests.sites import tiny_network

    weights = tiny_network().state_dict()
    write_state(tmp_path / "s.safetensors", FedAvg().start(weights))
    kind = type(PRRFL().start(weights))
    with pytest.raises(StateMismatchError, match=r"s\.safetensors does not hold a PRRFLState"):
        read_state(tmp_path / "s.safetensors", kind)


def rotate_labels(table):
    """Give each row of a site's table the label of the row before it."""
    header, *rows = table.read_text().splitlines()
    names, labels = zip(*(row.split(",") for row in rows), strict=True)
    rotated = (labels[-1], *labels[:-1])
    table.write_text("\n".join([header, *map(",".join, zip(names, rotated, strict=True))]) + "\n")


def test_other_data_is_refused_by_site_and_split(tmp_path, prrfl, caplog):
    data, folder = write_layout(tmp_path / "data"), tmp_path / "run"
    settings = load_config(None, {**SMALL, "data": data})
    stopped(settings, folder, 1, 3)
    table = data / "csv_folder/clientB/train_clientB.csv"
    before, noted = table.read_text(), (folder / "environment.json").read_text()
    rotate_labels(table)
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert err == (
        f"error: the data has changed since {folder} was started: site clientB, train: other labels; restore "
        "the data, or start another run\n"
    )
    assert (folder / "environment.json").read_text() == noted
    table.write_text("".join(before.splitlines(keepends=True)[:-2]))
    assert "site clientB, train: 9 → 7 images; restore" in prrfl("resume", folder)[2]
    (folder / "data.json").write_text("{")
    assert "data.json is damaged" in prrfl("resume", folder)[2]
    # As an older version left it.
    (folder / "data.json").unlink()
    table.write_text(before)
    assert prrfl("resume", folder)[0] == 0
    assert f"{folder} has no data.json" in caplog.text
    assert not (folder / "data.json").exists()


def test_the_environment_of_each_resumption_is_written(settings, tmp_path):
    folder = tmp_path / "run"
    stopped(settings, folder, 1, 0)
    first = json.loads((folder / "environment.json").read_text())
    assert first["data"] == short(RunFolder(folder).data())
    for round_ in (1, 2):
        for record in run.train(settings, setup.load_data(settings), folder, resume=True):
            if isinstance(record, ExchangeRecord):
                break
        found = json.loads((folder / "environment.json").read_text())
        resumed = found.pop("resumed")
        assert found == first
        assert [one["after_round"] for one in resumed] == list(range(1, round_ + 1))
        assert resumed[-1]["versions"] == first["versions"]


def test_the_free_space_is_that_of_the_disk_with_the_run(settings, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    space = {folder: 7, Path.cwd(): 1}
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: SimpleNamespace(free=space[Path(path)]))
    stopped(settings, folder, 0, 0)
    assert json.loads((folder / "environment.json").read_text())["free_disk_bytes"] == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_from_a_machine_with_a_gpu_is_read_and_resumed_without_one(
    settings, whole, tmp_path, prrfl, caplog
):
    def of_a_gpu(folder):
        config = folder / "config.toml"
        config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda"'))
        return folder

    finished = of_a_gpu(shutil.copytree(whole, tmp_path / "c/runs/prrfl-seed2"))
    assert RunFolder(finished).is_finished
    assert RunFolder(finished).settings().device == "cuda"
    for command in (["resume", finished], ["report", finished], ["report", tmp_path / "c"]):
        assert prrfl(*command)[0] == 0
    assert "cuda" in (tmp_path / "c/report.html").read_text()
    assert not caplog.text
    folder = tmp_path / "run"
    stopped(settings, folder, 1, 0)
    assert prrfl("resume", of_a_gpu(folder))[0] == 0
    assert f"{folder} was started on cuda, which this machine does not have. It resumes on cpu" in caplog.text
    assert files_of(folder) == files_of(whole)
    assert json.loads((folder / "environment.json").read_text())["resumed"][0]["device"] == "cpu"
