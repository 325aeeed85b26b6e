"""Measure what is sent: the messages of the first round of a small federation on generated images."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from flwr.app import RecordDict

from prrfl.config import TrainConfig, checked
from prrfl.data.synthetic import GeneratedData, write_generated
from prrfl.flower.certs import make_certs
from prrfl.flower.consent import METHODS
from prrfl.flower.federation import as_json, check_can_federate
from prrfl.flower.messages import COUNTING, Answer, Order, OrderStep, to_records
from prrfl.flower.site.orders import SiteSettings, carry_out
from prrfl.storage.tensor_files import read_state
from prrfl.types import ClientId, Share

SECURE_STEPS: tuple[OrderStep, ...] = ("share", "reveal")

NAMES = ("clientA", "clientB", "clientC")


@dataclass(frozen=True)
class Item:
    """One part of one message.

    Attributes:
        step: the step of the round.
        to: who receives the message.
        name: field of the message, with the type for an array.
        bytes: size of its content, without Flower's framing.
    """

    step: OrderStep
    to: Literal["site", "server"]
    name: str
    bytes: int


def measure_wire(settings: Mapping[str, Any], secure: bool = False) -> list[Item]:
    """Return all that one site receives and sends in a round, without empty fields.

    Args:
        settings: settings of the training. Images are 32 px here, which does not change what is sent, and
            there is one local epoch; each further epoch adds its records. Prototypes, if the loss has them,
            are sent from the first round on.
        secure: whether shares are summed under masks.

    Raises:
        ConfigError: if a setting is invalid, or the method cannot run over real sites.
    """
    settings = {**settings, "image_size": 32, "epochs": 1, "precision": "float32", "init_iter": 0}
    config = checked(settings, "the settings")
    check_can_federate(config, secure)
    with TemporaryDirectory() as folder:
        return list(_round(Path(folder), as_json(settings), secure, config))


def _round(folder: Path, settings: str, secure: bool, config: TrainConfig) -> Iterator[Item]:
    write_generated(GeneratedData(len(NAMES), 18, 32, 0), folder / "data")
    make_certs(folder / "certs", NAMES, ["localhost"])

    counts = json.dumps([6] * len(config.classes)) if config.loss_function().counts == "federation" else ""

    def ask(step: OrderStep, name: ClientId, index: int = 0, **more: Any) -> tuple[Order, Answer]:
        own = folder / "certs" / "sites" / name
        local = SiteSettings(
            name,
            data=folder / "data",
            home=folder / name,
            device="cpu",
            threads=1,
            roster=own / "roster.txt" if secure else None,
            signing_key=own / "sign.key" if secure else None,
            methods=METHODS,
        )
        more["class_counts"] = "" if index == COUNTING else counts
        order = Order(step, "wire", name, index, settings, version("prrfl"), secure, **more)
        return order, carry_out(order, local)

    first, *others = NAMES
    talks = []

    def gather(step: OrderStep, index: int) -> None:
        talks.append(ask(step, first, index))
        if secure:
            answers = [talks[-1][1], *(ask(step, name, index)[1] for name in others)]
            cohort = json.dumps([json.loads(a.key) for a in answers])
            talks.extend(ask(step, first, index, cohort=cohort) for step in SECURE_STEPS)

    if counts:
        gather("count", COUNTING)
    gather("train", 0)
    # One site's share is as large as the mean, and can be taken for one.
    (path,) = (folder / first).glob("wire/state/*-trained/share.safetensors")
    talks.append(ask("receive", first, mean=read_state(path, Share).tensors))
    talks.append(ask("keep", first))
    for order, answer in talks:
        yield from _items(order.step, "site", to_records(order))
        yield from _items(order.step, "server", to_records(answer))


def _items(step: OrderStep, to: Literal["site", "server"], records: RecordDict) -> Iterator[Item]:
    for key, value in records.config_records["plain"].items():
        if value not in ("", "[]"):
            yield Item(step, to, key, len(value.encode()) if isinstance(value, str) else 8)
    for key, array in records.array_records["arrays"].items():
        yield Item(step, to, key, array.numpy().nbytes)
