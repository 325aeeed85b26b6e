"""The mean that a round's sites were sent, on the server's disk, so that a repeated round has the same."""

from pathlib import Path

from prrfl.errors import StateMismatchError
from prrfl.storage.atomic import remove
from prrfl.storage.tensor_files import read_notes, read_tensors, write_tensors
from prrfl.types import Tensors


class SentMean:
    """The mean of the newest round.

    A site takes only one mean in each round of a run; it answers each with its test scores, and a server that
    could send many means would learn as much about the test images. A server that was killed while it sent
    the mean therefore sends the same again, also if other sites take part in the repeated round.
    """

    def __init__(self, path: Path) -> None:
        """Save the mean in a file, which need not exist."""
        self._path = path

    def once(self, mean: Tensors, index: int) -> Tensors:
        """Return the mean that was already sent in round ``index``; if none was, save this one and return it.

        Raises:
            StateMismatchError: if the file cannot be read.
        """
        if self._path.exists():
            try:
                if read_notes(self._path)["round"] == index:
                    return read_tensors(self._path)
            except (StateMismatchError, KeyError) as cause:
                raise StateMismatchError(
                    f"{self._path} cannot be read: {cause}; restore it from a copy, or start a new run"
                ) from None
        write_tensors(self._path, mean, {"round": index})
        return mean

    def forget(self) -> None:
        """Remove the file at the end of the run."""
        remove(self._path)
