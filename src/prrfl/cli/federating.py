"""``prrfl server``, ``site`` and ``certs``: a federation over real sites, on Flower."""

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from prrfl.cli.flags import described, given_flags, with_flags
from prrfl.cli.options import names_in
from prrfl.cli.screen import (
    PositionProgress,
    Shown,
    console,
    noting_how_to_resume,
    print_next,
    print_summary,
    print_watch,
    time_left,
)
from prrfl.errors import ConfigError, ParticipationError, PRRFLError
from prrfl.storage.atomic import only_for_this_user

if TYPE_CHECKING:
    from prrfl.flower.federation import Federation
    from prrfl.flower.launch import Server
    from prrfl.runs.position import Position

errors = Console(stderr=True, markup=False, emoji=False)
"""For warnings beside a command's printed result."""

INCOMPLETE = 3
"""Exit code of a complete run in which some sites were absent in some rounds."""

FAILURES = 15
"""Times in a row that the SuperLink may fail to report the run's status."""

CALM, BUSY = 30.0, 2.0
"""Seconds between two questions for the run's status, while the server app writes its position and otherwise.

Each question starts a process of Flower's, which takes two seconds of a core.
"""

OWN: dict[str, Any] = {
    "sites": Annotated[str, typer.Option(help="names of the sites, separated by commas")],
    "certs": Annotated[Path, typer.Option(help="folder with ca.crt, server.crt, server.key and nodes/*.pub")],
    "quorum": Annotated[int, typer.Option(min=0, help="sites that a round needs; 0 means all")],
    "deadline": Annotated[
        float, typer.Option(min=0, help="seconds that a step of a round waits for sites; 0 waits without end")
    ],
    "secure": Annotated[bool, typer.Option("--secure", help="secure summation: the server sees only sums")],
    "host": Annotated[str, typer.Option(help="address to listen at; sites connect through a reverse proxy")],
    "port": Annotated[int, typer.Option(help="port to listen at")],
    "show": Annotated[
        bool, typer.Option("--print", help="print Flower's commands for a supervisor, and start nothing")
    ],
}
DEFAULTS: dict[str, object] = {
    "certs": Path("certs/server"),
    "quorum": 0,
    "deadline": 0.0,
    "secure": False,
    "host": "127.0.0.1",
    "port": 9092,
    "show": False,
}
OF_SITES = {setting.name for setting in described().settings if setting.of_site} | {"weights"}
"""Settings that the server cannot set; see :func:`prrfl.flower.federation.federate`."""


