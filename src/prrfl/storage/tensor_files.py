"""Tensors and the states of sites as bytes and as files, in safetensors; never as pickle."""

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

_T = TypeVar("_T")


def write_tensors(path: Path, tensors: Tensors, notes: Mapping[str, object] | None = None) -> None:
    """Write named tensors as safetensors, atomically, with notes as JSON under ``prrfl`` in the header."""
    # Written by Python, not by safetensors, so that a full disk raises OSError.
    with replacing(path) as temporary:
        temporary.write_bytes(_safetensors(tensors, notes))


def _safetensors(tensors: Tensors, notes: Mapping[str, object] | None) -> bytes:
    # A single entry, because safetensors does not write several in a fixed order.
    header = {"prrfl": json.dumps(notes)} if notes else None
    # safetensors refuses tensors in one memory, as tied weights are, or the weights of equal networks.
    taken: set[int] = set()
    separate = {}
    for key, tensor in tensors.items():
        packed = tensor.resolve_conj().resolve_neg().contiguous()  # safetensors reads the bare memory
        memory = packed.untyped_storage().data_ptr()
        separate[key] = packed.clone() if memory in taken else packed
        taken.add(memory)
    whole: bytes = save(separate, metadata=header)
    return whole


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Raises:
        StateMismatchError: if the file is missing, damaged, or not a safetensors file.
    """
    try:
        opened(path).close()
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise StateMismatchError(f"{path} is missing; expected a safetensors file") from None
    except Exception as cause:
        raise StateMismatchError(f"{path} is not a complete safetensors file: {cause}") from None
    return tensors


def read_notes(path: Path) -> dict[str, Any]:
    """Read the notes in a file's header, as written by :func:`write_tensors`.

    Raises:
        StateMismatchError: if the file is missing or damaged, or has no notes.
    """
    try:
        opened(path).close()
        with safe_open(path, framework="pt") as file:
            notes = parse_json(file.metadata()["prrfl"])
        return dict(notes)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as cause:
        reason = " ".join(str(cause).split())
        raise StateMismatchError(f"{path} is not a safetensors file written by prrfl: {reason}") from None


def to_bytes(value: object) -> bytes:
    """Return nested dataclasses of named tensors and plain values as the bytes of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, object] = {}
    _flatten(type(value), value, "", tensors, values)
    return _safetensors(tensors, {"values": values})


def from_bytes(kind: type[_T], whole: bytes) -> _T:
    """Return the value that :func:`to_bytes` turned into bytes.

    Args:
        kind: class of the value; its fields define what is expected.
        whole: the bytes.

    Raises:
        StateMismatchError: if the bytes are damaged, or of another class.
    """
    try:
        length = int.from_bytes(whole[:8], "little")
        header = parse_json(whole[8 : 8 + length])["__metadata__"]["prrfl"]
        value: _T = _built(kind, load(whole), parse_json(header)["values"])
    except (KeyError, TypeError, ValueError, SafetensorError) as cause:
        raise StateMismatchError(
            f"these bytes are not a {kind.__name__}: {' '.join(str(cause).split())}"
        ) from None
    return value


def write_state(path: Path, state: object) -> None:
    """Write a site's state atomically, in the format of :func:`to_bytes`."""
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(state))


def read_state(path: Path, kind: type[_T]) -> _T:
    """Read a site's state. Its tensors are memory-mapped: their values are read when they are used.

    Args:
        path: a file written by :func:`write_state`.
        kind: class of the state; its fields define what is expected.

    Raises:
        StateMismatchError: if the file is missing, damaged, or holds a state of another class.
    """
    tensors, notes = read_tensors(path), read_notes(path)
    try:
        state: _T = _built(kind, tensors, notes["values"])
    except (KeyError, TypeError, ValueError) as cause:
        raise StateMismatchError(
            f"{path} does not hold a {kind.__name__}: {' '.join(str(cause).split())}"
        ) from None
    return state


class StatesOnDisk(MutableMapping[ClientId, _T]):
    """States in the files of one folder, so that memory does not grow with the number of sites.

    Files are replaced, never changed, so a hard link to a file is a copy of the state.
    """

    def __init__(self, folder: Path, kind: type[_T]) -> None:
        """Use a folder for states of one class."""
        self._folder, self._kind = folder, kind

    def path(self, client: ClientId) -> Path:
        """Return the path of a site's state."""
        return self._folder / f"{client}.safetensors"

    def __getitem__(self, client: ClientId) -> _T:
        if not self.path(client).exists():
            raise KeyError(client)
        return read_state(self.path(client), self._kind)

    def __setitem__(self, client: ClientId, state: _T) -> None:
        write_state(self.path(client), state)

    def __delitem__(self, client: ClientId) -> None:
        self.path(client).unlink()

    def __iter__(self) -> Iterator[ClientId]:
        return iter(sorted(path.stem for path in self._folder.glob("*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


adapter = lru_cache(TypeAdapter)
"""Pydantic's adapter of a type. Cached, because creating one is slow."""


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
                f"{whose}: a site's state cannot hold the type {hint}; expected Tensors, numbers, strings, "
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
        tensors.update({f"{prefix}{key}": tensor for key, tensor in value.items()})  # type: ignore[attr-defined]
    else:
        values[prefix] = adapter(kind).dump_python(value, mode="json")


def _built(kind: type[_T], tensors: Tensors, values: Mapping[str, object]) -> _T:
    """Return a value of the given class, built from exactly these parts.

    Raises:
        ValueError: if there are unexpected parts.
    """
    of_tensors, of_values = (
        tuple(p for p, is_value in _prefixes(kind) if is_value == k) for k in (False, True)
    )
    if not isinstance(values, Mapping):
        raise ValueError("its values have no names")
    odd = [key for key in tensors if not key.startswith(of_tensors)] + sorted(values.keys() - set(of_values))
    if odd:
        raise ValueError(f"it has the unexpected entry '{odd[0]}'")
    value: _T = _build(kind, "", tensors, values)
    return value


def _prefixes(kind: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the name prefix of each part of a class, and whether the part is a value instead of tensors."""
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
