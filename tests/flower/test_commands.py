"""``prrfl certs``, ``server`` and ``site`` as a user meets them, before anything is started."""

import importlib.util
import shlex
import stat
import subprocess
import sys

import pytest

from prrfl.flower.federation import federate
from prrfl.flower.launch import Node, _reason
from tests.sites_on_disk import write_layout

NAMES = ["north", "south", "east"]


@pytest.fixture
def certs(prrfl, tmp_path):
    folder = tmp_path / "my certs"
    code, out, err = prrfl("certs", folder, "--sites", ",".join(NAMES), "--hosts", "fed.example.org,10.0.0.1")
    assert (code, err) == (0, "")
    assert all(name in out for name in NAMES)
    return folder


def test_certificates_go_where_they_belong_and_secrets_are_nobody_elses(certs, prrfl):
    files = {path.relative_to(certs).as_posix() for path in certs.rglob("*") if path.is_file()}
    of_the_server = {f"server/{name}" for name in ("ca.crt", "ca.key", "server.crt", "server.key")}
    nodes = {f"server/nodes/{name}.pub" for name in NAMES}
    own = {
        f"sites/{name}/{file}" for name in NAMES for file in ("ca.crt", "node.key", "sign.key", "roster.txt")
    }
    assert files == of_the_server | nodes | own
    for path in certs.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    chain = ["openssl", "verify", "-CAfile", certs / "server" / "ca.crt", certs / "server" / "server.crt"]
    assert subprocess.run(chain, capture_output=True, check=False).returncode == 0
    code, _, err = prrfl("certs", certs, "--sites", "west")
    assert code == 2
    assert "keys are never overwritten" in err


def test_the_servers_commands_can_be_printed_for_a_supervisor(certs, prrfl, tmp_path):
    code, out, err = prrfl(
        *("server", "--sites", ",".join(NAMES), "--certs", certs / "server", "--out", tmp_path / "a run"),
        *("--rounds", 3, "--print"),
    )
    assert (code, err) == (0, "")
    lines = [shlex.split(line) for line in out.splitlines()]
    assert [next(word for word in line if "=" not in word) for line in lines] == [
        "flower-superlink",
        *["flwr"] * (len(NAMES) + 1),
    ]
    for line in lines:
        assert {"FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1"} <= set(line)
    assert "--enable-supernode-auth" in lines[0]
    assert "--disable-runtime-dependency-installation" in lines[0]
    assert lines[0][lines[0].index("--host") + 1] == "127.0.0.1"
    assert f'folder="{tmp_path / "a run"}"' in lines[-1]
    assert {path.name for path in (tmp_path / "a run").iterdir()} == {
        *("config.toml", "federation.json", "flower")
    }


def test_the_sites_command_can_be_printed_for_a_supervisor(certs, prrfl, tmp_path):
    write_layout(tmp_path / "the data", sites=1)
    code, out, err = prrfl(
        *("site", "--name", "north", "--data", tmp_path / "the data", "--superlink", "fed.example.org:443"),
        *("--certs", certs / "sites" / "north", "--home", tmp_path / "home", "--secure", "--print"),
    )
    assert (code, err) == (0, "")
    line = shlex.split(out)
    assert "flower-supernode" in line
    assert "FLWR_TELEMETRY_ENABLED=0" in line
    config = line[line.index("--node-config") + 1]
    assert f'data="{tmp_path / "the data"}"' in config
    assert "signing-key" in config
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["server", "--sites", "north"], "needs at least 2"),
        (["server", "--sites", "north,north"], "each must be named once"),
        (["server", "--sites", "north,south", "--secure"], "secure summation needs at least 3"),
        (["server", "--sites", "north,south", "--quorum", 3], "quorum is 3; expected 2 to 2"),
        (["server", "--sites", "north,west", "--certs", "my certs/server"], "west.pub is not there"),
        (["server", "--sites", "north,south", "--certs", "nowhere"], "ca.crt is not there"),
        (["server", "--sites", "north,south", "--method", "fedavgg"], "did you mean 'fedavg'"),
        (["site", "--name", "north", "--certs", "nowhere"], "ca.crt is not there"),
        (["site", "--name", "north", "--certs", "my certs/sites/north"], "data DIR is not there"),
        (
            [
                "site",
                "--name",
                "north",
                "--certs",
                "my certs/sites/north",
                "--data",
                ".",
                "--methods",
                "prfl",
            ],
            "methods: 'prfl' is none (did you mean 'prrfl'?)",
        ),
    ],
)
def test_what_cannot_start_says_why_in_a_line(certs, prrfl, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    more = ["--out", "run"] if arguments[0] == "server" else ["--superlink", "here:1"]
    if arguments[0] == "site" and "--data" not in arguments:
        more += ["--data", "DIR"]
    if "--certs" not in arguments:
        more += ["--certs", "my certs/server"]
    code, _, err = prrfl(*arguments, *more)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_networks_of_real_sites_are_not_at_the_server(prrfl, tmp_path):
    write_layout(tmp_path / "new", sites=1)
    federate(tmp_path / "run", {"rounds": 1}, NAMES)
    for arguments in (["evaluate"], ["onboard", "--out", tmp_path / "out"]):
        code, _, err = prrfl(arguments[0], tmp_path / "run", "--data", tmp_path / "new", *arguments[1:])
        assert code == 2
        assert "networks stay with them" in err
    code, _, err = prrfl("resume", tmp_path / "run")
    assert code == 2
    assert "`prrfl server` command again" in err


def test_without_flower_the_extra_is_named(prrfl, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flwr" else find(name))
    code, _, err = prrfl("certs", tmp_path / "certs", "--sites", "north")
    assert code == 2
    assert "pip install 'prrfl[flower]'" in err


def test_the_rest_of_the_package_does_without_flower():
    code = "import sys, prrfl, prrfl.cli, prrfl.run, prrfl.compare; assert 'flwr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_why_a_node_ended_is_said_in_plain_words(tmp_path):
    start = (
        "INFO: started\nERROR :     Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
    )
    assert "does not know this site's key" in _reason(f"{start}[code: 2004] Failed to activate.\n")
    assert "not one of ca.crt's" in _reason(f"{start}[SSL: CERTIFICATE_VERIFY_FAILED] certificate\n")
    assert _reason(f"{start}no route to host\n") == (
        ": Failed to initialize the connection to the SuperLink. no route to host"
    )
    assert _reason("INFO: finished\n") == ""
    node = Node("here:1", tmp_path, tmp_path, 9, {"name": 'a "quoted" name', "threads": 1, "allow": True})
    assert shlex.split(str(node.supernode()))[-1] == 'name="a \\"quoted\\" name" threads=1 allow=true'
