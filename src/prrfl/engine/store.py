"""Files that are either whole or absent: JSON, text, tensors and a site's state, never pickle."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from prrfl.errors import StateMismatchError
from prrfl.types import Tensors

T = TypeVar("T")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Tensors, notes: Mapping[str, object] | None = None) -> None:
    """Write named tensors as safetensors, atomically, with notes as JSON under ``prrfl`` in the header."""
    # One entry only, because safetensors writes several in an order that differs from time to time.
    header = {"prrfl": json.dumps(notes)} if notes else None
    # Written by Python, so that a full disk is an OSError as everywhere else.
    whole = save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata=header)
    with replacing(path) as temporary:
        temporary.write_bytes(whole)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Raises:
        StateMismatchError: if the file is absent, torn, or no safetensors file.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise StateMismatchError(f"{path} is not there; expected a safetensors file") from None
    except Exception as cause:
        raise StateMismatchError(f"{path} is no whole safetensors file: {cause}") from None
    return tensors


def write_state(path: Path, state: object) -> None:
    """Write a site's state atomically: nested frozen dataclasses of tensors by name, numbers and ``None``."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {}
    _flatten(state, "", tensors, values)
    write_tensors(path, tensors, {"values": values})


def read_state(path: Path, kind: type[T]) -> T:
    """Read a site's state back.

    Args:
        path: the file that :func:`write_state` wrote.
        kind: the state's class, whose fields say what to expect.

    Raises:
        StateMismatchError: if the file is absent, torn, or holds another kind of state.
    """
    tensors = read_tensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads(file.metadata()["prrfl"])["values"]
        state: T = _build(kind, "", tensors, values)
    except (KeyError, TypeError, ValueError) as cause:
        raise StateMismatchError(f"{path} holds no {kind.__name__}: {' '.join(str(cause).split())}") from None
    return state


def _flatten(value: object, prefix: str, tensors: dict[str, Tensor], values: dict[str, object]) -> None:
    if is_dataclass(value):
        for part in fields(value):
            _flatten(getattr(value, part.name), f"{prefix}{part.name}/", tensors, values)
    elif isinstance(value, Mapping):
        # Copies, because two networks may be one and the same, which safetensors does not take.
        tensors.update({f"{prefix}{key}": tensor.clone() for key, tensor in value.items()})
    else:
        values[prefix] = value


def _build(kind: Any, prefix: str, tensors: Tensors, values: Mapping[str, object]) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        kinds = get_type_hints(kind)
        parts = {f.name: _build(kinds[f.name], f"{prefix}{f.name}/", tensors, values) for f in fields(kind)}
        return kind(**parts)
    if kind == Tensors:
        return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    return TypeAdapter(kind).validate_python(values[prefix])
