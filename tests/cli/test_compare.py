"""``prrfl compare`` keeps what cannot be compared apart, and ends well when something else does not."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from prrfl.config import TrainConfig
from prrfl.errors import ConfigError
from prrfl.runs import compare
from tests.forked import called
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.usefixtures("forked", "undrawn")

SMALL = ["--image-size", 32, "--rounds", 1, "--epochs", 1, "--batch", 8, "--seeds", 0, "--network", "tiny"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """Make a comparison of one run."""
    out = tmp_path_factory.mktemp("compare") / "c"
    called("compare", "--methods", "fedavg", "--data", data, *SMALL, "--out", out)
    return out


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("fedavg:data=/x", "data is the same for all methods; use --data instead"),
        ("fedavg:seed=3", "seed is the same for all methods"),
        ("fedavg:transfer=off", "fedavg has no setting transfer; it has no settings of its own"),
        ("fedprox:alpha1=0.5", "fedprox has no setting alpha1; it has mu"),
        ("fedavg:lrr=0.1", "did you mean 'lr'"),
    ],
)
def test_a_method_takes_its_own_settings_only(prrfl, data, tmp_path, method, said):
    code, _, err = prrfl("compare", "--methods", method, "--data", data, *SMALL, "--out", tmp_path / "c")
    assert code == 2
    assert said in err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("methods", "said"),
    [("fedavg,,local, fedavg,", "method fedavg is given twice"), (" ,", "no method given")],
)
def test_empty_names_in_a_list_are_left_out(prrfl, data, tmp_path, methods, said):
    code, _, err = prrfl("compare", "--methods", methods, "--data", data, *SMALL, "--out", tmp_path / "c")
    assert (code, said in err) == (2, True), err


@pytest.mark.parametrize(
    ("methods", "flags", "said"),
    [
        ("fedavg:beta=0.5", (), ["fedavg:beta=0.5: beta has no effect"]),
        ("ida:loss=cpa+tau=9+focusing=3", (), ["ida:loss=cpa+tau=9+focusing=3: focusing has no effect"]),
        ("fedavg,fedprox", ("--mu", 5, "--beta", 0.5, "--sites", 9), ["sites, beta: no effect on any run"]),
        ("fedavg:loss=cpa,fedprox", ("--beta", 0.5, "--transfer", "staged"), []),
    ],
)  # fmt: skip
def test_settings_without_effect_are_said(data, tmp_path, caplog, methods, flags, said):
    given = {name.strip("-"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    compare.plan(None, {"data": data, **given}, methods.split(","), [0, 1], tmp_path / "c")
    assert caplog.messages == said


def test_settings_of_generated_data_have_an_effect_without_data(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(compare, "cached", lambda _: data)
    compare.plan(None, {"sites": 2, "images": 18}, ["fedavg"], [0], tmp_path / "c")
    assert not caplog.messages


def test_runs_with_other_settings_or_images_are_not_put_side_by_side(prrfl, data, done, tmp_path):
    shutil.copytree(done, tmp_path / "c")
    common = ["--data", data, *SMALL, "--out", tmp_path / "c"]
    code, _, err = prrfl("compare", "--methods", "local", *common, "--lr", 0.5)
    assert code == 2
    assert "lr = " in err
    assert "cannot be compared" in err
    assert not (tmp_path / "c/runs/local-seed0").exists()
    # A setting that the method's name gives is another matter.
    assert prrfl("compare", "--methods", "fedavg,fedavg:lr=0.5", *common)[0] == 0
    predictions = tmp_path / "c/runs/fedavg-seed0/predictions/clientB/best.csv"
    predictions.write_text(predictions.read_text().replace("clientB_test_0", "another"))
    code, _, err = prrfl("report", tmp_path / "c")
    assert code == 2
    assert "site clientB has other test images than in the other runs" in err


def test_runs_on_other_training_data_are_not_put_side_by_side(prrfl, data, done, tmp_path, caplog):
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(done, tmp_path / "c")
    run = tmp_path / "c/runs/fedavg-seed0"
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(data), str(tmp_path / "data")))
    table = tmp_path / "data/csv_folder/clientA/train_clientA.csv"
    table.write_text(table.read_text().replace("train_0,0", "train_0,1"))
    common = ["--data", tmp_path / "data", *SMALL, "--out", tmp_path / "c"]
    code, _, err = prrfl("compare", "--methods", "fedavg,local", *common)
    assert code == 2
    changed = "site clientA, train: other labels"
    assert err == (
        f"error: the data has changed since {run} was started: {changed}; restore the data, or start another "
        "run\n"
    )
    assert not (tmp_path / "c/runs/local-seed0").exists()
    # Two that are there already, from before or by hand.
    shutil.copytree(run, tmp_path / "c/runs/fedavg-seed1")
    config = tmp_path / "c/runs/fedavg-seed1/config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    noted = tmp_path / "c/runs/fedavg-seed1/data.json"
    labels = json.loads(noted.read_text())["clientA"]["train"]["labels"]
    noted.write_text(noted.read_text().replace(labels, "another"))
    code, _, err = prrfl("report", tmp_path / "c")
    assert code == 2
    assert err.startswith(f"error: {noted.parent} was trained on other data than {run}: {changed}; ")
    noted.unlink()
    assert prrfl("report", tmp_path / "c")[0] == 0
    assert f"1 of 2 runs have no data.json, the first is {noted.parent}" in caplog.text


def test_settings_are_held_against_all_runs_and_not_the_neighbour_alone(tmp_path):
    def config(**changed):
        return TrainConfig.model_validate({"data": tmp_path, **changed})

    folders = [tmp_path / "runs" / name for name in ("a-seed0", "b-lr-0.5-seed0", "c-seed0")]
    alike = [config(lr=0.1), config(lr=0.5), config(lr=0.1)]
    compare._check_alike(dict(zip(folders, alike, strict=True)))
    with pytest.raises(ConfigError, match=r"a-seed0 has lr = 0\.1, but .*c-seed0 has 0\.9"):
        compare._check_alike(dict(zip(folders, [*alike[:2], config(lr=0.9)], strict=True)))


def test_a_run_that_fails_is_named_and_the_others_are_in_the_table(prrfl, data, done, tmp_path):
    shutil.copytree(done, tmp_path / "c")
    methods = "fedavg,local:lr=1e30"
    code, out, err = prrfl("compare", "--methods", methods, "--data", data, *SMALL, "--out", tmp_path / "c")
    assert code == 2
    assert "1 of 2 runs failed and are not in the table, first local:lr=1e30, seed 0" in err
    assert "fedavg" in out
    assert "| fedavg |" in (tmp_path / "c/comparison.md").read_text()


def test_a_path_among_the_settings_of_a_method_makes_no_folders(prrfl, data, done, tmp_path, monkeypatch):
    shutil.copytree(done, tmp_path / "c")
    (tmp_path / "pre").mkdir()
    shutil.copy(done / "runs/fedavg-seed0/models/clientA/best.safetensors", tmp_path / "pre/w.safetensors")
    monkeypatch.chdir(tmp_path)
    methods = "fedavg,fedavg:weights=pre/w.safetensors"
    code, _, err = prrfl("compare", "--methods", methods, "--data", data, *SMALL, "--out", "c")
    assert (code, err) == (0, "")
    assert (tmp_path / "c/runs/fedavg-weights-pre-w.safetensors-seed0/config.toml").is_file()
    assert "| fedavg:weights=pre-w.safetensors |" in (tmp_path / "c/comparison.md").read_text()
    methods = "fedavg:weights=pre/w.safetensors,fedavg:weights=pre-w.safetensors"
    code, _, err = prrfl("compare", "--methods", methods, "--data", data, *SMALL, "--out", "c")
    assert code == 2
    assert "are both called fedavg:weights=pre-w.safetensors in tables and folders" in err


def test_a_margin_is_kept_for_the_report(prrfl, data, done, tmp_path):
    shutil.copytree(done, tmp_path / "c")
    common = ["compare", "--methods", "fedavg", "--data", data, *SMALL, "--out", tmp_path / "c"]
    for wrong in (0, 100, "nan"):
        code, _, err = prrfl(*common, "--margin", wrong)
        assert code == 2
        assert "--margin: expected points of a score, more than 0 and less than 100, got " in err
    assert compare.read_margin(tmp_path / "c") is None
    assert prrfl(*common, "--margin", 1.5)[0] == 0
    assert prrfl(*common)[0] == 0
    assert compare.read_margin(tmp_path / "c") == 0.015
    assert prrfl("report", tmp_path / "c")[0] == 0
    (tmp_path / "c/margin.json").write_text("[]")
    code, _, err = prrfl("report", tmp_path / "c")
    assert code == 2
    assert 'margin.json: expected {"margin": points}; repeat `prrfl compare` with --margin' in err


def test_methods_are_ranked_over_five_data_sets_or_more(prrfl, done, tmp_path):
    folders = []
    for number in range(5):
        folders.append(tmp_path / str(number))
        shutil.copytree(done, folders[-1])
    given = ",".join(map(str, folders))
    code, _, err = prrfl("compare", "--across", ",".join(map(str, folders[:4] + folders[:1])))
    assert code == 2
    assert "expected comparisons on at least 5 data sets, got 4" in err
    code, _, err = prrfl("compare", "--across", given, "--image-size", 32)
    assert code == 2
    assert "leave out --image-size" in err
    for flag, value in (("--methods", "fedavg"), ("--seeds", "0,1")):
        code, _, err = prrfl("compare", "--across", given, flag, value)
        assert code == 2
        assert f"leave out {flag}" in err
    code, _, err = prrfl("compare", "--across", given)
    assert code == 2
    assert "has a single method" in err
    for folder in folders:
        run = folder / "runs/local-seed0"
        shutil.copytree(folder / "runs/fedavg-seed0", run)
        config = run / "config.toml"
        config.write_text(config.read_text().replace('"fedavg"', '"local"'))
    code, ranks, err = prrfl("compare", "--across", given)
    assert (code, err) == (0, "")
    assert "Mean ranks over 5 data sets" in ranks
    assert ranks.count("1.50*") == 4  # the same networks, in F1 and AUC
    # One comparison under two names counts once.
    (tmp_path / "link").symlink_to(folders[0])
    assert prrfl("compare", "--across", f"{given},{tmp_path / 'link'}")[1] == ranks
    shutil.rmtree(folders[3] / "runs/local-seed0")
    code, _, err = prrfl("compare", "--across", given)
    assert code == 2
    assert f"only one of {folders[0]} and {folders[3]} has method local" in err


@pytest.mark.slow
def test_nothing_lives_on_when_the_command_is_terminated(data, tmp_path):
    out = tmp_path / "terminated"
    # A new process does not know the tests' network.
    small = [*SMALL, "--network", "vgg16_slim", "--rounds", 999]
    command = ["compare", "--methods", "fedavg", "--data", data, *small, "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "prrfl", *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (out / "runs/fedavg-seed0/state").is_dir() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.decode() == "stopped; complete rounds are saved; repeat the command to continue\n"
    assert [words for words in command_lines() if str(out).encode() in words] == []


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended since
            yield path.read_bytes()


def test_a_time_limit_ends_after_a_complete_round_and_the_same_command_continues(prrfl, data, tmp_path):
    out = tmp_path / "c"
    common = [
        "--methods",
        "fedavg,local",
        "--data",
        data,
        *SMALL,
        "--rounds",
        3,
        "--out",
        out,
        "--workers",
        1,
    ]
    code, said, _ = prrfl("compare", *common, "--time-limit", 0.001)
    assert code == 0
    assert f"Time limit: 0 of 2 runs are finished; repeat the command with --out {out} to continue" in said
    # The first run was started, so it has at least one round; nothing is half-written.
    metrics = out / "runs/fedavg-seed0/metrics.jsonl"
    rounds = {json.loads(line)["round"] for line in metrics.read_text().splitlines()}
    assert rounds == {0}
    assert not (out / "runs/local-seed0").exists()
    code, said, _ = prrfl("compare", *common)
    assert code == 0
    assert "Time limit" not in said
    assert (out / "comparison.csv").is_file()


def test_a_comparison_does_not_depend_on_how_a_path_was_written(prrfl, data, done, tmp_path, monkeypatch):
    shutil.copytree(done, tmp_path / "c")
    (tmp_path / "link").symlink_to(data)
    shutil.copytree(data, tmp_path / "moved")
    monkeypatch.chdir(data.parent)
    spelled = [data.name, f"./{data.name}/", data / ".." / data.name, tmp_path / "link", tmp_path / "moved"]
    for place in spelled:
        command = ["compare", "--methods", "fedavg", "--data", place, *SMALL, "--out", tmp_path / "c"]
        code, out, err = prrfl(*command)
        assert (code, err) == (0, "")
        assert "1 rounds, of which 1 are done" in out


def test_other_data_at_another_place_is_refused_even_if_all_runs_are_finished(prrfl, done, tmp_path):
    shutil.copytree(done, tmp_path / "c")
    other = write_layout(tmp_path / "other", train=12)
    command = ["compare", "--methods", "fedavg", "--data", other, *SMALL, "--out", tmp_path / "c"]
    code, _, err = prrfl(*command)
    assert code == 2
    assert "site clientA, train: 9 → 12 images" in err
    (tmp_path / "c/runs/fedavg-seed0/data.json").unlink()
    assert "but the command asks for" in prrfl(*command)[2]


def test_unfinished_runs_continue_with_moved_data(prrfl, data, done, tmp_path):
    shutil.copytree(done, tmp_path / "c")
    shutil.copytree(data, tmp_path / "moved")
    run = tmp_path / "c/runs/fedavg-seed0"
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(data), str(tmp_path / "gone")))
    (run / "summary.json").unlink()
    command = [
        "compare",
        "--methods",
        "fedavg",
        "--data",
        tmp_path / "moved",
        *SMALL,
        "--out",
        tmp_path / "c",
    ]
    code, _, err = prrfl(*command)
    assert (code, err) == (0, "")
