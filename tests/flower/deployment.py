"""A federation of real processes on this machine, driven by the commands that a consortium would use."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRRFL = str(Path(sys.executable).parent / "prrfl")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(PRRFL).parent}:{os.environ['PATH']}",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT / 'tests/flower/every_process'}:{ROOT}",
}
TRAINING = ["--image-size", "32", "--batch", "8", "--precision", "float32", "--seed", "3"]
TRAINING += ["--network", "tiny"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Deployment:
    """A server and its sites; all processes end with the block."""

    def __init__(self, folder: Path, data: Path, sites: list[str], secure: bool = False):
        self.folder, self.data, self.sites = folder, data, sites
        self.secure = ["--secure"] if secure else []
        self.run = folder / "run"
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._started: list[subprocess.Popen[bytes]] = []
        folder.mkdir(exist_ok=True)
        subprocess.run(
            [PRRFL, "certs", folder / "certs", "--sites", ",".join(sites)], check=True, capture_output=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._started:
            self.kill(process)

    def start_flower(self, program, *arguments):
        """Start one of Flower's own programs, without our commands."""
        path = str(Path(PRRFL).with_name(program))
        return self._start([path, *arguments, "--port", free_port()], f"{program}.txt")

    def start(self, *arguments, output):
        return self._start([PRRFL, *arguments], output)

    def _start(self, command, output):
        with (self.folder / output).open("ab") as file:
            process = subprocess.Popen(
                list(map(str, command)),
                env=ENVIRONMENT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def server(self, *arguments):
        certs = self.folder / "certs" / "server"
        return self.start(
            *("server", "--sites", ",".join(self.sites), "--certs", certs, "--out", self.run),
            *("--port", self.port, *self.secure, *TRAINING, *arguments),
            output="server.txt",
        )

    def site(self, name, *arguments, certs=None, data=None, known_as=None):
        return self.start(
            *("site", "--name", known_as or name, "--data", data or self.data, "--superlink", self.address),
            *("--certs", certs or self.folder / "certs" / "sites" / name, "--home", self.home(name)),
            *("--port", free_port(), "--threads", 1, *self.secure, *arguments),
            output=f"{name}.txt",
        )

    def home(self, name) -> Path:
        return self.folder / "home" / name

    def experiment(self, name) -> Path:
        """Return the experiment's folder at a site."""
        (folder,) = [path.parent for path in self.home(name).glob("*/settings.json")]
        return folder

    def said(self, who="server") -> str:
        path = self.folder / f"{who}.txt"
        return path.read_text("utf-8", "replace") if path.is_file() else ""

    def kill(self, process) -> None:
        """Kill a command and all that it started, as a power cut would."""
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def until(condition, seconds: float, what: str) -> None:
    """Wait until a condition holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)


def simulate(data, folder, *arguments):
    """Train in one process what a deployment trains at its sites."""
    command = [PRRFL, "train", "--data", data, "--out", folder, "--workers", "1", "--threads", "1"]
    subprocess.run([*command, *TRAINING, *arguments], env=ENVIRONMENT, check=True, capture_output=True)
