"""Each setting is described once: its default by the method, its scope by its field."""

from dataclasses import fields

import pytest

from prrfl.algorithms import ALGORITHMS
from prrfl.config import SCOPES, TRACKERS, TrainConfig, checked
from prrfl.errors import ConfigError
from prrfl.losses import LOSSES
from prrfl.reports.tracking import trackers

OF_MACHINE = {"device", "workers", "threads"}


def test_every_setting_has_a_scope():
    assert SCOPES.keys() == TrainConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ({"resumable": True}, OF_MACHINE | {"track", "data", "allow_missing"}),
        ({"comparison": "free"}, OF_MACHINE | {"track"}),
        (
            {"comparison": "same"},
            {"data", "classes", "image_size", "allow_missing", "sites", "images", "method", "seed"},
        ),
        ({"of_site": True}, OF_MACHINE | {"data", "allow_missing", "sites", "images"}),
        ({"of_server": True}, {"track"}),
        ({"of_hardware": True}, {"precision"}),
        ({"of_generator": True}, {"sites", "images"}),
    ],
)
def test_settings_are_found_by_scope(facts, names):
    assert TrainConfig.where(**facts) == names


def test_every_tracker_that_can_be_named_is_there():
    assert set(TRACKERS) == set(trackers.OPENERS)


@pytest.mark.parametrize(("name", "kind"), ALGORITHMS.items(), ids=ALGORITHMS)
def test_hyper_parameters_have_the_defaults_of_their_method(name, kind):
    for field in fields(kind):
        assert getattr(TrainConfig(method=name), field.name) == field.default
        assert SCOPES[field.name].comparison == "method"


@pytest.mark.parametrize(("name", "kind"), LOSSES.items(), ids=LOSSES)
def test_settings_of_a_loss_have_its_defaults(name, kind):
    assert TrainConfig(loss=name).loss_function() == kind()
    assert all(SCOPES[field.name].comparison == "method" for field in fields(kind))


def test_a_method_brings_its_loss_and_other_defaults_unless_others_are_given():
    follow_up = TrainConfig(method="prrfl-imbalance")
    assert (follow_up.loss, follow_up.aggregation) == ("cpa", "pfa-phase")
    assert (TrainConfig().loss, TrainConfig().aggregation) == ("cross-entropy", "pfa")
    given = TrainConfig(method="prrfl-imbalance", loss="focal", aggregation="pfa")
    assert (given.loss, given.aggregation) == ("focal", "pfa")
    assert follow_up.without_effect() == []
    assert TrainConfig(loss="focal", beta=0.5, focusing=1.0).without_effect() == ["beta"]


def test_an_unknown_loss_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"loss: expected one of .*did you mean 'focal'"):
        checked({"loss": "foca"}, "x", {"loss": "foca"})