@with_flags(own=OWN, defaults=DEFAULTS, leave_out=OF_SITES)
def server(
    config: Path | None,
    out: Path | None,
    sites: str,
    certs: Path,
    quorum: int,
    deadline: float,
    secure: bool,
    host: str,
    port: int,
    show: bool,
    **flags: Any,
) -> None:
    """Run a federation over real sites, or resume the one in --out.

    The exit code is 3 if the run is complete, but some sites were absent in some rounds.
    """
    needs_flower()
    from prrfl.config import given_settings
    from prrfl.flower.federation import federate
    from prrfl.flower.launch import Server

    given = given_flags(flags)
    settings = given_settings(config, given)[1] if config else given
    names = names_in(sites)
    folder = (out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-federation").absolute()
    ours = Server(folder, certs.absolute(), host, port)
    ours.check(names)
    with only_for_this_user():
        federation = federate(folder, settings, names, quorum, deadline, secure)
        _serve(ours, federation, show)


def _serve(ours: "Server", federation: "Federation", show: bool) -> None:
    from prrfl.flower.launch import outcome, serving
    from prrfl.runs.afterwards import after_run
    from prrfl.runs.folder import RunFolder
    from prrfl.storage.records import read_records
    from prrfl.types import AbsenceRecord

    folder = ours.folder
    if show:
        _warn(ours.warnings(datetime.now(UTC)), to=errors)
        ours.configure()
        commands = [ours.superlink(), *map(ours.register, federation.sites), ours.run()]
        print("\n".join(map(str, commands)))
        return
    if not RunFolder(folder).is_finished:
        _warn(ours.warnings(datetime.now(UTC)))
        console.print(
            f"{federation.config.method}, experiment {federation.experiment}: waiting for "
            f"{', '.join(federation.sites)} at {ours.host}:{ours.port}"
        )
        print_watch(folder)
        again = "complete rounds are saved; run the same command again to resume"
        with noting_how_to_resume(lambda: again), serving(ours, federation.sites) as run:
            _follow(folder, federation.config.rounds, lambda: outcome(ours, run))
    print_summary(folder)
    console.print(f"Run folder: {folder}", soft_wrap=True)
    print_next(after_run(folder))
    absent = [r for r in read_records(folder / "metrics.jsonl") if isinstance(r, AbsenceRecord)]
    for record in absent:
        console.print(f"round {record.round + 1} continued without {record.client}: {record.reason}")
    if absent:
        raise SystemExit(INCOMPLETE)


def site(
    name: Annotated[str, typer.Option(help="the site's name")],
    data: Annotated[Path, typer.Option(help="the site's data, as for prrfl train")],
    superlink: Annotated[str, typer.Option(help="address of the server, as host:port")],
    certs: Annotated[Path, typer.Option(help="folder with ca.crt and node.key")],
    home: Annotated[Path, typer.Option(help="folder for the site's states and networks")] = Path(
        "prrfl-site"
    ),
    secure: Annotated[
        bool,
        typer.Option("--secure", help="share only under secure summation; needs sign.key, roster.txt"),
    ] = False,
    methods: Annotated[
        str,
        typer.Option(
            help="methods that the site agrees to, separated by commas; these send more than "
            f"{described().default_method}: {', '.join(described().consent[1:])}"
        ),
    ] = described().default_method,
    device: Annotated[str, typer.Option(help="where to train: auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="threads of its arithmetic; 0 chooses")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="skip images that a table names but that are missing")
    ] = False,
    port: Annotated[int, typer.Option(help="local port for the node's own processes")] = 9094,
    show: Annotated[
        bool, typer.Option("--print", help="print Flower's command for a supervisor, and start nothing")
    ] = False,
) -> None:
    """Take part in a federation until stopped.

    Images never leave the site. With the default --methods, neither does the personalised network.
    """
    needs_flower()
    from prrfl.data.own import absolute, is_own_data
    from prrfl.flower.consent import parse_methods
    from prrfl.flower.launch import Node, keep_connected
    from prrfl.flower.site.ready import check_data

    credentials, warnings = _credentials(certs, secure)
    if not data.exists() and not is_own_data(data):
        raise ConfigError(f"data {data} does not exist; give a folder, a manifest .csv or an .npz file")
    own: dict[str, str | int | bool] = {
        "name": name,
        "data": str(absolute(data)),
        "home": str(home.absolute()),
        "device": device,
        "threads": threads,
        "allow-missing": allow_missing,
        "methods": ",".join(parse_methods(methods)),
        **credentials,
    }
    node = Node(superlink, certs.absolute(), home.absolute(), port, own)
    if show:
        _warn(warnings, to=errors)
        print(node.supernode())
        return
    _warn(warnings)
    node.check()
    there = check_data(data, name, allow_missing)
    images = "its images are loaded when the server has sent the names of the classes"
    if there is not None:
        images = f"{len(there.train)}, {len(there.valid)} and {len(there.test)} images for training, "
        images += "validation and test"
    console.print(f"site {name}: {images}", soft_wrap=True)
    way = f" through the proxy {proxy} of the environment" if (proxy := node.proxy()) else ""
    console.print(
        f"site {name} connects to {superlink}{way}, and waits for orders; Flower's output is in {node.log}",
        soft_wrap=True,
    )
    with only_for_this_user():
        keep_connected(node, lambda line: console.print(f"site {name}: {line}", soft_wrap=True))


def _credentials(certs: Path, secure: bool) -> tuple[dict[str, str], list[str]]:
    """Return a site's settings of secure summation, and warnings about its certificate and keys.

    Raises:
        ConfigError: if a file of the site's cannot be used.
    """
    from prrfl.flower.certs import check_private_key, check_readable, check_valid, open_keys

    ends = check_valid(certs / "ca.crt", datetime.now(UTC))
    keys = [certs / key for key in ["node.key", *(["sign.key"] if secure else [])]]
    for key in keys:
        check_private_key(key)
    warnings = [*([ends] if ends else []), *open_keys(keys)]
    if not secure:
        return {}, warnings
    check_readable(roster := certs / "roster.txt")
    return {"roster": str(roster.absolute()), "signing-key": str(keys[-1].absolute())}, warnings


def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="new folder")],
    sites: Annotated[str, typer.Option(help="names of the sites, separated by commas")] = "",
    hosts: Annotated[
        str, typer.Option(help="names and addresses of the server, separated by commas")
    ] = "localhost,127.0.0.1",
    days: Annotated[int, typer.Option(min=1, help="days for which the server's certificate is valid")] = 365,
    ca: Annotated[
        Path | None,
        typer.Option(help="existing folder ca/: renew the server's certificate, with no change at the sites"),
    ] = None,
) -> None:
    """Make certificates and keys for a federation, or renew the server's.

    There is one folder for each machine.
    """
    needs_flower()
    from prrfl.flower.certs import make_certs, renew_certs

    names, where = names_in(sites), names_in(hosts)
    if ca is not None:
        if names:
            raise ConfigError("--ca renews only the server's certificate; leave out --sites")
        renew_certs(folder, ca, where, days)
        console.print(f"{folder / 'server'} holds the server's new key and certificate", soft_wrap=True)
        return
    make_certs(folder, names, where, days)
    console.print(
        f"{folder / 'ca'} must be stored offline: ca.key renews the server's certificate, and can sign "
        "certificates that every site trusts",
        soft_wrap=True,
    )
    console.print(f"{folder / 'server'} goes to the server", soft_wrap=True)
    for name in names:
        console.print(f"{folder / 'sites' / name} goes to site {name} and to nobody else", soft_wrap=True)


