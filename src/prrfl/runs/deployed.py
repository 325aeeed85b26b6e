"""The networks that a run keeps for its sites: written with all that one needs to use them, and used."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from prrfl.calibration import fit_temperature
from prrfl.config import TrainConfig
from prrfl.data.images import SPLITS, read_image
from prrfl.engine.in_process import POOL
from prrfl.errors import ConfigError, StateMismatchError, nearest
from prrfl.evaluation import predictions, probabilities
from prrfl.models import NETWORKS, build_network
from prrfl.storage.records import read_predictions
from prrfl.storage.tensor_files import read_notes, read_tensors, write_tensors
from prrfl.tensors import check_same_layout
from prrfl.training import Recipe, forward, predict, prepare, scoring_batch
from prrfl.types import ClientId, Examples, Predictions, SiteData, Split, Tensors

Which = Literal["best", "last"]
"""The best round on validation among the last 20 %, or the last round."""


@dataclass(frozen=True)
class About:
    """What stands in the header of a kept network's file, so that the file is enough to use it.

    Attributes:
        site: whose it is; all sites' together, where they are pooled.
        model: its name in the method: ``personalised`` for PRR-FL.
        network: the architecture's name.
        classes: names of its outputs, in their order.
        image_size: side of its inputs, in pixels.
        round: index of the communication round after which it was kept.
        rounds: number of rounds of the run.
        images: per split, how many images of each class the site had.
        weights: name of the file of weights that training started from; empty for fresh ones.
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


@dataclass(frozen=True, eq=False)
class Kept:
    """A network that a run kept, ready to use.

    Attributes:
        site: whom it is used for.
        weights: its state_dict.
        recipe: its architecture and the preparation of its inputs; in float32, whatever the training's
            precision, so that what it says of an image does not depend on the machine's best arithmetic.
        temperature: its logits are divided by it; see :mod:`prrfl.calibration`.
        fitted_on: number of validation images that the temperature was fitted on; 0 where none was asked for.
    """

    site: ClientId
    about: About
    weights: Tensors
    recipe: Recipe
    temperature: float = 1.0
    fitted_on: int = 0


def about(config: TrainConfig, site: ClientId, model: str, index: int, data: Sequence[SiteData]) -> About:
    """Return what is to be said of a network.

    Args:
        config: the run's settings.
        site: whose it is.
        model: its name in the method.
        index: of the round.
        data: what it was trained on; of several sites, where they are pooled.
    """
    images: dict[str, tuple[int, ...]] = {
        split: tuple(
            torch.cat([one.split(split).labels for one in data])
            .bincount(minlength=len(config.classes))
            .tolist()
        )
        for split in SPLITS
    }
    return About(
        site,
        model,
        config.method,
        config.network,
        config.classes,
        config.image_size,
        index,
        config.rounds,
        images,
        config.weights.name if config.weights else "",
    )


def write_kept(path: Path, weights: Tensors, about: About) -> None:
    """Write a network with what is to be said of it, atomically."""
    write_tensors(path, weights, asdict(about))


def kept_path(folder: Path, site: ClientId, which: Which) -> Path:
    """Return where a folder keeps a site's network."""
    return folder / "models" / site / f"{which}.safetensors"


def predictions_path(folder: Path, site: ClientId, which: Which, split: Split) -> Path:
    """Return where a folder keeps what a site's network says of its test or validation images."""
    return folder / "predictions" / site / (f"{which}.csv" if split == "test" else f"{which}-{split}.csv")


def sites_of(folder: Path) -> list[ClientId]:
    """Return the sites that a run's folder, or a site's own of a federation, keeps a network for, by name.

    Raises:
        ConfigError: if there is none.
    """
    names = sorted(path.parent.name for path in (folder / "models").glob("*/last.safetensors"))
    if names == [POOL]:  # one network for all, judged at each
        names = sorted(path.parent.name for path in (folder / "predictions").glob("*/last.csv"))
    if not names:
        raise ConfigError(
            f"{folder} keeps no network; give the folder of a run with a complete round, or a site's own of "
            "a federation over real sites"
        )
    return names


