"""The cache of generated data sets on this machine."""

import os
import tempfile
from pathlib import Path

from prrfl.data.synthetic.dataset import GeneratedData, write_generated
from prrfl.errors import DataError

_VERSION = "v2"  # raise it whenever the drawings change, so that an old cache is not used for the new ones


def cache_folder() -> Path:
    """Return the folder of all generated data sets: ``prrfl`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    A user without a home directory, as in some containers, gets a folder among the temporary ones.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prrfl"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return Path(tempfile.gettempdir()) / f"prrfl-{os.getuid()}"


def cached(spec: GeneratedData, cache: Path | None = None) -> Path:
    """Return the folder of a generated data set, which is written on first use.

    If several processes generate the same data set, all of them use the folder of the first to finish.

    Args:
        spec: the data set.
        cache: folder of all generated data sets; :func:`cache_folder` by default.

    Returns:
        A folder in the published layout.

    Raises:
        DataError: if the folder cannot be written.
    """
    name = f"generated-{spec.sites}x{spec.images}-{spec.size}px-seed{spec.seed}-{_VERSION}"
    folder = (cache or cache_folder()) / name
    if not folder.is_dir():
        try:
            write_generated(spec, folder)
        except DataError:
            if not folder.is_dir():
                raise
    return folder
