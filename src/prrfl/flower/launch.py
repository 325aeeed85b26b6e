"""Flower's own programs, as ``prrfl server`` and ``prrfl site`` start or print them."""

import errno
import ipaddress
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prrfl.errors import ConfigError, PRRFLError, one_line
from prrfl.flower.certs import check_readable, check_valid, open_keys
from prrfl.storage.atomic import write_text
from prrfl.storage.reading import read_text
from prrfl.storage.tail import Tail
from prrfl.types import ClientId

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Without these, Flower's programs report their use and look for updates."""

RETRY = 10
"""Seconds before a site tries again to reach a server that refused it or that it lost."""

GRACE = 60.0
"""Seconds in which a server that has just started may not know a site's key yet, which is not reported."""

QUICK_ENDS = 5
"""Times in a row that a node may end at once without having reached any server."""

UNKNOWN_KEY = "[code: 2004]"
"""What Flower prints if the server does not know a node's key, or takes it for connected."""

HOPELESS = frozenset({"302", "303", "304", "600", "602", "603", "604", "606"})
"""Flower's exit codes for keys, addresses, files and versions that another try does not change."""


class FlowerError(PRRFLError):
    """One of Flower's programs failed."""


@dataclass(frozen=True)
class Command:
    """A program, its arguments, and the environment variables that it needs in addition."""

    arguments: Sequence[str]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """Return the command as a line for a shell."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])

    def run(self) -> dict[str, Any]:
        """Run a command of ``flwr`` that prints JSON, and return that.

        Raises:
            FlowerError: if it fails.
        """
        done = subprocess.run(
            [_program(self.arguments[0]), *self.arguments[1:]],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        answer = _json_in(done.stdout)
        if done.returncode or not answer.get("success"):
            error = answer.get("error-message") or done.stderr or done.stdout
            raise FlowerError(f"{shlex.join(self.arguments[:3])} failed: {' '.join(error.split())}")
        return answer

    def start(self, log: Path) -> "subprocess.Popen[bytes]":
        """Start the program in its own process group, and append its output to a file."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            return subprocess.Popen(
                [_program(self.arguments[0]), *self.arguments[1:]],
                env=self._environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        # Flower's programs start each other by name.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, **self.environment}


