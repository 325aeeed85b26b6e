"""Flower's client app: an order comes in, its answer goes out."""

import logging
import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from prrfl.errors import PRRFLError
from prrfl.flower.participant import Local, carry_out, refused
from prrfl.flower.records import STEPS, Order, from_records, to_records

app = ClientApp()


def answer(message: Message, context: Context) -> Message:
    """Carry out an order; what the site cannot do it says in its answer."""
    order = from_records(Order, message.content)
    node = context.node_config
    local = Local(
        name=str(node["name"]),
        data=Path(str(node["data"])),
        home=Path(str(node["home"])),
        device=str(node.get("device", "auto")),
        threads=int(node.get("threads", 0)),
        allow_missing=bool(node.get("allow-missing", False)),
        roster=Path(str(node["roster"])) if "roster" in node else None,
        signing_key=Path(str(node["signing-key"])) if "signing-key" in node else None,
    )
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("prrfl").setLevel(logging.INFO)
    try:
        done = carry_out(order, local)
    except (PRRFLError, OSError) as error:
        print(f"site {local.name}: {error}", file=sys.stderr, flush=True)
        done = refused(order, local, error)
    return Message(to_records(done), reply_to=message)


for step in STEPS:
    app.train(step)(answer)
