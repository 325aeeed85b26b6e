"""Score the networks of a run on the test images of their own sites."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from prrfl.config import TrainConfig
from prrfl.data.fingerprint import fingerprint, what_differs
from prrfl.data.sources import load_site
from prrfl.data.subgroups import SubgroupColumn, TestTables, read_tables
from prrfl.errors import DataError
from prrfl.runs.deployed import (
    SavedNetwork,
    Which,
    predict_examples,
    predictions_path,
    read_network,
    sites_of,
)
from prrfl.runs.folder import RunFolder
from prrfl.runs.setup import data_folder, read_sites
from prrfl.storage.records import read_predictions
from prrfl.types import ClientId, Predictions, SiteData, Split

log = logging.getLogger("prrfl")
_TEST: tuple[Split, ...] = ("test",)


def evaluate_own_sites(
    folder: Path, which: Which, calibrate: bool = False, data: Path | None = None
) -> Iterator[tuple[SavedNetwork, Predictions]]:
    """Yield each network of a run, or of a site's folder in a federation, and its test predictions.

    The images are read and the network is run again. If the images are not those of the run, there is a
    warning.

    Args:
        folder: the folder of the run or site.
        which: the network of the best or of the last round.
        calibrate: whether to calibrate its probabilities.
        data: where the data is now, if it was moved.

    Raises:
        ConfigError: if the folder holds no network.
        DataError: if the data is missing or invalid.
        StateMismatchError: if the file of a network is damaged.
    """
    names = sites_of(folder)
    there = RunFolder(folder)
    config = there.at(there.settings(device="auto", precision="float32"), data, "--own-data")
    sites = _load(folder, config, names)
    if new := sorted(sites.keys() - set(names)):
        log.warning(
            "%s holds no network of %s, which is not scored; prrfl evaluate --data scores new sites",
            folder,
            ", ".join(new),
        )
    before = there.data() or {}
    for name in names:
        network = read_network(folder, name, which, calibrate=calibrate, device=config.device)
        if name not in sites:
            raise DataError(
                f"{config.data} has no site {name}, of which {folder} holds a network; restore its data"
            )
        found = predict_examples(network, sites[name].test)
        known = before.get(name, {}).get("test")
        if known and (what := what_differs(known, fingerprint(sites[name].test))):
            log.warning("the test images of %s are not those of the run, so scores differ: %s", name, what)
        elif known is None:
            _compare(found, read_predictions(predictions_path(folder, name, which, "test")), name)
        yield network, found


def tables_of(
    folder: Path, sites: Sequence[ClientId], columns: Sequence[SubgroupColumn], data: Path | None, option: str
) -> TestTables:
    """Return the rows of the test images of a run, or of a site's folder in a federation.

    Args:
        folder: the folder of the run or site.
        sites: the sites to read.
        columns: columns that the tables must have; without any, nothing is read.
        data: where the data is now, if it was moved.
        option: the command's option for it, for messages.

    Raises:
        DataError: if the data is missing or invalid, or lacks a column.
    """
    if not columns:
        return TestTables()
    there = RunFolder(folder)
    config = there.at(there.settings(), data, option)
    return read_tables(
        data_folder(config), columns, sites, classes=config.classes, image_size=config.image_size
    )


def _load(folder: Path, config: TrainConfig, names: list[ClientId]) -> dict[ClientId, SiteData]:
    if not RunFolder(folder).is_site:
        return {site.name: site for site in read_sites(config, _TEST)}
    assert config.data is not None  # a site has its own data
    read = {"image_size": config.image_size, "classes": config.classes, "allow_missing": config.allow_missing}
    return {name: load_site(config.data, name, needed=_TEST, **read) for name in names}  # type: ignore[arg-type]


def _compare(found: Predictions, saved: Predictions, site: ClientId) -> None:
    if found.ids != saved.ids or not found.labels.equal(saved.labels):
        log.warning("the test images of %s are not those of the run, so the scores differ", site)
