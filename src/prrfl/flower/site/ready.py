"""Whether a site's data can be used, before the site joins a federation."""

from pathlib import Path

from prrfl.config import checked
from prrfl.data.images import SPLITS
from prrfl.data.layout import find_sites, table_path
from prrfl.data.own import DATA_SETS, is_own_data
from prrfl.data.sources import load_site, npz_files
from prrfl.data.tables import read_rows
from prrfl.errors import DataError
from prrfl.types import ClientId, SiteData


def check_data(source: Path, name: ClientId, allow_missing: bool) -> SiteData | None:
    """Load a site's data as training does, and return it.

    The names of the classes are in the settings that the server will send. Until then, those in the tables
    are taken for them. A function of the site's own needs the right names: it is imported, but not called,
    and ``None`` is returned.

    Raises:
        DataError: naming the file, line or image that cannot be used, or the split that is missing.
        PartError: if a function of the site's own cannot be imported.
    """
    if is_own_data(source):
        DATA_SETS[str(source)]
        return None
    defaults = checked({"device": "cpu"}, "the defaults")
    return load_site(
        source,
        name,
        image_size=defaults.image_size,
        classes=_classes(source) or defaults.classes,
        allow_missing=allow_missing,
    )


def _classes(source: Path) -> tuple[str, ...]:
    """Return names for all labels that a source has; none if that cannot be told."""
    if npz_files(source):
        return tuple(f"class {k}" for k in range(2**8))
    try:
        tables = [source] if source.is_file() else _tables(source)
        labels = {cells["label"] for table in tables for _, cells in read_rows(table, ("label",))}
    except (DataError, OSError):
        return ()  # loading names the fault
    names = sorted(label for label in labels if not label.isdecimal())
    count = (
        max([1, len(names) - 1, *(int(label) for label in labels if label.isdecimal() and len(label) < 6)])
        + 1
    )
    return (*names, *(f"class {k}" for k in range(len(names), count)))


def _tables(folder: Path) -> list[Path]:
    tables = [table_path(folder, site, split) for site in find_sites(folder) for split in SPLITS]
    return [table for table in tables if table.is_file()]
