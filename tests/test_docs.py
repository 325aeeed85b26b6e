"""The commands and examples of the how-to pages run unchanged, on small data."""

import io
import re
import shlex
import signal
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command

from prrfl import InProcess, Recipe, cli, run_rounds
from prrfl.algorithms import FedBN, Local
from prrfl.config import settings
from prrfl.data.images import SPLITS
from prrfl.errors import Stopped
from prrfl.models.vit import vit
from prrfl.reports import sampled
from prrfl.runs.compare import plan
from tests.forked import fork_runs
from tests.networks import tiny
from tests.sites_on_disk import write_layout

DOCS = Path(__file__).parents[1] / "docs"
SMALL = ["--image-size", "32", "--rounds", "1", "--epochs", "1", "--batch", "8"]
TINY = [*SMALL, "--network", "tiny"]


def commands(name):
    text = (DOCS / name).read_text("utf-8").replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^    (prrfl .*)$", text, re.MULTILINE)]


def examples(name):
    """Return a page's Python, block by block."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text("utf-8"), re.DOTALL | re.MULTILINE)


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
    for name, colour in (("nv", 0), ("mel", 200)):
        for k in range(12):
            image = tmp_path / "lesions" / name / f"{k}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (colour, 5 * k, 9)).save(image)
    (tmp_path / "photos").symlink_to(tmp_path / "lesions" / "nv")
    cells = ["filename,diagnosis,hospital,patient", *(f"{k},nv,h{k % 2},p{k}" for k in range(9))]
    (tmp_path / "table.csv").write_text("\n".join(cells))
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.full((8, 8), 300, dtype=np.int32)).save(tmp_path / "scans" / "1.tif")
    arrays = {f"{split}_images": np.zeros((30, 4, 4), dtype=np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.arange(30) % 3 for split in ("train", "val", "test")}
    np.savez(tmp_path / "pathmnist.npz", **arrays)
    ran = []
    for arguments in commands("data.md"):
        if arguments[:2] == ["data", "build"]:
            continue  # needs the archives; tests/data/test_trust.py makes small ones
        call([*arguments, *(TINY if arguments[0] == "train" else [])])
        ran.append(arguments[0])
    assert ran == ["data", "train", *["data"] * 6]
    assert (tmp_path / "split.csv").is_file()


def test_comparing(call, tmp_path, forked, undrawn, monkeypatch):
    monkeypatch.setattr(sampled, "FURTHER_DRAWS", 10)
    write_layout(tmp_path / "DIR")
    write_layout(tmp_path / "NEW", sites=1)
    # The last but two, --across, needs five data sets.
    compare, tune, tuned, losses, paper, _, evaluate, onboard = commands("comparing.md")
    # Two of the methods and one seed, to be quick; the page's other names are checked by their plan.
    methods, others = (line[line.index("--methods") + 1].split(",") for line in (compare, losses))
    planned = plan(None, {"data": tmp_path / "DIR"}, [*methods, *others[1:]], [0], tmp_path / "planned")
    assert {one.config.loss for one in planned} == {"cross-entropy", "cpa", "logit-adjusted"}
    compare[compare.index("--methods") + 1] = f"{methods[0]},{methods[-1]}"
    compare[compare.index("--seeds") + 1] = "0"
    call([*compare, *TINY, "--scorers", "matthews_corrcoef"])
    tune[tune.index("--trials") + 1] = "2"
    call([*tune, *TINY])
    tuned[tuned.index("--seeds") + 1] = "0"
    call([*tuned, *TINY])
    text = (DOCS / "comparing.md").read_text("utf-8")
    written = {path.name for path in (tmp_path / "runs").glob("*/*")}
    assert set(re.findall(r"`(\w+\.\w+)`", text)) <= written
    paper[paper.index("--methods") + 1] = f"{methods[-1]},{methods[0]}"
    call(paper)
    for name in re.findall(r"`(paper/\w+\.\S+)`", text):
        assert list((tmp_path / "runs/mine").glob(name)), name
    run = "runs/mine/runs/prrfl-seed0"
    assert "mean of" in call([run if word == "RUN" else word for word in evaluate])
    call([run if word == "RUN" else word for word in onboard])
    for name in ("model.safetensors", "scores.json"):
        assert (tmp_path / "runs/new-site/clientA" / name).is_file()


USES = ("predict", "evaluate", "export")
"""The last commands of the tutorial, which run one by one, with those of using.md."""


def not_there(arguments):
    """Return why a command cannot run: it, one of its flags or a package is missing."""
    name = arguments[0]
    known = get_command(cli.app).commands
    if name not in known:
        return f"there is no command prrfl {name}"
    flags = {flag: parameter for parameter in known[name].params for flag in parameter.opts}
    given = {word for word in arguments if word.startswith("--")}
    for flag in given - set(flags):
        return f"prrfl {name} has no flag {flag}"
    for flag, parameter in flags.items():
        if parameter.required and flag.startswith("--") and flag not in given:
            return f"prrfl {name} asks for {flag}"
    if name == "export" and find_spec("onnxruntime") is None:
        return "the package onnxruntime is missing"
    return None


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Run the tutorial up to the use of the networks, with small settings."""
    folder = tmp_path_factory.mktemp("walk")
    small = {"generate": ["--images", "40"], "train": TINY, "compare": [*TINY, "--seeds", "0"]}
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fork_runs(patch)
        for arguments in commands("tutorial.md"):
            if arguments[0] in USES:
                continue
            patch.setattr("sys.argv", ["prrfl", *arguments, *small.get(arguments[0], [])])
            with redirect_stderr(io.StringIO()) as err:
                assert cli.guarded(cli.app) == 0, (arguments, err.getvalue())
            if arguments[0] == "generate":
                (make_manifest,) = examples("tutorial.md")
                exec(make_manifest, {})
            done.append(" ".join(arguments[: 2 if arguments[0] == "data" else 1]))
    assert done == ["generate", "data check", "data split", "data check", "train", "report", "compare"]
    _add_columns(folder / "split.csv")
    # The other files that using.md names.
    (folder / "images").symlink_to(folder / "hospitals/data/clientA/img_resize64")
    (folder / "DIR").symlink_to(folder / "hospitals")
    (folder / "NEW").symlink_to(folder / "hospitals")
    torch.save(tiny(3).state_dict(), folder / "FILE.pth")
    return folder


