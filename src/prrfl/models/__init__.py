"""Networks by name: VGG16-slim, and two-dimensional classifiers of MONAI."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from prrfl.errors import ConfigError, nearest
from prrfl.models.vgg16_slim import VGG16Slim, vgg16_slim

__all__ = ["NETWORKS", "Init", "VGG16Slim", "build_network", "vgg16_slim"]


def _monai(name: str, **settings: object) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        # Importing MONAI takes seconds; it is only needed for these networks.
        from monai.networks import nets

        module: nn.Module = getattr(nets, name)(**settings, **{_classes_argument(name): num_classes})
        return module

    return build


def _classes_argument(name: str) -> str:
    return "out_channels" if name.startswith("DenseNet") else "num_classes"


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "vgg16_slim": vgg16_slim,
    "vgg_nb": vgg16_slim,
    "vgg_b": lambda num_classes: vgg16_slim(num_classes, bias=True),
    "resnet18": _monai("resnet18", spatial_dims=2, n_input_channels=3),
    "resnet34": _monai("resnet34", spatial_dims=2, n_input_channels=3),
    "resnet50": _monai("resnet50", spatial_dims=2, n_input_channels=3),
    "densenet121": _monai("DenseNet121", spatial_dims=2, in_channels=3),
    "seresnet50": _monai("SEResNet50", spatial_dims=2, in_channels=3),
    "efficientnet-b0": _monai(
        "EfficientNetBN", model_name="efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=3
    ),
}


Init = Literal["pytorch", "he"]
"""Initial weights: as PyTorch and MONAI draw them, or He-normal in all convolutions and linear layers."""


def build_network(name: str, num_classes: int = 3, seed: int = 0, init: Init = "pytorch") -> nn.Module:
    """Return a network with random weights, which depend on seed and ``init`` only.

    PyTorch's global generator is not changed.

    Raises:
        ConfigError: if no network has that name.
    """
    if name not in NETWORKS:
        raise ConfigError(
            f"unknown network '{name}'{nearest(name, NETWORKS)}; choose one of {', '.join(sorted(NETWORKS))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name](num_classes)
        if init == "he":
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return network
