"""Parts of the user's own, in a file or an installed package."""

import errno
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from prrfl.algorithms import ALGORITHMS
from prrfl.config import load_config
from prrfl.data.sources import load_site
from prrfl.errors import ConfigError, DataError
from prrfl.flower.messages import Order, OrderRefusedError
from prrfl.flower.site.orders import SiteSettings, carry_out
from prrfl.models import NETWORKS
from prrfl.models.vit import vit
from prrfl.parts import blamed, collection
from prrfl.parts.blame import raised_by_a_part
from prrfl.runs import compare
from prrfl.runs.tuned import Tuned, TunedMethod
from prrfl.storage.tensor_files import read_tensors
from prrfl.tensors import head_keys
from tests.networks import tiny
from tests.sites_on_disk import write_layout

PARTS = '''
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar
import torch
from torch import nn
from torch.nn import functional
from prrfl import Examples, SiteData
from prrfl.algorithms import FedAvg
from prrfl.training import Learner
from neighbour import SCALE


@dataclass(frozen=True)
class PartWay(FedAvg):
    """Moves part of the way to the mean."""
    step: float = 0.5

    def receive(self, client, mean, ctx):
        old = client.weights
        return Learner({k: self.moved(old[k], new) for k, new in mean.items()})

    def moved(self, old, new):
        return torch.lerp(old, new, self.step) if new.is_floating_point() else new


@dataclass(frozen=True)
class Breaks(FedAvg):
    at: int = 1
    how: str = "SystemExit"

    def receive(self, client, mean, ctx):
        how = self.how if ctx.round == self.at else None
        ways = {"FileNotFoundError": partial(open, "none"), "SystemExit": sys.exit}
        ways.get(how, bool)()  # raises here
        return super().receive(client, mean, ctx)


@dataclass(frozen=True)
class Listed(FedAvg):
    steps: list[float] = field(default_factory=lambda: [0.5, 1.0])
    größe: float = 1
    most: float | None = None


@dataclass(frozen=True)
class Inner:
    step: float = 0.5


@dataclass(frozen=True)
class Nested(FedAvg):
    inner: Inner = Inner()


@dataclass(frozen=True)
class Odd(FedAvg):
    def share(self, client, ctx):
        return [client]


@dataclass(frozen=True)
class Tensorial(FedAvg):
    weight: torch.Tensor = torch.ones(1)


class NoReceive:
    def start(self, initial): ...


def net(num_classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes),
    )


def nothing(num_classes: int) -> nn.Module:
    return num_classes


def ten(num_classes: int) -> nn.Module:
    return net(10)


class Tied(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.head(self.second(self.first(self.features(images)).relu()))


class Headless(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.only = nn.Conv2d(3, num_classes, 3, stride=2)

    def forward(self, images):
        return self.only(images).mean((2, 3))


@dataclass(frozen=True)
class Scaled:
    scale: float = SCALE
    more: float = 0.0
    counts: ClassVar = "none"

    def constants(self, counts):
        return {}

    def __call__(self, logits, labels, constants):
        return self.scale * functional.cross_entropy(logits, labels) + self.more


class Miscounted(Scaled):
    counts = "sites"


@dataclass(frozen=True)
class Flip:
    def draw(self, shape, generator):
        return torch.rand(shape[0], generator=generator) < 0.5

    def __call__(self, images, drawn, rows):
        flip = drawn[rows].to(images.device)
        return torch.where(flip[:, None, None, None], images.flip(3), images)


def load(image_size, classes, count: int = 2):
    def examples(n, seed):
        draw = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (n, 3, image_size, image_size), generator=draw, dtype=torch.uint8)
        return Examples(images, torch.arange(n) % len(classes))
    sizes = (18, 6, 9)
    return [SiteData(f"own{k}", *(examples(n, n + k) for n in sizes)) for k in range(count)]


def outside(image_size, classes):
    site, other = load(image_size, classes)
    return [site, SiteData("../other", other.train, other.valid, other.test)]
'''
SMALL = ("--image-size", "32", "--rounds", "2", "--epochs", "1", "--batch", "8", "--precision", "float32")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make the working folder, with the file of parts, one that it imports, and nothing drawn."""
    (tmp_path / "own.py").write_text(PARTS)
    (tmp_path / "neighbour.py").write_text("SCALE = 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prrfl.runs.report.draw_retrogress", lambda *_: None)
    return tmp_path


@pytest.fixture
def installed(own, monkeypatch):
    """Install the parts: a package with entry points."""
    (own / "lib" / "acme").mkdir(parents=True)
    (own / "lib" / "acme" / "parts.py").write_text(PARTS.replace("from neighbour", "from acme.neighbour"))
    (own / "lib" / "acme" / "neighbour.py").write_text("SCALE = 0.5\n")
    (own / "lib" / "acme" / "__init__.py").touch()
    about = own / "lib" / "acme-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (about / "top_level.txt").write_text("acme\n")
    (about / "entry_points.txt").write_text("[prrfl.methods]\npart-way = acme.parts:PartWay\n")
    monkeypatch.syspath_prepend(own / "lib")
    vars(ALGORITHMS).pop("installed", None)  # found before the package was installed
    collection._distributions.cache_clear()
    yield own
    vars(ALGORITHMS).pop("installed", None)
    collection._distributions.cache_clear()
    vars(ALGORITHMS)["_found"].pop("part-way", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]


ALL = (
    *("--method", "./own.py:PartWay", "--network", "./own.py:net", "--loss", "./own.py:Scaled"),
    *("--augment", "./own.py:Flip", "--data", "./own.py:load"),
)


def test_all_kinds_of_parts_train_resume_and_serve_from_anywhere(own, prrfl, monkeypatch):
    settings = ("--set", "method.step=0.25", "--set", "network.width=6", "--set", "data.count=3")
    code, out, err = prrfl("train", *ALL, *settings, *SMALL, "--workers", "2", "--out", "two")
    assert (code, err) == (0, "")
    assert "own2" in out
    assert (
        prrfl("train", *ALL, *settings, *SMALL, "--workers", "1", "--time-limit", "0", "--out", "one")[0] == 0
    )
    # A file of settings holds all of them, with absolute paths, so that the run resumes from anywhere.
    config = (own / "one" / "config.toml").read_text()
    assert f'method = "{own}/own.py:PartWay"' in config
    assert "[set.method]\nstep = 0.25\n" in config
    assert "[set.loss]\nscale = 0.5\n" in config
    monkeypatch.chdir("/")
    assert prrfl("resume", own / "one")[0] == 0
    saved = [read_tensors(own / run / "models" / "own1" / "last.safetensors") for run in ("one", "two")]
    assert all(torch.equal(saved[0][key], tensor) for key, tensor in saved[1].items())
    assert saved[0]["0.weight"].shape == (6, 3, 3, 3)
    code, out, _ = prrfl("evaluate", own / "one")
    assert (code, "own2" in out) == (0, True)
    environment = json.loads((own / "one" / "environment.json").read_text())
    assert environment["parts"]["network"].startswith("sha256 ")


def test_a_single_site_of_ones_own_is_used_whatever_its_name(own):
    (own / "one.py").write_text(PARTS.replace("count: int = 2", "count: int = 1"))
    read = {"image_size": 32, "classes": ("a", "b", "c")}
    assert load_site(Path("./one.py:load"), "north", **read).name == "north"
    with pytest.raises(DataError, match="has no site 'north'; its sites are own0, own1"):
        load_site(Path("./own.py:load"), "north", **read)


TEST_ONLY = """
from own import load as whole
from dataclasses import replace
from prrfl import Examples, SiteData

