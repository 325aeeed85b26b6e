"""Tensors and sites' states as bytes and as files: safetensors, never pickle."""

import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import Tensor

from prrfl.errors import StateMismatchError
from prrfl.storage.atomic import replacing
from prrfl.storage.reading import opened, parse_json
from prrfl.types import ClientId, Tensors

T = TypeVar("T")


def write_tensors(path: Path, tensors: Tensors, notes: Mapping[str, object] | None = None) -> None:
    """Write named tensors as safetensors, atomically, with notes as JSON under ``prrfl`` in the header."""
    # Written by Python, so that a full disk is an OSError as everywhere else.
    with replacing(path) as temporary:
        temporary.write_bytes(_safetensors(tensors, notes))


def _safetensors(tensors: Tensors, notes: Mapping[str, object] | None) -> bytes:
    # One entry only, because safetensors writes several in an order that differs from time to time.
    header = {"prrfl": json.dumps(notes)} if notes else None
    whole: bytes = save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata=header)
    return whole


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Raises:
        StateMismatchError: if the file is absent, torn, or no safetensors file.
    """
    try:
        opened(path).close()
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise StateMismatchError(f"{path} is not there; expected a safetensors file") from None
    except Exception as cause:
        raise StateMismatchError(f"{path} is no whole safetensors file: {cause}") from None
    return tensors


def read_notes(path: Path) -> dict[str, Any]:
    """Read the notes that :func:`write_tensors` put into a file's header.

    Raises:
        StateMismatchError: if the file is absent, torn, or has none.
    """
    try:
        opened(path).close()
        with safe_open(path, framework="pt") as file:
            notes = parse_json(file.metadata()["prrfl"])
        return dict(notes)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as cause:
        reason = " ".join(str(cause).split())
        raise StateMismatchError(f"{path} has no notes of a safetensors file of prrfl: {reason}") from None


def to_bytes(value: object) -> bytes:
    """Return nested dataclasses of tensors by name and plain values as the bytes of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {}
    _flatten(type(value), value, "", tensors, values)
    return _safetensors(tensors, {"values": values})


def from_bytes(kind: type[T], whole: bytes) -> T:
    """Return what :func:`to_bytes` was given.

    Args:
        kind: its class, whose fields say what to expect.
        whole: the bytes.

    Raises:
        StateMismatchError: if they are torn, or those of another kind of value.
    """
    try:
        length = int.from_bytes(whole[:8], "little")
        header = parse_json(whole[8 : 8 + length])["__metadata__"]["prrfl"]
        value: T = _built(kind, load(whole), parse_json(header)["values"])
    except (KeyError, TypeError, ValueError, SafetensorError) as cause:
        raise StateMismatchError(f"no {kind.__name__}: {' '.join(str(cause).split())}") from None
    return value


def write_state(path: Path, state: object) -> None:
    """Write a site's state atomically, as :func:`to_bytes` gives it."""
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(state))


def read_state(path: Path, kind: type[T]) -> T:
    """Read a site's state back; its tensors are mapped from the file, which is read when they are used.

    Args:
        path: the file that :func:`write_state` wrote.
        kind: the state's class, whose fields say what to expect.

    Raises:
        StateMismatchError: if the file is absent, torn, or holds another kind of state.
    """
    tensors, notes = read_tensors(path), read_notes(path)
    try:
        state: T = _built(kind, tensors, notes["values"])
    except (KeyError, TypeError, ValueError) as cause:
        raise StateMismatchError(f"{path} holds no {kind.__name__}: {' '.join(str(cause).split())}") from None
    return state


class StatesOnDisk(MutableMapping[ClientId, T]):
    """States that rest in files of one folder, so that memory does not grow with the number of sites.

    A file is never changed, only replaced: a link to it is a copy of the state.
    """

    def __init__(self, folder: Path, kind: type[T]) -> None:
        """Use a folder for states of one kind."""
        self._folder, self._kind = folder, kind

    def path(self, client: ClientId) -> Path:
        """Return where a site's state rests."""
        return self._folder / f"{client}.safetensors"

    def __getitem__(self, client: ClientId) -> T:
        if not self.path(client).exists():
            raise KeyError(client)
        return read_state(self.path(client), self._kind)

    def __setitem__(self, client: ClientId, state: T) -> None:
        write_state(self.path(client), state)

    def __delitem__(self, client: ClientId) -> None:
        self.path(client).unlink()

    def __iter__(self) -> Iterator[ClientId]:
        return iter(sorted(path.stem for path in self._folder.glob("*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


adapter = lru_cache(TypeAdapter)
"""Pydantic's reader and writer of a type, made once, because that is slow."""


@lru_cache
def _parts(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {part.name: _storable(hints[part.name], f"{kind.__name__}.{part.name}") for part in fields(kind)}


def _storable(hint: Any, whose: str) -> Any:
    if hint == dict[str, Tensor]:
        return Tensors
    if hint != Tensors and not is_dataclass(hint):
        try:
            adapter(hint)
        except PydanticSchemaGenerationError:
            raise TypeError(
                f"{whose} of a site's state has the type {hint}; expected Tensors (by name), numbers, texts, "
                "or a dataclass of these, such as Learner"
            ) from None
    return hint


def _flatten(
    kind: Any, value: object, prefix: str, tensors: dict[str, Tensor], values: dict[str, object]
) -> None:
    if isinstance(kind, type) and is_dataclass(kind):
        for name, part in _parts(kind).items():
            _flatten(part, getattr(value, name), f"{prefix}{name}/", tensors, values)
    elif kind == Tensors:
        # Copies, because two networks may be one and the same, which safetensors does not take.
        tensors.update({f"{prefix}{key}": tensor.clone() for key, tensor in value.items()})  # type: ignore[attr-defined]
    else:
        values[prefix] = adapter(kind).dump_python(value, mode="json")


def _built(kind: type[T], tensors: Tensors, values: Mapping[str, object]) -> T:
    """Return a value of a kind whose parts are these and no others.

    Raises:
        ValueError: if there are others.
    """
    of_tensors, of_values = (
        tuple(p for p, is_value in _prefixes(kind) if is_value == k) for k in (False, True)
    )
    if not isinstance(values, Mapping):
        raise ValueError("its values have no names")
    odd = [key for key in tensors if not key.startswith(of_tensors)] + sorted(values.keys() - set(of_values))
    if odd:
        raise ValueError(f"it has the unexpected '{odd[0]}'")
    value: T = _build(kind, "", tensors, values)
    return value


def _prefixes(kind: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield what the names of a kind's parts begin with, and whether each part is a value, not tensors."""
    if isinstance(kind, type) and is_dataclass(kind):
        for name, part in _parts(kind).items():
            yield from _prefixes(part, f"{prefix}{name}/")
    else:
        yield prefix, kind != Tensors


def _build(kind: Any, prefix: str, tensors: Tensors, values: Mapping[str, object]) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        parts = _parts(kind).items()
        return kind(**{name: _build(part, f"{prefix}{name}/", tensors, values) for name, part in parts})
    if kind == Tensors:
        return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    return adapter(kind).validate_python(values[prefix])
