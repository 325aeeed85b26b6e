"""Each setting is described once: its default by the method, its scope by its field."""

from dataclasses import fields

import pytest

from prrfl.algorithms import ALGORITHMS
from prrfl.config import SCOPES, TrainConfig

OF_MACHINE = {"device", "workers", "threads"}


def test_every_setting_has_a_scope():
    assert SCOPES.keys() == TrainConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ({"resumable": True}, OF_MACHINE | {"tensorboard", "data", "allow_missing"}),
        ({"comparison": "free"}, OF_MACHINE | {"tensorboard"}),
        (
            {"comparison": "same"},
            {"data", "classes", "image_size", "allow_missing", "sites", "images", "method", "seed"},
        ),
        ({"of_site": True}, OF_MACHINE | {"data", "allow_missing", "sites", "images"}),
        ({"of_server": True}, {"tensorboard"}),
        ({"of_hardware": True}, {"precision"}),
        ({"of_generator": True}, {"sites", "images"}),
    ],
)
def test_settings_are_found_by_scope(facts, names):
    assert TrainConfig.where(**facts) == names


@pytest.mark.parametrize("kind", ALGORITHMS.values(), ids=ALGORITHMS)
def test_hyper_parameters_have_the_defaults_of_their_method(kind):
    for field in fields(kind):
        assert TrainConfig.model_fields[field.name].default == field.default
        assert SCOPES[field.name].comparison == "method"