def _add_columns(manifest):
    """Add the columns that using.md divides images by."""
    heads, *rows = manifest.read_text("utf-8").splitlines()
    lines = [f"{row},{20 + n % 60},{('female', 'male')[n % 2]}" for n, row in enumerate(rows)]
    manifest.write_text("\n".join([f"{heads},age,sex", *lines]) + "\n", "utf-8")


def test_tutorial(walk):
    lines = (walk / "split.csv").read_text("utf-8").splitlines()[1:]
    assert len(lines) == 3 * 40
    assert {line.split(",")[3] for line in lines} == set(SPLITS)
    page = (DOCS / "tutorial.md").read_text("utf-8")
    (table,) = re.findall(r"^\| in `runs/first` .*?\n\n", page, re.DOTALL | re.MULTILINE)
    rows = [row.split("|")[1:3] for row in table.strip().splitlines()[2:]]
    # Files that only some runs have, or only a run in progress, are not there.
    names = [name for names, what in rows if "nly " not in what for name in re.findall(r"`(.*?)`", names)]
    assert len(names) == 14
    for name in names:
        assert list((walk / "runs/first").glob(f"**/{name.replace('<site>', 'clientA')}")), name
    for page in ("runs/first/report.html", "runs/compared/report.html"):
        assert (walk / page).is_file()


ONE_BY_ONE = [
    *(arguments for arguments in commands("tutorial.md") if arguments[0] in USES),
    *commands("using.md"),
]


@pytest.mark.parametrize("arguments", ONE_BY_ONE, ids=" ".join)
def test_using(arguments, walk, prrfl, monkeypatch):
    if reason := not_there(arguments):
        pytest.skip(reason)
    monkeypatch.chdir(walk)
    if "--out" in arguments:
        assert not Path(arguments[arguments.index("--out") + 1]).exists()
    code, _, err = prrfl(*arguments, *(TINY if arguments[0] == "train" else []))
    assert code == 0, err
    if "--out" in arguments:
        assert Path(arguments[arguments.index("--out") + 1]).exists()


def test_watching(walk, prrfl, monkeypatch):
    monkeypatch.chdir(walk)

    def stop(_):
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr("prrfl.live.serving.PageServer.serve_forever", stop)
    (arguments,) = commands("watching.md")
    code, out, err = prrfl(*arguments)
    assert code == 0, err
    begins = re.search(r"`(http://\S+/)`", (DOCS / "watching.md").read_text("utf-8"))[1]
    assert f"open {begins}" in out


