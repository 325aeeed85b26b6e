"""The README's example runs as it stands, and its commands exist."""

import re
from pathlib import Path

from typer.main import get_command

from prrfl.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(example, names)
    assert "ExchangeRecord" in capsys.readouterr().out
    assert set(names["north"]) == set(names["network"].state_dict())


def test_every_command_is_listed():
    listed = set(re.findall(r"^\| `prrfl (data \w+|\w+)", README, re.MULTILINE))
    commands = dict(get_command(app).commands)
    groups = {
        name: commands.pop(name).commands for name in list(commands) if hasattr(commands[name], "commands")
    }
    assert listed == set(commands) | {f"{group} {name}" for group, names in groups.items() for name in names}


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).is_file(), target
