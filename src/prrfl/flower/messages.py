"""The two messages between server and sites, an order and its answer, as Flower's typed records."""

import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter
from torch import Tensor

from prrfl.errors import ParticipationError, StateMismatchError
from prrfl.storage.tensor_files import adapter
from prrfl.types import ClientId, Tensors

OrderStep = Literal["count", "train", "share", "reveal", "receive", "keep", "end"]
STEPS: tuple[OrderStep, ...] = get_args(OrderStep)
"""``count``: count training images by class, once before the first round, if the loss needs the counts of
all sites. ``train``: train and answer with the share. ``share``, ``reveal``: under secure summation, send the
masked share, then the seed of the site's own mask. ``receive``: take the mean. ``keep``: save the network as
the best. ``end``: the run is complete."""

COUNTING = -1
"""The index of the round in which the sites' class counts are added."""

T = TypeVar("T")
_LAYOUT: TypeAdapter[list[tuple[str, str, list[Annotated[int, Field(ge=0)]]]]] = TypeAdapter(
    list[tuple[str, str, list[Annotated[int, Field(ge=0)]]]]
)


class OrderRefusedError(ParticipationError):
    """A site refuses an order.

    This is the only error whose message is sent to the server. It may quote the order and the options of
    ``prrfl site``, but never the content of the site's files.
    """


@dataclass(frozen=True, eq=False)
class Order:
    """What the server asks of one site.

    Attributes:
        step: what the site is to do.
        experiment: name of the run; it does not change when the run is resumed.
        site: the site's name.
        round: the round, from 0; or :data:`COUNTING`.
        settings: the settings of the training that the consortium gave, as JSON.
        version: version of prrfl at the server; the site's must be the same.
        secure: whether shares are summed under masks.
        cohort: for ``share`` and ``reveal``: the signed keys of all sites in the sum, as JSON.
        mean: for ``receive``: the round's mean.
        class_counts: training images of each class at all sites, as JSON, if the loss needs them; empty
            before they are known.
    """

    step: OrderStep
    experiment: str
    site: ClientId
    round: int
    settings: str
    version: str
    secure: bool = False
    cohort: str = ""
    mean: Tensors = field(default_factory=dict)
    class_counts: str = ""


@dataclass(frozen=True, eq=False)
class Answer:
    """What a site answers. Nothing else ever leaves it.

    Attributes:
        experiment: name of the run.
        site: the site's name.
        round: the round, from 0.
        error: why the order was not carried out, without any content of the site's files. The fields below
            are empty then.
        records: losses and scores, one JSON record a line; no images, image names or predictions.
        share: what the method shares, such as the low-band amplitudes of PRR-FL's deputy; or class counts.
            Under secure summation, the masked share, which cannot be told from noise.
        weight: the share's weight.
        key: under secure summation, the site's signed public key for the experiment.
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
    """Return an order or an answer as records: numbers and text in one, one flat array per type in the other.

    Names and shapes of the tensors are sent as JSON, because Flower sends many small arrays much more slowly
    than one large array.
    """
    plain: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for name, hint in get_type_hints(type(value)).items():
        part = getattr(value, name)
        if hint == Tensors:
            plain[f"{name}.layout"] = json.dumps(
                [[key, str(tensor.numpy().dtype), list(tensor.shape)] for key, tensor in part.items()]
            )
            for dtype in sorted({str(tensor.numpy().dtype) for tensor in part.values()}):
                flat = [t.reshape(-1).numpy() for t in part.values() if str(t.numpy().dtype) == dtype]
                arrays[f"{name}.{dtype}"] = Array(np.concatenate(flat))
        else:
            plain[name] = part
    return RecordDict({"plain": ConfigRecord(plain), "arrays": ArrayRecord(arrays)})


def from_records(kind: type[T], records: RecordDict) -> T:
    """Return the order or answer that :func:`to_records` turned into records.

    Raises:
        StateMismatchError: if the records do not hold one.
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
        raise StateMismatchError(f"invalid {kind.__name__.lower()}: {' '.join(str(cause).split())}") from None
    return kind(**values)


def _tensors(name: str, text: str, arrays: ArrayRecord) -> dict[str, Tensor]:
    layout = _LAYOUT.validate_json(text)
    flat = {dtype: _flat(arrays[f"{name}.{dtype}"], dtype) for dtype in {d for _, d, _ in layout}}
    at = dict.fromkeys(flat, 0)
    tensors = {}
    for key, dtype, shape in layout:
        part = flat[dtype][at[dtype] : at[dtype] + math.prod(shape)]
        if key in tensors or part.numel() != math.prod(shape):
            raise ValueError(f"the layout of '{name}' lists '{key}' twice, or beyond the end of its array")
        tensors[key] = part.reshape(shape)
        at[dtype] += part.numel()
    if any(at[dtype] != whole.numel() for dtype, whole in flat.items()):
        raise ValueError(f"the arrays of '{name}' are longer than its layout")
    return tensors


def _flat(array: Array, dtype: str) -> Tensor:
    try:
        values = array.numpy()
    # Bytes that are not an array, or one too large for memory, raise many kinds of exceptions in NumPy. All
    # of them mean the same here.
    except Exception as cause:
        raise ValueError(f"an array cannot be read ({cause})") from None
    if not isinstance(values, np.ndarray):  # NumPy opens whole archives as well
        raise ValueError("an array cannot be read (it is an archive)")
    if values.ndim != 1 or str(values.dtype) != dtype:
        raise ValueError(
            f"an array is {values.dtype} of shape {values.shape}; expected one dimension of {dtype}"
        )
    return torch.from_numpy(values)
