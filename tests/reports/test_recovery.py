"""How long drops last, and where they are certain."""

import pytest

from prrfl.reports.meter import Drop, mean_drop
from prrfl.reports.recovery import by_site, recovery


def drop(after=None, followed=20, outcome=None, client="a", fall=0.1):
    outcome = outcome or ("not back" if after is None else "back")
    return Drop(0, client, "model", True, 0.5, 0.5 - fall, None, None, outcome, after, followed)


def test_drops_that_never_came_back_count():
    # Three of ten came back, after 5 epochs on average; of the others nothing is known but that 20 passed.
    drops = [drop(4), drop(5), drop(6), *[drop() for _ in range(7)]]
    found = recovery(drops)
    assert (found.epochs, found.longest, found.back, found.falls) == (None, 20, 3, 10)
    # Half came back within 6 epochs.
    assert recovery([drop(4), drop(5), drop(6), drop(), drop(), drop()]).epochs == 6
    # Two runs ended after 3 epochs: of those still followed half are back after 5.
    early = [drop(followed=3), drop(followed=3)]
    assert recovery([drop(4), drop(5), *early, drop(), drop()]).epochs == 5
    assert recovery([drop(outcome="last round", followed=0), drop(outcome="no fall")]).falls == 0
    assert recovery([]).longest == 0


def test_sites_count_alike_however_often_they_took_part():
    drops = [drop(1, fall=0.3), *[drop(1, client="b", fall=0.1) for _ in range(3)]]
    assert mean_drop(drops, "f1") == pytest.approx(0.2)
    assert mean_drop(drops, "auc") is None


def test_a_drop_is_certain_if_its_interval_for_all_sites_excludes_zero():
    def seeds(*falls):
        return [[drop(1, fall=fall), drop(1, client="b", fall=0.0)] for fall in falls]

    assert by_site(seeds(0.10, 0.11, 0.12))["a"].certain
    # t = 5: p = 0.038, enough for one site, not for the worst of two.
    once = seeds(0.10, 0.15, 0.20)
    assert not by_site(once)["a"].certain
    assert by_site([[d for d in of_seed if d.client == "a"] for of_seed in once])["a"].certain
    assert not by_site(seeds(0.3))["a"].certain
    assert not by_site(once)["b"].certain
