"""``prrfl certs``, ``server`` and ``site`` as a user meets them, before anything is started."""

import importlib.util
import re
import shlex
import socket
import stat
import subprocess
import sys
import tomllib
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from prrfl.errors import ConfigError
from prrfl.flower.certs import check_valid, make_certs
from prrfl.flower.federation import federate
from prrfl.flower.launch import (
    Command,
    FlowerError,
    Node,
    Server,
    _reason,
    keep_connected,
    outcome,
)
from prrfl.flower.site.ready import check_data
from prrfl.storage.reading import read_bytes
from tests.flower.deployment import free_port
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
    of_the_server = {f"server/{name}" for name in ("ca.crt", "server.crt", "server.key")}
    of_the_server |= {"ca/ca.key", "ca/ca.crt"}
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


def test_the_servers_certificate_is_renewed_and_sites_believe_it(certs, prrfl, tmp_path):
    code, out, err = prrfl("certs", tmp_path / "new", "--ca", certs / "ca", "--hosts", "fed.example.org")
    assert (code, err) == (0, "")
    assert "new key and certificate" in out
    new = tmp_path / "new" / "server"
    assert {path.name for path in new.iterdir()} == {"ca.crt", "server.crt", "server.key"}
    verify = ["openssl", "verify", "-CAfile", certs / "sites/north/ca.crt", new / "server.crt"]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    for arguments, words in {
        ("--ca", certs / "server"): "ca.key does not exist",
        ("--ca", certs / "ca", "--sites", "west"): "leave out --sites",
        ("--ca", certs / "ca", "--days", 9999): "before the 9999 days are over",
    }.items():
        code, _, err = prrfl("certs", tmp_path / "other", *arguments)
        assert (code, words in err, err.count("\n")) == (2, True, 1), err
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "host", ["https://fed.example.org", "fed.example.org:443", "a/b", "a b", "fd00::x", "ä.de"]
)
def test_what_cannot_be_a_host_is_refused(prrfl, tmp_path, host):
    code, _, err = prrfl("certs", tmp_path / "certs", "--sites", "a,b", "--hosts", f"ok.example.org,{host}")
    assert code == 2
    assert f"invalid host '{host}'" in err
    assert not (tmp_path / "certs").exists()
    make_certs(tmp_path / "others", ["a"], ["fd00::1", "10.0.0.1", "fed", "*.example.org"])


def test_the_end_of_a_certificate_is_told_in_time(certs):
    crt, now = certs / "server/server.crt", datetime.now(UTC)
    assert check_valid(crt, now) is None
    assert "in 9 days; renew it" in check_valid(crt, now + timedelta(days=355))
    for days in (-1, 366):
        with pytest.raises(
            ConfigError, match=r"server.crt is valid from .* to .* correct the clock, or renew"
        ):
            check_valid(crt, now + timedelta(days=days))
    at = Server(certs, certs / "server", "10.0.0.1")
    assert "anybody who reaches it can run code" in " ".join(at.warnings(now))
    assert not replace(at, host="127.0.0.1").warnings(now)
    assert not replace(at, host="localhost").warnings(now)


