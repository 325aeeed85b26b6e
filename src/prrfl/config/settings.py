"""All settings of a run: name, type, default, bounds, help and scope, for TOML files and flags alike."""

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prrfl.algorithms import (
    ALGORITHMS,
    APFL,
    DEFAULT,
    FML,
    MOON,
    PRRFL,
    Algorithm,
    Ditto,
    FedALA,
    FedProx,
    FedRep,
    FineTune,
    traits_of,
)
from prrfl.algorithms.prrfl import Aggregation, TransferMode
from prrfl.config.scope import ARITHMETIC, DATA, GENERATOR, MACHINE, METHOD, OUTPUT, TASK, Scope
from prrfl.data.augment import AUGMENTATIONS
from prrfl.data.own import DATA_SETS
from prrfl.errors import nearest
from prrfl.losses import CPA, LOSSES, Counts, Focal, LogitAdjusted, Loss
from prrfl.machine import best_device, gpu, multiplies_bfloat16
from prrfl.models import NETWORKS, Init, network_settings
from prrfl.parts import PartError, Parts, Search, complete_settings, construct, declared_searches, placed
from prrfl.training import Augment, Weighting

LARGEST_FILE = 2**14
"""Largest settings file, in bytes. The time to parse TOML keys can grow with the square of their length."""

LONGEST_PATH = 4096
"""Longest path, in bytes."""

LARGEST = 1e30
"""Largest factor in training: its product with a weight must be finite in float32."""

TRACKERS = ("mlflow", "tensorboard", "wandb")
"""Trackers by name, which is also that of their package and of the extra that installs it."""

READING = "reading"
"""Context of validating the settings of a run that was started: its trackers may be missing here."""

Ratio = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=LARGEST)]


