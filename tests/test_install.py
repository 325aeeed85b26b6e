"""The wheel, built and installed as by anybody, in a folder whose path has a space and an umlaut."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
INFO = f"prrfl-{VERSION}.dist-info"
SOURCES = [*sorted((ROOT / "src").rglob("*.py")), ROOT / "main.py"]


def run(*command, **settings):
    """Run a command without this repository on the path; return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(settings.pop("env", {}))
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False, **settings
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("install") / "Klinik Köln"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def wheel(place):
    """Build the wheel from a copy of the repository without what it ignores."""
    copy = place / "a copy"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests", "benchmarks", "docs", "deploy"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "main.py", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", place / "wheels", copy)
    (built,) = (place / "wheels").iterdir()
    return built


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="module")
def installed(place, wheel):
    """Install the wheel into a new environment that sees this one's packages; return its bin folder."""
    environment = place / "an environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin/python"
    options = ("--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    # A line of a .pth file is a folder whose own .pth files are not read, such as that of an editable prrfl.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return environment / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {"prrfl", INFO}
    shipped = {name for name in names if name.startswith("prrfl/")}
    source = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src/prrfl").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == source
    assert shipped >= {
        "prrfl/py.typed",
        "prrfl/quickstart.toml",
        "prrfl/reports/web/page.html",
        "prrfl/reports/web/LICENSE.plot",
        "prrfl/flower/app/pyproject.toml",
    }
    assert f"{INFO}/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_metadata_says_which_pythons(metadata):
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = {line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier")}
    assert classifiers >= {"3.11", "3.12", "3.13"}
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra")) >= {"flower", "tensorboard", "dev"}


@pytest.mark.slow
def test_the_wheel_is_what_runs(installed, place):
    code = "import prrfl, sys; print(prrfl.__file__, prrfl.__version__, *sys.path, sep='\\n')"
    where, version, *path = run(installed / "python", "-c", code, cwd=place).splitlines()
    assert Path(where).is_relative_to(installed.parent)
    assert version == VERSION
    assert not any(Path(folder).resolve().is_relative_to(ROOT / "src") for folder in path)


@pytest.mark.slow
def test_a_user_trains_in_a_folder_of_any_name(installed, place):
    work = place / "Ärztehaus Süd, 2. Stock"
    work.mkdir()
    prrfl, env = installed / "prrfl", {"XDG_CACHE_HOME": str(place / "a cache"), "COLUMNS": "400"}
    assert "Personalised, retrogress-resilient" in run(prrfl, "--help", cwd=work, env=env)
    said = run(prrfl, "doctor", cwd=work, env=env)
    assert re.search(rf"✓ +prrfl +{VERSION} from {installed.parent}/", said), said
    assert f"{work}/runs: " in said
    assert "Ready to train" in said
    run(prrfl, "generate", "Bilder für alle", "--sites", 2, "--images", 18, "--image-size", 32, cwd=work)
    small = ("--image-size", 32, "--rounds", 1, "--epochs", 1, "--workers", 2)
    command = (prrfl, "train", "--data", "Bilder für alle", *small, "--out", "Läufe/der erste")
    run(*command, cwd=work, env=env)
    folder = work / "Läufe/der erste"
    (folder / "report.html").unlink(missing_ok=True)
    run(prrfl, "report", folder, cwd=work, env=env)
    assert "<html" in (folder / "report.html").read_text("utf-8")
    assert len(json.loads((folder / "summary.json").read_text("utf-8"))["last"]["sites"]) == 2
    again = ("train", "--config", folder / "config.toml", "--out", "Läufe/nochmal")
    run(prrfl, *again, cwd=work, env=env)
    both = [work / "Läufe" / name / "metrics.jsonl" for name in ("der erste", "nochmal")]
    assert both[0].read_bytes() == both[1].read_bytes()


REMOVED = {
    *("asynchat", "asyncore", "distutils", "imp", "smtpd"),  # by 3.12
    *("aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "lib2to3", "mailcap", "msilib", "nis"),
    *("nntplib", "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib"),  # by 3.13
}


def imported(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_nothing_is_imported_that_a_later_python_removed():
    assert set(imported("import cgi.escape\nfrom imp import reload")) & REMOVED == {"cgi", "imp"}
    for path in SOURCES:
        assert not set(imported(path.read_text("utf-8"))) & REMOVED, path


def too_new(*what, source=None):
    """Return what Python 3.11 could not parse."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--target-version", "py311"]
    # Some rule must be named; errors of syntax are told in any case.
    done = subprocess.run(
        [*command, "--select", "F", "--output-format", "concise", *map(str, what)],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_the_source_has_the_grammar_of_the_oldest_python():
    assert "syntax was added in Python 3.12" in too_new("-", source="type Pair = tuple[int, int]\n")
    assert "syntax was added in Python 3.13" in too_new("-", source="class Box[T = int]: ...\n")
    said = too_new(ROOT / "src", ROOT / "main.py")
    assert said.strip() == "All checks passed!", said


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_pythons_compile_the_source(version, tmp_path):
    ours = "{}.{}".format(*sys.version_info)
    python = sys.executable if version == ours else shutil.which(f"python{version}")
    if not python or subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"no Python {version} on this machine")
    shutil.copytree(ROOT / "src/prrfl", tmp_path / "prrfl", ignore=shutil.ignore_patterns("__pycache__"))
    run(python, "-W", "error", "-m", "compileall", "-q", "-f", tmp_path / "prrfl")
    assert list(tmp_path.rglob(f"*.cpython-{version.replace('.', '')}.pyc"))
