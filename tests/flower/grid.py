"""Flower's grid without its processes: orders are carried out at once, and can go wrong on purpose."""

from dataclasses import dataclass, field

import torch
from flwr.app import Context, Error, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from prrfl.flower.federation import federate
from prrfl.flower.messages import Order, from_records, to_records
from prrfl.flower.server.app import run_federation
from prrfl.flower.site.app import answer
from prrfl.storage.tensor_files import read_tensors
from prrfl.types import AbsenceRecord

NAMES = ["clientA", "clientB", "clientC"]
SETTINGS = {
    "rounds": 2,
    "epochs": 1,
    "batch": 8,
    "image_size": 32,
    "precision": "float32",
    "network": "tiny",
    "augment": False,
    "seed": 0,
}

# As Flower sets them in each of its processes, where messages are made.
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


@dataclass
class GridHere(Grid):
    """Nodes of the given names.

    Attributes:
        configs: each site's node config, by name.
        spoil: may change or withhold (``None``) a site's reply: called with order and reply.
        orders: all that were sent, in order.
    """

    configs: dict[str, dict]
    spoil: object = lambda order, reply: reply
    orders: list[Order] = field(default_factory=list)
    replies: dict = field(default_factory=dict)
    online: dict = field(default_factory=dict)

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *_, **__):
        raise NotImplementedError

    def send_and_receive(self, *_, **__):
        raise NotImplementedError

    def get_node_ids(self):
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self):
        return [
            NodeInfo(node_id=k, name=name, last_activated_at=self.online.get(name, "once"))
            for k, name in enumerate(self.configs)
            if self.online.get(name) != "away"
        ]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message_id = f"message {len(self.orders)}"
            name = list(self.configs)[message.metadata.dst_node_id]
            order = from_records(Order, message.content)
            self.orders.append(order)
            message.metadata.__dict__["_message_id"] = message_id
            try:
                reply = answer(message, Context(0, 0, self.configs[name], RecordDict(), {}))
            except Exception as cause:  # as Flower's client process does
                reply = failure(message_id, str(cause))
            reply = self.spoil(order, reply)
            if reply is not None:
                self.replies[message_id] = reply
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(k) for k in list(message_ids) if k in self.replies]


def failure(message_id, reason, code=2):
    """Return the reply that Flower gives in place of one that is lost."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=1,
        dst_node_id=1,
        message_type="train",
        group_id="",
        ttl=1.0,
        reply_to_message_id=message_id,
        created_at=0.0,
    )
    return make_message(metadata=metadata, error=Error(code, reason))


class GridReply:
    """A reply with another content."""

    def __init__(self, answer, reply):
        self.content, self.metadata = to_records(answer), reply.metadata

    def has_error(self):
        return False


def grid_of(data, home, certs=None, methods="prrfl", names=NAMES, **more):
    """Return a grid of sites; under secure summation if their keys are given."""

    def config(name):
        own = {"name": name, "data": str(data), "home": str(home / name), "threads": 1, "device": "cpu"}
        own |= {"methods": methods}
        if certs:
            own |= {
                "roster": str(certs / name / "roster.txt"),
                "signing-key": str(certs / name / "sign.key"),
            }
        return own

    return GridHere({name: config(name) for name in names}, **more)


def run(grid, folder, secure=False, quorum=0, deadline=0.0, names=NAMES, **settings):
    """Run a federation to its end, and return its records."""
    federation = federate(folder, {**SETTINGS, **settings}, names, quorum, deadline, secure)
    return list(run_federation(grid, federation, folder))


def absences(records):
    """Return round, site and reason of each absence."""
    return [(r.round, r.client, r.reason) for r in records if isinstance(r, AbsenceRecord)]


def networks(home, which="last", names=NAMES):
    """Return each site's saved network."""
    return {
        name: read_tensors(next((home / name).glob(f"*/models/{name}/{which}.safetensors"))) for name in names
    }


def same(first, second):
    """Return whether the sites have the same networks, bit by bit."""
    return all(torch.equal(first[n][key], second[n][key]) for n in NAMES for key in first[n])
