"""Real processes: SuperLink, SuperNodes, TLS and node authentication, started by prrfl's own commands."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from prrfl.engine.store import read_tensors
from prrfl.records import read_records
from prrfl.run_folder import read_summary
from prrfl.types import ExchangeRecord, ScoreRecord
from tests.flower.deployment import PRRFL, TRAINING, Deployment, free_port, until
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ["clientA", "clientB", "clientC", "clientD"]
SHORT = ["--rounds", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("all sites"), sites=4)


@pytest.fixture(scope="module")
def simulated(data, tmp_path_factory):
    """The same run in one process."""
    folder = tmp_path_factory.mktemp("simulated") / "run"
    simulate(data, folder, *SHORT)
    return folder


def simulate(data, folder, *arguments):
    command = [PRRFL, "train", "--data", data, "--out", folder, "--workers", "1", "--threads", "1"]
    subprocess.run([*command, *TRAINING, *arguments], check=True, capture_output=True)


def test_four_real_sites_give_the_tensors_of_one_process(data, simulated, tmp_path):
    with Deployment(tmp_path, data, NAMES) as deployed:
        server = deployed.server(*SHORT)
        for name in NAMES:
            deployed.site(name)
        assert server.wait(timeout=240) == 0, deployed.said()
        for name in NAMES:
            for which in ("last", "best"):
                ours = read_tensors(deployed.kept(name) / "models" / name / f"{which}.safetensors")
                theirs = read_tensors(simulated / "models" / name / f"{which}.safetensors")
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[key], theirs[key]) for key in ours), (name, which)
        there, here = (read_records(run / "metrics.jsonl") for run in (simulated, deployed.run))
        for kind in (ScoreRecord, ExchangeRecord):
            assert [r for r in there if isinstance(r, kind)] == [r for r in here if isinstance(r, kind)]
        assert read_summary(deployed.run)["best"] == read_summary(simulated)["best"]
        # Neither images nor networks came to the server.
        assert not list(deployed.run.rglob("*.safetensors")), "a network at the server"
        assert re.search(r"macro-F1", deployed.said())


@pytest.fixture
def proxy(tmp_path):
    """The reverse proxy as it is shipped, at other ports and paths; gives a function that starts it."""
    if (nginx := shutil.which("nginx")) is None:
        pytest.skip("nginx is not installed")
    started = []

    def start(deployed):
        port, folder = free_port(), deployed.folder / "nginx"
        folder.mkdir()
        text = (ROOT / "deploy" / "nginx" / "prrfl-fleet.conf").read_text("utf-8")
        for shipped, here in {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:9092": deployed.address,
            "fed.example.org": "localhost",
            "/etc/prrfl/server": str(deployed.folder / "certs" / "server"),
            "/var/log/nginx": str(folder),
        }.items():
            assert shipped in text
            text = text.replace(shipped, here)
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
            f"events {{}}\nhttp {{\n{temporary}{text}\n}}\n"
        )
        started.append(subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"]))
        return f"127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait()


def post(address, path, certs, scheme="https"):
    """Return the HTTP status of a request, or how it failed."""
    command = [
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--cacert",
        certs / "ca.crt",
        "-X",
        "POST",
    ]
    done = subprocess.run(
        [*command, f"{scheme}://{address}{path}"], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else done.stderr


def test_behind_the_proxy_strangers_are_refused_and_killed_sites_and_servers_come_back(proxy, tmp_path):
    names, training = NAMES[:3], ["--rounds", "3", "--epochs", "4"]
    three = write_layout(tmp_path / "three", sites=3, train=60)
    with Deployment(tmp_path, three, names) as deployed:
        Deployment(tmp_path / "strangers", three, names)
        inside = deployed.address
        server = deployed.server(*training)
        outside = deployed.address = proxy(deployed)
        certs = deployed.folder / "certs" / "sites" / "clientA"
        until(lambda: post(inside, "/", certs) == "404", 60, "the SuperLink listening")
        assert post(inside, "/v1/control/list-runs", certs) != "404"
        # Whoever reaches the SuperLink itself controls it, so the door for sites leads to the fleet alone.
        for path in (
            "/v1/control/list-runs",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/health",
            "/",
        ):
            assert post(outside, path, certs) == "404", path
        assert post(outside, "/v1/fleet/../control/list-runs", certs) == "404"
        fleet = "/v1/fleet/pull-messages"
        assert post(outside, fleet, certs) == post(inside, fleet, certs) not in ("200", "404")
        assert post(outside, fleet, certs, "http") == "400"
        assert "SSL" in post(inside, fleet, tmp_path / "strangers" / "certs" / "sites" / "clientA")

        theirs = tmp_path / "strangers" / "certs" / "sites" / "clientA"
        unknown = tmp_path / "unknown key"
        unknown.mkdir()
        shutil.copy(certs / "ca.crt", unknown)
        shutil.copy(theirs / "node.key", unknown)
        strangers = {"unknown": unknown, "wrong-ca": theirs}
        running = [deployed.site(name, certs=folder) for name, folder in strangers.items()]
        for flags in (["--root-certificates", certs / "ca.crt"], ["--insecure", "--max-retries", "1"]):
            node = deployed.start_flower("flower-supernode", "--superlink", outside, *flags)
            assert node.wait(timeout=100) != 0, flags
        for name in strangers:
            until(lambda name=name: "the node ended" in deployed.said(name), 60, f"{name} being refused")
        for process in running:
            deployed.kill(process)

        sites = {name: deployed.site(name) for name in names}
        until(lambda: trains(deployed, "clientB", 2), 120, "round 2 at clientB")
        deployed.kill(sites["clientB"])
        sites["clientB"] = deployed.site("clientB")
        until(lambda: trains(deployed, "clientA", 3), 240, "round 3 at clientA")
        deployed.kill(server)
        deployed.address = inside
        server = deployed.server(*training)
        assert server.wait(timeout=300) == 0, deployed.said()

        folder = tmp_path / "simulated"
        simulate(three, folder, *training)
        for name in names:
            ours = read_tensors(deployed.kept(name) / "models" / name / "last.safetensors")
            theirs = read_tensors(folder / "models" / name / "last.safetensors")
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def trains(deployed, name, index):
    log = deployed.home(name) / "flower" / "supernode.log"
    return log.is_file() and f"round {index}/3, epoch 1" in log.read_text("utf-8", "replace")


def test_a_site_that_never_comes_is_told_of_by_the_exit_code_and_the_report(data, tmp_path):
    with Deployment(tmp_path, data, NAMES, secure=True) as deployed:
        for name in NAMES[:3]:
            deployed.site(name)
        server = deployed.server("--rounds", "1", "--epochs", "1", "--quorum", "3", "--deadline", "30")
        assert server.wait(timeout=200) == 3, deployed.said()
        assert "round 1 went on without clientD: no answer within 30 s" in deployed.said()
        assert read_summary(deployed.run)["absent"] == {"clientD": [0]}
        subprocess.run([PRRFL, "report", deployed.run], check=True, capture_output=True)
        assert "Without clientD in round(s) 1." in (deployed.run / "report.html").read_text("utf-8")
