"""What methods say about themselves; the rest of the package knows none of them by name."""

from dataclasses import dataclass

import pytest

from prrfl.algorithms import (
    ALGORITHMS,
    BASELINE,
    DEFAULT,
    PRRFL,
    FedAvg,
    PRRFLImbalance,
    Traits,
    traits_of,
    variant_of,
)


def test_scopes_of_the_built_in_methods():
    unusual = {name: traits_of(kind).scope for name, kind in ALGORITHMS.items()}
    assert {name: scope for name, scope in unusual.items() if scope != "federated"} == {
        "local": "alone",
        "centralised": "pooled",
    }
    assert traits_of(ALGORITHMS[DEFAULT]).scope == "federated"
    assert traits_of(ALGORITHMS[BASELINE]).scope == "alone"


def test_a_method_that_sets_nothing_has_the_default_traits():
    @dataclass(frozen=True)
    class Mine:
        pass

    assert traits_of(Mine) == traits_of(Mine()) == traits_of(FedAvg()) == Traits()
    assert variant_of(Mine()) == ""


@pytest.mark.parametrize(
    ("method", "variant"),
    [
        (PRRFL(), ""),
        (PRRFL(r0=0.1, transfer="recover"), ""),
        (PRRFL(aggregation="pfa-phase"), "phases"),
        (PRRFL(aggregation="mean"), "ablated"),
        (PRRFL(transfer="off"), "ablated"),
        (PRRFL(aggregation="mean", transfer="off"), "ablated"),
    ],
)
def test_prrfl_that_sends_more_than_amplitudes_is_a_variant(method, variant):
    assert variant_of(method) == variant
    assert variant in ("", *traits_of(PRRFL).variants)


def test_who_agrees_to_the_follow_up_agrees_to_phases():
    assert variant_of(PRRFLImbalance()) == ""
    assert variant_of(PRRFLImbalance(aggregation="mean")) == "ablated"


def test_the_stages_of_prrfl_are_named():
    assert traits_of(PRRFL).stages == ("recover", "exchange", "sublimate")
