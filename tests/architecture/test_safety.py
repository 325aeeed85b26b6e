"""Safe by construction: what the source never does, and what a run is seen not to do."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.sites_on_disk import write_layout

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/prrfl"
SOURCES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "main.py"]

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
NETWORK = {
    *("http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "socket", "socketserver", "ssl"),
    *("ftplib", "smtplib", "poplib", "imaplib", "xmlrpc", "websockets", "grpc"),
}
FORBIDDEN = {
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
    "builtins.__import__",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "torch.save",
    "torch.hub",
    "torch.jit.load",
    "torch.multiprocessing",
    "torch.distributed",
    "torch.utils.data.DataLoader",  # its processes pickle
    "concurrent.futures.ProcessPoolExecutor",
    "concurrent.futures.process",
    "multiprocessing.managers",
    "multiprocessing.queues",
    "multiprocessing.pool",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
}
REQUIRED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
"""Calls that are safe with one keyword only."""

PICKLING = {
    "Queue",
    "SimpleQueue",
    "JoinableQueue",
    "Pool",
    "Manager",
    "send",
    "recv",
    "read_pickle",
    "to_pickle",
}
"""What pickles by the name of a method, whatever it is called on."""

HARMLESS = {"queue.Queue", "queue.SimpleQueue"}
"""Queues between threads, which pickle nothing."""


def faults(source: str, *, network: bool = False) -> list[str]:
    """Return the places where a source breaks a rule, as ``line: what``.

    Args:
        source: of a module.
        network: whether it may open connections.
    """
    tree = ast.parse(source)
    names = dict(_imported(tree))
    return [
        f"{line}: {what}"
        for node in ast.walk(tree)
        for line, what in (*_imports(node, network), *_calls(node, names))
    ]


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each local name of an import with what it stands for."""
    for name in ("eval", "exec", "compile", "__import__"):
        yield name, f"builtins.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.partition(".")[0]
                yield alias.asname or head, alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _imports(node: ast.AST, network: bool) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        whole = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for name in whole:
        if name.partition(".")[0] in PICKLES | (set() if network else NETWORK):
            yield node.lineno, f"import {name}"
        if any(name == one or name.startswith(f"{one}.") for one in FORBIDDEN | set(REQUIRED)):
            # By its full name only, so that what it is called with can be seen where it is called.
            yield node.lineno, f"import {name}"


def _calls(node: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call):
        called = _dotted(node.func, names)
        given = {word.arg: getattr(word.value, "value", word) for word in node.keywords}
        if called in REQUIRED and given.get(REQUIRED[called][0]) is not REQUIRED[called][1]:
            yield node.lineno, f"{called} without {REQUIRED[called][0]}={REQUIRED[called][1]}"
        if given.get("shell", False) is not False or (called.startswith("subprocess.") and None in given):
            yield node.lineno, f"{called} with shell"
        if called.rpartition(".")[2] in PICKLING and called not in HARMLESS:
            yield node.lineno, called
    elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
        used = _dotted(node, names)
        if used in FORBIDDEN:
            yield node.lineno, used


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """Return a name with its dots, its head replaced by what it was imported as."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return "?"


LISTENS = PACKAGE / "live/serving.py"
"""The module that listens on this machine. It may import servers only, which open no connection."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_keeps_the_rules(path):
    found = faults(path.read_text("utf-8"), network=path.is_relative_to(PACKAGE / "flower"))
    allowed = ("import http.server.", "import socketserver.TCPServer") if path == LISTENS else ()
    assert not [fault for fault in found if not fault.partition(": ")[2].startswith(allowed or ("-",))]


def test_all_of_the_package_is_looked_at():
    assert len(SOURCES) > 50
    assert PACKAGE / "engine/workers.py" in SOURCES


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import cloudpickle as c",
        "import joblib.externals",
        "import torch\ntorch.save({}, 'f')",
        "from torch import save",
        "import torch as t\nkeep = t.save",
        "import torch\ntorch.load('f')",
        "import torch\ntorch.load('f', weights_only=False)",
        "import torch\ntorch.load('f', weights_only=maybe)",
        "from torch import load",
        "import torch\ntorch.hub.load('a', 'b')",
        "import numpy as np\nnp.load('f')",
        "import numpy as np\nnp.load('f', allow_pickle=True)",
        "from numpy import load",
        "eval('1')",
        "exec('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "__import__('os')",
        "import os\nos.system('ls')",
        "from os import system",
        "import os\nos.popen('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess as s\ns.Popen('ls', shell=flag)",
        "import subprocess\nsubprocess.run('ls', **options)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import multiprocessing\nmultiprocessing.Queue()",
        "import multiprocessing\nmultiprocessing.get_context('fork').Pool(2)",
        "from multiprocessing import Queue\nQueue()",
        "from multiprocessing.pool import ThreadPool",
        "import torch.multiprocessing as mp",
        "from concurrent.futures import ProcessPoolExecutor",
        "from torch.utils.data import DataLoader",
        "connection.send({})",
        "self._connection.recv()",
        "import pandas\npandas.read_pickle('f')",
        "frame.to_pickle('f')",
        "import yaml\nyaml.load('a', yaml.Loader)",
        "import tempfile\ntempfile.mktemp()",
        "from tempfile import mktemp",
        "import socket",
        "import urllib.request",
        "from http.client import HTTPConnection",
        "import requests",
    ],
)
def test_a_rule_that_is_broken_is_seen(source):
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('f', weights_only=True)",
        "import numpy as np\nnp.load('f', allow_pickle=False)",
        "network.eval()",
        "import re\nre.compile('a')",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
        "from queue import SimpleQueue\nSimpleQueue()",
        "connection.send_bytes(b'')\nconnection.recv_bytes()",
        "import yaml\nyaml.safe_load('a')",
        "import tempfile\ntempfile.mkstemp()",
    ],
)
def test_what_is_safe_is_let_through(source):
    assert not faults(source)


