"""The deployed networks of a run: saved with all that is needed to use them, read back, and used."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from prrfl.algorithms import ALGORITHMS, Traits, traits_of
from prrfl.calibration import fit_temperature
from prrfl.config import TrainConfig
from prrfl.data.images import SPLITS, read_image
from prrfl.engine import Deployed
from prrfl.engine.in_process import POOL
from prrfl.errors import ConfigError, StateMismatchError, nearest
from prrfl.evaluation import predictions, probabilities
from prrfl.models import NETWORKS, build_network
from prrfl.storage.atomic import write_text
from prrfl.storage.records import predictions_to_csv, read_predictions
from prrfl.storage.tensor_files import read_notes, read_tensors, write_tensors
from prrfl.tensors import check_same_layout
from prrfl.training import Recipe, forward, predict, prepare, scoring_batch
from prrfl.types import ClientId, Examples, Predictions, SiteData, Split, Tensors

Which = Literal["best", "last"]
"""The best round on validation among the last 20 %, or the last round."""


@dataclass(frozen=True)
class About:
    """The header of a saved network's file, which holds all that is needed to use the network.

    Attributes:
        site: the site that it was trained for; ``all sites`` if their images are pooled.
        model: its name in the method: ``personalised`` for PRR-FL.
        network: name of the architecture.
        classes: names of its outputs, in order.
        image_size: width and height of its inputs, in pixels.
        round: index of the communication round after which it was saved.
        rounds: number of rounds of the run.
        images: per split, number of the site's images of each class.
        weights: name of the file of weights that training started from; empty for random weights.
        settings: of an architecture that is not the package's.
        built_by: the method, if it makes a network of its own from the architecture; else empty.
    """

    site: ClientId
    model: str
    method: str
    network: str
    classes: tuple[str, ...]
    image_size: int
    round: int
    rounds: int
    images: Mapping[str, tuple[int, ...]]
    weights: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    built_by: str = ""

    def build(self) -> nn.Module:
        """Return the architecture, with random weights.

        Raises:
            PartError: if it is not the package's, and cannot be imported.
        """
        network = build_network(self.network, len(self.classes), settings=self.settings)
        return traits_of(ALGORITHMS[self.built_by]).network(network) if self.built_by else network


@dataclass(frozen=True, eq=False)
class SavedNetwork:
    """A network that a run saved, ready to use.

    Attributes:
        site: the site on which it is used.
        weights: its state_dict.
        recipe: its architecture and the preparation of its inputs. It runs in float32, whatever the precision
            of training, so that its outputs do not depend on the arithmetic that suits the machine.
        temperature: divides its logits; see :mod:`prrfl.calibration`.
        fitted_on: number of validation images on which the temperature was fitted; 0 without calibration.
    """

    site: ClientId
    about: About
    weights: Tensors
    recipe: Recipe
    temperature: float = 1.0
    fitted_on: int = 0


def network_path(folder: Path, site: ClientId, which: Which) -> Path:
    """Return the path of a site's network in a run's folder, or in a site's own folder of a federation."""
    return folder / "models" / site / f"{which}.safetensors"


def predictions_path(folder: Path, site: ClientId, which: Which, split: Split) -> Path:
    """Return the path of the predictions of a site's network on its test or validation images."""
    return folder / "predictions" / site / (f"{which}.csv" if split == "test" else f"{which}-{split}.csv")


def training_counts(folder: Path, site: ClientId, which: Which) -> tuple[int, ...] | None:
    """Return the number of training images of each class of a site; ``None`` without a saved network."""
    paths = (network_path(folder, name, which) for name in (site, POOL))
    path = next((path for path in paths if path.is_file()), None)
    return read_about(path).images["train"] if path else None


@dataclass(frozen=True)
class DeployedWriter:
    """Writes the deployed networks of a run, with their predictions.

    Attributes:
        folder: the run's, or in a federation the site's own.
        config: the run's settings.
        sites: the data, by site.
    """

    folder: Path
    config: TrainConfig
    sites: Mapping[ClientId, SiteData]

    def write(self, deployed: Deployed, names: Sequence[Which], index: int) -> None:
        """Write a site's network after a round, and its predictions on validation and test images.

        Args:
            deployed: the network and its outputs.
            names: what to write it as.
            index: index of the round.
        """
        about = self._about(deployed, index)
        for name in names:
            path = network_path(self.folder, deployed.client, name)
            write_tensors(path, deployed.weights, asdict(about))
        outputs: Mapping[Split, Tensors] = {"valid": deployed.valid, "test": deployed.test}
        for split, of_sites in outputs.items():
            for site, logits in of_sites.items():
                found = predictions(logits, self.sites[site].split(split))
                table = predictions_to_csv(found, self.config.classes)
                for name in names:
                    write_text(predictions_path(self.folder, site, name, split), table)

    def _about(self, deployed: Deployed, index: int) -> About:
        pooled = deployed.client not in self.sites
        data = list(self.sites.values()) if pooled else [self.sites[deployed.client]]
        images: dict[str, tuple[int, ...]] = {
            split: tuple(
                torch.cat([one.split(split).labels for one in data])
                .bincount(minlength=len(self.config.classes))
                .tolist()
            )
            for split in SPLITS
        }
        makes_network = traits_of(ALGORITHMS[self.config.method]).network is not Traits().network
        return About(
            site=deployed.client,
            model=deployed.model,
            method=self.config.method,
            network=self.config.network,
            classes=self.config.classes,
            image_size=self.config.image_size,
            round=index,
            rounds=self.config.rounds,
            images=images,
            weights=self.config.weights.name if self.config.weights else "",
            settings=self.config.set.get("network", {}),
            built_by=self.config.method if makes_network else "",
        )


