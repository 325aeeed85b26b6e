"""The preflight checks of `prrfl doctor`, on this machine and on made-up ones."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch

import prrfl as package
from prrfl import machine, preflight
from prrfl.cli.screen import console
from prrfl.config import checked
from prrfl.data.check import Findings
from prrfl.errors import PRRFLError
from prrfl.machine import GPU
from prrfl.preflight import data as data_checks
from prrfl.preflight import hardware, installation, speed
from prrfl.preflight.data import DataSet
from prrfl.preflight.findings import Finding, duration, verdict
from prrfl.reports.formatting import counted
from prrfl.runs.setup import load_data, make_recipe, resolved
from tests.sites_on_disk import write_layout

SMALL = "network = 'tiny'\nimage_size = 32\nbatch = 8\nworkers = 1\nthreads = 1\n"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Work in a folder that holds settings under which a step is quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(console, "_width", 400)  # a line for each finding
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def unmeasured(monkeypatch):
    """Measure no speed."""
    monkeypatch.setattr(speed, "seconds_per_image", lambda *_: 0.01)


@pytest.fixture
def call(prrfl, small, unmeasured):
    """Call the command; return exit code and the findings' lines."""

    def run(*arguments):
        code, out, err = prrfl("doctor", "--config", "small.toml", *arguments)
        assert not err
        return code, out

    return run


def of(findings, level):
    return [finding for finding in findings if finding.level == level]


def test_a_sound_machine_is_ready_and_says_what_training_picks(prrfl, small):
    code, out, _ = prrfl("doctor", "--config", "small.toml")
    assert code == 0, out
    assert "✗" not in out
    for said in ("Python ", "extra flower ", "scikit-learn ", f"{small / 'runs'}:", "MiB needed"):
        assert said in out
    picked = resolved(checked({"image_size": 32, "workers": 1, "threads": 1}, ""), 4)
    assert f"device {picked.device}, {picked.precision}, processes: 1, threads of each: 1" in out
    assert re.search(r"one local epoch of 320 images: about [\d.]+ s \(prrfl, tiny, 32 px", out)
    assert "measured now" in out
    assert out.splitlines()[-1].startswith("Ready to train: no problem")
    assert {path.name for path in small.iterdir()} == {"small.toml"}  # nothing is left behind


def test_the_epoch_is_measured_and_not_made_up(monkeypatch):
    config = resolved(checked({"image_size": 32, "batch": 8, "workers": 1, "threads": 1}, ""), 2)
    clock = iter([0.0, 9.0, 10.0, 10.1, 20.0, 20.7])  # a batch that does not count, 8 images, 16 images
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert speed.seconds_per_image(config, make_recipe(config)) == pytest.approx(0.7 / 16)


def test_data_is_looked_at(call, small):
    write_layout(small / "data", train=24, other=15)
    code, out = call("--data", "data")
    assert code == 0, out
    assert "2 sites, images of train/valid/test: clientA 24/15/15, clientB 24/15/15" in out
    assert "50 rounds of 5 epochs on 48 training images: about " in out
    assert "108 decoded images" in out
    assert "fewer than 5" not in out


def break_one(data):
    next((data / "data/clientA/img_resize32").glob("*_valid_*")).write_bytes(b"no image")


def lose_one(data):
    next((data / "data/clientA/img_resize32").glob("*_valid_*")).unlink()


def lose_a_table(data):
    (data / "csv_folder/clientB/test_clientB.csv").unlink()


def lose_a_site(data):
    shutil.rmtree(data / "csv_folder/clientB")
    shutil.rmtree(data / "data/clientB")


