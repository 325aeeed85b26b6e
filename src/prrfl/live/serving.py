"""The page's server: this machine only, GET only, and a fixed set of answers."""

import errno
import re
import secrets
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socketserver import TCPServer

from prrfl.errors import ConfigError

HOST = "127.0.0.1"

STATE = re.compile(r"state(?:\?drawn=(\d{1,9}))?")
"""The path of the state as JSON, with the number of scores in the curves that the page has."""

_OF_REPORTS = ("d3.min.js", "plot.umd.min.js", "pictures.js", "page.css")
"""Files of the pages that reports write, which this page uses too."""

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}

PLOT_STYLE = "'sha256-jSYQUrW7J0b3jPqhZP9C2Xh1PyJKHKXd4s0fpGGKrww='"
"""The only style element that Observable Plot adds to a picture, by its hash."""

_HEADERS = {
    # Scripts, styles and data from this server, nothing from elsewhere, and no other page may frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    f"style-src 'self' {PLOT_STYLE}; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """Answers requests for the page and its state.

    Other users of this machine can reach the port too. Therefore all paths begin with a key, which only the
    printed address tells.
    """

    daemon_threads = True

    def __init__(self, port: int, state: Callable[[int | None], bytes]) -> None:
        """Listen at 127.0.0.1.

        Args:
            port: the port; 0 chooses a free one.
            state: returns the present state as JSON, in any thread, given the number of scores in the
                curves that the page has.

        Raises:
            ConfigError: if nothing can listen at that port.
        """
        if not 0 <= port < 2**16:
            raise ConfigError(f"invalid port {port} (--port); expected 0 to {2**16 - 1}")
        self.state = state
        self.files = _files()
        self.key = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), _Answer)
        except OSError as cause:
            reason = (
                f"another program listens at {HOST}:{port}; stop it, or"
                if cause.errno == errno.EADDRINUSE
                else f"no program can listen at {HOST}:{port} ({cause.strerror});"
            )
            raise ConfigError(f"{reason} choose another --port") from None

    def server_bind(self) -> None:
        """Bind the socket, without looking the host's name up, as the base class does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_port}/{self.key}/"


def _files() -> Mapping[str, tuple[str, bytes]]:
    """Return type and content of each file of the page, by name. No path of a request reaches the disk."""
    own = resources.files("prrfl.live").joinpath("web")
    shared = resources.files("prrfl.reports").joinpath("web")
    files = [*(own.joinpath(f"watch.{kind}") for kind in _KINDS), *map(shared.joinpath, _OF_REPORTS)]
    found = {file.name: (_KINDS[file.name.rpartition(".")[2]], file.read_bytes()) for file in files}
    return {**found, "": found["watch.html"]}


class _Answer(BaseHTTPRequestHandler):
    """Answers one request. Methods other than GET are refused by the base class."""

    server: PageServer
    server_version, sys_version = "prrfl", ""
    timeout = 10

    def do_GET(self) -> None:
        # A page of another site can make its own name point to 127.0.0.1 (DNS rebinding), and would then be
        # allowed to read the answers; but its requests name it.
        port = self.server.server_port
        key, _, name = self.path.removeprefix("/").partition("/")
        if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            self.send_error(421, "This server answers to 127.0.0.1 and localhost only")
        elif not secrets.compare_digest(key.encode(), self.server.key.encode()):
            self.send_error(404, "Open the address that prrfl watch has printed")
        elif asked := STATE.fullmatch(name):
            self._send("application/json", self.server.state(int(asked[1]) if asked[1] else None))
        elif name in self.server.files:
            self._send(*self.server.files[name])
        else:
            self.send_error(404)

    def _send(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing: the terminal is for the user."""
