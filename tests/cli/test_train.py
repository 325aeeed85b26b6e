"""The command line as a user meets it: what runs, what stays on disk, and how it refuses."""

import errno
import json
import re
import resource
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from prrfl import cli
from prrfl.cli.flags import PANELS
from prrfl.config import TrainConfig, load_config
from prrfl.errors import ConfigError
from prrfl.runs import deployed
from prrfl.storage.records import read_records
from prrfl.storage.tensor_files import read_tensors
from tests.forked import ForkedCommands, called
from tests.sites_on_disk import write_layout

SMALL = ["--image-size", "32", "--rounds", "2", "--epochs", "2", "--batch", "8", "--precision", "float32"]


TINY = [*SMALL, "--network", "tiny", "--workers", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("a folder"))


def prrfl(*arguments, capsys=None):
    """Run the command line in this process; return (exit code, stdout, stderr)."""
    before = sys.argv
    sys.argv = ["prrfl", *map(str, arguments)]
    try:
        code = cli.guarded(cli.app)
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments):
    code, _, err = prrfl(*arguments, capsys=capsys)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    return out, called("train", "--data", folder, "--out", out, *TINY)


def test_a_run_leaves_everything_that_was_promised(finished):
    out, printed = finished
    assert {path.name for path in out.iterdir()} == {
        "config.toml",
        "data.json",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "scores.csv",
        "retrogress.png",
        "log.txt",
        "predictions",
        "state",
        "models",
    }
    for site in ("clientA", "clientB"):
        assert site in printed
        for name in ("best", "last"):
            assert "5.weight" in read_tensors(out / "models" / site / f"{name}.safetensors")
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["last"]["sites"]) == {"clientA", "clientB"}
    assert summary["retrogress"]["personalised"] == {"macro_f1": 0.0, "auc": 0.0}
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["rounds"] == 2
    assert config["alpha1"] == 0.7
    records = read_records(out / "metrics.jsonl")
    assert len([r for r in records if r.kind == "train"]) == 2 * 2 * 2
    assert "round 1 done" in (out / "log.txt").read_text()


def test_same_settings_same_bits(finished, folder, tmp_path, capsys):
    out, _ = finished
    code, _, err = prrfl("train", "--config", out / "config.toml", "--out", tmp_path / "two", capsys=capsys)
    assert code == 0, err
    assert (tmp_path / "two" / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()
    first, second = (read_tensors(f / "models/clientA/last.safetensors") for f in (out, tmp_path / "two"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_report_remakes_the_pictures(finished, capsys):
    out, _ = finished
    (out / "retrogress.png").unlink()
    code, printed, _ = prrfl("report", out, capsys=capsys)
    assert code == 0
    assert "clientB" in printed
    assert (out / "retrogress.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_lists_every_treatment(capsys):
    code, printed, _ = prrfl("inspect", "--network", "vgg_b", "--ratio", "0.95", capsys=capsys)
    assert code == 0
    for kind in ("fourier", "local", "mean"):
        assert kind in printed
    assert "of the weights" in printed


def test_settings_from_file_and_flags(tmp_path, folder, capsys):
    (tmp_path / "c.toml").write_text(
        f"data = '{folder}'\nnetwork = 'tiny'\nrounds = 1\nepochs = 1\nimage_size = 32\nclasses = 'a,b,c'\n"
    )
    code, _, err = prrfl(
        "train", "--config", tmp_path / "c.toml", "--epochs", 2, "--out", tmp_path / "r", capsys=capsys
    )
    assert code == 0, err
    config = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert (config["rounds"], config["epochs"], config["classes"]) == (1, 2, ["a", "b", "c"])


def test_every_setting_is_a_flag(capsys):
    code, printed, _ = prrfl("train", "--help", capsys=capsys)
    assert code == 0
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')}"[:20] in printed
    assert re.findall(r"╭─ (.+?) ─", printed) == ["Options", *PANELS.values()]


ODD = ("16", "1e9", "-1", "0.5", "nan", "x", "", "per-rond", "true", "[]", "{}")


@pytest.mark.parametrize("key", TrainConfig.model_fields)
def test_errors_of_settings_read_alike(key, tmp_path):
    """In a file as in a flag: where, what was expected, what was found."""
    (tmp_path / "own.toml").touch()
    for value in ODD:
        text = value if value[:1] in ("[", "{") or value == "true" else f'"{value}"'
        (tmp_path / "bad.toml").write_text(f"{key} = {text}")
        for call in (
            lambda: load_config(tmp_path / "bad.toml", {}),
            lambda value=value: load_config(tmp_path / "own.toml", {key: value}),
        ):
            try:
                call()
            except ConfigError as error:
                where, _, rest = str(error).partition(": ")
                assert where in (str(tmp_path / "bad.toml"), f"--{key.replace('_', '-')}")
                assert re.match(rf"(key '{key}': )?(expected|unknown|'|it concerns|the package)", rest), rest
                assert rest.count("expected") < 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--image-size", 16), "--image-size: expected at least 32 and at most 1024, got 16"),
        (("--lr", 0), "--lr: expected more than 0 and at most 1e+30, got 0.0"),
        (("--rounds", "ten"), "--rounds: expected a whole number, got 'ten'"),
        (("--rounds", "1.5"), "--rounds: expected a whole number, got '1.5'"),
        (("--lr", "fast"), "--lr: expected a number, got 'fast'"),
        (("--lr", "nan"), "--lr: expected a finite number, got nan"),
        (
            ("--prototypes", "per-rond"),
            "--prototypes: expected one of per-epoch, per-round (did you mean 'per-round'?), got 'per-rond'",
        ),
        (("--share-bits", 8), "--share-bits: expected one of 16, 32, got '8'"),
        (("--method", "fedavgg"), "(did you mean 'fedavg'?), got 'fedavgg'"),
    ],
)
def test_a_wrong_flag_says_what_was_expected(capsys, tmp_path, flags, said):
    for command in ("train", "compare"):
        if command == "compare" and "--method" in flags:
            continue
        assert refused(capsys, command, *flags, "--out", tmp_path / "r").endswith(said)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "unknown key 'epoch' (did you mean 'epochs'?)"),
        ("rounds = 0", "key 'rounds'"),
        ("lr = 'fast'", "key 'lr'"),
        ("rounds = = 3", "is not TOML"),
        ("network = 'vgg_n'", "did you mean 'vgg_nb'?"),
        ("rounds = true", "key 'rounds': expected a number, not true or false, got True"),
        ("method = []", "key 'method': expected text, got []"),
        ("classes = 'nv'", "at least two class names"),
        ("device = 'gpu0'", "'gpu0' is not available on this machine"),
    ],
)
def test_bad_settings(text, said, tmp_path, capsys):
    (tmp_path / "bad.toml").write_text(text)
    message = refused(capsys, "train", "--config", tmp_path / "bad.toml", "--out", tmp_path / "r")
    assert said in message
    assert "bad.toml" in message
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("text", ["set = 3", "set = {method = 3}"])
@pytest.mark.parametrize("flags", [(), ("--set", "method.step=1")])
def test_settings_of_parts_that_are_no_tables(text, flags, tmp_path, capsys):
    (tmp_path / "bad.toml").write_text(text)
    message = refused(capsys, "train", "--config", tmp_path / "bad.toml", *flags, "--out", tmp_path / "r")
    assert message.endswith("bad.toml: key 'set': expected a table of settings, got 3")