def lose_classes(data):
    for table in (data / "csv_folder/clientA").glob("train_*.csv"):
        table.write_text("".join(line for line in table.open() if not line.strip().endswith(("1", "2"))))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (break_one, "1 broken: image .* cannot be decoded"),
        (lose_one, "1 image missing, such as data/"),
        (lose_a_table, "test_clientB.csv is missing"),
        (lose_a_site, "holds one site, clientA"),
        (lose_classes, "training images show fewer than two classes"),
        (shutil.rmtree, "data"),
    ],
)
def test_what_training_refuses_is_a_problem(call, small, harm, said):
    harm(write_layout(small / "data"))
    code, out = call("--data", "data")
    assert code == 1
    assert re.search(rf"✗ +(data)? +.*{said}", out), out
    assert "Not ready to train: 1 problem" in out
    settings = checked({"data": "data", "image_size": 32}, "")
    with pytest.raises(PRRFLError):
        load_data(settings)


def test_what_training_goes_on_with_is_a_note(call, small):
    data = write_layout(small / "data", train=9, other=6)
    lose_one(data)
    (train, *_), (other, *_) = ((data / f"data/client{k}/img_resize32").glob("*_train_*") for k in "AB")
    shutil.copy(train, other)
    next((data / "data/clientA/img_resize32").glob("*_test_*")).write_bytes(train.read_bytes())
    with (small / "small.toml").open("a") as file:
        file.write("allow_missing = true\n")
    code, out = call("--data", "data")
    assert code == 0, out
    for said in (
        "1 image missing",
        "3 images with the same pixels",
        "1 valid or test image with",
        "in 18 cases, a split has fewer than 5 images of a class",
    ):
        assert re.search(rf"! +(data)? +{said}", out), (said, out)


def test_data_may_be_named_by_the_settings(call, small):
    write_layout(small / "data", sites=3)
    with (small / "small.toml").open("a") as file:
        file.write("data = 'data'\n")
    _, out = call()
    assert "3 sites, images of train/valid/test" in out
    assert "generated data" not in out


def test_a_network_whose_package_is_missing_is_a_problem(call, small, monkeypatch):
    (small / "small.toml").write_text(SMALL.replace("tiny", "resnet18"))
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    code, out = call()
    assert code == 1
    assert re.search(r"✗ +network +resnet18 cannot be built: .*monai", out), out


def test_leaks_are_a_note(call, small):
    data = write_layout(small / "layout", train=24, other=15)
    rows = ["path,label,site,split,group"]
    for image in sorted(data.rglob("*.png")):
        site, split, number = image.stem.split("_")
        rows.append(f"{image},{int(number) % 3},{site},{split},{site}-{number}")
    (small / "manifest.csv").write_text("\n".join(rows) + "\n")
    code, out = call("--data", "manifest.csv")
    assert code == 0, out
    assert "60 valid or test images of a lesion or patient that the same site trains on" in out
    assert "30 test images of a group or copy in a validation set" in out


def test_arrays_are_looked_at(call, small):
    arrays = {f"{name}_images": np.zeros((6, 8, 8), np.uint8) for name in ("train", "val", "test")}
    arrays |= {f"{name}_labels": np.arange(6) % 3 for name in ("train", "val", "test")}
    (small / "arrays").mkdir()
    np.savez(small / "arrays/north.npz", **arrays)
    np.savez(small / "arrays/south.npz", **arrays)
    code, out = call("--data", "arrays")
    assert code == 0, out
    assert "2 sites, images of train/valid/test: north 6/6/6, south 6/6/6" in out
    np.savez(small / "arrays/south.npz", **{**arrays, "val_labels": np.arange(6)})
    code, out = call("--data", "arrays")
    assert code == 1
    assert re.search(r"✗ +data +.*labels run from 0 to 5", out)


OWN = """
import torch
from prrfl import Examples, SiteData

def load(image_size, classes, fails: bool = False):
    labels = torch.arange(6) % 3 + 5 * fails
    examples = Examples(torch.zeros(6, 3, image_size, image_size, dtype=torch.uint8), labels)
    return [SiteData(name, examples, examples, examples) for name in ("north", "south")]
"""