class TrainConfig(BaseModel):
    """The settings of one run. Defaults are the paper's.

    Counts have generous upper bounds, so that a typo cannot fill a disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    data: Annotated[Path | None, DATA] = Field(
        None,
        description="folder in the published layout, manifest .csv, .npz file or folder of .npz files; "
        "without it, images are generated",
    )
    classes: Annotated[tuple[str, ...], TASK] = Field(
        ("nv", "bkl", "mel"), description="class names of the labels 0, 1, ..., separated by commas"
    )
    image_size: Annotated[int, TASK] = Field(
        128, ge=32, le=1024, description="width and height of the images, in pixels"
    )
    allow_missing: Annotated[bool, DATA] = Field(
        False, description="skip images that a table names but that are missing"
    )
    sites: Annotated[int, GENERATOR] = Field(4, ge=1, le=1000, description="generated data: number of sites")
    images: Annotated[int, GENERATOR] = Field(
        320, ge=18, le=100_000, description="generated data: images per site"
    )

    method: Annotated[str, TASK] = Field(
        DEFAULT, description=f"federated method: {', '.join(ALGORITHMS.builtin)}"
    )
    r0: Annotated[Ratio, METHOD, Search(0.1, 0.9)] = Field(
        PRRFL.r0, description="PFA: low-frequency ratio of the first round"
    )
    r1: Annotated[Ratio, METHOD, Search(0.5, 1.0)] = Field(
        PRRFL.r1, description="PFA: low-frequency ratio approached in the last round"
    )
    alpha1: Annotated[Ratio, METHOD, Search(0.5, 0.8)] = Field(
        PRRFL.alpha1, description="DET: the deputy recovers below this fraction of the personalised F1"
    )
    alpha2: Annotated[Ratio, METHOD, Search(0.8, 1.0)] = Field(
        PRRFL.alpha2, description="DET: both networks exchange below this fraction of the personalised F1"
    )
    aggregation: Annotated[Aggregation, METHOD] = Field(
        PRRFL.aggregation,
        description="prrfl: pfa-phase averages phases too, as prrfl-imbalance does; mean is an ablation",
    )
    transfer: Annotated[TransferMode, METHOD] = Field(
        PRRFL.transfer, description="prrfl ablation: a single DET stage, or no transfer"
    )
    mu: Annotated[Factor, METHOD, Search(1e-4, 1.0, log=True)] = Field(
        FedProx.mu, description="fedprox: strength of the pull to the weights received"
    )
    private_weight: Annotated[Ratio, METHOD, Search(0.1, 0.9)] = Field(
        FML.private_weight, description="fml: weight of the labels in the private network's loss"
    )
    meme_weight: Annotated[Ratio, METHOD, Search(0.1, 0.9)] = Field(
        FML.meme_weight, description="fml: weight of the labels in the meme's loss"
    )

    tune_epochs: Annotated[int, METHOD] = Field(
        FineTune.tune_epochs,
        ge=0,
        le=10_000,
        description="finetune: local epochs after which the mean is deployed; 0 is all of a round",
    )
    body_epochs: Annotated[int, METHOD] = Field(
        FedRep.body_epochs,
        ge=1,
        le=10_000,
        description="fedrep: last local epochs of a round, which train the body; the others train the head",
    )
    lam: Annotated[Factor, METHOD, Search(0.01, 10.0, log=True)] = Field(
        Ditto.lam, description="ditto: strength of the pull to the global network"
    )
    contrast: Annotated[Factor, METHOD, Search(0.1, 10.0, log=True)] = Field(
        MOON.contrast, description="moon: weight of the contrast of features (mu in the paper)"
    )
    temperature: Annotated[Factor, METHOD, Search(0.1, 2.0, log=True)] = Field(
        MOON.temperature, ge=1e-3, description="moon: divides the cosines of features"
    )
    alpha: Annotated[Ratio, METHOD, Search(0.05, 0.95)] = Field(
        APFL.alpha, description="apfl: weight of the personal network in the mixture, at the start"
    )
    adaptive: Annotated[bool, METHOD] = Field(
        APFL.adaptive, description="apfl: each site learns its own alpha"
    )
    adapt_layers: Annotated[int, METHOD] = Field(
        FedALA.adapt_layers,
        ge=1,
        le=1000,
        description="fedala: number of last layers that take in the mean by weights",
    )
    adapt_images: Annotated[Ratio, METHOD] = Field(
        FedALA.adapt_images, gt=0, description="fedala: fraction of the images on which weights are learnt"
    )
    adapt_lr: Annotated[Factor, METHOD, Search(0.1, 10.0, log=True)] = Field(
        FedALA.adapt_lr, description="fedala: learning rate of the weights"
    )
    weighting: Annotated[Weighting, METHOD] = Field(
        "uniform",
        description="weight of a site in every mean: the same for all, or its number of training images, "
        "which it then sends",
    )
    share_bits: Annotated[Literal[16, 32], METHOD] = Field(
        32, description="bits of each number that is sent; 16 halves the traffic"
    )

    loss: Annotated[str, METHOD] = Field(
        "auto",
        description=f"loss of every network: {', '.join(LOSSES.builtin)}; auto is cpa for prrfl-imbalance, "
        "cross-entropy for all other methods",
    )
    counts: Annotated[Literal["site", "federation"], METHOD] = Field(
        "site",
        description="weighted, logit-adjusted: class counts of the site, or of all sites, which send them",
    )
    focusing: Annotated[Factor, METHOD] = Field(
        Focal.focusing, description="focal: how much less easy images count (gamma)"
    )
    adjustment: Annotated[Factor, METHOD] = Field(
        LogitAdjusted.adjustment, description="logit-adjusted: strength; 1 is the balanced softmax"
    )
    beta: Annotated[Factor, METHOD] = Field(CPA.beta, description="cpa: strength of the rarity weights")
    tau: Annotated[Factor, METHOD] = Field(
        CPA.tau, ge=1, description="cpa: softens the factors of the prototypes"
    )
    init_iter: Annotated[int, METHOD] = Field(
        CPA.init_iter, ge=0, le=10_000, description="cpa: number of rounds before those with prototypes"
    )
    proto_type: Annotated[Literal["fc", "logit"], METHOD] = Field(
        CPA.proto_type, description="cpa: prototypes of the last layer's inputs, or of its outputs"
    )
    global_proto: Annotated[Literal["gaussian", "avg"], METHOD] = Field(
        CPA.global_proto,
        description="cpa: global prototypes are drawn around the mean of the sites', or are the mean",
    )
    prototypes: Annotated[Literal["per-epoch", "per-round"], METHOD] = Field(
        CPA.prototypes,
        description="cpa: exchange prototypes after every local epoch, which is exact but impossible over "
        "real sites, or once a round",
    )

    network: Annotated[str, METHOD] = Field(
        "vgg16_slim", description=f"network by name: {', '.join(NETWORKS.builtin)}"
    )
    weights: Annotated[Path | None, METHOD] = Field(
        None,
        description="start from the weights in a .safetensors or .pth file; FILE#NAME if it holds several",
    )
    new_head: Annotated[bool | None, METHOD] = Field(
        None, description="with weights: leave out the last layer of the file; it starts at random"
    )
    freeze: Annotated[tuple[str, ...] | None, METHOD] = Field(
        None,
        description="tensors that do not train, by patterns of their full names, such as features.*, "
        "separated by commas",
    )
    adapter: Annotated[Literal["lora"] | None, METHOD] = Field(
        None, description="lora: only low-rank adapters and the last layer train"
    )
    lora_rank: Annotated[int, METHOD] = Field(8, ge=1, le=10_000, description="lora: rank of each adapter")
    lora_alpha: Annotated[Factor, METHOD] = Field(
        16.0, gt=0, description="lora: strength; alpha / rank is an adapter's factor"
    )
    lora_targets: Annotated[tuple[str, ...], METHOD] = Field(
        ("*",),
        description="lora: patterns of names of the weights that get an adapter, separated by commas; by "
        "default those of all convolutions and linear layers",
    )
    init: Annotated[Init, METHOD] = Field(
        "pytorch",
        description="initial weights: as PyTorch draws them, like the published code; or He-normal, as in "
        "version 0.1.0",
    )
    rounds: Annotated[int, METHOD] = Field(50, ge=1, le=10_000, description="communication rounds (T)")
    epochs: Annotated[int, METHOD] = Field(5, ge=1, le=10_000, description="local epochs per round (E)")
    batch: Annotated[int, METHOD] = Field(16, ge=2, le=100_000, description="images per training step")
    optimizer: Annotated[Literal["sgd", "adam"], METHOD] = Field(
        "sgd", description="optimiser, restarted in every round"
    )
    lr: Annotated[Factor, METHOD, Search(1e-4, 0.1, log=True)] = Field(
        1e-2, gt=0, description="learning rate of the first rounds"
    )
    lr_step: Annotated[int, METHOD] = Field(
        5, ge=1, le=10_000, description="rounds between two reductions of the learning rate"
    )
    lr_gamma: Annotated[float, METHOD] = Field(0.5, gt=0, le=1, description="factor of each reduction")
    weight_decay: Annotated[Factor, METHOD] = Field(1e-6, description="L2 penalty of the optimiser")
    augment: Annotated[str, METHOD] = Field(
        "paper", description="how training images are changed at random: as in the paper, or none"
    )
    # Below the parts, so that they are known when their settings are checked.
    set: Annotated[dict[str, dict[str, Any]], METHOD] = Field(
        {},
        description="a setting of a part of your own, as method.step=0.2; kinds of parts are method, loss, "
        "network, augment and data",
    )
    seed: Annotated[int, TASK] = Field(
        0, ge=0, lt=2**63, description="seed of all randomness: same seed, same bits"
    )
    device: Annotated[str, MACHINE] = Field(
        "auto", description="cpu, cuda, cuda:1, ...; auto uses a GPU if there is one"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float64"], ARITHMETIC] = Field(
        "auto",
        description="arithmetic of the network; with bfloat16, weights stay float32; auto uses bfloat16 "
        "where the hardware multiplies it, else float32",
    )
    workers: Annotated[int, MACHINE] = Field(
        0, ge=0, le=1024, description="processes that train the sites in parallel; 0 chooses by the cores"
    )
    threads: Annotated[int, MACHINE] = Field(
        0, ge=0, le=1024, description="threads of each process; results depend on it; 0 chooses"
    )
    track: Annotated[tuple[str, ...], OUTPUT] = Field(
        (), description=f"also log the run with trackers, separated by commas: {', '.join(TRACKERS)}"
    )

    @classmethod
    def where(cls, **facts: object) -> frozenset[str]:
        """Return the names of the settings whose :class:`Scope` has these values.

        Examples:
            >>> sorted(TrainConfig.where(of_generator=True))
            ['images', 'sites']
        """
        return frozenset(
            name
            for name, scope in SCOPES.items()
            if all(getattr(scope, fact) == value for fact, value in facts.items())
        )

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_written(cls, value: object) -> object:
        # The file system allows names that are not UTF-8, but a settings file cannot hold them.
        if isinstance(value, str | Path) and str(value) != _utf8(str(value)):
            raise ValueError("expected text in UTF-8")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # Pydantic takes true for 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("expected a number, not true or false")
        return value

    @field_validator("data", "weights")
    @classmethod
    def _can_be_opened(cls, value: Path | None) -> Path | None:
        if "\0" in str(value) or len(toml_value(str(value)).encode()) > LONGEST_PATH:
            raise ValueError(f"expected a path of at most {LONGEST_PATH:,} bytes, without NUL bytes")
        return value

    @field_validator("classes", "freeze", "lora_targets", "track", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _two_or_more(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < max(2, len(value)) or "" in value:
            raise ValueError("expected at least two class names, each once")
        if not all(name.isprintable() for name in value):
            raise ValueError("expected names of printable characters, without line breaks")
        if len(toml_value(value).encode()) > LARGEST_FILE // 2:
            raise ValueError(f"expected names of at most {LARGEST_FILE // 2:,} bytes in total")
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return _one_of(value, ALGORITHMS)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_method(cls, settings: Any) -> Any:
        """Give the hyper-parameters the defaults of the chosen method, where it shares them with others."""
        name = settings.get("method", DEFAULT)
        kind = ALGORITHMS.builtin.get(name) if isinstance(name, str) else None
        return {**{part.name: part.default for part in fields(kind)}, **settings} if kind else settings

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str, info: ValidationInfo) -> str:
        if value == "auto":
            return traits_of(ALGORITHMS.get(info.data.get("method", DEFAULT))).loss
        return _one_of(value, LOSSES)

    @field_validator("freeze", "lora_targets")
    @classmethod
    def _some_pattern(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or not all(value)):
            raise ValueError("expected patterns of names, such as features.*")
        if value and not (
            all(map(str.isprintable, value)) and len(toml_value(value).encode()) <= LARGEST_FILE // 2
        ):
            raise ValueError(f"expected printable patterns of at most {LARGEST_FILE // 2:,} bytes in total")
        return value

    @field_validator("prototypes")
    @classmethod
    def _not_by_images(cls, value: str, info: ValidationInfo) -> str:
        # A share has one weight. The variance of prototypes is over sites that count alike.
        by_images = info.data.get("weighting") == "images" and info.data.get("loss") == "cpa"
        if by_images and value == "per-round":
            raise ValueError(
                "prototypes that travel with the share would be weighted by images; expected per-epoch, or "
                "weighting uniform"
            )
        return value

    @field_validator("network")
    @classmethod
    def _known_network(cls, value: str) -> str:
        return _one_of(value, NETWORKS)

    @field_validator("augment", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        return as_written_now("augment", value)

    @field_validator("augment")
    @classmethod
    def _known_augmentation(cls, value: str) -> str:
        return value if value == "none" else _one_of(value, AUGMENTATIONS)

    @field_validator("set")
    @classmethod
    def _settings_of_own_parts(
        cls, value: dict[str, dict[str, Any]], info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        for kind in value:
            if kind not in PARTS:
                raise ValueError(f"expected one of {', '.join(PARTS)}{nearest(kind, PARTS)}")
        found = {}
        for kind in PARTS:
            name, given = info.data.get(kind), value.get(kind, {})
            if not _is_own(kind, name):
                if given:
                    raise ValueError(f"{kind} {name} is built in, so it has no {kind}.{min(given)}")
            elif settings := _complete(kind, str(name), given):
                found[kind] = settings
        return found

    @field_validator("new_head")
    @classmethod
    def _with_weights(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("weights") is None:
            raise ValueError("it concerns only the weights to start from; expected --weights as well")
        return value

    @field_validator("alpha2")
    @classmethod
    def _not_below_alpha1(cls, value: float, info: ValidationInfo) -> float:
        # Otherwise one deputy could be too weak for any stage but RECOVER, yet strong enough for SUBLIMATE.
        if value < info.data.get("alpha1", 0.0):
            raise ValueError(f"expected at least alpha1, which is {info.data['alpha1']}")
        return value

    @field_validator("track")
    @classmethod
    def _known_trackers(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in value:
            _one_of(name, TRACKERS)
            if info.context != READING and find_spec(name) is None:
                raise ValueError(f"the package {name} is missing; pip install 'prrfl[{name}]'")
        return tuple(dict.fromkeys(value))

    @field_validator("device")
    @classmethod
    def _usable_device(cls, value: str) -> str:
        if value == "auto":
            return best_device()
        try:
            if torch.device(value).type != "cuda":
                torch.zeros(1, device=value).item()
            elif gpu(value) is None:
                raise ValueError("no such GPU works here")
        except (RuntimeError, AssertionError, ValueError) as cause:
            raise ValueError(
                f"'{value}' is not available on this machine; use cpu, or auto to choose"
            ) from cause
        return value

    @field_validator("precision")
    @classmethod
    def _fast_precision(cls, value: str, info: ValidationInfo) -> str:
        if value == "auto":
            return "bfloat16" if multiplies_bfloat16(info.data.get("device", "cpu")) else "float32"
        return value

    @field_validator("share_bits", mode="before")
    @classmethod
    def _whole_number(cls, value: object) -> object:
        return int(value) if value in ("16", "32") else value

    def algorithm(self) -> Algorithm[Any]:
        """Return the method with its hyper-parameters."""
        method: Algorithm[Any] = self._made(ALGORITHMS, self.method, "method")
        return method

    def loss_function(self) -> Loss:
        """Return the loss with its settings."""
        loss: Loss = self._made(LOSSES, self.loss, "loss")
        if loss.counts not in get_args(Counts):
            known = ", ".join(get_args(Counts))
            raise PartError(f"loss {self.loss}: its counts are {loss.counts!r}; expected one of {known}")
        return loss

    def augmentation(self) -> Augment[Any] | None:
        """Return the augmentation with its settings; ``None`` without one."""
        if self.augment == "none":
            return None
        augment: Augment[Any] = self._made(AUGMENTATIONS, self.augment, "augment")
        return augment

    def _made(self, parts: Parts[type], name: str, key: str) -> Any:
        kind = parts[name]
        if parts.is_own(name):
            return construct(kind, self.set.get(key, {}), f"{parts.kind} {name}")
        known = type(self).model_fields
        return kind(
            **{field.name: getattr(self, field.name) for field in fields(kind) if field.name in known}
        )

    def searches(self) -> dict[str, Search]:
        """Return which values ``prrfl tune`` tries: of the learning rate, and of the method's own settings.

        Settings of a method of the user's own are called ``method.<name>``. Settings whose type declares no
        :class:`Search` are not among them.
        """
        kind = ALGORITHMS[self.method]
        if ALGORITHMS.is_own(self.method):
            declared = declared_searches(kind, f"{ALGORITHMS.kind} {self.method}")
            own = {f"method.{name}": search for name, search in declared.items()}
            return {"lr": SEARCHES["lr"], **own}
        names = ("lr", *(part.name for part in fields(kind)))
        return {name: SEARCHES[name] for name in names if name in SEARCHES}

    def without_effect(self) -> list[str]:
        """Return the names of settings that differ from their defaults but have no effect in this run."""
        known = type(self).model_fields
        idle = self.idle()
        return [name for name in known if name in idle and getattr(self, name) != known[name].default]

    def idle(self) -> frozenset[str]:
        """Return the names of settings that have no effect in this run, whatever their values."""
        idle = set()
        for kinds, chosen in ((ALGORITHMS, self.method), (LOSSES, self.loss)):
            idle |= {field.name for kind in kinds.builtin.values() for field in fields(kind)}
            idle -= {field.name for field in fields(kinds[chosen])} if chosen in kinds.builtin else set()
        if self.adapter is None:
            idle |= {"lora_rank", "lora_alpha", "lora_targets"}
        if self.data is not None:
            idle |= self.where(of_generator=True)
        if traits_of(ALGORITHMS[self.method]).scope != "federated":
            idle.add("weighting")
        return frozenset(idle)

    def own_parts(self) -> dict[str, str]:
        """Return where parts of the user's own come from, by kind: :meth:`prrfl.parts.Parts.origin`."""
        named = {key: getattr(self, key) for key in PARTS}
        return {key: PARTS[key].origin(str(name)) for key, name in named.items() if _is_own(key, name)}

    def to_toml(self) -> str:
        """Return the settings as TOML, which :func:`load_config` reads back."""
        settings = self.model_dump(mode="json", exclude_none=True)
        tables = settings.pop("set")
        lines = [f"{key} = {toml_value(value)}" for key, value in settings.items()]
        for kind, table in tables.items():  # last, because what follows a table's head belongs to it
            # Keys in quotes, because TOML's bare keys are ASCII and Python's names need not be.
            names = (key if key.isascii() else toml_value(key) for key in table)
            own = (f"{name} = {toml_value(value)}" for name, value in zip(names, table.values(), strict=True))
            lines += [f"[set.{kind}]", *own]
        return "\n".join([*lines, ""])


