"""The examples in docstrings, which the reference shows, are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import prrfl

SOURCE = Path(prrfl.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)
OLD_RUN = Path(__file__).parent / "runs" / "old_run"


@pytest.mark.parametrize("module", MODULES)
def test_examples_show_what_happens(module, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(OLD_RUN)  # the examples' run
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(import_module(module))
    assert result.attempted
    assert not result.failed


def test_what_a_program_imports_has_an_example():
    used = {name: getattr(prrfl, name) for name in prrfl.__all__ if not name.endswith("Error")}
    lacking = {name for name, one in used.items() if "Examples:\n" not in (one.__doc__ or "")}
    assert lacking == {"RoundRecord", "Scores"}  # results, which no program makes
