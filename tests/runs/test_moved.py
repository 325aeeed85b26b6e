"""What people do to data and runs between two commands: sites come, go and get other names; folders move."""

import shutil

import pytest

from prrfl.config import load_config
from prrfl.runs import run, setup
from prrfl.types import ExchangeRecord
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = {"network": "tiny", "image_size": 32, "rounds": 2, "epochs": 1, "batch": 8, "seed": 2, "threads": 1}


@pytest.fixture
def data(tmp_path):
    return write_layout(tmp_path / "data")


@pytest.fixture
def begun(data, tmp_path):
    """A run after the first of two rounds."""
    settings = load_config(None, {**SMALL, "data": data})
    records = run.train(settings, setup.load_data(settings), tmp_path / "run")
    next(record for record in records if isinstance(record, ExchangeRecord))
    records.close()
    return tmp_path / "run"


def copy_site(data, old, new, move=False):
    for folder in (data / "data", data / "csv_folder"):
        (shutil.move if move else shutil.copytree)(folder / old, folder / new)
    for table in list((data / "csv_folder" / new).iterdir()):
        table.rename(table.with_name(table.name.replace(old, new)))


def remove_site(data, name):
    for folder in (data / "data", data / "csv_folder"):
        shutil.rmtree(folder / name)


CHANGES = {
    "added": (lambda data: copy_site(data, "clientA", "clientC"), "site clientC is new"),
    "removed": (lambda data: remove_site(data, "clientB"), "site clientB is missing"),
    "renamed": (
        lambda data: copy_site(data, "clientB", "clientX", move=True),
        "site clientB is now clientX",
    ),
    "replaced": (
        lambda data: (copy_site(data, "clientA", "clientC"), remove_site(data, "clientB")),
        "site clientB is missing, site clientC is new",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_resume_names_the_site_that_was_changed(prrfl, begun, data, change):
    make, message = CHANGES[change]
    make(data)
    code, _, err = prrfl("resume", begun)
    assert code == 2
    assert f"the data has changed since {begun} was started: {message}; restore the data" in err


def test_evaluate_and_report_name_a_site_that_is_new_or_missing(prrfl, begun, data, caplog):
    assert prrfl("resume", begun)[0] == 0
    copy_site(data, "clientA", "clientC")
    code, out, _ = prrfl("evaluate", begun)
    assert code == 0
    assert "clientC" not in out
    assert "no network of clientC, which is not scored" in caplog.text
    assert prrfl("report", begun)[0] == 0
    assert "site clientC is new; the page shows" in caplog.text
    remove_site(data, "clientC")
    remove_site(data, "clientB")
    code, _, err = prrfl("evaluate", begun)
    assert code == 2
    assert f"{data} has no site clientB" in err
    assert prrfl("report", begun)[0] == 0
    assert "site clientB is missing; the page shows" in caplog.text


def test_moved_data_is_found_by_an_option_that_the_message_names(prrfl, begun, data, tmp_path, caplog):
    data.rename(tmp_path / "moved")
    code, _, err = prrfl("resume", begun)
    assert code == 2
    assert f"{data}, the data of {begun}, does not exist" in err
    assert "with --data" in err
    nowhere = tmp_path / "nowhere"
    assert f"--data {nowhere} does not exist" in prrfl("resume", begun, "--data", nowhere)[2]
    assert prrfl("resume", begun, "--data", tmp_path / "moved")[0] == 0
    assert "with --own-data" in prrfl("evaluate", begun)[2]
    assert prrfl("evaluate", begun, "--own-data", tmp_path / "moved")[0] == 0
    assert "WARNING" not in caplog.text
    assert prrfl("report", begun, "--data", tmp_path / "moved")[0] == 0
    assert "WARNING" not in caplog.text
    assert "clientA_test" in (begun / "report.html").read_text()
    assert prrfl("report", begun)[0] == 0
    assert "no images" in caplog.text
    assert "--data" in caplog.text


def test_a_moved_run_can_be_resumed_and_used(prrfl, begun, tmp_path):
    begun.rename(tmp_path / "elsewhere")
    assert prrfl("resume", tmp_path / "elsewhere")[0] == 0
    assert prrfl("evaluate", tmp_path / "elsewhere")[0] == 0


def test_other_data_at_the_place_of_the_option_is_refused(prrfl, begun, tmp_path):
    other = write_layout(tmp_path / "other", train=12)
    code, _, err = prrfl("resume", begun, "--data", other)
    assert code == 2
    assert "site clientA, train: 9 → 12 images" in err


def test_own_data_and_data_of_new_sites_are_not_mixed(prrfl, begun, data):
    code, _, err = prrfl("evaluate", begun, "--data", data, "--own-data", data)
    assert code == 2
    assert "--own-data cannot be used with --data" in err
