"""Personalised, retrogress-resilient federated learning on medical images (PRR-FL)."""

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
from prrfl.pfa import low_frequency_ratio, progressive_fourier_aggregation
from prrfl.tensors import norm_keys
from prrfl.training import Recipe
from prrfl.types import Examples, RoundRecord, Scores, SiteData

__version__ = "0.1.0"
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
    "SiteData",
    "StateMismatchError",
    "build_network",
    "low_frequency_ratio",
    "norm_keys",
    "progressive_fourier_aggregation",
    "run_rounds",
    "vgg16_slim",
]
