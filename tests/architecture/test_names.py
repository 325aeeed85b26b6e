"""The names of the house: one meaning each, and the words of the field."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import prrfl
from prrfl.cli import app

PACKAGE = Path(prrfl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

EVERYWHERE = {"log", "app", "main"}
"""A module's logger, and the names that Typer, Flower and the shell look for."""

COINED = {"kept", "using", "judging", "judgement", "newcomer", "newcomers", "words"}
"""Words that the house had for things with a usual name: saved, inference, evaluation, new site, message."""


def commands() -> set[str]:
    """Return the names of all commands. A command may be called like the function that does its work."""
    top = get_command(app).commands
    return set(top).union(*(getattr(command, "commands", ()) for command in top.values()))


def public(tree: ast.Module) -> Iterator[str]:
    """Yield the public names that a module defines at its top level, apart from type variables."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign) and "TypeVar" not in ast.dump(node.value):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def parts(name: str) -> set[str]:
    """Return the words of a name, in lower case: ``read_table``, ``TableRow``, ``MAX_BYTES``."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_a_public_name_is_defined_in_one_module():
    where = defaultdict(list)
    for path in MODULES:
        for name in public(ast.parse(path.read_text("utf-8"))):
            where[name].append(str(path.relative_to(PACKAGE)))
    allowed = EVERYWHERE | commands()
    twice = {name: places for name, places in where.items() if len(places) > 1 and name not in allowed}
    assert not twice


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_are_made_of_usual_words(path):
    names = [path.stem, path.parent.name, *public(ast.parse(path.read_text("utf-8")))]
    names = [name for name in names if not name.isupper()]  # CHECKPOINTS_KEPT says how many are kept
    assert not [name for name in names if parts(name) & COINED]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("read_table", {"read", "table"}),
        ("TableRow", {"table", "row"}),
        ("MAX_BYTES", {"max", "bytes"}),
        ("PRRFLError", {"prrfl", "error"}),
        ("kept", {"kept"}),
    ],
)
def test_words_of_a_name(name, words):
    assert parts(name) == words


def test_names_of_a_module():
    source = "T = TypeVar('T')\n_a = 1\nb: int = 2\nC = 3\ndef d(): e = 4\nclass F: g = 5\nimport h\n"
    assert list(public(ast.parse(source))) == ["b", "C", "d", "F"]