def test_data_of_ones_own_is_looked_at(call, small):
    (small / "checked_by_doctor.py").write_text(OWN)  # a name of its own: parts are found once
    code, out = call("--data", "./checked_by_doctor.py:load")
    assert code == 0, out
    assert "2 sites, images of train/valid/test: north 6/6/6, south 6/6/6" in out
    with (small / "small.toml").open("a") as settings:
        settings.write("set = { data = { fails = true } }\n")
    code, out = call("--data", "./checked_by_doctor.py:load")
    assert code == 1
    assert re.search(r"✗ +data +.*north, split train: expected int64 labels from 0 to 2", out)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rouns = 3", "unknown key 'rouns' .did you mean 'rounds'"),
        ("device = 'cuda:99'", "'cuda:99' is not available on this machine"),
        ("method = 'centralised'", "workers is 2, but centralised training has one network"),
    ],
)
def test_settings_that_do_not_hold_are_a_problem(prrfl, small, unmeasured, line, said):
    (small / "small.toml").write_text(f"{line}\nworkers = 2\nthreads = 1\nimage_size = 32\n")
    code, out, err = prrfl("doctor", "--config", "small.toml")
    assert code == 1
    assert not err
    assert re.search(rf"✗ +settings +.*{said}", out), out


def test_too_little_memory_is_a_problem_before_a_step_is_tried(call, monkeypatch):
    monkeypatch.setattr(preflight, "available_memory", lambda: 100 * 2**20)
    monkeypatch.setattr(speed, "seconds_per_image", lambda *_: pytest.fail("tried"))
    code, out = call()
    assert code == 1
    assert re.search(r"✗ +memory +100 MiB available, at least 600 MiB needed", out)


GIB = 2**30


@pytest.mark.parametrize(
    ("memory", "process", "sites", "level"),
    [
        (8 * GIB, GIB, 4, "ok"),
        (3 * GIB, GIB, 4, "note"),  # four processes do not fit
        (GIB, GIB, 4, "problem"),  # not one of them, with the images
        (8 * GIB, GIB, 1000, "problem"),  # 320,000 images of 48 KiB do not
    ],
)
def test_memory_is_compared_with_processes_and_images(memory, process, sites, level):
    config = checked({"workers": 4, "threads": 1}, "")
    found = speed.check_memory_use(memory, process, config, DataSet((), sites))
    assert found.level == level, found
    assert bool(found.advice) == (level != "ok")


def test_data_that_does_not_fit_is_not_loaded(call, small, monkeypatch):
    write_layout(small / "data")
    monkeypatch.setattr(data_checks, "load_data", lambda config: pytest.fail("loaded"))
    monkeypatch.setattr(speed, "LEAST_MEMORY", 0)
    monkeypatch.setattr(preflight, "available_memory", lambda: 42 * 3 * 32**2 - 1)
    code, out = call("--data", "data")
    assert code == 1
    assert re.search(r"✗ +memory", out)


def test_folders_that_cannot_be_written_to_are_problems(call, small, monkeypatch):
    (small / "runs").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # where not even root can
    code, out = call()
    assert code == 1
    assert re.search(rf"✗ +runs +{small}/runs cannot be written to", out), out
    assert re.search(r"✗ +generated data +/proc/nowhere/prrfl cannot be written to", out)
    assert "2 problems" in out


def test_a_full_disk_is_a_problem(small):
    assert hardware.check_folder("runs", small / "a/b", 2**20).level == "ok"
    found = hardware.check_folder("runs", small / "a/b", 2**60)
    assert found.level == "problem"
    assert "1073741824.0 GiB needed" in found.message


@pytest.mark.parametrize(
    ("version", "level"), [("3.10.14", "problem"), ("3.11.0", "ok"), ("3.13.1", "ok"), ("3.14.0rc1", "ok")]
)
def test_python(version, level):
    found = installation.check_python(version)
    assert found.level == level
    assert version in found.message


REQUIRES = [
    "torch>=2.6",
    "numpy>=1.26",
    "tomli>=2; python_version < '3.11'",
    "flwr>=1.41; extra == 'flower'",
    "onnx; extra == 'onnx'",
    "prrfl[flower,onnx]; extra == 'all'",
]


