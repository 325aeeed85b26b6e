"""Flower's client app: an order comes in, its answer goes out."""

import atexit
import gc
import logging
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from prrfl.algorithms import DEFAULT
from prrfl.errors import (
    ConfigError,
    DataError,
    NonFiniteShareError,
    PRRFLError,
    StateMismatchError,
    one_line,
)
from prrfl.flower.consent import parse_methods
from prrfl.flower.messages import STEPS, Answer, Order, OrderRefusedError, from_records, to_records
from prrfl.flower.site.orders import DataChangedError, SiteSettings, carry_out
from prrfl.parts.blame import raised_by_a_part
from prrfl.storage.atomic import only_for_this_user
from prrfl.types import ClientId

REASONS: Mapping[type[Exception], str] = {
    DataChangedError: "its data has changed since the run began",
    DataError: "its data cannot be used",
    ConfigError: "a setting or key cannot be used there",
    StateMismatchError: "its saved state of the run cannot be used",
    NonFiniteShareError: "its network gives NaN, infinity or numbers too large to share. If only this site "
    "has them, ask it to check for broken images; if all have them from the first round on, lower the "
    "learning rate; if they began after a mean, a site may have sent a wrong share",
    OSError: "a file cannot be read or written there",
    MemoryError: "it has too little memory",
}
"""What the server is told of an error at a site, by the kind of error."""

app = ClientApp()

# Every message has a process of its own. At its end the interpreter's last collection would visit every
# object of PyTorch's, which takes about a second.
atexit.register(gc.freeze)


class AtSiteError(Exception):
    """What Flower sends in place of an exception of a site's process, whose message stays at the site."""


def answer(message: Message, context: Context) -> Message:
    """Carry out an order. If that fails, the answer is an error; the reason goes to the site's own log.

    Raises:
        AtSiteError: in place of any unexpected exception, because Flower sends the message of an exception to
            the server. The server then sends the order again.
    """
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("prrfl").setLevel(logging.INFO)
    with only_for_this_user():
        return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    name = str(context.node_config.get("name", "?"))
    try:
        local = settings_of(context.node_config)
        order = from_records(Order, message.content)
        try:
            done = carry_out(order, local)
        except (Exception, SystemExit) as cause:  # a part may call sys.exit
            known = cause if _is_flowers_end(cause) else raised_by_a_part(cause) or cause
            if not isinstance(known, PRRFLError | OSError):
                raise
            if known is not cause:
                traceback.print_exc()  # into the site's own log
            _print_error(name, known)
            done = Answer(order.experiment, local.name, order.round, error=reason_for_server(cause, name))
        return Message(to_records(done), reply_to=message)
    except Exception as cause:
        traceback.print_exc()
        _print_error(name, cause)
        reason = reason_for_server(cause, name)
    raise AtSiteError(reason)  # outside the block, so that the cause is not attached to it


def _is_flowers_end(cause: BaseException) -> bool:
    """Return whether Flower ends the process, as it does at a signal, wherever the process then is."""
    if not isinstance(cause, SystemExit):
        return False
    *_, (innermost, _) = traceback.walk_tb(cause.__traceback__)
    return str(innermost.f_globals.get("__name__")).startswith("flwr.")


def settings_of(node: Mapping[str, Any]) -> SiteSettings:
    """Return the settings that ``prrfl site`` gave to the node, see :class:`prrfl.flower.launch.Node`."""
    return SiteSettings(
        name=str(node["name"]),
        data=Path(str(node["data"])),
        home=Path(str(node["home"])),
        device=str(node.get("device", "auto")),
        threads=int(node.get("threads", 0)),
        allow_missing=bool(node.get("allow-missing", False)),
        roster=Path(str(node["roster"])) if "roster" in node else None,
        signing_key=Path(str(node["signing-key"])) if "signing-key" in node else None,
        methods=parse_methods(str(node.get("methods", DEFAULT))),
    )


def reason_for_server(why: BaseException, name: ClientId) -> str:
    """Return what the server may know of an error at a site.

    The message of an error can quote files: image names, cells of tables, paths, row numbers. So the server
    learns only the kind of error, except for a refused order, whose message quotes nothing of the site's.
    """
    if isinstance(why, OrderRefusedError):
        return str(why)
    reason = next((text for kind, text in REASONS.items() if isinstance(why, kind)), "its process failed")
    return (
        f"site {name}: {reason}; the site's operator finds the reason in flower/supernode.log, in the folder "
        "that the site has as --home"
    )


def _print_error(name: str, why: Exception) -> None:
    # `prrfl site` looks for lines with this prefix in Flower's output, and repeats them.
    print(f"site {name}: {one_line(str(why) or type(why).__name__)}", file=sys.stderr, flush=True)


for step in STEPS:
    app.train(step)(answer)