def test_the_network_is_for_federations_alone():
    assert faults("import socket")
    assert not faults("import socket", network=True)
    assert faults("import pickle", network=True)


WATCHED = {
    *("pickle.find_class", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"),
    *("socket.sendto", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"),
}

WATCH = f"""
import os, sys, traceback
WATCHED = {sorted(WATCHED)!r}
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def watch(event, arguments):
    if event in WATCHED:
        stack = [f"{{f.filename}}:{{f.lineno}}" for f in traceback.extract_stack()[:-1]][-12:]
        os.write(log, f"{{event}} {{arguments!r}} at {{' < '.join(reversed(stack))}}\\n".encode())
sys.addaudithook(watch)
"""
PRRFL = "from prrfl.cli import main\nmain()\n"


def watched(log, code, *arguments, before=()):
    """Run code in a process that writes down the events that are watched; return them."""
    done = subprocess.run(
        [*before, sys.executable, "-c", WATCH + code, log, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("import pickle, fractions; pickle.loads(pickle.dumps(fractions.Fraction(1)))", "pickle.find_class"),
        ("import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).connect(('127.0.0.1', 9))", "socket.connect"),
        ("import socket; socket.socket().bind(('127.0.0.1', 0))", "socket.bind"),
        ("import socket; socket.getaddrinfo('127.0.0.1', 1)", "socket.getaddrinfo"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import os; os.system('true')", "os.system"),
        ("import os, pickle, fractions\nif not (child := os.fork()):\n"
         "    pickle.loads(pickle.dumps(fractions.Fraction(1)))\n    os._exit(0)\nos.waitpid(child, 0)",
         "pickle.find_class"),
    ],
)  # fmt: skip
def test_what_is_watched_for_is_seen(tmp_path, code, event):
    assert any(line.startswith(f"{event} ") for line in watched(tmp_path / "log", code))


LDCONFIG = re.compile(
    r"(subprocess\.Popen|os\.posix_spawn) \('\S*ldconfig', \['\S*ldconfig', '-p'\].* at .*/cuda/pathfinder/"
)
"""Of torch's build for GPUs: on being imported it asks the system where NVIDIA's libraries are."""

IPV6 = re.compile(r"socket\.bind .*\('::1', 0\)\) at [^<]+/urllib3/util/connection\.py:")
"""Of MONAI, which imports requests where it is installed, and so urllib3, which on being imported binds a
socket to a free port of ::1 and closes it, to see whether the machine speaks IPv6. Nothing listens there."""


def besides(seen, *exceptions):
    """Return the events that are none of the exceptions."""
    return [line for line in seen if not any(known.match(line) for known in exceptions)]


def test_an_exception_lets_nothing_else_through():
    lines = [
        "subprocess.Popen ('/sbin/ldconfig', ['/sbin/ldconfig', '-p']) at /x/cuda/pathfinder/a.py:1",
        "subprocess.Popen ('/sbin/ldconfig', ['/sbin/ldconfig', '-p']) at /x/prrfl/a.py:1",
        "subprocess.Popen ('/bin/sh', ['/bin/sh']) at /x/cuda/pathfinder/a.py:1",
        "socket.bind (<socket>, ('::1', 0)) at /x y/urllib3/util/connection.py:127",
        "socket.bind (<socket>, ('::1', 80)) at /x/urllib3/util/connection.py:127",
        "socket.bind (<socket>, ('::1', 0)) at /x/prrfl/run.py:1",
    ]
    assert besides(lines, LDCONFIG, IPV6) == [lines[1], lines[2], lines[4], lines[5]]


SMALL = ["--image-size", 32, "--rounds", 2, "--epochs", 1, "--batch", 8, "--workers", 2]
SHORT = ["--rounds", 1, "--method", "fedavg"]


@pytest.mark.slow
def test_a_run_pickles_nothing_starts_nothing_and_talks_to_nobody(tmp_path):
    data, run = write_layout(tmp_path / "data"), tmp_path / "run"
    commands = {
        "train": ("train", "--data", data, *SMALL, "--out", run),
        "resume": ("resume", run),
        "report": ("report", run),
        "evaluate": ("evaluate", run, "--data", data),
    }
    for name, command in commands.items():
        assert not besides(watched(tmp_path / name, PRRFL, *command), LDCONFIG), name
        if name == "train":
            assert "workers = 2" in (run / "config.toml").read_text()
            # As if it had been stopped in the last round.
            shutil.rmtree(run / "state/round-0001")
            (run / "summary.json").unlink()
    assert json.loads((run / "summary.json").read_text())["rounds"] == 2
    assert (run / "report.html").is_file()


UNAME = re.compile(r"subprocess\.Popen \('uname', \['uname', '-p'\].*/mlflow/telemetry/schemas\.py")
"""Of MLflow, which MONAI imports where it is installed: it asks what processor this is."""


@pytest.mark.slow
def test_a_network_of_monai_opens_no_connection(tmp_path):
    command = ("train", "--data", write_layout(tmp_path / "data"), *SMALL, *SHORT, "--network", "resnet18")
    seen = watched(tmp_path / "log", PRRFL, *command, "--out", tmp_path / "run")
    assert not besides(seen, LDCONFIG, IPV6, UNAME)


def in_no_network():
    """Return the command that starts another one where there is no network at all, not even to itself."""
    command = ("unshare", "--map-root-user", "--net")
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("this system lets nobody make a network namespace")
    return command


def test_there_is_no_network_in_an_empty_namespace():
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        command = [sys.executable, "-c", code]
        assert subprocess.run(command, check=False).returncode == 0
        within = subprocess.run([*in_no_network(), *command], capture_output=True, text=True, check=False)
    assert "Network is unreachable" in within.stderr


@pytest.mark.slow
def test_training_needs_no_network(tmp_path):
    command = ("train", "--sites", 2, "--images", 18, *SMALL, *SHORT, "--out", tmp_path / "run")
    done = subprocess.run(
        [*in_no_network(), sys.executable, "-m", "prrfl", *map(str, command)],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},  # so that the images are made there
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/summary.json").is_file()
    assert list((tmp_path / "cache/prrfl").iterdir())


@pytest.mark.slow
def test_trackers_need_no_network(tmp_path):
    trackers = ["tensorboard", *(name for name in ("mlflow", "wandb") if find_spec(name))]
    data, run = write_layout(tmp_path / "data"), tmp_path / "run"
    command = ["train", "--data", data, *SMALL, *SHORT, "--track", ",".join(trackers), "--out", run]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "WANDB"))}
    subprocess.run(
        [*in_no_network(), sys.executable, "-m", "prrfl", *map(str, command)], env=environment, check=True
    )
    assert all((run / name).is_dir() for name in trackers)
    assert "WARNING" not in (run / "log.txt").read_text()


