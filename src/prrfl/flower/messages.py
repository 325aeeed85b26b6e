"""All that travels between server and sites: an order, and its answer, as Flower's typed records."""

import json
import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter
from torch import Tensor

from prrfl.errors import ParticipationError, StateMismatchError
from prrfl.storage.tensor_files import adapter
from prrfl.types import ClientId, Tensors

Step = Literal["train", "share", "reveal", "receive", "keep"]
STEPS: tuple[Step, ...] = get_args(Step)
"""Train and answer with the share; under secure summation share in a step of its own, and reveal the site's
own mask in another; take the mean; keep the network as the best."""

T = TypeVar("T")
_LAYOUT: TypeAdapter[list[tuple[str, str, list[Annotated[int, Field(ge=0)]]]]] = TypeAdapter(
    list[tuple[str, str, list[Annotated[int, Field(ge=0)]]]]
)


class OrderRefusedError(ParticipationError):
    """A site does not do what the server asks of it.

    The only error whose words go to the server: they are made of what the order says and of how `prrfl site`
    was started, never of what the site's files hold.
    """


@dataclass(frozen=True, eq=False)
class Order:
    """What the server asks of one site.

    Attributes:
        experiment: names the run, once and for all, also after a stop.
        settings: the training's settings as JSON, as far as the consortium gave any.
        version: of the server's prrfl, which the site's must equal.
        secure: whether shares are summed under masks.
        cohort: for ``share`` and ``reveal``: the signed keys of all whose shares are in the sum, as JSON.
        mean: for ``receive``: the round's mean.
    """

    step: Step
    experiment: str
    site: ClientId
    round: int
    settings: str
    version: str
    secure: bool = False
    cohort: str = ""
    mean: Tensors = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a site answers: all that ever leaves it.

    Attributes:
        error: why it does not do as it was told, without a word of what its files hold; the rest is empty
            then.
        records: losses and scores, one JSON record a line; no image, no name of one, no prediction.
        share: what the method shares, such as the low-band amplitudes of PRR-FL's deputy; under secure
            summation the masked sum's part, in which weight and share cannot be told from noise.
        weight: the share's weight.
        key: under secure summation the site's signed public key for the experiment.
        seed: for ``reveal``: the seed of the site's own mask, in hex.
    """

    experiment: str
    site: ClientId
    round: int
    error: str = ""
    records: str = ""
    share: Tensors = field(default_factory=dict)
    weight: float = 1.0
    key: str = ""
    seed: str = ""


def to_records(value: Order | Answer) -> RecordDict:
    """Return an order or an answer as records: numbers and text in one, a flat array per type in the other.

    Many small arrays travel much slower than one large one; names and shapes go along as JSON.
    """
    plain: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for one in fields(value):
        part = getattr(value, one.name)
        if get_type_hints(type(value))[one.name] == Tensors:
            plain[f"{one.name}.layout"] = json.dumps(
                [[key, str(tensor.numpy().dtype), list(tensor.shape)] for key, tensor in part.items()]
            )
            for dtype in sorted({str(tensor.numpy().dtype) for tensor in part.values()}):
                flat = [t.reshape(-1).numpy() for t in part.values() if str(t.numpy().dtype) == dtype]
                arrays[f"{one.name}.{dtype}"] = Array(np.concatenate(flat))
        else:
            plain[one.name] = part
    return RecordDict({"plain": ConfigRecord(plain), "arrays": ArrayRecord(arrays)})


def from_records(kind: type[T], records: RecordDict) -> T:
    """Return what :func:`to_records` was given.

    Raises:
        StateMismatchError: if the records are those of something else.
    """
    try:
        plain, arrays = records.config_records["plain"], records.array_records["arrays"]
        values: dict[str, Any] = {}
        for name, hint in get_type_hints(kind).items():
            if hint == Tensors:
                values[name] = _tensors(name, str(plain[f"{name}.layout"]), arrays)
            else:
                values[name] = adapter(hint).validate_python(plain[name], strict=True)
    except (KeyError, TypeError, ValueError) as cause:
        raise StateMismatchError(f"no {kind.__name__.lower()}: {' '.join(str(cause).split())}") from None
    return kind(**values)


def _tensors(name: str, text: str, arrays: ArrayRecord) -> dict[str, Tensor]:
    layout = _LAYOUT.validate_json(text)
    flat = {dtype: _flat(arrays[f"{name}.{dtype}"], dtype) for dtype in {d for _, d, _ in layout}}
    at = dict.fromkeys(flat, 0)
    tensors = {}
    for key, dtype, shape in layout:
        part = flat[dtype][at[dtype] : at[dtype] + math.prod(shape)]
        if key in tensors or part.numel() != math.prod(shape):
            raise ValueError(f"the layout of '{name}' names '{key}' twice, or beyond the end of its array")
        tensors[key] = part.reshape(shape)
        at[dtype] += part.numel()
    if any(at[dtype] != whole.numel() for dtype, whole in flat.items()):
        raise ValueError(f"the arrays of '{name}' are longer than its layout")
    return tensors


def _flat(array: Array, dtype: str) -> Tensor:
    try:
        values = array.numpy()
    # Bytes that are no array, or one too large for memory, raise many kinds of exceptions in NumPy; each
    # means the same here.
    except Exception as cause:
        raise ValueError(f"an array cannot be read ({cause})") from None
    if values.ndim != 1 or str(values.dtype) != dtype:
        raise ValueError(f"an array is {values.dtype} of shape {values.shape}, expected {dtype} in a row")
    return torch.from_numpy(values)
