"""Files as people leave them: read if they are files at all, and as JSON if they hold it."""

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
    """Open a file for reading.

    Raises:
        OSError: also where there is a folder, or a pipe or device, from which a reader might wait for ever or
            never see an end; or where no file can have such a name.
    """
    try:
        # Without waiting for somebody who writes into a pipe; of a file this changes nothing.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as cause:  # a NUL byte, or what the file system's encoding has not
        raise OSError(errno.EINVAL, f"no file has such a name ({cause})", str(path)) from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "is a folder, no file" if code == errno.EISDIR else "is no file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return a file's bytes.

    Args:
        path: the file.
        most: how many there may be; any number, if not given.

    Raises:
        OSError: as :func:`opened`; or if there are more.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"has {size:,} bytes, at most {most:,} are read", str(path))
        return file.read()


def read_text(path: Path, most: int | None = None) -> str:
    """Return a file's UTF-8 text.

    Raises:
        OSError: as :func:`read_bytes`.
        UnicodeDecodeError: if it is no such text.
    """
    return read_bytes(path, most).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: if it is none; also if it is nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def checksum(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first bytes, in hexadecimal.

    Raises:
        StateMismatchError: if it cannot be read.
    """
    try:
        with opened(path) as file:
            if size is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            return hashlib.sha256(file.read(size)).hexdigest()
    except OSError as cause:
        raise StateMismatchError(f"{path} cannot be read: {cause}") from None


def changed_file(folder: Path, sums: Mapping[str, str]) -> Path | None:
    """Return a file of a folder that is absent, or whose SHA-256 is another one, if there is one."""
    for name, expected in sums.items():
        try:
            if checksum(folder / name) != expected:
                return folder / name
        except StateMismatchError:
            return folder / name
    return None
