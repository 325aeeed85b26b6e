"""Every script and notebook of examples/ runs, with as little data and training as will do.

federation.py is run by tests/flower/test_deployment.py.
"""

import importlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from safetensors.torch import load_file

from prrfl.data.synthetic import GeneratedData
from tests.sites_on_disk import write_layout

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SMALL = GeneratedData(sites=2, images=18, size=32, seed=0)


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Return a function that imports a script, whose constants the test may then change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name, **constants):
        module = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        return module

    return load


def test_first_run(example, capsys, tmp_path):
    example("first_run", DATA=SMALL, ROUNDS=1, EPOCHS=1).main()
    assert "prrfl: a communication costs 0.0 points" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"retrogress-fedavg.png", "retrogress-prrfl.png"}


def test_own_data(example, capsys, tmp_path):
    script = example("own_data", IMAGE_SIZE=32, ROUNDS=1, EPOCHS=1)
    script.main(write_layout(tmp_path / "data"), ("nv", "bkl", "mel"))
    assert "round 1, clientA, test: macro-F1" in capsys.readouterr().out
    assert "fc2.linear.weight" in load_file("clientA.safetensors")


def test_own_method(example, capsys):
    script = example("own_method", DATA=SMALL, ROUNDS=1, EPOCHS=1)
    script.main()
    fedavg, own = capsys.readouterr().out.splitlines()
    assert fedavg.startswith("FedAvg: ")
    assert own.startswith("OwnHead: ")


LESS = {
    "images=60": "images=18",
    "--images 60": "--images 18",
    "ROUNDS, EPOCHS = 3, 2": "ROUNDS, EPOCHS = 2, 1",
}
LESS |= {"--rounds 3 --epochs 2": "--rounds 2 --epochs 1"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), f"{path.name}: clear the outputs"
    replaced = 0
    for cell in notebook.cells:
        for much, little in LESS.items():
            replaced += cell.source.count(much)
            cell.source = cell.source.replace(much, little)
    assert replaced == 2
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_the_list_of_examples_is_complete():
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    for path in (*EXAMPLES.glob("*.py"), *NOTEBOOKS):
        assert f"]({path.name})" in listed