def _warn(warnings: Iterable[str], to: Console = console) -> None:
    for warning in warnings:
        to.print(f"warning: {warning}", soft_wrap=True)


def _follow(folder: Path, rounds: int, outcome: Callable[[], tuple[bool, str]]) -> None:
    """Show progress and log lines until the run has ended.

    Raises:
        FlowerError: if the SuperLink repeatedly fails to report the run's status.
        ParticipationError: if the run failed, with the error of the server app.
    """
    from prrfl.runs.position import read_position
    from prrfl.storage.tail import Tail

    def look() -> Shown | None:
        now = read_position(folder)
        return Shown(_answers(now, rounds), now.done, time_left(now.seconds_left)) if now else None

    log = Tail.from_end(folder / "log.txt")  # a resumed run has lines of before

    def show_log() -> None:
        for line in log.texts():
            if " ERROR " not in line:
                progress.console.print(line, soft_wrap=True, highlight=False)

    with PositionProgress(look) as progress:
        ended, error, failures, asked = False, "", 0, -math.inf
        while not ended:
            show_log()
            time.sleep(1)
            now = read_position(folder)
            works = now is not None and now.is_current and not failures
            if time.monotonic() - asked < (CALM if works else BUSY):
                continue
            try:
                ended, error = outcome()
                failures = 0
            except PRRFLError:
                failures += 1  # a busy machine, unless it continues
                if failures > FAILURES:
                    raise
            asked = time.monotonic()
        show_log()
    if error:
        raise ParticipationError(error)


def _answers(now: "Position", rounds: int) -> str:
    """Return the round in progress, and which sites have not answered the order that is on its way."""
    text = f"round {min(now.round + 1, rounds)}/{rounds}"
    answered = sum(site.state == "answered" for site in now.sites.values())
    missing = [
        f"{name} ({site.state})" if site.state == "not connected" else name
        for name, site in now.sites.items()
        if site.state in ("asked", "not connected")
    ]
    if not now.sites:
        return text
    text += f" {now.step}: {answered}/{answered + len(missing)} answered"
    return f"{text}, missing {', '.join(missing)}" if missing else text


def needs_flower() -> None:
    """Check that Flower is installed.

    Raises:
        ConfigError: if it is not.
    """
    from importlib.util import find_spec

    if find_spec("flwr") is None:
        raise ConfigError("the package flwr is not installed; pip install 'prrfl[flower]'")
