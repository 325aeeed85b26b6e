"""How the command line starts: what it imports, and its list of commands."""

import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.main import get_command

import prrfl as package
from prrfl.cli import app
from prrfl.cli.commands import MODULES, SUMMARIES
from prrfl.cli.flags import describe, described

SLOW = {"torch", "sklearn", "scipy", "matplotlib", "monai", "PIL", "flwr"}
"""Packages that take long to import."""

MAIN = Path(__file__).parents[2] / "main.py"


def imported(code):
    """Run code in a fresh process; return the top-level packages that it imports, and its output."""
    code = f"""
import sys
try:
    {code}
except SystemExit:
    pass
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *output, modules = done.stdout.splitlines()
    return set(modules.split()), "\n".join(output)


def command(*arguments):
    return imported(f"sys.argv = ['prrfl', *{arguments!r}]; from prrfl.cli import main; main()")


def test_importing_the_package_imports_none_of_its_dependencies():
    modules, _ = imported("import prrfl; prrfl.__version__, prrfl.ConfigError, dir(prrfl)")
    assert "prrfl" in modules
    assert not modules & (SLOW | {"numpy", "pydantic", "typer", "rich"})


def test_every_public_name_can_be_imported():
    for name in package.__all__:
        assert getattr(package, name) is not None, name
    assert set(package._MODULE_OF) == set(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="module 'prrfl' has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["trian"],
        *([name, "--help"] for name in MODULES),
    ],
    ids=" ".join,
)
def test_a_command_that_only_prints_imports_nothing_slow(arguments):
    modules, _ = command(*arguments)
    assert "prrfl" in modules
    assert not modules & SLOW


def test_the_help_of_settings_is_that_of_the_code():
    assert described() == describe(), "the settings have changed: run `make flags`"


def test_the_version_is_that_of_the_installed_package():
    _, output = command("--version")
    assert output == f"prrfl {metadata.version('prrfl')}"


def test_the_end_of_a_command_collects_no_garbage():
    look = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
    code = f"{look}import sys; sys.argv = ['prrfl', '--version']; from prrfl.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"


def test_every_command_is_listed_with_the_first_line_of_its_help():
    for name, one in get_command(app).commands.items():
        assert (one.help or "").partition("\n")[0] == SUMMARIES[name]


def test_the_published_script_says_what_to_run_if_the_package_is_not_installed():
    done = subprocess.run(
        [sys.executable, "-S", MAIN, "--theme", "prrfl"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: this Python does not have the package prrfl; run `make setup` once, then "
        "`.venv/bin/python main.py`\n"
    )


def test_the_published_script_takes_its_command_twice(monkeypatch):
    """It trains with seed 1, into a folder named by time and theme under ./experiment."""
    script = runpy.run_path(str(MAIN))
    called = []
    monkeypatch.setitem(script["main"].__globals__, "run_training", lambda *given: called.append(given))
    monkeypatch.setattr(sys, "argv", ["main.py", "--theme", "mine"])
    script["main"]()
    ((settings, folder),) = called
    assert settings.seed == 1
    assert folder.parent == Path("experiment")
    assert re.fullmatch(r"\d{8}-\d{6}_mine", folder.name)
