"""Every setting of a run: its name, type, default, bounds and help, said once for TOML file and flags."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from prrfl.algorithms import ALGORITHMS, Algorithm
from prrfl.errors import ConfigError, nearest
from prrfl.machine import multiplies_bfloat16
from prrfl.models import NETWORKS

Ratio = Annotated[float, Field(ge=0, le=1)]


class TrainConfig(BaseModel):
    """The settings of one run. Defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    data: Path | None = Field(
        None,
        description="folder in the published layout, manifest .csv, .npz or folder of .npz; generated images "
        "if not given",
    )
    classes: tuple[str, ...] = Field(
        ("nv", "bkl", "mel"), description="class names of the labels 0, 1, ..., separated by commas"
    )
    image_size: int = Field(128, ge=32, le=1024, description="side of the square images, in pixels")
    allow_missing: bool = Field(False, description="go on without images that a table names but nobody has")
    sites: int = Field(4, ge=1, description="generated data: number of sites")
    images: int = Field(320, ge=18, description="generated data: images per site")

    method: str = Field("prrfl", description=f"federated method: {', '.join(ALGORITHMS)}")
    r0: Ratio = Field(0.7, description="PFA: low-frequency ratio of the first round")
    r1: Ratio = Field(0.95, description="PFA: low-frequency ratio approached in the last round")
    alpha1: Ratio = Field(0.7, description="DET: the deputy recovers below this share of the personalised F1")
    alpha2: Ratio = Field(0.9, description="DET: both exchange below this share of the personalised F1")

    aggregation: Literal["pfa", "mean"] = Field(
        "pfa", description="prrfl ablation: plain mean instead of PFA"
    )
    transfer: Literal["staged", "recover", "exchange", "sublimate", "off"] = Field(
        "staged", description="prrfl ablation: one fixed DET stage, or none"
    )
    mu: float = Field(0.01, ge=0, description="fedprox: strength of the pull to the weights received")
    private_weight: Ratio = Field(0.5, description="fml: the labels' share in the private network's loss")
    meme_weight: Ratio = Field(0.5, description="fml: the labels' share in the meme's loss")

    network: str = Field("vgg16_slim", description="network by name")
    weights: str | None = Field(
        None,
        description="start from the weights of a .safetensors or .pth file; FILE#NAME where it holds several",
    )
    rounds: int = Field(50, ge=1, description="communication rounds (T)")
    epochs: int = Field(5, ge=1, description="local epochs in each round (E)")
    batch: int = Field(16, ge=2, description="images per training step")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="optimiser, started afresh in every round")
    lr: float = Field(1e-2, gt=0, description="learning rate of the first rounds")
    lr_step: int = Field(5, ge=1, description="rounds between two reductions of the learning rate")
    lr_gamma: float = Field(0.5, gt=0, le=1, description="factor of each reduction")
    weight_decay: float = Field(1e-6, ge=0, description="L2 penalty of the optimiser")
    augment: bool = Field(True, description="augment training images as the paper does")
    tensorboard: bool = Field(False, description="write TensorBoard events into the run folder as well")
    seed: int = Field(0, ge=0, description="source of all randomness: same seed, same bits")
    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto",
        description="arithmetic of the network; weights stay float32 under bfloat16; auto takes bfloat16 "
        "where the device multiplies it in hardware, else float32",
    )
    workers: int = Field(0, ge=0, description="processes that sites are shared out over; 0 picks, by cores")
    threads: int = Field(0, ge=0, description="threads of each process, on which bits depend; 0 picks")
    share_bits: Literal[16, 32] = Field(
        32, description="bits of each number that travels; 16 halves the bytes each way"
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _two_or_more(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < max(2, len(value)) or "" in value:
            raise ValueError("name at least two classes, each once")
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return _one_of(value, ALGORITHMS)

    @field_validator("network")
    @classmethod
    def _known_network(cls, value: str) -> str:
        return _one_of(value, NETWORKS)

    @field_validator("tensorboard")
    @classmethod
    def _installed(cls, value: bool) -> bool:
        if value and find_spec("tensorboard") is None:
            raise ValueError("the package tensorboard is not there; pip install 'prrfl[tensorboard]'")
        return value

    @field_validator("device")
    @classmethod
    def _usable_device(cls, value: str) -> str:
        if value == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(0, device=value)
        except (RuntimeError, AssertionError) as cause:
            raise ValueError(f"'{value}' cannot be used here; use cpu, or leave it out") from cause
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
        return int(value) if isinstance(value, str) and value.isdigit() else value

    def algorithm(self) -> Algorithm[Any]:
        """Return the method with its hyper-parameters."""
        kind = ALGORITHMS[self.method]
        method: Algorithm[Any] = kind(**{field.name: getattr(self, field.name) for field in fields(kind)})
        return method

    def to_toml(self) -> str:
        """Return the resolved settings as TOML that :func:`load_config` reads back."""
        settings = self.model_dump(mode="json", exclude_none=True)
        # JSON's strings, numbers, booleans and lists are TOML's too.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def load_config(path: Path | None, overrides: Mapping[str, object]) -> TrainConfig:
    """Return the settings of a TOML file, with overrides (flags) on top.

    Without a file and without ``data``, the embedded quickstart is the base.

    Raises:
        ConfigError: naming the key, what was expected, and the nearest known key where it is unknown.
    """
    if path is not None:
        source, text = str(path), _read_text(path)
    elif overrides.get("data") is None:
        source, text = "quickstart", resources.files("prrfl").joinpath("quickstart.toml").read_text("utf-8")
    else:
        source, text = "flags", ""
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise ConfigError(f"{source} is not TOML: {' '.join(str(cause).split())}") from None
    return checked({**settings, **overrides}, source, overrides)


def checked(
    settings: Mapping[str, object], source: str, overrides: Mapping[str, object] = MappingProxyType({})
) -> TrainConfig:
    """Return settings that hold.

    Args:
        settings: what is set, by key.
        source: where they come from, for messages.
        overrides: those of them that come from flags instead.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as cause:
        raise ConfigError(_one_line(cause, source, overrides)) from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} is not there; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(f"config file {path} cannot be read: {cause}") from None


def _one_line(cause: ValidationError, source: str, overrides: Mapping[str, object]) -> str:
    first = cause.errors()[0]
    key = str(first["loc"][0])
    where = f"--{key.replace('_', '-')}" if key in overrides else f"{source}: key '{key}'"
    if first["type"] == "extra_forbidden":
        known = TrainConfig.model_fields
        return f"{source}: unknown key '{key}'{nearest(key, known)}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"


def _one_of(value: str, known: Mapping[str, object]) -> str:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(sorted(known))}{nearest(value, known)}")
    return value
