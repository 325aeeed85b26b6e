"""How networks train and predict."""

from prrfl.training.batching import batches, prepare, scoring_batch
from prrfl.training.counter import ImageCounter
from prrfl.training.epoch import Epoch, Objective, Step, features_of, train_epoch, with_features
from prrfl.training.randomness import draws_numbers, generator, site_generator
from prrfl.training.recipe import Augment, Learner, Precision, Recipe, Site, Weighting, forward, normalise
from prrfl.training.scoring import predict, reestimate_norms

__all__ = [
    "Augment",
    "Epoch",
    "ImageCounter",
    "Learner",
    "Objective",
    "Precision",
    "Recipe",
    "Site",
    "Step",
    "Weighting",
    "batches",
    "draws_numbers",
    "features_of",
    "forward",
    "generator",
    "normalise",
    "predict",
    "prepare",
    "reestimate_norms",
    "scoring_batch",
    "site_generator",
    "train_epoch",
    "with_features",
]