OF_THE_GPU = re.compile(r"nvidia-|cuda-|triton$")
"""What torch's build for GPUs brings along, in versions that its own metadata fix."""


def closure():
    """Return the names of all that `prrfl[dev]` brings along here, by the installed packages' metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    done, waiting = set(), [*project["dependencies"], *extras["dev"]]
    names = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        for extra in requirement.extras | {""}:
            if (name, extra) in done:
                continue
            done.add((name, extra))
            if name == "prrfl":
                waiting += extras.get(extra, [])
                continue
            names.add(name)
            inner = map(Requirement, metadata.requires(name) or [])
            waiting += [str(r) for r in inner if r.marker is None or r.marker.evaluate({"extra": extra})]
    return names


def pins():
    lines = (ROOT / "constraints.txt").read_text("utf-8").split("\n")
    return {canonicalize_name((r := Requirement(line)).name): r.specifier for line in lines if line.strip()}


def test_every_pin_is_exact():
    for name, specifier in pins().items():
        (one,) = specifier
        assert one.operator == "==", name
        assert "*" not in one.version, name


def test_all_that_is_installed_is_pinned_and_as_pinned():
    names = {name for name in closure() if not OF_THE_GPU.match(name)}
    assert names >= {"torch", "numpy", "flwr", "grpcio", "pytest", "pip-audit"}  # direct and indirect ones
    pinned = pins()
    unpinned = sorted(names - set(pinned))
    assert not unpinned
    for name in sorted(names):
        (pin,) = pinned[name]
        # Without a build's own suffix, as in 2.13.0+cpu.
        assert Version(metadata.version(name)).public == pin.version, name
