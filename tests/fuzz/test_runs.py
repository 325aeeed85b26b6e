"""Run folders of which any file is torn, emptied, swapped, deleted or no file any more."""

import json
import shutil

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prrfl.config import load_config
from prrfl.errors import ConfigError
from prrfl.runs import report, run, setup
from prrfl.runs.folder import RunFolder
from tests.fuzz.cases import assert_line, cases, listing, within
from tests.fuzz.mutators import copied, files, name_of
from tests.runs.test_resume import files_of, stopped
from tests.sites_on_disk import write_layout

SETTINGS = {
    "network": "tiny",
    "image_size": 32,
    "rounds": 3,
    "epochs": 1,
    "batch": 8,
    "method": "fedavg",
    "augment": False,
    "workers": 1,
    "threads": 1,
    "precision": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    data = write_layout(tmp_path_factory.mktemp("data") / "sites", train=6, other=3)
    return load_config(None, {**SETTINGS, "data": data})


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    list(run.train(settings, setup.load_data(settings), folder))
    return folder


@pytest.fixture(scope="module")
def half(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "half"
    stopped(settings, folder, 2, 3)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("broken")


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def called(prrfl, *arguments):
    """Call the command line; return whether it went well, and assert that it says one line if not."""
    with within():
        code, _, err = prrfl(*arguments)
    assert code in (0, 2), err
    errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert "Traceback" not in err
    assert len(errors) == (code == 2), err
    if code:
        assert errors[0].startswith("error: ")
        assert_line(errors[0], arguments[1])
    return code == 0


def assert_nothing_left(folder, before):
    """Assert that no temporary file was left behind, and no half of one."""
    for name in set(listing(folder)) - set(before):
        assert not name.rpartition("/")[2].startswith("."), name
    for path in folder.rglob("*.json"):
        if path.is_file() and str(path.relative_to(folder)) not in before:
            json.loads(path.read_text())


def other_settings(folder, original):
    """Return whether settings are whole and others than before: who can tell whether they are meant?

    A run of ten times as many rounds is another run, and takes as long.
    """
    try:
        return RunFolder(folder).settings() != RunFolder(original).settings()
    except ConfigError:
        return False


RECOVERED = (
    "state/",
    "models/",
    "predictions/",
    "summary.json",
    "retrogress.png",
    "log.txt",
    "environment.json",
)
"""What a stopped run makes again, whatever happened to it; settings, records and fingerprints it cannot."""


@pytest.fixture
def quiet(monkeypatch):
    """Draw nothing: pictures take most of the time, and the run's page is drawn in another test."""
    monkeypatch.setattr(report, "draw_retrogress", lambda records, path, epochs: None)


@cases(30)
@given(data=st.data(), mutation=files)
def test_a_stopped_run_goes_on_or_says_why_not(data, mutation, half, finished, place, quiet, prrfl):
    folder = copied(half, place / "run")
    name = data.draw(st.sampled_from(files_in(folder)))
    mutation(folder / name)
    assume(not other_settings(folder, half))
    before = listing(folder)
    went_well = called(prrfl, "resume", folder)
    assert_nothing_left(folder, before)
    if went_well:
        assert files_of(folder) == files_of(finished), (name, name_of(mutation))
    else:
        structure = name_of(mutation) in ("as_folder", "as_full_folder", "as_pipe", "as_loop", "as_device")
        assert structure or not str(name).startswith(RECOVERED), (name, name_of(mutation))
        # What was there and is not at fault is there still, and the run says the same again.
        assert not called(prrfl, "resume", folder)


@cases(40)
@given(data=st.data(), mutation=files)
def test_a_finished_run_is_read_or_says_why_not(data, mutation, finished, settings, place, prrfl):
    folder = copied(finished, place / "run")
    name = data.draw(st.sampled_from(files_in(folder)))
    mutation(folder / name)
    assume(not other_settings(folder, finished))
    before = listing(folder)
    command = data.draw(st.sampled_from(["resume", "evaluate", "evaluate", "report"]))
    more = ["--data", settings.data, "--json", place / "scores.json"] if command == "evaluate" else []
    (place / "scores.json").unlink(missing_ok=True)
    went_well = called(prrfl, command, folder, *more)
    assert_nothing_left(folder, before)
    if command == "evaluate":
        assert (place / "scores.json").is_file() == went_well
        # It reads the settings, and the last round's states, whose every bit counts.
        last = max((finished / "state").iterdir()).relative_to(finished)
        touched = name.suffix == ".safetensors" and name.parent == last
        if touched and not same(folder / name, finished / name):
            assert not went_well, (name, name_of(mutation))
    if command == "report" and went_well:
        assert "<html" in (folder / "report.html").read_text()
    if (
        command == "resume"
        and went_well
        and not str(name).startswith(("predictions/", "models/", "metrics", "scores"))
    ):
        assert files_of(folder) == files_of(finished), (name, name_of(mutation))


def same(path, other):
    return path.is_file() and not path.is_symlink() and path.read_bytes() == other.read_bytes()


@cases(25)
@given(data=st.data())
def test_files_that_changed_places(data, half, finished, place, prrfl, settings, quiet):
    folder = copied(half, place / "run")
    one, other = (folder / data.draw(st.sampled_from(files_in(folder))) for _ in range(2))
    aside = folder.parent / "aside"
    one.rename(aside)
    if other != one:
        other.rename(one)
    aside.rename(other)
    before = listing(folder)
    if called(prrfl, "resume", folder):
        assert files_of(folder) == files_of(finished), (one, other)
    assert_nothing_left(folder, before)
    called(prrfl, "evaluate", folder, "--data", settings.data)
    assert_nothing_left(folder, before)


@pytest.fixture(scope="module")
def comparison(settings, finished, tmp_path_factory):
    """A comparison of two methods, one of them with the other's networks."""
    folder = tmp_path_factory.mktemp("comparison") / "c"
    copied(finished, folder / "runs/fedavg-seed0")
    two = copied(finished, folder / "runs/fedbn-seed0")
    text = (two / "config.toml").read_text()
    (two / "config.toml").write_text(text.replace('method = "fedavg"', 'method = "fedbn"'))
    return folder


@cases(20)
@given(data=st.data(), mutation=files)
def test_a_comparison_of_broken_runs(data, mutation, comparison, place, prrfl, monkeypatch):
    from prrfl.runs import compare

    monkeypatch.setattr(compare, "draw_comparison", lambda *_: None)
    monkeypatch.setattr(compare, "comparison_page", lambda *_: "<html>")
    folder = copied(comparison, place / "comparison")
    read = ["config.toml", "metrics.jsonl", "summary.json", "predictions/clientA/best.csv"]
    name = data.draw(st.sampled_from(read))
    mutation(folder / "runs/fedbn-seed0" / name)
    before = listing(folder)
    went_well = called(prrfl, "report", folder)
    assert_nothing_left(folder, before)
    if went_well:
        assert (folder / "comparison.csv").read_text().count("\n") >= 3
    else:
        assert not (folder / "comparison.csv").exists()


def test_a_run_under_another_methods_name_is_refused(comparison, place, prrfl):
    folder = copied(comparison, place / "renamed")
    (folder / "runs/fedbn-seed0").rename(folder / "runs/silobn-seed0")
    code, _, err = prrfl("report", folder)
    assert code == 2
    assert "silobn-seed0 holds a run of method fedbn" in err


def test_settings_cut_off_at_a_line_are_no_defaults(half, place, prrfl):
    folder = copied(half, place / "run")
    lines = (folder / "config.toml").read_text().splitlines(keepends=True)
    (folder / "config.toml").write_text("".join(lines[:10]))
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert "config.toml is incomplete: key" in err


def test_records_that_are_cut_off_are_left_as_they_are(half, place, prrfl):
    folder = copied(half, place / "run")
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:300])
    before = path.read_bytes()
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert "metrics.jsonl" in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["round-0000.bak", "round-x", "round-00000", ".DS_Store", "notes.txt"])
def test_what_else_lies_among_the_states(name, half, finished, place, prrfl, quiet):
    folder = copied(half, place / "run")
    (folder / "state" / name).write_text("x")
    code, out, err = prrfl("resume", folder)
    assert (code, err) == (0, "")
    assert "Resuming after round 2 of 3" in out
    assert files_of(folder) == files_of(finished)


def test_a_site_more_stops_a_run_and_loses_no_round(half, settings, place, prrfl):
    folder = copied(half, place / "run")
    data = copied(settings.data, place / "sites")
    for part in ("data", "csv_folder"):
        shutil.copytree(data / part / "clientA", data / part / "clientC")
    for table in (data / "csv_folder/clientC").iterdir():
        table.rename(table.with_name(table.name.replace("clientA", "clientC")))
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace(str(settings.data), str(data)))
    states = listing(folder / "state")
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert "site clientC is new" in err
    assert listing(folder / "state") == states


def test_other_settings_stop_a_run(half, place, prrfl):
    folder = copied(half, place / "run")
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('"tiny"', '"vgg_b"'))
    code, _, err = prrfl("resume", folder)
    assert code == 2
    assert "config.toml: key 'network' is 'vgg_b', but the run was started with 'tiny'" in err
