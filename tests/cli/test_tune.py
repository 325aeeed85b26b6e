"""``prrfl tune`` searches by validation scores alone, with one budget for all; ``compare`` uses it."""

import csv
import os
import shutil
import signal
import sys
import time
from tempfile import TemporaryFile

import pytest

from prrfl.algorithms import ALGORITHMS
from prrfl.config import TrainConfig
from prrfl.errors import ConfigError
from prrfl.parts.search import parse_searches
from prrfl.runs import run, tune
from prrfl.runs.compare import plan
from prrfl.runs.tuned import Tuned, TunedMethod, read_tuned, write_tuned
from tests.forked import ForkedCommands
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.usefixtures("forked", "undrawn")

SMALL = ["--image-size", 32, "--epochs", 1, "--batch", 8, "--network", "tiny", "--rounds", 2]
TRIALS = 6
METHODS = ["--methods", "fedavg,fedprox", "--trials", TRIALS, *SMALL]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("data"), train=18)


@pytest.fixture(scope="module")
def searched(data, tmp_path_factory):
    """Search in a process of its own; return the folder."""
    out = tmp_path_factory.mktemp("tune") / "t"
    with TemporaryFile() as stderr:
        process = command(["tune", *METHODS, "--data", data, "--out", out], stderr)
        process.wait()
        stderr.seek(0)
        assert process.returncode == 0, stderr.read().decode()
    return out


def command(arguments, stderr):
    return ForkedCommands.Popen([sys.executable, "-m", "prrfl", *map(str, arguments)], stderr=stderr)


