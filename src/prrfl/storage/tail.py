"""A text file that another process appends to, read line by line as it grows."""

import os
from pathlib import Path
from typing import Self

from prrfl.storage.reading import opened


class Tail:
    """Reads the complete lines that are new; each byte is read once."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        """Follow a file, which need not exist yet.

        Args:
            path: the file.
            most: bytes at its present end with which to begin; by default all of it.
        """
        self._path, self._most = path, most
        self._inode, self._read = 0, 0

    @classmethod
    def from_end(cls, path: Path) -> Self:
        """Follow a file from its present end, or from its beginning if it does not exist yet."""
        tail = cls(path, 0 if path.is_file() else None)
        tail.restarted()
        return tail

    def restarted(self) -> bool:
        """Return whether the file is another one, or shorter than what was read; then it is read again."""
        try:
            now = os.stat(self._path)  # noqa: PTH116 - one call for both numbers
        except OSError:
            return False
        begun = self._inode != 0
        if begun and now.st_ino == self._inode and now.st_size >= self._read:
            return False
        self._inode = now.st_ino
        self._read = 0 if self._most is None else max(0, now.st_size - self._most)
        return begun

    def lines(self) -> list[bytes]:
        """Return the lines that are new and complete, after :meth:`restarted` was asked."""
        if not self._inode:
            return []
        try:
            with opened(self._path) as file:
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._read += len(whole + end)
        return whole.splitlines()

    def texts(self) -> list[str]:
        """Return the lines that are new and complete as text, also if the file is another one."""
        self.restarted()
        return [line.decode("utf-8", "replace") for line in self.lines()]
