"""The rules of the house, read off the imports."""

import ast
from pathlib import Path

import pytest

import prrfl
from prrfl.algorithms import ALGORITHMS, BASELINE, DEFAULT
from prrfl.det import ALPHA1, ALPHA2
from prrfl.pfa import R0, R1

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


STORAGE = {"storage.atomic", "storage.reading", "storage.records"}
IMPORTS = {name_of(path): imports(path) for path in MODULES}


def inner(module: str) -> set[str]:
    return {name for name in IMPORTS[module] if not name.startswith("/")}


LAYERS = (
    {"errors", "types", "machine", "capture"},
    {"parts", "folding"},
    {"tensors", "evaluation", "calibration", "storage", "losses"},
    {"reports", "pfa", "training", "models", "data"},
    {"det"},
    {"algorithms"},
    {"engine", "config"},
    {"runs"},
    {"inference", "preflight", "flower", "live", "testing"},
    {"cli"},
    {"__main__", ""},
)
"""Rooms and modules of the root, the lowest layer first; "" is the package. See docs/architecture.md."""


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_a_layer():
    rooms = {room(module) for module in IMPORTS}
    assert sorted(name for layer in LAYERS for name in layer) == sorted(rooms)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_lead_down(module):
    height = next(k for k, layer in enumerate(LAYERS) if room(module) in layer)
    below = set().union(*LAYERS[:height])
    # The package has no code; its version may be asked for from everywhere.
    reached = {room(name) for name in inner(module)} - {room(module), "", "__version__"}
    assert reached <= below


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("tensors", {"types", "errors"}),
        ("pfa", {"types", "errors", "tensors"}),
        ("evaluation", {"types"}),
        (
            "training.recipe",
            {
                *("types", "errors", "tensors", "folding", "capture", "losses"),
                *("training.counter", "training.epoch"),
            },
        ),
        (
            "training.epoch",
            {
                *("types", "errors", "tensors", "machine", "capture"),
                *("training.batching", "training.randomness", "training.recipe"),
            },
        ),
        ("losses.cpa", {"losses.base"}),
        ("losses.rebalanced", {"losses.base"}),
        ("det", {"types", "training", "evaluation"}),
        ("storage.atomic", set()),
        ("storage.reading", {"errors"}),
        ("data.fingerprint", {"types", "data.images"}),
        ("runs.folder", {"types", "errors", "config", "losses", "data.fingerprint", "data.own", *STORAGE}),
    ],
)
def test_some_modules_need_even_less(module, allowed):
    assert inner(module) <= allowed


def test_the_engine_knows_methods_only_by_their_protocol():
    for module in IMPORTS:
        if room(module) == "engine":
            reached = {name for name in inner(module) if room(name) == "algorithms"}
            assert reached <= {"algorithms.base"}, module


def test_reports_know_nothing_but_records_and_how_to_write_files():
    for module in IMPORTS:
        if room(module) == "reports":
            assert {room(name) for name in inner(module)} <= {"types", "storage", "reports"}, module


def test_the_root_holds_few_modules():
    root = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(root) <= 12


def test_no_method_is_known_by_name_outside_its_room():
    names = set(ALGORITHMS) - {DEFAULT, BASELINE}
    for path in MODULES:
        if room(name_of(path)) == "algorithms":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant):
                assert node.value not in names, where
            elif isinstance(node, ast.Compare) and "method" in ast.dump(node):
                compared = [x.value for x in (node.left, *node.comparators) if isinstance(x, ast.Constant)]
                assert not {DEFAULT, BASELINE} & set(compared), where


def test_the_papers_hyper_parameters_stand_in_one_place():
    """Those of PFA and DET. Elsewhere no argument or flag has one of these numbers as its default."""
    for path in (*MODULES, PACKAGE.parents[1] / "main.py"):
        if path.stem in ("pfa", "det"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            defaults = []
            if isinstance(node, ast.arguments):
                defaults = [*node.defaults, *node.kw_defaults]
            elif isinstance(node, ast.keyword) and node.arg == "default":
                defaults = [node.value]
            numbers = {value.value for value in defaults if isinstance(value, ast.Constant)}
            assert not numbers & {R0, R1, ALPHA1, ALPHA2}, f"{path}: {numbers}"


def is_command(path: Path, function: ast.FunctionDef) -> bool:
    """Return whether a function is a command, whose parameters are the flags that users give."""
    if room(name_of(path)) != "cli":
        return False
    return bool(function.decorator_list) or "Annotated" in ast.dump(function.args)


MOST_PARAMETERS = 6


def test_no_function_takes_many_parameters():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef) or is_command(path, node):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            assert len(names) <= MOST_PARAMETERS, f"{path}:{node.lineno} {node.name}: {', '.join(names)}"


def test_no_drawer_of_odds_and_ends():
    for module in IMPORTS:
        assert not {"utils", "util", "helpers", "manager", "handler", "common"} & set(module.split(".")), (
            module
        )


def test_flower_stays_in_its_room():
    for module, found in IMPORTS.items():
        assert "/flwr" not in found or module.startswith("flower"), module
