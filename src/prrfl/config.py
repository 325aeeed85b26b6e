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

from prrfl.algorithms import ALGORITHMS, DEFAULT, Algorithm
from prrfl.errors import ConfigError, nearest
from prrfl.machine import best_device, multiplies_bfloat16
from prrfl.models import NETWORKS
from prrfl.storage.reading import read_text

LARGEST_FILE = 2**14
"""Bytes of a settings file; the time that TOML's keys take can grow with the square of their length."""

LONGEST_PATH = 4096

LARGEST = 1e30
"""Of a factor in training, which must be a number in float32 together with what it multiplies."""

Ratio = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=LARGEST)]


class TrainConfig(BaseModel):
    """The settings of one run. Defaults are the paper's.

    Counts are bounded far above what makes sense, so that a slip of the finger does not fill a disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

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
    sites: int = Field(4, ge=1, le=1000, description="generated data: number of sites")
    images: int = Field(320, ge=18, le=100_000, description="generated data: images per site")

    method: str = Field(DEFAULT, description=f"federated method: {', '.join(ALGORITHMS)}")
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
    mu: Factor = Field(0.01, description="fedprox: strength of the pull to the weights received")
    private_weight: Ratio = Field(0.5, description="fml: the labels' share in the private network's loss")
    meme_weight: Ratio = Field(0.5, description="fml: the labels' share in the meme's loss")

    network: str = Field("vgg16_slim", description=f"network by name: {', '.join(NETWORKS)}")
    weights: Path | None = Field(
        None,
        description="start from the weights of a .safetensors or .pth file; FILE#NAME where it holds several",
    )
    rounds: int = Field(50, ge=1, le=10_000, description="communication rounds (T)")
    epochs: int = Field(5, ge=1, le=10_000, description="local epochs in each round (E)")
    batch: int = Field(16, ge=2, le=100_000, description="images per training step")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="optimiser, started afresh in every round")
    lr: Factor = Field(1e-2, gt=0, description="learning rate of the first rounds")
    lr_step: int = Field(5, ge=1, le=10_000, description="rounds between two reductions of the learning rate")
    lr_gamma: float = Field(0.5, gt=0, le=1, description="factor of each reduction")
    weight_decay: Factor = Field(1e-6, description="L2 penalty of the optimiser")
    augment: bool = Field(True, description="augment training images as the paper does")
    tensorboard: bool = Field(False, description="write TensorBoard events into the run folder as well")
    seed: int = Field(0, ge=0, lt=2**63, description="source of all randomness: same seed, same bits")
    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    precision: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto",
        description="arithmetic of the network; weights stay float32 under bfloat16; auto takes bfloat16 "
        "where the device multiplies it in hardware, else float32",
    )
    workers: int = Field(
        0, ge=0, le=1024, description="processes that sites are shared out over; 0 picks, by cores"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="threads of each process, on which bits depend; 0 picks"
    )
    share_bits: Literal[16, 32] = Field(
        32, description="bits of each number that travels; 16 halves the bytes each way"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_written(cls, value: object) -> object:
        # The system may give other names to folders, but a settings file cannot keep them.
        if isinstance(value, str | Path) and str(value) != _utf8(str(value)):
            raise ValueError("expected text in UTF-8")
        return value

    @field_validator("data", "weights")
    @classmethod
    def _can_be_opened(cls, value: Path | None) -> Path | None:
        if "\0" in str(value) or len(_toml(str(value)).encode()) > LONGEST_PATH:
            raise ValueError(f"expected a path of at most {LONGEST_PATH:,} bytes, without NUL bytes")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _two_or_more(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < max(2, len(value)) or "" in value:
            raise ValueError("name at least two classes, each once")
        if not all(name.isprintable() for name in value):
            raise ValueError("expected names of printable characters, on one line")
        if len(_toml(value).encode()) > LARGEST_FILE // 2:
            raise ValueError(f"expected names of {LARGEST_FILE // 2:,} bytes together at most")
        return value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return _one_of(value, ALGORITHMS)

    @field_validator("network")
    @classmethod
    def _known_network(cls, value: str) -> str:
        return _one_of(value, NETWORKS)

    @field_validator("alpha2")
    @classmethod
    def _not_below_alpha1(cls, value: float, info: ValidationInfo) -> float:
        # Otherwise a deputy is at once too weak to do anything but recover, and strong enough to sublimate.
        if value < info.data.get("alpha1", 0.0):
            raise ValueError(f"expected at least alpha1, which is {info.data['alpha1']}")
        return value

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
            return best_device()
        try:
            torch.zeros(1, device=value).item()
        except (RuntimeError, AssertionError, ValueError) as cause:
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
        return int(value) if value in ("16", "32") else value

    def algorithm(self) -> Algorithm[Any]:
        """Return the method with its hyper-parameters."""
        kind = ALGORITHMS[self.method]
        method: Algorithm[Any] = kind(**{field.name: getattr(self, field.name) for field in fields(kind)})
        return method

    def without_effect(self) -> list[str]:
        """Return the names of settings that are not as by default, but change nothing in this run."""
        of_methods = {field.name for kind in ALGORITHMS.values() for field in fields(kind)}
        idle = of_methods - {field.name for field in fields(ALGORITHMS[self.method])}
        if self.data is not None:
            idle |= {"sites", "images"}
        known = type(self).model_fields
        return [name for name in known if name in idle and getattr(self, name) != known[name].default]

    def to_toml(self) -> str:
        """Return the resolved settings as TOML that :func:`load_config` reads back."""
        settings = self.model_dump(mode="json", exclude_none=True)
        return "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())


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
    return checked({**parse_toml(text, source), **overrides}, source, overrides)


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


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return what TOML says.

    Args:
        text: the TOML.
        source: where it comes from, for messages.

    Raises:
        ConfigError: if it is none, or goes beyond what Python can read of it.
    """
    try:
        return tomllib.loads(text)
    # TOML's own errors are ValueErrors; so is that a whole number has more digits than Python takes.
    except ValueError as cause:
        raise ConfigError(f"{source} is not TOML: {' '.join(str(cause).split())}") from None
    except RecursionError:
        raise ConfigError(
            f"{source} is nested too deeply for settings; each is one line, key = value"
        ) from None


def _read_text(path: Path) -> str:
    try:
        return read_text(path, LARGEST_FILE)
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
    return f"{where}: {first['msg'].removeprefix('Value error, ')}, got {_shown(first['input'])}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no whole number of more than 4,300 digits
        return "what is too long to show"
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _toml(value: object) -> str:
    # JSON's strings, numbers, booleans and lists are TOML's too, but for two characters: what JSON writes as
    # two halves, TOML wants whole, and it takes DEL by its number alone.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _one_of(value: str, known: Mapping[str, object]) -> str:
    if value not in known:
        raise ValueError(f"expected one of {', '.join(sorted(known))}{nearest(value, known)}")
    return value
