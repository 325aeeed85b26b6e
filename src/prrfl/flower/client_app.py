"""Flower's client app: an order comes in, its answer goes out."""

import logging
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from prrfl.errors import PRRFLError, one_line
from prrfl.flower.consent import parse_methods
from prrfl.flower.participant import Local, carry_out, refused, told
from prrfl.flower.records import STEPS, Order, from_records, to_records

app = ClientApp()


class AtSiteError(Exception):
    """What Flower sends in place of an exception of a site's process, whose own words stay there."""


def answer(message: Message, context: Context) -> Message:
    """Carry out an order. That the site cannot do it says its answer; why, the site's own log.

    Raises:
        AtSiteError: in place of any exception that nobody foresaw. Flower tells the server its words; the
            server sends the order again.
    """
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("prrfl").setLevel(logging.INFO)
    name = str(context.node_config.get("name", "?"))
    try:
        local = local_of(context.node_config)
        order = from_records(Order, message.content)
        try:
            done = carry_out(order, local)
        except (PRRFLError, OSError) as cause:
            _say(name, cause)
            done = refused(order, local, cause)
        return Message(to_records(done), reply_to=message)
    except Exception as cause:
        traceback.print_exc()
        _say(name, cause)
        words = told(cause, name)
    raise AtSiteError(words)  # outside the block, so that it drags along nothing of the cause


def local_of(node: Mapping[str, Any]) -> Local:
    """Return what ``prrfl site`` has told the node, see :class:`prrfl.flower.launch.Node`."""
    return Local(
        name=str(node["name"]),
        data=Path(str(node["data"])),
        home=Path(str(node["home"])),
        device=str(node.get("device", "auto")),
        threads=int(node.get("threads", 0)),
        allow_missing=bool(node.get("allow-missing", False)),
        roster=Path(str(node["roster"])) if "roster" in node else None,
        signing_key=Path(str(node["signing-key"])) if "signing-key" in node else None,
        methods=parse_methods(str(node.get("methods", "prrfl"))),
    )


def _say(name: str, why: Exception) -> None:
    # `prrfl site` looks for lines that begin so, and says them again.
    print(f"site {name}: {one_line(str(why) or type(why).__name__)}", file=sys.stderr, flush=True)


for step in STEPS:
    app.train(step)(answer)