@pytest.mark.parametrize(
    ("versions", "problems", "notes"),
    [
        ({"torch": "2.13.0+cpu", "numpy": "2.4", "flwr": "1.42", "onnx": "1"}, [], []),
        ({"torch": "2.5.1", "numpy": "2.4", "flwr": "1.42", "onnx": "1"}, ["torch 2.5.1"], []),
        ({"torch": "2.6", "flwr": "1.42", "onnx": "1"}, ["numpy is not installed"], []),
        ({"torch": "2.6", "numpy": "2", "flwr": "1.2", "onnx": "1"}, [], ["flwr 1.2", "flwr 1.2"]),
        ({"torch": "2.6", "numpy": "2"}, [], ["flwr is not", "flwr is not installed; onnx is not"]),
    ],
)
def test_versions_are_compared_with_the_metadata(versions, problems, notes):
    found = list(installation.check_packages(REQUIRES, versions.get))
    more = list(installation.check_extras(REQUIRES, versions.get, ["flower", "all"]))
    for level, of_all, said in (("problem", found, problems), ("note", more, notes)):
        faults = of(of_all, level)
        assert len(faults) == len(said), faults
        for fault, expected in zip(faults, said, strict=True):
            assert fault.message.startswith(expected)
            assert fault.advice.startswith("pip install '")
    assert len(of([*found, *more], "ok")) == (not problems) + (2 - len(notes))


def test_every_dependency_and_extra_of_this_package_is_looked_at():
    assert {one.name for one in installation.requirements()} >= {"torch", "monai", "jinja2"}
    assert {one.name for one in installation.requirements(extra="flower")} == {"flwr", "cryptography"}
    assert {one.topic for one in installation.check_extras()} >= {"extra flower", "extra tensorboard"}
    assert not {one.topic for one in installation.check_extras()} & {"extra dev", "extra docs"}


def uninstall(monkeypatch, package):
    there = installation.installed_version
    monkeypatch.setattr(
        installation, "installed_version", lambda name: None if name == package else there(name)
    )


def test_a_machine_without_extras_is_ready(call, monkeypatch):
    uninstall(monkeypatch, "flwr")
    code, out = call()
    assert code == 0
    assert re.search(r"! +extra flower +flwr is not installed\s+→ pip install 'prrfl\[flower\]'", out), out


def test_a_missing_package_is_a_problem(call, monkeypatch):
    uninstall(monkeypatch, "monai")
    code, out = call()
    assert code == 1
    assert re.search(r"✗ +packages +monai is not installed\s+→ pip install 'monai>=", out), out


def test_a_package_that_is_only_on_the_path_is_a_problem(call, monkeypatch):
    monkeypatch.setattr(installation, "installed_version", lambda name: None)
    code, out = call()
    assert code == 1
    assert re.search(r"✗ +prrfl +imported from .*/prrfl, but not installed", out), out


def distribution(folder, version, *, package=False):
    info = folder / f"prrfl-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prrfl\nVersion: {version}\n")
    (info / "RECORD").write_text("prrfl/__init__.py,,\n")
    if package:
        (folder / "prrfl").mkdir()
    return folder


def test_another_version_in_the_way_is_a_problem(small, monkeypatch):
    monkeypatch.syspath_prepend(distribution(small / "old", "0.0.9"))
    found = next(installation.check_shadowing())
    assert found.level == "problem"
    assert f"0.0.9 in {small / 'old'}" in found.message


def test_a_package_that_shadows_the_installed_one_is_a_note(small, monkeypatch):
    version = package.__version__
    monkeypatch.setattr(sys, "path", [str(distribution(small / "site", version, package=True))])
    monkeypatch.setattr(package, "__file__", str(small / "site/prrfl/__init__.py"))
    assert next(installation.check_shadowing()).level == "ok"
    monkeypatch.setattr(package, "__file__", str(small / "elsewhere/prrfl/__init__.py"))
    found = next(installation.check_shadowing())
    assert found.level == "note"
    assert f"{small / 'elsewhere/prrfl'}, which is not where it is installed" in found.message
    url = (small / "elsewhere").as_uri()
    (small / f"site/prrfl-{version}.dist-info/direct_url.json").write_text(
        f'{{"dir_info": {{"editable": true}}, "url": "{url}"}}'
    )
    assert next(installation.check_shadowing()).level == "ok"