def _json_in(text: str) -> dict[str, Any]:
    """Return the first JSON object that starts a line; without one, or if it is cut off, an empty one."""
    found = re.search(r"^\{", text, re.MULTILINE)
    try:
        answer: dict[str, Any] = json.JSONDecoder().raw_decode(text, found.start())[0] if found else {}
    except ValueError:
        return {}
    return answer


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@dataclass(frozen=True)
class Server:
    """Where a federation's server runs, and its files.

    Attributes:
        folder: the run's folder; Flower's own files lie below it.
        certs: the folder ``server`` that ``prrfl certs`` made, or one like it.
        host: the address at which the SuperLink listens. Anybody who reaches it can run code at every site,
            so it should only be reached from this machine; sites connect through a reverse proxy, which
            forwards the fleet's path and nothing else.
        port: its port.
    """

    folder: Path
    certs: Path
    host: str = "127.0.0.1"
    port: int = 9092

    @property
    def _environment(self) -> dict[str, str]:
        return {**QUIET, **past_proxies(self.host), "FLWR_HOME": str(self.folder / "flower")}

    def superlink(self) -> Command:
        """Return the command of Flower's server."""
        return Command(
            [
                "flower-superlink",
                *("--host", self.host, "--port", str(self.port)),
                *("--ssl-ca-certfile", str(self.certs / "ca.crt")),
                *("--ssl-certfile", str(self.certs / "server.crt")),
                *("--ssl-keyfile", str(self.certs / "server.key")),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ],
            self._environment,
        )

    def register(self, site: ClientId) -> Command:
        """Return the command that registers a site's key."""
        key = self.certs / "nodes" / f"{site}.pub"
        return self._flwr("supernode", "register", str(key), "prrfl", "--name", site)

    def run(self) -> Command:
        """Return the command that starts or resumes the run."""
        app = resources.files("prrfl.flower").joinpath("app")
        return self._flwr("run", str(app), "prrfl", "--run-config", f"folder={as_setting(str(self.folder))}")

    def status(self, run: str) -> Command:
        """Return the command that prints a run's status."""
        return self._flwr("list", "prrfl", "--run-id", run)

    def stop(self, run: str) -> Command:
        """Return the command that stops a run."""
        return self._flwr("stop", run, "prrfl")

    def check(self, sites: Sequence[ClientId]) -> None:
        """Check that the certificates and the public key of each site can be read.

        Raises:
            ConfigError: naming the file that cannot be read.
        """
        for name in ("ca.crt", "server.crt", "server.key"):
            check_readable(self.certs / name)
        for site in sites:
            if not (key := self.certs / "nodes" / f"{site}.pub").is_file():
                raise ConfigError(f"{key} does not exist; expected the public node key of site {site}")

    def warnings(self, now: datetime) -> list[str]:
        """Return warnings about certificates that expire soon, an open address, and an open key.

        Raises:
            ConfigError: if a certificate is not valid now.
        """
        ends = [check_valid(self.certs / name, now) for name in ("ca.crt", "server.crt")]
        open_door = (
            f"the SuperLink will listen at {self.host}, which other machines may reach; anybody who reaches "
            "it can run code at every site. Leave out --host, and let sites connect through a reverse proxy"
        )
        keys = open_keys([self.certs / "server.key"])
        return [*filter(None, ends), *([] if _is_loopback(self.host) else [open_door]), *keys]

    def configure(self) -> None:
        """Write the address and certificate that the commands of ``flwr`` use."""
        write_text(
            self.folder / "flower" / "config.toml",
            '[superlink]\ndefault = "prrfl"\n\n[superlink.prrfl]\n'
            f"address = {as_setting(f'{self.host}:{self.port}')}\n"
            f"root-certificates = {as_setting(str(self.certs / 'ca.crt'))}\n",
        )

    def _flwr(self, *arguments: str) -> Command:
        return Command(["flwr", *arguments, "--format", "json"], self._environment)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def serving(server: Server, sites: Sequence[ClientId]) -> Iterator[str]:
    """Start the SuperLink, register the sites' keys, start the run and yield its id; stop it all at the end.

    Raises:
        ConfigError: if another program uses its port.
        FlowerError: if the SuperLink does not start.
    """
    check_port(server.host, server.port, "flower-superlink")
    server.configure()
    log = server.folder / "flower" / "superlink.log"
    process = server.superlink().start(log)
    try:
        _wait_for(server.host, server.port, process, log)
        for site in sites:
            server.register(site).run()
        yield str(server.run().run()["run-id"])
    finally:
        _stop(process)


def outcome(server: Server, run: str) -> tuple[bool, str]:
    """Return whether a run has ended, and the error that ended it; empty if it has completed.

    Raises:
        FlowerError: if Flower does not tell.
    """
    answer = server.status(run).run()
    try:
        (row,) = answer["runs"]
        status, details = str(row["status"]), str(row["status-details"])
    except (LookupError, TypeError, ValueError):
        raise FlowerError(f"flwr list gives no status of run {run}; its answer is {answer}") from None
    failed = not status.endswith("completed")
    error = details.removeprefix("ServerApp failed with exception: ")
    return status.startswith("finished"), error if failed else ""


