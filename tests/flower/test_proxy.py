"""Real processes behind the proxy: strangers are refused, and killed sites and servers resume."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from prrfl.storage.tensor_files import read_tensors
from tests.flower.deployment import Deployment, free_port, simulate, until
from tests.sites_on_disk import write_layout

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proxy(tmp_path):
    """A function that starts the reverse proxy with the file in deploy/, at other ports and paths."""
    if (nginx := shutil.which("nginx")) is None:
        pytest.skip("nginx is not installed")
    started = []

    def start(deployed):
        port, folder = free_port(), deployed.folder / "nginx"
        folder.mkdir()
        text = (ROOT / "deploy" / "nginx" / "prrfl-fleet.conf").read_text("utf-8")
        for shipped, here in {
            "listen 443 ssl": f"listen localhost:{port} ssl",
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
        return f"localhost:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait()


def post(address, path, certs, scheme="https"):
    """Return the HTTP status of a request whose path is sent as it is, or the error."""
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
        "--path-as-is",
    ]
    done = subprocess.run(
        [*command, f"{scheme}://{address}{path}"], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else done.stderr


def test_behind_the_proxy_strangers_are_refused_and_killed_sites_and_servers_resume(proxy, tmp_path):
    names = ["clientA", "clientB"]
    training = ["--rounds", "2", "--epochs", "4"]
    both = write_layout(tmp_path / "both", sites=2, train=60)
    with Deployment(tmp_path, both, names) as deployed:
        Deployment(tmp_path / "strangers", both, names)
        inside = deployed.address
        server = deployed.server(*training)
        outside = deployed.address = proxy(deployed)
        certs = deployed.folder / "certs" / "sites" / "clientA"
        until(lambda: post(inside, "/", certs) == "404", 300, "the SuperLink listening")
        assert post(inside, "/v1/control/list-runs", certs) != "404"
        # Anybody who reaches the SuperLink itself controls it, so the proxy forwards only the fleet's path.
        for path in (
            "/v1/control/list-runs",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/health",
            "/",
        ):
            assert post(outside, path, certs) == "404", path
        for path in (
            "/v1/fleet/../control/list-runs",
            "/v1/control/../fleet/pull-messages",
            "/v1/fleet/%2e%2e/control/list-runs",
            "/v1/control%2flist-runs/../../fleet/pull-messages",
            "/v1/control/%252e%252e/fleet/pull-messages",
            "/v1/fleet%252fpull-messages",
            "//v1/fleet/pull-messages",
            "/v1/fleet/pull-messages/",
            "/v1/fleet/pull-messages?a=/v1/control/list-runs",
        ):
            assert post(outside, path, certs) == "404", path
        # Another name than the server's gets no answer at all.
        assert "Empty reply" in post(
            outside.replace("localhost", "127.0.0.1"), "/v1/fleet/pull-messages", certs
        )
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
        running = [deployed.site(who, certs=keys, known_as="clientA") for who, keys in strangers.items()]
        for flags in (["--root-certificates", certs / "ca.crt"], ["--insecure", "--max-retries", "1"]):
            node = deployed.start_flower("flower-supernode", "--superlink", outside, *flags)
            assert node.wait(timeout=300) != 0, flags

        sites = {name: deployed.site(name) for name in names}
        until(lambda: trains(deployed, "clientB", 1), 300, "round 1 at clientB")
        deployed.kill(sites["clientB"])
        # A site reports that its key is unknown only after a minute, in which the others have begun to train.
        for name in strangers:
            until(lambda name=name: "the node ended" in deployed.said(name), 300, f"{name} being refused")
        for process in running:
            deployed.kill(process)
        sites["clientB"] = deployed.site("clientB")
        until(lambda: trains(deployed, "clientA", 2), 600, "round 2 at clientA")
        deployed.kill(server)
        deployed.address = inside
        server = deployed.server(*training)
        assert server.wait(timeout=600) == 0, deployed.said()

        folder = tmp_path / "simulated"
        simulate(both, folder, *training)
        for name in names:
            ours = read_tensors(deployed.experiment(name) / "models" / name / "last.safetensors")
            theirs = read_tensors(folder / "models" / name / "last.safetensors")
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def trains(deployed, name, index):
    log = deployed.home(name) / "flower" / "supernode.log"
    return log.is_file() and f"round {index}/2, epoch 1" in log.read_text("utf-8", "replace")