PARTS: Mapping[str, Parts[Any]] = {
    "method": ALGORITHMS,
    "loss": LOSSES,
    "network": NETWORKS,
    "augment": AUGMENTATIONS,
    "data": DATA_SETS,
}
"""The parts that a user can bring along, by the setting that names them."""


def _is_own(kind: str, name: object) -> bool:
    """Return whether a setting names a part of the user's own."""
    return name is not None and str(name) != "none" and PARTS[kind].is_own(str(name))


def _complete(kind: str, name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Return all settings of a part of the user's own."""
    if kind == "network":
        return network_settings(name, given)
    positional = 2 if kind == "data" else 0
    return complete_settings(PARTS[kind][name], given, f"{PARTS[kind].kind} {name}", positional)


SCOPES: Mapping[str, Scope] = {
    name: next((item for item in field.metadata if isinstance(item, Scope)), METHOD)
    for name, field in TrainConfig.model_fields.items()
}


def as_written_now(key: str, value: object) -> object:
    """Return a setting's value as this version writes it; version 0.1.0 wrote ``augment`` as a boolean."""
    return ("paper" if value else "none") if key == "augment" and isinstance(value, bool) else value


SEARCHES: Mapping[str, Search] = {
    name: item
    for name, field in TrainConfig.model_fields.items()
    for item in field.metadata
    if isinstance(item, Search)
}
"""Which values of a setting ``prrfl tune`` tries, for settings that declare it."""


def toml_value(value: object) -> str:
    """Return a text, number, boolean or list as TOML. A text can also be a key."""
    # JSON strings, numbers, booleans and lists are valid TOML, with two exceptions: TOML does not allow
    # surrogate pairs, hence ensure_ascii=False, and DEL must be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _one_of(value: str, known: Collection[str]) -> str:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(sorted(known))}{nearest(value, known)}")
    return placed(value)  # so that a run can be resumed from any working directory
