"""The rules of the house, read off the imports."""

import ast
from pathlib import Path

import pytest

import prrfl

PACKAGE = Path(prrfl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Return what a file imports, at any depth of its code: ``prrfl.x`` as ``x``, others by first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "prrfl":
            names = [f"prrfl.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            found.add(rest if head == "prrfl" else f"/{head}")
    return found


IMPORTS = {name_of(path): imports(path) for path in MODULES}


def inner(module: str) -> set[str]:
    return {name for name in IMPORTS[module] if not name.startswith("/")}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("errors", set()),
        ("types", set()),
        ("tensors", {"types", "errors"}),
        ("pfa", {"types", "errors", "tensors"}),
        ("evaluation", {"types"}),
        ("folding", set()),
        ("machine", set()),
        ("training", {"types", "errors", "tensors", "folding", "machine"}),
        ("det", {"types", "training", "evaluation"}),
        ("storage.reading", {"errors"}),
        ("storage.atomic", set()),
        ("storage.tensor_files", {"types", "errors", "storage.atomic", "storage.reading"}),
        ("storage.records", {"types", "errors", "storage.atomic", "storage.reading"}),
        ("data.fingerprint", {"types", "data.images"}),
    ],
)
def test_the_core_imports_only_what_lies_below_it(module, allowed):
    assert inner(module) <= allowed


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("algorithms", {"engine", "flower", "data", "reports", "config", "cli", "runs"}),
        ("engine", {"algorithms", "flower", "data", "reports", "config", "cli", "runs"}),
        ("data", {"algorithms", "engine", "flower", "reports", "config", "cli", "runs", "training"}),
    ],
)
def test_no_room_reaches_up(room, forbidden):
    modules = [name for name in IMPORTS if name == room or name.startswith(f"{room}.")]
    assert modules
    for module in modules:
        # algorithms.base holds the protocol; the engine knows that and no concrete method.
        reached = inner(module) - {"algorithms.base"}
        heads = {name.partition(".")[0] for name in reached} - {room}
        assert not heads & forbidden, module


def test_reports_know_nothing_but_types_and_each_other():
    for module in IMPORTS:
        if module.startswith("reports"):
            assert {n for n in inner(module) if not n.startswith("reports")} <= {"types"}, module


def test_no_drawer_of_odds_and_ends():
    for module in IMPORTS:
        assert not {"utils", "util", "helpers", "manager", "handler", "common"} & set(module.split(".")), (
            module
        )


def test_flower_stays_in_its_room():
    for module, found in IMPORTS.items():
        assert "/flwr" not in found or module.startswith("flower"), module