def read_kept(
    folder: Path,
    site: ClientId | None,
    which: Which = "best",
    *,
    calibrate: bool = False,
    device: str = "cpu",
) -> Kept:
    """Read the network that a run kept for a site.

    Args:
        folder: of a run, or a site's own of a federation.
        site: which one; may be ``None`` where there is one alone.
        which: of the rounds that compete for the best, or the last one's.
        calibrate: fit a temperature on what the network said of the site's validation images.
        device: where it will run.

    Raises:
        ConfigError: if there is no such site or network.
        DataError: if predictions that calibration needs are absent or damaged.
        StateMismatchError: if the network's file is torn, or none that a run kept.
    """
    names = sites_of(folder)
    if site is None and len(names) > 1:
        raise ConfigError(f"{folder} keeps networks of {', '.join(names)}; choose one by --site")
    site = names[0] if site is None else site
    if site not in names:
        raise ConfigError(
            f"{folder} keeps no network of site '{site}'{nearest(site, names)}; there are {', '.join(names)}"
        )
    path = kept_path(folder, site, which)
    if not path.parent.is_dir():
        path = kept_path(folder, POOL, which)
    if which == "best" and not path.is_file():
        raise ConfigError(
            f"{path} is not there yet: the best is chosen among the last 20 % of rounds; take the last by "
            "--network last"
        )
    temperature, fitted_on = 1.0, 0
    if calibrate:
        known = predictions_path(folder, site, which, "valid")
        valid = read_predictions(known)
        temperature, fitted_on = fit_temperature(valid, str(known)), len(valid.labels)
    weights, about = read_tensors(path), read_about(path)
    network = build_network(about.network, len(about.classes))
    check_same_layout(network.state_dict(), weights, str(path))
    return Kept(site, about, weights, Recipe(network, device=device), temperature, fitted_on)


def read_about(path: Path) -> About:
    """Return what stands in the header of a kept network's file.

    Raises:
        StateMismatchError: if the file is torn, or none that a run kept.
    """
    try:
        about = TypeAdapter(About).validate_python(read_notes(path))
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(map(str, first["loc"])) or "header"
        raise StateMismatchError(f"{path} is no network that a run kept: {key}: {first['msg']}") from None
    if about.network not in NETWORKS:
        raise StateMismatchError(
            f"{path}: network '{about.network}' is unknown here; known: {', '.join(sorted(NETWORKS))}"
        )
    return about


def judged(kept: Kept, examples: Examples) -> Predictions:
    """Return what a network says of a site's examples.

    Raises:
        StateMismatchError: if that is no number, as of a file that was changed.
    """
    (logits,) = predict([kept.weights], examples, kept.recipe)
    if not logits.isfinite().all():
        raise StateMismatchError(
            f"the network kept for site {kept.site} answers with NaN or infinity, so that its file is not as "
            "it was written; restore it from a copy"
        )
    return predictions(logits, examples, kept.temperature)


def classify(kept: Kept, images: Sequence[Path]) -> Iterator[tuple[Path, Tensor]]:
    """Yield each image with its (C,) probabilities, decoding the next batch while one is computed.

    Raises:
        DataError: naming the image that cannot be decoded.
    """
    size = kept.about.image_size
    network = kept.recipe.build_for_scoring(kept.weights)
    waiting = iter(images)
    with ThreadPoolExecutor() as pool:

        def batch() -> list[tuple[Path, Future[NDArray[np.uint8]]]]:
            paths = islice(waiting, scoring_batch(size * size, kept.recipe))
            return [(path, pool.submit(read_image, path, size)) for path in paths]

        try:
            now = batch()
            while now:
                then = batch()
                pixels = np.stack([decoded.result() for _, decoded in now])
                found = probabilities(_logits(network, pixels, kept.recipe), kept.temperature)
                yield from zip((path for path, _ in now), found, strict=True)
                now = then
        finally:
            pool.shutdown(cancel_futures=True)


def _logits(network: nn.Module, pixels: NDArray[np.uint8], recipe: Recipe) -> Tensor:
    """Return the (N, C) logits of (N, H, W, 3) pixels."""
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(recipe.device)
    with torch.inference_mode():
        (logits,) = forward([network], prepare(inputs, recipe), recipe)
    return logits.cpu().clone()
