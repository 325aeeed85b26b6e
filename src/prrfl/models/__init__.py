"""Networks by name: VGG16-slim, ViT-B/16, Swin-T, and two-dimensional classifiers of MONAI."""

import inspect
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Literal, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prrfl.errors import ConfigError, nearest
from prrfl.models.swin import swin
from prrfl.models.vgg16_slim import VGG16Slim, vgg16_slim
from prrfl.models.vit import vit
from prrfl.parts import PartError, Parts, complete_settings, construct
from prrfl.parts.blame import class_and_message, raised_by_a_part

__all__ = ["NETWORKS", "Init", "VGG16Slim", "build_network", "vgg16_slim"]


def _monai(name: str, **settings: object) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        # MONAI imports MLflow where it is installed, which would report its use to its makers.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Importing MONAI takes seconds; it is only needed for these networks.
        from monai.networks import nets

        module: nn.Module = getattr(nets, name)(**settings, **{_classes_argument(name): num_classes})
        return module

    return build


def _classes_argument(name: str) -> str:
    return "out_channels" if name.startswith("DenseNet") else "num_classes"


def _resnet(name: str) -> Callable[[int], nn.Module]:
    # MONAI's own defaults are those of volumes: stride 1 first, and biases before batch norm.
    return _monai(name, spatial_dims=2, n_input_channels=3, conv1_t_stride=2, bias_downsample=False)


NETWORKS: Parts[Callable[..., nn.Module]] = Parts("network", "prrfl.networks", {
    "vgg16_slim": vgg16_slim,
    "vgg_nb": vgg16_slim,
    "vgg_b": lambda num_classes: vgg16_slim(num_classes, bias=True),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "densenet121": _monai("DenseNet121", spatial_dims=2, in_channels=3),
    "seresnet50": _monai("SEResNet50", spatial_dims=2, in_channels=3),
    "efficientnet-b0": _monai(
        "EfficientNetBN", model_name="efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=3
    ),
    "vit-b16": vit,
    "swin-t": swin,
})  # fmt: skip
"""All networks by name: functions of the number of classes."""


Init = Literal["pytorch", "he"]
"""Initial weights: as PyTorch and MONAI draw them, or He-normal in all convolutions and linear layers."""


def build_network(
    name: str,
    num_classes: int = 3,
    seed: int = 0,
    init: Init = "pytorch",
    settings: Mapping[str, object] = MappingProxyType({}),
) -> nn.Module:
    """Return a network with random weights, which depend on seed and ``init`` only.

    PyTorch's global generator is not changed.

    Args:
        name: one of :data:`NETWORKS`, or a reference such as ``./file.py:Class``.
        num_classes: number of outputs.
        seed: of the weights.
        init: their distribution.
        settings: of a network that is not the package's.

    Raises:
        ConfigError: if no network has that name, or a setting is invalid.
        PartError: if a network that is not the package's cannot be used.

    Examples:
        >>> import torch
        >>> from prrfl import build_network
        >>> network = build_network("vgg16_slim", num_classes=3, seed=0).eval()
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """
    if name not in NETWORKS:
        raise ConfigError(
            f"unknown network '{name}'{nearest(name, NETWORKS)}; choose one of {', '.join(sorted(NETWORKS))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _own(name, num_classes, settings) if NETWORKS.is_own(name) else NETWORKS[name](num_classes)
        if init == "he":
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return network


def check_outputs(network: nn.Module, name: str, num_classes: int, image_size: int) -> None:
    """Check, before a run, that a network of the user's own maps images to logits. It is not changed.

    Raises:
        PartError: if it raises, or returns something else.
    """
    whole = f"network {name}"
    if any(map(is_lazy, network.parameters())):
        raise PartError(f"{whole}: a lazy layer has no size before its first batch; give the size")
    images = torch.zeros(2, 3, image_size, image_size)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            logits = deepcopy(network).eval()(images)
    except Exception as cause:
        raise raised_by_a_part(cause) or PartError(f"{whole}: {class_and_message(cause)}") from cause
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, num_classes):
        raise PartError(
            f"{whole}: expected a tensor of logits (2, {num_classes}) for 2 images of {image_size} px and "
            f"{num_classes} classes, got {found}"
        )


def network_settings(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Return all settings of a network that is not the package's.

    Raises:
        ConfigError: if a name is unknown, or a value is invalid or missing.
        PartError: if the network cannot be used.
    """
    return complete_settings(_makes_network(name), given, f"network {name}", positional=1)


def _own(name: str, num_classes: int, settings: Mapping[str, object]) -> nn.Module:
    complete = network_settings(name, settings)
    network = construct(_makes_network(name), complete, f"network {name}", (num_classes,))
    if not isinstance(network, nn.Module):
        raise PartError(f"network {name}: expected a torch.nn.Module, got {type(network).__name__}")
    return network


def _makes_network(name: str) -> Callable[..., nn.Module]:
    """Return a class or function that makes networks.

    The file of a saved network names its architecture. Such a file may come from someone else, so only
    what is declared to be a network, or to return one, is ever called.

    Raises:
        PartError: if the part is neither.
    """
    part: Any = NETWORKS[name]
    try:
        made = part if inspect.isclass(part) else get_type_hints(part).get("return")
    except (NameError, AttributeError, TypeError) as cause:  # a misspelt annotation, or no function
        raise PartError(f"network {name}: its annotations cannot be read: {cause}") from None
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise PartError(
            f"network {name}: expected a subclass of torch.nn.Module, or a function with the annotation "
            "-> nn.Module"
        )
    return part  # type: ignore[no-any-return]