def test_another_command_on_the_path_is_a_note(small, monkeypatch):
    program = small / "bin/prrfl"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert [f.level for f in installation.check_shadowing() if str(program) in f.message] == ["note"]
    monkeypatch.setattr(sys, "executable", str(small / "bin/python"))
    assert not [f for f in installation.check_shadowing() if str(program) in f.message]


def test_a_cuda_build_without_a_gpu_is_a_note(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(hardware, "gpu", lambda device="cuda": None)

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old. Please update your\ndriver")

    monkeypatch.setattr(torch.cuda, "init", init)
    (note,) = of(hardware.check_gpu(), "note")
    assert note.message == "torch cannot use a GPU: The NVIDIA driver on your system is too old"


@pytest.mark.parametrize("driver", [True, False])
def test_a_driver_that_torch_does_not_use_is_a_note(tmp_path, monkeypatch, driver):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(hardware, "gpu", lambda device="cuda": None)
    monkeypatch.setattr(hardware, "NVIDIA", tmp_path if driver else tmp_path / "nothing")
    notes = [note.message for note in of(hardware.check_gpu(), "note")]
    assert notes == ["an NVIDIA driver is loaded, but torch is built for the CPU"] * driver


def test_a_gpu_is_named_with_its_memory(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gpus = {"cuda": GPU("Some GPU", (6 * GIB, 8 * GIB), bfloat16=False)}
    gpus["cuda:0"] = gpus["cuda"]
    for module in (machine, hardware):
        monkeypatch.setattr(module, "gpu", lambda device="cuda": gpus.get(device))
    said = " ".join(found.message for found in hardware.check_gpu())
    assert "cuda:0: Some GPU, 6.0 GiB of 8.0 GiB free; no bfloat16 in hardware: float32" in said


def test_a_step_that_fails_is_a_problem(call, monkeypatch):
    def fail(config, recipe):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(speed, "seconds_per_image", fail)
    code, out = call()
    assert code == 1
    assert re.search(
        r"✗ +training +a training step of tiny fails: no kernel image is available for exec", out
    )


def test_fewer_cores_than_the_machine_has_are_a_note(monkeypatch):
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 8)
    assert hardware.check_cores().level == "ok"
    monkeypatch.setattr(hardware, "usable_cores", lambda: 3)
    assert hardware.check_cores().level == "note"
    assert hardware.check_cores().message.startswith("3 of the machine's 8")


def test_another_system_is_a_problem(call, monkeypatch):
    monkeypatch.setattr(installation.platform, "system", lambda: "Darwin")
    code, out = call()
    assert code == 1
    assert re.search(r"✗ +system +Darwin", out)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        (["ok"], "Ready to train: no problem, 0 notes."),
        (["ok", "note"], "Ready to train: no problem, 1 note."),
        (["problem", "note", "problem"], "Not ready to train: 2 problems, 1 note."),
    ],
)
def test_the_verdict(levels, said):
    assert verdict(Finding(level, "", "") for level in levels) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.123, "0.12 s"), (42.4, "42 s"), (150, "2.5 min"), (7300, "2.0 h"), (90000, "25 h")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("number", "thing", "said"),
    [
        (0, "note", "0 notes"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (1000, "site", "1,000 sites"),
    ],
)
def test_nouns_agree_with_their_numbers(number, thing, said):
    assert counted(number, thing) == said


def test_one_small_class_is_told_of_in_the_singular():
    found = Findings(counts={}, few=[("a", "test", "nv", 4)])
    (note,) = data_checks._in_brief(found, allow_missing=False)
    assert note.message.startswith("one split has fewer than 5 images of a class")


def test_contradicting_labels_are_a_note_and_check_lists_them():
    found = Findings(counts={}, contradictions=[["x/train/0 (nv)", "x/train/2 (bkl)"]])
    (note,) = data_checks._in_brief(found, allow_missing=False)
    assert note.message == "2 images with copies that have another label"
    assert note.advice == "`prrfl data check` lists them, and with --json FILE all of them"
