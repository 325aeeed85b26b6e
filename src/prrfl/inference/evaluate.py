"""Networks that a run kept, scored anew on their sites' own images."""

import logging
from collections.abc import Iterator
from pathlib import Path

from prrfl.config import TrainConfig
from prrfl.data.sources import load_site
from prrfl.errors import DataError
from prrfl.reports.assessment import Assessment, assess
from prrfl.runs.deployed import (
    SavedNetwork,
    Which,
    predict_examples,
    predictions_path,
    read_network,
    sites_of,
)
from prrfl.runs.folder import RunFolder
from prrfl.runs.setup import load_data
from prrfl.storage.records import read_predictions
from prrfl.types import ClientId, Predictions, SiteData, Split

log = logging.getLogger("prrfl")
TEST: tuple[Split, ...] = ("test",)


def judge_own(
    folder: Path, which: Which, calibrate: bool = False
) -> Iterator[tuple[SavedNetwork, Assessment]]:
    """Yield each network of a run, or of a site's own folder, with its judgement on the site's test images.

    Images are read again and the network run again; a warning says where the images are not the run's.

    Raises:
        ConfigError: if the folder keeps no network.
        DataError: if the data is not there any more, or cannot be used.
        StateMismatchError: if a network's file is torn.
    """
    names = sites_of(folder)
    config = RunFolder(folder).settings(device="auto", precision="float32")
    sites = _load(folder, config, names)
    for name in names:
        kept = read_network(folder, name, which, calibrate=calibrate, device=config.device)
        if name not in sites:
            raise DataError(f"{config.data} holds no site {name} any more, whose network {folder} keeps")
        found = predict_examples(kept, sites[name].test)
        _compare(found, read_predictions(predictions_path(folder, name, which, "test")), name)
        yield kept, assess(found)


def _load(folder: Path, config: TrainConfig, names: list[ClientId]) -> dict[ClientId, SiteData]:
    if not RunFolder(folder).is_site:
        return {site.name: site for site in load_data(config, TEST)}
    assert config.data is not None  # a site has data of its own
    read = {"image_size": config.image_size, "classes": config.classes, "allow_missing": config.allow_missing}
    return {name: load_site(config.data, name, needed=TEST, **read) for name in names}  # type: ignore[arg-type]


def _compare(found: Predictions, kept: Predictions, site: ClientId) -> None:
    if found.ids != kept.ids or not found.labels.equal(kept.labels):
        log.warning("the test images of %s are not those of the run: scores here are of other images", site)
