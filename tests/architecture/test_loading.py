"""A process loads only what its task needs."""

import subprocess
import sys

import pytest

PROBE = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sys.modules)
"""


def loaded_by(module):
    """Return the modules that a fresh process holds after one import."""
    done = subprocess.run([sys.executable, "-c", PROBE, module], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def of(loaded, *names):
    return {m for m in loaded if any(m == name or m.startswith(f"{name}.") for name in names)}


def test_a_sites_process_loads_neither_drawing_nor_generated_data_nor_workers():
    """Flower starts a process for every message to a site, which imports this module."""
    pytest.importorskip("flwr")
    loaded = loaded_by("prrfl.flower.site.app")
    assert "prrfl.runs.deployed" in loaded
    drawing = ("matplotlib", "jinja2", "prrfl.reports")
    assert not of(loaded, *drawing, "prrfl.data.synthetic", "prrfl.engine.workers")


@pytest.mark.parametrize("module", ["folder", "checkpoint", "deployed", "setup"])
def test_saving_does_not_draw(module):
    loaded = loaded_by(f"prrfl.runs.{module}")
    assert not of(loaded, "matplotlib", "prrfl.reports", "prrfl.engine.workers", "prrfl.data.synthetic")