def test_a_port_that_is_taken_is_not_taken_for_the_superlink(certs, prrfl, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = prrfl(
            *("server", "--sites", "north,south", "--certs", certs / "server", "--out", tmp_path / "run"),
            *("--port", port),
        )
    assert code == 2
    assert f"another program listens at 127.0.0.1:{port}" in err


@pytest.mark.parametrize("file", ["ca.crt", "node.key", "sign.key", "roster.txt"])
def test_a_site_says_which_of_its_files_it_cannot_read(certs, prrfl, monkeypatch, file):
    def closed(path, *_):
        if path.name == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr("prrfl.flower.certs.read_bytes", closed)
    where = certs / "sites" / "north"
    asked = ("site", "--name", "north", "--data", certs, "--superlink", "x:1", "--certs", where, "--secure")
    code, _, err = prrfl(*asked)
    assert code == 2
    assert f"{where / file} cannot be read: Permission denied" in err
    if file.endswith(".key"):
        monkeypatch.undo()
        (where / file).write_text("no key")
        assert "is not a private key in OpenSSH's format" in prrfl(*asked)[2]


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
        (["server", "--sites", "north,north"], "name each site only once"),
        (["server", "--sites", "north,south", "--secure"], "secure summation needs at least 3"),
        (["server", "--sites", "north,south", "--quorum", 3], "quorum is 3; expected 2 to 2"),
        (["server", "--sites", "north,south", "--deadline", "nan"], "deadline is nan; expected seconds"),
        (["server", "--sites", "north,south", "--deadline", "inf"], "deadline is inf; expected seconds"),
        (["server", "--sites", "north,west", "--certs", "my certs/server"], "west.pub does not exist"),
        (["server", "--sites", "north,south", "--certs", "nowhere"], "ca.crt does not exist"),
        (["server", "--sites", "north,south", "--method", "fedavgg"], "did you mean 'fedavg'"),
        (["server", "--sites", "north,south,", "--config", "gone.toml"], "gone.toml does not exist; give"),
        (["site", "--name", "north", "--certs", "nowhere"], "ca.crt does not exist"),
        (["site", "--name", "north", "--certs", "my certs/sites/north"], "data DIR does not exist"),
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
            "methods: unknown method 'prfl' (did you mean 'prrfl'?)",
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
        assert "the networks are in the sites' folders" in err
    code, _, err = prrfl("resume", tmp_path / "run")
    assert code == 2
    assert "resume it with its `prrfl server` command" in err


def test_without_flower_the_extra_is_named(prrfl, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flwr" else find(name))
    code, _, err = prrfl("certs", tmp_path / "certs", "--sites", "north")
    assert code == 2
    assert "pip install 'prrfl[flower]'" in err


def test_the_rest_of_the_package_does_without_flower():
    code = (
        "import sys, prrfl, prrfl.cli, prrfl.runs.run, prrfl.runs.compare; assert 'flwr' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_site_could_not_do_is_said_again_where_it_was_started(tmp_path, monkeypatch):
    node = Node("here:1", tmp_path, tmp_path / "home", free_port(), {"name": "north"})
    first, rest = "INFO: x\\nsite north: 1 of 6 images missing\\nsite n", "orth: half\\n"
    words = f"printf '{first}'; sleep 2; printf '{rest}'; sleep 2"
    monkeypatch.setattr(Node, "supernode", lambda _: Command(["sh", "-c", words], {}))
    monkeypatch.setattr("prrfl.flower.launch._program", lambda name: f"/bin/{name}")
    said = []

    def say(line):
        said.append(line)
        if "ended" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_connected(node, say)
    assert said[:2] == ["1 of 6 images missing", "half"]
    assert said[2].startswith("the node ended with exit code 0")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ('{"success": true, "runs": [{"status": "finished:completed", "status-details": ""}]}\nbye {', None),
        ('hello\n{"success": true, "ru', "flwr list prrfl failed: hello"),
        ('{"success": true}', "flwr list gives no status of run 7; its answer is "),
        ('{"success": true, "runs": []}', "flwr list gives no status of run 7; its answer is "),
        ('{"success": true, "runs": [{}]}', "flwr list gives no status of run 7; its answer is "),
    ],
)
def test_an_answer_of_flower_that_cannot_be_read_is_an_error_in_a_line(tmp_path, monkeypatch, answer, error):
    program = tmp_path / "flwr"
    program.write_text(f"#!/bin/sh\ncat << END\n{answer}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setattr("prrfl.flower.launch._program", lambda _: str(program))
    if error is None:
        assert outcome(Server(tmp_path, tmp_path), "7") == (True, "")
        return
    with pytest.raises(FlowerError, match=re.escape(error)):
        outcome(Server(tmp_path, tmp_path), "7")


def test_why_a_node_ended_is_said_in_plain_words(tmp_path):
    start = (
        "INFO: started\nERROR :     Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
    )
    assert "does not know this site's key" in _reason(f"{start}[code: 2004] Failed to activate.\n")
    failed = f"{start}[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
    for cause, words in {
        "unable to get local issuer certificate": "not signed by ca.crt",
        "certificate has expired": "has expired",
        "certificate is not yet valid": "is not valid yet",
        "Hostname mismatch, certificate is not valid for 'x'": "is not for the name",
        "IP address mismatch, certificate is not valid for '10.0.0.1'": "is not for the name",
    }.items():
        assert words in _reason(f"{failed}{cause} (_ssl.c:1006)\n")
    assert _reason(f"{start}no route to host\n") == (
        ": Failed to initialize the connection to the SuperLink. no route to host"
    )
    assert _reason("INFO: finished\n") == ""
    node = Node("here:1", tmp_path, tmp_path, 9, {"name": 'a "quoted" name', "threads": 1, "allow": True})
    words = shlex.split(str(node.supernode()))[-1]
    assert parse_config_args([words]) == {"name": 'a "quoted" name', "threads": 1, "allow": True}


ODD_PATHS = [
    '/a "b" c',
    "/it's",
    "/back\\slash",
    "/emoji 😀",
    "/ümlaut",
    "/a=b c=d",
    "/new\nline",
    "/x.toml",
    "/\x7f",
]


@pytest.mark.parametrize("path", ODD_PATHS, ids=ascii)
def test_paths_with_odd_characters_survive_the_way_to_flowers_settings(path, tmp_path):
    node = Node("here:1", tmp_path, tmp_path, 9, {"data": path, "home": path, "threads": 2})
    words = shlex.split(str(node.supernode()))[-1]
    assert parse_config_args([words]) == {"data": path, "home": path, "threads": 2}
    ours = Server(Path(path), Path(path))
    assert parse_config_args([shlex.split(str(ours.run()))[-3]]) == {"folder": path}
    written = replace(ours, folder=tmp_path / "run")
    written.configure()
    read = tomllib.loads((tmp_path / "run/flower/config.toml").read_text("utf-8"))
    assert read["superlink"]["prrfl"]["root-certificates"] == f"{path}/ca.crt"


def test_a_path_that_no_text_can_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not UTF-8"):
        Node("here:1", tmp_path, tmp_path, 9, {"data": "/x\udcff"}).supernode()


def site_with(prrfl, certs, data, *arguments, name="north"):
    return prrfl(
        *(
            "site",
            "--name",
            name,
            "--data",
            data,
            "--superlink",
            "127.0.0.1:1",
            "--home",
            data.parent / "home",
        ),
        *("--certs", certs / "sites/north", *arguments),
    )


def test_a_port_that_is_taken_is_named_at_the_site(certs, prrfl, tmp_path):
    data = write_layout(tmp_path / "data", sites=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = site_with(prrfl, certs, data, "--port", port)
    assert (code, err.count("\n")) == (2, 1)
    assert f"another program listens at 127.0.0.1:{port}, perhaps a flower-supernode" in err
    assert "choose another --port" in err
    for wrong in (0, 2**16, -1):
        code, _, err = site_with(prrfl, certs, data, "--port", wrong)
        assert (code, f"invalid port {wrong} (--port)" in err) == (2, True)


@pytest.mark.parametrize(
    "address", ["fed.example.org", "https://fed.example.org:443", "fed:x", ":443", "fed:70000"]
)
def test_an_address_that_can_never_be_reached_is_refused_at_once(certs, prrfl, tmp_path, address):
    data = write_layout(tmp_path / "data", sites=1)
    code, _, err = site_with(prrfl, certs, data, "--superlink", address)
    assert (code, err.count("\n")) == (2, 1)
    assert f"invalid address of the server '{address}' (--superlink); expected host:port" in err


def no_file(data):
    next(data.glob("data/*/*/*_train_3.png")).unlink()
    return "missing"


def a_broken_image(data):
    path = next(data.glob("data/*/*/*_train_3.png"))
    path.write_bytes(path.read_bytes()[:40])
    return path.name


def no_split(data):
    table = next(data.glob("csv_folder/*/valid_*.csv"))
    table.unlink()
    return table.name


def a_single_class(data):
    table = next(data.glob("csv_folder/*/train_*.csv"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(f"{line.split(',')[0]},1" for line in lines[1:])]) + "\n")
    return "fewer than two classes"


@pytest.mark.parametrize("spoil", [no_file, a_broken_image, no_split, a_single_class])
def test_a_site_checks_its_data_before_it_joins(certs, prrfl, tmp_path, spoil):
    data = write_layout(tmp_path / "data", sites=1)
    named = spoil(data)
    code, _, err = site_with(prrfl, certs, data, "--port", free_port())
    assert (code, err.count("\n")) == (2, 1)
    assert named in err
    assert not (tmp_path / "home").exists()


def test_a_site_with_data_of_ones_own_joins_whatever_its_classes(certs, prrfl, tmp_path, monkeypatch):
    """Its function can be called once the server has sent the names of the classes."""
    joined = []
    monkeypatch.setattr("prrfl.flower.launch.keep_connected", lambda node, _: joined.append(node))
    (tmp_path / "own.py").write_text("def load(image_size, classes):\n    return classes.index('cat')\n")
    for function, code in (("load", 0), ("loads", 2)):
        source = tmp_path / f"own.py:{function}"
        found, out, err = site_with(prrfl, certs, source, "--port", free_port())
        assert found == code, err
        assert ("are loaded when the server has sent" in " ".join(out.split())) == (code == 0)
    assert err == f"error: data {source}: {tmp_path}/own.py has no loads (did you mean 'load'?)\n"
    assert [node.config["data"] for node in joined] == [str(tmp_path / "own.py:load")]


def test_labels_may_be_anything_before_the_server_sends_the_classes(tmp_path):
    data = write_layout(tmp_path / "data", sites=1)
    assert len(check_data(data, "north", False).train) == 9
    rows = [
        f"{path},{label},x,{split}"
        for split in ("train", "valid", "test")
        for path, label in zip(sorted(data.glob(f"data/*/*/*_{split}_*.png")), ("cat", "dog"), strict=False)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,site,split", *rows]) + "\n")
    assert len(check_data(tmp_path / "m.csv", "north", False).train) == 2


def test_keys_that_every_user_can_read_are_warned_of(certs, prrfl, tmp_path):
    data = write_layout(tmp_path / "data", sites=1)
    key, server_key = certs / "sites/north/node.key", certs / "server/server.key"
    asked = ("server", "--sites", ",".join(NAMES), "--certs", certs / "server", "--print", "--out")
    for mode, warned in ((0o640, False), (0o644, True)):
        key.chmod(mode)
        server_key.chmod(mode)
        code, out, err = site_with(prrfl, certs, data, "--print")
        assert (code, f"can read the private key {key}" in err) == (0, warned)
        assert "warning" not in out
        code, out, err = prrfl(*asked, tmp_path / f"run {mode}")
        assert (code, f"can read the private key {server_key}" in err) == (0, warned)
        assert "warning" not in out
    assert stat.S_IMODE((tmp_path / "run 416").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run 416/federation.json").stat().st_mode) == 0o600


def test_an_open_address_is_warned_of_also_if_commands_are_printed(certs, prrfl, tmp_path):
    asked = ("server", "--sites", ",".join(NAMES), "--certs", certs / "server", "--print")
    code, out, err = prrfl(*asked, "--out", tmp_path / "run", "--host", "0.0.0.0")
    assert code == 0
    assert "anybody who reaches it can run code at every site" in " ".join(err.split())
    assert "warning" not in out


def test_this_machine_is_reached_past_any_proxy(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://user:secret@proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "intranet.example.org")
    node = Node("fed.example.org:443", tmp_path, tmp_path, 9, {"name": "north"})
    for command in (
        node.supernode(),
        Server(tmp_path, tmp_path).superlink(),
        Server(tmp_path, tmp_path).run(),
    ):
        for variable in ("no_proxy", "NO_PROXY"):
            past = command.environment[variable].split(",")
            assert {"intranet.example.org", "localhost", "127.0.0.1", "::1"} <= set(past)
            monkeypatch.setenv(variable, command.environment[variable])
    assert urllib.request.proxy_bypass("127.0.0.1")
    assert node.proxy() == "http://proxy.example.org:3128"  # no password on the screen
    assert replace(node, superlink="127.0.0.1:9092").proxy() is None
    assert replace(node, superlink="[::1]:9092").proxy() is None
    assert replace(node, superlink="intranet.example.org:443").proxy() is None


def node_that_prints(tmp_path, monkeypatch, words):
    monkeypatch.setattr(Node, "supernode", lambda _: Command(["sh", "-c", words], {}))
    monkeypatch.setattr("prrfl.flower.launch._program", lambda name: f"/bin/{name}")
    monkeypatch.setattr("prrfl.flower.launch.RETRY", 0.1)
    return Node("here:1", tmp_path, tmp_path / "home", free_port(), {"name": "north"})


def test_what_cannot_come_right_is_not_tried_for_ever(tmp_path, monkeypatch):
    said = []

    def say(line):
        said.append(line)
        assert len(said) < 10  # instead of for ever

    node = node_that_prints(tmp_path, monkeypatch, "echo 'Exit Code: 606'; echo 'Versions differ.'; echo x")
    with pytest.raises(FlowerError, match=r"Versions differ.*another try would not help: see .*log"):
        keep_connected(node, pytest.fail)  # it says nothing
    node = node_that_prints(tmp_path, monkeypatch, "echo Traceback; exit 1")
    monkeypatch.setattr("prrfl.flower.launch.RETRY", 3)
    monkeypatch.setattr("prrfl.flower.launch.time.sleep", lambda _: None)
    with pytest.raises(FlowerError, match="exit code 1; another try would not help"):
        keep_connected(node, say)
    assert len(said) == 4


def test_a_key_that_the_server_does_not_know_yet_is_not_reported_at_once(tmp_path, monkeypatch):
    said = []

    def say(line):
        said.append(line)
        raise KeyboardInterrupt

    words = "echo 'Exit Code: 305'; echo 'Failed.'; echo '[code: 2004] refused'"
    node = node_that_prints(tmp_path, monkeypatch, words)
    monkeypatch.setattr("prrfl.flower.launch.GRACE", 4)
    with pytest.raises(KeyboardInterrupt):
        keep_connected(node, say)
    assert (tmp_path / "home/flower/supernode.log").read_text().count("2004") > 1
    assert "does not know this site's key" in said[0]


def test_the_sites_screen_shows_what_it_does_and_warns_of_other_apps(tmp_path, monkeypatch):
    said = []
    ours = resources.files("prrfl.flower").joinpath("app/pyproject.toml").read_text("utf-8")
    apps = tmp_path / "home/flower/apps"
    for name, files in {
        # Flower leaves out the comments.
        "prrfl.prrfl.0.1.0.1234": {"pyproject.toml": re.sub(r" *#.*", "", ours)},
        "prrfl.prrfl.0.1.0.5678": {"pyproject.toml": ours, "evil.py": "import os"},
        "other.app.1.0.0.9abc": {"pyproject.toml": "x"},
    }.items():
        (tmp_path / "coming" / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / "coming" / name / file).write_text(text)
    words = (
        f"mv {tmp_path / 'coming'} {apps}; "
        "echo '2026-01-01 10:00:00,000 INFO site north: round 1/2: trains'; "
        "echo '2026-01-01 10:00:00,000 INFO site south: other'; sleep 3"
    )

    def say(line):
        said.append(line)
        if "ended" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_connected(node_that_prints(tmp_path, monkeypatch, words), say)
    assert len(said) == 4
    assert "warning: the server asks this site to run the app other.app.1.0.0.9abc" in said[0]
    assert "warning: the server asks this site to run the app prrfl.prrfl.0.1.0.5678" in said[1]
    assert said[2] == "round 1/2: trains"
