"""From settings to all that a run needs: data, method, recipe, and choices that depend on the machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn

from prrfl.algorithms import ALGORITHMS, Algorithm, traits_of
from prrfl.algorithms.prototyped import Prototyped
from prrfl.capture import on_gpu
from prrfl.config import TrainConfig
from prrfl.data.images import SPLITS
from prrfl.data.own import absolute
from prrfl.data.sources import load_sites
from prrfl.errors import ConfigError, ParticipationError, StateMismatchError
from prrfl.losses import CPA
from prrfl.machine import usable_cores
from prrfl.models import NETWORKS, build_network, check_outputs
from prrfl.models.adapters import add_adapters
from prrfl.models.freezing import frozen_keys
from prrfl.models.weights import load_weights
from prrfl.runs.folder import RunFolder
from prrfl.storage.tensor_files import read_tensors
from prrfl.tensors import check_same_layout, head_keys, head_of, norm_keys
from prrfl.training import Precision, Recipe
from prrfl.types import RoundContext, SiteData, Split


@dataclass(frozen=True, eq=False)
class Run:
    """A run before its training.

    Attributes:
        settings: all settings, resolved.
        method: the method that they describe.
        recipe: the recipe of local training that they describe; its network holds the initial weights.
        class_counts: training images of each class at all sites, if the loss needs them.
    """

    settings: TrainConfig
    method: Algorithm[Any]
    recipe: Recipe
    class_counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, settings: TrainConfig) -> Self:
        """Return the run that the settings describe.

        Raises:
            StateMismatchError: if the weights to start from cannot be used.
        """
        recipe = make_recipe(settings)
        return cls(settings, make_method(settings, recipe), recipe)

    def moment(self, index: int) -> RoundContext:
        """Return the start of round ``index``, from 0."""
        settings, network = self.settings, self.recipe.network
        return RoundContext(
            round=index,
            rounds=settings.rounds,
            epoch=0,
            epochs=settings.epochs,
            seed=settings.seed,
            norm_keys=norm_keys(network),
            head_keys=head_keys(network),
            class_counts=self.class_counts,
        )


def load_data(config: TrainConfig) -> list[SiteData]:
    """Return the sites of a run that starts, as :func:`read_sites`.

    Raises:
        DataError: if the data cannot be used.
        ParticipationError: if there is only one site, and the method needs more.
    """
    sites = read_sites(config)
    if len(sites) < 2 and traits_of(ALGORITHMS[config.method]).scope != "alone":
        alone = [name for name, kind in ALGORITHMS.builtin.items() if traits_of(kind).scope == "alone"]
        where = config.data or "the generated data"
        raise ParticipationError(
            f"{where} holds one site, {sites[0].name}; federated training needs at least 2 "
            f"(method {' or '.join(alone)} trains a single site)"
        )
    return sites


def data_folder(config: TrainConfig) -> Path:
    """Return the place of the data that the settings name, or of generated data if they name none."""
    if config.data is not None:
        return config.data
    # Not at the top: sites of a federation have data of their own, and need not load the generator.
    from prrfl.data.synthetic import GeneratedData, cached

    return cached(GeneratedData(config.sites, config.images, config.image_size, config.seed))


def read_sites(config: TrainConfig, needed: Sequence[Split] = SPLITS) -> list[SiteData]:
    """Return the sites of the data that the settings name, or of generated data if they name none.

    Args:
        config: the settings.
        needed: the splits that every site must have; other splits may be empty.

    Raises:
        DataError: if the data cannot be used.
    """
    return load_sites(
        data_folder(config),
        image_size=config.image_size,
        classes=config.classes,
        allow_missing=config.allow_missing,
        needed=needed,
        settings=config.set.get("data", {}),
    )


def make_method(config: TrainConfig, recipe: Recipe) -> Algorithm[Any]:
    """Return the method that the settings describe; it exchanges prototypes if the loss needs them.

    Raises:
        ConfigError: if the loss needs the class counts of all sites, but the method sends nothing.
    """
    method = config.algorithm()
    if recipe.loss.counts == "federation" and traits_of(method).scope == "alone":
        raise ConfigError(
            f"method {config.method} sends nothing, but loss {config.loss} needs the class counts of all "
            "sites; choose another loss or method, or --counts site"
        )
    if not isinstance(recipe.loss, CPA):
        return method
    name, _ = head_of(recipe.network)
    if f"{name}.weight" in recipe.frozen:
        raise ConfigError(
            f"loss {config.loss} needs a last layer that trains; choose another loss, or do "
            f"not freeze '{name}'"
        )
    return Prototyped(method, recipe.loss, f"{name}.weight")


def with_class_counts(run: Run, sites: Sequence[SiteData]) -> Run:
    """Return a run with the class counts of all sites, if its loss needs them."""
    if run.recipe.loss.counts != "federation":
        return run
    return replace(run, class_counts=count_classes(sites, len(run.settings.classes)))


def count_classes(sites: Sequence[SiteData], classes: int) -> tuple[int, ...]:
    """Return the number of training images of each class at all sites together."""
    labels = torch.cat([site.train.labels for site in sites])
    return tuple(torch.bincount(labels, minlength=classes).tolist())


def make_recipe(config: TrainConfig) -> Recipe:
    """Return the recipe of local training that the settings describe.

    Raises:
        StateMismatchError: if the weights to start from cannot be used.
    """
    own = config.set.get("network", {})
    network = build_network(config.network, len(config.classes), config.seed, config.init, own)
    if NETWORKS.is_own(config.network):
        check_outputs(network, config.network, len(config.classes), config.image_size)
    if config.precision == "float64":
        network.double()  # the initial weights get the type of all later ones
    if config.weights is not None:
        _start_from(config, network)
    frozen = config.freeze or ()
    if config.adapter is not None:
        add_adapters(network, config.lora_targets, config.lora_rank, config.lora_alpha, config.seed)
        statistics = network.state_dict().keys() - dict(network.named_parameters()).keys()
        frozen = (*frozen, *statistics)
    recipe = Recipe(
        network=network,
        batch=config.batch,
        optimizer=config.optimizer,
        lr=config.lr,
        lr_step=config.lr_step,
        lr_gamma=config.lr_gamma,
        weight_decay=config.weight_decay,
        loss=config.loss_function(),
        augment=config.augmentation(),
        device=config.device,
        precision=cast(Precision, config.precision),  # the settings have replaced auto
        frozen=frozen_keys(network, frozen),
        weighting=config.weighting,
    )
    used = traits_of(ALGORITHMS[config.method]).network(network)
    return recipe if used is network else recipe.around(used)


def make_recipe_again(config: TrainConfig, folder: RunFolder) -> Recipe:
    """Return the recipe of a run that has a checkpoint.

    The checkpoint holds the sites' states, the folder the frozen tensors. So the run does not need the
    weights that it started from, which may be gone.

    Raises:
        StateMismatchError: if the frozen tensors are missing, damaged, or do not fit.
    """
    recipe = make_recipe(config.model_copy(update={"weights": None}))
    if recipe.frozen:
        tensors = read_tensors(folder.frozen_path)
        check_same_layout(recipe.frozen_tensors(), tensors, str(folder.frozen_path))
        recipe.network.load_state_dict(tensors, strict=False)
    return recipe


def _start_from(config: TrainConfig, network: nn.Module) -> None:
    if config.new_head:
        load_weights(network, str(config.weights), head_keys(network))
        return
    try:
        load_weights(network, str(config.weights))
    except StateMismatchError as cause:
        if any(f"tensor '{key}' has shape" in str(cause) for key in head_keys(network)):
            raise StateMismatchError(
                f"{cause}; if they were trained for other classes, leave their last layer out with --new-head"
            ) from None
        raise


def share_dtype(config: TrainConfig) -> torch.dtype | None:
    """Return the type in which real-valued tensors are sent; ``None``: their own type."""
    return torch.float16 if config.share_bits == 16 else None


def resolved(config: TrainConfig, sites: int) -> TrainConfig:
    """Return the settings with absolute paths, and with workers and threads chosen if they are 0.

    Sites are independent while they train. A process per site therefore wastes less than threads, which wait
    for each other at every layer; cores that are left over go to threads. On a GPU one process trains several
    sites at a time, which is faster than processes that take turns. Threads do not depend on ``workers``,
    because results depend on threads.

    Raises:
        ConfigError: if the settings ask for several processes, but there can only be one.
    """
    cores = usable_cores()
    pooled = traits_of(ALGORITHMS[config.method]).scope == "pooled"
    gpu_run = on_gpu(config.device)
    single = {
        f"{config.method} training has one network": pooled,
        "this process already uses the GPU and cannot be forked": gpu_run and torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
    }
    for reason, holds in single.items():
        if holds and config.workers > 1:
            raise ConfigError(f"workers is {config.workers}, but {reason}; omit it, or set it to 1")
    most = 1 if pooled else sites
    picked = 1 if gpu_run else max(1, cores // (config.threads or 1))
    workers = min(most, config.workers or picked)
    threads = config.threads or max(1, cores // most)
    # Absolute, so that a run can be resumed from any working directory.
    paths = {
        "data": config.data and absolute(config.data),
        "weights": config.weights and config.weights.absolute(),
    }
    return config.model_copy(update={"workers": workers, "threads": threads, **paths})