def sites_of(folder: Path) -> list[ClientId]:
    """Return the names of the sites whose networks a folder holds: a run's, or in a federation a site's own.

    Raises:
        ConfigError: if it holds none.
    """
    names = sorted(path.parent.name for path in (folder / "models").glob("*/last.safetensors"))
    if names == [POOL]:  # one network for all, scored at each site
        names = sorted(path.parent.name for path in (folder / "predictions").glob("*/last.csv"))
    if not names:
        raise ConfigError(
            f"{folder} holds no network; give the folder of a run with at least one complete round, or a "
            "site's own folder of a federation"
        )
    return names


def read_network(
    folder: Path,
    site: ClientId | None,
    which: Which = "best",
    *,
    calibrate: bool = False,
    device: str = "cpu",
) -> SavedNetwork:
    """Read the network that a run saved for a site.

    Args:
        folder: a run's, or in a federation the site's own.
        site: name of the site; may be ``None`` if there is only one.
        which: the best network on validation, or the last one.
        calibrate: fit a temperature to the network's saved predictions on the site's validation images.
        device: where the network will run.

    Raises:
        ConfigError: if there is no such site or network.
        DataError: if the predictions that calibration needs are missing or damaged.
        StateMismatchError: if the network's file is damaged, or not from a run.

    Examples:
        >>> from pathlib import Path
        >>> from prrfl.runs.deployed import read_network
        >>> saved = read_network(Path("runs/first"), "clientA", "last")
        >>> saved.about.classes
        ('nv', 'bkl', 'mel')
    """
    names = sites_of(folder)
    if site is None and len(names) > 1:
        raise ConfigError(f"{folder} holds networks of {', '.join(names)}; choose one with --site")
    site = names[0] if site is None else site
    if site not in names:
        raise ConfigError(
            f"{folder} holds no network of site '{site}'{nearest(site, names)}; choose one of "
            f"{', '.join(names)}"
        )
    path = network_path(folder, site, which)
    if not path.parent.is_dir():
        path = network_path(folder, POOL, which)
    if which == "best" and not path.is_file():
        raise ConfigError(
            f"{path} does not exist yet: the best network is chosen among the last 20 % of rounds; use the "
            "last one with --network last"
        )
    temperature, fitted_on = 1.0, 0
    if calibrate:
        valid = read_predictions(predictions_path(folder, site, which, "valid"))
        temperature, fitted_on = fit_temperature(valid, f"site {site}"), len(valid.labels)
    weights, about = read_tensors(path), read_about(path)
    network = about.build()
    check_same_layout(network.state_dict(), weights, str(path))
    return SavedNetwork(site, about, weights, Recipe(network, device=device), temperature, fitted_on)


def read_about(path: Path) -> About:
    """Return the header of a saved network's file.

    Raises:
        StateMismatchError: if the file is damaged, or not from a run.
    """
    try:
        about = TypeAdapter(About).validate_python(read_notes(path))
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(map(str, first["loc"])) or "header"
        raise StateMismatchError(f"{path} is not a network saved by a run: {key}: {first['msg']}") from None
    if about.network not in NETWORKS:
        raise StateMismatchError(
            f"{path}: unknown network '{about.network}'; known networks: {', '.join(sorted(NETWORKS))}"
        )
    if about.built_by and about.built_by not in ALGORITHMS:
        raise StateMismatchError(
            f"{path}: unknown method '{about.built_by}'; known methods: {', '.join(sorted(ALGORITHMS))}"
        )
    return about


def predict_examples(network: SavedNetwork, examples: Examples) -> Predictions:
    """Return a network's predictions on a site's examples.

    Raises:
        StateMismatchError: if its outputs are not finite, because its file was changed.
    """
    (logits,) = predict([network.weights], examples, network.recipe)
    if not logits.isfinite().all():
        raise StateMismatchError(
            f"the network saved for site {network.site} gives NaN or infinity: its file is damaged; restore "
            "it from a copy"
        )
    return predictions(logits, examples, network.temperature)


def classify(network: SavedNetwork, images: Sequence[Path]) -> Iterator[tuple[Path, Tensor]]:
    """Yield each image with its (C,) probabilities; decode the next batch while the current one is computed.

    Raises:
        DataError: naming the image that cannot be decoded.
    """
    size = network.about.image_size
    module = network.recipe.make_for_scoring()
    network.recipe.load(module, network.recipe.for_scoring(network.weights))
    remaining = iter(images)
    with ThreadPoolExecutor() as pool:

        def batch() -> list[tuple[Path, Future[NDArray[np.uint8]]]]:
            paths = islice(remaining, scoring_batch(size * size, network.recipe))
            return [(path, pool.submit(read_image, path, size)) for path in paths]

        try:
            current = batch()
            while current:
                following = batch()
                pixels = np.stack([decoded.result() for _, decoded in current])
                found = probabilities(_logits(module, pixels, network.recipe), network.temperature)
                yield from zip((path for path, _ in current), found, strict=True)
                current = following
        finally:
            pool.shutdown(cancel_futures=True)


def _logits(network: nn.Module, pixels: NDArray[np.uint8], recipe: Recipe) -> Tensor:
    """Return the (N, C) logits of (N, H, W, 3) pixels."""
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(recipe.device)
    with torch.inference_mode():
        (logits,) = forward([network], prepare(inputs, recipe), recipe)
    return logits.cpu().clone()
