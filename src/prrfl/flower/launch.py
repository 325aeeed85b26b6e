"""Flower's own programs, configured for a federation: what ``prrfl server`` and ``site`` start or print."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from prrfl.errors import ConfigError, PRRFLError
from prrfl.flower.certs import check_readable, check_valid
from prrfl.storage.atomic import write_text
from prrfl.types import ClientId

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Flower's programs call home unless told not to."""

RETRY = 10
"""Seconds until a site that the server refused, or that lost it, tries again."""


class FlowerError(PRRFLError):
    """One of Flower's programs did not do what it was started for."""


@dataclass(frozen=True)
class Command:
    """A program, its arguments, and what of the environment it needs beyond the usual."""

    arguments: Sequence[str]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        """Return the command as a line for a shell."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])

    def run(self) -> dict[str, Any]:
        """Run a command of ``flwr`` that answers in JSON.

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
        found = re.search(r"^\{.*", done.stdout, re.DOTALL | re.MULTILINE)
        answer: dict[str, Any] = json.loads(found[0]) if found else {}
        if done.returncode or not answer.get("success"):
            words = answer.get("error-message") or done.stderr or done.stdout
            raise FlowerError(f"{shlex.join(self.arguments[:3])} failed: {' '.join(words.split())}")
        return answer

    def start(self, log: Path) -> "subprocess.Popen[bytes]":
        """Start the program in a process group of its own, its output going to a file."""
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


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@dataclass(frozen=True)
class Server:
    """Where a federation's server runs, and with what.

    Attributes:
        folder: the run's folder; Flower's own files lie below it.
        certs: the folder ``server`` that ``prrfl certs`` made, or one like it.
        host: the address that the SuperLink listens at. Whoever reaches it can run code at every site, so it
            stays at this machine; sites come in by a reverse proxy that passes on the fleet's path alone.
        port: its port.
    """

    folder: Path
    certs: Path
    host: str = "127.0.0.1"
    port: int = 9092

    @property
    def _environment(self) -> dict[str, str]:
        return {**QUIET, "FLWR_HOME": str(self.folder / "flower")}

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
        """Return the command that makes a site's key known."""
        key = self.certs / "nodes" / f"{site}.pub"
        return self._flwr("supernode", "register", str(key), "prrfl", "--name", site)

    def run(self) -> Command:
        """Return the command that begins the run, or goes on with it."""
        app = resources.files("prrfl.flower").joinpath("app")
        return self._flwr("run", str(app), "prrfl", "--run-config", f'folder="{self.folder}"')

    def status(self, run: str) -> Command:
        """Return the command that says how a run stands."""
        return self._flwr("list", "prrfl", "--run-id", run)

    def stop(self, run: str) -> Command:
        """Return the command that stops a run."""
        return self._flwr("stop", run, "prrfl")

    def check(self, sites: Sequence[ClientId]) -> None:
        """Raise unless certificates, and the public key of each site, can be read.

        Raises:
            ConfigError: naming the file that cannot.
        """
        for name in ("ca.crt", "server.crt", "server.key"):
            check_readable(self.certs / name)
        for site in sites:
            if not (key := self.certs / "nodes" / f"{site}.pub").is_file():
                raise ConfigError(f"{key} is not there; expected the public node key of site {site}")

    def warnings(self, now: datetime) -> list[str]:
        """Return what there is to know before a start: certificates that end soon, an address others reach.

        Raises:
            ConfigError: if a certificate does not hold now.
        """
        ends = [check_valid(self.certs / name, now) for name in ("ca.crt", "server.crt")]
        open_door = (
            f"the SuperLink will listen at {self.host}, not at this machine alone: whoever reaches it there "
            "can run code at every site; leave --host out, and let sites come in by a reverse proxy"
        )
        return [*filter(None, ends), *([] if _is_loopback(self.host) else [open_door])]

    def configure(self) -> None:
        """Write the connection that the commands of ``flwr`` use."""
        write_text(
            self.folder / "flower" / "config.toml",
            f'[superlink]\ndefault = "prrfl"\n\n[superlink.prrfl]\naddress = "{self.host}:{self.port}"\n'
            f'root-certificates = "{self.certs / "ca.crt"}"\n',
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
    """Start the SuperLink, make the sites' keys known and begin the run; give its id; end all of it at last.

    Raises:
        FlowerError: if the SuperLink does not start, or another program has its port.
    """
    if _listens(server.host, server.port):
        raise FlowerError(
            f"another program listens at {server.host}:{server.port}; end it, a flower-superlink that was "
            "left over perhaps, or choose another --port"
        )
    server.configure()
    log = server.folder / "flower" / "superlink.log"
    process = server.superlink().start(log)
    try:
        _wait_for(server.host, server.port, process, log)
        for site in sites:
            server.register(site).run()
        yield str(server.run().run()["run-id"])
    finally:
        _end(process)


def outcome(server: Server, run: str) -> tuple[bool, str]:
    """Return whether a run has ended, and the words of what ended it other than its end."""
    (row,) = server.status(run).run()["runs"]
    status = str(row["status"])
    failed = not status.endswith("completed")
    words = str(row["status-details"]).removeprefix("ServerApp failed with exception: ")
    return status.startswith("finished"), words if failed else ""


@dataclass(frozen=True)
class Node:
    """A site's end of the connection.

    Attributes:
        superlink: the server's address, host:port.
        certs: the folder that ``prrfl certs`` made for this site, or one like it.
        home: the site's folder; Flower's own files lie below it.
        port: on which the node speaks with its own processes, at this machine alone.
        config: what the site's end is told, see :class:`prrfl.flower.site.orders.SiteSettings`.
    """

    superlink: str
    certs: Path
    home: Path
    port: int
    config: Mapping[str, str | int | bool]

    @property
    def log(self) -> Path:
        """Where Flower's output goes."""
        return self.home / "flower" / "supernode.log"

    def supernode(self) -> Command:
        """Return the command of Flower's node."""
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in self.config.items())
        return Command(
            [
                "flower-supernode",
                *("--superlink", self.superlink),
                *("--root-certificates", str(self.certs / "ca.crt")),
                *("--auth-supernode-private-key", str(self.certs / "node.key")),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--node-config", config),
            ],
            {**QUIET, "FLWR_HOME": str(self.home / "flower")},
        )


