"""What the page's server refuses."""

import http.client
import json
import socket

import pytest

from tests.live.conftest import served, until


@pytest.fixture
def ask(going):
    """Ask a run's server for a path; give status, headers and text."""
    folder, records = going
    until(records, "exchange")
    with served(folder) as server:

        def get(path, method="GET", host=None, key=server.key):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.putrequest(method, f"/{key}{path}" if key else path, skip_host=True)
            for name in (f"127.0.0.1:{server.server_port}",) if host is None else host:
                connection.putheader("Host", name)
            connection.endheaders()
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, answer.headers, text

        get.port = server.server_port
        yield get


def test_the_page_allows_nothing_from_elsewhere(ask):
    for path in ("/", "/state", "/watch.js"):
        status, headers, _ = ask(path)
        assert status == 200
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../config.toml",
            "/..%2fconfig.toml",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/config.toml",
        ),
        *(
            "/state?drawn=-1",
            "/state?drawn=../x",
            "/state/..",
            "/web/watch.js",
            "/?x",
            "http://elsewhere/state",
        ),
    ],
)
def test_no_path_but_those_of_the_page_is_answered(ask, path):
    for key in ({}, {"key": None}):
        status, headers, text = ask(path, **key)
        assert status == 404
        assert "rounds" not in text
        assert "Content-Security-Policy" in headers


def test_another_user_of_this_machine_does_not_know_the_key(ask):
    for path in ("/", "/state", "/watch.js", "/x/state"):
        assert ask(path, key=None)[0] == 404
    assert ask("/state", key="another-key")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_only_get_is_answered(ask, method):
    assert ask("/state", method=method)[0] == 501


def test_a_page_of_another_name_cannot_read_the_state(ask):
    evil = ["evil.example", f"evil.example:{ask.port}", "127.0.0.1", f"127.0.0.1:{ask.port}.evil.example"]
    for host in (*([name] for name in evil), [], [f"127.0.0.1:{ask.port}", "evil.example"]):
        status, _, text = ask("/state", host=host)
        assert status == 421, host
        assert "clientA" not in text
    assert ask("/state", host=[f"localhost:{ask.port}"])[0] == 200


def test_only_this_machine_is_answered(ask):
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", ask.port))


def test_curves_are_sent_once(ask):
    whole = json.loads(ask("/state")[2])
    again = json.loads(ask(f"/state?drawn={whole['drawn']}")[2])
    assert whole["curves"]["panels"]
    assert "curves" not in again
    assert json.loads(ask(f"/state?drawn={whole['drawn'] - 1}")[2])["curves"] == whole["curves"]


def test_a_port_in_use_is_one_line_that_names_the_flag(prrfl, going):
    folder, records = going
    until(records, "train")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = prrfl("watch", folder, "--port", port)
    expected = f"error: another program listens at 127.0.0.1:{port}; stop it, or choose another --port\n"
    assert (code, err) == (2, expected)
    assert prrfl("watch", folder, "--port", 70_000)[2].startswith(
        "error: invalid port 70000 (--port); expected"
    )


def test_a_folder_of_something_else_is_one_line(prrfl, tmp_path):
    code, _, err = prrfl("watch", tmp_path)
    assert code == 2
    assert err.startswith(f"error: {tmp_path} is not the folder of a run, a comparison or a federation")
    (tmp_path / "pilot-1234").mkdir()
    (tmp_path / "pilot-1234" / "settings.json").write_text("{}")
    assert f"give one of its experiments, such as {tmp_path}/pilot-1234" in prrfl("watch", tmp_path)[2]
