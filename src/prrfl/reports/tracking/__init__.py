"""Trackers of experiments: where a run is logged besides its folder, so that it can be found among others."""

from prrfl.reports.tracking.base import Results, Tracked, Tracker, values_of_round
from prrfl.reports.tracking.mlflow import MLflow
from prrfl.reports.tracking.tensorboard import TensorBoard
from prrfl.reports.tracking.trackers import Trackers, tracking
from prrfl.reports.tracking.wandb import WandB

__all__ = [
    "MLflow",
    "Results",
    "TensorBoard",
    "Tracked",
    "Tracker",
    "Trackers",
    "WandB",
    "tracking",
    "values_of_round",
]
