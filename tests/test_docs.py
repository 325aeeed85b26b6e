"""The how-tos' commands run as they stand, on small data under the names that they use."""

import re
import shlex
from pathlib import Path

import pytest

from prrfl.algorithms import ALGORITHMS
from prrfl.data.images import SPLITS
from tests.sites_on_disk import write_layout

DOCS = Path(__file__).parents[1] / "docs"
SMALL = ["--image-size", "32", "--rounds", "1", "--epochs", "1", "--batch", "8"]


def commands(name):
    text = (DOCS / name).read_text("utf-8").replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^    (prrfl .*)$", text, re.MULTILINE)]


@pytest.fixture
def call(prrfl, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(arguments):
        code, out, err = prrfl(*arguments)
        assert code == 0, (arguments, err)
        return out

    return run


def test_data(call, tmp_path):
    write_layout(tmp_path / "layout", train=24, other=9)
    rows = ["path,label,site,split,group"]
    for image in sorted((tmp_path / "layout").rglob("*.png")):
        site, split, number = image.stem.split("_")
        assert split in SPLITS
        rows.append(f"{image.relative_to(tmp_path)},{int(number) % 3},{site},{split},{image.stem}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    ran = []
    for arguments in commands("data.md"):
        if arguments[:2] == ["data", "build"]:
            continue  # needs the archives; tests/data/test_trust.py makes small ones
        call([*arguments, *(SMALL if arguments[0] == "train" else [])])
        ran.append(arguments[0])
    assert ran == ["data", "train", "data"]
    assert (tmp_path / "split.csv").is_file()


def test_comparing(call, tmp_path):
    write_layout(tmp_path / "DIR")
    write_layout(tmp_path / "NEW", sites=1)
    compare, evaluate, onboard = commands("comparing.md")
    # Two of the methods and one seed, to be quick; the page's own names are checked by their plan.
    methods = compare[compare.index("--methods") + 1].split(",")
    assert {m.partition(":")[0] for m in methods} <= set(ALGORITHMS)
    compare[compare.index("--methods") + 1] = f"{methods[0]},{methods[-1]}"
    compare[compare.index("--seeds") + 1] = "0"
    call([*compare, *SMALL])
    text = (DOCS / "comparing.md").read_text("utf-8")
    for name in re.findall(r"`(\w+\.\w+)`", text):
        assert (tmp_path / "runs/mine" / name).is_file(), name
    run = "runs/mine/runs/prrfl-seed0"
    assert "ensemble of all" in call([run if word == "RUN" else word for word in evaluate])
    call([run if word == "RUN" else word for word in onboard])
    assert (tmp_path / "runs/newcomer/clientA/model.safetensors").is_file()
