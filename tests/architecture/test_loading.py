"""A process loads only what its task needs."""

import subprocess
import sys

import pytest

PROBE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sys.modules)
"""


SLOW = ("sklearn", "scipy", "monai", "torch._dynamo")
"""What takes half a second or more to import."""


def loaded_by(*modules):
    """Return the modules that a fresh process holds after it imported some."""
    done = subprocess.run([sys.executable, "-c", PROBE, *modules], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def of(loaded, *names):
    return {m for m in loaded if any(m == name or m.startswith(f"{name}.") for name in names)}


def test_a_sites_process_loads_neither_drawing_nor_generated_data_nor_workers():
    """Flower starts a process for every message to a site, which imports this module."""
    pytest.importorskip("flwr")
    loaded = loaded_by("prrfl.flower.site.app")
    assert "prrfl.runs.deployed" in loaded
    drawing = ("matplotlib", "jinja2", "prrfl.reports")
    assert not of(loaded, *drawing, "prrfl.data.synthetic", "prrfl.engine.workers", *SLOW)


def test_saving_does_not_draw():
    modules = [f"prrfl.runs.{name}" for name in ("folder", "checkpoint", "deployed", "setup")]
    loaded = loaded_by(*modules)
    assert loaded.issuperset(modules)
    assert not of(loaded, "matplotlib", "prrfl.reports", "prrfl.engine.workers", "prrfl.data.synthetic")


def test_training_does_not_wait_for_what_few_commands_need():
    loaded = loaded_by("prrfl.cli.training", "prrfl.runs.setup", "prrfl.runs.run")
    assert not of(loaded, "matplotlib", "jinja2", *SLOW)


def test_a_server_loads_what_draws_only_at_the_end_of_a_run():
    pytest.importorskip("flwr")
    assert not of(loaded_by("prrfl.flower.server.app"), "matplotlib", "jinja2", *SLOW)
