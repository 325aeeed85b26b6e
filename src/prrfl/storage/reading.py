"""Checked reading: regular files only, of bounded size, with errors that name the file."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from prrfl.errors import StateMismatchError


def opened(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: also if the path is a folder, or a pipe or device, which a reader may wait on for ever; or if
            the name is invalid.
    """
    try:
        # O_NONBLOCK: opening a pipe does not wait for a writer. It makes no difference to regular files.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as cause:  # a NUL byte, or a character that the file system cannot encode
        raise OSError(errno.EINVAL, f"invalid file name ({cause})", str(path)) from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(
            code, "is a folder, not a file" if code == errno.EISDIR else "is not a regular file", str(path)
        )
    return os.fdopen(handle, "rb")


def why_unreadable(cause: OSError) -> str:
    """Return why a file cannot be read, for a message that begins with its name."""
    return "does not exist" if isinstance(cause, FileNotFoundError) else f"cannot be read: {cause}"


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return a file's bytes.

    Args:
        path: the file.
        most: largest number of bytes allowed; unlimited by default.

    Raises:
        OSError: as in :func:`opened`; or if the file is larger.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"has {size:,} bytes; at most {most:,} are read", str(path))
        return file.read()


def read_text(path: Path, most: int | None = None) -> str:
    """Return a file's UTF-8 text.

    Raises:
        OSError: as in :func:`read_bytes`.
        UnicodeDecodeError: if the file is not valid UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: if it is invalid, or nested more deeply than Python can parse.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checksum(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal, or of its first ``size`` bytes.

    Raises:
        StateMismatchError: if the file cannot be read.
    """
    try:
        with opened(path) as file:
            if size is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            return hashlib.sha256(file.read(size)).hexdigest()
    except OSError as cause:
        raise StateMismatchError(f"{path} cannot be read: {cause}") from None


def changed_file(folder: Path, sums: Mapping[str, str]) -> Path | None:
    """Return the first file of a folder that is missing or has another SHA-256; ``None`` if all match."""
    for name, expected in sums.items():
        try:
            if checksum(folder / name) != expected:
                return folder / name
        except StateMismatchError:
            return folder / name
    return None