def trials(out):
    with (out / "tuning.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_method_has_the_same_budget_and_starts_from_its_defaults(searched):
    rows = {
        name: [row for row in trials(searched) if row["method"] == name] for name in ("fedavg", "fedprox")
    }
    assert [len(of) for of in rows.values()] == [TRIALS, TRIALS]
    assert all(row["rounds"] == "2" for of in rows.values() for row in of if row["outcome"] == "complete")
    assert float(rows["fedprox"][0]["lr"]) == TrainConfig.model_fields["lr"].default
    assert float(rows["fedprox"][0]["mu"]) == TrainConfig.model_fields["mu"].default
    assert {row["mu"] for row in rows["fedavg"]} == {""}
    assert len({row["mu"] for row in rows["fedprox"]}) == TRIALS
    tuned = read_tuned(searched)
    assert (tuned.trials, tuned.rounds, tuned.seed) == (TRIALS, 2, 1000)
    for name, of in rows.items():
        best = max(of, key=lambda row: float(row["validation_macro_f1"] or -1))
        assert tuned.methods[name].score == float(best["validation_macro_f1"])
        assert tuned.methods[name].settings["lr"] == float(best["lr"])


def test_test_images_and_labels_have_no_influence(prrfl, searched, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    for table in (tmp_path / "data").rglob("test_*.csv"):
        head, *rows = table.read_text().splitlines()
        turned = [f"{name},{(int(label) + 1) % 3}" for name, label in (row.split(",") for row in rows[:-2])]
        table.write_text("\n".join([head, *turned]) + "\n")
    # Another number of processes, too.
    common = ["tune", *METHODS, "--data", tmp_path / "data", "--workers", 3, "--out", tmp_path / "t"]
    code, out, err = prrfl(*common)
    assert (code, err) == (0, "")
    assert f"prrfl compare --tuned {tmp_path / 't'}" in out
    for name in ("tuning.csv", "tuned.toml"):
        assert (tmp_path / "t" / name).read_text() == (searched / name).read_text()
    # The same labels in another split have.
    table = next((tmp_path / "data").rglob("valid_clientA.csv"))
    table.write_text(table.read_text().replace("valid_0,0", "valid_0,1"))
    code, _, err = prrfl(*common)
    assert code == 2
    assert "the data has changed since" in err
    assert "site clientA, valid: other labels" in err


def test_a_killed_search_continues_with_the_trials_that_it_would_have_had(prrfl, searched, data, tmp_path):
    out = tmp_path / "t"
    arguments = ["tune", *METHODS, "--data", data, "--out", out]
    with TemporaryFile() as stderr:
        process = command(arguments, stderr)
        deadline = time.monotonic() + 60
        while stored(out) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 2 <= stored(out) < 2 * TRIALS
    assert not (out / "tuned.toml").exists()
    with (out / "trials.log").open("ab") as journal:
        journal.write(b'{"op_code":4,"wor')  # it may be killed while it writes
    (out / ".rest-1").mkdir()  # states of a trial that was killed, too
    assert prrfl(*arguments)[0] == 0
    assert (out / "tuning.csv").read_text() == (searched / "tuning.csv").read_text()
    assert not (out / ".rest-1").exists()


def stored(out):
    journal = out / "trials.log"
    return journal.read_text().count('"intermediate_values"') if journal.exists() else 0


def test_trials_behind_the_median_stop_early(prrfl, data, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "STATES_IN_MEMORY", 0)
    ranges = "lr=1e-9..0.1"
    small = [*SMALL[:-1], 5, "--lr", 0.05]
    common = ["--methods", "local", "--data", data, *small, "--trials", 8, "--search", ranges]
    assert prrfl("tune", *common, "--out", tmp_path / "t")[0] == 0
    rows = trials(tmp_path / "t")
    pruned = [row for row in rows if row["outcome"] == "pruned"]
    assert pruned
    assert not list((tmp_path / "t").glob(".rest-*"))
    assert all(1 < int(row["rounds"]) < 5 and row["validation_macro_f1"] == "" for row in pruned)
    assert all(row["outcome"] == "complete" for row in rows[: tune.BATCH])
    assert read_tuned(tmp_path / "t").methods["local"].pruned == len(pruned)


def test_a_comparison_uses_what_was_found(prrfl, searched, data, tmp_path):
    out = tmp_path / "c"
    common = ["compare", "--data", data, *SMALL, "--tuned", searched, "--out", out]
    for given, said in (
        (["--methods", "fedavg,local,ida", "--seeds", 0], "holds no settings for local, ida"),
        (["--methods", "fedavg:lr=0.5", "--seeds", 0], "holds no settings for fedavg:lr=0.5"),
        (["--methods", "fedavg", "--seeds", "0,1000"], "seed 1000 is that of the search"),
        (["--methods", "fedprox", "--seeds", 0, "--mu", 7.0], "mu = 7.0 is given, but"),
        (["--methods", "fedprox", "--seeds", 0, "--margin", 200], "--margin: expected points of a score"),
    ):
        code, _, err = prrfl(*common, *given)
        assert code == 2
        assert said in err
        assert not out.exists()
    code, text, err = prrfl(*common, "--methods", "fedavg,fedprox", "--seeds", 0)
    assert (code, err) == (0, "")
    assert "F1 validation" in text.replace("\n", " ") or "validation" in text
    assert read_tuned(out) == read_tuned(searched)
    for name, method in read_tuned(searched).methods.items():
        written = (out / f"runs/{name}-seed0/config.toml").read_text()
        assert all(f"{key} = {value}" in written for key, value in method.settings.items())
    lines = (out / "comparison.csv").read_text().splitlines()
    assert [line for line in lines if line.startswith("fedavg,mean,validation_macro_f1,")]
    # The report reads the folder alone, and the same command finds nothing to do.
    assert prrfl("report", out)[0] == 0
    assert prrfl(*common, "--methods", "fedavg,fedprox", "--seeds", 0)[0] == 0


def test_a_given_setting_may_equal_the_tuned_one_in_other_words(data, tmp_path):
    (tmp_path / "c.toml").write_text("mu = 1\nadaptive = true\n")
    found = {"fedprox": {"mu": 1.0}, "apfl": {"adaptive": "true"}}
    tuned = Tuned(2, 2, 1000, {name: TunedMethod(0.5, 0, 0, values) for name, values in found.items()})
    planned = plan(tmp_path / "c.toml", {"data": data}, list(found), [0], tmp_path / "c", tuned)
    assert [(one.config.mu, one.config.adaptive) for one in planned] == [(1.0, True)] * 2


def test_what_was_found_can_be_read_whatever_its_characters(tmp_path):
    values = {"method.größe": "\x7f", "method.𝑥𠀀": "😀|\\", "lr": 1e-5, "method.wide": True}
    tuned = Tuned(2, 2, 1000, {"Ü:a=😀": TunedMethod(0.5, 0, 0, values)}, source=str(tmp_path / "😀\x7f"))
    write_tuned(tmp_path, tuned)
    assert read_tuned(tmp_path) == tuned


def test_a_comparison_must_have_the_data_of_its_search(prrfl, searched, data, tmp_path):
    def compare(*changed):
        there = tmp_path / "data"
        return prrfl(
            *["compare", "--data", there, *SMALL, "--tuned", searched, "--methods", "fedavg,fedprox"],
            *["--seeds", 0, "--time-limit", 0, "--out", tmp_path / "c", *changed],
        )

    shutil.copytree(data, tmp_path / "data")
    table = next((tmp_path / "data").rglob("train_clientB.csv"))
    before = table.read_text()
    table.write_text(before.replace("train_0,0", "train_0,1"))
    code, _, err = compare()
    assert code == 2
    assert f"{tmp_path / 'data'} is not the data of the search in {searched}: site clientB, train: " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "c").exists()
    # Test images, which the search has not seen, may differ; so may settings, which are named.
    table.write_text(before)
    table = next((tmp_path / "data").rglob("test_clientB.csv"))
    table.write_text(table.read_text().replace("test_0,0", "test_0,1"))
    code, out, err = compare("--rounds", 3, "--image-size", 40)
    assert (code, err) == (0, "")
    note = f"The search in {searched} had image_size 32 (here 40), rounds 2 (here 3)."
    assert note in out.replace("\n", " ")
    shutil.rmtree(tmp_path / "c")
    assert "The search in" not in compare()[1]


def test_a_repeated_search_must_be_the_same(prrfl, searched, data):
    common = ["tune", "--data", data, "--out", searched]
    for given, said in (
        ([*METHODS, "--lr", 0.02], "lr = 0.01, but"),
        ([*METHODS, "--seed", 7], "with seed = 1000, but the command asks for 7"),
        (
            [*METHODS, "--search", "lr=0.001..0.1"],
            "with fedavg: lr = 0.0001..0.1:log, but the command asks for 0.001..0.1",
        ),
        (
            ["--methods", "fedavg", *SMALL, "--trials", 7],
            "with trials = 6, but the command asks for 7",
        ),
    ):
        code, _, err = prrfl(*common, *given)
        assert code == 2
        assert said in err


OWN = """
from dataclasses import dataclass
from typing import Annotated
from prrfl import Search
from prrfl.algorithms import FedAvg


@dataclass(frozen=True)
class Stepped(FedAvg):
    step: Annotated[float, Search(0.25, 1)] = 0.5
    repeat: int = 2
    fixed: str = "as it is"

    def receive(self, client, mean, ctx):
        if self.repeat == 4:
            raise RuntimeError("four times")
        return super().receive(client, mean, ctx)
"""


def test_a_method_of_ones_own_declares_its_ranges(prrfl, data, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    common = ["--data", data, *SMALL, "--methods", f"{tmp_path / 'own.py'}:Stepped"]
    out = tmp_path / "t"
    assert prrfl("tune", *common, "--trials", 3, "--search", "repeat=1..3", "--out", out)[0] == 0
    rows = trials(out)
    assert [rows[0][key] for key in ("method.step", "method.repeat")] == ["0.5", "2"]
    assert all(0.25 <= float(row["method.step"]) <= 1 and row["method.repeat"] in "123" for row in rows)
    assert "method.fixed" not in rows[0]
    assert prrfl("compare", *common, "--seeds", 0, "--tuned", out, "--out", tmp_path / "c")[0] == 0
    found = read_tuned(out).methods["Stepped"].settings
    assert f"step = {found['method.step']}" in (tmp_path / "c/runs/Stepped-seed0/config.toml").read_text()
    # What it raises is one line, with the place in the user's file.
    code, _, err = prrfl(
        "tune", *common, "--search", "repeat=2|4", "--trials", 8, "--out", tmp_path / "raises"
    )
    assert code == 2
    assert err.startswith("error: Stepped, trial ")
    assert "own.py, line 16" in err
    assert "four times" in err
    assert err.endswith(f"; the traceback is in {tmp_path / 'raises/log.txt'}\n")
    assert err.count("\n") == 1
    log = (tmp_path / "raises/log.txt").read_text()
    assert "Traceback (most recent call last)" in log
    assert 'raise RuntimeError("four times")' in log


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--search", "lr"], "--search lr: expected name=low..high"),
        (["--search", "lr=0..1:log"], "--search lr: search 0..1:log: a range with :log must begin above 0"),
        (["--search", "lr=1..0"], "--search lr: search 1..0: expected finite numbers, the lower one first"),
        (["--search", "lr=a..b"], "--search lr: expected two numbers, low..high, got 'a..b'"),
        (["--search", "lr=0.1..1:lin"], "unknown scale 'lin'"),
        (["--search", "lr=0.1..1"], "the search starts from lr = 0.01, which is not in 0.1..1"),
        (["--search", "mi=0.1..1"], "no method here has this setting (did you mean 'mu'?)"),
        (["--search", "alpha1=0.5..1"], "no method here has this setting"),
        (["--search", "rounds=1..9"], "it is the same for all trials; give it as --rounds instead"),
        (["--search", "batch=2.5..20"], "it is a whole number, but the range is 2.5..20"),
        (["--methods", "fedavg:lr=0.5"], "method 'fedavg:lr=0.5': its name fixes all settings"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(prrfl, data, tmp_path, given, said):
    code, _, err = prrfl("tune", "--data", data, *METHODS, *given, "--out", tmp_path / "t")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_without_optuna_the_command_says_what_to_install(prrfl, data, tmp_path, monkeypatch):
    monkeypatch.setattr("prrfl.cli.tuning.find_spec", lambda name: None)
    code, _, err = prrfl("tune", "--data", data, *METHODS, "--out", tmp_path / "t")
    assert (code, err) == (2, "error: the package optuna is missing; pip install 'prrfl[tune]'\n")


def test_settings_that_contradict_each_other_and_divergence_end_a_trial_alone(prrfl, data, tmp_path):
    ranges = "alpha1=0.5..1,alpha2=0.5..1,lr=1e-3..1e30:log"
    common = ["--data", data, *SMALL, "--methods", "prrfl:r0=0.5", "--trials", 8, "--search", ranges]
    assert prrfl("tune", *common, "--out", tmp_path / "t")[0] == 0
    rows = trials(tmp_path / "t")
    why = {row["outcome"]: row["why"] for row in rows}
    assert "expected at least alpha1" in why["invalid"]
    assert "lower the learning rate" in why["diverged"]
    assert why["complete"] == ""
    assert "r0" not in rows[0]


@pytest.mark.parametrize("name", ALGORITHMS.builtin)
def test_declared_ranges_hold_the_defaults(name):
    config = TrainConfig(method=name)
    searches = config.searches()
    assert "lr" in searches
    assert all(search.holds(getattr(config, key)) for key, search in searches.items())


def test_choices_are_those_of_the_setting():
    assert parse_searches("optimizer=sgd | adam, batch=8|16")["batch"].holds(16)
    with pytest.raises(ConfigError, match="at least two choices"):
        parse_searches("optimizer=sgd")