def test_bad_flags_and_folders(folder, tmp_path, capsys):
    out = tmp_path / "r"
    assert "--rounds" in refused(capsys, "train", "--data", folder, "--rounds", "0", "--out", out)
    assert "no.toml" in refused(capsys, "train", "--config", tmp_path / "no.toml")
    assert "nowhere" in refused(capsys, "train", "--data", tmp_path / "nowhere", "--out", out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert "exists already" in refused(capsys, "train", "--data", folder, "--out", out)
    assert (out / "mine.txt").read_text() == "keep"
    assert "is not a run folder" in refused(capsys, "report", tmp_path)


def test_one_site_alone_is_refused(tmp_path, capsys):
    alone = write_layout(tmp_path / "alone", sites=1)
    assert "at least 2" in refused(capsys, "train", "--data", alone, "--out", tmp_path / "r", *TINY)


def test_a_full_disk_ends_in_one_line_and_loses_nothing(folder, tmp_path, capsys, monkeypatch):
    real, calls = deployed.write_tensors, []

    def full(path, weights, about):
        calls.append(path)
        if len(calls) > 5:  # somewhere in the second round
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, weights, about)

    monkeypatch.setattr(deployed, "write_tensors", full)
    out = tmp_path / "r"
    assert "No space left" in refused(capsys, "train", "--data", folder, "--out", out, *TINY)
    assert {r.round for r in read_records(out / "metrics.jsonl")} == {0}
    assert not list(out.rglob(".*"))
    for path in out.rglob("*.safetensors"):
        read_tensors(path)


def test_a_file_that_cannot_be_written_whole_is_not_left_half(folder, tmp_path):
    # The system refuses files above 4 MB, as a full disk would: a network's weights need 9.5 MB.
    out = tmp_path / "r"
    command = ["train", "--data", folder, "--out", out, *SMALL, "--method", "local", "--epochs", "1"]
    with (tmp_path / "stderr").open("w+") as stderr:
        process = ForkedCommands.Popen(
            [sys.executable, "-m", "prrfl", *map(str, command)],
            stderr=stderr,
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)),
        )
        process.wait()
        stderr.seek(0)
        said = stderr.read()
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in said
    assert not list(out.rglob("*.safetensors"))
    assert not list(out.rglob(".*"))