@dataclass(frozen=True)
class Node:
    """A site's end of the connection.

    Attributes:
        superlink: the server's address, host:port.
        certs: the folder that ``prrfl certs`` made for this site, or one like it.
        home: the site's folder; Flower's own files lie below it.
        port: local port on which the node talks to its own processes.
        config: the site's own settings, see :class:`prrfl.flower.site.orders.SiteSettings`.
    """

    superlink: str
    certs: Path
    home: Path
    port: int
    config: Mapping[str, str | int | bool]

    @property
    def log(self) -> Path:
        """The file for Flower's output."""
        return self.home / "flower" / "supernode.log"

    def supernode(self) -> Command:
        """Return the command of Flower's node."""
        config = " ".join(f"{key}={as_setting(value)}" for key, value in self.config.items())
        return Command(
            [
                "flower-supernode",
                *("--superlink", self.superlink),
                *("--root-certificates", str(self.certs / "ca.crt")),
                *("--auth-supernode-private-key", str(self.certs / "node.key")),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--node-config", config),
            ],
            {**QUIET, **past_proxies("127.0.0.1"), "FLWR_HOME": str(self.home / "flower")},
        )

    def proxy(self) -> str | None:
        """Return the proxy of the environment through which the server is reached, without its password."""
        host = self.superlink.rpartition(":")[0].strip("[]")
        if _is_loopback(host) or urllib.request.proxy_bypass(host):
            return None
        proxies = urllib.request.getproxies()
        found = proxies.get("https") or proxies.get("all")
        return (
            urlsplit(found)._replace(netloc=urlsplit(found).netloc.rpartition("@")[2]).geturl()
            if found
            else None
        )

    def foreign_apps(self) -> list[str]:
        """Return the names of Flower apps that the server sent to this site and that are not prrfl's."""
        apps = self.home / "flower" / "apps"
        return sorted(app.name for app in apps.glob("*") if app.is_dir() and not _is_ours(app))

    def check(self) -> None:
        """Check the address of the server, and that the node's port is free.

        Raises:
            ConfigError: if the address is not host:port, or another program uses the port.
        """
        host, _, port = self.superlink.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or "/" in host:
            raise ConfigError(
                f"invalid address of the server '{self.superlink}' (--superlink); expected host:port without "
                "https://, such as fed.example.org:443"
            )
        check_port("127.0.0.1", self.port, "flower-supernode")


def keep_connected(node: Node, say: Callable[[str], None]) -> None:
    """Run a site's node, and start it again whenever it ends, for example because the server restarts.

    Args:
        node: the site's node.
        say: called with a line for each thing that the site does or could not do, each app that is not
            prrfl's, and each end of the node.

    Raises:
        ConfigError: if the server's address is invalid, or another program uses the node's port.
        FlowerError: if the node cannot work, whatever the server does.
    """
    node.check()
    started, failures, warned = time.monotonic(), 0, set(node.foreign_apps())
    while True:
        began = time.monotonic()
        output, code = _run_node(node, say, warned)
        ended = time.monotonic()
        exit_code = re.search(r"Exit Code: (\d+)", output)
        reached = "SuperNode ID" in output or exit_code is not None
        failures = 0 if reached or ended - began > RETRY else failures + 1
        reason = _reason(output)
        if failures == QUICK_ENDS or (exit_code and exit_code[1] in HOPELESS):
            raise FlowerError(
                f"the node ended with exit code {code}{reason}; another try would not help: see {node.log}"
            )
        # Sites and server often start together, and the server registers keys when it already listens.
        if not (UNKNOWN_KEY in output and ended - started < GRACE):
            say(f"the node ended with exit code {code}{reason}; trying again in {RETRY} s")
        time.sleep(RETRY)


def _run_node(node: Node, say: Callable[[str], None], warned: set[str]) -> tuple[str, int]:
    """Run a node to its end; return the last lines of its output, and its exit code."""
    log = node.log
    whole, new = Tail.from_end(log), Tail.from_end(log)  # it holds the output of earlier nodes
    line = re.compile(rf"(?:\d{{4}}-\S+ \S+ [A-Z]+ )?site {re.escape(str(node.config['name']))}: (.*)")
    process = node.supernode().start(log)
    try:
        while process.poll() is None:
            time.sleep(1)
            for app in sorted(set(node.foreign_apps()) - warned):
                warned.add(app)
                say(
                    f"warning: the server asks this site to run the app {one_line(app)}, which is not "
                    "prrfl's and can read what this user can; stop the site, and ask the server's operator"
                )
            for found in filter(None, map(line.fullmatch, new.texts())):
                say(one_line(found[1]))
    finally:
        _stop(process)
    return "\n".join(whole.texts()) + "\n", process.returncode


