"""Files that are either whole or absent: JSON, text and tensors, never pickle."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from prrfl.errors import StateMismatchError
from prrfl.types import Tensors


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


def write_tensors(path: Path, tensors: Tensors, notes: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically, with short notes in the header."""
    # Written by Python, so that a full disk is an OSError as everywhere else.
    whole = save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata=notes)
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