def load(image_size, classes):
    (site,) = whole(image_size, classes, 1)
    none = Examples(site.test.inputs[:0], site.test.labels[:0])
    return [SiteData("new", none, none, site.test)]
"""


def test_new_sites_may_be_of_ones_own(own, prrfl, caplog):
    train = ("train", "--data", "./own.py:load", "--set", "data.count=3", "--network", "tiny", *SMALL)
    assert prrfl(*train, "--workers", "1", "--out", "run")[0] == 0
    (own / "new.py").write_text(TEST_ONLY)
    code, out, err = prrfl("evaluate", "run", "--data", "./new.py:load")
    assert (code, err) == (0, "")
    assert "best networks on the 9 test images of new" in " ".join(out.split())
    code, _, err = prrfl("onboard", "run", "--data", "./new.py:load", "--out", "o", "--epochs", "1")
    assert (code, "site new, split train: no images" in err, err.count("\n")) == (2, True, 1), err
    # The run's own data has the run's settings.
    assert prrfl("evaluate", "run", "--data", "./own.py:load", "--json", "e.json")[0] == 0
    assert list(json.loads((own / "e.json").read_text())) == ["own0", "own1", "own2"]
    assert "own0, own1, own2 took part in the run" in caplog.text
    code, _, err = prrfl("onboard", "run", "--data", "./own.py:load", "--out", "o", "--epochs", "1")
    assert (code, (own / "o/own2/model.safetensors").is_file()) == (0, True), err


def test_settings_in_a_file_and_flags_over_them(own, prrfl):
    (own / "run.toml").write_text(
        'method = "./own.py:PartWay"\nnetwork = "tiny"\ndata = "./own.py:load"\n[set.method]\nstep = 1\n'
    )
    for name, flags in (("a", ()), ("b", ("--set", "method.step=0"))):
        assert prrfl("train", "--config", "run.toml", *flags, *SMALL, "--out", name)[0] == 0
    a, b = ((own / name / "config.toml").read_text() for name in "ab")
    assert "step = 1.0\n" in a
    assert "step = 0.0\n" in b


def test_a_step_of_one_is_fedavg_in_a_comparison(own, prrfl, forked):
    methods = "fedavg,./own.py:PartWay:step=1,./own.py:PartWay"
    where = ("--data", "./own.py:load", "--network", "tiny", *SMALL)
    code, _, err = prrfl("compare", "--methods", methods, "--seeds", "0", *where, "--out", "c")
    assert (code, err) == (0, "")
    assert "PartWay:step=1" in (own / "c" / "comparison.csv").read_text()
    runs = own / "c" / "runs"
    assert {path.name for path in runs.iterdir()} == {"fedavg-seed0", "PartWay-step-1-seed0", "PartWay-seed0"}
    last = "models/own0/last.safetensors"
    fedavg, all_the_way, half = (
        read_tensors(runs / name / last) for name in ("fedavg-seed0", "PartWay-step-1-seed0", "PartWay-seed0")
    )
    assert all(torch.equal(all_the_way[key], tensor) for key, tensor in fedavg.items())
    assert not torch.equal(half["0.weight"], fedavg["0.weight"])
    assert prrfl("report", "c")[0] == 0
    (own / "copy.py").write_text(PARTS)
    code, _, err = prrfl("compare", "--methods", "./own.py:PartWay,./copy.py:PartWay", *where, "--out", "d")
    assert (code, (own / "d").exists()) == (2, False)
    assert "methods ./own.py:PartWay and ./copy.py:PartWay are both called PartWay" in err


IN_A_FILE = """
method = "./own.py:PartWay"
loss = "./own.py:Scaled"
data = "./own.py:load"
network = "tiny"
[set.method]
step = 0.75
[set.loss]
scale = 5
more = 7
"""


def test_a_comparison_uses_the_settings_of_parts_of_file_flags_and_names(own, caplog):
    (own / "c.toml").write_text(IN_A_FILE)
    flags = {"set": {"loss": {"scale": "3"}}}
    methods = ["fedavg", "./own.py:PartWay", "./own.py:PartWay:step=1", "./own.py:Listed"]
    planned = compare.plan(Path("c.toml"), flags, methods, [0], own / "c")
    assert [one.config.set["loss"] for one in planned] == [{"scale": 3.0, "more": 7.0}] * 4
    assert [one.config.set.get("method", {}).get("step") for one in planned] == [None, 0.75, 1.0, None]
    assert not caplog.messages
    compare.plan(Path("c.toml"), {}, ["fedavg"], [0], own / "c")
    assert caplog.messages == ["method.step: no effect on any run"]
    with pytest.raises(ConfigError, match=r"give it with that method's name: --methods NAME:step=1$"):
        compare.plan(None, {"set": {"method": {"step": "1"}}}, ["./own.py:PartWay"], [0], own / "c")


def test_tuned_settings_must_not_contradict_those_of_a_part_in_a_file(own):
    (own / "c.toml").write_text(IN_A_FILE)
    (own / "own.py").write_text(f"{PARTS}\nclass Other(PartWay): ...\n")

    def plan(step):
        found = {name: TunedMethod(0.5, 0, 0, {"method.step": step}) for name in ("PartWay", "Other")}
        tuned = Tuned(2, 2, 1000, found, "search")
        methods = ["./own.py:PartWay", "./own.py:Other"]
        return compare.plan(Path("c.toml"), {}, methods, [0], own / "c", tuned)

    said = r"method\.step = 0\.75 is given, but search holds 0\.5 for PartWay"
    with pytest.raises(ConfigError, match=said):
        plan(0.5)
    assert [one.config.set["method"]["step"] for one in plan(0.75)] == [0.75, 0.75]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--method", "./own.py:PartWey"), r"own.py has no PartWey (did you mean 'PartWay'?)"),
        (("--method", "./none.py:PartWay"), "none.py does not exist; give the path of a Python file"),
        (("--method", "acme9.mod:PartWay"), "module acme9 is not installed; install the package that has it"),
        (("--method", "./own.py:NoReceive"), "own.py:NoReceive has no train; it needs start, train"),
        (("--method", "./own.py:net"), "own.py:net: expected a class, got a function"),
        (("--method", "./wrong.py:A"), "wrong.py, line 2: ZeroDivisionError: division by zero"),
        (("--method", "./syntax.py:A"), "syntax.py, line 1: SyntaxError"),
        (("--method", "./exits.py:A"), "exits.py, line 1: SystemExit: 0"),
        (("--method", "./range.py:A"), "range.py, line 3: ConfigError: search 1..0: expected finite numbers"),
        (("--method", "./own.py:Tensorial"), "setting weight is a Tensor, which a settings file cannot hold"),
        (("--method", "./own.py:Nested"), "setting inner is a Inner, which a settings file cannot hold"),
        (
            ("--method", "./own.py:Listed", "--set", "method.steps=1,x"),
            "steps: Input should be a valid number",
        ),
        (("--loss", "./own.py:Miscounted"), "its counts are 'sites'; expected one of none, site, federation"),
        (("--data", "./own.py:outside"), "own.py:outside: invalid name of a site '../other'"),
        (
            ("--network", "./own.py:ten"),
            "own.py:ten: expected a tensor of logits (2, 3) for 2 images of 32 px and 3 classes, got (2, 10)",
        ),
        (
            ("--network", "os:system"),
            "network os:system: expected a subclass of torch.nn.Module, or a function",
        ),
        (("--network", "./own.py:nothing"), "own.py:nothing: expected a torch.nn.Module, got int"),
        (
            ("--method", "./own.py:PartWay", "--set", "method.stop=1"),
            "no setting stop (did you mean 'step'?)",
        ),
        (
            ("--method", "./own.py:PartWay", "--set", "method.step=far"),
            "step: Input should be a valid number",
        ),
        (("--set", "method.r0=1"), "method prrfl is built in, so it has no method.r0"),
        (
            ("--set", "methd.r0=1"),
            "expected one of method, loss, network, augment, data (did you mean 'method'?)",
        ),
        (("--set", "step=1"), "--set step=1: expected kind.name=value"),
        (("--augment", "papr"), "--augment: expected one of paper (did you mean 'paper'?), got 'papr'"),
    ],
)
def test_what_cannot_be_used_is_one_line(own, prrfl, flags, error):
    (own / "wrong.py").write_text("def A(): ...\n1 / 0\n")
    (own / "syntax.py").write_text("def A(:\n")
    (own / "exits.py").write_text("raise SystemExit(0)\n")
    (own / "range.py").write_text("from prrfl import Search\n\nSearch(1, 0)\n")
    code, _, err = prrfl(
        "train", "--data", "./own.py:load", "--network", "tiny", *flags, *SMALL, "--out", "r"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert error in err
    assert not (own / "r").exists()


@pytest.mark.parametrize(("workers", "how"), [(1, "SystemExit"), (2, "FileNotFoundError")])
def test_what_raises_while_it_runs_names_the_line_and_loses_nothing(own, prrfl, caplog, workers, how):
    where = ("--data", "./own.py:load", "--network", "tiny", *SMALL, "--workers", workers, "--out", "r")
    code, _, err = prrfl("train", "--method", "./own.py:Breaks", "--set", f"method.how={how}", *where)
    line = 1 + next(k for k, text in enumerate(PARTS.splitlines()) if "# raises here" in text)
    assert (code, err.count("error: ")) == (2, 1)
    assert f"error: method {own}/own.py:Breaks: {own}/own.py, line {line}, in receive: {how}" in err
    assert "Traceback" in (own / "r" / "log.txt").read_text()
    # The correction may bring a setting.
    (own / "own.py").write_text(
        PARTS.replace("ctx.round == self.at", "False").replace("at: int = 1", "at: int = 1\n    new: int = 2")
    )
    for name in [name for name in sys.modules if name.startswith("prrfl_part_")]:
        del sys.modules[name]
    ALGORITHMS._found.clear()
    code, out, _ = prrfl("resume", "r")
    assert (code, "Resuming after round 1" in out) == (0, True)
    assert "the code of its method has changed since round 1" in caplog.text


def test_a_part_of_the_package_does_not_make_the_package_foreign():
    assert NETWORKS["prrfl.models.vit:vit"] is vit
    with pytest.raises(AttributeError) as raised:
        head_keys(None)
    assert raised_by_a_part(raised.value) is None


def test_a_full_disk_is_not_blamed_on_a_part(own, prrfl):
    prrfl("train", "--method", "./own.py:NoReceive")  # in use now
    assert blamed(OSError(errno.ENOSPC, "No space left on device")) is None


def test_settings_that_are_lists_or_not_ascii_are_kept(own, tmp_path):
    flags = {"method": "./own.py:Listed", "data": "./own.py:load"}
    given = load_config(None, {**flags, "set": {"method": {"steps": "3, 4", "größe": "2"}}})
    (tmp_path / "kept.toml").write_text(given.to_toml())
    assert load_config(tmp_path / "kept.toml", {}) == given
    assert given.algorithm().steps == [3.0, 4.0]
    unset, set_ = (load_config(None, {**flags, **more}) for more in ({}, {"set": {"method": {"most": "2"}}}))
    assert (unset.algorithm().steps, unset.algorithm().most) == ([0.5, 1.0], None)
    assert (set_.algorithm().most, set_.set["method"]["most"]) == (2.0, 2.0)


def test_networks_with_tied_weights_train_and_are_saved(own, prrfl):
    where = ("--data", "./own.py:load", "--network", "./own.py:Tied", *SMALL, "--workers", "1", "--out", "r")
    assert prrfl("train", "--method", "moon", *where)[0] == 0
    saved = read_tensors(own / "r" / "models" / "own0" / "last.safetensors")
    assert torch.equal(saved["first.weight"], saved["second.weight"])


def test_a_method_that_keeps_the_last_layer_needs_one(own, prrfl):
    where = ("--data", "./own.py:load", "--network", "./own.py:Headless", *SMALL, "--out", "r")
    code, _, err = prrfl("train", "--method", "fedper", *where)
    assert (code, "the network has no linear layer" in err) == (2, True)


def test_what_returns_something_else_is_named(own, prrfl):
    code, _, err = prrfl(
        "train", "--method", "./own.py:Odd", "--data", "./own.py:load", "--network", "tiny", *SMALL,
        "--workers", "1", "--out", "r",
    )  # fmt: skip
    assert code == 2
    assert f"method {own}/own.py:Odd" in err
    assert "seems to return something unexpected: AttributeError: 'list' object has no attribute" in err


def test_installed_parts_have_names_and_a_version(installed, prrfl):
    assert "part-way" in list(ALGORITHMS)
    code, out, _ = prrfl(
        "train", "--method", "part-way", "--data", "acme.parts:load", "--network", "acme.parts:net", *SMALL,
        "--set", "method.step=1", "--out", "r",
    )  # fmt: skip
    assert (code, "part-way" in out) == (0, True)
    parts = json.loads((installed / "r" / "environment.json").read_text())["parts"]
    assert parts == {"method": "acme 1.2", "network": "acme 1.2", "data": "acme 1.2"}


def test_installed_distributions_are_scanned_once_and_only_for_modules(installed, monkeypatch):
    scans = []
    scan = collection.packages_distributions
    monkeypatch.setattr(collection, "packages_distributions", lambda: scans.append(1) or scan())
    assert (ALGORITHMS.origin("part-way"), scans) == ("acme 1.2", [])
    for _ in range(2):
        assert NETWORKS.origin("acme.parts:net") == "acme 1.2"
    assert scans == [1]


def test_a_saved_network_without_its_part_says_what_to_install(installed, prrfl):
    made = ("--data", "acme.parts:load", "--network", "acme.parts:net", *SMALL, "--out", "r")
    assert prrfl("train", "--method", "fedavg", *made)[0] == 0
    command = [sys.executable, "-m", "prrfl", "export", "r", "--site", "own0", "--out", "x"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert (
        "network acme.parts:net: module acme is not installed; install the package that has it" in done.stderr
    )


def test_help_lists_installed_parts(installed):
    environment = {**os.environ, "PYTHONPATH": str(installed / "lib"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "prrfl", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "part-way" in done.stdout


def order(name, **settings):
    settings = {"network": "tiny", "image_size": 32, "rounds": 1, "epochs": 1, "batch": 8, **settings}
    return Order("train", "e", name, 0, json.dumps(settings, sort_keys=True), version("prrfl"))


@pytest.mark.parametrize("key", ["method", "network", "loss", "augment"])
def test_a_site_imports_nothing_that_it_did_not_agree_to(own, tmp_path, monkeypatch, key):
    (own / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(own)
    local = SiteSettings("clientA", write_layout(tmp_path / "data", sites=1), tmp_path / "home", "cpu", 1)
    for name in ("trap:Method", f"{own}/trap.py:Method"):
        with pytest.raises(OrderRefusedError, match="does not agree to"):
            carry_out(order("clientA", **{key: name}), local)


def test_a_site_trains_with_installed_parts_that_it_agreed_to(installed, tmp_path):
    data = write_layout(tmp_path / "data", sites=1)
    agreed = ("part-way", "acme.parts:net")
    local = SiteSettings("clientA", data, tmp_path / "home", "cpu", 1, methods=agreed)
    answer = carry_out(order("clientA", method="part-way", network="acme.parts:net"), local)
    assert answer.records
    with pytest.raises(OrderRefusedError, match=r"acme\.parts:Scaled"):
        carry_out(
            order("clientA", method="part-way", network="acme.parts:net", loss="acme.parts:Scaled"), local
        )


def test_a_server_refuses_files(own, prrfl, tmp_path):
    code, _, err = prrfl("server", "--method", "./own.py:PartWay", "--sites", "a,b", "--certs", tmp_path)
    assert code == 2
    if "certs" not in err:  # certificates may be looked at first
        assert "is a file of this machine" in err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["method", "network"])
def test_a_skeleton_passes_its_test_and_runs(own, prrfl, kind):
    code, out, _ = prrfl("new", kind, "slow-one")
    assert (code, f"--{kind} slow_one.py:SlowOne" in out) == (0, True)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "test_slow_one.py"], cwd=own, check=False)
    assert done.returncode == 0
    flags = ("--network", "tiny") if kind == "method" else ("--method", "fedavg")
    where = ("--data", "./own.py:load", *SMALL, "--out", "r")
    assert prrfl("train", f"--{kind}", "slow_one.py:SlowOne", *flags, *where)[0] == 0
    for name, error in (("slow-one", "slow_one.py exists already"), ("torch", "a module torch is installed")):
        code, _, err = prrfl("new", kind, name)
        assert (code, error in err) == (2, True)


@pytest.mark.slow
def test_a_project_passes_its_tests_and_names_its_parts(own, prrfl):
    assert prrfl("new", "project", "slow-fl")[0] == 0
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=own / "slow-fl", check=False)
    assert done.returncode == 0
    project = (own / "slow-fl" / "pyproject.toml").read_text()
    assert 'slow_fl = "slow_fl.method:SlowFl"' in project


def test_every_network_of_the_tests_keeps_the_contract():
    from prrfl.testing import check_network

    check_network(tiny)
    with pytest.raises(AssertionError, match="expected logits"):
        check_network(lambda classes: tiny(classes + 1))
