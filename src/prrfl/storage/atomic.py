"""Files and folders that are either whole or absent, even if the process is killed while it writes them."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"
"""Prefix of the names of files and folders that are not whole yet."""


class _Umask:
    """The process's umask. Its value is kept, because it can only be read by setting it."""

    def __init__(self) -> None:
        self.value = os.umask(0)
        os.umask(self.value)

    def set(self, value: int) -> None:
        self.value = value
        os.umask(value)


_umask = _Umask()


@contextmanager
def only_for_this_user() -> Iterator[None]:
    """Let no other user read what the process, or a program that it starts, writes during the block."""
    before = _umask.value
    _umask.set(0o077)
    try:
        yield
    finally:
        _umask.set(before)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds; do nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half-written. No other process may be writing in the folder."""
    for path in list(folder.rglob(f"{PARTIAL}*")):
        remove(path)


def sync(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends without an exception.

    A symbolic link stays a link: the file that it points to is replaced.

    Raises:
        OSError: if ``path`` exists and is not a regular file, for example a device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "Exists and is not a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{PARTIAL}{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode & ~_umask.value)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_free(path: Path) -> bool:
    """Return whether a folder can be written there: nothing is, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that takes its place when the block ends without an exception.

    Until then ``path`` stays as it is: absent, or an empty folder. Files are never overwritten: if two
    processes write the same folder, the first to finish wins and the other gets an error.

    Raises:
        OSError: if ``path`` exists and is not an empty folder, or cannot be written.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - "." needs a name, and a parent to write in
    if not is_free(path):
        raise FileExistsError(errno.EEXIST, "Exists and is not an empty folder", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{path.name}-", dir=path.parent))
    temporary.chmod(0o777 & ~_umask.value)  # as mkdir makes folders; mkdtemp's are private
    try:
        yield temporary
        temporary.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def commit_step(step: Path, pattern: str, keep: int) -> Iterator[Path]:
    """Yield an empty folder that becomes the folder ``step`` when the block ends without an exception.

    Steps are the folders of one parent whose names match a pattern and sort in order of time. Committing a
    step replaces a folder of the same name and prunes: of the steps up to it the last ``keep`` remain, and
    later ones go, because they continue a past that no longer holds. Anything else in the parent is left
    alone, apart from what killed commits left.

    Args:
        step: the folder to commit; its name matches the pattern.
        pattern: glob pattern of the steps' names, such as ``round-[0-9][0-9]``.
        keep: number of steps to keep, including this one.

    Raises:
        OSError: if the folder cannot be written.
    """
    temporary = step.with_name(f".{step.name}")
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        remove(step)
        temporary.replace(step)
        sync(step.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    steps = sorted(path for path in step.parent.glob(pattern) if path.is_dir())
    end = steps.index(step) + 1
    for path in {*steps, *step.parent.glob(f".{pattern}")} - {*steps[max(0, end - keep) : end]}:
        remove(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_passing_json(path: Path, value: object) -> None:
    """Write a JSON file that holds for a moment only: readers see it whole, but a power failure may lose it.

    Nothing waits for the disk. Only one thread of one process may write the file.
    """
    temporary = path.with_name(f"{PARTIAL}{path.name}")
    try:
        temporary.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