def keep_connected(node: Node, say: Callable[[str], None]) -> None:
    """Run a site's node, and run it again when it ends: a server that restarts, a key not yet free again.

    Args:
        node: the site's end.
        say: is told of every order that the site could not carry out, and why; and of every end.
    """
    log = node.log
    while True:
        began = read = log.stat().st_size if log.is_file() else 0
        process = node.supernode().start(log)
        try:
            while process.poll() is None:
                time.sleep(1)
                lines, read = _new_lines(log, read)
                for line in lines:
                    if line.startswith(start := f"site {node.config['name']}: "):
                        say(line.removeprefix(start))
        finally:
            _end(process)
        words = _reason("\n".join(_new_lines(log, began)[0]) + "\n")
        say(f"the node ended with exit code {process.returncode}{words}; trying again in {RETRY} s")
        time.sleep(RETRY)


def _new_lines(log: Path, read: int) -> tuple[list[str], int]:
    """Return the whole lines of a log after its first bytes, and how many bytes are read then."""
    if not log.is_file():  # somebody moved it away
        return [], 0
    with log.open("rb") as file:
        # Whoever rotates it by copying begins it anew.
        file.seek(min(read, log.stat().st_size))
        at = file.tell()
        whole, end, _ = file.read().rpartition(b"\n")
    return whole.decode(errors="replace").splitlines(), at + len(whole + end)


def _reason(output: str) -> str:
    """Return why a node ended, as far as its output says it."""
    found = re.search(r"Exit Code: \d+\n(.+)\n(.+)", output)
    if found is None:
        return ""
    known = {
        "[code: 2004]": "the server does not know this site's key, or takes it to be connected still, "
        "as for a minute after a node was killed",
        "certificate has expired": "the server's certificate, or ca.crt, has expired, or this machine's "
        "clock is wrong; the server's operator renews it (prrfl certs --ca)",
        "not yet valid": "the server's certificate, or ca.crt, does not hold yet: a clock is wrong, this "
        "machine's or that of the one where it was made",
        "mismatch": "the server's certificate is for other names than the one in --superlink; take one of "
        "them, or have it made anew (prrfl certs --ca, --hosts)",
        "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not one of ca.crt's",
    }
    words = next((text for mark, text in known.items() if mark in found[2]), " ".join(found.groups()))
    return f": {words}"


def _wait_for(host: str, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        # Had another program taken the port meanwhile, the SuperLink would end.
        if _listens(host, port) and process.poll() is None:
            return
        time.sleep(0.2)
    raise FlowerError(f"the SuperLink does not listen at {host}:{port}; its words are in {log}")


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program and all that it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