def test_using_from_python(walk, monkeypatch):
    monkeypatch.chdir(walk)
    (example,) = (block for block in examples("using.md") if "onnx" not in block)
    names = {}
    exec(example, names)
    assert names["network"](torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_extending():
    names = {}
    for example in examples("extending.md"):
        exec(example, names)
    assert names["again"] == records_of(names["PartWay"](0.5), names)
    # The ends of the example's own range.
    assert records_of(names["PartWay"](1.0), names) == records_of(FedBN(), names)
    scores = [record for record in records_of(names["PartWay"](0.0), names) if record.kind == "score"]
    assert scores == [record for record in records_of(Local(), names) if record.kind == "score"]


def test_extending_declares_a_setting():
    (line,) = re.findall(r"`(step: .*?)`", (DOCS / "extending.md").read_text("utf-8"))
    names = {**vars(settings), "PartWay": SimpleNamespace(step=0.5)}
    exec(f"class Extended(TrainConfig):\n    {line}", names)
    field = names["Extended"].model_fields["step"]
    assert field.default == 0.5
    assert settings.METHOD in field.metadata


def records_of(method, names):
    network = names["network"]
    engine = InProcess(method, names["sites"], Recipe(network, batch=8))
    return list(run_rounds(method, engine, rounds=2, epochs=2, seed=0, network=network))


def test_the_figure_at_the_papers_size_is_drawn_from_run_folders(walk, monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    import paper_size

    ran = {name: look for name, look in paper_size.METHODS.items() if name != "fedbn"}
    monkeypatch.setattr(paper_size, "METHODS", ran)
    paper_size.draw_paper_size(walk / "runs/compared/runs", walk / "figure.png")
    assert (walk / "figure.png").stat().st_size > 10_000


def test_words_to_avoid_are_found(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(DOCS)
    import prose

    page, module = tmp_path / "page.md", tmp_path / "module.py"
    page.write_text("Do it\nanew.\n\n    anew = 1\n\nGo\non with `anew`.\n")
    module.write_text('anew = """It is None.\n\nThe score is none."""  # started anew\n')
    lines = [line.removeprefix(f"{tmp_path}/") for line in prose.find([tmp_path])]
    assert [line.rpartition(":")[0] for line in lines] == [
        "module.py:3: 'is none'",
        "module.py:3: 'anew'",
        "page.md:2: 'anew'",
        "page.md:6: 'Go on with'",
    ]


def test_figures_name_files_that_pages_show():
    script = (DOCS / "figures.py").read_text("utf-8")
    shown = "".join(page.read_text("utf-8") for page in DOCS.glob("*.md"))
    for name in re.findall(r'"(method-\S+\.png)"', script):
        assert f"images/{name}" in shown
        assert (DOCS / "images" / name).stat().st_size < 120_000


def test_own_parts(call, tmp_path, monkeypatch, forked, undrawn):
    write_layout(tmp_path / "DIR")
    page = (DOCS / "own-parts.md").read_text("utf-8")
    for block in examples("own-parts.md"):
        name = re.match(r"# (\w+\.py)\n", block)
        (tmp_path / name[1]).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    namespace = {}
    exec((tmp_path / "test_own_head.py").read_text(), namespace)
    namespace["test_own_head"]()
    ran = 0
    for arguments in commands("own-parts.md"):
        if "..." in arguments or any("my_package" in word or word == "part-way" for word in arguments):
            continue  # need an installed package, or are tested with it
        if arguments[1:3] == ["--method", "./part_way.py:PartWay"]:
            continue
        own_network = "--network" in arguments
        if arguments[0] == "compare":
            arguments = [*arguments, "--seeds", "0"]
        if arguments[0] == "tune":
            arguments[arguments.index("--trials") + 1] = "2"
        small = [] if arguments[0] == "new" else SMALL if own_network else TINY
        if arguments[0] == "train":  # two runs may begin in one second, which names their folders
            small = [*small, "--out", f"run{ran}"]
        call([*arguments, *small])
        ran += 1
    assert ran == 8
    assert "[set.method]" in page


def test_networks(call, tmp_path, undrawn):
    write_layout(tmp_path / "DIR")
    settings = {"width": 16, "depth": 1, "heads": 2}
    torch.save(vit(1000, **settings).state_dict(), tmp_path / "vit_b_16-c867db91.pth")
    small = [word for key, value in settings.items() for word in ("--set", f"network.{key}={value}")]
    for arguments in commands("networks.md"):
        train = arguments[0] == "train"
        call([*arguments, *(["--network", "prrfl.models.vit:vit", *small, *SMALL] if train else [])])
    assert (tmp_path / "runs/frozen/frozen.safetensors").is_file()
