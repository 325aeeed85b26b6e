"""Which files in a folder are images, which are passed over, and whether a new folder can be written."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path, PurePath

from prrfl.errors import DataError, one_line
from prrfl.storage.atomic import is_free

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
"""Endings of the names of images that are read, in lower case."""

_OF_SYSTEMS = {"__MACOSX", "@eaDir"}
"""Folders of macOS in zips, and of Synology's servers next to photos, with files named like images."""

log = logging.getLogger("prrfl")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is not data by its name: ``.ipynb_checkpoints``, ``._0001.png``."""
    return name.startswith(".") or name in _OF_SYSTEMS


def is_file(path: Path) -> bool:
    """Return whether a path is a file; it is not if the name is too long for the file system."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_free(folder: Path) -> None:
    """Check that a folder can be written there: nothing is, or an empty folder.

    Raises:
        DataError: if something is.
    """
    if not is_free(folder):
        raise DataError(f"{folder} exists already; choose another folder, or remove it")


def walk(folder: Path, suffixes: Collection[str]) -> tuple[list[Path], Counter[str]]:
    """Return the files with these endings at any depth, sorted, and what was passed over, by kind.

    Links to files are followed, links to folders are not, because they may form a loop.

    Raises:
        DataError: if a folder cannot be read.
    """
    found: list[Path] = []
    others = Counter[str]()

    def fail(cause: OSError) -> None:
        raise DataError(f"folder {cause.filename} cannot be read: {cause.strerror}")

    for root, folders, names in os.walk(folder, onerror=fail):
        here = Path(root)
        others["hidden folders"] += sum(map(is_hidden, folders))
        folders[:] = [name for name in folders if not is_hidden(name)]
        others["linked folders"] += sum((here / name).is_symlink() for name in folders)
        for name in names:
            if kind := unread_kind(here / name, suffixes):
                others[kind] += 1
            else:
                found.append(here / name)
    return sorted(found), +others


def unread_kind(path: Path, suffixes: Collection[str]) -> str:
    """Return the kind of a file that is passed over; an empty text if it is to be read."""
    if kind := unread_name(path, suffixes):
        return kind
    if not path.is_file():
        return "broken links" if path.is_symlink() else "special files"
    return ""


def unread_name(path: PurePath, suffixes: Collection[str]) -> str:
    """Return why a file with this name is passed over; an empty text if it is to be read."""
    if is_hidden(path.name):
        return "hidden files"
    if path.suffix.lower() in suffixes:
        return ""
    return f"files ending in {path.suffix.lower()}" if path.suffix else "files without an ending"


def warn_of_passed_over(folder: Path, others: Mapping[str, int]) -> None:
    """Log how many files and folders in a folder were passed over, by kind, if there are any."""
    if any(others.values()):
        log.warning("%s", one_line(f"{folder}: passed over {told(others)}"))


def told(others: Mapping[str, int]) -> str:
    """Return what was passed over in words: ``hidden files: 2, files ending in .txt: 1``."""
    return ", ".join(f"{kind}: {count:,}" for kind, count in sorted(others.items()) if count)