def test_damaged_records_are_named(finished, tmp_path, capsys):
    out, _ = finished
    for name in ("config.toml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "score", "rou')
    assert "metrics.jsonl:" in refused(capsys, "report", tmp_path)


def test_the_published_quickstart(tmp_path, monkeypatch, undrawn):
    write_layout(tmp_path, train=6, other=3, size=128)
    script = runpy.run_path(str(Path(__file__).parents[2] / "main.py"))
    flags = (
        "--theme prrfl --network vgg_b --optim adam --lr 0.001 --lr_step 1 --lr_gamma 0.5 --wd 1e-6 "
        "--batch 8 --iters 1 --wk_iters 1 --l_rate 0.6 --alpha1 0.6 --alpha2 0.8 --seed 1 --save_path kept"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", *flags.split()])
    assert cli.guarded(script["main"]) == 0
    (run,) = (tmp_path / "kept").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}_prrfl", run.name)
    config = tomllib.loads((run / "config.toml").read_text())
    assert (config["r0"], config["network"], config["optimizer"]) == (0.6, "vgg_b", "adam")


def test_help_says_defaults_and_what_can_be_chosen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("train", "compare"):
        code, printed, _ = prrfl(command, "--help", capsys=capsys)
        assert code == 0
        for words in (
            "communication rounds (T) [default: 50]",
            "one of staged, recover, exchange, sublimate, off [default: staged]",
            "class names of the labels 0, 1, ..., separated by commas [default: nv,bkl,mel]",
            "resnet18",
        ):
            assert words in printed
        assert "None]" not in printed
    assert "prrfl:transfer=off [default: prrfl,fedavg,fedprox," in " ".join(printed.replace("│", " ").split())


def test_help_says_what_arguments_are(capsys):
    # Some versions of click lose the help of arguments under Flower's version of typer.
    code, printed, _ = prrfl("resume", "--help", capsys=capsys)
    assert code == 0
    assert "folder of a run" in printed


def test_settings_without_effect_are_said_and_contradictions_refused(
    folder, tmp_path, capsys, caplog, undrawn
):
    command = ["train", "--data", folder, "--out", tmp_path / "r", *TINY]
    odd = ["--method", "local", "--rounds", 1, "--mu", 5, "--transfer", "off", "--sites", 9]
    code, _, err = prrfl(*command, *odd, capsys=capsys)
    assert code == 0, err
    assert caplog.messages[0] == f"sites, transfer, mu: no effect on a run of local on {folder}"
    crossed = refused(capsys, *command, "--alpha1", 0.9, "--alpha2", 0.8)
    assert "error: --alpha2: expected at least alpha1, which is 0.9, got 0.8" in crossed


def test_a_time_limit_leaves_a_run_that_can_be_resumed(prrfl, tmp_path):
    out = tmp_path / "run"
    small = [
        "--network",
        "tiny",
        "--image-size",
        32,
        "--images",
        18,
        "--sites",
        2,
        "--rounds",
        3,
        "--epochs",
        1,
    ]
    code, said, _ = prrfl("train", "--method", "fedavg", *small, "--out", out, "--time-limit", 0)
    assert code == 0
    assert f"Time limit: 1 of 3 rounds are saved; continue with `prrfl resume {out}`" in said
    assert not (out / "summary.json").exists()
    code, said, _ = prrfl("resume", out, "--time-limit", 60)
    assert code == 0
    assert "Resuming after round 1 of 3" in said
    assert (out / "summary.json").is_file()


@pytest.mark.parametrize(
    ("flags", "said", "warned"),
    [
        (("--method", "prrfl-imbalance"), "prrfl-imbalance on", "prototypes have no effect: init_iter is 15"),
        (
            ("--loss", "focal", "--beta", "0.5"),
            "prrfl with loss focal on",
            "beta: no effect",
        ),
    ],
)
def test_a_run_says_its_loss_and_what_has_no_effect(prrfl, tmp_path, caplog, flags, said, warned):
    write_layout(tmp_path / "data")
    small = (*TINY, "--rounds", "1", "--epochs", "1", "--data", tmp_path / "data")
    code, out, _ = prrfl("train", *flags, *small, "--out", tmp_path / "run")
    assert code == 0
    assert said in out
    assert any(record.message.startswith(warned) for record in caplog.records)


def test_a_method_that_sends_nothing_has_no_loss_that_needs_all_counts(prrfl, tmp_path):
    write_layout(tmp_path / "data")
    small = ("--image-size", "32", "--rounds", "1", "--data", tmp_path / "data")
    code, _, err = prrfl("train", "--method", "local", "--loss", "cpa", *small, "--out", tmp_path / "run")
    assert code == 2
    assert err.count("\n") == 1
    assert "method local sends nothing, but loss cpa needs the class counts of all sites" in err
    assert not (tmp_path / "run").exists()