def _is_ours(app: Path) -> bool:
    """Return whether an app is prrfl's: it has no code, and names the parts of the prrfl installed here."""
    ours = resources.files("prrfl.flower").joinpath("app/pyproject.toml").read_text("utf-8")
    try:
        # Flower leaves out the comments.
        (only,) = app.rglob("*")
        found = tomllib.loads(read_text(only))
    except (OSError, ValueError):
        return False
    return only == app / "pyproject.toml" and found == tomllib.loads(ours)


def as_setting(value: str | int | bool) -> str:
    """Return a value as TOML that Flower's programs read back, whatever characters it has.

    They look for the quotes of a text before they parse it as TOML, and do not know that a quote within it
    can be escaped. So all but plain characters are written as numbers.

    Raises:
        ConfigError: if the value is a path whose bytes are not UTF-8.
    """
    if not isinstance(value, str):
        return json.dumps(value)
    if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ConfigError(f"the path {one_line(value)} is not UTF-8; use another name for it")
    plain = (c if c.isascii() and c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in value)
    return f'"{"".join(plain)}"'


def past_proxies(host: str) -> dict[str, str]:
    """Return the variables with which a program reaches this machine past any proxy of the environment."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    here = ",".join(dict.fromkeys([*filter(None, given.split(",")), "localhost", "127.0.0.1", "::1", host]))
    return {"NO_PROXY": here, "no_proxy": here}


def check_port(host: str, port: int, left_over: str) -> None:
    """Check that a program can listen at an address.

    Args:
        host: a name or address of this machine.
        port: the port.
        left_over: Flower's program that may use it, for the message.

    Raises:
        ConfigError: if it cannot.
    """
    if not 0 < port < 2**16:
        raise ConfigError(f"invalid port {port} (--port); expected 1 to {2**16 - 1}")
    try:
        ((family, *_, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Flower's programs do
            probe.bind(address)
    except OSError as cause:
        if cause.errno != errno.EADDRINUSE:
            raise ConfigError(
                f"no program can listen at {host}:{port} ({cause.strerror}); choose another --port or --host"
            ) from None
        raise ConfigError(
            f"another program listens at {host}:{port}, perhaps a {left_over} that is left over; stop it, or "
            "choose another --port"
        ) from None


def _reason(output: str) -> str:
    """Return why a node ended, if its output contains the reason."""
    found = re.search(r"Exit Code: \d+\n(.+)\n(.+)", output)
    if found is None:
        return ""
    known = {
        UNKNOWN_KEY: "the server does not know this site's key, or still takes the site for "
        "connected, as it does for a minute after a node was killed",
        "certificate has expired": "the server's certificate or ca.crt has expired, or this machine's clock "
        "is wrong; the server's operator can renew the certificate (prrfl certs --ca)",
        "not yet valid": "the server's certificate or ca.crt is not valid yet; check the clocks of this "
        "machine and of the one where the certificate was made",
        "mismatch": "the server's certificate is not for the name in --superlink; use one of its names, or "
        "renew it with this name (prrfl certs --ca, --hosts)",
        "CERTIFICATE_VERIFY_FAILED": "the server's certificate was not signed by ca.crt",
    }
    reason = next((text for mark, text in known.items() if mark in found[2]), " ".join(found.groups()))
    return f": {reason}"


def _wait_for(host: str, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        # If another program had taken the port meanwhile, the SuperLink would have ended.
        if _listens(host, port) and process.poll() is None:
            return
        time.sleep(0.2)
    raise FlowerError(f"the SuperLink did not start to listen at {host}:{port}; see its output in {log}")


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop a program and all processes that it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
