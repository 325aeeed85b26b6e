"""Personalised, retrogress-resilient federated learning on medical images (PRR-FL).

The names below are imported when they are first used, so that ``import prrfl`` does not import PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prrfl.algorithms import PRRFL
    from prrfl.engine import InProcess, run_rounds
    from prrfl.errors import (
        ConfigError,
        DataError,
        NonFiniteShareError,
        ParticipationError,
        PRRFLError,
        StateMismatchError,
    )
    from prrfl.models import build_network, vgg16_slim
    from prrfl.parts import Search
    from prrfl.pfa import low_frequency_ratio, progressive_fourier_aggregation
    from prrfl.tensors import norm_keys
    from prrfl.training import Recipe
    from prrfl.types import Examples, RoundRecord, Scores, SiteData

__version__ = "0.2.0"
__all__ = [
    "ConfigError",
    "DataError",
    "Examples",
    "InProcess",
    "NonFiniteShareError",
    "PRRFL",
    "PRRFLError",
    "ParticipationError",
    "Recipe",
    "RoundRecord",
    "Scores",
    "Search",
    "SiteData",
    "StateMismatchError",
    "build_network",
    "low_frequency_ratio",
    "norm_keys",
    "progressive_fourier_aggregation",
    "run_rounds",
    "vgg16_slim",
]

_MODULES = {
    "algorithms": ("PRRFL",),
    "engine": ("InProcess", "run_rounds"),
    "errors": (
        *("ConfigError", "DataError", "NonFiniteShareError", "ParticipationError"),
        *("PRRFLError", "StateMismatchError"),
    ),
    "models": ("build_network", "vgg16_slim"),
    "parts": ("Search",),
    "pfa": ("low_frequency_ratio", "progressive_fourier_aggregation"),
    "tensors": ("norm_keys",),
    "training": ("Recipe",),
    "types": ("Examples", "RoundRecord", "Scores", "SiteData"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'prrfl' has no attribute '{name}'")
    value = getattr(import_module(f"prrfl.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
