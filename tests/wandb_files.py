"""What an offline file of Weights & Biases holds: records of Protocol Buffers in LevelDB's log format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 2**15
HEADER = 7


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of each record. A record that crosses blocks is in pieces: first, middle, last."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    at, whole = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        at += HEADER
        whole += content[at : at + length]
        at += length
        if kind in (1, 4):
            yield whole
            whole = b""


def records(folder: Path) -> list[Any]:
    """Return all records of the only offline run below a run's folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return [Record.FromString(chunk) for chunk in chunks(path)]


def history(found: list[Any]) -> dict[str, list[tuple[int, Any]]]:
    """Return the points of each value: (step, value) in order."""
    points: dict[str, list[tuple[int, Any]]] = {}
    for record in found:
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                points.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return points
